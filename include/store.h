/* store.h — the ciphertext directory as a whole: descriptors and their copies, exclusive lock, mount markers, sizes in
 * doubt (format.md 1, 6, 8, 12). Knows no KMS: whoever has the domain's keys calls store_authenticate().
 *
 * Functions that an administrator watches return 0 or -errno and write one line for people into why (STORE_WHY bytes),
 * in the voice "cannot open store '/x': ...". errno to exit code: -ENOENT/-EINVAL/-EPROTONOSUPPORT/-EBADMSG 4, -EBUSY
 * 9, others 1.                      */
#ifndef BYOKFS_STORE_H
#define BYOKFS_STORE_H

#include <stdbool.h>
#include <sys/stat.h>
#include <time.h>

#include "descriptor.h"
#include "kdf.h"
#include "name.h"

#define STORE_WHY   400u
#define STORE_STALE 16u

struct store {
	char *path;  /* as given, absolute */
	int fd;      /* the root, O_RDONLY|O_DIRECTORY */
	int meta_fd; /* .byokfs */
	struct descriptor_store desc;
	struct descriptor_domain domain; /* domain 0 */
	struct context_ids ids;          /* of domain 0 */
	bool readonly;
	bool shared; /* other hosts may have it mounted too */
	/* private: lock, marker, in-doubt window [doubt_from, start], open-ended when doubt_live */
	int lock_fd, marker_fd;
	char marker[40];
	_Atomic bool doubt, doubt_all;
	bool doubt_live;
	char stale[STORE_STALE][40]; /* shared: markers that this mount's sweep answers for */
	unsigned nstale;
	struct timespec doubt_from, start;
};

struct store_options {
	bool readonly;
	bool shared;  /* with other mounts that say so too; exclusive ones and tools are kept out */
	bool torn_ok; /* accept a backing with blocks under 4096 bytes */
};

/* Reads and checks descriptors (unauthenticated yet), takes the exclusive lock (read-write), refuses unsuitable
 * backings. */
MUST_CHECK int store_open(struct store *out, const char *path, const struct store_options *, char *why);
/* The domain descriptor read was refused by whoever holds the key: takes its other copy instead. 0, or -ENOENT when
 * there is no other. */
MUST_CHECK int store_other_domain(struct store *);
/* The descriptor of another domain, by its line of the store descriptor, not authenticated: the newer sound copy (rank
 * 0) or the other one (rank 1: -ENOENT when there is none, or both say the same). -EBADMSG: it is not this line's. Free
 * it with descriptor_domain_free(). */
MUST_CHECK int store_read_domain(
    const struct store *, const struct descriptor_domain_line *, int rank, struct descriptor_domain *out);
/* Once it was authenticated: writes a copy that was lost or damaged again. Nothing on a read-only mount. */
MUST_CHECK int store_restore_domain(const struct store *, struct descriptor_domain *);
/* Descriptor MACs, commitment, the root's .byokfs.d; restores a lost copy when read-write. -EBADMSG: tampered. */
MUST_CHECK int store_authenticate(struct store *, const struct domain_keys *, const struct name_keys *, char *why);
/* Determines what is in doubt. Read-write mounts: writes the marker, before the first change. -EBUSY: another mount's
 * marker is locked. The locks are OFD locks: a process forked after store_open() keeps the store locked until it closes
 * lock_fd and marker_fd, or ends. */
MUST_CHECK int store_mark(struct store *, char *why);
/* Orderly end: everything was flushed and hints are set: syncfs, remove marker. clean = false leaves it. Then frees. */
void store_close(struct store *, bool clean);

/* Did an earlier mount leave sizes that somebody should look at? */
bool store_wants_sweep(const struct store *);
/* Must stat of this regular backing file be answered from page 0 instead of the hint? (format.md 6, "in doubt") */
bool store_in_doubt(const struct store *, const struct stat *);
/* After every file was visited: forgets stale markers. */
void store_doubt_done(struct store *);

/* Makes an empty directory a store: new ids, descriptors for domain 0 with the given sealed secrets, root .byokfs.d.
 * The directory must be empty (lost+found is tolerated); -ENOTEMPTY, -EEXIST (already a store). What was written is
 * removed again on failure. */
struct store_create {
	struct context_ids ids;
	uint8_t dirid[16];
	enum name_mode names;
	enum descriptor_seal seal;
	const char *by;
	const struct context_extra *extra;
	struct descriptor_slot slot; /* filled, seq 1 */
	const struct domain_keys *keys;
	const struct name_keys *name_keys;
};
MUST_CHECK int store_create(const char *path, const struct store_create *, char *why);
/* The first descriptor of any domain: index 0 and seal=file, until the caller changes them. Free it with
 * descriptor_domain_free(). 0 or -ENOMEM. */
MUST_CHECK int store_first_domain(struct descriptor_domain *out, const struct context_ids *,
    const struct descriptor_slot *, const struct context_extra *, const struct domain_keys *);
/* The index for one more domain: above the highest, else the lowest gap; -ENOSPC when all 65,536 are taken. */
MUST_CHECK int store_free_index(const struct store *);
/* `domain add` (format.md 7.1): writes the domain's descriptor, then the store's with one line more, each durable and
 * in both copies. own are the new domain's keys, keys those of domain 0. On failure the store is as before, but for
 * litter that nobody reads, and a seq that may be skipped. */
MUST_CHECK int store_add_domain(struct store *, struct descriptor_domain *, const struct domain_keys *own,
    const uint8_t dirid[static 16], const struct domain_keys *keys, char *why);
/* Takes back what store_add_domain() wrote, when no directory is that domain's: the store's descriptor without the
 * line, then the domain's goes. -ENOENT; on failure the store is as before. */
MUST_CHECK int store_drop_domain(
    struct store *, const uint8_t domain[static CONTEXT_ID], const struct domain_keys *keys, char *why);
/* Is the directory fit to become one? Called before the KMS is asked for anything. */
MUST_CHECK int store_creatable(const char *path, bool torn_ok, char *why);
/* Writes a domain's descriptor, as read by store_read_domain() or held by whoever serves it, durably: NAME, then NAME~,
 * with seq raised and its MAC as it is (it covers no slot). The store's own copy of domain 0 is not touched, unless it
 * is what was passed. -EROFS: the store is read-only; -EOVERFLOW: no seq is left. On failure one copy may have been
 * written; seq stays raised. */
MUST_CHECK int store_put_domain(const struct store *, struct descriptor_domain *, char *why);
/* May descriptors be changed? -EOPNOTSUPP on a store mounted shared, with why. What changes them asks by itself; this
 * is for refusing before a key service is asked. */
MUST_CHECK int store_may_change(const struct store *, char *why);

#endif
