/* Sealing and opening units: vectors, every refusal, the pool of keyed contexts. */
#include "vectors.h"

#include <errno.h>
#include <pthread.h>

#include "block.h"
#include "kdf.h"
#include "secret.h"

/* The file of section 17. Static: block_file points to its key. */
static struct file_keys keys;

static struct block_file vector_file(uint8_t suite)
{
	const struct context_ids ids = vector_ids(suite);
	struct block_file file = { .serial = block_serial(), .suite = suite, .key = keys.page };
	VECTOR_SECRET(secret);

	memcpy(file.store, ids.store, CONTEXT_ID);
	vector_fill(file.file, CONTEXT_ID, 0xc0);
	assert_int_equal(kdf_file(&keys, secret, &ids, file.file), 0);
	return file;
}

static void fill_text(uint8_t *text, size_t n)
{
	for (size_t i = 0; i < n; i++)
		text[i] = (uint8_t)(i % 251);
}

static void check_page(uint8_t suite, const char *tag, const char *sha)
{
	const struct block_file file = vector_file(suite);
	uint8_t text[LAYOUT_BODY], back[LAYOUT_BODY], page[LAYOUT_PAGE];
	struct block_run run;
	uint64_t ver;
	VECTOR_RND(rnd);

	fill_text(text, sizeof(text));
	block_begin(&run, &file);
	assert_int_equal(block_seal_with_rnd(&run, UNIT_DATA, 300, 0x0102030405, rnd, text, page), 0);
	vector_assert(page + 4080, 16, tag);
	vector_assert_sha256(page, sizeof(page), sha);
	assert_int_equal(block_open(&run, UNIT_DATA, 300, page, back, &ver), 0);
	assert_int_equal(ver, 0x0102030405);
	assert_memory_equal(back, text, sizeof(text));
	block_end(&run);
}

static void test_page_vector(void **state)
{
	(void)state;
	check_page(
	    1, "bf10648a07613013e1ceb9fdf254969b", "2ba078ed6ec4cbc58072df4105844cfea1e6fa679f6f9fe014fc61e5a0902055");
	check_page(
	    2, "88d1eb9b5e4eb4f874a3cc53398b5525", "f9eaca3cf25198c7c206e7df3b012b3613bc28b5023cfa09f6d3434e4d86414e");
}

static void test_xaes_vectors(void **state)
{
	static const uint8_t nonce[] = "ABCDEFGHIJKLMNOPQRSTUVWX";
	static const uint8_t text[] = "XAES-256-GCM", aad[] = "c2sp.org/XAES-256-GCM";
	uint8_t key[32], out[12 + 16], back[12];

	(void)state;
	memset(key, 1, sizeof(key));
	assert_int_equal(block_seal_bytes(1, key, nonce, NULL, 0, text, 12, out), 0);
	vector_assert(out, sizeof(out), "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271");
	memset(key, 3, sizeof(key));
	assert_int_equal(block_seal_bytes(1, key, nonce, aad, 21, text, 12, out), 0);
	vector_assert(out, sizeof(out), "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d");
	assert_int_equal(block_open_bytes(1, key, nonce, aad, 21, out, sizeof(out), back), 0);
	assert_memory_equal(back, text, 12);
}

static void check_bytes(uint8_t suite, size_t n)
{
	static const uint8_t aad[] = "aad";
	uint8_t key[32], nonce[24], text[100], out[116], back[100];

	vector_fill(key, 32, 1);
	vector_fill(nonce, 24, 7);
	fill_text(text, n);
	assert_int_equal(block_seal_bytes(suite, key, nonce, aad, 3, text, n, out), 0);
	assert_int_equal(block_open_bytes(suite, key, nonce, aad, 3, out, n + 16, back), 0);
	assert_memory_equal(back, text, n);
	assert_int_equal(block_open_bytes(suite, key, nonce, aad, 2, out, n + 16, back), -EBADMSG);
	assert_true(bytes_zero(back, n));
	for (size_t i = 0; i < n + 16; i++) {
		out[i] ^= 0x80;
		assert_int_equal(block_open_bytes(suite, key, nonce, aad, 3, out, n + 16, back), -EBADMSG);
		out[i] ^= 0x80;
	}
	for (size_t cut = 0; cut < n + 16; cut++)
		assert_int_equal(block_open_bytes(suite, key, nonce, aad, 3, out, cut, back), -EBADMSG);
	nonce[23] ^= 1;
	assert_int_equal(block_open_bytes(suite, key, nonce, aad, 3, out, n + 16, back), -EBADMSG);
}

static void test_bytes(void **state)
{
	(void)state;
	for (uint8_t suite = 1; suite <= 2; suite++) {
		check_bytes(suite, 0);
		check_bytes(suite, 1);
		check_bytes(suite, 100);
	}
}

/* Everything a page is bound to, changed one at a time; and the same context must work again afterwards. */
static void check_refusals(uint8_t suite)
{
	const struct block_file file = vector_file(suite);
	struct block_file other = file;
	uint8_t text[LAYOUT_BODY], back[LAYOUT_BODY], page[LAYOUT_PAGE];
	struct block_run run, run2;
	uint64_t ver = 77;

	fill_text(text, sizeof(text));
	block_begin(&run, &file);
	assert_int_equal(block_seal(&run, UNIT_GROUP, 5, 9, text, page), 0);
	for (size_t i = 0; i < LAYOUT_PAGE; i += i < 20 || i >= LAYOUT_PAGE - 20 ? 1 : 52) {
		page[i] ^= 4;
		assert_int_equal(block_open(&run, UNIT_GROUP, 5, page, back, &ver), -EBADMSG);
		assert_true(bytes_zero(back, sizeof(back)));
		page[i] ^= 4;
	}
	assert_int_equal(ver, 77);
	assert_int_equal(block_open(&run, UNIT_GROUP, 6, page, back, &ver), -EBADMSG);
	assert_int_equal(block_open(&run, UNIT_GROUP, 5 + 106, page, back, &ver), -EBADMSG);
	assert_int_equal(block_open(&run, UNIT_DATA, 5, page, back, &ver), -EBADMSG);
	assert_int_equal(block_open(&run, UNIT_L1, 5, page, back, &ver), -EBADMSG);
	other.file[0] ^= 1;
	block_begin(&run2, &other);
	assert_int_equal(block_open(&run2, UNIT_GROUP, 5, page, back, &ver), -EBADMSG);
	block_end(&run2);
	other = file;
	other.store[15] ^= 1;
	block_begin(&run2, &other);
	assert_int_equal(block_open(&run2, UNIT_GROUP, 5, page, back, &ver), -EBADMSG);
	block_end(&run2);
	assert_int_equal(block_open(&run, UNIT_GROUP, 5, page, back, &ver), 0);
	assert_int_equal(ver, 9);
	assert_memory_equal(back, text, sizeof(text));
	block_end(&run);
}

static void test_refusals(void **state)
{
	(void)state;
	check_refusals(1);
	check_refusals(2);
}

/* The page in pieces, opened where its ciphertext lies: the same answers as in one piece. */
static void check_in_place(uint8_t suite)
{
	const struct block_file file = vector_file(suite);
	uint8_t text[LAYOUT_BODY], page[LAYOUT_PAGE], place[LAYOUT_BODY], *meta = page, *tag = page + 4080;
	struct block_run run;
	uint64_t ver = 0;

	fill_text(text, sizeof(text));
	block_begin(&run, &file);
	assert_int_equal(block_seal(&run, UNIT_DATA, 5, 9, text, page), 0);
	for (size_t i = 0; i <= LAYOUT_PAGE; i += i < 20 || i >= LAYOUT_PAGE - 20 ? 1 : 52) {
		bool damaged = i < LAYOUT_PAGE;

		page[damaged ? i : 0] ^= damaged ? 4 : 0;
		memcpy(place, page + BLOCK_META, sizeof(place));
		assert_int_equal(
		    block_open_in_place(&run, UNIT_DATA, 5, meta, place, tag, &ver), damaged ? -EBADMSG : 0);
		assert_true(damaged ? bytes_zero(place, sizeof(place)) : memcmp(place, text, sizeof(text)) == 0);
		page[damaged ? i : 0] ^= damaged ? 4 : 0;
	}
	assert_int_equal(ver, 9);
	memset(page, 0, sizeof(page));
	memset(place, 0, sizeof(place));
	assert_int_equal(block_open_in_place(&run, UNIT_DATA, 5, meta, place, tag, &ver), -ENODATA);
	tag[15] = 1;
	assert_int_equal(block_open_in_place(&run, UNIT_DATA, 5, meta, place, tag, &ver), -EBADMSG);
	block_end(&run);
}

static void test_in_place(void **state)
{
	(void)state;
	check_in_place(1);
	check_in_place(2);
}

static void test_absent_and_versions(void **state)
{
	const struct block_file file = vector_file(1);
	uint8_t text[LAYOUT_BODY] = { 0 }, page[LAYOUT_PAGE] = { 0 };
	struct block_run run;
	uint64_t ver = 77;

	(void)state;
	block_begin(&run, &file);
	assert_int_equal(block_open(&run, UNIT_DATA, 0, page, text, &ver), -ENODATA);
	page[4095] = 1; /* version 0, yet not absent */
	assert_int_equal(block_open(&run, UNIT_DATA, 0, page, text, &ver), -EBADMSG);
	assert_int_equal(block_seal(&run, UNIT_DATA, 0, 0, text, page), -EFBIG);
	assert_int_equal(block_seal(&run, UNIT_DATA, 0, BLOCK_VER_MAX + 1, text, page), -EFBIG);
	assert_int_equal(block_seal(&run, UNIT_DATA, 0, BLOCK_VER_MAX, text, page), 0);
	assert_int_equal(block_open(&run, UNIT_DATA, 0, page, text, &ver), 0);
	assert_int_equal(ver, BLOCK_VER_MAX);
	page[5] |= 0x80; /* bit 47 */
	assert_int_equal(block_open(&run, UNIT_DATA, 0, page, text, &ver), -EBADMSG);
	block_end(&run);
}

static void test_root(void **state)
{
	(void)state;
	for (uint8_t suite = 1; suite <= 2; suite++) {
		const struct block_file file = vector_file(suite);
		uint8_t text[BLOCK_ROOT_TEXT], back[BLOCK_ROOT_TEXT], root[BLOCK_ROOT];
		struct block_run run;

		fill_text(text, sizeof(text));
		block_begin(&run, &file);
		assert_int_equal(block_seal_root(&run, 3, 70000, text, root), 0);
		assert_int_equal(block_open_root(&run, 3, 70000, root, back), 0);
		assert_memory_equal(back, text, sizeof(text));
		assert_int_equal(block_open_root(&run, 4, 70000, root, back), -EBADMSG);
		assert_int_equal(block_open_root(&run, 3, 70001, root, back), -EBADMSG);
		assert_int_equal(block_open_root(&run, 3, 0, root, back), -EBADMSG);
		assert_true(bytes_zero(back, sizeof(back)));
		root[0]++; /* the version in clear, and the caller's, forged alike */
		assert_int_equal(block_open_root(&run, 3, 70001, root, back), -EBADMSG);
		assert_int_equal(block_seal_root(&run, 3, BLOCK_VER_MAX + 1, text, root), -EFBIG);
		block_end(&run);
		block_end(&run);
	}
}

/* More groups, and more upper halves of versions, than the pool holds, in both directions. */
static void test_many_contexts(void **state)
{
	enum { GROUPS = 400 };
	const struct block_file file = vector_file(1);
	static uint8_t pages[GROUPS][LAYOUT_PAGE];
	uint8_t text[LAYOUT_BODY], back[LAYOUT_BODY];
	struct block_run run;
	uint64_t ver;

	(void)state;
	fill_text(text, sizeof(text));
	block_begin(&run, &file);
	for (uint64_t g = 0; g < GROUPS; g++)
		assert_int_equal(block_seal(&run, UNIT_DATA, 4 + 106 * g, 1 + (g % 7 << 24), text, pages[g]), 0);
	for (int round = 0; round < 2; round++) {
		for (uint64_t g = GROUPS; g-- > 0;) {
			assert_int_equal(block_open(&run, UNIT_DATA, 4 + 106 * g, pages[g], back, &ver), 0);
			assert_int_equal(ver, 1 + (g % 7 << 24));
			assert_memory_equal(back, text, sizeof(text));
		}
		block_end(&run);
		block_forget(file.serial);
	}
}

/* Two derivations of different keys never share a context, even for equal selectors. */
static void test_serials_separate(void **state)
{
	struct block_file one = vector_file(1), two = one;
	uint8_t key[32], text[LAYOUT_BODY], a[LAYOUT_PAGE], b[LAYOUT_PAGE];
	struct block_run run;
	VECTOR_RND(rnd);

	(void)state;
	vector_fill(key, 32, 9);
	two.serial = block_serial();
	two.key = key;
	assert_true(one.serial != two.serial);
	fill_text(text, sizeof(text));
	block_begin(&run, &one);
	assert_int_equal(block_seal_with_rnd(&run, UNIT_DATA, 1, 1, rnd, text, a), 0);
	block_end(&run);
	block_begin(&run, &two);
	assert_int_equal(block_seal_with_rnd(&run, UNIT_DATA, 1, 1, rnd, text, b), 0);
	block_end(&run);
	assert_memory_not_equal(a + 16, b + 16, 64);
}

static void test_fresh_randomness(void **state)
{
	const struct block_file file = vector_file(1);
	uint8_t text[LAYOUT_BODY] = { 0 }, a[LAYOUT_PAGE], b[LAYOUT_PAGE];
	struct block_run run;

	(void)state;
	block_begin(&run, &file);
	assert_int_equal(block_seal(&run, UNIT_DATA, 1, 1, text, a), 0);
	assert_int_equal(block_seal(&run, UNIT_DATA, 1, 1, text, b), 0);
	block_end(&run);
	assert_memory_not_equal(a + 6, b + 6, 10);
}

struct job {
	const struct block_file *file;
	uint64_t failures;
};

/* All threads in the same few groups, sealing and opening alternately. */
static void *hammer(void *arg)
{
	struct job *job = arg;
	uint8_t text[LAYOUT_BODY], back[LAYOUT_BODY], page[LAYOUT_PAGE];
	struct block_run run;
	uint64_t ver;

	fill_text(text, sizeof(text));
	for (uint64_t i = 0; i < 600; i++) {
		block_begin(&run, job->file);
		if (block_seal(&run, UNIT_DATA, i % 500, i + 1, text, page) != 0 ||
		    block_open(&run, UNIT_DATA, i % 500, page, back, &ver) != 0 || ver != i + 1 ||
		    !bytes_equal(back, text, sizeof(text)))
			job->failures++;
		block_end(&run);
	}
	return NULL;
}

static void test_threads(void **state)
{
	const struct block_file file = vector_file(1);
	struct job jobs[8];
	pthread_t threads[8];

	(void)state;
	for (int i = 0; i < 8; i++) {
		jobs[i] = (struct job){ &file, 0 };
		assert_int_equal(pthread_create(&threads[i], NULL, hammer, &jobs[i]), 0);
	}
	for (int i = 0; i < 8; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_int_equal(jobs[i].failures, 0);
	}
	block_forget_all();
}

static void test_suites(void **state)
{
	(void)state;
	assert_false(block_suite_known(0));
	assert_true(block_suite_known(1));
	assert_true(block_suite_known(2));
	assert_false(block_suite_known(3));
	assert_false(block_suite_known(257));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_page_vector),
		cmocka_unit_test(test_xaes_vectors),
		cmocka_unit_test(test_bytes),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_in_place),
		cmocka_unit_test(test_absent_and_versions),
		cmocka_unit_test(test_root),
		cmocka_unit_test(test_many_contexts),
		cmocka_unit_test(test_serials_separate),
		cmocka_unit_test(test_fresh_randomness),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_suites),
	};

	if (secret_init(true) != 0)
		return 1;
	return cmocka_run_group_tests_name("block", tests, NULL, NULL);
}
