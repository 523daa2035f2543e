/* One file of a rotation in a live mount: what may be named, what is refused, and who is told once a state is there. */
#include "store_fixture.h"

#include "../../src/state_internal.h"
#include "reseal.h"

static struct fs fs;
static struct store *store;
static struct file_keys keys;
static struct block_file block;
static const struct file_key key = { &keys, &block };
static struct header_ident ident;
static struct header_slot fresh;

static int setup_fs(void **state)
{
	const struct domains_params params = { .lease.probe_ms = 1000 };
	struct inode_params ip = { .max_fds = 8 };

	(void)setup_created(state);
	store = mounted(&rw);
	memset(&fs, 0, sizeof(fs));
	fs.store = store;
	ip.root_fd = store->fd;
	assert_int_equal(inode_table_open(&fs.inodes, &ip), 0);
	assert_int_equal(domains_init(&fs, &params), 0);
	assert_int_equal(states_open(&fs), 0);
	memset(&keys, 0x31, sizeof(keys));
	ident = (struct header_ident){ .suite = 1 };
	memcpy(ident.store, fs.first->ids.store, 16);
	memcpy(ident.domain, fs.first->ids.domain, 16);
	memset(ident.file, 0xf1, 16);
	memcpy(ident.commit, keys.commit, 32);
	block = (struct block_file){ .serial = block_serial(), .suite = 1, .key = keys.page };
	memcpy(block.store, ident.store, 16);
	memcpy(block.file, ident.file, 16);
	fresh = (struct header_slot){
		.wrap = HEADER_WRAP_KMS, .generation = 1, .provider = 3, .len = 3, .blob = "new"
	};
	kms_key_hash(fresh.key_hash, store->domain.slot[0].key);
	return 0;
}

static int teardown_fs(void **state)
{
	states_close(&fs);
	domains_free(&fs);
	inode_table_close(fs.inodes);
	unmounted(store, true);
	return teardown(state);
}

static const char *at(const char *name)
{
	static char full[320];

	(void)snprintf(full, sizeof(full), "%s/%s", path, name);
	return full;
}

/* A file whose key is sealed under another key, with seq 1. */
static uint64_t make(const char *name)
{
	struct header_slot old = fresh;
	uint8_t page[LAYOUT_PAGE];
	struct stat st;
	int fd = open(at(name), O_RDWR | O_CREAT | O_EXCL, 0600);

	old.seq = 1;
	memset(old.key_hash, 0, sizeof(old.key_hash));
	memcpy(old.blob, "old", 3);
	assert_int_equal(file_new_page(page, &ident, &old, &key), 0);
	assert_int_equal(io_pwrite(fd, page, sizeof(page), 0), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(close(fd), 0);
	return st.st_ino;
}

static const char *said;

static int reseal_as(const char *name, uint64_t ino, uint32_t seq, const struct header_slot *slot)
{
	struct reseal_item item = { .path = name, .ino = ino, .seq = seq, .slot = slot };
	size_t before = inode_count(fs.inodes);
	int r;

	memcpy(item.file, ident.file, sizeof(item.file));
	r = reseal_file(fs.first, &store->domain, &item, &said);
	assert_int_equal(inode_count(fs.inodes), before); /* nothing is left behind */
	return r;
}

static struct header_slot ruling(const char *name)
{
	struct header_slot slot;
	struct header_ident id;
	int fd = open(at(name), O_RDONLY);

	assert_int_equal(file_peek(fd, &id, &slot), 0);
	assert_int_equal(close(fd), 0);
	return slot;
}

static void paths(void **state)
{
	static const char *const bad[] = { "", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", ".", "./a", "a/.",
		"a//b", "a/", ".byokfs", ".byokfs/store", ".byokfs.d", "a/.byokfs.tmp.00", "a/.byokfs/b" };
	static const char *const good[] = { "a", "a/b", "a/b/c", "...", "..a", ".a", ".byokf", "a/.byok", "a b",
		"L.x.n" };
	char *long_path = calloc(1, PATH_MAX + 1);

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_false(reseal_path_ok(bad[i]));
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_true(reseal_path_ok(good[i]));
	memset(long_path, 'a', 255);
	assert_true(reseal_path_ok(long_path));
	long_path[255] = 'a';
	assert_false(reseal_path_ok(long_path));
	for (size_t i = 0; i < PATH_MAX; i++)
		long_path[i] = i % 2 ? '/' : 'a';
	long_path[PATH_MAX] = '\0';
	long_path[PATH_MAX - 1] = 'a';
	assert_false(reseal_path_ok(long_path));
	long_path[PATH_MAX - 1] = '\0';
	long_path[PATH_MAX - 2] = 'a';
	long_path[PATH_MAX - 3] = 'a';
	assert_true(reseal_path_ok(long_path));
	free(long_path);
}

static struct inode *known(const char *name)
{
	struct inode *inode;
	struct stat st;
	int fd = open(at(name), O_PATH);

	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(inode_look(fs.inodes, fd, "", &st, (struct inode_where){ 0 }, &inode), 0);
	assert_int_equal(close(fd), 0);
	return inode;
}

static void unknown(struct inode *inode)
{
	inode_forget(fs.inodes, inode->nodeid, 1);
	inode_put(fs.inodes, inode);
}

static void next_moved(const struct inode *inode, uint64_t at_, uint64_t head_)
{
	uint64_t number, head;
	bool lost;
	struct inode *got = reseal_moved(&number, &head, &lost);

	assert_ptr_equal(got, inode);
	assert_false(lost);
	assert_int_equal(head - number, head_ - at_);
	if (got)
		inode_put(fs.inodes, got);
}

static void is_lost(void)
{
	uint64_t number, head;
	bool lost;

	assert_null(reseal_moved(&number, &head, &lost));
	assert_true(lost);
}

/* Each once, in order, also when the kernel forgets it meanwhile; again when it moves again. New ones do not count. */
static void moves(void **state)
{
	struct inode *a, *b, *c;
	size_t before = inode_count(fs.inodes);

	(void)state;
	(void)make("moves a");
	(void)make("moves b");
	(void)make("moves c");
	a = known("moves a");
	b = known("moves b");
	reseal_moving(&fs, a);
	assert_false(reseal_recording());
	is_lost();
	reseal_record(&fs, true);
	assert_true(reseal_recording());
	next_moved(NULL, 0, 0);
	reseal_moving(&fs, a);
	reseal_moving(&fs, b);
	reseal_moving(&fs, a);
	c = known("moves c");
	reseal_born(c);
	reseal_moving(&fs, c);
	unknown(b);
	next_moved(a, 1, 2);
	reseal_moving(&fs, a);
	next_moved(b, 2, 3);
	next_moved(a, 3, 3);
	next_moved(NULL, 3, 3);
	reseal_record(&fs, true);
	reseal_moving(&fs, c); /* of before */
	next_moved(c, 4, 4);
	reseal_moving(&fs, c);
	reseal_moving(&fs, NULL);
	is_lost();
	reseal_moving(&fs, a);
	is_lost();
	reseal_record(&fs, true);
	next_moved(NULL, 0, 0);
	reseal_moving(&fs, a);
	reseal_record(&fs, false);
	assert_false(reseal_recording());
	unknown(a);
	unknown(c);
	assert_int_equal(inode_count(fs.inodes), before);
}

/* More than is remembered. */
static void many_moves(void **state)
{
	size_t before = inode_count(fs.inodes), n = 0;
	char name[32];

	(void)state;
	assert_int_equal(mkdir(at("many"), 0700), 0);
	reseal_record(&fs, true);
	while (reseal_recording() && n < 70000) {
		(void)snprintf(name, sizeof(name), "many/%zu", n++);
		assert_int_equal(mknod(at(name), S_IFREG | 0600, 0), 0);
		struct inode *inode = known(name);

		reseal_moving(&fs, inode);
		unknown(inode);
	}
	assert_int_equal(n, inode_by_handle(fs.inodes) ? 65537 : 257);
	assert_int_equal(inode_count(fs.inodes), before);
	is_lost();
	while (n) {
		(void)snprintf(name, sizeof(name), "many/%zu", --n);
		assert_int_equal(unlink(at(name)), 0);
	}
	assert_int_equal(rmdir(at("many")), 0);
}

static void *end_birth(void *generation)
{
	reseal_birth_end(*(unsigned *)generation);
	return NULL;
}

/* Those that began before are waited for; those that come meanwhile are not. */
static void births(void **state)
{
	atomic_bool stop = true;
	unsigned first, second, third;
	pthread_t thread;

	(void)state;
	assert_int_equal(reseal_births_wait(60000, NULL), 0);
	first = reseal_birth_begin();
	assert_int_equal(reseal_births_wait(0, NULL), -ETIMEDOUT);
	assert_int_equal(reseal_births_wait(60000, &stop), -ETIMEDOUT);
	second = reseal_birth_begin();
	reseal_birth_end(first);
	assert_int_equal(reseal_births_wait(0, NULL), -ETIMEDOUT);
	third = reseal_birth_begin();
	reseal_birth_end(third);
	assert_int_equal(reseal_births_wait(0, NULL), -ETIMEDOUT);
	assert_int_equal(pthread_create(&thread, NULL, end_birth, &second), 0);
	assert_int_equal(reseal_births_wait(60000, NULL), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

static void exchanged(void **state)
{
	uint64_t ino = make("a");
	struct header_slot now;

	(void)state;
	assert_int_equal(reseal_as("a", ino, 1, &fresh), 0);
	now = ruling("a");
	assert_int_equal(now.seq, 2);
	assert_memory_equal(now.blob, "new", 3);
	assert_int_equal(reseal_as("a", ino, 1, &fresh), -ESTALE);
	assert_int_equal(reseal_as("a", ino, 1, NULL), -ESTALE);
	assert_int_equal(reseal_as("a", ino, 2, NULL), 0);
	assert_int_equal(ruling("a").seq, 2);
	assert_int_equal(mkdir(at("d"), 0700), 0);
	assert_int_equal(rename(at("a"), in_store("../d/b")), 0);
	assert_int_equal(reseal_as("a", ino, 2, &fresh), -ENOENT);
	assert_int_equal(reseal_as("d/b", ino, 2, &fresh), 0);
	assert_int_equal(link(at("d/b"), in_store("../c")), 0);
	assert_int_equal(reseal_as("c", ino, 2, &fresh), -ESTALE); /* the same file */
	assert_int_equal(reseal_as("c", ino, 3, &fresh), 0);
	assert_int_equal(ruling("d/b").seq, 4);
}

static void not_there(void **state)
{
	uint64_t ino = make("a"), dir;
	struct stat st;
	int fd;

	(void)state;
	assert_int_equal(reseal_as("b", ino, 1, &fresh), -ENOENT);
	assert_int_equal(reseal_as("a/b", ino, 1, &fresh), -ENOENT);
	assert_int_equal(reseal_as("x/a", ino, 1, &fresh), -ENOENT);
	assert_int_equal(reseal_as("a", ino + 1, 1, &fresh), -ENOENT);
	assert_int_equal(mkdir(at("d"), 0700), 0);
	assert_int_equal(stat(at("d"), &st), 0);
	dir = st.st_ino;
	assert_int_equal(reseal_as("d", dir, 1, &fresh), -ENOENT);
	assert_int_equal(mkfifo(at("fifo"), 0600), 0);
	assert_int_equal(stat(at("fifo"), &st), 0);
	assert_int_equal(reseal_as("fifo", st.st_ino, 1, &fresh), -ENOENT);
	/* links that somebody planted */
	assert_int_equal(symlink("a", at("l")), 0);
	assert_int_equal(reseal_as("l", ino, 1, &fresh), -ENOENT);
	assert_int_equal(symlink(".", at("here")), 0);
	assert_int_equal(reseal_as("here/a", ino, 1, &fresh), -ENOENT);
	assert_int_equal(symlink("/", at("root")), 0);
	assert_int_equal(stat("/etc/passwd", &st), 0);
	assert_int_equal(reseal_as("root/etc/passwd", st.st_ino, 1, &fresh), -ENOENT);
	assert_int_equal(reseal_as("../store/a", ino, 1, &fresh), -EINVAL);
	assert_string_equal(said, "that is no path of a file in the store");
	assert_int_equal(stat(in_store("store"), &st), 0);
	assert_int_equal(reseal_as(".byokfs/store", st.st_ino, 1, &fresh), -EINVAL);
	assert_int_equal(ruling("a").seq, 1);
	/* damaged, or gone and made anew since it was looked at */
	fd = open(at("a"), O_RDWR);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(reseal_as("a", ino, 1, &fresh), -ESTALE);
	assert_int_equal(ftruncate(fd, 8192), 0);
	assert_int_equal(reseal_as("a", ino, 1, &fresh), -ESTALE);
	assert_int_equal(io_pwrite(fd, "rubbish", 7, 0), 0);
	assert_int_equal(reseal_as("a", ino, 1, &fresh), -ESTALE);
	assert_int_equal(close(fd), 0);
}

static void refused_one(uint64_t ino, const struct header_slot *slot, const char *why_not)
{
	assert_int_equal(reseal_as("a", ino, 1, slot), -EINVAL);
	assert_string_equal(said, why_not);
	assert_int_equal(ruling("a").seq, 1);
}

static void refused(void **state)
{
	uint64_t ino = make("a");
	struct header_slot bad = fresh;

	(void)state;
	bad.wrap = HEADER_WRAP_DOMAIN;
	refused_one(ino, &bad, "the slot is not sealed by the key service");
	bad = fresh;
	bad.key_hash[7] ^= 1;
	refused_one(ino, &bad, "the slot is not under the domain's key");
	bad = fresh;
	bad.provider = 1;
	refused_one(ino, &bad, "the slot is not under the domain's key");
	bad = fresh;
	bad.generation = 2;
	refused_one(ino, &bad, "the slot's context generation is not recorded");
	bad = fresh;
	bad.len = 0;
	assert_int_equal(reseal_as("a", ino, 1, &bad), -EINVAL);
	assert_int_equal(ruling("a").seq, 1);
	ident.file[3] ^= 1;
	assert_int_equal(reseal_as("a", ino, 1, &fresh), -ESTALE);
	ident.domain[0] ^= 1;
	ino = make("b");
	assert_int_equal(reseal_as("b", ino, 1, &fresh), -EPERM);
	assert_string_equal(said, "the file belongs to another key domain");
	assert_int_equal(reseal_as("b", ino, 1, NULL), -EPERM);
	ident.domain[0] ^= 1;
	ident.store[0] ^= 1;
	ino = make("c");
	assert_int_equal(reseal_as("c", ino, 1, &fresh), -EPERM);
	assert_int_equal(ruling("b").seq, 1);
	assert_int_equal(ruling("c").seq, 1);
}

/* The state of a file, as an open would load it; opened once. */
static struct inode *load(const char *name, bool readonly, struct file **f)
{
	const struct file_params params = { .readonly = readonly };
	struct inode *inode;
	struct stat st;
	bool wrong;

	assert_int_equal(lstat(at(name), &st), 0);
	assert_int_equal(inode_look(fs.inodes, store->fd, name, &st, (struct inode_where){ 0 }, &inode), 0);
	assert_int_equal(
	    file_open(f, inode_open(fs.inodes, inode, readonly ? O_RDONLY : O_RDWR), &key, &params, &wrong), 0);
	assert_int_equal(state_adopt(&fs, inode, *f), 0);
	return inode;
}

static void close_state(struct inode *inode)
{
	state_unpin(&fs, inode);
	inode_forget(fs.inodes, inode->nodeid, 1);
	inode_put(fs.inodes, inode);
}

static void loaded(void **state)
{
	uint64_t ino = make("a");
	struct file *f;
	struct inode *inode = load("a", false, &f);
	char text[6] = "";

	(void)state;
	assert_int_equal(file_write(f, &key, "hello", 5, 0), 0);
	assert_int_equal(reseal_as("a", ino, 1, &fresh), 0);
	assert_int_equal(inode->opens, 1);
	assert_int_equal(ruling("a").seq, 2);
	assert_int_equal(file_write(f, &key, "HELLO", 5, 0), 0);
	assert_int_equal(file_flush(f, &key, true), 0); /* page 0 from memory */
	assert_int_equal(ruling("a").seq, 2);
	assert_memory_equal(ruling("a").blob, "new", 3);
	assert_int_equal(reseal_as("a", ino, 1, &fresh), -ESTALE);
	assert_int_equal(reseal_as("a", ino, 2, NULL), 0);
	assert_int_equal(file_read(f, &key, text, 5, 0), 5);
	assert_string_equal(text, "HELLO");
	/* the path leads to another file meanwhile */
	ident.file[0] ^= 1;
	assert_int_equal(reseal_as("a", ino, 2, &fresh), -ESTALE);
	ident.file[0] ^= 1;
	assert_int_equal(file_fsync(f, &key), 0);
	close_state(inode);
	assert_int_equal(ruling("a").seq, 2);
}

static void loaded_readonly(void **state)
{
	uint64_t ino = make("a");
	struct file *f;
	struct inode *inode = load("a", true, &f);

	(void)state;
	assert_int_equal(file_put_slot(f, 1, &fresh), -EROFS);
	/* as state_pin() notes it when only reading was possible: now there is a descriptor that can write */
	((struct state *)inode->extra)->readonly = true;
	assert_int_equal(reseal_as("a", ino, 1, &fresh), 0);
	assert_int_equal(ruling("a").seq, 2);
	assert_false(((struct state *)inode->extra)->readonly);
	assert_int_equal(file_write(f, &key, "hello", 5, 0), 0);
	assert_int_equal(file_fsync(f, &key), 0);
	assert_int_equal(ruling("a").seq, 2);
	close_state(inode);
}

int main(void)
{
#define RUN(f) cmocka_unit_test_setup_teardown(f, setup_fs, teardown_fs)
	const struct CMUnitTest tests[] = {
		RUN(paths),
		RUN(moves),
		RUN(many_moves),
		RUN(births),
		RUN(exchanged),
		RUN(not_there),
		RUN(refused),
		RUN(loaded),
		RUN(loaded_readonly),
	};

	return cmocka_run_group_tests_name("reseal", tests, backing_main_setup, NULL);
}
