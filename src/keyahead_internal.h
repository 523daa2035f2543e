/* keyahead_internal.h — the orders of directories, and streams of opens that follow them. No I/O, locks, clock. */
#ifndef BYOKFS_KEYAHEAD_INTERNAL_H
#define BYOKFS_KEYAHEAD_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "cleanup.h"
#include "name.h"

#define ORDER_STREAMS 8u
#define ORDER_GAP     4u /* files skipped: still in order */
#define ORDER_WINDOW  4u /* the first one */

struct order_dir {
	dev_t dev;
	ino_t ino;
};

enum order_kind { ORDER_FILE, ORDER_DIR, ORDER_OTHER };

struct order_item {
	struct order_dir dir; /* it is in */
	uint64_t ino;
	enum order_kind kind;           /* FILE: its key is wanted; DIR: what is in it, by order_note() */
	char name[NAME_ENTRY_MAX + 1]; /* backing entry */
	unsigned stream;                /* private */
};

struct order_params {
	uint32_t entries, dirs; /* remembered; powers of two; the oldest go */
	uint32_t window;        /* keys ahead of a reader, at most */
	uint64_t stale_ms;      /* keys fetched longer ago may have been wiped */
};

struct order;

MUST_CHECK int order_new(struct order **out, const struct order_params *);
void order_free(struct order *);
/* Forgets everything. */
void order_wipe(struct order *);

/* One entry as a directory is read: positions before (0: the first of all) and after it. */
void order_note(struct order *, const struct order_dir *, int64_t prev, int64_t next, uint64_t ino, enum order_kind,
    const char *name);
/* Nothing comes after this position. */
void order_end(struct order *, const struct order_dir *, int64_t prev);
/* The directory is about to be read ahead, the same way: true. False: it is known. When it was read to its end,
 * order_visited() keeps the reading that follows from beginning anew. */
bool order_visit(struct order *, const struct order_dir *);
void order_visited(struct order *, const struct order_dir *);

/* A file is opened. True: a stream goes on, and has room for more than a few files: order_next() may have them. */
bool order_opened(struct order *, dev_t, uint64_t ino, uint64_t now_ms);
/* The next thing to fetch; false: nothing. */
bool order_next(struct order *, struct order_item *out);
/* Whether the key had to be asked for. While keys are at hand, only one file in some is tried. */
void order_result(struct order *, const struct order_item *, bool asked);

/* ---- private to keyahead_order.c and keyahead_stream.c ---- */

#define ORDER_NONE UINT32_MAX

struct order_entry {
	uint64_t ino;
	char *name; /* NULL: free */
	uint32_t chain, after;
	uint32_t dir, serial; /* of the directory's reading */
	uint32_t pos;         /* among the files of the directory; a directory has the one of the file after it */
	uint32_t stream;      /* serial of the stream that fetched it, or 0 */
	uint32_t at;          /* and when */
	enum order_kind kind;
	bool tried; /* a directory that was visited */
};

struct order_reading {
	struct order_dir id;
	uint32_t chain, serial; /* 0: free */
	uint32_t first, last;   /* entries */
	uint32_t files;
	uint32_t opened; /* position of the last file opened, or ORDER_NONE */
	int64_t at;      /* position after the last entry noted */
	bool complete;
	bool visited; /* read ahead, and not yet by the reader */
};

struct order_stream {
	uint32_t serial;             /* 0: free */
	uint32_t dir, dirserial, at; /* cursor: the entry taken last, ORDER_NONE: the directory's beginning */
	uint32_t run;                /* files opened in order */
	uint32_t issued, passed;     /* steps of the cursor, and those the reader has caught up with */
	uint32_t calm;
	uint32_t mark_dir, mark_serial, mark_at; /* where skipping began; mark_dir ORDER_NONE: nowhere */
	bool paused;
	uint32_t last; /* the open that was its last */
	uint64_t touched;
};

struct order {
	struct order_params params;
	struct order_entry *entry;
	struct order_reading *dir;
	uint32_t *bucket, *dirbucket;
	uint32_t head, dirhead; /* the next to be taken */
	uint32_t serial, current, newest;
	uint32_t opens;
	uint64_t salt;
	struct order_stream stream[ORDER_STREAMS];
};

uint32_t order_serial(struct order *);
struct order_reading *order_dir_find(struct order *, const struct order_dir *);
/* The directory of this serial, or NULL: it is forgotten. */
struct order_reading *order_dir_at(struct order *, uint32_t index, uint32_t serial);
struct order_reading *order_dir_of(struct order *, const struct order_entry *);
/* The entry at this index if it is one of the directory still. */
struct order_entry *order_entry_at(struct order *, uint32_t index, const struct order_reading *);
/* An object by its inode number, in whatever directory. */
struct order_entry *order_entry_find(struct order *, dev_t, uint64_t ino, bool dir);

#endif
