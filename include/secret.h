/* secret.h — memory for keys, randomness, and the process's own hardening.
 *
 * Secret memory is locked (never swapped), left out of core dumps, wiped in children after
 * fork(2), and wiped when freed. Small objects share locked slabs with guard pages, so that
 * 100,000 file keys fit into a usual RLIMIT_MEMLOCK. What this cannot promise: registers,
 * stack slots of the crypto libraries, and a debugger with root's rights.                   */
#ifndef BYOKFS_SECRET_H
#define BYOKFS_SECRET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

/* Once, first thing in main(): sodium_init, no core dumps (RLIMIT_CORE, PR_SET_DUMPABLE), SSLKEYLOGFILE
 * unset, OpenSSL's and jansson's allocators replaced by ones that wipe on free. 0 or -errno with a log line.
 * allow_unlocked: secret_alloc() falls back to unlocked memory (with one warning) instead of failing.
 * Must run before any other thread exists and before any OpenSSL, curl or jansson call. */
MUST_CHECK int secret_init(bool allow_unlocked);
/* mlockall(CURRENT|FUTURE|ONFAULT) where the process may; best effort, in the daemon only, after its last fork. */
void secret_lock_process(void);

/* n zeroed bytes, 1..65536, aligned to 16; NULL when memory cannot be had or not be locked. Thread-safe. Up to 128
 * bytes share slabs (cells of 64, 96 and 128), more takes pages of its own. A child made by fork(2) finds zeros in
 * what its parent allocated: fork first. */
void *secret_alloc(size_t n);
/* Wipes and frees; NULL is fine. */
void secret_free(void *p);

/* free(3) and realloc(3) for memory of malloc(3) that wipe what they give up: for libraries that take such. */
void secret_heap_free(void *p);
void *secret_heap_realloc(void *old, size_t n);

/* Random bytes from getrandom(2), pooled per thread: at most 256 bytes and 100 ms old, discarded after fork
 * (format.md 2.4). For nonces. Aborts the process if the kernel cannot give any: nothing safe is left to do. */
void secret_nonce(uint8_t *out, size_t n);
/* Unpooled getrandom(2): for keys and ids. */
void secret_random(void *out, size_t n);

#endif
