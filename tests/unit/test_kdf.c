/* Derivations and wrap 2 against the vectors of byokfs-format(5), section 17. */
#include "vectors.h"

#include <errno.h>

#include "kdf.h"

static void test_file_keys(void **state)
{
	const struct context_ids ids = vector_ids(1);
	struct file_keys keys;
	VECTOR_SECRET(secret);
	VECTOR_FILE_ID(file);

	(void)state;
	assert_int_equal(kdf_file(&keys, secret, &ids, file), 0);
	vector_assert(keys.page, 32, "57b3a0a9d67e59b9bc4d537c1e97eea53ab9ffc011fcd639b4efb8ae85c45072");
	vector_assert(keys.hdr, 32, "879cf560cc3eb516da02486553302d7e06356665a983e342228ce2b49fea70b0");
	vector_assert(keys.commit, 32, "59620efda908e84c8655ea3dad3710da5368a50eb09ef0e747149941a66e05fc");
}

static void test_file_keys_suite_2(void **state)
{
	const struct context_ids ids = vector_ids(2);
	struct file_keys keys;
	VECTOR_SECRET(secret);
	VECTOR_FILE_ID(file);

	(void)state;
	assert_int_equal(kdf_file(&keys, secret, &ids, file), 0);
	vector_assert(keys.page, 32, "2369fea5e1156cd06adf48724c89663b558d80c4ef1fac5907d305fc06d91d81");
}

static void test_domain_keys(void **state)
{
	const struct context_ids ids = vector_ids(1);
	struct domain_keys keys;
	VECTOR_DOMAIN_SECRET(secret);

	(void)state;
	assert_int_equal(kdf_domain(&keys, secret, &ids), 0);
	vector_assert(keys.dek, 64,
	    "dd24e01edf33e95d0eed1c61be877461d667ed52d7c5bc62c17431717a565e5a"
	    "36843256418974ef9eca36b83eb938b8fc44057f7fa53ac8cdeab3c0dad62f1b");
	vector_assert(keys.names, 64,
	    "79a32e5ff1f37296e99ec21171eace021ac87e980b5c5bf74ae75cbf954a8b3f"
	    "d33f4e5259ae8ffb112019ca9b135d9a85f68bcb9852e5bb39a7e43eec544459");
	vector_assert(keys.commit, 32, "c0b394fef8a0a6e9df0f5935883bfb6db84d4cf6a013bbedf5928a11f8ae9667");
}

static void test_labels_separate(void **state)
{
	const struct context_ids ids = vector_ids(1);
	struct domain_keys k;
	VECTOR_DOMAIN_SECRET(secret);

	(void)state;
	assert_int_equal(kdf_domain(&k, secret, &ids), 0);
	const uint8_t *key[] = { k.dek, k.commit, k.names, k.links, k.xnames, k.dirs, k.xattrs, k.desc, k.store };

	for (size_t i = 0; i < sizeof(key) / sizeof(key[0]); i++)
		for (size_t j = 0; j < i; j++)
			assert_memory_not_equal(key[i], key[j], 32);
}

static void test_every_input_matters(void **state)
{
	const struct context_ids ids = vector_ids(1);
	struct file_keys base, keys;
	VECTOR_SECRET(secret);
	VECTOR_FILE_ID(file);

	(void)state;
	assert_int_equal(kdf_file(&base, secret, &ids, file), 0);
	for (int which = 0; which < 5; which++) {
		struct context_ids other = ids;
		uint8_t *changed[] = { secret, file, other.store, other.domain, &other.suite };

		changed[which][0] ^= 1;
		assert_int_equal(kdf_file(&keys, secret, &other, file), 0);
		assert_memory_not_equal(keys.page, base.page, 32);
		assert_memory_not_equal(keys.hdr, base.hdr, 32);
		assert_memory_not_equal(keys.commit, base.commit, 32);
		changed[which][0] ^= 1;
	}
}

static const char wrapped[] = "606162636465666768696a6b51667499addde7648a68ffbab04da1f47af94c89ea05afa21e47c77f91fd8373"
                              "426a3b32a6672bd2bcb3b839a1032a7e";

static void test_wrap_vector(void **state)
{
	const struct context_ids ids = vector_ids(1);
	struct domain_keys keys;
	uint8_t iv[12], blob[KDF_WRAP_BLOB], back[KDF_SECRET];
	VECTOR_SECRET(secret);
	VECTOR_DOMAIN_SECRET(domain_secret);
	VECTOR_FILE_ID(file);

	(void)state;
	vector_fill(iv, sizeof(iv), 0x60);
	assert_int_equal(kdf_domain(&keys, domain_secret, &ids), 0);
	assert_int_equal(kdf_wrap_with_iv(blob, iv, secret, &keys, &ids, file), 0);
	vector_assert(blob, sizeof(blob), wrapped);
	assert_int_equal(kdf_unwrap(back, blob, &keys, &ids, file), 0);
	assert_memory_equal(back, secret, sizeof(back));
}

static void test_wrap_is_random(void **state)
{
	const struct context_ids ids = vector_ids(2);
	struct domain_keys keys;
	uint8_t one[KDF_WRAP_BLOB], two[KDF_WRAP_BLOB], back[KDF_SECRET];
	VECTOR_SECRET(secret);
	VECTOR_DOMAIN_SECRET(domain_secret);
	VECTOR_FILE_ID(file);

	(void)state;
	assert_int_equal(kdf_domain(&keys, domain_secret, &ids), 0);
	assert_int_equal(kdf_wrap(one, secret, &keys, &ids, file), 0);
	assert_int_equal(kdf_wrap(two, secret, &keys, &ids, file), 0);
	assert_memory_not_equal(one, two, sizeof(one));
	assert_int_equal(kdf_unwrap(back, two, &keys, &ids, file), 0);
	assert_memory_equal(back, secret, sizeof(back));
}

static void test_unwrap_refuses(void **state)
{
	const struct context_ids ids = vector_ids(1);
	const uint8_t zero[KDF_SECRET] = { 0 };
	struct context_ids other = ids;
	struct domain_keys keys;
	uint8_t blob[KDF_WRAP_BLOB], back[KDF_SECRET];
	VECTOR_DOMAIN_SECRET(domain_secret);
	VECTOR_FILE_ID(file);

	(void)state;
	assert_int_equal(kdf_domain(&keys, domain_secret, &ids), 0);
	assert_int_equal(bytes_unhex(blob, sizeof(blob), wrapped, strlen(wrapped)), 0);
	for (size_t i = 0; i < sizeof(blob); i++) {
		blob[i] ^= 0x10;
		memset(back, 0xff, sizeof(back));
		assert_int_equal(kdf_unwrap(back, blob, &keys, &ids, file), -EBADMSG);
		assert_memory_equal(back, zero, sizeof(back));
		blob[i] ^= 0x10;
	}
	file[3] ^= 1;
	assert_int_equal(kdf_unwrap(back, blob, &keys, &ids, file), -EBADMSG);
	file[3] ^= 1;
	other.store[0] ^= 1;
	assert_int_equal(kdf_unwrap(back, blob, &keys, &other, file), -EBADMSG);
	assert_int_equal(kdf_unwrap(back, blob, &keys, &ids, file), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_file_keys),
		cmocka_unit_test(test_file_keys_suite_2),
		cmocka_unit_test(test_domain_keys),
		cmocka_unit_test(test_labels_separate),
		cmocka_unit_test(test_every_input_matters),
		cmocka_unit_test(test_wrap_vector),
		cmocka_unit_test(test_wrap_is_random),
		cmocka_unit_test(test_unwrap_refuses),
	};

	return cmocka_run_group_tests_name("kdf", tests, NULL, NULL);
}
