/* Attributes over a backing that has user attributes: round trips, limits, and what the storage may do to them. */
#include "backing_fixture.h"

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
	name[sizeof(name) - 1] = 0;
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
		assert_true(r == -ENOSPC || r == -E2BIG || r == -ERANGE);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(round_trips, setup, teardown),
		cmocka_unit_test_setup_teardown(limits, setup, teardown),
		cmocka_unit_test_setup_teardown(listing, setup, teardown),
		cmocka_unit_test_setup_teardown(tampering, setup, teardown),
	};

	return cmocka_run_group_tests_name("xattr", tests, backing_main_setup, NULL);
}
