/* sigv4: every case of aws-c-auth's suite (header form), and what a signer must refuse.
 *
 * All 38 cases apply. Three habits of the suite are met by this harness, not by the signer: `sign_body` means
 * the request carries x-amz-content-sha256; `omit_session_token` means the token is added after signing; a
 * folded header line is unfolded first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "bytes.h"
#include "io.h"
#include "jsonio.h"
#include "secret.h"
#include "sigv4.h"

#define TIME_20150830T123600Z 1440938160

/* Run from tests/ or from the top. */
static const char *vectors(void)
{
	return access("vectors/sigv4", F_OK) ? "tests/vectors/sigv4" : "vectors/sigv4";
}

static char *slurp(const char *name, const char *file)
{
	char path[300], *text = NULL;
	size_t len;

	snprintf(path, sizeof(path), "%s/%s/%s", vectors(), name, file);
	if (io_read_file(AT_FDCWD, path, 65536, &text, &len))
		fail_msg("cannot read %s", path);
	return text;
}

struct vector {
	char *text; /* the request, cut up */
	struct sigv4_header header[16];
	struct sigv4_request req;
	struct sigv4_credentials cred;
	char hash[65];
};

/* "Name:value" lines; a line that begins with a blank goes on with the value before. Returns what follows the
 * empty line. */
static char *cut_headers(struct vector *v, char *p)
{
	while (p && *p && *p != '\n') {
		struct sigv4_header *h = &v->header[v->req.nheader++];
		char *colon = strchr(p, ':'), *end;

		assert_non_null(colon);
		*colon = '\0';
		h->name = p;
		h->value = colon + 1;
		for (end = strchr(colon + 1, '\n'); end && end[1] == ' '; end = strchr(end, '\n'))
			*end = ' ';
		if (end)
			*end = '\0';
		p = end ? end + 1 : NULL;
	}
	return p && *p ? p + 1 : NULL;
}

static void cut_request(struct vector *v)
{
	char *line_end = strchr(v->text, '\n'), *space = strchr(v->text, ' '), *version, *query;

	*line_end = *space = '\0';
	version = strrchr(space + 1, ' ');
	*version = '\0';
	v->req.method = v->text;
	v->req.path = space + 1;
	query = strchr(space + 1, '?');
	v->req.query = query ? query + 1 : "";
	if (query)
		*query = '\0';
	v->req.header = v->header;
	v->req.body = cut_headers(v, line_end + 1);
	v->req.bodylen = v->req.body ? strlen(v->req.body) : 0;
}

static void add_body_hash(struct vector *v)
{
	uint8_t md[32];

	assert_true(EVP_Digest(v->req.body, v->req.bodylen, md, NULL, EVP_sha256(), NULL));
	bytes_hex(v->hash, md, 32);
	v->header[v->req.nheader++] = (struct sigv4_header){ "x-amz-content-sha256", v->hash };
}

static void run_vector(const char *name)
{
	char *context = slurp(name, "context.json"), *canonical = slurp(name, "header-canonical-request.txt");
	char *to_sign = slurp(name, "header-string-to-sign.txt"), *signature = slurp(name, "header-signature.txt");
	json_t *json = jsonio_parse(context, strlen(context), 65536), *cred = json_object_get(json, "credentials");
	struct vector v = { .text = slurp(name, "request.txt") };
	struct sigv4_signature out;
	char expected[8192], *got = NULL, *token;

	cut_request(&v);
	v.req.region = jsonio_str(json, "region");
	v.req.service = jsonio_str(json, "service");
	v.req.time = TIME_20150830T123600Z;
	v.req.exact_path = json_is_false(json_object_get(json, "normalize"));
	assert_string_equal(jsonio_str(json, "timestamp"), "2015-08-30T12:36:00Z");
	assert_int_equal(jsonio_copy(v.cred.access_key, sizeof(v.cred.access_key), cred, "access_key_id"), 0);
	assert_int_equal(jsonio_copy(v.cred.secret_key, sizeof(v.cred.secret_key), cred, "secret_access_key"), 0);
	token = jsonio_str(cred, "token") ? strdup(jsonio_str(cred, "token")) : NULL;
	v.cred.session_token = json_is_true(json_object_get(json, "omit_session_token")) ? NULL : token;
	if (json_is_true(json_object_get(json, "sign_body")))
		add_body_hash(&v);
	assert_int_equal(sigv4_canonical(&got, &v.req, &v.cred), 0);
	snprintf(expected, sizeof(expected), "%s\n\n%s", canonical, to_sign);
	assert_string_equal(got, expected);
	assert_int_equal(sigv4_sign(&out, &v.req, &v.cred), 0);
	assert_string_equal(out.amz_date, "20150830T123600Z");
	assert_string_equal(strstr(out.authorization, "Signature=") + 10, signature);
	free(got);
	free(token);
	free(v.text);
	free(context);
	free(canonical);
	free(to_sign);
	free(signature);
	json_decref(json);
}

static void test_vectors(void **state)
{
	DIR *dir = opendir(vectors());
	struct dirent *entry;
	int count = 0;

	(void)state;
	assert_non_null(dir);
	while ((entry = readdir(dir)))
		if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
			run_vector(entry->d_name);
			count++;
		}
	closedir(dir);
	assert_int_equal(count, 38);
}

/* A request like the ones byokfs makes; each test breaks one thing. */
struct sample {
	struct sigv4_header header[3];
	struct sigv4_request req;
	struct sigv4_credentials cred;
};

static void sample_init(struct sample *s)
{
	*s = (struct sample){ .header = { { "Host", "kms.eu-west-1.amazonaws.com" },
		                  { "Content-Type", "application/x-amz-json-1.1" },
		                  { "X-Amz-Target", "TrentService.Decrypt" } },
		.req = { .method = "POST",
		    .path = "/",
		    .query = "",
		    .nheader = 3,
		    .body = "{}",
		    .bodylen = 2,
		    .region = "eu-west-1",
		    .service = "kms",
		    .time = 1700000000 },
		.cred = { .access_key = "AKIDEXAMPLE", .secret_key = "secret" } };
	s->req.header = s->header;
}

static int sample_sign(struct sample *s)
{
	struct sigv4_signature out;

	return sigv4_sign(&out, &s->req, &s->cred);
}

static void test_signs_a_kms_request(void **state)
{
	struct sigv4_signature out;
	struct sample s;

	(void)state;
	sample_init(&s);
	assert_int_equal(sigv4_sign(&out, &s.req, &s.cred), 0);
	assert_string_equal(out.amz_date, "20231114T221320Z");
	assert_non_null(strstr(out.authorization,
	    "Credential=AKIDEXAMPLE/20231114/eu-west-1/kms/aws4_request, "
	    "SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature="));
}

static void test_refuses_malformed_headers(void **state)
{
	static const struct sigv4_header bad[] = { { "Con tent", "x" }, { "", "x" }, { "X", "a\nb" }, { "X", "a\rb" },
		{ "X-Amz-Date", "20231114T221320Z" }, { "x-amz-security-token", "t" }, { "authorization", "x" },
		{ "X", NULL }, { NULL, "x" } };
	struct sample s;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		sample_init(&s);
		s.header[1] = bad[i];
		assert_int_equal(sample_sign(&s), -EINVAL);
	}
	sample_init(&s);
	s.req.nheader = 0; /* no Host */
	assert_int_equal(sample_sign(&s), -EINVAL);
	s.req.nheader = 33;
	assert_int_equal(sample_sign(&s), -EINVAL);
}

static void test_refuses_malformed_scope(void **state)
{
	struct sample s;

	(void)state;
	sample_init(&s);
	s.req.region = "eu/west";
	assert_int_equal(sample_sign(&s), -EINVAL);
	sample_init(&s);
	s.req.region = "";
	assert_int_equal(sample_sign(&s), -EINVAL);
	sample_init(&s);
	s.req.service = "a b";
	assert_int_equal(sample_sign(&s), -EINVAL);
	sample_init(&s);
	strcpy(s.cred.access_key, "AK,ID");
	assert_int_equal(sample_sign(&s), -EINVAL);
	sample_init(&s);
	s.req.time = -1;
	assert_int_equal(sample_sign(&s), -EINVAL);
	sample_init(&s);
	s.req.time = 253402300800; /* year 10000 */
	assert_int_equal(sample_sign(&s), -EINVAL);
	sample_init(&s);
	s.req.path = "relative";
	assert_int_equal(sample_sign(&s), -EINVAL);
	sample_init(&s);
	s.req.method = "PO ST";
	assert_int_equal(sample_sign(&s), -EINVAL);
}

static void test_refuses_what_is_too_long(void **state)
{
	struct sample s;
	char *big = malloc(70001);

	(void)state;
	assert_non_null(big);
	memset(big, 'x', 70000);
	big[70000] = '\0';
	sample_init(&s);
	s.cred.session_token = big;
	assert_int_equal(sample_sign(&s), -EINVAL);
	big[60000] = '\0';
	assert_int_equal(sample_sign(&s), 0);
	sample_init(&s);
	big[300] = '\0';
	s.req.region = big;
	assert_int_equal(sample_sign(&s), -EINVAL);
	sample_init(&s);
	big[300] = 'x';
	big[1000] = '\0';
	s.header[1].name = big; /* Authorization would not fit */
	assert_int_equal(sample_sign(&s), -EINVAL);
	memset(big, '&', 70000);
	for (size_t i = 0; i < 258; i += 2)
		big[i] = 'p';
	big[258] = '\0';
	sample_init(&s);
	s.req.query = big; /* 129 parameters */
	assert_int_equal(sample_sign(&s), -EINVAL);
	big[256] = '\0';
	assert_int_equal(sample_sign(&s), 0);
	free(big);
}

/* Each part of the input changes the signature. */
static void test_everything_is_bound(void **state)
{
	struct sigv4_signature base, other;
	struct sample s;

	(void)state;
	sample_init(&s);
	assert_int_equal(sigv4_sign(&base, &s.req, &s.cred), 0);
	for (int i = 0; i < 9; i++) {
		sample_init(&s);
		switch (i) {
		case 0:
			s.req.method = "PUT";
			break;
		case 1:
			s.req.path = "/x";
			break;
		case 2:
			s.req.query = "x";
			break;
		case 3:
			s.header[2].value = "TrentService.Encrypt";
			break;
		case 4:
			s.req.body = "[]";
			break;
		case 5:
			s.req.time++;
			break;
		case 6:
			s.req.region = "eu-west-2";
			break;
		case 7:
			strcpy(s.cred.secret_key, "Secret");
			break;
		default:
			s.cred.session_token = s.cred.access_key;
			break;
		}
		assert_int_equal(sigv4_sign(&other, &s.req, &s.cred), 0);
		assert_string_not_equal(
		    strstr(base.authorization, "Signature="), strstr(other.authorization, "Signature="));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vectors),
		cmocka_unit_test(test_signs_a_kms_request),
		cmocka_unit_test(test_refuses_malformed_headers),
		cmocka_unit_test(test_refuses_malformed_scope),
		cmocka_unit_test(test_refuses_what_is_too_long),
		cmocka_unit_test(test_everything_is_bound),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("sigv4", tests, NULL, NULL);
}
