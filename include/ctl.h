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

/* Open descriptors that go along with a request or an answer. */
#define CTL_FDS 128u
struct ctl_fds {
	int fd[CTL_FDS];
	unsigned n;
};
void ctl_fds_close(struct ctl_fds *);

/* Called on the control thread with the parsed request, and with what came along; returns the answer (a new reference)
 * or NULL for an internal error, and puts what is to go along into out. Both are closed afterwards. */
typedef json_t *(*ctl_handler)(void *arg, const json_t *request, const struct ctl_fds *in, struct ctl_fds *out);

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
/* With descriptors: send may be NULL; what comes is in got (NULL: none may), the caller's, also after a failure. */
MUST_CHECK int ctl_call_fds(const char *path, const json_t *request, const struct ctl_fds *send, unsigned timeout_ms,
    json_t **answer, struct ctl_fds *got);

#endif
