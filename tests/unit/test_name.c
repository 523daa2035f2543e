/* Names, directory ids, links and attributes: the vectors of byokfs-format(5), section 17, and hostile input. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>
#include <openssl/evp.h>

#include "../../src/name_siv.h"
#include "bytes.h"
#include "name.h"
#include "secret.h"

struct fixture {
	struct context_ids ids;
	struct domain_keys keys;
	uint8_t file[16], dirid[16];
	struct name_keys *siv64, *siv32, *plain;
};

static struct fixture fx;

static void count_up(uint8_t *p, uint8_t first, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (uint8_t)(first + i);
}

static int setup(void **state)
{
	uint8_t secret[32];

	(void)state;
	fx.ids.suite = 1;
	count_up(secret, 0x20, sizeof(secret));
	count_up(fx.ids.store, 0xa0, 16);
	count_up(fx.ids.domain, 0xb0, 16);
	count_up(fx.file, 0xc0, 16);
	count_up(fx.dirid, 0xd0, 16);
	return kdf_domain(&fx.keys, secret, &fx.ids) || name_open(&fx.siv64, NAME_SIV64, &fx.keys, &fx.ids) ||
	    name_open(&fx.siv32, NAME_SIV32, &fx.keys, &fx.ids) || name_open(&fx.plain, NAME_PLAIN, &fx.keys, &fx.ids);
}

static int teardown(void **state)
{
	(void)state;
	name_free(fx.siv64);
	name_free(fx.siv32);
	name_free(fx.plain);
	name_free(NULL);
	return 0;
}

/* ---- SIV ------------------------------------------------------------------------------------ */

static void openssl_siv(const uint8_t key[64], const char *ad1, const uint8_t *ad2, size_t ad2len, const uint8_t *text,
    size_t n, uint8_t *out)
{
	EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-256-SIV", NULL);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	int len = 0;

	assert_non_null(cipher);
	assert_int_equal(EVP_EncryptInit_ex(ctx, cipher, NULL, key, NULL), 1);
	assert_int_equal(EVP_EncryptUpdate(ctx, NULL, &len, (const uint8_t *)ad1, (int)strlen(ad1)), 1);
	assert_int_equal(EVP_EncryptUpdate(ctx, NULL, &len, ad2, (int)ad2len), 1);
	assert_int_equal(EVP_EncryptUpdate(ctx, out + 16, &len, text, (int)n), 1);
	assert_int_equal(len, n);
	assert_int_equal(EVP_EncryptFinal_ex(ctx, out + 16 + n, &len), 1);
	assert_int_equal(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, out), 1);
	EVP_CIPHER_CTX_free(ctx);
	EVP_CIPHER_free(cipher);
}

/* Every length 1..512, associated strings of 1..48 bytes: OpenSSL's bytes, opens again, refuses each altered part. */
static void test_siv_is_openssls(void **state)
{
	static const char *const ad1[] = { "n1", "l1", "x1", "a string longer than one AES block" };
	uint8_t key[64], ad2[48], text[512], mine[528], theirs[528], again[512];

	(void)state;
	for (size_t n = 1; n <= sizeof(text); n++) {
		struct siv *s;
		size_t ad2len = 1 + n % sizeof(ad2);

		secret_random(key, sizeof(key));
		secret_random(ad2, sizeof(ad2));
		secret_random(text, sizeof(text));
		assert_int_equal(siv_open(&s, key, ad1[n % 4]), 0);
		openssl_siv(key, ad1[n % 4], ad2, ad2len, text, n, theirs);
		assert_int_equal(siv_seal(s, ad2, ad2len, text, n, mine), 0);
		assert_memory_equal(mine, theirs, n + 16);
		assert_int_equal(siv_unseal(s, ad2, ad2len, mine, n + 16, again), 0);
		assert_memory_equal(again, text, n);
		mine[n % (n + 16)] ^= 1;
		assert_int_equal(siv_unseal(s, ad2, ad2len, mine, n + 16, again), -EBADMSG);
		assert_true(bytes_zero(again, n));
		mine[n % (n + 16)] ^= 1;
		ad2[n % ad2len] ^= 0x80;
		assert_int_equal(siv_unseal(s, ad2, ad2len, mine, n + 16, again), -EBADMSG);
		assert_int_equal(siv_unseal(s, ad2, ad2len, mine, 15, again), -EBADMSG);
		siv_close(s);
	}
	siv_close(NULL);
}

/* The low half of the counter overflows from time to time; a long text makes sure that key stream batches join. */
static void test_siv_long_text(void **state)
{
	static uint8_t text[16384], mine[16400], theirs[16400];
	uint8_t key[64], ad[16] = { 0 };
	struct siv *s;

	(void)state;
	secret_random(key, sizeof(key));
	secret_random(text, 256);
	assert_int_equal(siv_open(&s, key, "n1"), 0);
	assert_int_equal(siv_seal(s, ad, sizeof(ad), text, sizeof(text), mine), 0);
	openssl_siv(key, "n1", ad, sizeof(ad), text, sizeof(text), theirs);
	assert_memory_equal(mine, theirs, sizeof(mine));
	siv_close(s);
}

static void *seal_many(void *arg)
{
	for (size_t i = 0; i < 2000; i++) {
		struct name_entry e;
		char name[32], back[NAME_MAX_PLAIN + 1];
		int n = snprintf(name, sizeof(name), "%p-%zu", arg, i);

		if (name_encrypt(fx.siv64, fx.dirid, name, (size_t)n, &e) != 0 ||
		    name_decrypt(fx.siv64, fx.dirid, e.entry, NULL, back) != n || strcmp(back, name) != 0)
			return arg;
	}
	return NULL;
}

static void test_threads(void **state)
{
	pthread_t t[4];
	int mark[4];

	(void)state;
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, seal_many, &mark[i]), 0);
	for (size_t i = 0; i < 4; i++) {
		void *failed;

		assert_int_equal(pthread_join(t[i], &failed), 0);
		assert_null(failed);
	}
}

/* ---- entries -------------------------------------------------------------------------------- */

static void test_vector_short(void **state)
{
	struct name_entry e;
	char back[NAME_MAX_PLAIN + 1];

	(void)state;
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, "hello.txt", 9, &e), 0);
	assert_string_equal(e.entry, "BLadSzQVlqxFET_J0BKksJB7se-wXYxA__eV4NaywUE");
	assert_string_equal(e.long_target, "");
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, e.entry, NULL, back), 9);
	assert_string_equal(back, "hello.txt");
}

static void test_vector_long(void **state)
{
	struct name_entry e;
	char name[201], back[NAME_MAX_PLAIN + 1];

	(void)state;
	memset(name, 'a', 200);
	name[200] = '\0';
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, name, 200, &e), 0);
	assert_string_equal(e.entry, "L.RVW1fnFwssevtsRHUyk91cfStWyxEvwY");
	assert_int_equal(name_kind(fx.siv64, e.entry), NAME_LONG);
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, e.entry, e.long_target, back), 200);
	assert_string_equal(back, name);
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, e.entry, NULL, back), -EBADMSG);
}

static void round_trip(const struct name_keys *k, const char *name, size_t len, size_t short_max)
{
	struct name_entry e;
	char back[NAME_MAX_PLAIN + 1];
	bool is_long = len > short_max;

	assert_int_equal(name_encrypt(k, fx.dirid, name, len, &e), 0);
	assert_true(strlen(e.entry) <= NAME_ENTRY_MAX);
	assert_int_equal(name_kind(k, e.entry), is_long ? NAME_LONG : NAME_SHORT);
	assert_int_equal(e.long_target[0] != '\0', is_long);
	assert_int_equal(name_decrypt(k, fx.dirid, e.entry, is_long ? e.long_target : NULL, back), len);
	assert_memory_equal(back, name, len);
	assert_int_equal(back[len], '\0');
}

static void test_all_lengths(void **state)
{
	char name[NAME_MAX_PLAIN];

	(void)state;
	for (size_t i = 0; i < sizeof(name); i++)
		name[i] = (char)(i == '/' - 1 ? 'x' : i + 1);
	for (size_t len = 1; len <= NAME_MAX_PLAIN; len++) {
		round_trip(fx.siv64, name, len, 160);
		round_trip(fx.siv32, name, len, 128);
		round_trip(fx.plain, name, len, NAME_MAX_PLAIN);
	}
}

static void test_text_lengths(void **state)
{
	struct name_entry e;
	char name[NAME_MAX_PLAIN];

	(void)state;
	memset(name, 'n', sizeof(name));
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, name, 160, &e), 0);
	assert_int_equal(strlen(e.entry), 235);
	assert_int_equal(name_encrypt(fx.siv32, fx.dirid, name, 128, &e), 0);
	assert_int_equal(strlen(e.entry), 231);
	assert_int_equal(strspn(e.entry, "abcdefghijklmnopqrstuvwxyz234567"), 231);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, name, 255, &e), 0);
	assert_int_equal(strlen(e.entry), 34);
	assert_int_equal(strlen(e.long_target), 363);
	assert_int_equal(name_encrypt(fx.siv32, fx.dirid, name, 255, &e), 0);
	assert_int_equal(strspn(e.entry + 2, "abcdefghijklmnopqrstuvwxyz234567"), 39);
	assert_int_equal(strlen(e.long_target), 363);
}

static void test_names_refused(void **state)
{
	struct name_entry e;
	char name[257];

	(void)state;
	memset(name, 'n', sizeof(name));
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, name, 256, &e), -ENAMETOOLONG);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, "", 0, &e), -EINVAL);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, ".", 1, &e), -EINVAL);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, "..", 2, &e), -EINVAL);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, "a/b", 3, &e), -EINVAL);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, "a\0b", 3, &e), -EINVAL);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, "...", 3, &e), 0);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, ".byokfs.d", 9, &e), 0);
	assert_int_equal(name_encrypt(fx.plain, fx.dirid, ".byokfs.d", 9, &e), -EPERM);
	assert_int_equal(name_encrypt(fx.plain, fx.dirid, ".byokfsX", 8, &e), -EPERM);
	assert_int_equal(name_encrypt(fx.plain, fx.dirid, ".byokf", 6, &e), 0);
	assert_string_equal(e.entry, ".byokf");
}

static void test_kinds(void **state)
{
	(void)state;
	assert_int_equal(name_kind(fx.siv64, ".byokfs"), NAME_SKIP);
	assert_int_equal(name_kind(fx.siv64, ".byokfs.tmp.0123456789abcdef"), NAME_SKIP);
	assert_int_equal(name_kind(fx.siv64, "L.RVW1fnFwssevtsRHUyk91cfStWyxEvwY.n"), NAME_SKIP);
	assert_int_equal(name_kind(fx.siv64, "L.n"), NAME_LONG);
	assert_int_equal(name_kind(fx.siv64, "L..n"), NAME_SKIP);
	assert_int_equal(name_kind(fx.siv64, "L."), NAME_LONG);
	assert_int_equal(name_kind(fx.siv64, "Lx"), NAME_SHORT);
	assert_int_equal(name_kind(fx.siv64, ".."), NAME_SKIP);
	assert_int_equal(name_kind(fx.plain, "L.something.n"), NAME_SHORT);
	assert_int_equal(name_kind(fx.plain, ".byokfs.d"), NAME_SKIP);
}

/* An entry with this text under the right key: what only a holder of the key could make. */
static int decrypt_forged(const char *text, size_t n)
{
	struct siv *s;
	uint8_t siv[16 + 288];
	char entry[512], back[NAME_MAX_PLAIN + 1];

	assert_int_equal(siv_open(&s, fx.keys.names, "n1"), 0);
	assert_int_equal(siv_seal(s, fx.dirid, 16, text, n, siv), 0);
	siv_close(s);
	(void)bytes_b64(B64_URL, entry, siv, 16 + n);
	return name_decrypt(fx.siv64, fx.dirid, entry, NULL, back);
}

static void test_bad_padding(void **state)
{
	char block[288] = { 0 };

	(void)state;
	assert_int_equal(decrypt_forged("good\0\0\0\0\0\0\0\0\0\0\0\0", 16), 4);
	assert_int_equal(decrypt_forged("sixteen bytes ok", 16), 16);
	assert_int_equal(decrypt_forged(block, 16), -EBADMSG);
	assert_int_equal(decrypt_forged("good\0bad\0\0\0\0\0\0\0\0", 16), -EBADMSG);
	assert_int_equal(decrypt_forged("sixteen bytes ok\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 32), -EBADMSG);
	assert_int_equal(decrypt_forged("no multiple of sixteen", 22), -EBADMSG);
	assert_int_equal(decrypt_forged("a/b\0\0\0\0\0\0\0\0\0\0\0\0\0", 16), -EBADMSG);
	assert_int_equal(decrypt_forged(".\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16), -EBADMSG);
	assert_int_equal(decrypt_forged("..\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16), -EBADMSG);
	memset(block, 'x', sizeof(block));
	assert_int_equal(decrypt_forged(block, 0), -EBADMSG);
	assert_int_equal(decrypt_forged(block, 160), 160);
	assert_int_equal(decrypt_forged(block, 176), -EBADMSG); /* too long for a short entry */
	assert_int_equal(decrypt_forged(block, 288), -EBADMSG);
}

static void test_altered_entries(void **state)
{
	struct name_entry e;
	char back[NAME_MAX_PLAIN + 1], text[NAME_ENTRY_MAX + 3];
	uint8_t other[16];

	(void)state;
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, "hello.txt", 9, &e), 0);
	for (size_t i = 0; i < strlen(e.entry); i++) {
		for (const char *c = "Az9_-+=. /"; *c; c++) {
			strcpy(text, e.entry);
			if (text[i] == *c)
				continue;
			text[i] = *c;
			assert_int_equal(name_decrypt(fx.siv64, fx.dirid, text, NULL, back), -EBADMSG);
		}
		memcpy(text, e.entry, i);
		text[i] = '\0';
		assert_int_equal(name_decrypt(fx.siv64, fx.dirid, text, NULL, back), -EBADMSG);
	}
	(void)snprintf(text, sizeof(text), "%s=", e.entry);
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, text, NULL, back), -EBADMSG);
	memcpy(other, fx.dirid, 16);
	other[15] ^= 1;
	assert_int_equal(name_decrypt(fx.siv64, other, e.entry, NULL, back), -EBADMSG);
	assert_int_equal(name_decrypt(fx.siv32, fx.dirid, e.entry, NULL, back), -EBADMSG);
}

/* A short name in the long form would be a second entry of the same name. */
static void test_long_entries_refused(void **state)
{
	struct name_entry e, f;
	char back[NAME_MAX_PLAIN + 1], name[NAME_MAX_PLAIN];

	(void)state;
	memset(name, 'b', sizeof(name));
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, "short", 5, &e), 0);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, name, 255, &f), 0);
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, f.entry, e.entry, back), -EBADMSG);
	assert_int_equal(name_encrypt(fx.siv64, fx.dirid, name, 254, &e), 0);
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, f.entry, e.long_target, back), -EBADMSG);
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, f.entry, "", back), -EBADMSG);
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, "L.", f.long_target, back), -EBADMSG);
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, f.entry, f.long_target, back), 255);
	f.long_target[362] = f.long_target[362] == 'A' ? 'B' : 'A';
	assert_int_equal(name_decrypt(fx.siv64, fx.dirid, f.entry, f.long_target, back), -EBADMSG);
	assert_int_equal(name_decrypt(fx.plain, fx.dirid, ".byokfs.d", NULL, back), -EBADMSG);
}

/* ---- directory ids -------------------------------------------------------------------------- */

static void test_vector_dir(void **state)
{
	char text[NAME_DIR_ID_TEXT + 1];
	uint16_t index = 7;
	uint8_t id[16];

	(void)state;
	name_dir_make(fx.siv64, 0, fx.dirid, text);
	assert_string_equal(text, "AADQ0dLT1NXW19jZ2tvc3d7fL7xzaGnyzPO8sEXwxHcUbQ");
	assert_int_equal(name_dir_parse(fx.siv64, text, strlen(text), &index, id), 0);
	assert_int_equal(index, 0);
	assert_memory_equal(id, fx.dirid, 16);
	name_dir_make(fx.plain, 0xfedc, fx.dirid, text);
	assert_int_equal(name_dir_parse(fx.plain, text, strlen(text), &index, id), 0);
	assert_int_equal(index, 0xfedc);
}

static void test_altered_dir(void **state)
{
	char text[NAME_DIR_ID_TEXT + 2];
	uint16_t index;
	uint8_t id[16];

	(void)state;
	for (size_t i = 0; i < NAME_DIR_ID_TEXT; i++) {
		name_dir_make(fx.siv64, 3, fx.dirid, text);
		text[i] = text[i] == 'A' ? 'B' : 'A';
		assert_int_equal(name_dir_parse(fx.siv64, text, NAME_DIR_ID_TEXT, &index, id), -EBADMSG);
	}
	name_dir_make(fx.siv64, 3, fx.dirid, text);
	assert_int_equal(name_dir_parse(fx.siv64, text, NAME_DIR_ID_TEXT - 1, &index, id), -EBADMSG);
	text[NAME_DIR_ID_TEXT] = 'A';
	assert_int_equal(name_dir_parse(fx.siv64, text, NAME_DIR_ID_TEXT + 1, &index, id), -EBADMSG);
	assert_int_equal(name_dir_parse(fx.siv64, text, 0, &index, id), -EBADMSG);
}

/* ---- links ---------------------------------------------------------------------------------- */

static void test_vector_link(void **state)
{
	uint8_t salt[8];
	char text[NAME_LINK_TEXT(4)], back[NAME_LINK_MAX + 1];

	(void)state;
	count_up(salt, 0, sizeof(salt));
	assert_int_equal(name_link_encrypt_with_salt(fx.siv64, salt, "../x", 4, text, 4095), 38);
	assert_string_equal(text, "AAECAwQFBgd3GtLAg941oJ0-fFmXbR1OvpH13g");
	assert_int_equal(name_link_decrypt(fx.siv64, text, 38, back), 4);
	assert_string_equal(back, "../x");
	assert_int_equal(name_link_size(38), 4);
}

static void test_link_lengths(void **state)
{
	static char target[NAME_LINK_MAX + 1], text[NAME_LINK_TEXT(NAME_LINK_MAX)], back[NAME_LINK_MAX + 1];

	(void)state;
	memset(target, 't', sizeof(target));
	for (size_t len = 1; len <= NAME_LINK_MAX; len += len < 50 ? 1 : 289) {
		int n = name_link_encrypt(fx.siv64, target, len, text, sizeof(text) - 1);

		assert_true(n > 0 && (size_t)n < NAME_LINK_TEXT(len));
		assert_int_equal(strlen(text), n);
		assert_int_equal(name_link_size((uint64_t)n), len);
		assert_int_equal(name_link_decrypt(fx.siv64, text, (size_t)n, back), len);
		assert_memory_equal(back, target, len);
		assert_int_equal(back[len], '\0');
	}
	assert_int_equal(name_link_encrypt(fx.siv64, target, 3047, text, 4095), 4095);
	assert_int_equal(name_link_encrypt(fx.siv64, target, 3048, text, 4095), -ENAMETOOLONG);
	assert_int_equal(name_link_encrypt(fx.siv64, target, 744, text, 1024), 1024);
	assert_int_equal(name_link_encrypt(fx.siv64, target, 745, text, 1024), -ENAMETOOLONG);
	assert_int_equal(name_link_encrypt(fx.siv64, target, 4096, text, 100000), -ENAMETOOLONG);
	assert_int_equal(name_link_encrypt(fx.siv64, target, 0, text, 4095), -EINVAL);
	assert_int_equal(name_link_encrypt(fx.siv64, "a\0b", 3, text, 4095), -EINVAL);
}

static void test_altered_link(void **state)
{
	char text[NAME_LINK_TEXT(4)], back[NAME_LINK_MAX + 1];
	static char huge[8192];
	int n = name_link_encrypt(fx.siv64, "../x", 4, text, 4095);

	(void)state;
	assert_int_equal(n, 38);
	for (size_t i = 0; i < 37; i++) {
		char was = text[i];

		text[i] = was == 'A' ? 'B' : 'A';
		assert_int_equal(name_link_decrypt(fx.siv64, text, 38, back), -EBADMSG);
		text[i] = was;
		assert_int_equal(name_link_decrypt(fx.siv64, text, i, back), -EBADMSG);
	}
	memset(huge, 'A', sizeof(huge));
	assert_int_equal(name_link_decrypt(fx.siv64, huge, sizeof(huge), back), -EBADMSG);
	assert_int_equal(name_link_decrypt(fx.siv64, huge, 5000, back), -EBADMSG);
}

/* ---- attributes ----------------------------------------------------------------------------- */

static const char comment_backing[] = "user.byokfs.fSNHv2BBG9kEk-jMQ-rsGNLbP141VsP_biQsUMQhgLk";

static void test_vector_xattr(void **state)
{
	char backing[NAME_XATTR_BACKING], back[NAME_XATTR_MAX + 1], hex[2 * 42 + 1];
	uint8_t nonce[24], value[42];

	(void)state;
	count_up(nonce, 0x40, sizeof(nonce));
	assert_int_equal(name_xattr_encrypt(fx.siv64, fx.file, "user.comment", backing), 0);
	assert_string_equal(backing, comment_backing);
	assert_int_equal(name_xattr_decrypt(fx.siv64, fx.file, backing, back), 12);
	assert_string_equal(back, "user.comment");
	assert_int_equal(name_xattr_seal_with_nonce(fx.siv64, fx.file, backing, nonce, "hi", 2, value), 0);
	bytes_hex(hex, value, sizeof(value));
	assert_string_equal(hex,
	    "404142434445464748494a4b4c4d4e4f5051525354555657"
	    "911ace02107c6fd3e12d19cff0066d56ef84");
	assert_int_equal(name_xattr_open(fx.siv64, fx.file, backing, value, sizeof(value), back), 2);
	assert_memory_equal(back, "hi", 2);
}

static void test_xattr_names(void **state)
{
	char name[NAME_XATTR_MAX + 2], back[NAME_XATTR_MAX + 1];
	char backing[NAME_XATTR_BACKING], altered[NAME_XATTR_BACKING + 1];

	(void)state;
	memset(name, 'u', sizeof(name));
	for (size_t len = 1; len <= NAME_XATTR_SHORT; len++) {
		name[len] = '\0';
		assert_int_equal(name_xattr_encrypt(fx.siv64, fx.file, name, backing), 0);
		assert_true(strlen(backing) < NAME_XATTR_BACKING);
		assert_int_equal(name_xattr_decrypt(fx.siv64, fx.file, backing, back), len);
		assert_string_equal(back, name);
		name[len] = 'u';
	}
	name[NAME_XATTR_MAX + 1] = '\0';
	assert_int_equal(name_xattr_encrypt(fx.siv64, fx.file, name, altered), -ERANGE);
	assert_int_equal(name_xattr_encrypt(fx.siv64, fx.file, "", altered), -ERANGE);
	assert_int_equal(name_xattr_decrypt(fx.siv64, fx.dirid, backing, back), -EBADMSG);
	assert_int_equal(name_xattr_decrypt(fx.siv64, fx.file, "user.comment", back), -EBADMSG);
	assert_int_equal(name_xattr_decrypt(fx.siv64, fx.file, "user.byokfs.", back), -EBADMSG);
	(void)snprintf(altered, sizeof(altered), "%sA", comment_backing);
	assert_int_equal(name_xattr_decrypt(fx.siv64, fx.file, altered, back), -EBADMSG);
}

static void check_values(uint8_t suite)
{
	static const size_t sizes[] = { 0, 1, 16, 4096, NAME_XATTR_VALUE_MAX };
	static uint8_t value[NAME_XATTR_VALUE_MAX + 1], sealed[NAME_XATTR_VALUE_MAX + NAME_XATTR_OVERHEAD + 1],
	    back[NAME_XATTR_VALUE_MAX + 1];
	struct context_ids ids = fx.ids;
	struct name_keys *k;

	ids.suite = suite;
	memset(value, 'v', sizeof(value));
	assert_int_equal(name_open(&k, NAME_SIV64, &fx.keys, &ids), 0);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		size_t n = sizes[i], total = n + NAME_XATTR_OVERHEAD;

		assert_int_equal(name_xattr_seal(k, fx.file, comment_backing, value, n, sealed), 0);
		assert_int_equal(name_xattr_open(k, fx.file, comment_backing, sealed, total, back), n);
		assert_memory_equal(back, value, n);
		assert_int_equal(name_xattr_open(k, fx.dirid, comment_backing, sealed, total, back), -EBADMSG);
		assert_int_equal(name_xattr_open(k, fx.file, "user.byokfs.other", sealed, total, back), -EBADMSG);
		assert_int_equal(name_xattr_open(k, fx.file, comment_backing, sealed, total - 1, back), -EBADMSG);
		sealed[total / 2] ^= 4;
		assert_int_equal(name_xattr_open(k, fx.file, comment_backing, sealed, total, back), -EBADMSG);
	}
	assert_int_equal(name_xattr_seal(k, fx.file, comment_backing, value, sizeof(value), sealed), -E2BIG);
	assert_int_equal(name_xattr_open(k, fx.file, comment_backing, sealed, sizeof(sealed), back), -EBADMSG);
	assert_int_equal(name_xattr_open(k, fx.file, comment_backing, sealed, 0, back), -EBADMSG);
	name_free(k);
}

/* Long names: of one form only, bound to the object and to what they head. */
static void test_xattr_long_names(void **state)
{
	char name[NAME_XATTR_MAX + 1] = "", back[NAME_XATTR_MAX + 1];
	uint8_t stored[NAME_XATTR_REST + 2], value[2];
	struct name_xattr x;

	(void)state;
	memset(name, 'u', NAME_XATTR_SHORT);
	assert_int_equal(name_xattr_pack(fx.siv64, fx.file, name, "hi", 2, stored, &x), 0);
	assert_false(name_xattr_is_long(x.backing));
	assert_int_equal(x.first, 42);
	for (size_t len = NAME_XATTR_SHORT + 1; len <= NAME_XATTR_MAX; len++) {
		name[len - 1] = 'u';
		assert_int_equal(name_xattr_pack(fx.siv64, fx.file, name, "hi", 2, stored, &x), 0);
		assert_true(name_xattr_is_long(x.backing) && !name_xattr_is_part(x.backing) && !*x.part && !x.rest);
		assert_int_equal(strlen(x.backing), 46);
		assert_int_equal(x.first, 272 + 42);
		assert_int_equal(name_xattr_name(fx.siv64, fx.file, x.backing, stored, x.first, back), len);
		assert_string_equal(back, name);
		assert_int_equal(name_xattr_unpack(fx.siv64, fx.file, x.backing, stored, x.first, value), 2);
		assert_memory_equal(value, "hi", 2);
	}
	assert_int_equal(name_xattr_name(fx.siv64, fx.dirid, x.backing, stored, x.first, back), -EBADMSG);
	assert_int_equal(name_xattr_decrypt(fx.siv64, fx.file, x.backing, back), -EBADMSG);
	for (size_t n = 0; n < 272 + 40; n++) {
		assert_int_equal(name_xattr_name(fx.siv64, fx.file, x.backing, stored, n, back), -EBADMSG);
		assert_int_equal(name_xattr_unpack(fx.siv64, fx.file, x.backing, stored, n, value), -EBADMSG);
	}
	for (size_t i = 0; i < x.first; i++) {
		stored[i] ^= 1;
		if (i < 272)
			assert_int_equal(
			    name_xattr_name(fx.siv64, fx.file, x.backing, stored, x.first, back), -EBADMSG);
		assert_int_equal(name_xattr_unpack(fx.siv64, fx.file, x.backing, stored, x.first, value), -EBADMSG);
		stored[i] ^= 1;
	}
	x.backing[40] ^= 1;
	assert_int_equal(name_xattr_name(fx.siv64, fx.file, x.backing, stored, x.first, back), -EBADMSG);
}

/* Neither half alone, nor either changed, nor longer: the tag is bound as well. */
static void check_two(const struct name_xattr *x, uint8_t *stored, size_t head, uint8_t *back)
{
	size_t total = x->first + x->rest;
	const size_t flips[] = { head, head + 15, head + 16, head + 40, x->first - 1, x->first, total - 1 };

	assert_true(name_xattr_is_part(x->part));
	assert_int_equal(x->first, 65536);
	assert_true(x->rest >= 17);
	assert_int_equal(name_xattr_unpack(fx.siv64, fx.dirid, x->backing, stored, total, back), -EBADMSG);
	assert_int_equal(name_xattr_unpack(fx.siv64, fx.file, x->backing, stored, x->first, back), -EBADMSG);
	assert_int_equal(name_xattr_unpack(fx.siv64, fx.file, x->backing, stored, total + 1, back), -EBADMSG);
	for (size_t i = 0; i < sizeof(flips) / sizeof(*flips); i++) {
		stored[flips[i]] ^= 0x20;
		assert_int_equal(name_xattr_unpack(fx.siv64, fx.file, x->backing, stored, total, back), -EBADMSG);
		stored[flips[i]] ^= 0x20;
	}
}

/* Around the size from which a value has two parts. */
static void test_xattr_parts(void **state)
{
	static uint8_t value[NAME_XATTR_VALUE_MAX + 1], stored[NAME_XATTR_STORED + 1], back[NAME_XATTR_VALUE_MAX];
	static const size_t over[] = { 40, 312 };
	char name[NAME_XATTR_MAX + 1] = "";

	(void)state;
	count_up(value, 7, sizeof(value));
	memset(name, 'u', 20);
	for (int form = 0; form < 2; form++, memset(name, 'u', NAME_XATTR_MAX))
		for (size_t n = 65536 - over[form] - 1; n <= 65536; n += n < 65536 - over[form] + 2 ? 1 : 7) {
			bool two = n + over[form] > 65536;
			struct name_xattr x;
			size_t total;

			assert_int_equal(name_xattr_pack(fx.siv64, fx.file, name, value, n, stored, &x), 0);
			total = x.first + x.rest;
			assert_int_equal(total, n + over[form] + (two ? 16 : 0));
			assert_int_equal(name_xattr_unpack(fx.siv64, fx.file, x.backing, stored, total, back), n);
			assert_memory_equal(back, value, n);
			if (two)
				check_two(&x, stored, over[form] - 40, back);
			else
				assert_true(!x.rest && !*x.part);
		}
	struct name_xattr x;

	assert_int_equal(name_xattr_pack(fx.siv64, fx.file, "user.a", value, sizeof(value), stored, &x), -E2BIG);
}

static void test_xattr_values(void **state)
{
	(void)state;
	check_values(1);
	check_values(2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_siv_is_openssls),
		cmocka_unit_test(test_siv_long_text),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_vector_short),
		cmocka_unit_test(test_vector_long),
		cmocka_unit_test(test_all_lengths),
		cmocka_unit_test(test_text_lengths),
		cmocka_unit_test(test_names_refused),
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_bad_padding),
		cmocka_unit_test(test_altered_entries),
		cmocka_unit_test(test_long_entries_refused),
		cmocka_unit_test(test_vector_dir),
		cmocka_unit_test(test_altered_dir),
		cmocka_unit_test(test_vector_link),
		cmocka_unit_test(test_link_lengths),
		cmocka_unit_test(test_altered_link),
		cmocka_unit_test(test_vector_xattr),
		cmocka_unit_test(test_xattr_names),
		cmocka_unit_test(test_xattr_long_names),
		cmocka_unit_test(test_xattr_parts),
		cmocka_unit_test(test_xattr_values),
	};

	return cmocka_run_group_tests_name("name", tests, setup, teardown);
}
