/* More files than keys that are kept: those used longest ago go, those in use stay, and little locked memory does. */
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lease_world.h"

#define MORE 5000u

static struct header_ident first, second, ident;
static struct header_slot first_slot, second_slot, slot;

static void open_domain_sealed(void)
{
	free(w.desc.gen);
	make_domain(SEAL_DOMAIN);
	open_for_long();
}

static struct lease_key *new_key(struct header_ident *i, struct header_slot *s)
{
	struct lease_key *key;

	assert_int_equal(lease_new_key(w.lease, NULL, &key, i, s), 0);
	return key;
}

static int at_hand(const struct header_ident *i)
{
	struct lease_key *key;
	int r = lease_file_key(w.lease, i, NULL, NULL, &key);

	if (!r)
		lease_key_put(key);
	return r;
}

static void test_bounded(void **state)
{
	struct lease_key *used;

	(void)state;
	open_domain_sealed();
	used = new_key(&first, &first_slot);
	lease_key_put(new_key(&second, &second_slot));
	for (unsigned n = 0; n < LEASE_KEYS_MOST + MORE; n++) {
		lease_key_put(new_key(&ident, &slot));
		assert_true(status_now().file_keys <= LEASE_KEYS_MOST);
		if (n % 1000 == 0) /* used again and again */
			assert_int_equal(at_hand(&first), 0);
	}
	assert_true(status_now().file_keys > LEASE_KEYS_MOST - 16);
	assert_non_null(lease_key_block(used));
	lease_key_put(used);
	assert_int_equal(at_hand(&first), 0);
	assert_int_equal(at_hand(&ident), 0);
	assert_int_equal(at_hand(&second), -EAGAIN);
	/* It comes again, and so do all others when they were idle. */
	assert_int_equal(lease_file_key(w.lease, &second, &second_slot, NULL, &used), 0);
	lease_key_put(used);
	advance(w.params.idle_ms - 1);
	assert_int_equal(at_hand(&second), 0);
	advance(w.params.idle_ms / 2);
	UNTIL(status_now().file_keys == 1);
	advance(w.params.idle_ms);
	UNTIL(status_now().file_keys == 0);
}

/* Keys that all are in use are too many, and nobody fails. */
static void test_all_in_use(void **state)
{
	static struct lease_key *key[LEASE_KEYS_MOST + 100];
	size_t n = sizeof(key) / sizeof(key[0]);

	(void)state;
	open_domain_sealed();
	for (size_t i = 0; i < n; i++)
		key[i] = new_key(&ident, &slot);
	assert_int_equal(status_now().file_keys, n);
	for (size_t i = 0; i < n; i++)
		lease_key_put(key[i]);
	for (unsigned i = 0; i < 200; i++)
		lease_key_put(new_key(&ident, &slot));
	assert_true(status_now().file_keys <= LEASE_KEYS_MOST);
}

static bool child_little_memory(void)
{
	const struct rlimit some = { 1 << 20, 1 << 20 };
	struct lease_key *key;

	log_setup("test", LOG_LEVEL_ERR, false);
	(void)close(STDERR_FILENO);
	/* without CAP_IPC_LOCK the limit binds */
	if (setrlimit(RLIMIT_MEMLOCK, &some) ||
	    (geteuid() == 0 && (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)))
		return false;
	if (try_open(false) != KMS_OK)
		return false;
	for (unsigned n = 0; n < LEASE_KEYS_MOST / 2; n++) { /* three times what fits */
		if (lease_new_key(w.lease, NULL, &key, &ident, &slot))
			return false;
		lease_key_put(key);
	}
	return status_now().file_keys > 1000;
}

static void test_little_memory(void **state)
{
	pid_t pid;
	int status;

	(void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip(); /* mlock(2) always succeeds there */
#endif
	free(w.desc.gen);
	make_domain(SEAL_DOMAIN);
	pid = fork();
	if (pid == 0)
		_exit(child_little_memory() ? 0 : 1);
	assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_bounded), T(test_all_in_use), T(test_little_memory) };

	return world_init() ? 1 : cmocka_run_group_tests_name("lease_many", tests, NULL, NULL);
}
