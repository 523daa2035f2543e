/* test_check.c — what `byokfsctl check` says of a sound store and of damaged ones. No KMS: the domain's secret is drawn
 * here. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cmocka.h>

#include "../../tools/check.c"
#include "../../tools/check_entry.c"
#include "../../tools/check_file.c"
#include "../../tools/check_find.c"
#include "../../tools/check_store.c"
#include "../../tools/check_xattr.c"
#include "../../tools/progress.c"
#include "../../tools/namelist.c"
#include "../../tools/walk.c"
#include "dir.h"
#include "file.h"
#include "jsonio.h"
#include "kdf.h"
#include "secret.h"

/* The escape of cmd_common.c is not what is tested here. */
void cmd_escape(char *out, const char *text)
{
	strcpy(out, text);
}

/* What --data does needs a KMS: the mount tests do that. */
int check_keys_enter(struct check_keys *k, uint16_t index, char why[static CHECK_WHY])
{
	(void)k;
	(void)index;
	why[0] = '\0';
	return EXIT_OK;
}

const struct name_keys *check_keys_get(struct check_keys *k, uint16_t index)
{
	(void)k;
	(void)index;
	return NULL;
}

void check_keys_put(struct check_keys *k, uint16_t index)
{
	(void)k;
	(void)index;
}

int check_data_begin(struct check *c)
{
	(void)c;
	return 0;
}

void check_data_file(struct check *c, int fd, const char *path, const char *name, const struct stat *st,
    const uint8_t page[static LAYOUT_PAGE], const struct header_ident *ident)
{
	(void)c;
	(void)path;
	(void)name;
	(void)st;
	(void)page;
	(void)ident;
	(void)close(fd);
}

void check_data_end(struct check *c)
{
	(void)c;
}

struct fixture {
	char path[64];
	uint8_t secret[32];
	struct domain_keys keys;
	struct name_keys *names;
	struct store_create create;
	struct dir root;
	struct store store;
	json_t *findings;
	struct check check;
};

static void make_store(struct fixture *f, enum name_mode mode)
{
	char why[STORE_WHY] = "";
	struct store_create *c = &f->create;

	secret_random(f->secret, sizeof(f->secret));
	c->ids.suite = 1;
	secret_random(c->ids.store, CONTEXT_ID);
	secret_random(c->ids.domain, CONTEXT_ID);
	secret_random(c->dirid, sizeof(c->dirid));
	assert_int_equal(kdf_domain(&f->keys, f->secret, &c->ids), 0);
	assert_int_equal(name_open(&f->names, mode, &f->keys, &c->ids), 0);
	c->names = mode;
	c->by = "byokfs test";
	c->keys = &f->keys;
	c->name_keys = f->names;
	c->slot = (struct descriptor_slot){ .seq = 1,
		.provider = 3,
		.key = "keyfile:0011223344556677",
		.context = 1,
		.sealed = 1767225600,
		.blob_len = 60,
		.probe_len = 60 };
	if (store_create(f->path, c, why) < 0)
		fail_msg("%s", why);
	f->root.fd = open(f->path, O_RDONLY | O_DIRECTORY);
	assert_true(f->root.fd >= 0);
	memcpy(f->root.id, c->dirid, 16);
	f->root.names = f->names;
}

static int setup_mode(void **state, enum name_mode mode)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->path, "/tmp/test_check.XXXXXX");
	if (!mkdtemp(f->path))
		return -1;
	make_store(f, mode);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_mode(state, NAME_SIV64);
}

static int setup_siv32(void **state)
{
	return setup_mode(state, NAME_SIV32);
}

static int setup_plain(void **state)
{
	return setup_mode(state, NAME_PLAIN);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	json_decref(f->findings);
	(void)close(f->root.fd);
	name_free(f->names);
	(void)nftw(f->path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(f);
	return 0;
}

static void put_file(struct fixture *f, const struct dir *d, const char *name)
{
	struct header_ident ident = { .suite = 1 };
	struct header_slot slot = {
		.seq = 1, .wrap = HEADER_WRAP_KMS, .generation = 1, .provider = 3, .sealed_at = 1767225600, .len = 60
	};
	uint8_t secret[32], page[LAYOUT_PAGE];
	struct file_keys keys;
	struct block_file block = { .serial = block_serial(), .suite = 1, .key = keys.page };
	struct file_key key = { .keys = &keys, .block = &block };
	struct stat st;
	int fd = -1;

	secret_random(secret, sizeof(secret));
	memcpy(ident.store, f->create.ids.store, 16);
	memcpy(ident.domain, f->create.ids.domain, 16);
	secret_random(ident.file, 16);
	assert_int_equal(kdf_file(&keys, secret, &f->create.ids, ident.file), 0);
	memcpy(ident.commit, keys.commit, sizeof(ident.commit));
	memcpy(block.store, ident.store, 16);
	memcpy(block.file, ident.file, 16);
	memset(slot.blob, 7, 60);
	kms_key_hash(slot.key_hash, f->create.slot.key);
	assert_int_equal(file_new_page(page, &ident, &slot, &key), 0);
	assert_int_equal(dir_create(d, name, strlen(name), page, 0600, &(struct dir_owner){ 0 }, &fd, &st), 0);
	(void)close(fd);
	block_forget(block.serial);
}

static void put_dir(const struct dir *in, const char *name, struct dir *out)
{
	struct stat st;
	char entry[NAME_ENTRY_MAX + 1];
	uint16_t domain;

	assert_int_equal(dir_mkdir(in, name, strlen(name), 0700, &(struct dir_owner){ 0 }, 0, &st), 0);
	assert_int_equal(dir_stat(in, name, strlen(name), &st, entry), 0);
	out->fd = openat(in->fd, entry, O_RDONLY | O_DIRECTORY);
	out->names = in->names;
	assert_true(out->fd >= 0);
	assert_int_equal(dir_read_id(out->fd, in->names, &domain, out->id), 0);
}

/* Backing name of a plaintext name in the root. */
static char *entry_of(struct fixture *f, const char *name)
{
	static char entry[NAME_ENTRY_MAX + 1];
	struct stat st;

	assert_int_equal(dir_stat(&f->root, name, strlen(name), &st, entry), 0);
	return entry;
}

static void run(struct fixture *f)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	char why[STORE_WHY] = "";

	json_decref(f->findings);
	f->findings = json_array();
	if (store_open(&f->store, f->path, &options, why) < 0)
		fail_msg("%s", why);
	f->check = (struct check){ .store = &f->store, .findings = f->findings };
	assert_int_equal(check_run(&f->check), 0);
	check_end(&f->check);
	store_close(&f->store, true);
}

static void expect(struct fixture *f, unsigned damage, unsigned warnings, const char *what)
{
	char *text;

	run(f);
	text = jsonio_print(f->findings);
	if (f->check.damage != damage || f->check.warnings != warnings || (what && !strstr(text, what)))
		fail_msg("expected %u damaged, %u warnings, '%s', got %s", damage, warnings, what ? what : "", text);
	free(text);
}

static void fill(struct fixture *f)
{
	static const char long_name[] = "a name of two hundred and more bytes "
	                                "........................................................................"
	                                ".............................................................................."
	                                "..............................";
	struct dir a, b;
	struct stat st;

	put_file(f, &f->root, "hello");
	put_file(f, &f->root, long_name);
	put_dir(&f->root, "a", &a);
	put_dir(&a, "b", &b);
	put_file(f, &b, "deep");
	put_dir(&f->root, long_name + 1, &b);
	assert_int_equal(dir_symlink(&a, "link", 4, "../target", 9, &(struct dir_owner){ 0 }, &st), 0);
	assert_int_equal(dir_mknod(&a, "fifo", 4, S_IFIFO | 0600, 0, &(struct dir_owner){ 0 }, &st), 0);
}

static void a_sound_store_is_clean(void **state)
{
	struct fixture *f = *state;

	fill(f);
	expect(f, 0, 0, NULL);
	assert_int_equal(f->check.directories, 4);
	assert_int_equal(f->check.files, 3);
	assert_int_equal(f->check.links, 1);
	assert_int_equal(f->check.specials, 1);
	assert_int_equal(f->check.in_doubt, 0);
}

static void page_zero_is_judged(void **state)
{
	struct fixture *f = *state;
	uint8_t page[LAYOUT_PAGE], bad[LAYOUT_PAGE];
	int fd;

	put_file(f, &f->root, "x");
	fd = openat(f->root.fd, entry_of(f, "x"), O_RDWR);
	assert_int_equal(io_pread(fd, page, sizeof(page), 0), sizeof(page));
#define WITH(at, what, how)                                              \
	do {                                                             \
		memcpy(bad, page, sizeof(bad));                          \
		bad[at] ^= 1;                                            \
		assert_int_equal(io_pwrite(fd, bad, sizeof(bad), 0), 0); \
		expect(f, how, 1 - (how), what);                         \
	} while (0)
	WITH(0, "not a byokfs file", 1);
	WITH(8, "not a byokfs file", 1);
	WITH(16, "another store", 1);
	WITH(32, "another key domain", 1);
	WITH(11, "not a byokfs file", 1); /* suite 0 */
	WITH(600, "no sealed key", 1);
	WITH(1600, "neither state", 1); /* a reserved byte of the only state */
	memset(bad, 0, sizeof(bad));
	assert_int_equal(io_pwrite(fd, bad, sizeof(bad), 0), 0);
	expect(f, 0, 1, "never written");
	assert_int_equal(f->check.unborn, 1);
	assert_int_equal(ftruncate(fd, 0), 0);
	expect(f, 0, 1, "never written");
	assert_int_equal(io_pwrite(fd, page, 4095, 0), 0);
	expect(f, 1, 0, "cut off within its header");
	assert_int_equal(io_pwrite(fd, page, 4096, 0), 0);
	expect(f, 0, 0, NULL);
	assert_int_equal(ftruncate(fd, 8192), 0);
	expect(f, 1, 0, "longer");
	(void)close(fd);
}

static void a_stale_marker_puts_sizes_in_doubt(void **state)
{
	struct fixture *f = *state;
	int fd;

	put_file(f, &f->root, "x");
	fd = openat(f->root.fd, entry_of(f, "x"), O_RDWR);
	assert_int_equal(ftruncate(fd, 8192), 0);
	(void)close(fd);
	fd = openat(f->root.fd, ".byokfs/mounts/00112233445566778899aabbccddeeff", O_WRONLY | O_CREAT, 0600);
	assert_true(fd >= 0);
	(void)close(fd);
	expect(f, 0, 1, "marker of a mount is damaged");
	assert_int_equal(f->check.in_doubt, 1);
}

static void directory_ids_are_judged(void **state)
{
	struct fixture *f = *state;
	struct dir a, b;
	char text[64];
	ssize_t n;

	put_dir(&f->root, "a", &a);
	put_dir(&f->root, "b", &b);
	n = readlinkat(a.fd, NAME_DIR_FILE, text, sizeof(text) - 1);
	assert_int_equal(n, NAME_DIR_ID_TEXT);
	text[n] = '\0';
	assert_int_equal(unlinkat(b.fd, NAME_DIR_FILE, 0), 0);
	expect(f, 1, 0, "has no " NAME_DIR_FILE);
	assert_int_equal(symlinkat(text, b.fd, NAME_DIR_FILE), 0);
	expect(f, 1, 0, "a copy inside the store");
	assert_int_equal(unlinkat(b.fd, NAME_DIR_FILE, 0), 0);
	assert_int_equal(symlinkat("nonsense", b.fd, NAME_DIR_FILE), 0);
	expect(f, 1, 0, "malformed");
	assert_int_equal(unlinkat(b.fd, NAME_DIR_FILE, 0), 0);
	text[1] = 'B'; /* domain index 0x10 */
	assert_int_equal(symlinkat(text, b.fd, NAME_DIR_FILE), 0);
	expect(f, 2, 0, "does not know"); /* and still a copy */
}

static void the_root_must_be_its_own(void **state)
{
	struct fixture *f = *state;
	struct dir a;
	char text[64] = "";

	put_dir(&f->root, "a", &a);
	assert_int_equal(readlinkat(a.fd, NAME_DIR_FILE, text, sizeof(text) - 1), NAME_DIR_ID_TEXT);
	assert_int_equal(unlinkat(f->root.fd, NAME_DIR_FILE, 0), 0);
	assert_int_equal(symlinkat(text, f->root.fd, NAME_DIR_FILE), 0);
	expect(f, 2, 0, "not the one in the store descriptor");
}

static void foreign_things_are_left_alone(void **state)
{
	struct fixture *f = *state;

	fill(f);
	assert_int_equal(mkfifoat(f->root.fd, "fifo", 0600), 0);
	(void)close(openat(f->root.fd, "README", O_CREAT | O_WRONLY, 0600));
	(void)close(openat(f->root.fd, "L.nonsense", O_CREAT | O_WRONLY, 0600));
	assert_int_equal(mkdirat(f->root.fd, "lost+found", 0700), 0);
	assert_int_equal(mkdirat(f->root.fd, "foreign dir", 0700), 0);
	(void)close(openat(f->root.fd, ".byokfs.tmp.0011223344556677", O_CREAT | O_WRONLY, 0600));
	(void)close(openat(f->root.fd, ".byokfs.future", O_CREAT | O_WRONLY, 0600));
	expect(f, 0, 6, "not a name of this store");
	assert_int_equal(f->check.files, 3);
}

static void halves_of_long_names(void **state)
{
	struct fixture *f = *state;
	char half[NAME_ENTRY_MAX + 3], name[250], *entry;

	memset(name, 'n', 249);
	name[249] = '\0';
	put_file(f, &f->root, name);
	entry = entry_of(f, name);
	(void)snprintf(half, sizeof(half), "%s.n", entry);
	assert_int_equal(unlinkat(f->root.fd, half, 0), 0);
	expect(f, 1, 0, "is missing");
	assert_int_equal(symlinkat("AAAA", f->root.fd, half), 0);
	expect(f, 1, 0, "does not belong to it");
	assert_int_equal(unlinkat(f->root.fd, entry, 0), 0);
	expect(f, 0, 1, "half of a long name");
}

static void files_turned_into_other_things(void **state)
{
	struct fixture *f = *state;
	char entry[NAME_ENTRY_MAX + 1];

	put_file(f, &f->root, "x");
	strcpy(entry, entry_of(f, "x"));
	assert_int_equal(unlinkat(f->root.fd, entry, 0), 0);
	assert_int_equal(symlinkat("/etc/passwd", f->root.fd, entry), 0);
	expect(f, 1, 0, "a symlink that byokfs did not write");
	assert_int_equal(unlinkat(f->root.fd, entry, 0), 0);
	assert_int_equal(mkfifoat(f->root.fd, entry, 0600), 0);
	expect(f, 0, 0, NULL); /* special files may have any valid name; it was not opened */
	assert_int_equal(f->check.specials, 1);
	assert_int_equal(unlinkat(f->root.fd, entry, 0), 0);
	assert_int_equal(mkdirat(f->root.fd, entry, 0700), 0);
	expect(f, 1, 0, "has no " NAME_DIR_FILE);
}

static void copies_of_descriptors(void **state)
{
	struct fixture *f = *state;
	int fd = openat(f->root.fd, ".byokfs/store~", O_WRONLY);

	assert_int_equal(pwrite(fd, "X", 1, 30), 1);
	(void)close(fd);
	expect(f, 0, 1, "damaged; the other copy is intact");
	assert_int_equal(unlinkat(f->root.fd, ".byokfs/store~", 0), 0);
	expect(f, 0, 1, "missing; the other copy is intact");
}

/* What nobody owns in the store's own directory. */
static void strays_of_the_store(void **state)
{
	struct fixture *f = *state;
	int fd = openat(f->root.fd, ".byokfs/domains/00112233445566778899aabbccddeeff", O_CREAT | O_WRONLY, 0600);

	assert_true(fd >= 0);
	(void)close(fd);
	expect(f, 0, 1, "that the store descriptor does not know");
	(void)close(openat(f->root.fd, ".byokfs/.byokfs.tmp.0011223344556677", O_CREAT | O_WRONLY, 0600));
	(void)close(openat(f->root.fd, ".byokfs/domains/.byokfs.tmp.0011223344556677", O_CREAT | O_WRONLY, 0600));
	expect(f, 0, 3, "never finished");
	assert_int_equal(mkdirat(f->root.fd, ".byokfs/quarantine", 0700), 0);
	(void)close(openat(f->root.fd, ".byokfs/quarantine/x", O_CREAT | O_WRONLY, 0600));
	expect(f, 0, 3, NULL); /* nobody looks there */
}

/* A length may be short of what was promised, or of what was only written. */
static void what_was_promised(void **state)
{
	struct fixture *f = *state;
	struct header_state st = { .seq = 3, .size = 40000, .csize = 30000, .clock = 9 };
	uint8_t key[32] = { 1 }, id[16] = { 2 }, page[LAYOUT_PAGE];
	int fd;

	put_file(f, &f->root, "x");
	fd = openat(f->root.fd, entry_of(f, "x"), O_RDWR);
	assert_int_equal(io_pread(fd, page, sizeof(page), 0), sizeof(page));
	header_put_state(page, &st, key, id);
	assert_int_equal(io_pwrite(fd, page, sizeof(page), 0), 0);
	expect(f, 1, 0, "than what was promised");
	assert_int_equal(ftruncate(fd, (off_t)layout_hint(st.csize, false)), 0);
	expect(f, 1, 0, "is shorter");
	assert_null(strstr(json_string_value(json_object_get(json_array_get(f->findings, 0), "what")), "promised"));
	assert_int_equal(ftruncate(fd, (off_t)layout_hint(st.size, false)), 0);
	expect(f, 0, 0, NULL);
	(void)close(fd);
}

/* What a repair is to do is listed only when one is wanted. */
static void fixes_are_listed(void **state)
{
	struct fixture *f = *state;
	struct store_options options = { .readonly = true, .torn_ok = true };
	char why[STORE_WHY];
	int fd;

	put_file(f, &f->root, "x");
	fd = openat(f->root.fd, entry_of(f, "x"), O_RDWR);
	assert_int_equal(ftruncate(fd, 100), 0);
	(void)close(fd);
	(void)close(openat(f->root.fd, ".byokfs.tmp.0011223344556677", O_CREAT | O_WRONLY, 0600));
	assert_int_equal(store_open(&f->store, f->path, &options, why), 0);
	f->findings = json_array();
	for (int wanted = 0; wanted < 2; wanted++) {
		f->check = (struct check){ .store = &f->store, .findings = f->findings, .repair = wanted };
		assert_int_equal(check_run(&f->check), 0);
		assert_int_equal(f->check.nfixes, wanted ? 2 : 0);
		assert_int_equal(f->check.damage, 1);
		assert_int_equal(f->check.fixable, 1);
		for (const struct check_fix *fix = f->check.fixes; fix; fix = fix->next)
			assert_int_equal(fix->kind, fix->lossy ? FIX_MOVE : FIX_REMOVE);
		check_end(&f->check);
	}
	store_close(&f->store, true);
}

/* Deeper than descriptors or PATH_MAX would allow if each level held one. */
static void depth_is_no_limit(void **state)
{
	struct fixture *f = *state;
	struct dir at = f->root, next;

	for (int i = 0; i < 300; i++) {
		put_dir(&at, "a directory with a name", &next);
		if (at.fd != f->root.fd)
			(void)close(at.fd);
		at = next;
	}
	put_file(f, &at, "deep");
	(void)close(at.fd);
	expect(f, 0, 0, NULL);
	assert_int_equal(f->check.directories, 301);
	assert_int_equal(f->check.files, 1);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_sound_store_is_clean),
		cmocka_unit_test_setup_teardown(a_sound_store_is_clean, setup_siv32, teardown),
		cmocka_unit_test_setup_teardown(a_sound_store_is_clean, setup_plain, teardown),
		T(page_zero_is_judged),
		T(a_stale_marker_puts_sizes_in_doubt),
		T(directory_ids_are_judged),
		T(the_root_must_be_its_own),
		T(foreign_things_are_left_alone),
		T(halves_of_long_names),
		T(files_turned_into_other_things),
		T(copies_of_descriptors),
		T(strays_of_the_store),
		T(what_was_promised),
		T(fixes_are_listed),
		T(depth_is_no_limit),
	};

	if (secret_init(true) < 0)
		return 1;
	return cmocka_run_group_tests_name("check", tests, NULL, NULL);
}
