/* secret.c — the process's own hardening, allocators that wipe, and randomness.
 *
 * Hides how OpenSSL and jansson are made to wipe what they free: a size in front of each block, because
 * neither library tells its free function how much there is to wipe. Locked memory is in secret_memory.c.   */
#include "secret.h"

#include <errno.h>
#include <jansson.h>
#include <linux/capability.h>
#include <malloc.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "secret_internal.h"

#define SIZE_FRONT   ((size_t)16) /* keeps malloc's alignment */
#define NONCE_POOL   256u
#define NONCE_AGE_MS 100u

static void *wiping_malloc(size_t n)
{
	char *block;

	if (n > SIZE_MAX - SIZE_FRONT)
		return NULL;
	block = malloc(SIZE_FRONT + n);
	if (!block)
		return NULL;
	memcpy(block, &n, sizeof(n));
	return block + SIZE_FRONT;
}

static size_t wiping_size(void *p)
{
	size_t n;

	memcpy(&n, (char *)p - SIZE_FRONT, sizeof(n));
	return n;
}

static void wiping_free(void *p)
{
	if (!p)
		return;
	explicit_bzero(p, wiping_size(p));
	free((char *)p - SIZE_FRONT);
}

static void *wiping_realloc(void *p, size_t n)
{
	void *moved = n > 0 ? wiping_malloc(n) : NULL;
	size_t old = p ? wiping_size(p) : 0;

	if (n > 0 && !moved)
		return NULL;
	if (p && moved)
		memcpy(moved, p, old < n ? old : n);
	wiping_free(p);
	return moved;
}

void secret_heap_free(void *p)
{
	if (p)
		explicit_bzero(p, malloc_usable_size(p));
	free(p);
}

void *secret_heap_realloc(void *old, size_t n)
{
	size_t had = old ? malloc_usable_size(old) : 0;
	void *p = malloc(n);

	if (p && old)
		memcpy(p, old, had < n ? had : n);
	if (p)
		secret_heap_free(old);
	return p;
}

static void *openssl_malloc(size_t n, const char *file, int line)
{
	(void)file;
	(void)line;
	return wiping_malloc(n);
}

static void *openssl_realloc(void *p, size_t n, const char *file, int line)
{
	(void)file;
	(void)line;
	return wiping_realloc(p, n);
}

static void openssl_free(void *p, const char *file, int line)
{
	(void)file;
	(void)line;
	wiping_free(p);
}

static int refuse_core_dumps(void)
{
	const struct rlimit none = { 0, 0 };

	if (setrlimit(RLIMIT_CORE, &none) != 0)
		return -errno;
	if (!SECRET_SANITIZED && prctl(PR_SET_DUMPABLE, 0L, 0L, 0L, 0L) != 0)
		return -errno;
	return 0;
}

/* Best effort: a limit that is too low shows when memory cannot be locked. */
static void raise_memlock(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_MEMLOCK, &limit);
}

int secret_init(bool allow_unlocked)
{
	static bool done;
	int rc;

	secret_memory_allow_unlocked(allow_unlocked);
	if (done)
		return 0;
	if (CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free) != 1) {
		log_err("cannot make OpenSSL wipe its memory: it is in use already");
		return -EBUSY;
	}
	json_set_alloc_funcs(wiping_malloc, wiping_free);
	if (sodium_init() < 0) {
		log_err("cannot initialise libsodium");
		return -EIO;
	}
	rc = refuse_core_dumps();
	if (rc != 0) {
		log_err("cannot forbid core dumps: %s", strerror(-rc));
		return rc;
	}
	(void)unsetenv("SSLKEYLOGFILE"); /* else libcurl would write down the session keys of KMS connections */
	raise_memlock();
	done = true;
	return 0;
}

static bool may_lock_everything(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3, .pid = 0 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY)
		return true;
	return syscall(SYS_capget, &header, data) == 0 && (data[0].effective >> CAP_IPC_LOCK & 1);
}

void secret_lock_process(void)
{
	/* Under a finite limit MCL_FUTURE would make later allocations fail, thread stacks first. */
	if (SECRET_SANITIZED || !may_lock_everything())
		return;
	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0)
		log_info("memory is not locked as a whole: %m");
}

void secret_random(void *out, size_t n)
{
	size_t done = 0;

	while (done < n) {
		ssize_t got = getrandom((char *)out + done, n - done, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			log_err("getrandom failed: %m");
			abort();
		}
		done += (size_t)got;
	}
}

/* Forks in this process's ancestry, as far as this process knows: a pool filled before the last one is stale. */
static _Atomic unsigned forks;
static pthread_once_t forks_once = PTHREAD_ONCE_INIT;

struct nonce_pool {
	uint64_t filled_at;
	unsigned forks;
	unsigned left;
	uint8_t bytes[NONCE_POOL];
};
static _Thread_local struct nonce_pool pool;

static void count_fork(void)
{
	forks++;
}

static void watch_forks(void)
{
	if (pthread_atfork(NULL, NULL, count_fork) != 0)
		abort(); /* out of memory; repeating nonces is no alternative */
}

void secret_nonce(uint8_t *out, size_t n)
{
	uint64_t now = io_boot_ms();

	if (n > NONCE_POOL) {
		secret_random(out, n);
		return;
	}
	(void)pthread_once(&forks_once, watch_forks);
	if (pool.left < n || pool.forks != forks || now - pool.filled_at >= NONCE_AGE_MS) {
		secret_random(pool.bytes, NONCE_POOL);
		pool.filled_at = now;
		pool.forks = forks;
		pool.left = NONCE_POOL;
	}
	pool.left -= (unsigned)n;
	memcpy(out, pool.bytes + pool.left, n);
}
