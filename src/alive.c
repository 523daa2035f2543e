/* alive.c — the difference between stuck and kept waiting.
 *
 * Storage may hang for minutes (a server that restarts, a disk that resets), and a daemon killed for it loses what was
 * written and helps nobody. So a request loop without progress is not enough: the kernel tells for every thread which
 * system call it is in. Those listed here are how our threads wait for one another, for a timer, a signal or the
 * network; everything else counts as waiting for somebody outside. */
#include "alive.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "fs.h"
#include "fuseio.h"
#include "lease.h"

/* Of a thread's file "syscall": "running", or the number and what else there is; -1 for one that is blocked in none: it
 * waits for a page. */
static bool waits_outside(const char *text)
{
	static const long ours[] = {
		SYS_futex,
		SYS_ppoll,
		SYS_rt_sigtimedwait,
		SYS_nanosleep,
		SYS_clock_nanosleep,
		SYS_accept,
		SYS_accept4,
		SYS_recvfrom,
		SYS_recvmsg,
		SYS_epoll_pwait,
		SYS_pselect6,
		SYS_restart_syscall,
		SYS_io_uring_enter, /* a queue of requests, see fuseio_idle() */
#ifdef SYS_poll
		SYS_poll,
		SYS_select,
		SYS_epoll_wait,
#endif
	};
	char *end;
	long number;

	if (strncmp(text, "running", 7) == 0)
		return false;
	number = strtol(text, &end, 10);
	if (end == text)
		return true;
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		if (number == ours[i])
			return false;
	return true;
}

bool alive_others_wait(const char *task_directory)
{
	DIR *d = opendir(task_directory);
	const struct dirent *entry;
	bool found = !d;

	while (!found && (entry = readdir(d))) {
		char path[300], text[300] = "";

		if (entry->d_name[0] == '.' || strtol(entry->d_name, NULL, 10) == gettid())
			continue;
		(void)snprintf(path, sizeof(path), "%s/syscall", entry->d_name);
		CLEANUP_FD int fd = openat(dirfd(d), path, O_RDONLY | O_CLOEXEC);

		/* A thread may end meanwhile; the next look will not find it. */
		found = fd < 0 || read(fd, text, sizeof(text) - 1) <= 0 || waits_outside(text);
	}
	if (d)
		(void)closedir(d);
	return found;
}

static bool ticks(void *arg, struct domain *d)
{
	struct lease *lease = atomic_load(&d->lease);
	bool *all = arg;

	*all = !lease || lease_ticks(lease);
	return *all;
}

bool alive_check(struct alive *a, struct fs *fs)
{
	uint64_t answered = fuseio_answered();
	bool progress = answered != a->answered || fuseio_idle() > 0, leases = true;

	a->answered = answered;
	domains_each(fs, ticks, &leases);
	return leases && (progress || alive_others_wait("/proc/self/task"));
}
