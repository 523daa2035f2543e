/* ctl.h — the control socket of a live mount: one JSON request line, one JSON answer line, then close.
 *
 * Socket: /run/byokfs/<32 hex of SHA-256 of the mount point's real path>.sock for root, $XDG_RUNTIME_DIR/byokfs/...
 * (else /tmp/byokfs-<uid>/...) for users; directory 0700. The peer must be root or the daemon's own uid (SO_PEERCRED).
 * Requests and answers are at most 1 MiB, both within 5 s; one client at a time is enough. Request:
 * {"verb":"status"}; answer: {"code":<exit code>,"message":"...", ...}. */
#ifndef BYOKFS_CTL_H
#define BYOKFS_CTL_H

#include <jansson.h>
#include <stddef.h>

#include "cleanup.h"

struct ctl;

/* Called on the control thread with the parsed request; returns the answer (a new reference) or NULL for an internal
 * error. */
typedef json_t *(*ctl_handler)(void *arg, const json_t *request);

#define CTL_PATH        160u
#define CTL_REQUEST_MAX (1u << 20) /* slots of many files; held as it comes, so most take a kilobyte */
#define CTL_ANSWER_MAX  (1u << 20)

/* The directory of this user's sockets; out holds CTL_PATH. It need not exist. */
MUST_CHECK int ctl_directory(char *out);
/* Path of a mount's socket; out holds CTL_PATH. -errno when the mount point has no real path. */
MUST_CHECK int ctl_path(const char *mountpoint, char *out);
/* Makes the directory, the socket and the thread (signals blocked). -EBUSY: a daemon answers there already; -EPERM: the
 * directory is not ours alone. A socket that nobody serves is replaced. After every fork. */
MUST_CHECK int ctl_open(struct ctl **out, const char *mountpoint, ctl_handler, void *arg);
/* Stops the thread, removes the socket; NULL is fine. */
void ctl_close(struct ctl *);

/* Client: sends request, *answer is a new reference. -ENOENT/-ECONNREFUSED: no such mount (exit 8). */
MUST_CHECK int ctl_call(const char *mountpoint, const json_t *request, unsigned timeout_ms, json_t **answer);
/* The same for the socket itself (ctl_directory() lists them). -EPERM: the server is neither root's nor ours; -EPROTO:
 * no sensible answer; -ETIMEDOUT. */
MUST_CHECK int ctl_call_socket(const char *path, const json_t *request, unsigned timeout_ms, json_t **answer);

#endif
