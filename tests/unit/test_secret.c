/* Locked memory as the kernel describes it, forks, hardening, randomness, and the log's one line per event. */
#include "vectors.h"

#include <errno.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"
#include "secret.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

/* The VmFlags of the mapping that holds p, or "" when it is not mapped. */
static void vm_flags(const void *p, char *out, size_t size)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long from, to;
	char line[512];
	bool here = false;

	out[0] = '\0';
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = (uintptr_t)p >= from && (uintptr_t)p < to;
		if (here && strncmp(line, "VmFlags:", 8) == 0)
			(void)snprintf(out, size, "%.200s", line + 8);
	}
	(void)fclose(f);
}

static bool mapped_secretly(const void *p)
{
	char flags[256];

	vm_flags(p, flags, sizeof(flags));
	/* locked (sanitizers make mlock(2) do nothing), not dumped, wiped on fork */
	return (SANITIZED || strstr(flags, " lo ")) && strstr(flags, " dd ") && strstr(flags, " wf ");
}

static void test_alloc(void **state)
{
	static const size_t sizes[] = { 1, 32, 64, 65, 96, 97, 128, 129, 416, 4096, 4097, 65536 };

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint8_t *p = secret_alloc(sizes[i]);

		assert_non_null(p);
		assert_int_equal((uintptr_t)p % 16, 0);
		assert_true(bytes_zero(p, sizes[i]));
		memset(p, 0xee, sizes[i]);
		assert_true(mapped_secretly(p));
		assert_true(mapped_secretly(p + sizes[i] - 1));
		secret_free(p);
	}
	assert_null(secret_alloc(0));
	assert_null(secret_alloc(65537));
	assert_null(secret_alloc(SIZE_MAX));
	secret_free(NULL);
}

static void test_free_wipes(void **state)
{
	uint8_t *keep = secret_alloc(64), *p = secret_alloc(64);

	(void)state;
	memset(p, 0xee, 64);
	secret_free(p);
	assert_true(bytes_zero(p, 64)); /* keep holds the slab */
	secret_free(keep);
}

/* Large objects that were freed serve again, wiped and still locked; beyond a bound they are unmapped. */
static void test_large_spares(void **state)
{
	enum { MANY = 12 };
	uint8_t *large = secret_alloc(65536), *many[MANY];
	char flags[256];
	int gone = 0;

	(void)state;
	memset(large, 0xee, 65536);
	secret_free(large);
	assert_true(mapped_secretly(large));
	assert_true(bytes_zero(large, 65536));
	assert_ptr_equal(secret_alloc(65536), large);
	secret_free(large);
	for (int i = 0; i < MANY; i++)
		assert_non_null(many[i] = secret_alloc(65536));
	for (int i = 0; i < MANY; i++)
		secret_free(many[i]);
	for (int i = 0; i < MANY; i++) {
		vm_flags(many[i], flags, sizeof(flags));
		gone += flags[0] == '\0';
	}
	assert_in_range(gone, MANY - 8, MANY - 1);
}

/* Cells do not overlap, wherever they lie, while slabs come and go. */
static void test_many_cells(void **state)
{
	enum { CELLS = 5000 };
	static uint8_t *cell[CELLS];
	static const size_t sizes[] = { 64, 96, 128 };

	(void)state;
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < CELLS; i++) {
			if (cell[i])
				continue;
			cell[i] = secret_alloc(sizes[i % 3]);
			assert_non_null(cell[i]);
			assert_true(bytes_zero(cell[i], sizes[i % 3]));
			memset(cell[i], (int)(i % 251) + 1, sizes[i % 3]);
		}
		for (size_t i = 0; i < CELLS; i++) {
			for (size_t j = 0; j < sizes[i % 3]; j++)
				assert_int_equal(cell[i][j], i % 251 + 1);
			if (round == 2 || i * 2654435761u % 7 < 4) {
				secret_free(cell[i]);
				cell[i] = NULL;
			}
		}
	}
}

static void *churn(void *arg)
{
	for (unsigned i = 0; i < 3000; i++) {
		uint8_t *a = secret_alloc(64), *b = secret_alloc(128);

		if (!a || !b || !bytes_zero(a, 64) || !bytes_zero(b, 128))
			return arg;
		memset(a, 1, 64);
		memset(b, 2, 128);
		secret_free(a);
		secret_free(b);
	}
	return NULL;
}

static void test_threads(void **state)
{
	pthread_t threads[4];
	void *failed;
	char bad;

	(void)state;
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, churn, &bad), 0);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
}

/* Runs fn in a child; true when it said so. */
static bool in_child(bool (*fn)(void *), void *arg)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		(void)signal(SIGSEGV, SIG_DFL); /* not cmocka's handlers */
		(void)signal(SIGABRT, SIG_DFL);
		_exit(fn(arg) ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool child_sees_nothing(void *arg)
{
	uint8_t *old = arg, *fresh;

	if (!bytes_zero(old, 64))
		return false;
	fresh = secret_alloc(64); /* in memory locked by this process, not beside the old cell */
	if (!fresh || !mapped_secretly(fresh) || ((uintptr_t)fresh ^ (uintptr_t)old) < 65536)
		return false;
	secret_free(old);
	secret_free(fresh);
	return true;
}

static void test_fork_wipes(void **state)
{
	uint8_t *p = secret_alloc(64);

	(void)state;
	memset(p, 0x77, 64);
	assert_true(in_child(child_sees_nothing, p));
	for (int i = 0; i < 64; i++)
		assert_int_equal(p[i], 0x77);
	secret_free(p);
}

static bool child_overruns(void *arg)
{
	uint8_t *p = arg;

	p[4096] = 1;
	return true;
}

static bool child_underruns(void *arg)
{
	uint8_t *p = arg;

	p[-1] = 1;
	return true;
}

static bool child_frees_twice(void *arg)
{
	uint8_t *keep = secret_alloc(64);

	secret_free(arg);
	secret_free(arg);
	return keep != NULL;
}

static void test_guards(void **state)
{
	uint8_t *large = secret_alloc(4096), *small = secret_alloc(64);

	(void)state;
	assert_false(in_child(child_overruns, large));
	assert_false(in_child(child_underruns, large));
	assert_false(in_child(child_frees_twice, small));
	secret_free(large);
	secret_free(small);
}

static bool child_without_memlock(void *arg)
{
	const struct rlimit none = { 0, 0 };

	(void)arg;
	log_setup("test", LOG_LEVEL_ERR, false);
	(void)close(STDERR_FILENO);
	if (setrlimit(RLIMIT_MEMLOCK, &none) != 0)
		return false;
	/* without CAP_IPC_LOCK the limit binds */
	if (geteuid() == 0 && (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0))
		return false;
	if (secret_init(false) != 0 || secret_alloc(64) || secret_alloc(64))
		return false;
	return secret_init(true) == 0 && secret_alloc(64) != NULL;
}

static void test_unlockable(void **state)
{
	(void)state;
	if (SANITIZED)
		skip(); /* mlock(2) always succeeds there */
	assert_true(in_child(child_without_memlock, NULL));
}

static void test_hardening(void **state)
{
	struct rlimit core;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_CORE, &core), 0);
	assert_int_equal(core.rlim_max, 0);
	assert_null(getenv("SSLKEYLOGFILE"));
	if (!SANITIZED)
		assert_int_equal(prctl(PR_GET_DUMPABLE, 0L, 0L, 0L, 0L), 0);
	assert_int_equal(secret_init(true), 0); /* again */
}

/* Both libraries run on the wiping allocators, and those behave as malloc(3) does. */
static void test_library_allocators(void **state)
{
	json_malloc_t json_alloc;
	json_free_t json_release;
	uint8_t *p = OPENSSL_malloc(100);

	(void)state;
	json_get_alloc_funcs(&json_alloc, &json_release);
	assert_ptr_not_equal(json_alloc, malloc);
	assert_ptr_not_equal(json_release, free);
	assert_null(json_alloc(SIZE_MAX));
	json_release(NULL);

	assert_non_null(p);
	vector_fill(p, 100, 1);
	p = OPENSSL_realloc(p, 5000);
	assert_non_null(p);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(p[i], i + 1);
	p = OPENSSL_realloc(p, 10);
	assert_int_equal(p[9], 10);
	OPENSSL_free(p);
	OPENSSL_free(NULL);
}

static void test_nonces_differ(void **state)
{
	enum { N = 2000 };
	static uint8_t seen[N][10];
	uint8_t big[1000] = { 0 };

	(void)state;
	for (int i = 0; i < N; i++) {
		secret_nonce(seen[i], 10);
		for (int j = 0; j < i; j++)
			assert_memory_not_equal(seen[i], seen[j], 10);
	}
	secret_nonce(big, sizeof(big));
	assert_false(bytes_zero(big + 900, 100));
	secret_random(big, 0);
}

static bool child_repeats(void *arg)
{
	uint8_t mine[16];

	secret_nonce(mine, sizeof(mine));
	return write(*(int *)arg, mine, sizeof(mine)) == (ssize_t)sizeof(mine);
}

/* Parent and child must not serve the same pooled bytes. */
static void test_nonces_after_fork(void **state)
{
	uint8_t first[16], ours[16], theirs[16];
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	for (int i = 0; i < 10; i++) {
		secret_nonce(first, sizeof(first)); /* the pool is filled now, and not empty */
		secret_nonce(first, sizeof(first));
		assert_true(in_child(child_repeats, &fds[1]));
		secret_nonce(ours, sizeof(ours));
		assert_int_equal(read(fds[0], theirs, sizeof(theirs)), sizeof(theirs));
		assert_memory_not_equal(ours, theirs, sizeof(ours));
	}
	(void)close(fds[0]);
	(void)close(fds[1]);
}

/* What log_at() writes to stderr, with stderr a pipe. */
static void capture(char *out, size_t size, enum log_level level, const char *message)
{
	int fds[2], saved = dup(STDERR_FILENO);
	ssize_t n;

	assert_true(saved >= 0);
	assert_int_equal(pipe(fds), 0);
	assert_true(dup2(fds[1], STDERR_FILENO) >= 0);
	(void)close(fds[1]);
	errno = ENOTTY;
	log_at(level, "%s", message);
	assert_int_equal(errno, ENOTTY);
	assert_true(dup2(saved, STDERR_FILENO) >= 0);
	(void)close(saved);
	n = read(fds[0], out, size - 1);
	assert_true(n >= 0);
	out[n] = '\0';
	(void)close(fds[0]);
}

static void test_log_lines(void **state)
{
	char out[4096];
	static char longest[3000];

	(void)state;
	log_setup("tester", LOG_LEVEL_INFO, false);
	capture(out, sizeof(out), LOG_LEVEL_ERR, "plain caf\xc3\xa9");
	assert_string_equal(out, "tester: plain caf\xc3\xa9\n");
	capture(out, sizeof(out), LOG_LEVEL_INFO, "a\nbyokfs: forged\t\x1b[0m\x7f");
	assert_string_equal(out, "tester: a\\nbyokfs: forged\\t\\x1b[0m\\x7f\n");
	capture(out, sizeof(out), LOG_LEVEL_DEBUG, "too quiet");
	assert_string_equal(out, "");
	memset(longest, '\n', sizeof(longest) - 1);
	capture(out, sizeof(out), LOG_LEVEL_WARN, longest);
	assert_true(strlen(out) < 2200);
	assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_alloc),
		cmocka_unit_test(test_free_wipes),
		cmocka_unit_test(test_large_spares),
		cmocka_unit_test(test_many_cells),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_fork_wipes),
		cmocka_unit_test(test_guards),
		cmocka_unit_test(test_unlockable),
		cmocka_unit_test(test_hardening),
		cmocka_unit_test(test_library_allocators),
		cmocka_unit_test(test_nonces_differ),
		cmocka_unit_test(test_nonces_after_fork),
		cmocka_unit_test(test_log_lines),
	};

	(void)setenv("SSLKEYLOGFILE", "/nonexistent", 1);
	if (secret_init(true) != 0)
		return 1;
	return cmocka_run_group_tests_name("secret", tests, NULL, NULL);
}
