/* Attributes over a backing that has user attributes: round trips, limits, and what the storage may do to them. */
#include "backing_fixture.h"

#include <linux/limits.h>
#include <sys/xattr.h>

#include "xattr.h"

static struct backing bk;
static const struct dir_owner nobody = { .set = false };
static int fd, path_fd, dir_fd;
static uint8_t id[16];

static int setup(void **state)
{
	static const uint8_t page[LAYOUT_PAGE] = { 1 };
	char entry[NAME_ENTRY_MAX + 1];
	struct stat st;

	(void)state;
	backing_open(&bk, NAME_SIV64);
	backing_count_up(id, 0xc0, 16);
	assert_int_equal(dir_create(&bk.root, "f", 1, page, 0644, &nobody, &fd, &st), 0);
	assert_int_equal(dir_stat(&bk.root, "f", 1, &st, entry), 0);
	path_fd = openat(bk.fd, entry, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	assert_true(path_fd >= 0);
	assert_int_equal(backing_mkdir(&bk.root, "d"), 0);
	dir_fd = backing_sub(&bk.root, "d").fd;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	(void)close(fd);
	(void)close(path_fd);
	(void)close(dir_fd);
	backing_close(&bk);
	return 0;
}

static bool supported(void)
{
	bool yes = !fsetxattr(fd, "user.probe", "x", 1, 0);

	(void)fremovexattr(fd, "user.probe");
	return yes;
}

static void round_trips(void **state)
{
	static const char *const names[] = { "user.comment", "security.capability", "trusted.overlay.opaque",
		"system.posix_acl_access", "user.x" };
	static const size_t sizes[] = { 1, 2, 983, 984, 985, 2000, 0 };
	const int fds[] = { fd, path_fd, dir_fd };
	uint8_t value[2000], out[2000];

	(void)state;
	if (!supported())
		skip();
	backing_count_up(value, 3, sizeof(value));
	for (int k = 0; k < 3; k++)
		for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++)
			for (size_t n = 0; n < sizeof(names) / sizeof(*names); n++) {
				assert_int_equal(xattr_get(fds[k], id, bk.names, names[n], out, sizeof(out)), -ENODATA);
				assert_int_equal(
				    xattr_set(fds[k], id, bk.names, names[n], value, sizes[s], XATTR_REPLACE),
				    -ENODATA);
				assert_int_equal(
				    xattr_set(fds[k], id, bk.names, names[n], value, sizes[s], XATTR_CREATE), 0);
				assert_int_equal(
				    xattr_set(fds[k], id, bk.names, names[n], value, sizes[s], XATTR_CREATE), -EEXIST);
				assert_int_equal(xattr_set(fds[k], id, bk.names, names[n], value, sizes[s], 0), 0);
				assert_int_equal(xattr_get(fds[k], id, bk.names, names[n], NULL, 0), sizes[s]);
				assert_int_equal(xattr_get(fds[k], id, bk.names, names[n], out, sizeof(out)), sizes[s]);
				assert_memory_equal(out, value, sizes[s]);
				if (sizes[s] > 1) {
					assert_int_equal(
					    xattr_get(fds[k], id, bk.names, names[n], out, sizes[s]), sizes[s]);
					assert_int_equal(
					    xattr_get(fds[k], id, bk.names, names[n], out, sizes[s] - 1), -ERANGE);
				}
				assert_int_equal(xattr_remove(fds[k], id, bk.names, names[n]), 0);
				assert_int_equal(xattr_remove(fds[k], id, bk.names, names[n]), -ENODATA);
			}
}

static void limits(void **state)
{
	static uint8_t big[NAME_XATTR_VALUE_MAX + 1], out[NAME_XATTR_VALUE_MAX];
	char name[NAME_XATTR_MAX + 2];
	struct stat st;
	int r, link;

	(void)state;
	memset(name, 'n', sizeof(name));
	memcpy(name, "user.", 5);
	name[NAME_XATTR_MAX + 1] = 0;
	assert_int_equal(xattr_set(fd, id, bk.names, name, "v", 1, 0), -ERANGE);
	assert_int_equal(xattr_get(fd, id, bk.names, name, out, sizeof(out)), -ERANGE);
	assert_int_equal(xattr_set(fd, id, bk.names, "user.big", big, sizeof(big), 0), -E2BIG);
	assert_int_equal(xattr_set(fd, id, bk.names, "system.other", "v", 1, 0), -EOPNOTSUPP);
	assert_int_equal(xattr_get(fd, id, bk.names, "weird", out, sizeof(out)), -EOPNOTSUPP);
	assert_int_equal(xattr_remove(fd, id, bk.names, "user."), -EINVAL);
	assert_int_equal(dir_mknod(&bk.root, "p", 1, S_IFIFO | 0600, 0, &nobody, &st), 0);
	assert_int_equal(dir_symlink(&bk.root, "l", 1, "t", 1, &nobody, &st), 0);
	for (int i = 0; i < 2; i++) {
		char entry[NAME_ENTRY_MAX + 1];

		assert_int_equal(dir_stat(&bk.root, i ? "p" : "l", 1, &st, entry), 0);
		link = openat(bk.fd, entry, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		assert_int_equal(xattr_set(link, id, bk.names, "user.a", "v", 1, 0), -EOPNOTSUPP);
		assert_int_equal(xattr_get(link, id, bk.names, "security.a", out, sizeof(out)), -EOPNOTSUPP);
		assert_int_equal(xattr_list(link, id, bk.names, NULL, 0), -EOPNOTSUPP);
		(void)close(link);
	}
	if (!supported())
		return;
	name[NAME_XATTR_MAX] = 0;
	assert_int_equal(xattr_set(fd, id, bk.names, name, "v", 1, 0), 0);
	assert_int_equal(xattr_get(fd, id, bk.names, name, out, sizeof(out)), 1);
	/* The largest the format has; most backings have less. */
	r = xattr_set(fd, id, bk.names, "user.big", big, NAME_XATTR_VALUE_MAX, 0);
	if (!r)
		assert_int_equal(xattr_get(fd, id, bk.names, "user.big", out, sizeof(out)), NAME_XATTR_VALUE_MAX);
	else
		assert_int_equal(r, -ENOSPC);
}

static bool listed(const char *list, size_t n, const char *name)
{
	for (const char *at = list; at < list + n; at += strlen(at) + 1)
		if (!strcmp(at, name))
			return true;
	return false;
}

static void listing(void **state)
{
	static const char *const names[] = { "user.one", "security.selinux", "trusted.three",
		"system.posix_acl_default" };
	size_t want = 0;
	char list[256];

	(void)state;
	if (!supported())
		skip();
	assert_int_equal(xattr_list(fd, id, bk.names, list, sizeof(list)), 0);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(xattr_set(path_fd, id, bk.names, names[i], "value", 5, 0), 0);
		want += strlen(names[i]) + 1;
	}
	/* Foreign ones, and what another object's would look like, are not shown. */
	assert_int_equal(fsetxattr(fd, "user.foreign", "x", 1, 0), 0);
	assert_int_equal(fsetxattr(fd, "user.byokfs.rubbish", "x", 1, 0), 0);
	id[0] ^= 1;
	assert_int_equal(xattr_set(fd, id, bk.names, "user.elsewhere", "x", 1, 0), 0);
	id[0] ^= 1;
	assert_int_equal(xattr_list(fd, id, bk.names, NULL, 0), want);
	assert_int_equal(xattr_list(fd, id, bk.names, list, want - 1), -ERANGE);
	assert_int_equal(xattr_list(path_fd, id, bk.names, list, want), want);
	for (int i = 0; i < 4; i++)
		assert_true(listed(list, want, names[i]));
	assert_int_equal(xattr_get(fd, id, bk.names, "user.foreign", list, sizeof(list)), -ENODATA);
}

/* The only byokfs attribute on the backing. */
static void only_backing_name(char out[static 256])
{
	char list[1024];
	ssize_t n = flistxattr(fd, list, sizeof(list));

	*out = 0;
	for (const char *at = list; n > 0 && at < list + n; at += strlen(at) + 1)
		if (!strncmp(at, "user.byokfs.", 12))
			(void)snprintf(out, 256, "%.255s", at);
	assert_true(*out);
}

static void tampering(void **state)
{
	char backing[256], out[64];
	uint8_t sealed[64], kept[64];
	ssize_t n;

	(void)state;
	if (!supported())
		skip();
	assert_int_equal(xattr_set(fd, id, bk.names, "user.a", "hello", 5, 0), 0);
	only_backing_name(backing);
	n = fgetxattr(fd, backing, sealed, sizeof(sealed));
	assert_int_equal(n, 45);
	memcpy(kept, sealed, sizeof(kept));
	for (ssize_t i = 0; i < n; i++) {
		sealed[i] ^= 0x10;
		assert_int_equal(fsetxattr(fd, backing, sealed, (size_t)n, 0), 0);
		assert_int_equal(xattr_get(fd, id, bk.names, "user.a", out, sizeof(out)), -EIO);
		sealed[i] ^= 0x10;
	}
	for (size_t len = 0; len < 45; len += 11) {
		assert_int_equal(fsetxattr(fd, backing, sealed, len, 0), 0);
		assert_int_equal(xattr_get(fd, id, bk.names, "user.a", out, sizeof(out)), -EIO);
		if (len < NAME_XATTR_OVERHEAD)
			assert_int_equal(xattr_get(fd, id, bk.names, "user.a", NULL, 0), -EIO);
	}
	/* Another attribute's value under this name. */
	assert_int_equal(fremovexattr(fd, backing), 0);
	assert_int_equal(xattr_set(fd, id, bk.names, "user.b", "world", 5, 0), 0);
	only_backing_name(backing);
	assert_int_equal(fsetxattr(fd, backing, kept, (size_t)n, 0), 0);
	assert_int_equal(xattr_get(fd, id, bk.names, "user.b", out, sizeof(out)), -EIO);
	/* Writing it anew heals. */
	assert_int_equal(xattr_set(fd, id, bk.names, "user.b", "again", 5, 0), 0);
	assert_int_equal(xattr_get(fd, id, bk.names, "user.b", out, sizeof(out)), 5);
	assert_memory_equal(out, "again", 5);
}

/* ---- on a backing that takes 64 KiB: tmpfs does since Linux 6.6 */

static int big;
static uint8_t values[2][NAME_XATTR_VALUE_MAX], got[NAME_XATTR_VALUE_MAX];
static char long_name[NAME_XATTR_MAX + 1] = "user.";
static const char *const both[] = { "user.v", long_name };

static int setup_big(void **state)
{
	int r = setup(state);

	big = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (big >= 0 && fsetxattr(big, "user.probe", values[0], sizeof(values[0]), 0)) {
		(void)close(big);
		big = -1;
	}
	if (big >= 0)
		(void)fremovexattr(big, "user.probe");
	memset(long_name + 5, 'n', NAME_XATTR_MAX - 5);
	memset(values[0], 'A', sizeof(values[0]));
	memset(values[1], 'B', sizeof(values[1]));
	return r;
}

static int teardown_big(void **state)
{
	if (big >= 0)
		(void)close(big);
	return teardown(state);
}

static size_t kept(void)
{
	static char list[XATTR_LIST_MAX];
	ssize_t n = flistxattr(big, list, sizeof(list));
	size_t count = 0;

	for (const char *at = list; n > 0 && at < list + n; at += strlen(at) + 1)
		count += !strncmp(at, "user.byokfs.", 12);
	return count;
}

static void has(const char *name, const uint8_t *value, size_t n)
{
	assert_int_equal(xattr_get(big, id, bk.names, name, NULL, 0), n);
	assert_int_equal(xattr_get(big, id, bk.names, name, got, sizeof(got)), n);
	assert_memory_equal(got, value, n);
	assert_int_equal(xattr_get(big, id, bk.names, name, got, n - 1), -ERANGE);
}

static void sixty_four_kilobytes(void **state)
{
	static const size_t sizes[] = { 65536, 65224, 65225, 65496, 65497, 100, 65535, 1500, 65536 };

	(void)state;
	if (big < 0)
		skip();
	for (int k = 0; k < 2; k++) {
		size_t over = k ? 312 : 40;

		for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
			const uint8_t *value = values[s % 2];
			char list[256];

			int flags = s ? XATTR_REPLACE : XATTR_CREATE;

			assert_int_equal(xattr_set(big, id, bk.names, both[k], value, sizes[s], flags), 0);
			has(both[k], value, sizes[s]);
			assert_int_equal(kept(), sizes[s] + over > 65536 ? 2 : 1);
			assert_int_equal(xattr_list(big, id, bk.names, list, sizeof(list)), strlen(both[k]) + 1);
			assert_string_equal(list, both[k]);
		}
		/* What is refused leaves nothing. */
		assert_int_equal(
		    xattr_set(big, id, bk.names, both[k], values[1], 65536, XATTR_CREATE), -EEXIST);
		has(both[k], values[0], 65536);
		assert_int_equal(kept(), 2);
		assert_int_equal(xattr_remove(big, id, bk.names, both[k]), 0);
		assert_int_equal(kept(), 0);
		assert_int_equal(
		    xattr_set(big, id, bk.names, both[k], values[1], 65536, XATTR_REPLACE), -ENODATA);
		assert_int_equal(kept(), 0);
		assert_true(xattr_none(big, id, bk.names));
	}
}

/* Every instant of a change: the new part is there; the first names it; the old part goes. */
static void crashes(void **state)
{
	static uint8_t stored[NAME_XATTR_STORED];
	struct name_xattr new;
	char *strays;

	(void)state;
	if (big < 0)
		skip();
	for (int k = 0; k < 2; k++) {
		assert_int_equal(xattr_set(big, id, bk.names, both[k], values[0], 65536, 0), 0);
		assert_int_equal(name_xattr_pack(bk.names, id, both[k], values[1], 65536, stored, &new), 0);
		assert_int_equal(fsetxattr(big, new.part, stored + new.first, new.rest, XATTR_CREATE), 0);
		has(both[k], values[0], 65536);
		assert_int_equal(xattr_strays(big, &strays), strlen(new.part) + 1);
		assert_string_equal(strays, new.part);
		free(strays);
		assert_int_equal(fsetxattr(big, new.backing, stored, new.first, 0), 0);
		has(both[k], values[1], 65536);
		assert_int_equal(kept(), 3);
		xattr_sweep(big);
		assert_int_equal(kept(), 2);
		has(both[k], values[1], 65536);
		assert_int_equal(xattr_strays(big, &strays), 0);
		assert_null(strays);
		/* A removal stops after the first. */
		assert_int_equal(fremovexattr(big, new.backing), 0);
		assert_int_equal(xattr_get(big, id, bk.names, both[k], got, sizeof(got)), -ENODATA);
		assert_int_equal(xattr_list(big, id, bk.names, NULL, 0), 0);
		xattr_sweep(big);
		assert_int_equal(kept(), 0);
	}
}

static void hostile_parts(void **state)
{
	static uint8_t a[NAME_XATTR_STORED], b[NAME_XATTR_STORED];
	struct name_xattr xa, xb;
	char plain[NAME_XATTR_MAX + 1], part[NAME_XATTR_BACKING];

	(void)state;
	if (big < 0)
		skip();
	assert_int_equal(name_xattr_pack(bk.names, id, "user.a", values[0], 65536, a, &xa), 0);
	assert_int_equal(name_xattr_pack(bk.names, id, "user.b", values[0], 65536, b, &xb), 0);
	assert_int_equal(fsetxattr(big, xa.backing, a, xa.first, 0), 0);
	/* missing, of another attribute, short, empty, and longer than there can be */
	assert_int_equal(xattr_get(big, id, bk.names, "user.a", NULL, 0), -EIO);
	assert_int_equal(xattr_get(big, id, bk.names, "user.a", got, sizeof(got)), -EIO);
	assert_int_equal(xattr_read(big, id, bk.names, xa.backing, plain, got, part), -EBADMSG);
	assert_string_equal(plain, "user.a");
	assert_int_equal(fsetxattr(big, xa.part, b + xb.first, xb.rest, 0), 0);
	assert_int_equal(xattr_get(big, id, bk.names, "user.a", got, sizeof(got)), -EIO);
	for (size_t n = 0; n < xa.rest; n++) {
		assert_int_equal(fsetxattr(big, xa.part, a + xa.first, n, 0), 0);
		assert_int_equal(xattr_get(big, id, bk.names, "user.a", got, sizeof(got)), -EIO);
	}
	assert_int_equal(fsetxattr(big, xa.part, a, sizeof(a) / 2, 0), 0);
	assert_int_equal(xattr_get(big, id, bk.names, "user.a", got, sizeof(got)), -EIO);
	/* The first of another attribute, whose part is there. */
	assert_int_equal(fsetxattr(big, xb.part, b + xb.first, xb.rest, 0), 0);
	assert_int_equal(fsetxattr(big, xa.backing, b, xb.first, 0), 0);
	assert_int_equal(xattr_get(big, id, bk.names, "user.a", got, sizeof(got)), -EIO);
	/* All of it together is fine, and a value set anew heals. */
	assert_int_equal(fsetxattr(big, xa.backing, a, xa.first, 0), 0);
	assert_int_equal(xattr_get(big, id, bk.names, "user.a", got, sizeof(got)), -EIO);
	assert_int_equal(fsetxattr(big, xa.part, a + xa.first, xa.rest, 0), 0);
	has("user.a", values[0], 65536);
	assert_int_equal(fremovexattr(big, xa.part), 0);
	assert_int_equal(xattr_set(big, id, bk.names, "user.a", values[1], 65536, 0), 0);
	has("user.a", values[1], 65536);
}

/* Huge counts: as many long names, and as many strays, as a list of the backing holds. */
static void many(void **state)
{
	static char list[1 << 20];
	char name[NAME_XATTR_MAX + 1];
	size_t n = 0, want = 0;

	(void)state;
	if (big < 0)
		skip();
	memcpy(name, long_name, sizeof(name));
	for (; n < 600; n++) {
		(void)snprintf(name + 5, 5, "%04zu", n);
		name[9] = 'n';
		assert_int_equal(xattr_set(big, id, bk.names, name, "v", 1, 0), 0);
		want += strlen(name) + 1;
	}
	assert_int_equal(xattr_list(big, id, bk.names, NULL, 0), want);
	assert_int_equal(xattr_list(big, id, bk.names, list, 65536), -ERANGE);
	assert_int_equal(xattr_list(big, id, bk.names, list, sizeof(list)), want);
	/* A long name's first bytes are another's: neither is listed, the rest is. */
	uint8_t stored[NAME_XATTR_REST + 1];

	char backing[NAME_XATTR_BACKING], other[NAME_XATTR_BACKING];

	assert_int_equal(name_xattr_encrypt(bk.names, id, name, backing), 0);
	name[8]--;
	assert_int_equal(name_xattr_encrypt(bk.names, id, name, other), 0);
	assert_int_equal(fgetxattr(big, backing, stored, sizeof(stored)), sizeof(stored) - NAME_XATTR_TAG);
	assert_int_equal(fsetxattr(big, other, stored, sizeof(stored) - NAME_XATTR_TAG, 0), 0);
	assert_int_equal(xattr_list(big, id, bk.names, NULL, 0), want - 256);
	assert_int_equal(xattr_get(big, id, bk.names, name, list, sizeof(list)), -EIO);
	assert_int_equal(xattr_get(big, id, bk.names, name, NULL, 0), 1);
	assert_int_equal(xattr_set(big, id, bk.names, "user.v", values[0], 65536, 0), 0);
	for (size_t i = 0; i < 700; i++) {
		(void)snprintf(name, sizeof(name), "user.byokfs.P.%zu", i);
		assert_int_equal(fsetxattr(big, name, "x", 1, 0), 0);
	}
	xattr_sweep(big);
	assert_int_equal(kept(), 602);
	has("user.v", values[0], 65536);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(round_trips, setup, teardown),
		cmocka_unit_test_setup_teardown(limits, setup, teardown),
		cmocka_unit_test_setup_teardown(listing, setup, teardown),
		cmocka_unit_test_setup_teardown(tampering, setup, teardown),
		cmocka_unit_test_setup_teardown(sixty_four_kilobytes, setup_big, teardown_big),
		cmocka_unit_test_setup_teardown(crashes, setup_big, teardown_big),
		cmocka_unit_test_setup_teardown(hostile_parts, setup_big, teardown_big),
		cmocka_unit_test_setup_teardown(many, setup_big, teardown_big),
	};

	return cmocka_run_group_tests_name("xattr", tests, backing_main_setup, NULL);
}
