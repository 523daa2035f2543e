/* lease_files.h — for the lease's tests: files with headers, and what is asked of the lease for them, by number. */
#ifndef BYOKFS_TEST_LEASE_FILES_H
#define BYOKFS_TEST_LEASE_FILES_H

#include "lease_world.h"

#define FILES 40
static struct header_ident ident[FILES];
static struct header_slot slot[FILES];

static inline void make_files(void)
{
	for (int i = 0; i < FILES; i++)
		make_file(&ident[i], &slot[i]);
}

static inline int ahead(int i)
{
	return lease_key_ahead(w.lease, &ident[i], &slot[i]);
}

static inline int look(int i)
{
	struct lease_key *key;
	int r = lease_file_key(w.lease, &ident[i], NULL, NULL, &key);

	if (!r)
		lease_key_put(key);
	return r;
}

static inline int park(int i, int at)
{
	struct lease_key *key;

	return lease_file_key(w.lease, &ident[i], &slot[i], park_at(at), &key);
}

static inline void take_parked(int i, int at)
{
	struct lease_key *key;

	assert_int_equal(parked[at].waiter.result, 0);
	assert_int_equal(lease_file_key(w.lease, &ident[i], &slot[i], &parked[at].waiter, &key), 0);
	assert_memory_equal(lease_key_file(key)->commit, ident[i].commit, 32);
	lease_key_put(key);
}

#endif
