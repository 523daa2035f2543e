/* cmd_history.c — `byokfsctl history`: the records of rotations, oldest first. */
#include "cmd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "io.h"
#include "rotate.h"

#define RECORDS_MAX 100000u

struct history {
	struct store *store;
	int dir;
	char (*ids)[JOB_ID + 1];
	size_t n, room;
	bool held; /* a rotation is under way: the newest running one is it */
	uint64_t damaged;
	json_t *list; /* NULL: a table */
};

static int add(struct history *h, const char *name)
{
	if (h->n == RECORDS_MAX)
		return -EFBIG;
	if (h->n == h->room) {
		size_t room = 2 * h->room + 64;
		char(*more)[JOB_ID + 1] = realloc(h->ids, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		h->ids = more;
		h->room = room;
	}
	memcpy(h->ids[h->n++], name, JOB_ID + 1);
	return 0;
}

static int order(const void *a, const void *b)
{
	return strcmp(a, b);
}

static int list(struct history *h)
{
	int fd = dup(h->dir), ret = 0;
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *e;

	if (!d) {
		ret = -errno;
		cleanup_fd(&fd);
		return ret;
	}
	while (ret == 0 && (e = readdir(d)))
		if (job_is_id(e->d_name))
			ret = add(h, e->d_name);
	(void)closedir(d);
	if (h->n)
		qsort(h->ids, h->n, sizeof(*h->ids), order);
	return ret;
}

/* What became of it, as far as can be told now. */
static const char *outcome(const struct history *h, const struct job *j, bool newest)
{
	return j->outcome != JOB_RUNNING ? job_outcome_name(j->outcome) : h->held && newest ? "running" : "interrupted";
}

static json_t *domains_json(const struct job *j)
{
	json_t *all = json_array();
	char id[2 * CONTEXT_ID + 1];

	for (size_t i = 0; i < j->n; i++) {
		bytes_hex(id, j->domain[i].id, CONTEXT_ID);
		(void)json_array_append_new(all,
		    json_pack(
		        "{s:i, s:s, s:s}", "index", (int)j->domain[i].index, "id", id, "from", j->domain[i].from));
	}
	return all;
}

static json_t *job_json(const struct job *j, const char *what)
{
	char started[21], ended[21];

	io_utc(started, j->started);
	io_utc(ended, j->ended);
	return json_pack("{s:s, s:s, s:b, s:b, s:s, s:s, s:o, s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
	                 "s:I, s:s, s:s}",
	    "id", j->id, "kind", job_kind_name(j->kind), "live", j->live, "through_host", j->through_host, "by", j->by,
	    "identity", j->identity, "domains", domains_json(j), "to", j->to, "started", started, "ended",
	    j->ended ? json_string(ended) : json_null(), "passes", (json_int_t)j->passes, "files", (json_int_t)j->files,
	    "resealed", (json_int_t)j->resealed, "already", (json_int_t)j->already, "unborn", (json_int_t)j->unborn,
	    "damaged", (json_int_t)j->damaged, "unknown", (json_int_t)j->unknown, "failed", (json_int_t)j->failed,
	    "requests", (json_int_t)j->requests, "outcome", what, "why", j->why);
}

static void print_job(const struct job *j, const char *what)
{
	char started[21], ended[21] = "-";

	io_utc(started, j->started);
	if (j->ended)
		io_utc(ended, j->ended);
	(void)printf("%-20s  %-20s  %-11s  %8" PRIu64 "  %8" PRIu64 "  %s\n", started, ended, what, j->resealed,
	    j->requests, j->by);
	for (size_t i = 0; i < j->n && i < 20; i++)
		(void)printf("  domain %-5u from %s\n", (unsigned)j->domain[i].index, j->domain[i].from);
	if (j->n > 20)
		(void)printf("  and %zu domains more\n", j->n - 20);
	(void)printf("  %s to   %s\n", j->kind == JOB_SAME_KEY ? "same key," : "         ", j->to);
	if (*j->identity)
		(void)printf("  as           %s\n", j->identity);
	if (j->damaged || j->unknown || j->failed)
		(void)printf("  besides      %" PRIu64 " damaged, %" PRIu64 " under an unknown key, %" PRIu64
		             " failed\n",
		    j->damaged, j->unknown, j->failed);
	if (*j->why)
		(void)printf("  because      %s\n", j->why);
}

static void show(struct history *h, size_t i)
{
	char *text CLEANUP_FREE = NULL;
	struct job j;
	size_t len;
	int ret = io_read_file(h->dir, h->ids[i], JOB_BYTES, &text, &len);

	if (ret == 0)
		ret = job_parse(&j, text, len);
	if (ret == 0 && (strcmp(j.id, h->ids[i]) != 0 || !bytes_equal(j.store, h->store->desc.store, CONTEXT_ID))) {
		job_free(&j);
		ret = -EINVAL;
	}
	if (ret != 0) {
		h->damaged++;
		(void)fprintf(
		    stderr, "byokfsctl: warning: the record '%s' is damaged or not this store's\n", h->ids[i]);
		return;
	}
	if (h->list)
		(void)json_array_append_new(h->list, job_json(&j, outcome(h, &j, i + 1 == h->n)));
	else
		print_job(&j, outcome(h, &j, i + 1 == h->n));
	job_free(&j);
}

static int show_all(struct history *h)
{
	char who[200];
	int ret = h->dir < 0 ? (errno == ENOENT ? 0 : -errno) : list(h);

	if (ret < 0) {
		cmd_error("cannot read the history of '%s': %s", h->store->path, strerror(-ret));
		return EXIT_FAILED;
	}
	h->held = rotate_lock_held(h->store->meta_fd, who);
	if (!h->list && h->n)
		(void)printf(
		    "%-20s  %-20s  %-11s  %8s  %8s  %s\n", "STARTED", "ENDED", "OUTCOME", "FILES", "REQUESTS", "BY");
	for (size_t i = 0; i < h->n; i++)
		show(h, i);
	if (h->list)
		ret = cmd_print_json(json_pack(
		    "{s:b, s:I, s:O}", "running", h->held, "damaged", (json_int_t)h->damaged, "jobs", h->list));
	else if (h->n == 0)
		ret = puts("no rotation yet") < 0 ? EXIT_FAILED : EXIT_OK;
	return ret == EXIT_OK && fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

int cmd_history(int argc, char **argv)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	struct history h = { .dir = -1 };
	struct live *live = NULL;
	char why[STORE_WHY];
	struct cmd_args args;
	int ret, code = cmd_parse(&args, argc, argv, CMD_JSON, NULL, 1, 1);

	if (code >= 0)
		return code;
	h.store = calloc(1, sizeof(*h.store));
	ret = h.store ? live_at(&live, args.operand[0]) : -ENOMEM;
	(void)snprintf(why, sizeof(why), "out of memory");
	if (ret == 0)
		ret = store_open(h.store, live ? live_cipherdir(live) : args.operand[0], &options, why);
	live_close(live);
	if (ret < 0) {
		cmd_error("%s", why);
		free(h.store);
		return cmd_exit_store(ret);
	}
	h.list = args.json ? json_array() : NULL;
	h.dir = openat(h.store->meta_fd, ROTATE_JOB_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	code = show_all(&h);
	json_decref(h.list);
	cleanup_fd(&h.dir);
	free(h.ids);
	store_close(h.store, true);
	free(h.store);
	return code;
}
