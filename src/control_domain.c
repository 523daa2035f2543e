/* control_domain.c — the verbs domain-add and domain-result. Hides that making a domain takes as long as the KMS does:
 * a thread of its own works, one at a time, while the socket goes on answering. */
#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "control.h"
#include "domain_add.h"
#include "exitcode.h"
#include "jsonio.h"
#include "service.h"

struct domain_job {
	pthread_t thread;
	bool running; /* there is a thread to be joined */
	atomic_bool stop, done;
	json_int_t number;
	struct fs *fs;
	struct fs_domain_wish wish;
	struct fs_domain_made made;
};

static void *work(void *arg)
{
	struct domain_job *j = arg;

	fs_domain_add(j->fs, &j->wish, &j->made);
	atomic_store(&j->done, true);
	return NULL;
}

static bool take_number(uint64_t *out, const json_t *request, const char *member)
{
	const json_t *v = json_object_get(request, member);

	*out = json_is_integer(v) ? (uint64_t)json_integer_value(v) : 0;
	return *out != 0;
}

/* The name is sent in hex: it may be any bytes. */
static bool take_wish(struct fs_domain_wish *w, const json_t *request)
{
	const char *hex = jsonio_str(request, "name"), *seal = jsonio_str(request, "seal");
	size_t len = hex ? strlen(hex) / 2 : 0;

	memset(w, 0, sizeof(*w));
	if (len == 0 || len > NAME_MAX_PLAIN || bytes_unhex((uint8_t *)w->name, len, hex, strlen(hex)) ||
	    strlen(w->name) != len || strchr(w->name, '/'))
		return false;
	w->seal = seal && strcmp(seal, "domain") == 0 ? SEAL_DOMAIN : SEAL_FILE;
	return take_number(&w->parent, request, "parent") && take_number(&w->dir, request, "dir") &&
	    jsonio_copy(w->key, sizeof(w->key), request, "key") == 0 && w->key[0];
}

static void join(struct domain_job *j)
{
	if (j->running)
		(void)pthread_join(j->thread, NULL);
	j->running = false;
}

json_t *control_domain_add(struct service *s, const json_t *request)
{
	struct domain_job *j = s->job ? s->job : calloc(1, sizeof(*j));

	if (!j)
		return NULL;
	s->job = j;
	if (j->running && !atomic_load(&j->done))
		return control_reply(EXIT_ALREADY, "another key domain is being made");
	join(j);
	if (!take_wish(&j->wish, request))
		return control_reply(EXIT_USAGE, "the request for a key domain is malformed");
	atomic_store(&j->stop, false);
	atomic_store(&j->done, false);
	j->wish.stop = &j->stop;
	j->fs = s->fs;
	j->number++;
	if (pthread_create(&j->thread, NULL, work, j))
		return control_reply(EXIT_FAILED, "no thread to do it");
	j->running = true;
	return json_pack("{s:i, s:s, s:I}", "code", EXIT_OK, "message", "begun", "job", j->number);
}

json_t *control_domain_result(struct service *s, const json_t *request)
{
	struct domain_job *j = s->job;

	if (!j || json_integer_value(json_object_get(request, "job")) != j->number)
		return control_reply(EXIT_FAILED, "no such job");
	if (!atomic_load(&j->done))
		return json_pack("{s:i, s:s, s:b}", "code", EXIT_OK, "message", "the KMS is being asked", "running", 1);
	if (j->made.code)
		return control_reply(j->made.code, j->made.message);
	return json_pack("{s:i, s:s, s:i, s:s, s:o, s:s}", "code", EXIT_OK, "message", "made", "index",
	    (int)j->made.index, "id", j->made.id, "key", jsonio_text(j->made.key), "seal",
	    j->wish.seal == SEAL_DOMAIN ? "domain" : "file");
}

void control_domain_stop(struct service *s)
{
	struct domain_job *j = s->job;

	if (!j)
		return;
	atomic_store(&j->stop, true);
	join(j);
	free(j);
	s->job = NULL;
}
