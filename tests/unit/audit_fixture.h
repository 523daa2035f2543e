/* audit_fixture.h — an audit in a directory of its own, events for it, and what the check says of it. */
#ifndef AUDIT_FIXTURE_H
#define AUDIT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>

#include "audit.h"
#include "bytes.h"
#include "secret.h"

#define KEY "arn:aws:kms:eu-west-1:111122223333:key/1234"

static char dir[64], path[96], old[96];

static const uint8_t store_id[16] = { 1, 2, 3 }, file_id[16] = { 0xaa, 0xbb };

/* ---- helpers ---- */

static int setup(void **state)
{
	(void)state;
	(void)snprintf(dir, sizeof(dir), "/tmp/test_audit.XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(path, sizeof(path), "%s/log", dir);
	(void)snprintf(old, sizeof(old), "%s/log.1", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	(void)unlink(path);
	(void)rmdir(path);
	(void)unlink(old);
	return rmdir(dir);
}

static struct audit_params params_of(void)
{
	return (struct audit_params){
		.path = path, .program = "test", .mount = "/mnt/a \"b\"", .key = KEY, .store = store_id, .retry_ms = 1
	};
}

static struct audit *open_with(const struct audit_params *p)
{
	char why[AUDIT_WHY];
	struct audit *a = NULL;

	assert_int_equal(audit_open(&a, p, why), 0);
	return a;
}

static struct audit *open_audit(void)
{
	struct audit_params p = params_of();

	return open_with(&p);
}

static void tell_status(struct audit *a, enum kms_status status)
{
	static struct context context;
	const struct context_ids ids = { .suite = 1, .store = { 1, 2, 3 }, .domain = { 9 } };
	struct kms_used used = { .key = KEY, .material = { 0xcd }, .request_id = "r-1" };
	struct kms_err err = { .status = status, .http = 400, .code = "DisabledException", .request_id = "r-2" };
	struct context_extra extra;
	const struct kms_event e = { .operation = "Decrypt",
		.context = &context,
		.key = KEY,
		.used = status == KMS_OK ? &used : NULL,
		.err = &err,
		.latency_ms = 17 };

	assert_int_equal(context_parse_extra(&extra, "customer:a \"quoted\" one"), 0);
	context_build(&context, CONTEXT_FILE, &ids, file_id, &extra);
	context.cause = (struct context_cause){ .uid = 1234, .pid = 77 };
	audit_kms(a, &e);
}

static void tell(struct audit *a, unsigned n)
{
	while (n--)
		tell_status(a, KMS_OK);
}

static char *slurp(const char *name, size_t *len)
{
	char *bytes = calloc(1, 1 << 22);
	int fd = open(name, O_RDONLY);

	assert_true(fd >= 0);
	*len = (size_t)read(fd, bytes, (1 << 22) - 1);
	(void)close(fd);
	return bytes;
}

static inline void spill(const char *name, const void *bytes, size_t len)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), len);
	(void)close(fd);
}

struct verdict {
	struct audit_check c;
	unsigned notes;
	char last[400];
	uint64_t line;
};

static void found(void *arg, enum audit_finding kind, const char *file, uint64_t line, const char *what)
{
	struct verdict *v = arg;

	(void)file;
	v->notes += kind == AUDIT_NOTE;
	if (kind == AUDIT_DAMAGE && v->c.damage == 1) {
		(void)snprintf(v->last, sizeof(v->last), "%s", what);
		v->line = line;
	}
}

static void check_one(struct verdict *v, const char *name)
{
	int fd = open(name, O_RDONLY);

	assert_true(fd >= 0);
	assert_int_equal(audit_check_file(&v->c, fd, name), 0);
	(void)close(fd);
}

static struct verdict check_with(const char *first, const char *second, const uint8_t *anchor)
{
	struct verdict v = { .c = { .found = found, .anchor = anchor } };

	v.c.arg = &v;
	check_one(&v, first);
	if (second)
		check_one(&v, second);
	audit_check_end(&v.c);
	return v;
}

static struct verdict check(void)
{
	return check_with(path, NULL, NULL);
}

/* An audit of n events between open and close. */
static void make(unsigned n)
{
	struct audit *a = open_audit();

	tell(a, n);
	audit_close(a, "done");
}

#endif
