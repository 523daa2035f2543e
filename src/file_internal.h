/* file_internal.h — what the parts of the file module share: the state of a tenure, its nodes, and
 * the backing's system calls.
 *
 *   file.c         life: new, open, lock and wipe                file_read.c    read, seek
 *   file_tree.c    nodes in memory, their entries                file_write.c   write, inline data, the flip to pages
 *   file_commit.c  page 0, nodes, flush, records, promotion      file_drop.c    truncate, punch, zero, repair
 *   file_record.c  what a completed flush allows to conclude     file_page.c    one unit: judge, open
 *   file_io.c      the backing's system calls, buffers           file_scan.c    every unit in turn; check
 *   file_mend.c    repair                                       file_slot.c    slots of page 0
 *   file_shared.c  other hosts: sections, locks                 file_fd.c      the descriptor
 *
 * A version is "known" when it was issued or accepted in this tenure. Sections are those of
 * byokfs-format(5). */
#ifndef BYOKFS_FILE_INTERNAL_H
#define BYOKFS_FILE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "fdpool.h"
#include "file.h"

#define FILE_B (1ull << 18) /* section 5.1 */
#define FILE_W (1ull << 19)

#define FILE_CHUNK     256u               /* pages handled per round of a long read or write */
#define FILE_BUFFER    (FILE_CHUNK + 16u) /* pages of a buffer: those and the nodes between */
#define FILE_CLEAN_MAX 128u               /* nodes a file keeps without need, */
#define FILE_SPARE_MAX 4096u              /* and beyond that, all files together: 20 MiB */
#define FILE_BUSY_MAX  2048u              /* nodes dirty or with entries to record, before a writer must flush */
#define FILE_BUCKETS   256u
#define FILE_MARGIN    64u /* versions a writer leaves for nodes it may have to write */

/* The system calls on the backing; the tests put a simulated disk here. Results are -errno. */
struct file_io {
	ssize_t (*read)(int fd, void *buf, size_t n, uint64_t off);
	ssize_t (*readv)(int fd, struct iovec *iov, int cnt, uint64_t off);
	int (*write)(int fd, const void *buf, size_t n, uint64_t off);
	int (*sync)(int fd);
	int (*truncate)(int fd, uint64_t size);
	int (*allocate)(int fd, int mode, uint64_t off, uint64_t n);
	int64_t (*seek_data)(int fd, uint64_t off);
	int (*stat)(int fd, struct stat *);
	int (*set_mtime)(int fd, const struct timespec *mtime);
	int (*lock)(int fd, int type); /* OFD lock of FILE_LOCK_SECTION: F_WRLCK, F_RDLCK, F_UNLCK; -EAGAIN */
	uint64_t (*now_us)(void);
	void (*nap_us)(uint64_t us);
	void *(*alloc)(size_t n); /* zeroed */
};
extern const struct file_io file_io_backing;
extern const struct file_io *file_io;

/* What memory knows of an entry's unit: the version last issued or accepted (0: nothing) and flags. */
#define ENT_VER(e) ((e) & (REC_H - 1))
#define ENT_PEND   (1ull << 61) /* issued, to be recorded once durable */
#define ENT_TOMB   (1ull << 62) /* the version is only a floor: the unit may be absent */
#define ENT_GONE   (1ull << 63) /* dropped: absent, whatever the disk says; the version is its tombstone */

TAILQ_HEAD(file_nodes, file_node);

/* The root or a node page in memory. Entries are numbered through: those of the root are data 0..3,
 * groups, L1 pages, L2 pages. */
struct file_node {
	TAILQ_ENTRY(file_node) link;
	struct file_node *chain, *up;
	enum unit_type type;
	uint64_t index;
	uint32_t slot;       /* its entry in up */
	uint32_t count;      /* entries */
	uint32_t kids;       /* nodes in memory below */
	uint32_t pend, gone; /* entries with that flag */
	bool loaded;         /* text is valid */
	bool dirty;          /* something that allows, or that users see, is not written */
	bool stale;          /* only records are not written */
	bool secured;        /* its page has space in the backing */
	bool busy;           /* on the busy list */
	uint8_t *text;
	uint64_t ent[];
};

/* How far a flush that begins now would make things durable. */
struct file_mark {
	uint64_t no, clock, full, size;
};

enum file_drop { DROP_NONE, DROP_LISTED /* before T2 */, DROP_REMOVED /* before T3 */ };

struct file {
	struct fdslot slot;   /* held by whoever holds a content lock, and by others while they use its descriptor */
	atomic_bool unsynced; /* written since the last flush of the backing file */
	atomic_bool flushed;  /* once at least, with success */
	_Atomic int lost;     /* a flush failed before the descriptor was to be closed: f->failed soon */
	atomic_bool reader;   /* params.readonly, for those who open it again */
	struct file_params params;
	struct header_ident ident;
	pthread_rwlock_t content; /* guards all below; readers share */
	pthread_mutex_t cache;    /* besides, while readers share: nodes, entries, clock */

	bool loaded;                /* root and nodes are valid; false after a wipe */
	uint8_t page0[LAYOUT_PAGE]; /* as on disk */
	struct header_state disk;   /* its STATE */
	uint64_t size, csize;
	uint64_t low, low_no; /* smallest size since flush low_no began */
	bool inlined, fresh;
	uint64_t clock, loaded_clock;
	bool begun;                          /* clock rule 1 was applied */
	uint64_t durable;                    /* clock of a page 0 known durable */
	uint64_t full_written, full_durable; /* the same for a page 0 written with all its nodes */
	uint64_t flush_no;                   /* flushes begun */
	bool sealed;                         /* a unit was sealed since page 0 was written */
	int failed;                          /* a flush failed: for the tenure */
	struct file_mark promotion;

	enum file_drop drop;
	uint64_t drop_clock, drop_flush;
	bool checked; /* section 5.6 was done */
	bool repair;  /* the backing is longer than it should be: 5.6 is wanted soon */
	bool mending; /* a root that does not open is made anew; */
	bool root_lost; /* it was */

	uint64_t st_size; /* of the backing */
	bool want_hint;   /* exact, as soon as drops allow */
	bool keep_times, times_saved;
	struct timespec mtime;

	struct file_node *root;
	struct file_node **table;
	struct file_nodes clean, busy;
	unsigned nclean, nbusy;

	/* shared mode */
	bool held;            /* the backing file is locked: what is there now is all there is */
	uint64_t section_seq; /* of page 0 when it was */
	uint64_t let_go, streak;
	uint64_t missed; /* when a wait for the lock ended in vain */

	_Atomic uint64_t pub_size, pub_seq;
	atomic_bool pub_dirty, pub_pending, pub_fresh, pub_odd;
};

/* ---- file.c ---- */
/* Exclusive, page 0 loaded. */
MUST_CHECK int file_lock(struct file *, const struct file_key *);
/* The same for work users have not asked for: mtime will be as before. */
MUST_CHECK int file_lock_quiet(struct file *, const struct file_key *);
void file_unlock(struct file *);
/* As file_open(), for file_mend(). */
MUST_CHECK int file_open_mending(struct file **, int fd, const struct file_key *, const struct file_params *);
/* Exclusive in memory, but on a shared store others may read on: nothing will be changed. */
MUST_CHECK int file_lock_reading(struct file *, const struct file_key *);
/* Takes page 0 into memory. */
MUST_CHECK int file_load(struct file *, const struct file_key *, const uint8_t page[static LAYOUT_PAGE]);
MUST_CHECK int file_read_page0(int fd, uint8_t page[static LAYOUT_PAGE]);
/* -EIO, with a log line naming file, unit and reason. */
int file_damaged(const struct file *, enum unit_type, uint64_t index, const char *reason);

/* ---- file_shared.c; only in shared mode, but for file_end() ---- */
/* The content lock is held exclusively, and was asked for at `since` (us). Locks the backing file and takes in what
 * others wrote: F_WRLCK or F_RDLCK. On failure nothing is locked. */
MUST_CHECK int file_section_begin(struct file *, const struct file_key *, int type, uint64_t since);
/* For work without a key: page0 is as on disk, and if others wrote, the state is loaded again before its next use. */
MUST_CHECK int file_section_begin_keyless(struct file *, uint64_t since);
/* What a section changed, durable: until then the lock stays. */
MUST_CHECK int file_section_end(struct file *, const struct file_key *, int rc);
void file_section_unlock(struct file *);
MUST_CHECK int file_promote_shared(struct file *, const struct file_key *);
MUST_CHECK int file_fsync_shared(struct file *);
/* Nobody wrote page 0 since memory took it in. A reader asks after it has read: what is removed from the backing is
 * removed after a page 0 was written that says so. */
MUST_CHECK int file_still_current(const struct file *);
/* Ends what file_lock() began: in shared mode the section first. rc is that of the work; the first failure returns. */
MUST_CHECK static inline int file_end(struct file *f, const struct file_key *key, int rc)
{
	if (f->params.shared)
		rc = file_section_end(f, key, rc);
	file_unlock(f);
	return rc;
}
/* Shared mode, and no lock held: what does not fit may be another host's work in progress. */
static inline bool file_tentative(const struct file *f)
{
	return f->params.shared && !f->held;
}

/* ---- file_fd.c ---- */
/* The state is complete: from now on its descriptor may be closed by others. */
void file_join_pool(struct file *);

/* ---- file_io.c ---- */
/* fdatasync(2) of the backing file. Held; no lock needed. */
MUST_CHECK int file_sync(struct file *);
/* Page-aligned, FILE_BUFFER pages, of this thread, until its next use; NULL: no memory. For
 * ciphertext only. */
uint8_t *file_buffer(void);
MUST_CHECK ssize_t file_pread(struct file *, void *buf, size_t n, uint64_t page);
/* Into a vector, which is modified. */
MUST_CHECK ssize_t file_preadv(struct file *, struct iovec *iov, int cnt, uint64_t page);
MUST_CHECK int file_pwrite(struct file *, const void *buf, size_t pages, uint64_t page);
/* One slot of an encoded page 0 (0/1): its sector only. */
MUST_CHECK int file_pwrite_slot(struct file *, const uint8_t page[static LAYOUT_PAGE], int which);
MUST_CHECK int file_set_length(struct file *, uint64_t size);
/* Space for a page of a node, beyond the end, too. */
MUST_CHECK int file_secure_backing(struct file *, uint64_t page);
MUST_CHECK int file_punch_backing(struct file *, uint64_t page, uint64_t pages);
/* First page at or after `page` that may not be a hole of the backing; UINT64_MAX: none. */
uint64_t file_next_backed(struct file *, uint64_t page);

/* ---- file_tree.c ---- */
extern unsigned file_spare_max; /* FILE_SPARE_MAX, but for tests */
size_t file_rec_at(const struct file_node *, uint32_t e);
/* The spill of entry e, or NULL where entries have none. */
uint8_t *file_spill(const struct file_node *, uint32_t e);
/* The unit of entry e. */
void file_child(const struct file_node *, uint32_t e, enum unit_type *, uint64_t *index);
/* First data page below a unit. */
uint64_t file_first_page(enum unit_type, uint64_t index);
static inline rec_t file_rec(const struct file_node *n, uint32_t e)
{
	return rec_get(n->text + file_rec_at(n, e));
}
static inline void file_set_rec(const struct file_node *n, uint32_t e, rec_t rec)
{
	rec_put(n->text + file_rec_at(n, e), rec);
}
MUST_CHECK struct file_node *file_root_new(void);
void file_node_free(struct file_node *);
/* The node that records a unit, and the entry; read from disk or made as needed. Valid until
 * file_trim() or the lock is let go. Readers hold the cache mutex. */
MUST_CHECK int file_parent(
    struct file *, const struct file_key *, enum unit_type, uint64_t index, struct file_node **, uint32_t *e);
MUST_CHECK int file_node_get(
    struct file *, const struct file_key *, enum unit_type, uint64_t index, struct file_node **);
/* A node that cannot be read is made anew in memory, dirty: everything below it may be absent. */
MUST_CHECK int file_node_anew(
    struct file *, const struct file_key *, enum unit_type, uint64_t index, struct file_node **);
/* The root as if nothing were known below it: of a file whose root is lost. */
void file_forget_root(struct file *, struct header_state *);
/* Looks only in memory. */
struct file_node *file_node_find(const struct file *, enum unit_type, uint64_t index);
/* Flags changed: puts the node on the list it belongs to. */
void file_requeue(struct file *, struct file_node *);
void file_mark_dirty(struct file *, struct file_node *);
/* Unit e was written with a version. */
void file_issued(struct file *, struct file_node *, uint32_t e, uint64_t ver);
/* Unit e became a hole (T1); with a fresh file its tombstone is its record at once. */
void file_dropped(struct file *, struct file_node *, uint32_t e);
/* Unit e was found on disk with a version. */
void file_accepted(struct file *, struct file_node *, uint32_t e, uint64_t ver);
/* Memory forgets a node and what hangs on it; children first. */
void file_discard(struct file *, struct file_node *);
/* Lets go of clean nodes beyond the bound. */
void file_trim(struct file *);
/* Every node leaves memory. */
void file_tree_clear(struct file *);
/* First node of the busy list or after n, the root last. */
struct file_node *file_busy_next(const struct file *, const struct file_node *n);

/* ---- file_page.c ---- */
/* What a page's record and memory say about it, copied so that no lock is needed to judge it. */
struct file_view {
	rec_t rec;
	uint64_t ent;
	uint64_t bound; /* highest version to accept */
};
struct file_view file_view_of(const struct file *, const struct file_node *, uint32_t e);
/* Opens the page of a unit under the rules of section 4. 0 and its version, 0 and version 0 when it
 * is absent as it may be (text is zero), or -EIO. */
MUST_CHECK int file_open_unit(struct file *, struct block_run *, const struct file_view *, enum unit_type,
    uint64_t index, const uint8_t *page, uint8_t text[static LAYOUT_BODY], uint64_t *ver);
/* The same for data page k, whose ciphertext is in text. */
MUST_CHECK int file_open_in_place(struct file *, struct block_run *, const struct file_view *, uint64_t k,
    const uint8_t meta[static BLOCK_META], uint8_t text[static LAYOUT_BODY], const uint8_t tag[static BLOCK_TAG],
    uint64_t *ver);
/* Application page k, exclusive lock held: 4096 bytes; *present: it has a data page. */
MUST_CHECK int file_load_page(struct file *, const struct file_key *, struct file_node *, uint32_t e, uint64_t k,
    uint8_t text[static LAYOUT_PAGE], bool *present);
/* Has the data page a page in the backing? Without reading it where memory or the record tells. */
MUST_CHECK int file_page_present(struct file *, struct file_node *, uint32_t e, uint64_t k, bool *present);
/* A page that memory need not ask the disk about. */
static inline bool file_surely_present(rec_t rec, uint64_t ent)
{
	return !(ent & ENT_GONE) && (!(rec & REC_H) || (ENT_VER(ent) && !(ent & ENT_TOMB)));
}

/* ---- file_read.c ---- */
MUST_CHECK int file_lock_shared(struct file *, const struct file_key *);
void file_unlock_shared(struct file *);
/* Where the backing has nothing, neither pages nor spills exist: the next page from k on that is
 * worth a look, or UINT64_MAX. */
uint64_t file_skip_unbacked(struct file *, uint64_t k);

/* ---- file_scan.c ---- */
/* One walk over the units below data pages [from, to). What fails is counted and passed on; what was found under a node
 * that was made anew is, too. */
struct file_scan {
	struct file *f;
	const struct file_key *key;
	uint64_t from, to;
	bool mend;  /* nodes that fail are made anew, in memory at least */
	bool write; /* and written, and pages that fail become zeros */
	void (*report)(void *arg, const struct file_fault *);
	bool (*may)(void *arg, enum unit_type, uint64_t index); /* with mend: file_mend() */
	void *arg;
	uint64_t bytes;
	bool met; /* with mend: something was made anew */
	/* private */
	const char *reason;          /* of the failure just met */
	uint64_t hole, backed;       /* physical pages [hole, backed) are none */
	struct file_fault pending;   /* grows while the next one continues it */
};
MUST_CHECK int file_scan(struct file_scan *);

/* ---- file_commit.c ---- */
/* Exclusive lock held: takes in what was found out without it. */
void file_note_lost(struct file *);
/* Makes room for n more versions (section 5.1); may write page 0 and flush. */
MUST_CHECK int file_budget(struct file *, const struct file_key *, uint64_t n);
/* A version; after file_budget(). */
static inline uint64_t file_tick(struct file *f)
{
	f->sealed = true;
	return ++f->clock;
}
MUST_CHECK int file_write_page0(struct file *, const struct file_key *);
MUST_CHECK int file_write_node(struct file *, const struct file_key *, struct file_node *);
/* Something users could miss is not written. */
bool file_uncommitted(const struct file *);
/* Nodes bottom-up and page 0, if anything a user could miss is not written, or records (all). */
MUST_CHECK int file_commit(struct file *, const struct file_key *, bool all);
/* A flush with the lock held, for the rare cases that cannot wait, and its consequences. */
MUST_CHECK int file_flush_now(struct file *, const struct file_key *);
MUST_CHECK int file_hint(struct file *);
/* Publishes what the lockless questions answer. */
void file_publish(struct file *);

/* ---- file_record.c ---- */
/* A flush begins. */
struct file_mark file_mark_now(struct file *);
/* T3. */
void file_bury_dropped(struct file *);
/* Records raised, but not written. */
bool file_unrecorded(const struct file *);
/* A flush that began with the mark completed. */
MUST_CHECK int file_settle(struct file *, const struct file_key *, const struct file_mark *);
/* Text was read again: raises what T3 had raised before a wipe. */
void file_rebury(struct file_node *);
/* A wipe follows: records raised but not written become pending again. `lost`: drops are forgotten. */
void file_unsettle(struct file *, bool lost);

/* ---- file_write.c ---- */
MUST_CHECK int file_flip(struct file *, const struct file_key *);
MUST_CHECK int file_cut_hint(struct file *);
/* Bytes of a paged file, lock held; buf NULL: zeros, where there is something to zero. Within size,
 * or size grows. */
MUST_CHECK int file_put(struct file *, const struct file_key *, const uint8_t *buf, size_t n, uint64_t off);
MUST_CHECK int file_put_inline(
    struct file *, const struct file_key *, const uint8_t *buf, size_t n, uint64_t off, uint64_t size);

/* ---- file_drop.c ---- */
/* Section 5.6, once per tenure. */
MUST_CHECK int file_check_end(struct file *, const struct file_key *);
/* Before size grows to make bytes from `off` on exist: 5.6 and T4. */
MUST_CHECK int file_before_growth(struct file *, const struct file_key *, uint64_t off);
/* Brings drops to their end: T2 done, or with `all` nothing left. */
MUST_CHECK int file_finish_drops(struct file *, const struct file_key *, bool all);
/* T2. */
MUST_CHECK int file_remove_dropped(struct file *);

#endif
