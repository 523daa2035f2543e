/* Answers are flat where people read them and grouped where machines do; codes are the programs' exit codes. */
#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "domain_add.h"
#include "exitcode.h"
#include "io.h"
#include "jsonio.h"
#include "service.h"

#define WAIT_MS 25000

json_t *control_reply(int code, const char *message)
{
	return json_pack("{s:i, s:o}", "code", code, "message", jsonio_text(message));
}

/* One domain or all of them. */
struct chosen {
	struct domain *one; /* NULL: all */
	uint64_t end;
	unsigned already, asked, late;
};

static bool lock_one(void *arg, struct domain *d)
{
	struct chosen *c = arg;

	c->asked++;
	c->already += domain_lock(d, "locked by the administrator") != 0;
	return true;
}

static bool wait_locked(void *arg, struct domain *d)
{
	struct chosen *c = arg;

	c->late += domain_wait(d, LEASE_LOCKED, c->end) != 0;
	return true;
}

static void each_chosen(struct fs *fs, struct chosen *c, bool (*fn)(void *arg, struct domain *))
{
	if (c->one)
		(void)fn(c, c->one);
	else
		domains_each(fs, fn, c);
}

/* Locks at once, and only then waits for each. */
static json_t *lock(struct service *s, struct domain *one)
{
	struct chosen c = { .one = one, .end = io_boot_ms() + WAIT_MS };

	each_chosen(s->fs, &c, lock_one);
	if (c.already == c.asked)
		return control_reply(EXIT_ALREADY, "already locked");
	each_chosen(s->fs, &c, wait_locked);
	if (c.late)
		return control_reply(EXIT_FAILED, "locking goes on: operations are still in flight");
	return control_reply(EXIT_OK, "locked");
}

int control_refusal(const struct lease_status *ls)
{
	bool down = ls->answer == KMS_BUSY || ls->answer == KMS_DOWN;

	return ls->answer == KMS_DENIED ? EXIT_DENIED : down ? EXIT_UNREACHABLE : EXIT_FAILED;
}

/* Why the domain did not open. */
static json_t *refusal(const struct lease_status *ls)
{
	return control_reply(control_refusal(ls), ls->reason[0] ? ls->reason : "the KMS has not answered yet");
}

/* One no is an answer; the domain goes on asking by itself. */
static json_t *wait_open(struct domain *d, uint64_t failures, uint64_t end)
{
	struct lease_status ls;

	do {
		if (domain_wait(d, LEASE_OPEN, io_boot_ms() + 50) == 0)
			return control_reply(EXIT_OK, "open");
		domain_status(d, &ls);
	} while (ls.state != LEASE_OPEN && ls.probe_failures == failures && io_boot_ms() < end);
	return ls.state == LEASE_OPEN ? control_reply(EXIT_OK, "open") : refusal(&ls);
}

struct unlocking {
	struct chosen chosen;
	uint64_t *failures; /* of each domain, before it was asked */
	size_t n, room;
	json_t *refused; /* the first answer that is a no */
};

static bool unlock_one(void *arg, struct domain *d)
{
	struct unlocking *u = arg;
	struct lease_status ls;

	domain_status(d, &ls);
	if (u->n < u->room)
		u->failures[u->n++] = ls.probe_failures;
	u->chosen.asked++;
	u->chosen.already += domain_unlock(d) != 0;
	return true;
}

static bool wait_one(void *arg, struct domain *d)
{
	struct unlocking *u = arg;

	if (u->n == u->room) /* added meanwhile */
		return false;
	json_t *a = wait_open(d, u->failures[u->n++], u->chosen.end);

	if (!u->refused && json_integer_value(json_object_get(a, "code")) != EXIT_OK)
		u->refused = a;
	else
		json_decref(a);
	return true;
}

/* All are asked before any is waited for. */
static json_t *unlock(struct service *s, struct domain *one)
{
	struct unlocking u = { .chosen = { .one = one, .end = io_boot_ms() + WAIT_MS } };

	u.room = one ? 1 : domains_count(s->fs);
	u.failures = calloc(u.room, sizeof(*u.failures));
	if (!u.failures)
		return NULL;
	if (one)
		(void)unlock_one(&u, one);
	else
		domains_each(s->fs, unlock_one, &u);
	u.room = u.n;
	u.n = 0;
	if (u.chosen.already < u.chosen.asked) {
		if (one)
			(void)wait_one(&u, one);
		else
			domains_each(s->fs, wait_one, &u);
	}
	free(u.failures);
	if (u.chosen.already == u.chosen.asked)
		return control_reply(EXIT_ALREADY, "already open");
	return u.refused ? u.refused : control_reply(EXIT_OK, "open");
}

struct search {
	const char *id;
	struct domain *found;
};

static bool has_id(void *arg, struct domain *d)
{
	struct search *s = arg;
	char hex[33], index[8];

	bytes_hex(hex, d->ids.domain, 16);
	(void)snprintf(index, sizeof(index), "%u", (unsigned)d->index);
	if (strcmp(s->id, hex) == 0 || strcmp(s->id, index) == 0)
		s->found = d;
	return !s->found;
}

/* The domain that a request names by id or index, or by the inode number of something in it; *known is false when there
 * is no such one. */
static struct domain *named(struct service *s, const json_t *request, bool *known)
{
	struct search search = { .id = jsonio_str(request, "domain") };
	const json_t *number = json_object_get(request, "domain_inode");

	if (search.id)
		domains_each(s->fs, has_id, &search);
	else if (number)
		search.found = domain_of_number(s->fs, (uint64_t)json_integer_value(number));
	*known = (!search.id && !number) || search.found;
	return search.found;
}

json_t *control_answer(void *arg, const json_t *request, const struct ctl_fds *in, struct ctl_fds *out)
{
	const char *verb = jsonio_str(request, "verb");
	struct domain *one;
	bool known;

	if (!verb)
		return control_reply(EXIT_USAGE, "no verb");
	if (strcmp(verb, "status") == 0)
		return control_status(arg, request);
	if (strcmp(verb, "domain-add") == 0)
		return control_domain_add(arg, request);
	if (strcmp(verb, "domain-result") == 0)
		return control_domain_result(arg, request);
	if (strncmp(verb, "rotate-", 7) == 0)
		return control_rotate(arg, verb, request, in, out);
	if (strcmp(verb, "reload") == 0)
		return control_reload(arg);
	one = named(arg, request, &known);
	if (!known)
		return control_reply(EXIT_NO_MOUNT, "no such key domain in this mount");
	if (strcmp(verb, "lock") == 0)
		return lock(arg, one);
	if (strcmp(verb, "unlock") == 0)
		return unlock(arg, one);
	return control_reply(EXIT_USAGE, "unknown verb");
}
