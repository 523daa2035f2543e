/* audit: the text of lines, the chain over restarts, crashes and rotations. */
#include "audit_fixture.h"

/* ---- lines ---- */

static void test_text(void **state)
{
	static const char *const order[] = { "{\"seq\":2,\"time\":\"20",
		"\"event\":\"kms\",\"op\":\"Decrypt\",\"key\":\"" KEY "\"",
		"\"material\":\"cd00", "\"store\":\"010203", "\"domain\":\"09", "\"file\":\"aabb",
		"\"use\":\"file\",\"request_id\":\"r-1\",\"latency_ms\":17,\"result\":\"ok\",\"code\":null,"
		"\"http\":null,"
		"\"uid\":1234,\"pid\":77,\"context\":{\"customer\":\"a \\\"quoted\\\" one\"},\"prev\":\"" };
	struct audit_record rec;
	size_t len;

	(void)state;
	make(1);
	CLEANUP_FREE char *text = slurp(path, &len);
	char *line = strchr(text, '\n') + 1, *at = line;

	for (size_t i = 0; i < sizeof(order) / sizeof(*order); i++) {
		at = strstr(at, order[i]);
		assert_non_null(at);
	}
	*strchr(line, '\n') = '\0';
	assert_int_equal(audit_parse(&rec, line, strlen(line)), 0);
	assert_int_equal(rec.seq, 2);
	json_decref(rec.json);
	assert_non_null(strstr(text, "\"mount\":\"/mnt/a \\\"b\\\"\""));
}

static void test_text_of_failures_and_states(void **state)
{
	const struct context_ids ids = { .store = { 1 }, .domain = { 9 } };
	struct kms_err err = { .status = KMS_DOWN, .code = "bad\nbyte \xff\"" };
	const struct kms_event e = { .operation = "DescribeKey", .key = KEY, .err = &err };
	struct audit *a = open_audit();
	size_t len;

	(void)state;
	tell_status(a, KMS_DENIED);
	audit_kms(a, &e);
	audit_state(a, &ids, "locked", "KMS said \"no\"\x1b[2J");
	audit_close(a, "done");
	CLEANUP_FREE char *text = slurp(path, &len);

	assert_non_null(strstr(text, "\"material\":null"));
	assert_non_null(strstr(text, "\"request_id\":\"r-2\",\"latency_ms\":17,\"result\":\"denied\","
				     "\"code\":\"DisabledException\",\"http\":400"));
	assert_non_null(strstr(text, "\"store\":null,\"domain\":null,\"file\":null,\"use\":null,\"request_id\":null"));
	assert_non_null(strstr(text, "\"code\":\"bad\\\\x0abyte \\\\xff\\\"\",\"http\":null,\"uid\":null,\"pid\":null,"
				     "\"context\":{},"));
	assert_non_null(strstr(text, "\"state\":\"locked\",\"reason\":\"KMS said \\\"no\\\"\\\\x1b[2J\""));
	assert_int_equal(check().c.damage, 0);
	assert_int_equal(check().c.lines, 5);
}

static void test_longest_line(void **state)
{
	struct kms_err err = { .status = KMS_OK };
	struct context *c = calloc(1, sizeof(*c));
	char key[KMS_KEY_MAX + 1];
	const struct kms_event e = { .operation = "Decrypt", .key = key, .context = c, .err = &err };
	struct audit *a = open_audit();
	struct audit_status st;

	(void)state;
	memset(key, 1, KMS_KEY_MAX);
	key[KMS_KEY_MAX] = '\0';
	c->n = 1;
	memset(c->pair[0].name, 'n', 64);
	memset(c->pair[0].value, '"', CONTEXT_EXTRA_BYTES);
	audit_kms(a, &e);
	assert_true(audit_status(a, &st));
	assert_int_equal(st.dropped, 0);
	audit_close(a, "done");
	free(c);
	assert_int_equal(check().c.lines, 3);
	assert_int_equal(check().c.damage, 0);
}

/* Around the longest body: an event has a line, or is counted. */
static void test_too_long(void **state)
{
	struct kms_err err = { .status = KMS_OK };
	struct context *c = calloc(1, sizeof(*c));
	char key[KMS_KEY_MAX + 1];
	const struct kms_event e = { .operation = "Decrypt", .key = key, .context = c, .err = &err };
	struct audit *a = open_audit();
	unsigned told = 0;

	(void)state;
	memset(key, 1, KMS_KEY_MAX);
	key[KMS_KEY_MAX] = '\0';
	c->n = 2;
	memset(c->pair[0].name, 'n', 64);
	memset(c->pair[0].value, 1, CONTEXT_EXTRA_BYTES);
	for (size_t n = 1; n <= CONTEXT_EXTRA_BYTES; n++, told++) {
		c->pair[1].value[n - 1] = 'v';
		audit_kms(a, &e);
	}
	audit_close(a, "done");
	free(c);
	struct verdict v = { .c = { .found = found, .operations = json_object() } };

	v.c.arg = &v;
	check_one(&v, path);
	json_t *ok = json_object_get(json_object_get(v.c.operations, "Decrypt"), "ok");

	assert_int_equal(v.c.damage, 0);
	assert_true(v.c.dropped > 0 && v.c.dropped < told);
	assert_int_equal((uint64_t)json_integer_value(ok) + v.c.dropped, told);
	json_decref(v.c.operations);
}

static void test_no_line(void **state)
{
	static const char *const texts[] = { "", "{}", "{\"seq\":1}", "[]", "\"prev\"" };
	struct audit_record rec;
	size_t len;

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
		assert_int_equal(audit_parse(&rec, texts[i], strlen(texts[i])), -EINVAL);
	make(0);
	CLEANUP_FREE char *text = slurp(path, &len);
	size_t line = strcspn(text, "\n");

	assert_int_equal(audit_parse(&rec, text, line), 0);
	json_decref(rec.json);
	for (size_t n = 0; n < line; n++)
		assert_int_equal(audit_parse(&rec, text, n), -EINVAL);
}

static void test_level(void **state)
{
	struct audit_params p = params_of();

	(void)state;
	p.changes_only = true;
	struct audit *a = open_with(&p);

	tell(a, 5);
	tell_status(a, KMS_DENIED);
	audit_close(a, "done");
	assert_int_equal(check().c.lines, 3);
}

static void test_none(void **state)
{
	struct audit_status st;
	struct kms_err err = { 0 };
	const struct kms_event e = { .operation = "Decrypt", .key = KEY, .err = &err };
	struct context_ids ids = { 0 };

	(void)state;
	audit_kms(NULL, &e);
	audit_state(NULL, &ids, "open", "");
	audit_reopen(NULL);
	assert_false(audit_status(NULL, &st));
	audit_close(NULL, "");
}

/* syslog(3) copies to stderr when asked to: there is no syslog to be read here. */
static void test_syslog(void **state)
{
	struct audit_params p = params_of();
	struct audit_status st;
	size_t len;

	(void)state;
	int err = dup(STDERR_FILENO), to = open(old, O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(err >= 0 && to >= 0);
	openlog("byokfs", LOG_PERROR, LOG_DAEMON);
	assert_true(dup2(to, STDERR_FILENO) >= 0);
	p.path = NULL;
	p.syslog = true;
	struct audit *a = open_with(&p);

	tell(a, 2);
	assert_true(audit_status(a, &st));
	audit_close(a, "done");
	assert_true(dup2(err, STDERR_FILENO) >= 0);
	closelog();
	(void)close(err);
	(void)close(to);
	assert_null(st.path);
	CLEANUP_FREE char *text = slurp(old, &len);

	assert_non_null(strstr(text, "byokfs: {\"seq\":1,\"time\":"));
	assert_non_null(strstr(strstr(text, "byokfs: {\"seq\":3,"), "\"op\":\"Decrypt\""));
	assert_non_null(strstr(text, "byokfs: {\"seq\":4,"));
	assert_int_equal(access(path, F_OK), -1);
}

/* ---- the chain goes on ---- */

static void test_restart(void **state)
{
	struct audit_status st;

	(void)state;
	make(10);
	make(3);
	struct audit *a = open_audit();

	assert_true(audit_status(a, &st));
	assert_int_equal(st.seq, 18);
	assert_string_equal(st.path, path);
	audit_close(a, "done");
	struct verdict v = check();

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.notes, 0);
	assert_int_equal(v.c.lines, 19);
	assert_int_equal(v.c.seq, 19);
	assert_int_equal(v.c.chains, 1);
	assert_int_equal(check_with(path, NULL, st.head).c.anchored, true);
}

static void test_torn(void **state)
{
	size_t len, cut, all;

	(void)state;
	make(3);
	CLEANUP_FREE char *whole = slurp(path, &len);
	size_t last = (size_t)((char *)memrchr(whole, '\n', len - 1) - whole) + 1;

	for (cut = last + 1; cut < len; cut += cut + 4 < len && cut > last + 40 ? 31 : 1) {
		spill(path, whole, cut);
		assert_int_equal(check().c.damage, 0);
		make(1);
		struct verdict v = check();
		bool was_whole = cut == len - 1;

		assert_int_equal(v.c.damage, 0);
		assert_int_equal(v.c.torn, was_whole ? 0 : 1);
		assert_int_equal(v.c.lines, was_whole ? 8 : 7);
		assert_int_equal(v.c.seq, was_whole ? 8 : 7);
		/* What was torn is covered too, and so is the line before it. */
		CLEANUP_FREE char *text = slurp(path, &all);

		text[last] ^= 1;
		spill(path, text, all);
		assert_true(check().c.damage > 0);
		text[last] ^= 1;
		text[last - 10] ^= 1;
		spill(path, text, all);
		assert_true(check().c.damage > 0);
	}
}

static void test_torn_twice_and_holes(void **state)
{
	char hole[5000] = { 0 };
	size_t len, all;

	(void)state;
	make(2);
	CLEANUP_FREE char *whole = slurp(path, &len);

	memcpy(whole + len, "{\"seq\":5,\"ti\n{\"seq\":5,\"time\":\n", 30);
	spill(path, whole, len + 30);
	assert_int_equal(check().c.damage, 1);
	make(0);
	assert_int_equal(check().c.damage, 0);
	assert_int_equal(check().c.torn, 1);
	memcpy(whole + len, hole, sizeof(hole));
	spill(path, whole, len + sizeof(hole));
	make(0);
	struct verdict v = check();

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.torn, 1);
	assert_int_equal(v.c.lines, 6);
	/* Longer than any line. */
	CLEANUP_FREE char *text = slurp(path, &all);

	memmove(text + len + 40000, text + len, all - len);
	memset(text + len, 'x', 40000);
	spill(path, text, all + 40000);
	assert_true(check().c.damage > 0);
	memset(whole + len, 'x', 40000);
	spill(path, whole, len + 40000);
	make(0);
	v = check();
	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.torn, 1);
}

static void test_torn_first(void **state)
{
	(void)state;
	spill(path, "{\"seq\":1,\"time\":\"20", 19);
	make(2);
	struct verdict v = check();

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.torn, 1);
	assert_int_equal(v.c.lines, 4);
	spill(path, "", 0);
	make(0);
	assert_int_equal(check().c.lines, 2);
}

static void refused(const char *name, int err, const char *word)
{
	struct audit_params p = params_of();
	char why[AUDIT_WHY];
	struct audit *a = NULL;

	p.path = name;
	assert_int_equal(audit_open(&a, &p, why), -err);
	assert_non_null(strstr(why, word));
}

static void test_refused(void **state)
{
	size_t len;

	(void)state;
	spill(path, "precious\n", 9);
	refused(path, EINVAL, "does not end like an audit");
	CLEANUP_FREE char *text = slurp(path, &len);

	assert_string_equal(text, "precious\n");
	assert_int_equal(chmod(path, 0620), 0);
	refused(path, EINVAL, "others may write");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("/dev/null", path), 0);
	refused(path, ELOOP, "cannot open");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkfifo(path, 0600), 0);
	refused(path, EINVAL, "not a regular file");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	refused(path, EISDIR, "cannot open");
	assert_int_equal(rmdir(path), 0);
	refused("/nowhere/log", ENOENT, "/nowhere/log");
	struct audit *a = open_audit();

	refused(path, EBUSY, "in use");
	audit_close(a, "done");
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(check().c.lines, 2);
}

/* More torn bytes than are looked at: where the chain stands is not known. */
static void test_torn_beyond_the_limit(void **state)
{
	struct stat st;

	(void)state;
	make(1);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(truncate(path, st.st_size + (off_t)(AUDIT_TAIL - AUDIT_LINE_MAX)), 0);
	make(0);
	assert_int_equal(check().c.torn, 1);
	assert_int_equal(truncate(path, st.st_size), 0);
	assert_int_equal(truncate(path, st.st_size + (off_t)AUDIT_TAIL), 0);
	refused(path, EINVAL, "does not end like an audit");
}

/* ---- rotation ---- */

/* Lines from now on are younger. */
static void next_ms(void)
{
	struct timespec begin, now;

	(void)clock_gettime(CLOCK_REALTIME, &begin);
	do
		(void)clock_gettime(CLOCK_REALTIME, &now);
	while (now.tv_sec == begin.tv_sec && now.tv_nsec / 1000000 == begin.tv_nsec / 1000000);
}

static void test_rotation(void **state)
{
	struct audit *a = open_audit();
	size_t len;

	(void)state;
	tell(a, 3);
	audit_reopen(a); /* nothing was renamed */
	assert_int_equal(rename(path, old), 0);
	audit_reopen(a);
	next_ms();
	tell(a, 3);
	audit_close(a, "done");
	struct verdict v = check_with(old, path, NULL);

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.notes, 0);
	assert_int_equal(v.c.lines, 9);
	assert_int_equal(v.c.files, 2);
	CLEANUP_FREE char *text = slurp(path, &len);

	assert_non_null(strstr(text, "\"event\":\"open\",\"why\":\"rotated\""));
	/* Alone: whole, and it says what it continues. */
	v = check();
	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.notes, 1);
	assert_true(v.c.first_seq > 1);
	/* In the wrong order. */
	assert_true(check_with(path, old, NULL).c.damage > 0);
}

static void test_rotation_refused(void **state)
{
	struct audit *a = open_audit();
	size_t len;

	(void)state;
	assert_int_equal(rename(path, old), 0);
	spill(path, "somebody else's\n", 16);
	audit_reopen(a);
	tell(a, 2);
	audit_close(a, "done");
	CLEANUP_FREE char *text = slurp(path, &len);

	assert_string_equal(text, "somebody else's\n");
	assert_int_equal(check_with(old, NULL, NULL).c.lines, 4);
}

static void test_new_chain(void **state)
{
	(void)state;
	make(1);
	assert_int_equal(rename(path, old), 0);
	make(1);
	struct verdict v = check_with(old, path, NULL);

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.c.chains, 2);
	assert_int_equal(v.notes, 1);
}

/* ---- many at once ---- */

static void *teller(void *arg)
{
	struct kms_err err = { .status = KMS_OK };
	const struct kms_event e = { .operation = "Decrypt", .key = KEY, .err = &err };

	for (int i = 0; i < 1000; i++)
		audit_kms(arg, &e);
	return NULL;
}

static void test_threads(void **state)
{
	struct audit *a = open_audit();
	struct audit_status st;
	pthread_t thread[4];
	uint64_t lines;

	(void)state;
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, teller, a), 0);
	assert_int_equal(rename(path, old), 0);
	audit_reopen(a);
	for (int i = 0; i < 4; i++) {
		assert_true(audit_status(a, &st));
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	}
	audit_close(a, "done");
	struct verdict v = check_with(old, path, NULL);

	lines = v.c.lines - 3;
	assert_int_equal(v.c.damage, 0);
	assert_int_equal(lines, 4000);
	assert_int_equal(v.c.dropped, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_text),
		TEST(test_text_of_failures_and_states),
		TEST(test_longest_line),
		TEST(test_too_long),
		TEST(test_no_line),
		TEST(test_level),
		TEST(test_none),
		TEST(test_syslog),
		TEST(test_restart),
		TEST(test_torn),
		TEST(test_torn_twice_and_holes),
		TEST(test_torn_first),
		TEST(test_refused),
		TEST(test_torn_beyond_the_limit),
		TEST(test_rotation),
		TEST(test_rotation_refused),
		TEST(test_new_chain),
		TEST(test_threads),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
