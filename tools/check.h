/* check.h — the structure of a store, checked without keys: what `byokfsctl check` finds.
 *
 * Damage: something a mount will answer EIO for, or refuse. Warning: litter, things that are not ours, what is merely
 * in doubt. Nothing is changed; FIFOs, sockets and devices are never opened. */
#ifndef BYOKFS_CHECK_H
#define BYOKFS_CHECK_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "progress.h"
#include "store.h"

#define CHECK_FINDINGS 10000u /* kept for JSON */

struct check {
	const struct store *store;
	json_t *findings; /* NULL: print them to stdout as they come */
	struct progress progress;
	uint64_t directories, files, links, specials, unborn, in_doubt;
	uint64_t damage, warnings, dropped;
	bool live;  /* a mount holds the store now */
	bool doubt; /* a mount ended without saying goodbye, or has not ended: sizes may be in doubt */
	/* private: the descriptor of a nested domain looked at last, and which; the domain index of each directory on
	 * the way down; directory ids seen */
	struct descriptor_domain *nested;
	const struct descriptor_domain_line *nested_line;
	uint16_t *domains;
	size_t depth, room;
	void *ids;
	dev_t dev;
	int err;
};

enum check_severity { CHECK_DAMAGE, CHECK_WARNING };

/* Checks everything below an opened store (readonly will do); findings is an array to fill or NULL. 0, or -errno when
 * it could not be done. */
MUST_CHECK int check_run(struct check *, const struct store *, json_t *findings);

/* Parts. path is the directory's, name the entry's ("" for the directory itself). */
void check_say(struct check *, enum check_severity, const char *path, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
void check_descriptors(struct check *);
void check_markers(struct check *);
void check_file(struct check *, int dirfd, const char *path, const char *name, const struct stat *, uint16_t domain);
/* An entry's name, and for long names their second half. false: not one of ours (reported, or reserved). */
bool check_name(struct check *, int dirfd, const char *path, const char *name, const struct stat *);
void check_link(struct check *, int dirfd, const char *path, const char *name);
/* `.byokfs.d` of an open directory, read but not authenticated. */
MUST_CHECK int check_dir_id(int dirfd, uint16_t *domain, uint8_t id[static 16]);
const struct descriptor_domain_line *check_domain(const struct check *, uint16_t index);
/* Its descriptor, until the next call; NULL when it is damaged. */
const struct descriptor_domain *check_descriptor(struct check *, uint16_t index);

#endif
