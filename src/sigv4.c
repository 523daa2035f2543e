/* sigv4.c — the canonical request and its signature.
 *
 * Hides: the order and folding of headers, and the chain of HMACs. Texts are built in buffers whose size is
 * computed beforehand, so that nothing is reallocated and one wipe removes every trace of the token. */
#include "sigv4.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "bytes.h"
#include "sigv4_internal.h"

#define HEADERS_MAX 32u
#define INPUT_MAX   65536u /* of all parts together, without the body */
#define SCOPE_MAX   256u
#define SHA256      32u

/* Everything both public functions need. */
struct job {
	const struct sigv4_request *req;
	const struct sigv4_credentials *cred;
	struct sigv4_header header[HEADERS_MAX];
	size_t nheader;
	char date[17];
	char scope[SCOPE_MAX];
	struct sigv4_text canonical, names, to_sign;
};

struct digest {
	uint8_t b[SHA256];
};

static void wipe_digest(struct digest *d)
{
	explicit_bzero(d, sizeof(*d));
}

#define CLEANUP_DIGEST __attribute__((cleanup(wipe_digest)))

/* ---- headers ---- */

static bool header_ok(const struct sigv4_header *h)
{
	if (!h->name || !h->value || !*h->name || strpbrk(h->value, "\r\n"))
		return false;
	for (const char *c = h->name; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr("-_.!#$%&'*+^`|~", *c))
			return false;
	return true;
}

static bool is_ours(const char *name)
{
	return !strcasecmp(name, "x-amz-date") || !strcasecmp(name, "x-amz-security-token") ||
	    !strcasecmp(name, "authorization");
}

/* Sorted by name; equal names stay in the order given. */
static int insert_header(struct job *job, const struct sigv4_header *h)
{
	size_t i = job->nheader;

	if (i == HEADERS_MAX || !header_ok(h))
		return -EINVAL;
	for (; i && strcasecmp(job->header[i - 1].name, h->name) > 0; i--)
		job->header[i] = job->header[i - 1];
	job->header[i] = *h;
	job->nheader++;
	return 0;
}

static int collect_headers(struct job *job)
{
	const struct sigv4_header date = { "x-amz-date", job->date };
	const struct sigv4_header token = { "x-amz-security-token", job->cred->session_token };
	bool host = false;
	int r = insert_header(job, &date);

	if (!r && token.value)
		r = insert_header(job, &token);
	for (size_t i = 0; !r && i < job->req->nheader; i++) {
		const struct sigv4_header *h = &job->req->header[i];

		r = insert_header(job, h);
		if (!r && is_ours(h->name))
			return -EINVAL;
		host = host || (!r && !strcasecmp(h->name, "host"));
	}
	return r ? r : host ? 0 : -EINVAL;
}

/* Trimmed, runs of blanks folded to one. */
static void add_value(struct sigv4_text *t, const char *value)
{
	bool gap = false, begun = false;

	for (; *value; value++) {
		if (*value == ' ' || *value == '\t') {
			gap = begun;
			continue;
		}
		if (gap)
			sigv4_text_put(t, ' ');
		sigv4_text_put(t, *value);
		begun = true;
		gap = false;
	}
}

static void add_headers(struct job *job)
{
	struct sigv4_text *t = &job->canonical;

	for (size_t i = 0; i < job->nheader; i++) {
		const struct sigv4_header *h = &job->header[i];

		if (i && !strcasecmp(h[-1].name, h->name)) {
			t->len--; /* the newline of the one before */
			sigv4_text_put(t, ',');
		} else {
			if (i)
				sigv4_text_put(&job->names, ';');
			for (const char *c = h->name; *c; c++) {
				char lower = (char)(*c >= 'A' && *c <= 'Z' ? *c | 0x20 : *c);

				sigv4_text_put(t, lower);
				sigv4_text_put(&job->names, lower);
			}
			sigv4_text_put(t, ':');
		}
		add_value(t, h->value);
		sigv4_text_put(t, '\n');
	}
}

/* ---- the two texts ---- */

static int add_sha256(struct sigv4_text *t, const void *data, size_t len)
{
	char hex[2 * SHA256 + 1];
	uint8_t md[SHA256];

	if (!EVP_Digest(data, len, md, NULL, EVP_sha256(), NULL))
		return -EIO;
	bytes_hex(hex, md, sizeof(md));
	sigv4_text_add(t, hex);
	return 0;
}

static int make_canonical(struct job *job)
{
	const struct sigv4_request *req = job->req;
	struct sigv4_text *t = &job->canonical;
	int r;

	sigv4_text_add(t, req->method);
	sigv4_text_put(t, '\n');
	if (req->exact_path)
		sigv4_add_exact_path(t, req->path);
	else
		sigv4_add_normal_path(t, req->path);
	sigv4_text_put(t, '\n');
	r = sigv4_add_query(t, req->query ? req->query : "");
	if (r)
		return r;
	sigv4_text_put(t, '\n');
	add_headers(job);
	sigv4_text_put(t, '\n');
	sigv4_text_add(t, job->names.p);
	sigv4_text_put(t, '\n');
	return add_sha256(t, req->body ? req->body : "", req->body ? req->bodylen : 0);
}

static int make_string_to_sign(struct job *job)
{
	struct sigv4_text *t = &job->to_sign;
	int r;

	sigv4_text_add(t, "AWS4-HMAC-SHA256\n");
	sigv4_text_add(t, job->date);
	sigv4_text_put(t, '\n');
	sigv4_text_add(t, job->scope);
	sigv4_text_put(t, '\n');
	r = add_sha256(t, job->canonical.p, job->canonical.len);
	return r ? r : job->canonical.full || job->names.full || t->full ? -EINVAL : 0;
}

static bool word_ok(const char *s)
{
	if (!s || !*s)
		return false;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && *s != '-' && *s != '_')
			return false;
	return true;
}

static int make_scope(struct job *job)
{
	const struct sigv4_request *req = job->req;
	time_t t = (time_t)req->time;
	struct tm tm;
	int n;

	if (req->time < 0 || !gmtime_r(&t, &tm) || strftime(job->date, sizeof(job->date), "%Y%m%dT%H%M%SZ", &tm) != 16)
		return -EINVAL;
	if (!word_ok(req->region) || !word_ok(req->service) || !word_ok(job->cred->access_key))
		return -EINVAL;
	n = snprintf(job->scope, sizeof(job->scope), "%.8s/%s/%s/aws4_request", job->date, req->region, req->service);
	return n < 0 || (size_t)n >= sizeof(job->scope) ? -EINVAL : 0;
}

/* Room for all parts, every byte percent-encoded, every name twice. 0: malformed or too long. */
static size_t room(const struct sigv4_request *req, const struct sigv4_credentials *cred)
{
	size_t n;

	if (!req->method || !word_ok(req->method) || !req->path || req->path[0] != '/' || req->nheader > HEADERS_MAX)
		return 0;
	n = strlen(req->method) + strlen(req->path);
	n += (req->query ? strlen(req->query) : 0) + (cred->session_token ? strlen(cred->session_token) : 0);
	for (size_t i = 0; i < req->nheader; i++) {
		if (!req->header[i].name || !req->header[i].value)
			return 0;
		n += strlen(req->header[i].name) + strlen(req->header[i].value);
	}
	return n > INPUT_MAX ? 0 : 3 * n + 1024;
}

static void job_close(struct job *job)
{
	sigv4_text_close(&job->canonical);
	sigv4_text_close(&job->names);
	sigv4_text_close(&job->to_sign);
}

static int job_run(struct job *job)
{
	size_t size = room(job->req, job->cred);
	int r = size ? make_scope(job) : -EINVAL;

	if (!r)
		r = collect_headers(job);
	if (!r)
		r = sigv4_text_open(&job->canonical, size);
	if (!r)
		r = sigv4_text_open(&job->names, size);
	if (!r)
		r = sigv4_text_open(&job->to_sign, 512);
	if (!r)
		r = make_canonical(job);
	return r ? r : make_string_to_sign(job);
}

/* ---- the signature ---- */

static int hmac(struct digest *out, const void *key, size_t keylen, const char *text, size_t len)
{
	unsigned int n = 0;

	if (!HMAC(EVP_sha256(), key, (int)keylen, (const unsigned char *)text, len, out->b, &n) || n != SHA256)
		return -EIO;
	return 0;
}

static int make_signature(char hex[static 2 * SHA256 + 1], const struct job *job)
{
	const char *step[] = { job->req->region, job->req->service, "aws4_request", job->to_sign.p };
	CLEANUP_DIGEST struct digest key = { { 0 } };
	char first[4 + sizeof(job->cred->secret_key)] = "AWS4";
	size_t len = strnlen(job->cred->secret_key, sizeof(job->cred->secret_key));
	int r;

	memcpy(first + 4, job->cred->secret_key, len);
	r = hmac(&key, first, 4 + len, job->date, 8);
	explicit_bzero(first, sizeof(first));
	for (size_t i = 0; !r && i < sizeof(step) / sizeof(step[0]); i++) {
		CLEANUP_DIGEST struct digest last = key;

		r = hmac(&key, last.b, sizeof(last.b), step[i], strlen(step[i]));
	}
	if (!r)
		bytes_hex(hex, key.b, sizeof(key.b));
	return r;
}

int sigv4_sign(struct sigv4_signature *out, const struct sigv4_request *req, const struct sigv4_credentials *cred)
{
	__attribute__((cleanup(job_close))) struct job job = { .req = req, .cred = cred };
	char hex[2 * SHA256 + 1];
	int n, r = job_run(&job);

	if (!r)
		r = make_signature(hex, &job);
	if (r)
		return r;
	memcpy(out->amz_date, job.date, sizeof(job.date));
	n = snprintf(out->authorization, sizeof(out->authorization),
	    "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s", cred->access_key, job.scope,
	    job.names.p, hex);
	return n < 0 || (size_t)n >= sizeof(out->authorization) ? -EINVAL : 0;
}

int sigv4_canonical(char **out, const struct sigv4_request *req, const struct sigv4_credentials *cred)
{
	__attribute__((cleanup(job_close))) struct job job = { .req = req, .cred = cred };
	int r = job_run(&job);

	if (r)
		return r;
	return asprintf(out, "%s\n\n%s", job.canonical.p, job.to_sign.p) < 0 ? -ENOMEM : 0;
}
