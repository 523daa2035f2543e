/* test_config.c — what byokfs.ini may say, and how mistakes are named. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "config.h"

struct fixture {
	char dir[64];
	char path[96];
	char why[CONFIG_WHY];
	struct config config;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/test_config.XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	(void)snprintf(f->path, sizeof(f->path), "%s/byokfs.ini", f->dir);
	config_init(&f->config);
	(void)unsetenv("BYOKFS_CONFIG");
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	config_free(&f->config);
	(void)unlink(f->path);
	(void)rmdir(f->dir);
	free(f);
	return 0;
}

static void put(struct fixture *f, const char *text, size_t len)
{
	FILE *out = fopen(f->path, "w");

	assert_non_null(out);
	assert_int_equal(fwrite(text, 1, len, out), len);
	assert_int_equal(fclose(out), 0);
}

static int read_text(struct fixture *f, const char *text)
{
	put(f, text, strlen(text));
	f->why[0] = '\0';
	return config_read(&f->config, f->path, f->why);
}

/* text is refused; the message names line and says what. */
static void refused(struct fixture *f, const char *text, int line, const char *what)
{
	char at[128];

	config_free(&f->config);
	config_init(&f->config);
	assert_true(read_text(f, text) < 0);
	(void)snprintf(at, sizeof(at), "%s:%d: ", f->path, line);
	if (strncmp(f->why, at, strlen(at)) != 0 || !strstr(f->why, what))
		fail_msg("expected '%s...%s', got '%s'", at, what, f->why);
}

static void accepted(struct fixture *f, const char *text)
{
	config_free(&f->config);
	config_init(&f->config);
	if (read_text(f, text) < 0)
		fail_msg("%s", f->why);
}

static void defaults_are_the_documented_ones(void **state)
{
	const struct config *c = &((struct fixture *)*state)->config;

	assert_string_equal(c->kms.provider, "aws");
	assert_null(c->kms.key);
	assert_null(c->kms.proxy);
	assert_int_equal(c->cache.probe_ms, 10000);
	assert_int_equal(c->cache.lease_ms, 30000);
	assert_int_equal(c->cache.max_age_ms, 300000);
	assert_int_equal(c->cache.idle_ms, 60000);
	assert_false(c->cache.allow_unlocked);
	assert_true(c->mount.writeback);
	assert_false(c->mount.commit_strict);
	assert_false(c->mount.torn_ok);
	assert_false(c->mount.locked_start);
	assert_string_equal(c->mount.transport, "fuse");
	assert_int_equal(c->store.suite, 0);
	assert_true(c->log.syslog);
	assert_string_equal(c->log.level, "info");
}

static void a_usual_file_is_read(void **state)
{
	struct fixture *f = *state;

	accepted(f,
	    "# a comment\n; another\n\n[kms]\n"
	    "key = arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab ; pinned\n"
	    "region=eu-central-1\nendpoint = https://localhost:8443/x?a=b;c\ncontext = tenant:7, team:a b\n"
	    "[cache] ; times\nprobe = 500ms\nlease = 2m\n  \t\n[mount]\nwriteback = "
	    "false\ncommit=strict\n[log]\nlevel=debug");
	assert_string_equal(
	    f->config.kms.key, "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab");
	assert_string_equal(f->config.kms.region, "eu-central-1");
	assert_string_equal(f->config.kms.endpoint, "https://localhost:8443/x?a=b;c");
	assert_int_equal(f->config.cache.probe_ms, 500);
	assert_int_equal(f->config.cache.lease_ms, 120000);
	assert_false(f->config.mount.writeback);
	assert_true(f->config.mount.commit_strict);
	assert_string_equal(f->config.log.level, "debug");
	assert_string_equal(f->config.source, f->path);
	assert_int_equal(config_check(&f->config, f->why), 0);
	assert_int_equal(f->config.extra.n, 2);
}

static void windows_line_ends_and_bom_do_no_harm(void **state)
{
	struct fixture *f = *state;

	accepted(f, "\xef\xbb\xbf[kms]\r\nkey = k\r\n\r\n[cache]\r\nprobe = 1s\r\n");
	assert_string_equal(f->config.kms.key, "k");
	assert_int_equal(f->config.cache.probe_ms, 1000);
	accepted(f, "\xef\xbb\xbf# comment\n[kms]\nkey=k\n");
	assert_string_equal(f->config.kms.key, "k");
	refused(f, "[kms]\nkey = a\rb\n", 2, "control character");
	refused(f, "[kms]\n\xef\xbb\xbfkey = k\n", 2, "unknown key");
}

static void unknown_and_repeated_names_are_refused(void **state)
{
	struct fixture *f = *state;

	refused(f, "[cache]\n\nttll = 3s\n", 3, "unknown key 'ttll' in [cache]");
	refused(f, "[cahce]\nprobe = 3s\n", 2, "unknown section [cahce]");
	refused(f, "key = x\n", 1, "before the first [section]");
	refused(f, "[cache]\nprobe=1s\nlease=9s\nprobe=1s\n", 4, "already set in line 2");
	refused(f, "[cache]\nprobe=1s\n[kms]\n[cache]\nprobe=1s\n", 5, "already set in line 2");
	refused(f, "[Cache]\nprobe=1s\n", 2, "unknown section");
	refused(
	    f, "[a-section-name-that-is-longer-than-the-fifty-bytes-of-inih-cache]\nprobe=1s\n", 2, "unknown section");
}

static void choices_are_checked(void **state)
{
	struct fixture *f = *state;

	refused(f, "[kms]\nprovider = gcp\n", 2, "none of aws|vault|pkcs11|keyfile");
	accepted(f, "[mount]\ntransport = fuse\n");
	accepted(f, "[mount]\ntransport = io_uring\n");
	accepted(f, "[mount]\ntransport = auto\n");
	refused(f, "[mount]\ntransport = splice\n", 2, "none of fuse|io_uring|auto");
}

static void lists_go_on_on_indented_lines(void **state)
{
	struct fixture *f = *state;

	accepted(f, "[kms]\nreplicas = a,\n  b ; second\n\n# between\n\tc, d\nkey = k\n");
	assert_string_equal(f->config.kms.replicas, "a, b c, d");
	assert_string_equal(f->config.kms.key, "k");
	accepted(f, "[kms]\nreplicas =\n  a\n");
	assert_string_equal(f->config.kms.replicas, "a");
	refused(f, "[kms]\nreplicas = a\nkey = k\n  b\n", 4, "begin with a blank");
	refused(f, "[kms]\nreplicas = a\n[cache]\n  b\n", 4, "begin with a blank");
	refused(f, "[kms]\nreplicas = a\n  key = b\n", 3, "begin with a blank");
	refused(f, "[kms]\nreplicas = a\n  b\nreplicas = c\n", 4, "already set in line 2");
}

static void shared_mounts_cache_little(void **state)
{
	struct fixture *f = *state;
	struct config *c = &f->config;

	accepted(f, "[kms]\nkey = k\n[mount]\nshared = yes\n");
	assert_int_equal(config_check(c, f->why), 0);
	assert_true(c->mount.shared && !c->mount.writeback);
	assert_int_equal(c->mount.attr_timeout_ms, 1000);
	accepted(f, "[kms]\nkey = k\n[mount]\nshared = yes\nwriteback = off\nattr_timeout = 50ms\n");
	assert_int_equal(config_check(c, f->why), 0);
	assert_int_equal(c->mount.attr_timeout_ms, 50);
	accepted(f, "[kms]\nkey = k\n[mount]\nshared = yes\nwriteback = on\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	assert_non_null(strstr(f->why, "'writeback' in [mount] cannot be on with 'shared'"));
	accepted(f, "[kms]\nkey = k\n");
	assert_int_equal(config_check(c, f->why), 0);
	assert_true(c->mount.writeback && !c->mount.shared);
}

static void providers_need_their_sections(void **state)
{
	struct fixture *f = *state;
	struct config *c = &f->config;

	accepted(f, "[kms]\nprovider = vault\n[vault]\naddress = https://v\nkey = k\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	accepted(f, "[kms]\nprovider = vault\n[vault]\naddress = https://v\nkey = k\ntoken_file = /t\n");
	assert_int_equal(config_check(c, f->why), 0);
	assert_string_equal(c->vault.mount, "transit");
	accepted(f, "[kms]\nprovider = vault\n[vault]\naddress = https://v\nkey = k\ntoken_file = /t\nrole_id = r\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	accepted(f, "[kms]\nprovider = vault\n[vault]\naddress = https://v\nkey = k\nrole_id = r\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	accepted(f, "[kms]\nprovider = pkcs11\n[pkcs11]\nmodule = /m\ntoken = t\nkey = k\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	accepted(f, "[kms]\nprovider = pkcs11\n[pkcs11]\nmodule = /m\ntoken = t\nkey = k\npin_file = /p\n");
	assert_int_equal(config_check(c, f->why), 0);
	accepted(f, "[kms]\nkey = k\nexternal_id = x\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	accepted(f, "[kms]\nkey = k\nfailover = unreachable\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	accepted(f, "[kms]\nkey = k\nfailover = unreachable\nreplicas = r\n");
	assert_int_equal(config_check(c, f->why), 0);
	assert_true(c->kms.failover);
}

static void values_out_of_range_are_refused(void **state)
{
	struct fixture *f = *state;

	refused(f, "[cache]\nprobe = 10\n", 2, "needs a unit");
	refused(f, "[cache]\nprobe = 10 s\n", 2, "needs a unit");
	refused(f, "[cache]\nprobe = 10d\n", 2, "needs a unit");
	refused(f, "[cache]\nprobe = 99ms\n", 2, "out of range (100ms to 1h)");
	refused(f, "[cache]\nprobe = 2h\n", 2, "out of range");
	refused(f, "[cache]\nprobe = -1s\n", 2, "not a number");
	refused(f, "[cache]\nprobe = 99999999999999999999h\n", 2, "not a number");
	refused(f, "[cache]\nprobe = 4294968h\n", 2, "out of range");
	refused(f, "[cache]\nprobe =\n", 2, "not a number");
	refused(f, "[mount]\nthreads = 0\n", 2, "out of range (1 to 64)");
	refused(f, "[mount]\nthreads = 0x10\n", 2, "plain number");
	refused(f, "[mount]\nwriteback = maybe\n", 2, "neither of off|on");
	refused(f, "[mount]\ncommit = yes\n", 2, "neither of normal|strict");
	refused(f, "[keyfile]\npath = etc/key\n", 2, "not an absolute path");
	refused(f, "[store]\nid = 00112233445566778899AABBCCDDEEFF\n", 2, "hex");
	refused(f, "[store]\nnames = eme\n", 2, "none of");
	refused(f, "[store]\nsuite = 3\n", 2, "out of range");
	refused(f, "[kms]\ncontext = byokfs-use:file\n", 2, "name:value");
	refused(f, "[kms]\ncontext = nocolon\n", 2, "name:value");
	accepted(
	    f, "[cache]\nprobe = 100ms\n[mount]\nattr_timeout = 0\n[store]\nid = 00112233445566778899aabbccddeeff\n");
}

static void what_inih_would_misread_is_refused(void **state)
{
	struct fixture *f = *state;

	refused(f, "[kms]\nkey = a\n  region = b\n", 3, "may not begin with a blank");
	refused(f, "[kms]\n\tkey = a\n", 2, "may not begin with a blank");
	refused(f, " [kms]\nkey = a\n", 1, "may not begin with a blank");
	refused(f, "[kms] key = a\n", 1, "text after ']'");
	refused(f, "[kms\nkey = a\n", 1, "missing ']'");
	refused(f, "[kms]\nkey: arn:aws:kms:x\n", 2, "expected 'name = value'");
	refused(f, "[kms]\nkey\n", 2, "expected 'name = value'");
	refused(f, "[kms]\nkey ; = a\n", 2, "expected 'name = value'");
	refused(f, "[kms]\n= a\n", 2, "unknown key ''");
	put(f, "[kms]\nkey = a\0b\n", 16);
	assert_int_equal(config_read(&f->config, f->path, f->why), -EINVAL);
	assert_non_null(strstr(f->why, ":2: NUL byte"));
	accepted(f, "   ; an indented comment\n   # too\n[kms]\nkey = a;b\n");
	assert_string_equal(f->config.kms.key, "a;b");
}

/* A line of any length is either taken whole or refused, and the same goes for its value. */
static void long_lines_are_whole_or_refused(void **state)
{
	struct fixture *f = *state;
	char text[9100], want[9000];

	for (size_t n = 150; n < 8400; n += n < 460 ? 1 : 397) {
		size_t value = n - strlen("key = ");

		memset(want, 'v', value);
		memcpy(want + value - 21, "rn=arn:aws:kms:region", 21);
		want[value] = '\0';
		(void)snprintf(text, sizeof(text), "[kms]\nkey = %s\n", want);
		if (n > CONFIG_LINE) {
			refused(f, text, 2, "line too long");
			assert_null(f->config.kms.key);
		} else {
			accepted(f, text);
			assert_string_equal(f->config.kms.key, want);
		}
		memset(text, '#', n);
		(void)snprintf(text + n, sizeof(text) - n, "\r\n[kms]\nkey = k\n");
		if (n > CONFIG_LINE)
			refused(f, text, 1, "line too long");
		else
			accepted(f, text);
	}
}

static void files_that_cannot_be_trusted_or_read(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(config_read(&f->config, "/nonexistent/byokfs.ini", f->why), -ENOENT);
	assert_non_null(strstr(f->why, "/nonexistent/byokfs.ini"));
	assert_int_equal(config_read(&f->config, f->dir, f->why), -EISDIR);
	put(f, "[kms]\n", 6);
	assert_int_equal(chmod(f->path, 0666), 0);
	assert_int_equal(config_read(&f->config, f->path, f->why), -EPERM);
	assert_non_null(strstr(f->why, "chmod o-w"));
}

static void options_override_and_are_named_in_errors(void **state)
{
	struct fixture *f = *state;
	struct config *c = &f->config;

	accepted(f, "[cache]\nlease = 40s\n[kms]\nregion = r\n");
	assert_int_equal(config_set(c, "cache.lease", "60s", f->why), 0);
	assert_int_equal(config_set(c, "cache.lease", "61s", f->why), 0);
	assert_int_equal(c->cache.lease_ms, 61000);
	assert_int_equal(config_set(c, "kms.region", "", f->why), 0);
	assert_null(c->kms.region);
	assert_int_equal(config_set(c, "lease", "60s", f->why), -EINVAL);
	assert_int_equal(config_set(c, "cache.ttl", "60s", f->why), -EINVAL);
	assert_string_equal(f->why, "-o cache.ttl: unknown key 'ttl' in [cache]");
	assert_int_equal(config_set(c, "cache.lease", "x", f->why), -EINVAL);
	assert_string_equal(f->why, "-o cache.lease: 'x' is not a number");
	assert_int_equal(c->alert.key_age_days, 90);
	assert_int_equal(config_set(c, "alert.key_age_days", "0", f->why), 0);
	assert_int_equal(c->alert.key_age_days, 0);
	assert_int_equal(config_set(c, "alert.key_age_days", "36501", f->why), -ERANGE);
	assert_int_equal(config_set(c, "alert.key_age_days", "90d", f->why), -EINVAL);
	assert_int_equal(config_set(c, "alert.age", "90", f->why), -EINVAL);
	assert_int_equal(config_set(c, "kms.key", "a\nb", f->why), -EINVAL);
	assert_int_equal(config_set(c, ".key", "a", f->why), -EINVAL);
	assert_int_equal(config_set(c, "a-section-name-of-more-than-32-bytes.key", "a", f->why), -EINVAL);
}

static void the_whole_is_checked(void **state)
{
	struct fixture *f = *state;
	struct config *c = &f->config;

	assert_int_equal(config_check(c, f->why), -EINVAL);
	assert_non_null(strstr(f->why, "no key"));
	accepted(f, "[kms]\nprovider = keyfile\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	assert_non_null(strstr(f->why, "[keyfile]"));
	accepted(f, "[kms]\nprovider = keyfile\n[keyfile]\npath = /k\n");
	assert_int_equal(config_check(c, f->why), 0);
	accepted(f, "[kms]\nkey = k\n[cache]\nprobe = 10s\nlease = 19s\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
	assert_non_null(strstr(f->why, "twice"));
	accepted(f, "[kms]\nkey = k\nprovider =\n");
	assert_int_equal(config_check(c, f->why), -EINVAL);
}

static void times_are_capped_by_the_lease(void **state)
{
	struct fixture *f = *state;
	struct config *c = &f->config;

	accepted(f, "[kms]\nkey = k\nproxy = none\n[cache]\nprobe = 500ms\nlease = 1s\n[mount]\nattr_timeout = 1h\n");
	assert_int_equal(config_check(c, f->why), 0);
	assert_int_equal(c->kms.request_timeout_ms, 1000);
	assert_int_equal(c->kms.connect_timeout_ms, 1000);
	assert_int_equal(c->mount.attr_timeout_ms, 1000);
	assert_string_equal(c->kms.proxy, "");
	accepted(f, "[kms]\nkey = k\n[mount]\nattr_timeout = 500ms\n");
	assert_int_equal(config_check(c, f->why), 0);
	assert_int_equal(c->mount.attr_timeout_ms, 500);
	accepted(f, "[kms]\nkey = k\n");
	assert_int_equal(config_check(c, f->why), 0);
	assert_int_equal(c->mount.attr_timeout_ms, c->cache.lease_ms);
}

static void the_file_is_found_in_order(void **state)
{
	struct fixture *f = *state;
	char other[128];

	put(f, "[kms]\nkey = from-env\n", 21);
	assert_int_equal(setenv("BYOKFS_CONFIG", f->path, 1), 0);
	assert_int_equal(config_load(&f->config, NULL, f->why), 0);
	assert_string_equal(f->config.kms.key, "from-env");
	(void)snprintf(other, sizeof(other), "%s/absent.ini", f->dir);
	assert_int_equal(config_load(&f->config, other, f->why), -ENOENT);
	assert_int_equal(setenv("BYOKFS_CONFIG", other, 1), 0);
	assert_int_equal(config_load(&f->config, NULL, f->why), -ENOENT);
	assert_int_equal(config_load(&f->config, f->path, f->why), 0);
}

/* A pipe without a writer: to open it would be to wait for one. */
static void a_running_daemon_waits_for_no_pipe(void **state)
{
	struct fixture *f = *state;

	(void)alarm(60);
	assert_int_equal(mkfifo(f->path, 0600), 0);
	assert_int_equal(config_reload(&f->config, f->path, f->why), -EINVAL);
	assert_non_null(strstr(f->why, "not a regular file"));
	assert_int_equal(config_reload(&f->config, "/dev/null", f->why), -EINVAL);
	assert_int_equal(config_reload(&f->config, f->dir, f->why), -EISDIR);
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(config_reload(&f->config, f->path, f->why), -ENOENT);
	put(f, "[kms]\nkey = again\n", 18);
	assert_int_equal(config_reload(&f->config, f->path, f->why), 0);
	assert_string_equal(f->config.kms.key, "again");
	(void)alarm(0);
}

/* byokfs.ini.example is what config_describe() prints. */
static void the_example_is_the_table(void **state)
{
	char *text = NULL, *file = NULL;
	size_t len = 0, room = 1 << 16, n;
	FILE *mem = open_memstream(&text, &len), *f = fopen("byokfs.ini.example", "r");

	if (!f)
		f = fopen("../byokfs.ini.example", "r"); /* run in tests/ */
	(void)state;
	assert_non_null(mem);
	if (!f)
		fail_msg("run me in the top directory or in tests: byokfs.ini.example not found");
	config_describe(mem);
	assert_int_equal(fclose(mem), 0);
	file = calloc(1, room);
	n = fread(file, 1, room - 1, f);
	(void)fclose(f);
	assert_int_equal(n, len);
	assert_string_equal(file, text);
	free(file);
	free(text);
}

/* docs/byokfs.ini.5 explains every key. */
static void the_man_page_knows_every_key(void **state)
{
	char *text = NULL, *page = calloc(1, 1 << 16), item[80];
	size_t len = 0, found = 0;
	FILE *mem = open_memstream(&text, &len), *f = fopen("docs/byokfs.ini.5", "r");

	(void)state;
	if (!f)
		f = fopen("../docs/byokfs.ini.5", "r");
	assert_non_null(f);
	assert_non_null(mem);
	assert_true(fread(page, 1, (1 << 16) - 1, f) > 0);
	(void)fclose(f);
	config_describe(mem);
	assert_int_equal(fclose(mem), 0);
	for (char *p = strstr(text, "\n;"); p; p = strstr(p + 1, "\n;"), found++) {
		(void)snprintf(item, sizeof(item), ".It Cm %.*s No =", (int)strcspn(p + 2, " "), p + 2);
		if (!strstr(page, item))
			fail_msg("docs/byokfs.ini.5 does not have '%s'", item);
	}
	assert_true(found > 20);
	free(text);
	free(page);
}

static bool same(const struct config *a, const struct config *b)
{
	return strcmp(a->kms.provider, b->kms.provider) == 0 && !a->kms.key && !b->kms.key && !a->kms.proxy &&
	    !b->kms.proxy && !a->store.id && !a->keyfile.path && strcmp(a->log.level, b->log.level) == 0 &&
	    memcmp(&a->cache, &b->cache, sizeof(a->cache)) == 0 &&
	    a->kms.request_timeout_ms == b->kms.request_timeout_ms &&
	    a->kms.connect_timeout_ms == b->kms.connect_timeout_ms &&
	    a->kms.max_connections == b->kms.max_connections && a->mount.writeback == b->mount.writeback &&
	    a->mount.commit_strict == b->mount.commit_strict && a->mount.threads == b->mount.threads &&
	    a->mount.readahead_kib == b->mount.readahead_kib && a->mount.max_background == b->mount.max_background &&
	    a->log.syslog == b->log.syslog && strcmp(a->mount.transport, b->mount.transport) == 0;
}

/* Every line of the example may be uncommented, and says the default. */
static void the_example_uncommented_changes_nothing(void **state)
{
	struct fixture *f = *state;
	struct config fresh;
	char *text = NULL;
	size_t len = 0;
	FILE *mem = open_memstream(&text, &len);

	assert_non_null(mem);
	config_describe(mem);
	assert_int_equal(fclose(mem), 0);
	for (char *p = text; p; p = strchr(p, '\n')) {
		p += *p == '\n';
		if (*p == ';')
			memmove(p, p + 1, strlen(p));
	}
	accepted(f, text);
	free(text);
	config_init(&fresh);
	assert_true(same(&f->config, &fresh));
	config_free(&fresh);
}

static void note(void *arg, const char *name)
{
	strcat(arg, name);
	strcat(arg, " ");
}

/* Text set, unset and changed, a number, a flag, a duration; and nothing else. */
static void differences_are_named(void **state)
{
	static const char *const text[] = { "[kms]\nkey = a\nregion = r\nfailover = unreachable\n[cache]\npool = 3\n",
		"[kms]\nkey = b\nprofile = p\n[cache]\nlease = 40s\n" };
	struct fixture *f = *state;
	struct config other;
	char seen[400] = "";

	assert_int_equal(read_text(f, text[0]), 0);
	config_init(&other);
	config_compare(&f->config, &f->config, note, seen);
	assert_string_equal(seen, "");
	put(f, text[1], strlen(text[1]));
	assert_int_equal(config_read(&other, f->path, f->why), 0);
	config_compare(&f->config, &other, note, seen);
	assert_string_equal(seen, "kms.key kms.region kms.profile kms.failover cache.lease cache.pool ");
	config_free(&other);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(defaults_are_the_documented_ones),
		T(a_usual_file_is_read),
		T(windows_line_ends_and_bom_do_no_harm),
		T(unknown_and_repeated_names_are_refused),
		T(choices_are_checked),
		T(shared_mounts_cache_little),
		T(lists_go_on_on_indented_lines),
		T(providers_need_their_sections),
		T(values_out_of_range_are_refused),
		T(what_inih_would_misread_is_refused),
		T(long_lines_are_whole_or_refused),
		T(files_that_cannot_be_trusted_or_read),
		T(options_override_and_are_named_in_errors),
		T(the_whole_is_checked),
		T(times_are_capped_by_the_lease),
		T(the_file_is_found_in_order),
		T(a_running_daemon_waits_for_no_pipe),
		T(the_example_is_the_table),
		T(the_example_uncommented_changes_nothing),
		T(differences_are_named),
		T(the_man_page_knows_every_key),
	};

	return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
