/* A waiter with a condition variable: parks like any operation, but sleeps instead of returning to a request loop. */
#include "keywait.h"

#include <errno.h>
#include <stddef.h>

struct key_wait {
	struct lease_waiter waiter;
	pthread_mutex_t lock;
	pthread_cond_t done;
	bool ready;
};

static void key_ready(struct lease_waiter *w)
{
	struct key_wait *k = (struct key_wait *)(void *)((char *)w - offsetof(struct key_wait, waiter));

	pthread_mutex_lock(&k->lock);
	k->ready = true;
	pthread_cond_signal(&k->done);
	pthread_mutex_unlock(&k->lock);
}

static void sleep_until_ready(struct key_wait *k)
{
	pthread_mutex_lock(&k->lock);
	while (!k->ready)
		pthread_cond_wait(&k->done, &k->lock);
	pthread_mutex_unlock(&k->lock);
}

int keywait_enter(
    struct domain *d, const struct header_ident *ident, const struct header_slot *slot, struct lease_key **key)
{
	struct key_wait k = {
		.waiter.ready = key_ready, .lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER
	};
	int r = domain_enter(d, LEASE_WORK);

	*key = NULL;
	if (r)
		return r;
	r = lease_file_key(domain_lease(d), ident, slot, slot ? &k.waiter : NULL, key);
	if (r)
		domain_leave(d, LEASE_WORK);
	if (r != -EINPROGRESS)
		return r;
	uint64_t begun = histogram_clock();

	sleep_until_ready(&k);
	histogram_add(&d->key_wait, histogram_clock() - begun);
	if (k.waiter.result)
		return k.waiter.result;
	r = domain_enter(d, LEASE_WORK);
	if (!r) {
		k.ready = false; /* nobody else knows the waiter now */
		/* The same waiter: the key is held for it. */
		r = lease_file_key(domain_lease(d), ident, slot, &k.waiter, key);
		if (r)
			domain_leave(d, LEASE_WORK);
	}
	if (r == -EINPROGRESS) { /* aged in between: once more is enough */
		sleep_until_ready(&k);
		r = -EIO;
	}
	lease_waiter_cancel(&k.waiter);
	return r;
}

int keywait_enter_file(struct domain *d, struct file *f, struct lease_key **key)
{
	struct header_ident ident;
	struct header_slot slot;
	int r = keywait_enter(d, file_ident(f), NULL, key);

	if (r != -EAGAIN)
		return r;
	if (domain_peek_loaded(d, f, &ident, &slot))
		return -EIO;
	return keywait_enter(d, &ident, &slot, key);
}

void keywait_leave(struct domain *d, struct lease_key *key)
{
	lease_key_put(key);
	domain_leave(d, LEASE_WORK);
}
