/* Page 0: the vector of byokfs-format(5), section 17, and hostile pages. */
#include "vectors.h"

#include <errno.h>

#include "header.h"
#include "secret.h"

#define SLOT_A  512
#define SLOT_B  1024
#define STATE_A 1536
#define STATE_B 2048

struct fixture {
	struct context_ids ids;
	struct file_keys keys;
	uint8_t file[CONTEXT_ID];
	struct block_file block;
	struct header_ident ident;
	struct header_slot slot;
	uint8_t page[LAYOUT_PAGE];
};

/* The page of the vector: "hello", inline, slot A wrapped by the domain key. */
static void make_page(struct fixture *f)
{
	uint8_t iv[12], text[BLOCK_ROOT_TEXT] = "hello";
	struct domain_keys domain;
	struct block_run run;
	VECTOR_SECRET(secret);
	VECTOR_DOMAIN_SECRET(domain_secret);
	VECTOR_RND(rnd);

	memset(f, 0, sizeof(*f));
	f->ids = vector_ids(1);
	vector_fill(f->file, CONTEXT_ID, 0xc0);
	vector_fill(iv, sizeof(iv), 0x60);
	assert_int_equal(kdf_file(&f->keys, secret, &f->ids, f->file), 0);
	assert_int_equal(kdf_domain(&domain, domain_secret, &f->ids), 0);

	f->ident.suite = 1;
	memcpy(f->ident.store, f->ids.store, CONTEXT_ID);
	memcpy(f->ident.domain, f->ids.domain, CONTEXT_ID);
	memcpy(f->ident.file, f->file, CONTEXT_ID);
	memcpy(f->ident.commit, f->keys.commit, 32);
	header_put_ident(f->page, &f->ident, &f->keys);

	f->slot = (struct header_slot){
		.seq = 1,
		.wrap = HEADER_WRAP_DOMAIN,
		.sealed_at = 1767225600,
		.len = KDF_WRAP_BLOB,
	};
	assert_int_equal(kdf_wrap_with_iv(f->slot.blob, iv, secret, &domain, &f->ids, f->file), 0);
	header_put_slot(f->page, 0, &f->slot);

	header_put_state(
	    f->page, &(struct header_state){ .seq = 1, .clock = 1, .inlined = true }, f->keys.hdr, f->file);
	header_put_state(
	    f->page, &(struct header_state){ .seq = 2, .clock = 2, .size = 5, .inlined = true }, f->keys.hdr, f->file);

	f->block = (struct block_file){ .serial = block_serial(), .suite = 1, .key = f->keys.page };
	memcpy(f->block.store, f->ids.store, CONTEXT_ID);
	memcpy(f->block.file, f->file, CONTEXT_ID);
	block_begin(&run, &f->block);
	assert_int_equal(block_seal_root_with_rnd(&run, 2, 2, rnd, text, f->page + HEADER_ROOT_AT), 0);
	block_end(&run);
}

static int setup(void **state)
{
	static struct fixture f;

	make_page(&f);
	*state = &f;
	return 0;
}

static void test_vector(void **state)
{
	const struct fixture *f = *state;

	vector_assert(f->page + 480, 32, "49ddee4a01443d7525231c9e42944b52253a98a347007da6e9c6fe02f4ac944e");
	vector_assert(f->page + SLOT_A + 508, 4, "c5d66f3a");
	vector_assert(f->page + STATE_B + 480, 32, "650ef2837762a0df5575a69ba2e0823348770f2127098b7b4a860166eade63cd");
	vector_assert(f->page + 4080, 16, "5caff50a1eb3415427f9209363d01ae5");
	vector_assert_sha256(f->page, LAYOUT_PAGE, "f6fe3a86d82346aa9a05ac019c05508b99aaa24af349409b94c40187a80f50b3");
}

static void test_read_back(void **state)
{
	struct fixture *f = *state;
	uint8_t text[BLOCK_ROOT_TEXT];
	struct header_ident ident;
	struct header_slot slot;
	struct header_state st;
	struct block_run run;

	assert_int_equal(header_ident(f->page, &ident), 0);
	assert_memory_equal(&ident, &f->ident, sizeof(ident));
	assert_int_equal(header_verify_ident(f->page, &f->keys), 0);
	assert_int_equal(header_ruling_slot(f->page, &slot), 0);
	assert_int_equal(slot.wrap, HEADER_WRAP_DOMAIN);
	assert_int_equal(slot.sealed_at, 1767225600);
	assert_int_equal(slot.len, KDF_WRAP_BLOB);
	assert_memory_equal(slot.blob, f->slot.blob, HEADER_BLOB_MAX);
	assert_int_equal(header_slot(f->page, 1, &slot), -ENODATA);
	assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), 0);
	assert_int_equal(st.seq, 2);
	assert_int_equal(st.size, 5);
	assert_int_equal(st.clock, 2);
	assert_true(st.inlined);
	block_begin(&run, &f->block);
	assert_int_equal(block_open_root(&run, st.seq, st.clock, f->page + HEADER_ROOT_AT, text), 0);
	assert_string_equal((char *)text, "hello");
	block_end(&run);
}

static void test_unborn(void **state)
{
	static const uint8_t zero[LAYOUT_PAGE];
	struct header_ident ident;
	struct header_state st;
	struct header_slot slot;

	(void)state;
	assert_int_equal(header_ident(zero, &ident), -ENODATA);
	assert_int_equal(header_ruling_slot(zero, &slot), -EBADMSG);
	assert_int_equal(header_state_hint(zero, &st), -EBADMSG);
}

/* Either the decoder or the MAC refuses every changed bit. */
static void test_ident_flips(void **state)
{
	struct fixture *f = *state;
	struct header_ident ident;

	for (size_t i = 0; i < 512; i++) {
		for (int bit = 0; bit < 8; bit++) {
			f->page[i] ^= (uint8_t)(1 << bit);
			int parsed = header_ident(f->page, &ident);

			assert_true(parsed == -EBADMSG || header_verify_ident(f->page, &f->keys) == -EBADMSG);
			if (i < 11 || (i >= 12 && i < 16) || (i >= 96 && i < 480))
				assert_int_equal(parsed, -EBADMSG);
			f->page[i] ^= (uint8_t)(1 << bit);
		}
	}
	assert_int_equal(header_verify_ident(f->page, &f->keys), 0);
}

static void test_ident_other_keys(void **state)
{
	struct fixture *f = *state;
	struct file_keys keys = f->keys;

	keys.commit[31] ^= 1;
	assert_int_equal(header_verify_ident(f->page, &keys), -EBADMSG);
	keys = f->keys;
	keys.hdr[0] ^= 1;
	assert_int_equal(header_verify_ident(f->page, &keys), -EBADMSG);
}

static void fix_crc(uint8_t *slot)
{
	le32_put(slot + 508, bytes_crc32c(slot, 508));
}

static void test_slot_flips(void **state)
{
	struct fixture *f = *state;
	struct header_slot slot;

	for (size_t i = 0; i < 512; i++) {
		f->page[SLOT_A + i] ^= 1;
		assert_int_equal(header_slot(f->page, 0, &slot), -EBADMSG);
		f->page[SLOT_A + i] ^= 1;
	}
	f->page[SLOT_B + 100] = 1; /* state empty, but not all zero */
	assert_int_equal(header_slot(f->page, 1, &slot), -EBADMSG);
	fix_crc(f->page + SLOT_B);
	assert_int_equal(header_slot(f->page, 1, &slot), -EBADMSG);
}

/* A good checksum is no excuse. */
static void test_slot_fields(void **state)
{
	static const struct {
		size_t at;
		uint8_t value;
	} bad[] = {
		{ 4, 2 },
		{ 5, 0 },
		{ 5, 3 },
		{ 6, 1 },
		{ 8, 59 },
		{ 8, 61 },
		{ 8, 0 },
		{ 9, 2 },
		{ 9, 255 },
		{ 10, 1 },
		{ 11, 1 },
		{ 15, 1 },
		{ 64 + 60, 1 },
		{ 503, 1 },
		{ 504, 1 },
		{ 507, 1 },
	};
	struct fixture *f = *state;
	uint8_t saved[512];
	struct header_slot slot;

	memcpy(saved, f->page + SLOT_A, 512);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		f->page[SLOT_A + bad[i].at] = bad[i].value;
		fix_crc(f->page + SLOT_A);
		assert_int_equal(header_slot(f->page, 0, &slot), -EBADMSG);
		assert_int_equal(header_ruling_slot(f->page, &slot), -EBADMSG);
		memcpy(f->page + SLOT_A, saved, 512);
	}
	assert_int_equal(header_slot(f->page, 0, &slot), 0);
}

static struct header_slot kms_slot(uint32_t seq, uint16_t len)
{
	struct header_slot slot = {
		.seq = seq,
		.wrap = HEADER_WRAP_KMS,
		.generation = 7,
		.provider = 1,
		.sealed_at = 1800000000,
		.len = len,
	};

	memset(slot.key_hash, 0x11, sizeof(slot.key_hash));
	memset(slot.material, 0x22, sizeof(slot.material));
	memset(slot.blob, 0x33, len);
	return slot;
}

static void assert_same_slot(const struct header_slot *a, const struct header_slot *b)
{
	assert_int_equal(a->seq, b->seq);
	assert_int_equal(a->wrap, b->wrap);
	assert_int_equal(a->generation, b->generation);
	assert_int_equal(a->provider, b->provider);
	assert_memory_equal(a->key_hash, b->key_hash, sizeof(a->key_hash));
	assert_int_equal(a->sealed_at, b->sealed_at);
	assert_memory_equal(a->material, b->material, sizeof(a->material));
	assert_int_equal(a->len, b->len);
	assert_memory_equal(a->blob, b->blob, sizeof(a->blob));
}

static void test_slot_kms(void **state)
{
	struct fixture *f = *state;
	struct header_slot slot;

	for (unsigned len = 1; len <= HEADER_BLOB_MAX; len += len < 420 ? 19 : 1) {
		const struct header_slot put = kms_slot(5, (uint16_t)len);

		header_put_slot(f->page, 1, &put);
		assert_int_equal(header_slot(f->page, 1, &slot), 0);
		assert_same_slot(&slot, &put);
	}
	f->page[SLOT_B + 10] = 0; /* a KMS wrap without provider */
	fix_crc(f->page + SLOT_B);
	assert_int_equal(header_slot(f->page, 1, &slot), -EBADMSG);
	f->page[SLOT_B + 10] = 5;
	fix_crc(f->page + SLOT_B);
	assert_int_equal(header_slot(f->page, 1, &slot), -EBADMSG);
}

static void test_slot_rules(void **state)
{
	struct fixture *f = *state;
	struct header_slot a = kms_slot(8, 184), b = kms_slot(9, 184), slot;

	header_put_slot(f->page, 0, &a);
	header_put_slot(f->page, 1, &b);
	assert_int_equal(header_ruling_slot(f->page, &slot), 1);
	assert_int_equal(slot.seq, 9);
	a.seq = 10;
	header_put_slot(f->page, 0, &a);
	assert_int_equal(header_ruling_slot(f->page, &slot), 0);
	assert_int_equal(slot.seq, 10);
	f->page[SLOT_A + 300] ^= 1; /* broken: the other one */
	assert_int_equal(header_ruling_slot(f->page, &slot), 1);
	assert_int_equal(slot.seq, 9);
	header_clear_slot(f->page, 1);
	assert_true(bytes_zero(f->page + SLOT_B, 512));
	assert_int_equal(header_ruling_slot(f->page, &slot), -EBADMSG);
	header_clear_slot(f->page, 0);
	assert_int_equal(header_ruling_slot(f->page, &slot), -EBADMSG);
}

/* A damaged ruling state leaves the other, which the root's index then refuses; damage elsewhere changes nothing. */
static void test_state_flips(void **state)
{
	struct fixture *f = *state;
	struct header_state st;

	for (size_t i = 0; i < 512; i++) {
		f->page[STATE_B + i] ^= 1;
		assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), 0);
		assert_int_equal(st.seq, 1);
		f->page[STATE_B + i] ^= 1;
		f->page[STATE_A + i] ^= 1;
		assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), 0);
		assert_int_equal(st.seq, 2);
		f->page[STATE_A + i] ^= 1;
	}
	f->page[STATE_A + 9] ^= 1;
	f->page[STATE_B + 9] ^= 1;
	assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), -EBADMSG);
}

static void test_state_bound_to_file(void **state)
{
	struct fixture *f = *state;
	struct header_state st;
	uint8_t other[CONTEXT_ID], key[32];

	memcpy(other, f->file, CONTEXT_ID);
	other[0] ^= 1;
	assert_int_equal(header_state(f->page, f->keys.hdr, other, &st), -EBADMSG);
	memcpy(key, f->keys.hdr, 32);
	key[0] ^= 1;
	assert_int_equal(header_state(f->page, key, f->file, &st), -EBADMSG);
}

static void test_state_alternates(void **state)
{
	struct fixture *f = *state;
	struct header_state st, put = { .size = 100000, .csize = 4096, .clock = 50, .dclock = 49 };
	uint8_t before[512];

	for (put.seq = 3; put.seq < 20; put.seq++) {
		size_t quiet = put.seq % 2 ? STATE_B : STATE_A;

		memcpy(before, f->page + quiet, 512);
		put.clock++;
		header_put_state(f->page, &put, f->keys.hdr, f->file);
		assert_memory_equal(before, f->page + quiet, 512);
		assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), 0);
		assert_int_equal(st.seq, put.seq);
		assert_int_equal(st.size, put.size);
		assert_int_equal(st.csize, put.csize);
		assert_int_equal(st.clock, put.clock);
		assert_int_equal(st.dclock, put.dclock);
		assert_int_equal(st.inlined, put.inlined);
	}
}

/* A state in the wrong place is none: copying one over the other cannot confuse which rules. */
static void test_state_parity(void **state)
{
	struct fixture *f = *state;
	struct header_state st;
	uint8_t a[512];

	memcpy(a, f->page + STATE_A, 512);
	memcpy(f->page + STATE_A, f->page + STATE_B, 512);
	assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), 0);
	assert_int_equal(st.seq, 2);
	assert_int_equal(header_state_hint(f->page, &st), 0);
	assert_int_equal(st.seq, 2);
	memcpy(f->page + STATE_B, a, 512); /* exchanged */
	assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), -EBADMSG);
	assert_int_equal(header_state_hint(f->page, &st), -EBADMSG);
}

/* Authentic, but no version-1 writer makes it: refused, not replaced by the older state. */
static void test_state_ranges(void **state)
{
	static const struct header_state bad[] = {
		{ .seq = 4, .size = 1505, .clock = 9, .inlined = true },
		{ .seq = 4, .size = LAYOUT_SIZE_MAX + 1, .clock = 9 },
		{ .seq = 4, .size = 10, .csize = 11, .clock = 9 },
		{ .seq = 4, .size = 10, .clock = 0 },
		{ .seq = 4, .size = 10, .clock = BLOCK_VER_MAX + 1 },
		{ .seq = 4, .size = 10, .clock = 9, .dclock = 10 },
	};
	struct fixture *f = *state;
	struct header_state st;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		header_put_state(f->page, &bad[i], f->keys.hdr, f->file);
		assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), -EBADMSG);
		assert_int_equal(header_state_hint(f->page, &st), 0); /* state A, seq 1 */
		assert_int_equal(st.seq, 1);
	}
	header_put_state(f->page, &(struct header_state){ .seq = 4, .size = LAYOUT_SIZE_MAX, .clock = BLOCK_VER_MAX },
	    f->keys.hdr, f->file);
	assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), 0);
}

static void remac(struct fixture *f, size_t at)
{
	crypto_auth_hmacsha256_state mac;

	(void)crypto_auth_hmacsha256_init(&mac, f->keys.hdr, 32);
	(void)crypto_auth_hmacsha256_update(&mac, (const uint8_t *)"S", 1);
	(void)crypto_auth_hmacsha256_update(&mac, f->file, CONTEXT_ID);
	(void)crypto_auth_hmacsha256_update(&mac, f->page + at, 480);
	(void)crypto_auth_hmacsha256_final(&mac, f->page + at + 480);
}

/* Section 15: a reader that finds anything in reserved bytes answers EIO. */
static void test_state_reserved(void **state)
{
	static const size_t at[] = { 41, 47, 48, 95, 96, 479 };
	struct fixture *f = *state;
	struct header_state st;

	for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		f->page[STATE_B + at[i]] = 1;
		remac(f, STATE_B);
		assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), -EBADMSG);
		f->page[STATE_B + at[i]] = 0;
	}
	f->page[STATE_B + 40] = 2;
	remac(f, STATE_B);
	assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), -EBADMSG);
	f->page[STATE_B + 40] = 1;
	remac(f, STATE_B);
	assert_int_equal(header_state(f->page, f->keys.hdr, f->file, &st), 0);
}

static void test_state_hint(void **state)
{
	struct fixture *f = *state;
	struct header_state st;

	assert_int_equal(header_state_hint(f->page, &st), 0);
	assert_int_equal(st.seq, 2);
	assert_int_equal(st.size, 5);
	memset(f->page + STATE_B + 480, 0, 32); /* needs no MAC */
	assert_int_equal(header_state_hint(f->page, &st), 0);
	assert_int_equal(st.seq, 2);
	le64_put(f->page + STATE_B + 8, UINT64_MAX);
	assert_int_equal(header_state_hint(f->page, &st), 0);
	assert_int_equal(st.seq, 1);
	memset(f->page + STATE_A, 0, 512);
	assert_int_equal(header_state_hint(f->page, &st), -EBADMSG);
}

static void test_records(void **state)
{
	uint8_t buf[8] = { 0, 0, 0, 0, 0, 0, 0xaa, 0xbb };

	(void)state;
	rec_put(buf, REC_H | 0x123456789abc);
	assert_int_equal(rec_get(buf), REC_H | 0x123456789abc);
	assert_int_equal(REC_MIN(rec_get(buf)), 0x123456789abc);
	rec_put(buf, BLOCK_VER_MAX);
	assert_int_equal(rec_get(buf) & REC_H, 0);
	assert_int_equal(buf[6], 0xaa);
	assert_int_equal(HEADER_GROUP_REC(105) + 6, 4028);
	assert_int_equal(HEADER_NODE_REC(672), 4032);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_vector, setup),
		cmocka_unit_test_setup(test_read_back, setup),
		cmocka_unit_test(test_unborn),
		cmocka_unit_test_setup(test_ident_flips, setup),
		cmocka_unit_test_setup(test_ident_other_keys, setup),
		cmocka_unit_test_setup(test_slot_flips, setup),
		cmocka_unit_test_setup(test_slot_fields, setup),
		cmocka_unit_test_setup(test_slot_kms, setup),
		cmocka_unit_test_setup(test_slot_rules, setup),
		cmocka_unit_test_setup(test_state_flips, setup),
		cmocka_unit_test_setup(test_state_bound_to_file, setup),
		cmocka_unit_test_setup(test_state_alternates, setup),
		cmocka_unit_test_setup(test_state_parity, setup),
		cmocka_unit_test_setup(test_state_ranges, setup),
		cmocka_unit_test_setup(test_state_reserved, setup),
		cmocka_unit_test_setup(test_state_hint, setup),
		cmocka_unit_test(test_records),
	};

	if (secret_init(true) != 0)
		return 1;
	return cmocka_run_group_tests_name("header", tests, NULL, NULL);
}
