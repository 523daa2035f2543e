/* stsxml: what STS says, and what somebody in its place might. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stsxml.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))
#define NS   "xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\""
#define CREDENTIALS                                                                                   \
	"<Credentials><AccessKeyId>ASIAX</AccessKeyId><SecretAccessKey>s/+=&amp;&#x41;</SecretAccessKey>" \
	"<SessionToken>to\nken</SessionToken><Expiration>2026-11-22T05:06:07Z</Expiration></Credentials>"
#define ASSUMED(inner)                                                                                  \
	"<?xml version=\"1.0\"?>\n<AssumeRoleResponse " NS "><AssumeRoleResult>"                        \
	"<AssumedRoleUser><AssumedRoleId>A:x</AssumedRoleId><Arn>arn:aws:sts::1:assumed-role/r/x</Arn>" \
	"</AssumedRoleUser>" inner "<Credential>no</Credential><PackedPolicySize>6</PackedPolicySize>"  \
	"</AssumeRoleResult><ResponseMetadata><RequestId>r-1</RequestId></ResponseMetadata></AssumeRoleResponse>"

static struct stsxml x;

static int parse(const char *text)
{
	memset(&x, 'x', sizeof(x));
	return stsxml_parse(&x, text, strlen(text));
}

static void test_assumed(void **state)
{
	(void)state;
	assert_int_equal(parse(ASSUMED(CREDENTIALS)), 0);
	assert_string_equal(x.access_key, "ASIAX");
	assert_string_equal(x.secret_key, "s/+=&A");
	assert_string_equal(x.token, "to\nken");
	assert_string_equal(x.expiration, "2026-11-22T05:06:07Z");
	assert_string_equal(x.arn, "arn:aws:sts::1:assumed-role/r/x");
	assert_string_equal(x.request_id, "r-1");
	assert_string_equal(x.code, "");
}

static void test_error(void **state)
{
	(void)state;
	assert_int_equal(
	    parse("<ErrorResponse " NS "><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: a is not "
	          "authorized</Message></Error><RequestId>r-2</RequestId></ErrorResponse>"),
	    0);
	assert_string_equal(x.code, "AccessDenied");
	assert_string_equal(x.message, "User: a is not authorized");
	assert_string_equal(x.request_id, "r-2");
	assert_string_equal(x.access_key, "");
}

static void test_caller(void **state)
{
	(void)state;
	assert_int_equal(
	    parse("<GetCallerIdentityResponse " NS "><GetCallerIdentityResult><Arn>arn:aws:iam::1:user/u</Arn>"
	          "<UserId>A</UserId><Account>1</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"),
	    0);
	assert_string_equal(x.arn, "arn:aws:iam::1:user/u");
}

/* A member counts only where it belongs. */
static void test_strange_places(void **state)
{
	(void)state;
	assert_int_equal(parse("<a><AccessKeyId>ASIAX</AccessKeyId><Code>c</Code><b><Credentials/></b></a>"), 0);
	assert_string_equal(x.access_key, "");
	assert_string_equal(x.code, "");
	assert_int_equal(parse("<AccessKeyId>ASIAX</AccessKeyId>"), 0);
	assert_string_equal(x.access_key, "");
	assert_int_equal(parse("<html><body>Please log in</body></html>"), 0);
}

static void test_refused(void **state)
{
	static const char *const cases[] = {
		"",
		" ",
		"nonsense",
		"<a>",
		"<a></b>",
		"{\"Credentials\":{}}",
		"<!DOCTYPE x><x/>",
		"<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;&a;\">]><x>&b;</x>",
		"<!DOCTYPE x SYSTEM \"file:///etc/passwd\"><x/>",
		"<x>&undefined;</x>",
		"<1><2><3><4><5><6><7><8><9/></8></7></6></5></4></3></2></1>",
		"<a><b><c><d><e><f><g><h><i/></h></g></f></e></d></c></b></a>",
		"<Credentials><AccessKeyId>a</AccessKeyId><AccessKeyId>b</AccessKeyId></Credentials>",
		"<Credentials><AccessKeyId>a<b/></AccessKeyId></Credentials>",
		"<a/><b/>",
		"<Error><Code>\xff\xfe</Code></Error>",
	};
	static const struct stsxml empty;

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		if (parse(cases[i]) != -EINVAL)
			fail_msg("'%s' was taken", cases[i]);
		assert_memory_equal(&x, &empty, sizeof(x));
	}
}

static void test_lengths(void **state)
{
	size_t size = 70000;
	char *text = malloc(size), fill[9000];

	(void)state;
	assert_non_null(text);
	memset(fill, 't', sizeof(fill));
	for (int n = 8191; n <= 8192; n++) {
		snprintf(text, size, "<Credentials><SessionToken>%.*s</SessionToken></Credentials>", n, fill);
		assert_int_equal(parse(text), n == 8191 ? 0 : -EINVAL);
	}
	snprintf(text, size, "<Error><Message>%.*s</Message></Error>", 5000, fill);
	assert_int_equal(parse(text), 0);
	assert_int_equal(strlen(x.message), sizeof(x.message) - 1); /* a message may be cut */
	memset(text, ' ', size);
	memcpy(text, "<a/>", 4);
	assert_int_equal(stsxml_parse(&x, text, size), -EINVAL);
	assert_int_equal(stsxml_parse(&x, text, 65536), 0);
	free(text);
}

/* No truncation of an answer parses, and none harms. */
static void test_truncated(void **state)
{
	static const char whole[] = ASSUMED(CREDENTIALS);

	(void)state;
	for (size_t n = 0; n + 1 < sizeof(whole); n++) {
		char *exact = malloc(n ? n : 1);

		assert_non_null(exact);
		memcpy(exact, whole, n);
		assert_int_equal(stsxml_parse(&x, exact, n), -EINVAL);
		free(exact);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_assumed),
		cmocka_unit_test(test_error),
		cmocka_unit_test(test_caller),
		cmocka_unit_test(test_strange_places),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_lengths),
		cmocka_unit_test(test_truncated),
	};

	return cmocka_run_group_tests_name("stsxml", tests, NULL, NULL);
}
