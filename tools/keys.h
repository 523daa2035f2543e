/* keys.h — which KMS keys a store still depends on, as its descriptors and the first page of every file claim: what
 * `byokfsctl keys` tells. No key and no KMS are needed, nothing is written, and no lock is taken. */
#ifndef BYOKFS_KEYS_H
#define BYOKFS_KEYS_H

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "cmd.h"
#include "keytab.h"
#include "store.h"

/* One filled slot of a descriptor. */
struct keys_slot {
	size_t domain; /* place in keys.domain */
	bool ruling;
	bool stale; /* of the copy that does not count, and other than in the one that does */
	int64_t sealed;
	uint8_t provider, hash[8], material[32];
};

struct keys_domain {
	uint16_t index;
	uint8_t id[CONTEXT_ID];
	enum descriptor_seal seal;
	int64_t since; /* keyage.h */
	bool lost;     /* no copy of its descriptor can be read: only index and id are set */
};

struct keys {
	const struct store *store;
	int64_t now;
	struct keytab tab;
	struct keys_domain *domain;
	struct keys_slot *slot;
	size_t ndomain, nslot, slots; /* slots: room */
	unsigned bad_copies;          /* of descriptors; their other copy is good */
	bool scanned;                 /* files were read */
	bool live;                    /* a read-write mount or a tool held the store's lock at some time meanwhile */
	bool changed;                 /* descriptors, while files were read */
	/* guarded by lock while files are read */
	pthread_mutex_t lock;
	uint64_t files, by_kms, by_domain, unborn;
	uint64_t damaged, unreadable, foreign; /* foreign: things of other filesystems, which hide what they cover */
	uint64_t quarantined;                  /* files a repair put aside, besides */
	uint64_t gone;                         /* between being listed and being opened */
	char *trouble;                         /* path of the first of these */
	int err;
};

/* Reads the descriptors of an open store and, with scan, every file, by so many threads. 0 or -errno: it could not be
 * done. keys_free() it either way. */
MUST_CHECK int keys_read(struct keys *, const struct store *, bool scan, unsigned jobs);
void keys_free(struct keys *);
/* Names for hashes: the administrator's (a list ended by NULL), then what jobs on record were about. Sorts the table. 0
 * or -ENOMEM. */
MUST_CHECK int keys_names(struct keys *, const char *const *names);
/* Was everything read and understood? */
bool keys_complete(const struct keys *);
/* What was not: one error and perhaps a hint. */
void keys_complain(const struct keys *);

/* Parts. */
MUST_CHECK int keys_descriptors(struct keys *);
MUST_CHECK int keys_files(struct keys *, unsigned jobs);
/* Does somebody hold the store's lock? */
bool keys_held(const struct store *);

/* The answer, for people or as an object. */
void keys_print(const struct keys *);
json_t *keys_json(const struct keys *);

/* --needs. A name as it stands in stores: EXIT_OK, or an error was said. */
MUST_CHECK int keys_check_name(const char *name);
/* Reads the store (again, if it is in use) and decides. json: NULL, or takes what is found and the verdict. */
int keys_needs(const struct store *, const char *name, const char *const *others, unsigned jobs, json_t **json);

/* The alert: limit in days, 0 never. EXIT_OK, EXIT_FAILED: keys are that old, EXIT_DAMAGE: not all could be read. */
int keys_age(const struct keys *, uint32_t limit, json_t *json);

#endif
