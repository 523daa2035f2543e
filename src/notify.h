/* notify.h — what systemd is told of a Type=notify service (sd_notify(3)). Without $NOTIFY_SOCKET nothing happens. */
#ifndef BYOKFS_NOTIFY_H
#define BYOKFS_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

/* Does anybody listen? */
bool notify_wanted(void);
/* One datagram of "NAME=value" lines. */
void notify_send(const char *message);
/* RELOADING=1 with the time; a READY=1 must follow. */
void notify_reloading(void);
/* STATUS=text, its control characters made blanks, when it is not what was sent last; ready: READY=1 before it, always.
 * One thread at a time. */
void notify_status(const char *text, bool ready);
/* How often WATCHDOG=1 is expected, in milliseconds; 0: not from this process. */
uint64_t notify_watchdog_ms(void);

#endif
