/* The table of key domains, and where objects belong: every combination of index, directory id and surroundings. */
#include "store_fixture.h"

#include <dirent.h>

#include "domain.h"
#include "fs.h"

static struct fs fs;
static struct store *store;
static struct fs_dir root;

static uint8_t nested_id(uint16_t index)
{
	return (uint8_t)(0x40 + index % 64);
}

/* The fixture's keys serve every domain: places are decided before any key is used. */
static void add_line(uint16_t index)
{
	struct descriptor_domain_line *more = calloc(store->desc.n + 1, sizeof(*more));

	assert_non_null(more);
	memcpy(more, store->desc.domains, store->desc.n * sizeof(*more));
	more[store->desc.n].index = index;
	memset(more[store->desc.n].dirid, nested_id(index), 16);
	memset(more[store->desc.n].domain, index % 251, 16);
	free(store->desc.domains);
	store->desc.domains = more;
	store->desc.n++;
}

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
	root = (struct fs_dir){ .inode = inode_get(fs.inodes, 1), .dir = { .fd = store->fd, .names = bk.names } };
	memcpy(root.dir.id, bk.root.id, 16);
	return 0;
}

static int teardown_fs(void **state)
{
	inode_put(fs.inodes, root.inode);
	domains_free(&fs);
	inode_table_close(fs.inodes);
	unmounted(store, true);
	return teardown(state);
}

static bool count_one(void *arg, struct domain *d)
{
	unsigned *n = arg;

	assert_ptr_equal(d, domain_get(&fs, d->index));
	assert_true(n[1] == 0 || d->index > n[2]);
	n[1]++;
	n[2] = d->index;
	return n[1] < n[0];
}

static void table(void **state)
{
	unsigned n[3] = { 100, 0, 0 };

	(void)state;
	assert_int_equal(domains_count(&fs), 1);
	assert_ptr_equal(domain_get(&fs, 0), fs.first);
	assert_null(domain_get(&fs, 1));
	assert_memory_equal(fs.first->root, bk.root.id, 16);
	add_line(3);
	add_line(700);
	add_line(65535);
	assert_int_equal(domains_load(&fs), 0);
	assert_int_equal(domains_load(&fs), 0); /* what is there stays as it is */
	assert_int_equal(domains_count(&fs), 4);
	assert_int_equal(domain_get(&fs, 65535)->index, 65535);
	assert_string_equal(domain_get(&fs, 700)->label, "domain 700");
	assert_string_equal(fs.first->label, "");
	assert_null(domain_get(&fs, 2));
	domains_each(&fs, count_one, n);
	assert_int_equal(n[1], 4);
	n[0] = 2;
	n[1] = 0;
	domains_each(&fs, count_one, n);
	assert_int_equal(n[1], 2);
}

/* Nobody enters what was not opened; an administrator's lock waits for it. */
static void closed(void **state)
{
	struct domain *d;
	struct lease_status st;

	(void)state;
	add_line(1);
	assert_int_equal(domains_load(&fs), 0);
	d = domain_get(&fs, 1);
	assert_int_equal(domain_enter(d, LEASE_WORK), -EIO);
	assert_int_equal(domain_visit(d, LEASE_WRITEBACK), -EIO);
	assert_int_equal(d->ops, 1);
	assert_false(domain_is_open(d));
	domain_status(d, &st);
	assert_int_equal(st.state, LEASE_LOCKED);
	assert_true(st.reason[0] != '\0' && !st.by_admin);
	assert_int_equal(domain_wait(d, LEASE_LOCKED, 0), 0);
	assert_int_equal(domain_lock(d, "test"), 0);
	assert_int_equal(domain_lock(d, "test"), -EALREADY);
	domain_status(d, &st);
	assert_true(st.by_admin);
	assert_int_equal(domain_unlock(d), 0);
	assert_int_equal(domain_wait(d, LEASE_OPEN, 0), -ETIMEDOUT);
}

static unsigned threads(void)
{
	DIR *d = opendir("/proc/self/task");
	unsigned n = 0;

	assert_non_null(d);
	for (const struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	(void)closedir(d);
	return n;
}

static uint64_t failures(uint16_t index)
{
	struct lease_status st;

	domain_status(domain_get(&fs, index), &st);
	return st.probe_failures;
}

/* However many wait to be opened, a few threads do it; each has its turn, whoever unlocks gets another at once, and
 * what an administrator holds is not asked. */
static void openers(void **state)
{
	const unsigned most = threads() + 40;
	uint64_t before;

	(void)state;
	for (uint16_t i = 1; i <= 300; i++)
		add_line(i);
	assert_int_equal(domains_load(&fs), 0);
	assert_int_equal(domain_lock(domain_get(&fs, 9), "test"), 0);
	domains_open_nested(&fs);
	domains_open_nested(&fs); /* they are all in the queue */
	for (uint16_t i = 1; i <= 300; i++)
		while (i != 9 && !failures(i))
			(void)usleep(1000);
	assert_true(threads() <= most);
	assert_int_equal(failures(9), 0);
	before = failures(300);
	assert_int_equal(domain_unlock(domain_get(&fs, 300)), 0);
	assert_int_equal(domain_unlock(domain_get(&fs, 9)), 0);
	while (failures(300) == before || !failures(9))
		(void)usleep(1000);
	domains_stop(&fs);
	assert_true(threads() <= most - 40 + 1);
	assert_int_equal(domain_unlock(domain_get(&fs, 9)), 0); /* nothing is begun any more */
	assert_true(threads() <= most - 40 + 1);
}

/* Whoever comes without having entered finds no names, and is refused. */
static void no_names(void **state)
{
	struct inode_pin *pin;
	struct dir dir;

	(void)state;
	add_line(1);
	assert_int_equal(domains_load(&fs), 0);
	assert_null(domain_names(domain_get(&fs, 1)));
	assert_int_equal(domain_dir(&fs, root.inode, &dir, &pin), -EIO);
}

/* A directory of the store's root whose .byokfs.d says so; index -1: it has none. */
static void make_claiming(const char *name, int index, uint8_t fill)
{
	char text[NAME_DIR_ID_TEXT + 1];
	uint8_t id[16];
	int fd;

	memset(id, fill, sizeof(id));
	if (fill == 0)
		memcpy(id, bk.root.id, sizeof(id));
	assert_int_equal(mkdirat(store->fd, name, 0755), 0);
	fd = openat(store->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	name_dir_make(bk.names, (uint16_t)index, id, text);
	if (index >= 0)
		assert_int_equal(symlinkat(text, fd, NAME_DIR_FILE), 0);
	(void)close(fd);
}

static int placed(const char *name, struct inode_where *where)
{
	return domain_place(&fs, &root, name, S_IFDIR | 0755, where);
}

static uint16_t claimed(const char *name, uint16_t parent)
{
	int fd = openat(store->fd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	uint16_t index = domain_claimed(&fs, fd, parent);

	(void)close(fd);
	return index;
}

static void places(void **state)
{
	struct inode_where w;

	(void)state;
	make_claiming("same", 0, 9);
	make_claiming("root of 1", 1, nested_id(1));
	make_claiming("inside 1", 1, 9);
	make_claiming("root of 2 says 1", 1, nested_id(2));
	make_claiming("unknown", 7, nested_id(7));
	make_claiming("the store's root", 0, 0);
	make_claiming("no id", -1, 0);
	/* A store of one domain asks nothing; what lies is found when it is opened. */
	assert_int_equal(placed("root of 1", &w), 0);
	assert_true(w.domain == 0 && w.outer == 0);
	add_line(1);
	add_line(2);
	assert_int_equal(domains_load(&fs), 0);
	assert_int_equal(placed("same", &w), 0);
	assert_true(w.domain == 0 && w.outer == 0);
	assert_int_equal(placed("root of 1", &w), 0);
	assert_true(w.domain == 1 && w.outer == 0);
	assert_int_equal(placed("inside 1", &w), -EIO);
	assert_int_equal(placed("root of 2 says 1", &w), -EIO);
	assert_int_equal(placed("unknown", &w), -EIO);
	assert_int_equal(placed("no id", &w), 0);
	assert_true(w.domain == 0 && w.outer == 0);
	assert_int_equal(placed("absent", &w), 0);
	assert_int_equal(domain_place(&fs, &root, "root of 1", S_IFREG | 0644, &w), 0);
	assert_true(w.domain == 0 && w.outer == 0);
	assert_int_equal(claimed("root of 1", 0), 1);
	assert_int_equal(claimed("root of 1", 1), 1);
	assert_int_equal(claimed("inside 1", 0), 0);
	assert_int_equal(claimed("inside 1", 1), 1);
	assert_int_equal(claimed("unknown", 2), 2);
	/* Seen from a directory of domain 1. */
	atomic_store(&root.inode->domain, 1);
	assert_int_equal(placed("inside 1", &w), 0);
	assert_true(w.domain == 1 && w.outer == 1);
	assert_int_equal(placed("same", &w), -EIO);
	assert_int_equal(placed("the store's root", &w), -EIO);
	make_claiming("root of 2", 2, nested_id(2));
	assert_int_equal(placed("root of 2", &w), 0);
	assert_true(w.domain == 2 && w.outer == 1);
	assert_int_equal(domain_of(&fs, 1)->index, 1);
	assert_int_equal(domain_outside(&fs, 1)->index, 0);
	atomic_store(&root.inode->domain, 0);
}

/* What the kernel knows in one domain is not shown in another. */
static void known_elsewhere(void **state)
{
	struct inode *i, *again;
	struct stat st;

	(void)state;
	make_claiming("d", 1, nested_id(1));
	assert_int_equal(fstatat(store->fd, "d", &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_int_equal(inode_look(fs.inodes, store->fd, "d", &st, (struct inode_where){ 1, 0 }, &i), 0);
	assert_int_equal(inode_where(fs.inodes, i->nodeid).domain, 1);
	assert_int_equal(inode_where(fs.inodes, i->nodeid).outer, 0);
	assert_int_equal(inode_look(fs.inodes, store->fd, "d", &st, (struct inode_where){ 0, 0 }, &again), -EIO);
	assert_int_equal(inode_look(fs.inodes, store->fd, "d", &st, (struct inode_where){ 1, 1 }, &again), -EIO);
	assert_int_equal(inode_look(fs.inodes, store->fd, "d", &st, (struct inode_where){ 1, 0 }, &again), 0);
	assert_ptr_equal(i, again);
	inode_put(fs.inodes, again);
	inode_forget(fs.inodes, i->nodeid, 2);
	inode_put(fs.inodes, i);
	/* Forgotten, it may be looked up anywhere. */
	assert_int_equal(inode_look(fs.inodes, store->fd, "d", &st, (struct inode_where){ 0, 0 }, &i), 0);
	inode_forget(fs.inodes, i->nodeid, 1);
	inode_put(fs.inodes, i);
	assert_int_equal(inode_where(fs.inodes, 12345).domain, 0);
}

#undef TEST
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup_fs, teardown_fs)

int main(void)
{
	const struct CMUnitTest tests[] = { TEST(table), TEST(closed), TEST(openers),
		TEST(no_names), TEST(places), TEST(known_elsewhere) };

	return cmocka_run_group_tests_name("domain", tests, backing_main_setup, NULL);
}
