/* devkms_sigv4.c — verifies AWS Signature Version 4 of a received request.
 *
 * It shares no code with the signer it is used to test. KMS and STS need the plain case only: path "/", no query, the
 * whole body hashed. The canonical request is never built: its pieces go straight into the hash. */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <strings.h>
#include <time.h>

#include "bytes.h"
#include "devkms.h"

#define WINDOW_S 900
#define MISMATCH                                                                                                \
	"The request signature we calculated does not match the signature you provided. Check your AWS Secret " \
	"Access Key "                                                                                           \
	"and signing method. Consult the service documentation for details."

/* The Authorization header taken apart; pointers into text. */
struct authorization {
	char text[4096];
	char *access_key, *date, *region, *service, *end, *signed_headers, *signature;
};

static void hash_text(crypto_hash_sha256_state *h, const char *text)
{
	(void)crypto_hash_sha256_update(h, (const unsigned char *)text, strlen(text));
}

static void hmac(uint8_t out[static 32], const uint8_t *key, size_t n, const char *text)
{
	crypto_auth_hmacsha256_state h;

	(void)crypto_auth_hmacsha256_init(&h, key, n);
	(void)crypto_auth_hmacsha256_update(&h, (const unsigned char *)text, strlen(text));
	(void)crypto_auth_hmacsha256_final(&h, out);
}

static char *field(char *text, const char *name)
{
	char *at = strstr(text, name);

	if (!at)
		return NULL;
	/* a parameter starts the list or follows a comma or blank */
	if (at > text && at[-1] != ' ' && at[-1] != ',')
		return NULL;
	return at + strlen(name);
}

static int parse_authorization(struct dk_call *c, const char *value, struct authorization *a)
{
	char **part[] = { &a->access_key, &a->date, &a->region, &a->service, &a->end };
	char *save = NULL, *credential;

	if (strncmp(value, "AWS4-HMAC-SHA256 ", 17) != 0 || strlen(value) >= sizeof(a->text))
		return dk_fail(
		    c, "IncompleteSignatureException", "Unsupported AWS 'algorithm' in the Authorization header");
	(void)snprintf(a->text, sizeof(a->text), "%s", value + 17);
	credential = field(a->text, "Credential=");
	a->signed_headers = field(a->text, "SignedHeaders=");
	a->signature = field(a->text, "Signature=");
	if (!credential || !a->signed_headers || !a->signature)
		return dk_fail(c, "IncompleteSignatureException",
		    "Authorization header requires 'Credential', 'SignedHeaders' and "
		    "'Signature' parameters. Authorization=AWS4-HMAC-SHA256");
	credential[strcspn(credential, ", ")] = '\0';
	a->signed_headers[strcspn(a->signed_headers, ", ")] = '\0';
	a->signature[strcspn(a->signature, ", ")] = '\0';
	for (size_t i = 0; i < sizeof(part) / sizeof(part[0]); i++) {
		*part[i] = strtok_r(i == 0 ? credential : NULL, "/", &save);
		if (!*part[i])
			return dk_fail(c, "IncompleteSignatureException",
			    "Credential must have exactly 5 slash-delimited elements, e.g. "
			    "keyid/date/region/service/term");
	}
	return 0;
}

static int check_scope(struct dk_call *c, const struct authorization *a, const char *service, const char *stamp)
{
	size_t n = strlen(a->region);

	if (n < 5 || n >= DK_REGION || strspn(a->region, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
		return dk_fail(c, "InvalidSignatureException", "Credential should be scoped to a valid region.");
	if (strcmp(a->service, service) != 0)
		return dk_fail(
		    c, "InvalidSignatureException", "Credential should be scoped to correct service: '%s'.", service);
	if (strcmp(a->end, "aws4_request") != 0)
		return dk_fail(c, "InvalidSignatureException",
		    "Credential should be scoped with a valid terminator: 'aws4_request', not '%.40s'.", a->end);
	if (strlen(a->date) != 8 || strncmp(a->date, stamp, 8) != 0)
		return dk_fail(c, "InvalidSignatureException",
		    "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
		    "'%.16s' != '%.8s', from '%s'.",
		    a->date, stamp, stamp);
	return 0;
}

static void stamp_of(char out[17], int64_t t)
{
	time_t tt = (time_t)t;
	struct tm tm;

	if (!gmtime_r(&tt, &tm) || strftime(out, 17, "%Y%m%dT%H%M%SZ", &tm) == 0)
		out[0] = '\0';
}

static int check_time(struct dk_call *c, const char *stamp)
{
	struct tm tm = { 0 };
	const char *end = strptime(stamp, "%Y%m%dT%H%M%SZ", &tm);
	char bound[17], now[17];
	int64_t t;

	if (strlen(stamp) != 16 || !end || *end != '\0')
		return dk_fail(c, "IncompleteSignatureException",
		    "Date must be in ISO-8601 'basic format'. Got '%.40s'. See http://en.wikipedia.org/wiki/ISO_8601",
		    stamp);
	t = timegm(&tm);
	stamp_of(now, c->now);
	if (t < c->now - WINDOW_S) {
		stamp_of(bound, c->now - WINDOW_S);
		return dk_fail(c, "InvalidSignatureException",
		    "Signature expired: %s is now earlier than %s (%s - 15 min.)", stamp, bound, now);
	}
	if (t > c->now + WINDOW_S) {
		stamp_of(bound, c->now + WINDOW_S);
		return dk_fail(c, "InvalidSignatureException",
		    "Signature not yet current: %s is still later than %s (%s + 15 min.)", stamp, bound, now);
	}
	return 0;
}

/* Is name one of the ;-separated list? */
static bool listed(const char *list, const char *name)
{
	size_t n = strlen(name);

	for (const char *p = list; p; p = strchr(p, ';'), p = p ? p + 1 : NULL)
		if (strncasecmp(p, name, n) == 0 && (p[n] == ';' || p[n] == '\0'))
			return true;
	return false;
}

/* host, x-amz-date and whatever else of x-amz-* came must be signed. */
static int check_signed(struct dk_call *c, const char *list)
{
	const struct dk_request *r = c->req;

	if (!listed(list, "host"))
		return dk_fail(c, "InvalidSignatureException",
		    "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.");
	for (size_t i = 0; i < r->headers; i++)
		if (strncasecmp(r->header[i].name, "x-amz-", 6) == 0 && !listed(list, r->header[i].name))
			return dk_fail(c, "InvalidSignatureException",
			    "'%.64s' must be a 'SignedHeader' in the AWS Authorization.", r->header[i].name);
	return 0;
}

/* Trimmed, inner runs of blanks as one. */
static void hash_value(crypto_hash_sha256_state *h, const char *v)
{
	bool gap = false, any = false;

	for (; *v; v++) {
		if (*v == ' ' || *v == '\t') {
			gap = any;
			continue;
		}
		if (gap)
			hash_text(h, " ");
		gap = false;
		any = true;
		(void)crypto_hash_sha256_update(h, (const unsigned char *)v, 1);
	}
}

/* Adds "name:value\n"; a name the request lacks makes the signature fail. */
static void hash_header(crypto_hash_sha256_state *h, const struct dk_request *r, const char *name, size_t n)
{
	bool first = true;

	(void)crypto_hash_sha256_update(h, (const unsigned char *)name, n);
	hash_text(h, ":");
	for (size_t i = 0; i < r->headers; i++) {
		if (strlen(r->header[i].name) != n || strncasecmp(r->header[i].name, name, n) != 0)
			continue;
		if (!first)
			hash_text(h, ",");
		first = false;
		hash_value(h, r->header[i].value);
	}
	hash_text(h, "\n");
}

static void hash_request(const struct dk_request *r, const char *list, char out[static 65])
{
	crypto_hash_sha256_state h;
	uint8_t digest[32];
	char body[65];

	(void)crypto_hash_sha256(digest, (const unsigned char *)r->body, r->len);
	bytes_hex(body, digest, sizeof(digest));
	(void)crypto_hash_sha256_init(&h);
	hash_text(&h, r->method);
	hash_text(&h, "\n/\n\n");
	for (const char *p = list; *p;) {
		size_t n = strcspn(p, ";");

		hash_header(&h, r, p, n);
		p += n + (p[n] == ';');
	}
	hash_text(&h, "\n");
	hash_text(&h, list);
	hash_text(&h, "\n");
	hash_text(&h, body);
	(void)crypto_hash_sha256_final(&h, digest);
	bytes_hex(out, digest, sizeof(digest));
}

static bool signature_good(struct dk_call *c, const struct authorization *a, const char *stamp, const char *secret)
{
	char first[160], text[512], request[65];
	uint8_t k[32], got[32];
	bool good;

	hash_request(c->req, a->signed_headers, request);
	(void)snprintf(first, sizeof(first), "AWS4%s", secret);
	hmac(k, (const uint8_t *)first, strlen(first), a->date);
	hmac(k, k, sizeof(k), a->region);
	hmac(k, k, sizeof(k), a->service);
	hmac(k, k, sizeof(k), a->end);
	(void)snprintf(text, sizeof(text), "AWS4-HMAC-SHA256\n%s\n%s/%s/%s/%s\n%s", stamp, a->date, a->region,
	    a->service, a->end, request);
	hmac(k, k, sizeof(k), text);
	good = bytes_unhex(got, sizeof(got), a->signature, strlen(a->signature)) == 0 && bytes_equal(got, k, sizeof(k));
	explicit_bzero(first, sizeof(first));
	explicit_bzero(k, sizeof(k));
	return good && !c->req->query;
}

int dk_sigv4_check(struct dk_call *c, const char *service)
{
	const char *value = dk_req_header(c->req, "authorization"), *stamp = dk_req_header(c->req, "x-amz-date");
	CLEANUP_CREDENTIAL struct dk_credential found = { .expires = 0 };
	struct authorization a;
	int r;

	if (!value)
		return dk_fail(c, "MissingAuthenticationTokenException", "Missing Authentication Token");
	r = parse_authorization(c, value, &a);
	if (r < 0)
		return r;
	if (!stamp)
		return dk_fail(c, "IncompleteSignatureException",
		    "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.");
	r = dk_credential_find(c, a.access_key, dk_req_header(c->req, "x-amz-security-token"), &found);
	if (r == 0)
		r = check_scope(c, &a, service, stamp);
	if (r == 0)
		r = check_time(c, stamp);
	if (r == 0)
		r = check_signed(c, a.signed_headers);
	if (r == 0 && !signature_good(c, &a, stamp, found.secret))
		r = dk_fail(c, "InvalidSignatureException", "%s", MISMATCH);
	if (r == 0)
		(void)snprintf(c->caller.region, sizeof(c->caller.region), "%s", a.region);
	return r;
}
