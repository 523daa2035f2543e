/* cleanup.h — scope-bound release of memory, descriptors, locks and secrets.
 *
 * Ownership leaves a scope only through steal_ptr()/steal_fd(), so that it can be seen.
 * Declare with an empty initial value: every cleanup accepts it.                          */
#ifndef BYOKFS_CLEANUP_H
#define BYOKFS_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MUST_CHECK __attribute__((warn_unused_result))

static inline void cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_fd(const int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
}

static inline void cleanup_unlock(pthread_mutex_t **m)
{
	if (*m)
		(void)pthread_mutex_unlock(*m);
}

/* Frees with free(3) when the scope ends. */
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free)))
/* Closes when the scope ends; -1 is the empty value. */
#define CLEANUP_FD   __attribute__((cleanup(cleanup_fd)))

/* An array or struct on the stack that is wiped when the scope ends, whatever the path. */
#define CLEANUP_WIPE(type) __attribute__((cleanup(cleanup_wipe_##type)))
#define DEFINE_CLEANUP_WIPE(type)                       \
	static inline void cleanup_wipe_##type(type *p) \
	{                                               \
		explicit_bzero(p, sizeof(*p));          \
	}

struct wipe_scope {
	void *p;
	size_t n;
};

static inline void cleanup_wipe_scope(const struct wipe_scope *w)
{
	explicit_bzero(w->p, w->n);
}

/* The same for a variable of any type, arrays included, from here to the end of its scope. */
#define WIPE_SCOPE(var)                                      \
	__attribute__((cleanup(cleanup_wipe_scope), unused)) \
	const struct wipe_scope wipe_##var##_ = { &(var), sizeof(var) }

/* A large variable that the compiler need not zero first (-ftrivial-auto-var-init): every byte is written before it is
 * read, and the path is one where zeroing kilobytes per call shows. */
#define NOT_ZEROED __attribute__((uninitialized))

/* Holds a mutex until the end of the enclosing scope. */
#define LOCK_SCOPE(m)                                                                \
	__attribute__((cleanup(cleanup_unlock))) pthread_mutex_t *lock_scope_ = (m); \
	(void)pthread_mutex_lock(lock_scope_)

#define steal_ptr(pp)                              \
	({                                         \
		__typeof__(*(pp)) stolen_ = *(pp); \
		*(pp) = NULL;                      \
		stolen_;                           \
	})

static inline int steal_fd(int *fd)
{
	int stolen = *fd;

	*fd = -1;
	return stolen;
}

#endif
