/* jsonio: limits, typed getters, printing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "jsonio.h"
#include "secret.h"

static json_t *parse(const char *text)
{
	return jsonio_parse(text, strlen(text), 4096);
}

static void test_accepts_objects_and_arrays(void **state)
{
	json_t *obj = parse("{\"a\":\"x\",\"n\":1.5e9}");
	json_t *arr = parse(" [1, {\"b\":[]}] ");

	(void)state;
	assert_non_null(obj);
	assert_string_equal(jsonio_str(obj, "a"), "x");
	assert_null(jsonio_str(obj, "n"));
	assert_null(jsonio_str(obj, "absent"));
	assert_non_null(arr);
	assert_null(jsonio_str(arr, "a"));
	json_decref(obj);
	json_decref(arr);
}

static void test_refuses(void **state)
{
	static const char *const bad[] = { "", " ", "{", "{}x", "{} {}", "\"text\"", "1", "{\"a\":1,\"a\":2}",
		"{\"a\":01}", "{'a':1}", "{\"a\":\"\x01\"}", "{\"a\":\"\\u0000\"}", "{\"a\":\"\xff\"}", "<html></html>",
		"{\"a\":\"\\", "]", "null" };

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_null(parse(bad[i]));
	assert_null(jsonio_parse(NULL, 0, 10));
	assert_null(jsonio_parse("{}\0", 3, 10));
}

static void test_length_limit(void **state)
{
	json_t *json = jsonio_parse("{}", 2, 2);

	(void)state;
	assert_non_null(json);
	json_decref(json);
	assert_null(jsonio_parse("{ }", 3, 2));
}

/* Text of n nested arrays. */
static json_t *nested(size_t n)
{
	char text[200];

	memset(text, '[', n);
	memset(text + n, ']', n);
	return jsonio_parse(text, 2 * n, sizeof(text));
}

static void test_depth_limit(void **state)
{
	json_t *json = nested(16);

	(void)state;
	assert_non_null(json);
	json_decref(json);
	assert_null(nested(17));
	json = parse("[[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],\"[[[[[[[[[[[[[[[[[[[\\\"[\"]");
	assert_non_null(json);
	json_decref(json);
}

static void test_copy(void **state)
{
	json_t *obj = parse("{\"a\":\"four\",\"n\":1}");
	char out[5] = "-";

	(void)state;
	assert_int_equal(jsonio_copy(out, 4, obj, "a"), -E2BIG);
	assert_string_equal(out, "-");
	assert_int_equal(jsonio_copy(out, 5, obj, "a"), 0);
	assert_string_equal(out, "four");
	assert_int_equal(jsonio_copy(out, 5, obj, "n"), -EINVAL);
	assert_int_equal(jsonio_copy(out, 5, obj, "b"), -ENOENT);
	assert_int_equal(jsonio_copy(out, 5, NULL, "b"), -ENOENT);
	json_decref(obj);
}

static void test_blob(void **state)
{
	json_t *obj = parse("{\"a\":\"AAEC\",\"p\":\"AAE=\",\"e\":\"\",\"bad\":\"AAE\",\"n\":[]}");
	uint8_t out[3];
	size_t len = sizeof(out);

	(void)state;
	assert_int_equal(jsonio_blob(out, &len, obj, "a"), 0);
	assert_int_equal(len, 3);
	assert_memory_equal(out, "\0\1\2", 3);
	assert_int_equal(jsonio_blob(out, &len, obj, "p"), 0);
	assert_int_equal(len, 2);
	assert_int_equal(jsonio_blob(out, &len, obj, "a"), -E2BIG);
	assert_int_equal(len, 2);
	assert_int_equal(jsonio_blob(out, &len, obj, "bad"), -EINVAL);
	assert_int_equal(jsonio_blob(out, &len, obj, "n"), -EINVAL);
	assert_int_equal(jsonio_blob(out, &len, obj, "none"), -ENOENT);
	assert_int_equal(jsonio_blob(out, &len, obj, "e"), 0);
	assert_int_equal(len, 0);
	json_decref(obj);
}

static void test_print_is_one_line(void **state)
{
	json_t *obj = parse("{ \"b\" : \"x\\ny\",\n \"a\" : [1, true] }");
	char *text = jsonio_print(obj), *hidden = jsonio_print_secret(obj);

	(void)state;
	assert_string_equal(text, "{\"b\":\"x\\ny\",\"a\":[1,true]}");
	assert_string_equal(hidden, text);
	free(text);
	secret_free(hidden);
	json_decref(obj);
}

static void test_print_secret_limit(void **state)
{
	json_t *big = json_stringn("", 0);
	char *text = malloc(65535);

	(void)state;
	assert_non_null(text);
	memset(text, 'x', 65535);
	json_string_setn(big, text, 65534); /* two quotes more than fit */
	assert_null(jsonio_print_secret(big));
	assert_null(jsonio_print(NULL));
	free(text);
	json_decref(big);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accepts_objects_and_arrays),
		cmocka_unit_test(test_refuses),
		cmocka_unit_test(test_length_limit),
		cmocka_unit_test(test_depth_limit),
		cmocka_unit_test(test_copy),
		cmocka_unit_test(test_blob),
		cmocka_unit_test(test_print_is_one_line),
		cmocka_unit_test(test_print_secret_limit),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("jsonio", tests, NULL, NULL);
}
