/* audit: a disk that is slow, full, or broken, and the queue that fills meanwhile. */
#include "audit_fixture.h"

#include <sched.h>

static struct {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned calls; /* of the writer's thread */
	int block;      /* calls wait while set */
	int error;      /* on fd, or on every one when fd is -1 */
	int fd;
	bool all;    /* the error is on every file */
	size_t part; /* written before the error begins */
	unsigned syncs;
	int sync_error;
} disk = { .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER, .fd = -1 };

static ssize_t disk_write(int fd, const void *bytes, size_t n)
{
	LOCK_SCOPE(&disk.lock);
	disk.calls++;
	(void)pthread_cond_broadcast(&disk.cond);
	while (disk.block)
		(void)pthread_cond_wait(&disk.cond, &disk.lock);
	if (disk.error && (disk.all || disk.fd < 0 || disk.fd == fd)) {
		size_t part = disk.part;

		disk.fd = fd;
		disk.part = 0;
		if (part)
			return write(fd, bytes, part);
		errno = disk.error;
		return -1;
	}
	return write(fd, bytes, n);
}

static int disk_sync(int fd)
{
	(void)fd;
	LOCK_SCOPE(&disk.lock);
	disk.syncs++;
	(void)pthread_cond_broadcast(&disk.cond);
	errno = disk.sync_error;
	return disk.sync_error ? -1 : 0;
}

static void disk_set(int block, int error, size_t part)
{
	LOCK_SCOPE(&disk.lock);
	disk.block = block;
	disk.error = error;
	disk.part = part;
	disk.fd = -1;
	disk.all = false;
	disk.calls = 0;
	(void)pthread_cond_broadcast(&disk.cond);
}

static void disk_wait(unsigned calls)
{
	LOCK_SCOPE(&disk.lock);
	while (disk.calls < calls)
		(void)pthread_cond_wait(&disk.cond, &disk.lock);
}

static void disk_set_sync(int error)
{
	LOCK_SCOPE(&disk.lock);
	disk.sync_error = error;
	disk.syncs = 0;
}

static void disk_wait_sync(void)
{
	LOCK_SCOPE(&disk.lock);
	while (!disk.syncs)
		(void)pthread_cond_wait(&disk.cond, &disk.lock);
}

/* Two whole rounds of a writer that fails: what was told before is chained, if there is room. */
static void disk_rounds(void)
{
	unsigned calls;

	(void)pthread_mutex_lock(&disk.lock);
	calls = disk.calls;
	(void)pthread_mutex_unlock(&disk.lock);
	disk_wait(calls + 2);
}

static struct audit *open_params_on_disk(struct audit_params *p, size_t queue)
{
	disk_set(0, 0, 0);
	disk_set_sync(0);
	p->write = disk_write;
	p->sync = disk_sync;
	p->sync_ms = 1;
	p->queue = queue;
	return open_with(p);
}

static struct audit *open_on_disk(size_t queue)
{
	struct audit_params p = params_of();

	return open_params_on_disk(&p, queue);
}

static void test_full_queue(void **state)
{
	struct audit *a = open_on_disk(4);
	struct audit_status st;
	size_t len;

	(void)state;
	disk_set(1, 0, 0);
	tell(a, 1);
	disk_wait(1); /* the writer is in write(2) */
	tell(a, 10);
	assert_true(audit_status(a, &st));
	assert_int_equal(st.dropped, 6);
	assert_int_equal(st.queued, 4);
	disk_set(0, 0, 0);
	audit_close(a, "done");
	struct verdict v = check();

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.dropped, 6);
	assert_int_equal(v.c.lines, 1 + 1 + 4 + 1 + 1);
	CLEANUP_FREE char *text = slurp(path, &len);

	/* Where they are missing: behind the four that found room. */
	assert_non_null(strstr(text, "{\"seq\":7,"));
	assert_non_null(strstr(strstr(text, "{\"seq\":7,"), "\"event\":\"dropped\",\"count\":6,"));
}

static void test_full_disk(void **state)
{
	struct audit *a = open_on_disk(8);
	struct audit_status st;

	(void)state;
	disk_set(0, ENOSPC, 10);
	tell(a, 3);
	disk_wait(4); /* half a line, then refused again and again */
	assert_true(audit_status(a, &st));
	assert_int_equal(st.error, ENOSPC);
	assert_int_equal(st.dropped, 0);
	disk_set(0, 0, 0);
	audit_close(a, "done");
	assert_int_equal(check().c.damage, 0);
	assert_int_equal(check().c.lines, 5);
}

static void test_disk_stays_full(void **state)
{
	struct audit *a = open_on_disk(8);

	(void)state;
	disk_set(0, ENOSPC, 10);
	tell(a, 3);
	disk_wait(3);
	audit_close(a, "done");
	struct verdict v = check();

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.lines, 1);
	make(1);
	v = check();
	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.torn, 1);
	assert_int_equal(v.c.lines, 4);
}

/* Half a line in the old file goes whole into the new one. */
static void test_rotation_of_full_disk(void **state)
{
	struct audit *a = open_on_disk(8);

	(void)state;
	disk_set(0, ENOSPC, 10);
	tell(a, 3);
	disk_wait(3);
	assert_int_equal(rename(path, old), 0);
	audit_reopen(a);
	audit_close(a, "done");
	disk_set(0, 0, 0);
	struct verdict v = check_with(old, path, NULL);

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.lines, 1 + 3 + 1 + 1);
	assert_int_equal(v.notes, 1);
}

/* As often as one likes: what the writer itself has to say waits for room. */
static void test_rotations_while_full(void **state)
{
	struct audit_params p = params_of();
	char mount[1001];

	(void)state;
	memset(mount, 0xc3, 1000); /* a long "rotated" line */
	mount[1000] = '\0';
	p.mount = mount;
	struct audit *a = open_params_on_disk(&p, 300);

	disk_set(0, ENOSPC, 10);
	disk.all = true;
	tell(a, 300);
	disk_rounds();
	assert_int_equal(rename(path, old), 0);
	for (int i = 0; i < 40; i++) {
		audit_reopen(a);
		while (access(path, F_OK))
			disk_rounds();
		if (i < 39)
			assert_int_equal(unlink(path), 0);
	}
	disk_rounds();
	disk_set(0, 0, 0);
	audit_close(a, "done");
	struct verdict v = check_with(old, path, NULL);

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.dropped, 0);
	assert_int_equal(v.c.lines, 1 + 300 + 1 + 1);
	assert_int_equal(v.notes, 1);
}

/* A line that lacks only its newline is whole: it is not written again. */
static void test_rotation_before_a_newline(void **state)
{
	size_t len;

	(void)state;
	make(1);
	CLEANUP_FREE char *text = slurp(path, &len);
	size_t line = strcspn(strchr(text, '\n') + 1, "\n");

	assert_int_equal(unlink(path), 0);
	struct audit *a = open_on_disk(8);

	disk_set(0, ENOSPC, line);
	tell(a, 1);
	disk_wait(3);
	assert_int_equal(rename(path, old), 0);
	audit_reopen(a);
	audit_close(a, "done");
	struct verdict v = check_with(old, path, NULL);

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.notes, 0);
	assert_int_equal(v.c.lines, 1 + 1 + 1 + 1);
}

/* ---- a disk that fails to sync ---- */

static void test_sync_fails(void **state)
{
	struct audit *a = open_on_disk(8);
	struct audit_status st;
	size_t len;

	(void)state;
	disk_wait_sync(); /* of the "open" line */
	disk_set_sync(EIO);
	tell(a, 1);
	disk_wait_sync();
	tell(a, 1);
	disk_set_sync(EIO);
	disk_wait_sync(); /* it is tried again, though nothing new came */
	/* That writes succeed changes nothing. */
	assert_true(audit_status(a, &st));
	assert_int_equal(st.error, EIO);
	disk_set_sync(0);
	do { /* nothing else must come for this to be said */
		(void)sched_yield();
		assert_true(audit_status(a, &st));
	} while (st.lines < 1 + 2 + 2);
	assert_int_equal(st.error, 0);
	audit_close(a, "done");
	struct verdict v = check();
	CLEANUP_FREE char *text = slurp(path, &len);
	const char *first = strstr(text, "\"event\":\"sync\",\"since\":2,\"error\":\"Input/output error\",");

	assert_non_null(first);
	assert_non_null(strstr(first, "\"event\":\"sync\",\"since\":2,\"error\":null,"));
	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.lines, 1 + 2 + 2 + 1);
	assert_int_equal(v.notes, 1);
}

static void test_sync_fails_at_the_end(void **state)
{
	struct audit *a = open_on_disk(8);
	size_t len;

	(void)state;
	disk_wait_sync();
	disk_set_sync(EIO);
	audit_close(a, "done");
	CLEANUP_FREE char *text = slurp(path, &len);

	assert_non_null(strstr(text, "\"event\":\"sync\",\"since\":2,\"error\":\"Input/output error\","));
	assert_int_equal(check().c.lines, 3);
}

static void test_full_at_open(void **state)
{
	struct audit_params p = params_of();
	char why[AUDIT_WHY];
	struct audit *a = NULL;

	(void)state;
	disk_set(0, ENOSPC, 0);
	p.write = disk_write;
	assert_int_equal(audit_open(&a, &p, why), -ENOSPC);
	assert_non_null(strstr(why, "cannot write"));
	disk_set(0, 0, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_full_queue),
		TEST(test_full_disk),
		TEST(test_disk_stays_full),
		TEST(test_rotation_of_full_disk),
		TEST(test_rotations_while_full),
		TEST(test_rotation_before_a_newline),
		TEST(test_sync_fails),
		TEST(test_sync_fails_at_the_end),
		TEST(test_full_at_open),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
