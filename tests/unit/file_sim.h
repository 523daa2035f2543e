/* file_sim.h — a disk in memory for the tests of file*.c: it remembers what was written since the
 * last flush, so that any power cut can be played, fails the Nth call on demand, and counts. One
 * backing file at a time. */
#ifndef BYOKFS_TEST_FILE_SIM_H
#define BYOKFS_TEST_FILE_SIM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "../../src/file_internal.h"

#define PAGE        LAYOUT_PAGE
#define SIM_BUCKETS 1024u
#define UNUSED      __attribute__((unused))

/* ---- sparse pages: a disk image, or a plain file to compare with ---- */
struct cell {
	struct cell *next;
	uint64_t at;
	uint8_t data[PAGE];
};

struct image {
	struct cell *bucket[SIM_BUCKETS];
	uint64_t size;
};

static inline struct cell **image_slot(struct image *m, uint64_t at)
{
	struct cell **p = &m->bucket[at * 2654435761u % SIM_BUCKETS];

	while (*p && (*p)->at != at)
		p = &(*p)->next;
	return p;
}

UNUSED static const uint8_t *image_page(struct image *m, uint64_t at)
{
	static const uint8_t zero[PAGE];
	struct cell *c = *image_slot(m, at);

	return c ? c->data : zero;
}

UNUSED static uint8_t *image_make(struct image *m, uint64_t at)
{
	struct cell **p = image_slot(m, at);

	if (!*p) {
		*p = calloc(1, sizeof(**p));
		assert_non_null(*p);
		(*p)->at = at;
	}
	return (*p)->data;
}

/* Pages in [first, end) become holes. */
UNUSED static void image_drop(struct image *m, uint64_t first, uint64_t end)
{
	for (unsigned b = 0; b < SIM_BUCKETS; b++) {
		struct cell **p = &m->bucket[b];

		while (*p) {
			struct cell *c = *p;

			if (c->at < first || c->at >= end) {
				p = &c->next;
				continue;
			}
			*p = c->next;
			free(c);
		}
	}
}

UNUSED static void image_resize(struct image *m, uint64_t size)
{
	if (size < m->size) {
		image_drop(m, (size + PAGE - 1) / PAGE, UINT64_MAX);
		if (size % PAGE && *image_slot(m, size / PAGE))
			memset(image_make(m, size / PAGE) + size % PAGE, 0, PAGE - size % PAGE);
	}
	m->size = size;
}

UNUSED static void image_clear(struct image *m)
{
	image_drop(m, 0, UINT64_MAX);
	m->size = 0;
}

UNUSED static void image_copy(struct image *to, const struct image *from)
{
	if (to == from)
		return;
	image_clear(to);
	for (unsigned b = 0; b < SIM_BUCKETS; b++)
		for (const struct cell *c = from->bucket[b]; c; c = c->next)
			memcpy(image_make(to, c->at), c->data, PAGE);
	to->size = from->size;
}

UNUSED static void image_put(struct image *m, const uint8_t *buf, size_t n, uint64_t off)
{
	if (off + n > m->size)
		m->size = off + n;
	for (size_t step; n > 0; n -= step, off += step) {
		step = PAGE - off % PAGE < n ? PAGE - off % PAGE : n;
		if (buf)
			memcpy(image_make(m, off / PAGE) + off % PAGE, buf, step);
		else
			memset(image_make(m, off / PAGE) + off % PAGE, 0, step);
		buf = buf ? buf + step : NULL;
	}
}

UNUSED static size_t image_get(struct image *m, uint8_t *buf, size_t n, uint64_t off)
{
	if (off >= m->size)
		return 0;
	if (n > m->size - off)
		n = m->size - off;
	for (size_t done = 0, step; done < n; done += step) {
		step = PAGE - (off + done) % PAGE < n - done ? PAGE - (off + done) % PAGE : n - done;
		memcpy(buf + done, image_page(m, (off + done) / PAGE) + (off + done) % PAGE, step);
	}
	return n;
}

/* ---- the disk ---- */
enum op_kind { OP_PAGE, OP_SIZE, OP_PUNCH };

struct op {
	enum op_kind kind;
	uint64_t at, n;
	uint8_t *data;
};

static struct {
	struct image live, durable;
	struct op *log; /* since the last flush */
	size_t nlog, cap;
	unsigned calls, fail_at; /* of calls that may fail; 0: never */
	int fail_with;
	bool no_fallocate, mtime_moves;
	unsigned reads, writes, syncs, sizes, allocs, mtimes;
	unsigned locks, naps;
	unsigned fail_read;   /* this one, and the next, fail; 0: none */
	uint64_t us;          /* clock of the lock's deadline */
	uint8_t locked[1024]; /* by descriptor: F_RDLCK + 1, F_WRLCK + 1, 0 */
	void (*during)(void); /* called before every write */
	uint64_t tick;        /* mtime */
	struct timespec mtime;
} sim;

UNUSED static int sim_fault(void)
{
	if (++sim.calls != sim.fail_at)
		return 0;
	return sim.fail_with;
}

static void sim_log(enum op_kind kind, uint64_t at, uint64_t n, const uint8_t *data)
{
	struct op *o;

	if (sim.nlog == sim.cap) {
		sim.cap = sim.cap ? sim.cap * 2 : 64;
		sim.log = realloc(sim.log, sim.cap * sizeof(*sim.log));
		assert_non_null(sim.log);
	}
	o = &sim.log[sim.nlog++];
	*o = (struct op){ kind, at, n, NULL };
	if (data) {
		o->data = malloc(PAGE);
		assert_non_null(o->data);
		memcpy(o->data, data, PAGE);
	}
	sim.mtime.tv_sec = (time_t)++sim.tick;
}

UNUSED static void sim_log_clear(void)
{
	for (size_t i = 0; i < sim.nlog; i++)
		free(sim.log[i].data);
	sim.nlog = 0;
}

UNUSED static void op_apply(struct image *m, const struct op *o)
{
	switch (o->kind) {
	case OP_PAGE:
		image_put(m, o->data, PAGE, o->at * PAGE);
		break;
	case OP_SIZE:
		image_resize(m, o->at);
		break;
	case OP_PUNCH:
		image_drop(m, o->at, o->at + o->n);
		break;
	}
}

static ssize_t sim_read(int fd, void *buf, size_t n, uint64_t off)
{
	(void)fd;
	sim.reads++;
	if (sim.fail_read && (sim.reads == sim.fail_read || sim.reads == sim.fail_read + 1))
		return -EIO;
	return (ssize_t)image_get(&sim.live, buf, n, off);
}

static ssize_t sim_readv(int fd, struct iovec *iov, int cnt, uint64_t off)
{
	size_t done = 0;

	(void)fd;
	sim.reads++;
	if (sim.fail_read && (sim.reads == sim.fail_read || sim.reads == sim.fail_read + 1))
		return -EIO;
	for (int i = 0; i < cnt; i++)
		done += image_get(&sim.live, iov[i].iov_base, iov[i].iov_len, off + done);
	return (ssize_t)done;
}

/* Sectors within a page, as the page cache has it: the whole page as it is now. */
static int sim_write_sector(const void *buf, size_t n, uint64_t off, int rc)
{
	uint8_t page[PAGE];

	assert_int_equal(n % 512, 0);
	assert_true(off % PAGE + n <= PAGE);
	if (rc != 0)
		return rc;
	memcpy(page, image_page(&sim.live, off / PAGE), PAGE);
	memcpy(page + off % PAGE, buf, n);
	sim_log(OP_PAGE, off / PAGE, 1, page);
	op_apply(&sim.live, &sim.log[sim.nlog - 1]);
	return 0;
}

static int sim_write(int fd, const void *buf, size_t n, uint64_t off)
{
	int rc;

	if (sim.during)
		sim.during();
	rc = sim_fault();

	(void)fd;
	sim.writes++;
	if (n % PAGE)
		return sim_write_sector(buf, n, off, rc);
	assert_int_equal(off % PAGE, 0);
	assert_int_equal(n % PAGE, 0);
	for (size_t i = 0; i < n / PAGE; i++) {
		/* a call that fails has done half of its work */
		if (rc != 0 && i >= n / PAGE / 2)
			return rc;
		sim_log(OP_PAGE, off / PAGE + i, 1, (const uint8_t *)buf + i * PAGE);
		op_apply(&sim.live, &sim.log[sim.nlog - 1]);
	}
	return rc;
}

static int sim_sync(int fd)
{
	int rc = sim_fault();

	(void)fd;
	sim.syncs++;
	if (rc != 0)
		return rc;
	for (size_t i = 0; i < sim.nlog; i++)
		op_apply(&sim.durable, &sim.log[i]);
	sim_log_clear();
	return 0;
}

static int sim_truncate(int fd, uint64_t size)
{
	int rc = sim_fault();

	(void)fd;
	sim.sizes++;
	if (rc != 0)
		return rc;
	sim_log(OP_SIZE, size, 0, NULL);
	op_apply(&sim.live, &sim.log[sim.nlog - 1]);
	return 0;
}

static int sim_allocate(int fd, int mode, uint64_t off, uint64_t n)
{
	int rc = sim_fault();

	(void)fd;
	sim.allocs++;
	if (rc != 0)
		return rc;
	if (sim.no_fallocate)
		return -EOPNOTSUPP;
	assert_true(mode & FALLOC_FL_KEEP_SIZE);
	sim.mtime.tv_sec = (time_t)++sim.tick;
	if (!(mode & FALLOC_FL_PUNCH_HOLE))
		return 0;
	assert_int_equal(off % PAGE + n % PAGE, 0);
	sim_log(OP_PUNCH, off / PAGE, n / PAGE, NULL);
	op_apply(&sim.live, &sim.log[sim.nlog - 1]);
	return 0;
}

static int64_t sim_seek_data(int fd, uint64_t off)
{
	uint64_t best = UINT64_MAX;

	(void)fd;
	for (unsigned b = 0; b < SIM_BUCKETS; b++)
		for (const struct cell *c = sim.live.bucket[b]; c; c = c->next)
			if (c->at >= off / PAGE && c->at < best)
				best = c->at;
	if (best == UINT64_MAX)
		return -ENXIO;
	return (int64_t)(best * PAGE > off ? best * PAGE : off);
}

static int sim_stat(int fd, struct stat *st)
{
	(void)fd;
	memset(st, 0, sizeof(*st));
	st->st_size = (off_t)sim.live.size;
	st->st_mtim = sim.mtime;
	return 0;
}

static int sim_set_mtime(int fd, const struct timespec *mtime)
{
	(void)fd;
	sim.mtimes++;
	sim.mtime = *mtime;
	return 0;
}

static int sim_lock(int fd, int type)
{
	sim.locks++;
	assert_in_range(fd, 0, (int)sizeof(sim.locked) - 1);
	for (int i = 0; type != F_UNLCK && i < (int)sizeof(sim.locked); i++)
		if (i != fd && sim.locked[i] && (type == F_WRLCK || sim.locked[i] == F_WRLCK + 1))
			return -EAGAIN;
	sim.locked[fd] = type == F_UNLCK ? 0 : (uint8_t)(type + 1);
	return 0;
}

static uint64_t sim_now_us(void)
{
	return sim.us;
}

static void sim_nap_us(uint64_t us)
{
	sim.naps++;
	sim.us += us;
}

static void *sim_alloc(size_t n)
{
	return sim_fault() ? NULL : calloc(1, n);
}

static const struct file_io sim_io = {
	.read = sim_read,
	.readv = sim_readv,
	.write = sim_write,
	.sync = sim_sync,
	.truncate = sim_truncate,
	.allocate = sim_allocate,
	.seek_data = sim_seek_data,
	.stat = sim_stat,
	.set_mtime = sim_set_mtime,
	.lock = sim_lock,
	.now_us = sim_now_us,
	.nap_us = sim_nap_us,
	.alloc = sim_alloc,
};

UNUSED static void sim_reset(void)
{
	file_spare_max = 0; /* files that are small for others are large here */
	image_clear(&sim.live);
	image_clear(&sim.durable);
	sim_log_clear();
	sim.fail_at = 0;
	sim.no_fallocate = false;
	sim.during = NULL;
	memset(sim.locked, 0, sizeof(sim.locked));
	file_io = &sim_io;
}

UNUSED static void sim_free(void)
{
	sim_reset();
	free(sim.log);
	sim.log = NULL;
	sim.cap = 0;
	file_io = &file_io_backing;
}

/* What is on the disk now becomes what is durable and live: after a cut. */
UNUSED static void sim_boot(struct image *m)
{
	sim_log_clear();
	image_copy(&sim.live, m);
	image_copy(&sim.durable, m);
}

/* ---- randomness, reproducible ---- */
UNUSED static uint64_t rnd_state = 1;

UNUSED static uint64_t rnd(uint64_t below)
{
	rnd_state ^= rnd_state << 13;
	rnd_state ^= rnd_state >> 7;
	rnd_state ^= rnd_state << 17;
	return below ? (rnd_state * 0x2545F4914F6CDD1Dull >> 11) % below : 0;
}

UNUSED static void rnd_fill(uint8_t *p, size_t n)
{
	uint64_t word = rnd(0) + rnd_state;

	for (size_t i = 0; i < n; i++) {
		word = word * 6364136223846793005ull + 1442695040888963407ull;
		p[i] = (uint8_t)(word >> 56) | 1; /* never zero: a zero read back is a hole */
	}
}

/* ---- files ---- */
static struct file_keys test_keys;
static struct block_file test_block;
static const struct file_key test_key = { &test_keys, &test_block };
static struct header_ident test_ident;
static struct header_slot test_slot;

static inline void test_suite(uint8_t suite)
{
	memset(&test_keys, 0x31 + suite, sizeof(test_keys));
	memset(test_keys.hdr, 0x41, sizeof(test_keys.hdr));
	test_ident = (struct header_ident){ .suite = suite };
	memset(test_ident.store, 0xa0, CONTEXT_ID);
	memset(test_ident.domain, 0xb0, CONTEXT_ID);
	memset(test_ident.file, 0xc0, CONTEXT_ID);
	memcpy(test_ident.commit, test_keys.commit, 32);
	test_slot = (struct header_slot){ .seq = 1, .wrap = HEADER_WRAP_KMS, .provider = 1, .len = 3, .blob = "abc" };
	test_block = (struct block_file){ .serial = block_serial(), .suite = suite, .key = test_keys.page };
	memcpy(test_block.store, test_ident.store, CONTEXT_ID);
	memcpy(test_block.file, test_ident.file, CONTEXT_ID);
}

UNUSED static int null_fd(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* A new file on the simulated disk; its page 0 is written, not flushed. */
UNUSED static struct file *sim_new(bool strict)
{
	struct file_params params = { .commit_strict = strict };
	struct file *f = NULL;
	uint8_t page[PAGE];
	int fd = null_fd();

	assert_int_equal(file_new_page(page, &test_ident, &test_slot, &test_key), 0);
	assert_int_equal(sim_write(fd, page, PAGE, 0), 0);
	assert_int_equal(file_new(&f, fd, page, &test_key, &params), 0);
	return f;
}

UNUSED static int sim_open(struct file **f, bool strict)
{
	struct file_params params = { .commit_strict = strict };
	bool wrong = false;
	int fd = null_fd();
	int rc = file_open(f, fd, &test_key, &params, &wrong);

	if (rc != 0)
		(void)close(fd);
	return rc;
}

/* As the syncer does. Returns rounds taken, -1 when it does not come to an end. */
/* Of a file that nobody takes it from. */
UNUSED static int fd_of(struct file *f)
{
	int fd = file_hold(f);

	file_release(f);
	return fd;
}

UNUSED static int promote(struct file *f)
{
	uint64_t mark;

	for (int round = 0; round < 9; round++) {
		if (!file_pending(f))
			return round;
		if (file_promote_begin(f, &test_key, &mark) != 0 || file_io->sync(fd_of(f)) != 0 ||
		    file_promote_end(f, &test_key, mark, true) != 0)
			return -1;
	}
	return file_pending(f) ? -1 : 9;
}

#endif
