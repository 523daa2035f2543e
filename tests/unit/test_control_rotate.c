/* What a rotator sends over the control socket, taken apart: everything malformed is refused. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "../../src/control.h"
#include "bytes.h"
#include "jsonio.h"
#include "reseal.h"
#include "secret.h"

static struct reseal_wish wish;
static char path[PATH_MAX];

static json_t *parsed(const char *text)
{
	json_t *o = jsonio_parse(text, strlen(text), 1 << 20);

	if (!o)
		fail_msg("the test's own JSON: %s", text);
	return o;
}

static bool takes_wish(const char *text)
{
	json_t *o = parsed(text);
	bool ok = control_rotate_wish(&wish, o);

	json_decref(o);
	return ok;
}

#define MATERIAL "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define SLOT(more) "{\"provider\":\"aws\",\"key\":\"arn:x\",\"sealed\":5,\"blob\":\"QUJD\",\"probe\":\"RA==\"" more "}"
/* Any member may be the wrong one. */
#define WITH(provider, key, sealed, rest)                                                    \
	"{\"seq\":1,\"slot\":{\"provider\":\"" provider "\",\"key\":\"" key "\",\"sealed\":" sealed \
	"," rest "}}"
#define BLOBS "\"blob\":\"QUJD\",\"probe\":\"RA==\""

static void wishes(void **state)
{
	static const char *const bad[] = {
		"{}",
		"{\"seq\":1}",
		"{\"slot\":" SLOT("") "}",
		"{\"seq\":-1,\"slot\":" SLOT("") "}",
		"{\"seq\":\"1\",\"slot\":" SLOT("") "}",
		"{\"seq\":1.5,\"slot\":" SLOT("") "}",
		"{\"seq\":1,\"slot\":[]}",
		"{\"seq\":1,\"slot\":" SLOT(",\"material\":\"00\"") "}",
		"{\"seq\":1,\"slot\":" SLOT(",\"material\":7") "}",
		"{\"seq\":1,\"slot\":" SLOT("") ",\"context\":\"AWS:x\"}",
		"{\"seq\":1,\"slot\":" SLOT("") ",\"context\":\"byokfs-x:y\"}",
		"{\"seq\":1,\"slot\":" SLOT("") ",\"context\":5}",
		WITH("gcp", "k", "5", BLOBS),
		WITH("aws", "", "5", BLOBS),
		WITH("aws", "k", "-5", BLOBS),
		WITH("aws", "k", "\"5\"", BLOBS),
		WITH("aws", "k", "5", "\"blob\":\"\",\"probe\":\"RA==\""),
		WITH("aws", "k", "5", "\"blob\":\"QUJD\""),
		WITH("aws", "k", "5", "\"blob\":\"Q!\",\"probe\":\"RA==\""),
	};

	(void)state;
	assert_true(takes_wish("{\"seq\":7,\"slot\":" SLOT(",\"material\":\"" MATERIAL "\"") ",\"context\":\"a:b\"}"));
	assert_int_equal(wish.seq, 7);
	assert_int_equal(wish.slot.provider, 1);
	assert_string_equal(wish.slot.key, "arn:x");
	assert_int_equal(wish.slot.material[31], 0xff);
	assert_int_equal(wish.slot.sealed, 5);
	assert_int_equal(wish.slot.blob_len, 3);
	assert_memory_equal(wish.slot.blob, "ABC", 3);
	assert_int_equal(wish.slot.probe_len, 1);
	assert_true(wish.have_extra);
	assert_string_equal(wish.extra.pair[0].value, "b");
	assert_true(takes_wish("{\"seq\":0,\"slot\":" SLOT("") ",\"context\":\"-\"}"));
	assert_true(wish.have_extra);
	assert_int_equal(wish.extra.n, 0);
	assert_true(takes_wish("{\"seq\":0,\"slot\":" SLOT("") "}"));
	assert_false(wish.have_extra);
	assert_true(bytes_zero(wish.slot.material, 32)); /* nothing of the one before */
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (takes_wish(bad[i]))
			fail_msg("taken: %s", bad[i]);
}

static void huge_wishes(void **state)
{
	char *text = malloc(20000), *b64 = malloc(10000);
	uint8_t *blob = calloc(1, DESCRIPTOR_BLOB_MAX + 1);

	(void)state;
	for (size_t n = DESCRIPTOR_BLOB_MAX; n <= DESCRIPTOR_BLOB_MAX + 1; n++) {
		(void)bytes_b64(B64_STD, b64, blob, n);
		(void)snprintf(text, 20000, WITH("aws", "k", "5", "\"blob\":\"%s\",\"probe\":\"RA==\""), b64);
		assert_int_equal(takes_wish(text), n == DESCRIPTOR_BLOB_MAX);
	}
	memset(b64, 'k', DESCRIPTOR_KEY_MAX + 1);
	for (size_t n = DESCRIPTOR_KEY_MAX + 1; n >= DESCRIPTOR_KEY_MAX; n--) {
		b64[n] = '\0';
		(void)snprintf(text, 20000, WITH("aws", "%s", "5", BLOBS), b64);
		assert_int_equal(takes_wish(text), n == DESCRIPTOR_KEY_MAX);
	}
	free(blob);
	free(b64);
	free(text);
}

static const struct ctl_fds fds = { .fd = { 70, 71 }, .n = 2 };

static bool takes_item(json_t *o, struct reseal_item *item, struct header_slot *slot)
{
	memset(path, 'x', sizeof(path));
	return control_rotate_item(item, path, slot, o, &fds);
}

static json_t *item_with(const char *member, json_t *value)
{
	json_t *o = parsed("{\"path\":\"612f62\",\"ino\":77,\"file\":\"000102030405060708090a0b0c0d0e0f\",\"seq\":9}");

	if (value)
		assert_int_equal(json_object_set_new(o, member, value), 0);
	else
		assert_int_equal(json_object_del(o, member), 0);
	return o;
}

static void bad_item(const char *member, json_t *value)
{
	struct header_slot slot;
	struct reseal_item item;
	json_t *o = item_with(member, value);

	if (takes_item(o, &item, &slot))
		fail_msg("taken: %s", member);
	json_decref(o);
}

static json_t *slot_text(size_t n, size_t flip)
{
	struct header_slot s = {
		.seq = 1, .wrap = HEADER_WRAP_KMS, .generation = 1, .provider = 1, .len = 2, .blob = "ab"
	};
	uint8_t page[LAYOUT_PAGE] = { 0 };
	char text[1024];

	header_put_slot(page, 0, &s);
	if (flip < HEADER_SLOT_BYTES)
		page[HEADER_SLOT_AT(0) + flip] ^= 1;
	(void)bytes_b64(B64_STD, text, page + HEADER_SLOT_AT(0), n);
	return json_string(text);
}

static void items(void **state)
{
	char *hex = malloc(2 * PATH_MAX + 1);
	struct header_slot slot;
	struct reseal_item item;
	json_t *o = item_with("slot", slot_text(HEADER_SLOT_BYTES, SIZE_MAX));

	(void)state;
	assert_true(takes_item(o, &item, &slot));
	assert_string_equal(item.path, "a/b");
	assert_int_equal(item.ino, 77);
	assert_int_equal(item.file[15], 15);
	assert_int_equal(item.seq, 9);
	assert_ptr_equal(item.slot, &slot);
	assert_memory_equal(slot.blob, "ab", 2);
	json_decref(o);
	o = item_with("x", json_true());
	assert_true(takes_item(o, &item, &slot));
	assert_null(item.slot);
	json_decref(o);

	o = item_with("fd", json_integer(1));
	assert_int_equal(json_object_del(o, "path"), 0);
	assert_true(takes_item(o, &item, &slot));
	assert_true(!item.path && !item.node && item.fd == 71);
	assert_int_equal(json_object_set_new(o, "fd", json_integer(2)), 0); /* none such came along */
	assert_false(takes_item(o, &item, &slot));
	assert_int_equal(json_object_set_new(o, "node", json_integer(5)), 0);
	assert_true(takes_item(o, &item, &slot));
	assert_true(!item.path && item.node == 5 && item.fd == -1);
	assert_int_equal(json_object_set_new(o, "node", json_integer(0)), 0);
	assert_false(takes_item(o, &item, &slot));
	json_decref(o);
	bad_item("path", NULL);
	bad_item("path", json_string(""));
	bad_item("path", json_string("6"));
	bad_item("path", json_string("6g"));
	bad_item("path", json_string("610062")); /* a NUL */
	bad_item("path", json_integer(61));
	memset(hex, '6', 2 * PATH_MAX);
	hex[2 * PATH_MAX] = '\0';
	bad_item("path", json_string(hex));
	bad_item("ino", NULL);
	bad_item("ino", json_integer(-1));
	bad_item("ino", json_string("77"));
	bad_item("file", NULL);
	bad_item("file", json_string("0001"));
	bad_item("file", json_string("zz0102030405060708090a0b0c0d0e0f"));
	bad_item("file", json_string("000102030405060708090a0b0c0d0e0f00"));
	bad_item("seq", NULL);
	bad_item("seq", json_integer(1ll << 32));
	bad_item("seq", json_integer(-1));
	bad_item("slot", json_null());
	bad_item("slot", json_string(""));
	bad_item("slot", json_string("!!!!"));
	bad_item("slot", slot_text(HEADER_SLOT_BYTES - 1, SIZE_MAX));
	bad_item("slot", slot_text(HEADER_SLOT_BYTES + 1, SIZE_MAX));
	for (size_t flip = 0; flip < HEADER_SLOT_BYTES; flip++)
		bad_item("slot", slot_text(HEADER_SLOT_BYTES, flip));
	free(hex);
}

static int setup(void **state)
{
	(void)state;
	return secret_init(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wishes),
		cmocka_unit_test(huge_wishes),
		cmocka_unit_test(items),
	};

	return cmocka_run_group_tests_name("control_rotate", tests, setup, NULL);
}
