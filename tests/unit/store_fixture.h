/* store_fixture.h — a store in a scratch directory, made and opened with the fixture's keys. */
#ifndef BYOKFS_STORE_FIXTURE_H
#define BYOKFS_STORE_FIXTURE_H

#include "backing_fixture.h"
#include "io.h"
#include "store.h"

static struct backing bk; /* for its keys and its scratch directory */
static char path[160];
static char why[STORE_WHY];
static const struct store_options rw = { .torn_ok = true }, ro = { .readonly = true, .torn_ok = true };

static inline struct store_create *recipe(void)
{
	static struct store_create p;

	memset(&p, 0, sizeof(p));
	p.ids = bk.ids;
	memcpy(p.dirid, bk.root.id, 16);
	p.by = "byokfs test";
	p.slot = (struct descriptor_slot){
		.seq = 1, .provider = 3, .context = 1, .sealed = 1767225600, .blob_len = 60, .probe_len = 60
	};
	(void)snprintf(p.slot.key, sizeof(p.slot.key), "keyfile:0011223344556677");
	p.keys = &bk.keys;
	p.name_keys = bk.names;
	return &p;
}

static inline int setup(void **state)
{
	(void)state;
	backing_open(&bk, NAME_SIV64);
	(void)snprintf(path, sizeof(path), "%s/store", bk.path);
	assert_int_equal(mkdir(path, 0755), 0);
	*why = 0;
	return 0;
}

static inline int setup_created(void **state)
{
	(void)setup(state);
	assert_int_equal(store_create(path, recipe(), why), 0);
	return 0;
}

static inline int teardown(void **state)
{
	(void)state;
	backing_close(&bk);
	return 0;
}

static inline struct store *new_store(void)
{
	struct store *s = malloc(sizeof(*s));

	assert_non_null(s);
	return s;
}

/* Opens, authenticates and marks. */
static inline struct store *mounted(const struct store_options *o)
{
	struct store *s = new_store();

	assert_int_equal(store_open(s, path, o, why), 0);
	assert_int_equal(store_authenticate(s, &bk.keys, bk.names, why), 0);
	assert_int_equal(store_mark(s, why), 0);
	return s;
}

static inline void unmounted(struct store *s, bool clean)
{
	store_close(s, clean);
	free(s);
}

static inline int open_only(const struct store_options *o)
{
	struct store *s = new_store();
	int r = store_open(s, path, o, why);

	if (!r)
		store_close(s, false);
	free(s);
	return r;
}

static inline int authenticate_only(void)
{
	struct store *s = new_store();
	int r;

	assert_int_equal(store_open(s, path, &rw, why), 0);
	r = store_authenticate(s, &bk.keys, bk.names, why);
	store_close(s, false);
	free(s);
	return r;
}

static inline const char *in_store(const char *rest)
{
	static char full[4][320];
	static unsigned turn;
	char *out = full[turn++ % 4];

	(void)snprintf(out, sizeof(full[0]), "%s/.byokfs/%s", path, rest);
	return out;
}

/* noinline: gcc 12 otherwise takes the result for a pointer to a local. */
__attribute__((noinline, unused)) static char *slurp(const char *file, size_t *len)
{
	char *text;

	assert_int_equal(io_read_file(AT_FDCWD, file, 1 << 20, &text, len), 0);
	return text;
}

static inline void spew(const char *file, const void *text, size_t len)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, len), len);
	(void)close(fd);
}

static inline int count(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), n;

	assert_true(fd >= 0);
	n = backing_entries_fd(fd);
	(void)close(fd);
	return n;
}

#define FRESH(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
#define TEST(fn)  cmocka_unit_test_setup_teardown(fn, setup_created, teardown)

#endif
