/* rotate_job.c — the record of the job in .byokfs/jobs: written when it begins, every few seconds, and when it ends.
 * Hides the thread that does the second. */
#include "rotate.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/stat.h>

#include "io.h"

#define EVERY_MS 5000u

static void who(char out[static JOB_TEXT + 1])
{
	char host[100] = "?", buf[2000], text[JOB_TEXT];
	struct passwd pw, *found = NULL;

	(void)gethostname(host, sizeof(host) - 1);
	if (getpwuid_r(getuid(), &pw, buf, sizeof(buf), &found))
		found = NULL;
	(void)snprintf(
	    text, sizeof(text), "%.80s (uid %u) on %s", found ? found->pw_name : "?", (unsigned)getuid(), host);
	job_text(out, JOB_TEXT, text);
}

static int open_dir(const struct rotation *r)
{
	int fd;

	if (mkdirat(r->store->meta_fd, ROTATE_JOB_DIR, 0700) < 0 && errno != EEXIST)
		return -errno;
	fd = openat(r->store->meta_fd, ROTATE_JOB_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static void fill(struct rotation *r)
{
	struct job *j = &r->job;

	j->passes = r->passes;
	j->files = r->counted_files;
	j->resealed = r->resealed;
	j->already = r->counted_done;
	j->unborn = r->counted_unborn;
	j->damaged = r->troubles[TROUBLE_DAMAGED] + r->troubles[TROUBLE_REFUSED];
	j->unknown = r->troubles[TROUBLE_UNKNOWN];
	j->failed = r->troubles[TROUBLE_FAILED] + r->broken;
	j->requests = gate_requests(r->gate);
}

/* One at a time. */
static int write_job(struct rotation *r, struct timespec *when)
{
	char *text CLEANUP_FREE = NULL;
	int dir CLEANUP_FD = open_dir(r);
	struct stat st;
	size_t len;
	int ret;

	if (dir < 0)
		return dir;
	LOCK_SCOPE(&r->job_lock);
	fill(r);
	ret = job_print(&r->job, &text, &len);
	if (ret == 0)
		ret = io_replace_file(dir, r->job.id, text, len, 0600);
	if (ret == 0 && when) {
		if (fstatat(dir, r->job.id, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
		*when = st.st_ctim;
	}
	return ret;
}

int rotate_job_write(struct rotation *r, struct timespec *when)
{
	int ret = write_job(r, when);

	if (ret == 0)
		return EXIT_OK;
	gate_stop(r->gate, EXIT_FAILED, NULL, "cannot write the record of the job: %s", strerror(-ret));
	return EXIT_FAILED;
}

static void *ticker_main(void *arg)
{
	struct rotation *r = arg;
	uint64_t next = io_boot_ms() + EVERY_MS;

	(void)pthread_mutex_lock(&r->tick_lock);
	while (r->ticking) {
		struct timespec until = io_after_ms(EVERY_MS);

		(void)pthread_cond_timedwait(&r->tick, &r->tick_lock, &until);
		if (!r->ticking || io_boot_ms() < next)
			continue;
		next = io_boot_ms() + EVERY_MS;
		(void)pthread_mutex_unlock(&r->tick_lock);
		(void)write_job(r, NULL); /* a full disk is met elsewhere */
		(void)pthread_mutex_lock(&r->tick_lock);
	}
	(void)pthread_mutex_unlock(&r->tick_lock);
	return NULL;
}

static int list_domains(struct rotation *r)
{
	struct job *j = &r->job;

	j->domain = calloc(r->n, sizeof(*j->domain));
	if (!j->domain)
		return -ENOMEM;
	for (; j->n < r->n; j->n++) {
		const struct rotate_domain *d = &r->domain[j->n];
		struct job_domain *to = &j->domain[j->n];

		to->index = d->line->index;
		memcpy(to->id, d->ids.domain, CONTEXT_ID);
		to->from = strdup(d->state == ROTATE_NOTHING && r->leaving ? r->leaving : d->from);
		if (!to->from)
			return -ENOMEM;
	}
	return 0;
}

int rotate_job_begin(struct rotation *r)
{
	struct timespec now;
	struct kms_where at;
	struct job *j = &r->job;

	kms_where(r->kms, &at);
	(void)clock_gettime(CLOCK_REALTIME, &now);
	j->started = now.tv_sec;
	job_new_id(j->id, &now);
	memcpy(j->store, r->store->desc.store, sizeof(j->store));
	j->kind = r->domain[0].anew ? JOB_SAME_KEY : JOB_ROTATION;
	j->live = r->live != NULL;
	j->through_host = r->through_host;
	who(j->by);
	job_text(j->identity, JOB_TEXT, at.identity);
	(void)snprintf(j->to, sizeof(j->to), "%s", kms_key(r->kms));
	if (list_domains(r) < 0) {
		cmd_error("out of memory");
		return EXIT_FAILED;
	}
	if (rotate_job_write(r, NULL) != EXIT_OK)
		return EXIT_FAILED;
	r->ticking = true;
	if (pthread_create(&r->ticker, NULL, ticker_main, r))
		r->ticking = false; /* the record is older then */
	return EXIT_OK;
}

void rotate_job_end(struct rotation *r, enum job_outcome outcome, const char *why)
{
	bool ticked;
	int ret;

	if (!*r->job.id)
		return;
	{
		LOCK_SCOPE(&r->tick_lock);
		ticked = r->ticking;
		r->ticking = false;
		(void)pthread_cond_signal(&r->tick);
	}
	if (ticked)
		(void)pthread_join(r->ticker, NULL);
	r->job.outcome = outcome;
	r->job.ended = io_unix_time();
	job_text(r->job.why, JOB_TEXT, why);
	ret = write_job(r, NULL);
	if (ret < 0)
		(void)fprintf(stderr, "byokfsctl: warning: cannot write the record of the job: %s\n", strerror(-ret));
}
