/* alive.h — is the daemon stuck, by no fault but its own? For systemd's watchdog, whose answer is a kill. */
#ifndef BYOKFS_ALIVE_H
#define BYOKFS_ALIVE_H

#include <stdbool.h>
#include <stdint.h>

struct fs;

struct alive {
	uint64_t answered; /* requests, at the last look */
};

/* False only when waiting will not help: a lease's clockwork has stopped, or no thread is ready to take a request, none
 * was answered since the last call, and none of our threads is in a system call that waits for somebody else (storage,
 * the kernel, syslog). Key services are never the reason. Takes no lock. */
bool alive_check(struct alive *, struct fs *);
/* The second half: is any thread listed in this directory (/proc/self/task) in such a call? True when it cannot be
 * told. */
bool alive_others_wait(const char *task_directory);

#endif
