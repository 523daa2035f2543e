/* rotate_live.h — the daemon of a mount, as a rotation speaks to it (byokfs-format(5), ROTATION). */
#ifndef BYOKFS_ROTATE_LIVE_H
#define BYOKFS_ROTATE_LIVE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "descriptor.h"
#include "header.h"

struct live;
struct rotation;
struct rotate_domain;
struct rotate_item;
struct reslot_view;

/* The read-write mount of the store with this root; NULL when there is none that answers. */
MUST_CHECK int live_find(struct live **, const struct stat *);
/* The mount that is at this very path, if there is one. */
MUST_CHECK int live_at(struct live **, const char *path);
void live_close(struct live *);
const char *live_cipherdir(const struct live *);
const char *live_mount(const struct live *);
struct ctl_fds;
/* Has the daemon record what moves from now on (anew), or tell some of it; EXIT_OK and an answer, or the gate is
 * stopped. */
MUST_CHECK int live_moved(struct rotation *, bool anew, json_t **answer, struct ctl_fds *);
/* Files of a domain that are open without a name, from a node on; EXIT_OK and an answer, or it was said. */
MUST_CHECK int live_orphans(struct live *, const struct rotate_domain *, uint64_t from, json_t **answer);
MUST_CHECK int live_begin(struct rotation *, struct rotate_domain *, const struct descriptor_slot *, bool context);
MUST_CHECK int live_finish(struct rotation *, struct rotate_domain *);
/* Slots are sent in batches by a thread; fresh NULL: empty the inactive one. fd: the file's, the caller's; not looked
 * at when the item has a node. Waits while too many are under way. */
MUST_CHECK int live_start(struct rotation *);
void live_put(struct rotation *, const struct rotate_item *, int fd, const struct reslot_view *,
    const struct header_slot *fresh);
/* Until all that was put is answered. */
void live_flush(struct live *);

#endif
