/* descriptor_job.c — the text of a rotation's record, in the grammar of the descriptors. */
#include "job.h"

#include <errno.h>
#include <inttypes.h>

#include "bytes.h"
#include "descriptor_text.h"
#include "io.h"

#define TITLE "byokfs-job"

static const char *const kinds[] = { "rotation", "same-key", NULL };
static const char *const outcomes[] = { "running", "done", "stopped", "failed", NULL };
static const char *const places[] = { "offline", "live", NULL };
static const char *const ways[] = { "reencrypt", "through-host", NULL };

const char *job_kind_name(enum job_kind k)
{
	return kinds[k];
}

const char *job_outcome_name(enum job_outcome o)
{
	return outcomes[o];
}

void job_new_id(char out[static JOB_ID + 1], const struct timespec *now)
{
	char utc[21];

	io_utc(utc, now->tv_sec);
	for (const char *p = utc; *p; p++)
		if (*p != '-' && *p != ':')
			*out++ = *p;
	(void)snprintf(out, 10, "-%08x", (unsigned)now->tv_nsec);
}

bool job_is_id(const char *name)
{
	static const char form[] = "ddddddddTddddddZ-hhhhhhhh";

	for (size_t i = 0; i < JOB_ID; i++) {
		bool digit = name[i] >= '0' && name[i] <= '9';
		bool good = form[i] == 'd' ? digit
		    : form[i] == 'h'       ? digit || (name[i] >= 'a' && name[i] <= 'f')
		                           : name[i] == form[i];

		if (!good)
			return false;
	}
	return name[JOB_ID] == '\0';
}

void job_text(char *out, size_t max, const char *text)
{
	size_t n = 0;

	for (; *text && n < max; text++) {
		char c = *text >= ' ' && *text <= '~' ? *text : '?';

		if (c != ' ' || (n && out[n - 1] != ' '))
			out[n++] = c;
	}
	while (n && out[n - 1] == ' ')
		n--;
	out[n] = '\0';
	if (strcmp(out, "-") == 0) /* stands for none */
		out[0] = '\0';
}

void job_free(struct job *j)
{
	for (size_t i = 0; i < j->n; i++)
		free(j->domain[i].from);
	free(steal_ptr(&j->domain));
	j->n = 0;
}

/* ---- parse */

/* "<index> <id> <key>" */
static int parse_domain(struct job_domain *d, struct descriptor_value v)
{
	const char *blank = memchr(v.text, ' ', v.len);
	size_t n = blank ? (size_t)(blank - v.text) : v.len, rest = v.len - n;
	uint64_t index;

	if (!descriptor_parse_number(v.text, n, UINT16_MAX, &index) || rest < 2 * CONTEXT_ID + 3 ||
	    rest > 2 * CONTEXT_ID + 2 + DESCRIPTOR_KEY_MAX || blank[2 * CONTEXT_ID + 1] != ' ' ||
	    bytes_unhex(d->id, CONTEXT_ID, blank + 1, 2 * CONTEXT_ID) < 0)
		return -EINVAL;
	d->index = (uint16_t)index;
	d->from = strndup(blank + 2 * CONTEXT_ID + 2, rest - 2 * CONTEXT_ID - 2);
	return d->from ? 0 : -ENOMEM;
}

static void parse_domains(struct job *j, struct descriptor_reader *r)
{
	size_t room = 0;

	while (!r->err && descriptor_next_is(r, "domain=")) {
		struct descriptor_value v = descriptor_line(r, "domain");

		if (j->n == room) {
			struct job_domain *more;

			room = 2 * room + 4;
			more = room > 2 * JOB_DOMAINS ? NULL : realloc(j->domain, room * sizeof(*more));
			if (!more) {
				descriptor_fail(r, room > 2 * JOB_DOMAINS ? -EINVAL : -ENOMEM);
				return;
			}
			j->domain = more;
		}
		j->domain[j->n] = (struct job_domain){ 0 };
		if (!r->err)
			r->err = parse_domain(&j->domain[j->n], v);
		j->n += !r->err;
	}
	if (!r->err && j->n == 0)
		descriptor_fail(r, -EINVAL);
}

static int64_t parse_end(struct descriptor_reader *r)
{
	if (!descriptor_next_is(r, "ended=-\n"))
		return descriptor_time(r, "ended");
	(void)descriptor_line(r, "ended");
	return 0;
}

/* Every count, in the order of the lines. */
#define COUNTS(j)                                                                                           \
	{                                                                                                   \
		{ "passes", &(j)->passes }, { "files", &(j)->files }, { "resealed", &(j)->resealed },       \
		    { "already", &(j)->already }, { "unborn", &(j)->unborn }, { "damaged", &(j)->damaged }, \
		    { "unknown", &(j)->unknown }, { "failed", &(j)->failed },                               \
		{                                                                                           \
			"requests", &(j)->requests                                                          \
		}                                                                                           \
	}
#define NCOUNTS 9

static void parse_lines(struct job *j, struct descriptor_reader *r)
{
	const struct {
		const char *name;
		uint64_t *value;
	} counts[NCOUNTS] = COUNTS(j);

	descriptor_string(r, "id", j->id, JOB_ID);
	if (!r->err && !job_is_id(j->id))
		descriptor_fail(r, -EINVAL);
	descriptor_hex(r, "store", j->store, CONTEXT_ID);
	j->kind = descriptor_word(r, "kind", kinds);
	j->live = descriptor_word(r, "place", places);
	j->through_host = descriptor_word(r, "way", ways);
	descriptor_string(r, "by", j->by, JOB_TEXT);
	descriptor_string(r, "identity", j->identity, JOB_TEXT);
	parse_domains(j, r);
	descriptor_string(r, "to", j->to, DESCRIPTOR_KEY_MAX);
	j->started = descriptor_time(r, "started");
	j->ended = parse_end(r);
	for (size_t i = 0; i < NCOUNTS; i++)
		*counts[i].value = descriptor_number(r, counts[i].name, INT64_MAX);
	j->outcome = descriptor_word(r, "outcome", outcomes);
	descriptor_string(r, "why", j->why, JOB_TEXT);
}

int job_parse(struct job *out, const char *text, size_t len)
{
	struct descriptor_reader r;
	int ret;

	memset(out, 0, sizeof(*out));
	ret = descriptor_begin(&r, TITLE, text, len, JOB_BYTES);
	if (ret)
		return ret;
	parse_lines(out, &r);
	ret = descriptor_end(&r);
	if (ret) {
		job_free(out);
		memset(out, 0, sizeof(*out));
	}
	return ret;
}

/* ---- print */

static void put_lines(const struct job *j, struct descriptor_writer *w)
{
	const struct {
		const char *name;
		const uint64_t *value;
	} counts[NCOUNTS] = COUNTS(j);
	char id[2 * CONTEXT_ID + 1];

	(void)fprintf(w->f, TITLE " 1\n");
	descriptor_put_string(w, "id", j->id);
	descriptor_put_hex(w, "store", j->store, CONTEXT_ID);
	descriptor_put_string(w, "kind", kinds[j->kind]);
	descriptor_put_string(w, "place", places[j->live]);
	descriptor_put_string(w, "way", ways[j->through_host]);
	descriptor_put_string(w, "by", j->by);
	descriptor_put_string(w, "identity", j->identity);
	for (size_t i = 0; i < j->n; i++) {
		bytes_hex(id, j->domain[i].id, CONTEXT_ID);
		if (!descriptor_is_clean(j->domain[i].from, strlen(j->domain[i].from)))
			w->err = -EINVAL;
		(void)fprintf(w->f, "domain=%u %s %s\n", (unsigned)j->domain[i].index, id, j->domain[i].from);
	}
	descriptor_put_string(w, "to", j->to);
	descriptor_put_time(w, "started", j->started, false);
	descriptor_put_time(w, "ended", j->ended, true);
	for (size_t i = 0; i < NCOUNTS; i++)
		(void)fprintf(w->f, "%s=%" PRIu64 "\n", counts[i].name, *counts[i].value);
	descriptor_put_string(w, "outcome", outcomes[j->outcome]);
	descriptor_put_string(w, "why", j->why);
}

int job_print(const struct job *j, char **text, size_t *len)
{
	CLEANUP_WRITER struct descriptor_writer w = { 0 };
	int ret = job_is_id(j->id) && j->n && j->n <= JOB_DOMAINS && *j->to ? 0 : -EINVAL;

	if (!ret)
		ret = descriptor_writer_begin(&w);
	if (ret)
		return ret;
	put_lines(j, &w);
	return descriptor_writer_end(&w, JOB_BYTES, text, len);
}
