/* A store from creation to its end: exclusive use, and descriptors that exist twice. */
#include <sodium.h>

#include "bytes.h"
#include "store_fixture.h"

static const char domain_file[] = "domains/b0b1b2b3b4b5b6b7b8b9babbbcbdbebf";

/* ---- creation */

static void create_and_open(void **state)
{
	struct store *s;
	struct stat st;
	uint16_t index;
	uint8_t id[16];

	(void)state;
	assert_int_equal(store_creatable(path, false, why), 0);
	assert_int_equal(store_create(path, recipe(), why), 0);
	assert_int_equal(store_creatable(path, false, why), -EEXIST);
	assert_non_null(strstr(why, "already"));
	assert_int_equal(store_create(path, recipe(), why), -EEXIST);
	assert_int_equal(stat(in_store(""), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(stat(in_store("store"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(count(path), 1);
	assert_int_equal(count(in_store("")), 5);
	s = mounted(&rw);
	assert_int_equal(count(in_store("mounts")), 1);
	assert_string_equal(s->path, path);
	assert_int_equal(s->desc.n, 1);
	assert_int_equal(s->desc.seq, 1);
	assert_string_equal(s->desc.by, "byokfs test");
	assert_memory_equal(s->ids.store, bk.ids.store, 16);
	assert_memory_equal(s->ids.domain, bk.ids.domain, 16);
	assert_int_equal(s->ids.suite, 1);
	assert_string_equal(s->domain.slot[0].key, "keyfile:0011223344556677");
	assert_int_equal(s->domain.ngen, 1);
	assert_int_equal(dir_read_id(s->fd, bk.names, &index, id), 0);
	assert_memory_equal(id, bk.root.id, 16);
	unmounted(s, true);
	assert_int_equal(count(in_store("mounts")), 0);
}

static void create_refuses(void **state)
{
	char file[192], missing[192];

	(void)state;
	(void)snprintf(missing, sizeof(missing), "%s/none", path);
	assert_int_equal(store_creatable(missing, true, why), -ENOENT);
	(void)snprintf(file, sizeof(file), "%s/lost+found", path);
	assert_int_equal(mkdir(file, 0700), 0);
	assert_int_equal(store_creatable(path, true, why), 0);
	(void)snprintf(file, sizeof(file), "%s/.hidden", path);
	spew(file, "x", 1);
	assert_int_equal(store_creatable(path, true, why), -ENOTEMPTY);
	assert_non_null(strstr(why, "'.hidden'"));
	assert_int_equal(store_create(path, recipe(), why), -ENOTEMPTY);
	assert_int_equal(store_creatable(file, true, why), -EINVAL);
	assert_int_equal(count(path), 2);
}

/* What the descriptor cannot express stops creation; the directory is empty again. */
static void create_undoes(void **state)
{
	struct store_create *p = recipe();

	(void)state;
	p->by = "not\nclean";
	assert_true(store_create(path, p, why) < 0);
	assert_non_null(strstr(why, path));
	assert_int_equal(count(path), 0);
	assert_int_equal(store_create(path, recipe(), why), 0);
}

/* ---- opening */

static void one_mount_at_a_time(void **state)
{
	struct store *s = mounted(&rw), *reader;

	(void)state;
	assert_int_equal(open_only(&rw), -EBUSY);
	assert_non_null(strstr(why, ".byokfs/lock"));
	assert_non_null(strstr(why, path));
	reader = mounted(&ro);
	assert_int_equal(count(in_store("mounts")), 1);
	unmounted(reader, true);
	assert_int_equal(count(in_store("mounts")), 1);
	unmounted(s, true);
	assert_int_equal(open_only(&rw), 0);
}

static void not_a_store(void **state)
{
	(void)state;
	assert_int_equal(open_only(&rw), -ENOENT);
	assert_non_null(strstr(why, "not a byokfs store"));
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(open_only(&rw), -ENOENT);
	spew(path, "x", 1);
	assert_int_equal(open_only(&rw), -EINVAL);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(mkdir(in_store(""), 0700), 0);
	assert_int_equal(open_only(&rw), -ENOENT);
	assert_int_equal(rmdir(in_store("")) && errno == ENOTEMPTY, 1); /* the lock */
	assert_int_equal(unlink(in_store("lock")), 0);
	assert_int_equal(mkfifo(in_store("lock"), 0600), 0);
	assert_int_equal(open_only(&rw), -EINVAL);
}

/* ---- copies */

static void damaged_copies_come_back(void **state)
{
	const char *const names[] = { "store", domain_file };

	(void)state;
	for (int which = 0; which < 2; which++) {
		char name[2][64];
		char *good, *now;
		size_t len, n;

		(void)snprintf(name[0], 64, "%s", names[which]);
		(void)snprintf(name[1], 64, "%s~", names[which]);
		good = slurp(in_store(name[0]), &len);
		for (int copy = 0; copy < 2; copy++)
			for (size_t at = 0; at <= len; at += 13) {
				/* One byte each, and once missing, and once cut short. */
				if (at + 13 > len)
					assert_int_equal(unlink(in_store(name[copy])), 0);
				else if (at == 26)
					spew(in_store(name[copy]), good, len / 2);
				else {
					good[at] ^= 1;
					spew(in_store(name[copy]), good, len);
					good[at] ^= 1;
				}
				assert_int_equal(authenticate_only(), 0);
				for (int i = 0; i < 2; i++) {
					now = slurp(in_store(name[i]), &n);
					assert_int_equal(n, len);
					assert_memory_equal(now, good, len);
					free(now);
				}
			}
		/* Both. */
		good[20] ^= 1;
		spew(in_store(name[0]), good, len);
		spew(in_store(name[1]), good, len);
		good[20] ^= 1;
		assert_int_equal(open_only(&rw), -EINVAL);
		assert_non_null(strstr(why, "damaged"));
		assert_int_equal(unlink(in_store(name[0])), 0);
		assert_int_equal(open_only(&rw), -EINVAL);
		assert_int_equal(unlink(in_store(name[1])), 0);
		assert_int_equal(open_only(&rw), -ENOENT);
		spew(in_store(name[1]), good, len);
		assert_int_equal(authenticate_only(), 0);
		free(good);
	}
}

static void readers_restore_nothing(void **state)
{
	struct store *s;

	(void)state;
	assert_int_equal(unlink(in_store("store")), 0);
	s = mounted(&ro);
	unmounted(s, true);
	assert_int_equal(access(in_store("store"), F_OK), -1);
}

/* Replaces one occurrence and makes the sum right again, as somebody without keys can. */
static void forge(const char *name, const char *from, const char *to)
{
	uint8_t sum[32];
	size_t len;
	char *text = slurp(in_store(name), &len), hex[65];
	const char *found = strstr(text, from);

	assert_non_null(found);
	assert_int_equal(strlen(from), strlen(to));
	memcpy(text + (found - text), to, strlen(to));
	(void)crypto_hash_sha256(sum, (const uint8_t *)text, len - 69);
	bytes_hex(hex, sum, 32);
	memcpy(text + len - 65, hex, 64);
	spew(in_store(name), text, len);
	free(text);
}

static void forged_copies(void **state)
{
	char twin[64];
	size_t len;
	char *text;

	(void)state;
	(void)snprintf(twin, sizeof(twin), "%s~", domain_file);
	/* One copy forged: its MAC is bad, the other rules although its seq is lower. */
	forge("store", "\nseq=1", "\nseq=9");
	assert_int_equal(authenticate_only(), 0);
	text = slurp(in_store("store"), &len);
	assert_non_null(strstr(text, "\nseq=1\n"));
	free(text);
	forge(domain_file, "seal=file", "seal=keys");
	assert_int_equal(authenticate_only(), 0);
	/* Both. */
	forge("store", "names=siv64", "names=siv32");
	forge("store~", "names=siv64", "names=siv32");
	assert_int_equal(authenticate_only(), -EBADMSG);
	assert_non_null(strstr(why, "tampered"));
	forge("store", "names=siv32", "names=siv64");
	assert_int_equal(authenticate_only(), 0);
	/* The slots are open to rotators, the rest is not. */
	forge(domain_file, "a.key=keyfile:00", "a.key=keyfile:ff");
	forge(twin, "a.key=keyfile:00", "a.key=keyfile:ff");
	assert_int_equal(authenticate_only(), 0);
	forge(domain_file, "created=20", "created=21");
	forge(twin, "created=20", "created=21");
	assert_int_equal(authenticate_only(), -EBADMSG);
}

static void other_stores_and_versions(void **state)
{
	struct domain_keys other = bk.keys;
	struct store *s = new_store();

	(void)state;
	assert_int_equal(store_open(s, path, &rw, why), 0);
	other.commit[0] ^= 1;
	assert_int_equal(store_authenticate(s, &other, bk.names, why), -EBADMSG);
	store_close(s, false);
	/* A domain descriptor of another store, in one copy and in both. */
	forge(domain_file, "store=a0", "store=a1");
	assert_int_equal(authenticate_only(), 0);
	forge(domain_file, "store=a0", "store=a1");
	char twin[64];
	(void)snprintf(twin, sizeof(twin), "%s~", domain_file);
	forge(twin, "store=a0", "store=a1");
	assert_int_equal(open_only(&rw), -EBADMSG);
	forge(domain_file, "store=a1", "store=a0");
	assert_int_equal(authenticate_only(), 0);
	/* A newer version that is whole is not damage, even in one copy. */
	forge("store~", "byokfs-store 1", "byokfs-store 2");
	assert_int_equal(open_only(&rw), -EPROTONOSUPPORT);
	assert_non_null(strstr(why, "version"));
	forge("store", "byokfs-store 1", "byokfs-store 2");
	assert_int_equal(open_only(&ro), -EPROTONOSUPPORT);
	free(s);
}

static void root_id(void **state)
{
	char link[192], text[NAME_DIR_ID_TEXT + 1];
	uint8_t id[16] = { 1 };

	(void)state;
	(void)snprintf(link, sizeof(link), "%s/" NAME_DIR_FILE, path);
	assert_int_equal(unlink(link), 0);
	assert_int_equal(authenticate_only(), -EBADMSG);
	name_dir_make(bk.names, 0, id, text);
	assert_int_equal(symlink(text, link), 0);
	assert_int_equal(authenticate_only(), -EBADMSG);
	assert_int_equal(unlink(link), 0);
	name_dir_make(bk.names, 1, bk.root.id, text);
	assert_int_equal(symlink(text, link), 0);
	assert_int_equal(authenticate_only(), -EBADMSG);
}

static void rotation_writes_both(void **state)
{
	struct store *s = mounted(&rw);
	size_t a_len, b_len;
	char twin[64], *a, *b;

	(void)state;
	(void)snprintf(twin, sizeof(twin), "%s~", domain_file);
	s->domain.slot[1] = s->domain.slot[0];
	s->domain.slot[1].seq = 2;
	assert_int_equal(store_put_domain(s, &s->domain, why), 0);
	unmounted(s, true);
	a = slurp(in_store(domain_file), &a_len);
	b = slurp(in_store(twin), &b_len);
	assert_string_equal(a, b);
	assert_non_null(strstr(a, "\nb.seq=2\n"));
	assert_non_null(strstr(a, "\nseq=2\n"));
	free(a);
	free(b);
	/* Killed between the two: the newer rules and is copied. */
	s = mounted(&rw);
	assert_int_equal(s->domain.seq, 2);
	a = slurp(in_store(domain_file), &a_len);
	s->domain.slot[1].seq = 0;
	assert_int_equal(store_put_domain(s, &s->domain, why), 0);
	unmounted(s, true);
	spew(in_store(domain_file), a, a_len);
	free(a);
	s = mounted(&rw);
	assert_int_equal(s->domain.seq, 3);
	assert_int_equal(s->domain.slot[1].seq, 0);
	unmounted(s, true);
	a = slurp(in_store(domain_file), &a_len);
	assert_non_null(strstr(a, "\nseq=3\n"));
	free(a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FRESH(create_and_open),
		FRESH(create_refuses),
		FRESH(create_undoes),
		FRESH(not_a_store),
		TEST(one_mount_at_a_time),
		TEST(damaged_copies_come_back),
		TEST(readers_restore_nothing),
		TEST(forged_copies),
		TEST(other_stores_and_versions),
		TEST(root_id),
		TEST(rotation_writes_both),
	};

	return cmocka_run_group_tests_name("store", tests, backing_main_setup, NULL);
}
