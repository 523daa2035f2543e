/* notify.c — sd_notify(3) without the library: one datagram per message. */
#include "notify.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"

#define STATUS_MAX 400u

bool notify_wanted(void)
{
	const char *path = getenv("NOTIFY_SOCKET");

	return path && (*path == '/' || *path == '@') && strlen(path) < sizeof(((struct sockaddr_un *)NULL)->sun_path);
}

void notify_send(const char *message)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un to = { .sun_family = AF_UNIX };

	if (!path || !notify_wanted())
		return;
	size_t n = strlen(path);

	memcpy(to.sun_path, path, n);
	if (*path == '@')
		to.sun_path[0] = '\0';
	CLEANUP_FD int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0)
		(void)sendto(fd, message, strlen(message), MSG_NOSIGNAL, (struct sockaddr *)&to,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
}

void notify_reloading(void)
{
	struct timespec now;
	char message[80];

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	(void)snprintf(message, sizeof(message), "RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
	    (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u);
	notify_send(message);
}

void notify_status(const char *text, bool ready)
{
	static char last[STATUS_MAX];
	char message[STATUS_MAX + 32], clean[STATUS_MAX];

	(void)snprintf(clean, sizeof(clean), "%s", text);
	for (char *p = clean; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = ' ';
	if (!ready && strcmp(clean, last) == 0)
		return;
	memcpy(last, clean, sizeof(last));
	(void)snprintf(message, sizeof(message), "%sSTATUS=%s", ready ? "READY=1\n" : "", clean);
	notify_send(message);
}

static uint64_t number(const char *name)
{
	const char *text = getenv(name);
	char *end;
	unsigned long long n;

	if (!text || *text < '0' || *text > '9')
		return 0;
	errno = 0;
	n = strtoull(text, &end, 10);
	return *end || errno ? 0 : n;
}

uint64_t notify_watchdog_ms(void)
{
	uint64_t pid = number("WATCHDOG_PID"), us = number("WATCHDOG_USEC");

	if (!notify_wanted() || (getenv("WATCHDOG_PID") && pid != (uint64_t)getpid()))
		return 0;
	return us && us < 1000 ? 1 : us / 1000;
}
