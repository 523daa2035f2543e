/* SEEK_DATA and SEEK_HOLE. The kernel may hold data that we have not seen, written through a mapping or, with the
 * writeback cache, by any means, and a size; it does not write them back before it asks. So when somebody has the file
 * open for writing, the kernel is told to drop its pages, which writes them first, and the question is answered
 * afterwards. That notification waits for WRITE requests, hence for our own workers and, where they are parked, for a
 * KMS; each domain has a thread of its own for it, started when it is needed first: one that waits holds up nobody
 * else's files. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "fs.h"
#include "ops.h"
#include "log.h"

struct question {
	STAILQ_ENTRY(question) link;
	struct task task;
};

struct seeker {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	STAILQ_HEAD(, question) queue;
	pthread_t thread;
	bool stop;
};

static int run_lseek(struct task *t)
{
	struct file *f = t->handle->inode->file;
	struct file_key fk;
	int r = task_key(t, f, &fk);

	if (r)
		return r;
	int64_t at = file_seek(f, &fk, t->off, t->mode);

	if (at < 0)
		return (int)at;
	(void)fuse_reply_lseek(t->req, at);
	return 0;
}

static void answer(struct question *q)
{
	struct task *t = &q->task;
	int r = fuse_lowlevel_notify_inval_inode(t->fs->se, t->ino, (off_t)t->off, 0);

	if (r && r != -ENOENT)
		log_debug("cannot write back before a seek: %s", strerror(-r));
	task_start(t);
	free(q);
}

static void *seeker_main(void *arg)
{
	struct seeker *s = arg;

	pthread_mutex_lock(&s->lock);
	for (;;) {
		struct question *q = STAILQ_FIRST(&s->queue);

		if (!q && s->stop)
			break;
		if (!q) {
			pthread_cond_wait(&s->wake, &s->lock);
			continue;
		}
		STAILQ_REMOVE_HEAD(&s->queue, link);
		pthread_mutex_unlock(&s->lock);
		answer(q);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/* fs->dirs_lock is held: it guards the seekers too. */
static struct seeker *seeker_start(struct domain *d)
{
	struct seeker *s = d->seeker ? d->seeker : calloc(1, sizeof(*s));

	if (!s || d->seeker)
		return s;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->wake, NULL);
	STAILQ_INIT(&s->queue);
	if (pthread_create(&s->thread, NULL, seeker_main, s)) {
		pthread_mutex_destroy(&s->lock);
		pthread_cond_destroy(&s->wake);
		free(s);
		return NULL;
	}
	d->seeker = s;
	return s;
}

static int ask_later(const struct task *t)
{
	struct question *q = malloc(sizeof(*q));
	struct seeker *s;

	if (!q)
		return -ENOMEM;
	q->task = *t;
	pthread_mutex_lock(&t->fs->dirs_lock);
	s = seeker_start(t->domain);
	pthread_mutex_unlock(&t->fs->dirs_lock);
	if (!s) {
		free(q);
		return -ENOMEM;
	}
	LOCK_SCOPE(&s->lock);
	STAILQ_INSERT_TAIL(&s->queue, q, link);
	pthread_cond_signal(&s->wake);
	return 0;
}

static bool tell_seeker(void *arg, struct domain *d)
{
	struct seeker *s = d->seeker;

	(void)arg;
	if (!s)
		return true;
	LOCK_SCOPE(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->wake);
	return true;
}

static bool end_seeker(void *arg, struct domain *d)
{
	struct seeker *s = d->seeker;

	(void)arg;
	if (!s)
		return true;
	(void)pthread_join(s->thread, NULL);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->wake);
	free(s);
	d->seeker = NULL;
	return true;
}

void seeker_stop(struct fs *fs)
{
	domains_each(fs, tell_seeker, NULL);
	domains_each(fs, end_seeker, NULL);
}

static bool being_written(const struct task *t)
{
	struct inode *inode = t->handle->inode;

	LOCK_SCOPE(&inode->lock);
	return !t->fs->params.shared && inode->writers;
}

void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	struct task t;
	int r;

	task_init(&t, fs, req, ino, fi, run_lseek);
	t.off = (uint64_t)off;
	t.mode = whence;
	if (!being_written(&t)) {
		task_start(&t);
		return;
	}
	r = ask_later(&t);
	if (r)
		fs_error(t.domain, req, r);
}
