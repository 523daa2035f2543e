/* keys.c — what a store's descriptors say of keys, in both copies, before and after its files were read; and names for
 * hashes. Hides the order that makes the answer hold while the store is in use: a key that comes or goes meanwhile
 * shows as a change of the descriptors. */
#include "keys.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "io.h"
#include "keyage.h"

#define JOBS_MAX    256u /* files of the job history that are looked at */
#define JOB_BYTES   (64u << 10)
#define STALE_SLOTS 4u /* two copies, two slots */

/* ---- descriptors */

static int add_slot(struct keys *k, const struct descriptor_slot *slot, bool ruling, bool stale)
{
	struct keys_slot *s;

	if (k->nslot == k->slots) {
		size_t slots = 2 * k->slots + STALE_SLOTS;
		struct keys_slot *more = realloc(k->slot, slots * sizeof(*more));

		if (!more)
			return -ENOMEM;
		k->slot = more;
		k->slots = slots;
	}
	s = &k->slot[k->nslot++];
	*s = (struct keys_slot){ .domain = k->ndomain,
		.ruling = ruling,
		.stale = stale,
		.sealed = slot->sealed,
		.provider = slot->provider };
	kms_key_hash(s->hash, slot->key);
	memcpy(s->material, slot->material, sizeof(s->material));
	return keytab_domain(&k->tab, slot, ruling);
}

/* Does the copy that counts have this slot too? */
static bool in_other(const struct descriptor_domain *d, const struct descriptor_slot *slot)
{
	for (int i = 0; i < 2; i++)
		if (d->slot[i].seq && d->slot[i].provider == slot->provider && strcmp(d->slot[i].key, slot->key) == 0 &&
		    bytes_equal(d->slot[i].material, slot->material, sizeof(slot->material)))
			return true;
	return false;
}

static int add_slots(struct keys *k, const struct descriptor_domain *d, const struct descriptor_domain *old)
{
	int ret = 0;

	for (int i = 0; i < 2 && ret == 0; i++)
		if (d->slot[i].seq)
			ret = add_slot(k, &d->slot[i], &d->slot[i] == descriptor_ruling_slot(d), false);
	for (int i = 0; i < 2 && ret == 0 && old; i++)
		if (old->slot[i].seq && !in_other(d, &old->slot[i]))
			ret = add_slot(k, &old->slot[i], false, true);
	return ret;
}

/* One domain from what its two copies hold; got: 0 or -errno of each. */
static int add_domain(struct keys *k, size_t i, const struct descriptor_domain copy[static 2], const int got[static 2])
{
	const struct descriptor_domain_line *line = &k->store->desc.domains[i];
	struct keys_domain *out = &k->domain[k->ndomain];
	int best = got[0] ? 1 : !got[1] && copy[1].seq > copy[0].seq;
	int ret = 0;

	*out = (struct keys_domain){ .index = line->index, .lost = got[0] && got[1] };
	memcpy(out->id, line->domain, sizeof(out->id));
	k->bad_copies += !got[0] != !got[1];
	if (!out->lost) {
		out->seal = copy[best].seal;
		out->since = keyage_since(&copy[best], k->now);
		ret = add_slots(k, &copy[best], got[!best] ? NULL : &copy[!best]);
	}
	k->ndomain++;
	return ret;
}

static int load_domain(struct keys *k, size_t i, int dirfd)
{
	struct descriptor_domain *copy CLEANUP_FREE = calloc(2, sizeof(*copy));
	char name[2 * CONTEXT_ID + 2];
	int got[2], ret;

	if (!copy)
		return -ENOMEM;
	bytes_hex(name, k->store->desc.domains[i].domain, CONTEXT_ID);
	got[0] = cmd_domain_copy(dirfd, name, k->store, i, &copy[0]);
	name[2 * CONTEXT_ID] = '~';
	name[2 * CONTEXT_ID + 1] = '\0';
	got[1] = cmd_domain_copy(dirfd, name, k->store, i, &copy[1]);
	ret = got[0] == -ENOMEM || got[1] == -ENOMEM ? -ENOMEM : add_domain(k, i, copy, got);
	for (int n = 0; n < 2; n++)
		if (got[n] == 0)
			descriptor_domain_free(&copy[n]);
	return ret;
}

/* Of the store's own descriptor: the other copy may know domains that this one does not. */
static unsigned bad_store_copies(const struct store *s)
{
	static const char *const names[] = { "store", "store~" };
	unsigned bad = 0;

	for (int i = 0; i < 2; i++) {
		struct descriptor_store d;
		char *text CLEANUP_FREE = NULL;
		size_t len = 0;
		int ret = io_read_file(s->meta_fd, names[i], DESCRIPTOR_STORE_BYTES, &text, &len);

		if (ret == 0)
			ret = descriptor_store_parse(&d, text, len);
		if (ret == 0)
			descriptor_store_free(&d);
		bad += ret != 0;
	}
	return bad;
}

int keys_descriptors(struct keys *k)
{
	int fd CLEANUP_FD = openat(k->store->meta_fd, "domains", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int ret = 0;

	k->domain = calloc(k->store->desc.n, sizeof(*k->domain));
	if (!k->domain)
		return -ENOMEM;
	if (fd < 0)
		return -errno;
	k->bad_copies = bad_store_copies(k->store);
	for (size_t i = 0; i < k->store->desc.n && ret == 0; i++)
		ret = load_domain(k, i, fd);
	return ret;
}

bool keys_held(const struct store *s)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd CLEANUP_FD = openat(s->meta_fd, "lock", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	return fd >= 0 && fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

/* ---- all of it */

static bool same_slots(const struct keys *a, const struct keys *b)
{
	bool same = a->ndomain == b->ndomain && a->nslot == b->nslot;

	for (size_t i = 0; same && i < a->ndomain; i++)
		same = a->domain[i].index == b->domain[i].index && a->domain[i].lost == b->domain[i].lost &&
		    bytes_equal(a->domain[i].id, b->domain[i].id, CONTEXT_ID);
	for (size_t i = 0; same && i < a->nslot; i++) {
		const struct keys_slot *x = &a->slot[i], *y = &b->slot[i];

		same = x->domain == y->domain && x->ruling == y->ruling && x->sealed == y->sealed &&
		    x->provider == y->provider && bytes_equal(x->hash, y->hash, sizeof(x->hash)) &&
		    bytes_equal(x->material, y->material, sizeof(x->material));
	}
	return same;
}

static int begin(struct keys *k, const struct store *store)
{
	memset(k, 0, sizeof(*k));
	(void)pthread_mutex_init(&k->lock, NULL);
	k->store = store;
	k->now = io_unix_time();
	return keytab_init(&k->tab);
}

/* Do the descriptors still say what they said? */
static int look_again(struct keys *k)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	struct store *store CLEANUP_FREE = calloc(1, sizeof(*store));
	struct keys *again CLEANUP_FREE = calloc(1, sizeof(*again));
	char why[STORE_WHY];
	int ret = store && again ? store_open(store, k->store->path, &options, why) : -ENOMEM;

	if (ret < 0)
		return ret;
	ret = begin(again, store);
	if (ret == 0)
		ret = keys_descriptors(again);
	k->changed = ret == 0 && !same_slots(k, again);
	keys_free(again);
	store_close(store, true);
	return ret;
}

int keys_read(struct keys *k, const struct store *store, bool scan, unsigned jobs)
{
	int ret = begin(k, store);

	k->live = keys_held(store);
	if (ret == 0)
		ret = keys_descriptors(k);
	if (ret || !scan)
		return ret;
	k->scanned = true;
	ret = keys_files(k, jobs);
	k->live = k->live || keys_held(store);
	if (!k->live) /* nobody should have moved them */
		k->unreadable += k->gone;
	return ret ? ret : look_again(k);
}

void keys_free(struct keys *k)
{
	keytab_free(&k->tab);
	free(k->domain);
	free(k->slot);
	free(k->trouble);
	(void)pthread_mutex_destroy(&k->lock);
}

/* ---- names */

static int names_of_job(struct keys *k, int dirfd, const char *file)
{
	char *text CLEANUP_FREE = NULL, *save = NULL;
	size_t len = 0;
	int ret = 0;

	if (io_read_file(dirfd, file, JOB_BYTES, &text, &len) < 0)
		return 0;
	for (char *line = strtok_r(text, "\n", &save); line && ret == 0; line = strtok_r(NULL, "\n", &save)) {
		const char *name = strrchr(line, ' ');

		if (strncmp(line, "domain=", 7) == 0 && name) /* index, id, and the key it had */
			ret = keytab_name(&k->tab, name + 1);
		else if (strncmp(line, "to=", 3) == 0)
			ret = keytab_name(&k->tab, line + 3);
	}
	return ret;
}

/* A history that cannot be read names nothing. */
static int names_of_jobs(struct keys *k)
{
	int fd = openat(k->store->meta_fd, "jobs", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *entry;
	unsigned files = 0;
	int ret = 0;

	if (!dir && fd >= 0)
		(void)close(fd);
	while (dir && ret == 0 && files < JOBS_MAX && (entry = readdir(dir)))
		if (entry->d_name[0] != '.') {
			files++;
			ret = names_of_job(k, dirfd(dir), entry->d_name);
		}
	if (dir)
		(void)closedir(dir);
	return ret;
}

int keys_names(struct keys *k, const char *const *names)
{
	int ret = 0;

	for (; *names && ret == 0; names++)
		ret = keytab_name(&k->tab, *names);
	if (ret == 0)
		ret = names_of_jobs(k);
	return ret ? ret : keytab_sort(&k->tab);
}

/* ---- what is missing */

static size_t lost(const struct keys *k)
{
	size_t n = 0;

	for (size_t i = 0; i < k->ndomain; i++)
		n += k->domain[i].lost;
	return n;
}

bool keys_complete(const struct keys *k)
{
	return !k->damaged && !k->unreadable && !k->foreign && !k->bad_copies && !lost(k);
}

void keys_complain(const struct keys *k)
{
	char *safe CLEANUP_FREE = k->trouble ? malloc(4 * strlen(k->trouble) + 1) : NULL;

	if (safe)
		cmd_escape(safe, k->trouble);
	if (k->damaged || k->unreadable || k->foreign)
		cmd_error("not all of '%s' could be judged: %" PRIu64 " damaged files, %" PRIu64
		          " unreadable files or directories, %" PRIu64 " mounts of other filesystems, such as '%s'",
		    k->store->path, k->damaged, k->unreadable, k->foreign, safe ? safe : "?");
	if (lost(k) || k->bad_copies)
		cmd_error("not all of '%s' could be judged: %zu descriptors of key domains are damaged or missing, and "
		          "%u copies of others",
		    k->store->path, lost(k), k->bad_copies);
	if (!keys_complete(k))
		cmd_hint("'byokfsctl check' names what is damaged; a read-write mount restores copies of descriptors");
}
