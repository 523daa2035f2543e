/* The verbs of the control socket (ctl.h). Every answer has "code" (exitcode.h) and "message"; what follows is there
 * when the code is 0. A mount's key domains are named by their id in hex.
 *
 *   verb           request                             answer
 *   status         [from]                              see control.c
 *   lock, unlock   [domain | domain_inode]
 *   reload                                             changed, next_mount, nested_next_mount
 *   domain-add     parent, dir, name, key, [seal]      job
 *   domain-result  job                                 running | index, id, key, seal
 *
 * Rotation; a rotator that holds no key drives it (byokfs-format(5), 10):
 *   rotate-state   [from]          readonly, domains: [index, id, seq, state, ruling, other], more
 *       seq: the descriptor's; ruling, other: null or {key, provider, material (hex), seq, generation}; both null while
 *       the domain was never opened. At most 100 domains, from an index on; more: there are.
 *   rotate-begin   domain, seq, slot: {provider, key, [material], sealed, blob, probe}, [context]      job
 *       Proves the slot with the mount's own credentials, writes the descriptor, uses the slot's key from now on. 9:
 *       changed meanwhile (seq), or a third key; 3, 5, 6: what the key service said; 1: locked, read-only, not this
 *       domain's secret. Nothing was written then. Needs the domain open.
 *   rotate-result  job             running: true | generation, seq
 *   rotate-slots   domain, slots: [path (hex), ino, file (hex), seq, [slot (base64 of its 512 bytes)]]   results
 *       Per file, at most 256: exchanges its slot, or without one empties the inactive one. "ok", "gone" (no such file
 *       there, or another one), "changed" (other identity or seq: look again) or "error: ...". No key is needed, also
 *       while locked. Nothing is flushed, but slots are emptied only after those written before are durable.
 *       node instead of path: a file that is open without a name, as rotate-orphans told it. fd: which of the
 *       descriptors that came along, the file wherever it has moved to.
 *   rotate-moved   [anew]          lost, at, head, moved: [ino, directory]
 *       Records what moves from now on (anew: true), or tells at most 100 that moved since, each once, with a
 *       descriptor (O_PATH) of each. They are numbered as they were recorded: at is the last one told, head the
 *       newest. lost: the record ended; begin anew, and walk the store again.
 *   rotate-orphans domain, [from]  files: [node, ino, file (hex), slot (base64: the ruling one), other], more
 *       Files that are open though their last name is gone, from a node on: no walk finds them. other: is its other
 *       slot filled? At most 100.
 *   rotate-finish  domain, seq     seq
 *       Empties the descriptor's other slot. 9: there is none, or changed meanwhile. */
#ifndef BYOKFS_CONTROL_H
#define BYOKFS_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

#include "ctl.h"

/* arg: struct service. A new reference, or NULL when memory ran out. */
json_t *control_answer(void *arg, const json_t *request, const struct ctl_fds *in, struct ctl_fds *out);
json_t *control_reply(int code, const char *message);
struct lease_status;
/* The exit code for a domain that its key service keeps locked. */
int control_refusal(const struct lease_status *);

struct service;
/* service_reload() for whoever wants to know what came of it. */
json_t *control_reload(struct service *);
/* State, lease, key service, counters, key domains (from the index in "from" on), audit. */
json_t *control_status(struct service *, const json_t *request);
struct domain;
/* How long a domain's keys, or those of the domain that is worst off, have been sealed under the same key material.
 * NULL: not known yet, or no memory. */
json_t *control_age_domain(const struct service *, struct domain *);
json_t *control_age(const struct service *);
/* Warns in the log when it is due. On the signal thread. */
void control_age_tick(struct service *);
/* Begins to make a key domain; the answer has a "job" number, whose result is asked for until it is not "running". */
json_t *control_domain_add(struct service *, const json_t *request);
json_t *control_domain_result(struct service *, const json_t *request);
/* Waits for one under way, no longer than its call of the KMS takes. */
void control_domain_stop(struct service *);

/* The verbs rotate-*. */
json_t *control_rotate(
    struct service *, const char *verb, const json_t *request, const struct ctl_fds *in, struct ctl_fds *out);
/* Waits for one that begins, no longer than its calls of the KMS take. */
void control_rotate_stop(struct service *);

struct reseal_wish;
struct reseal_item;
struct header_slot;
/* The parts of rotation requests, strictly: anything malformed is false. */
bool control_rotate_wish(struct reseal_wish *out, const json_t *request);
/* path holds PATH_MAX and backs out->path, as slot does out->slot. */
bool control_rotate_item(struct reseal_item *out, char *path, struct header_slot *slot, const json_t *item,
    const struct ctl_fds *fds);

#endif
