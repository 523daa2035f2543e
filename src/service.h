/* Being a service: the background with an honest exit code, systemd's notification, signals, and the control verbs. */
#ifndef BYOKFS_SERVICE_H
#define BYOKFS_SERVICE_H

#include <semaphore.h>
#include <stdbool.h>

#include "ctl.h"
#include "fs.h"
#include "keyage.h"
#include "kms.h"
#include "options.h"
#include "watchdog.h"

struct service {
	struct fs *fs;
	struct kms *key; /* of the configuration as mounted: whose credentials all others use */
	struct watchdog *watchdog;
	const char *mountpoint;
	const struct options *options;
	const struct config *config; /* as mounted, then as last taken over by service_reload() */
	struct config *own;          /* that one; NULL: still as mounted */
	int ready_fd;                /* to the waiting parent, or -1 */
	struct ctl *ctl;
	struct domain_job *job; /* the control thread's, as is the next */
	struct rotate_job *rotation;
	int64_t started;
	_Atomic uint32_t key_age_days; /* of the configuration, for any thread */
	struct keyage_said age_said;   /* the signal thread's */
	pthread_t signals, reloads, loop;
	sem_t reload; /* posted by a SIGHUP, and at the end */
	bool running, watchdog_dead, keep_stderr;
	bool stopping;
	bool stuck;      /* the signal thread's: systemd is not told that we are alive */
	uint64_t cut_at; /* the signal thread's: when to cut a connection that outlives its mount */
	bool cut;        /* stopped while busy: the connection is still there */
	bool detached;   /* cut, and no mount of ours any more */
};

/* Forks; the parent waits for the child's verdict and exits with it, the child returns with *ready_fd. Foreground: -1.
 */
MUST_CHECK int service_background(bool foreground, const char *mountpoint, int *ready_fd);
/* The mount answers: parent and systemd hear of it; stderr goes away in the background. */
void service_ready(void *service);
/* Blocks TERM, INT, HUP, PIPE in the calling thread and its children: call before any thread exists. */
void service_block_signals(void);
/* Signal thread and control socket. After every fork, after the mount. */
MUST_CHECK int service_start(struct service *);
void service_stop(struct service *);
/* Tells systemd the state, when it changed; ready: and that a start or a reload is over. Any thread. */
void service_notify(struct service *, bool ready);
/* SIGHUP: reads the configuration again and takes over what can change while mounted. Lasts as long as the key service
 * takes to answer. */
void service_reload(struct service *);

#endif
