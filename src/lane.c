/* lane.c — who may begin, and what is next.
 *
 * Hides the queue and the list of files at work. Both are short (the kernel bounds what is on its way), so they are
 * searched. A queued job waits for something that a running one has: a place, or its file. So the end of a job frees
 * what at most one queued job can use, and the thread that ends it looks for that one. */
#include "lane.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

struct lane {
	pthread_mutex_t lock; /* guards the rest */
	unsigned most, active;
	size_t room;
	TAILQ_HEAD(, lane_job) queue;
	uint64_t file[]; /* of the active ones; 0: none */
};

int lane_open(struct lane **out, unsigned most, size_t bytes)
{
	struct lane *l = calloc(1, sizeof(*l) + most * sizeof(l->file[0]));

	if (!l)
		return -ENOMEM;
	TAILQ_INIT(&l->queue);
	l->most = most;
	l->room = bytes;
	pthread_mutex_init(&l->lock, NULL);
	*out = l;
	return 0;
}

void lane_close(struct lane *l)
{
	if (l)
		pthread_mutex_destroy(&l->lock);
	free(l);
}

/* lock held */
static bool take(struct lane *l, uint64_t file)
{
	unsigned free_place = l->most, same = 0;

	if (l->active == l->most)
		return false;
	for (unsigned i = 0; i < l->most; i++) {
		same += file && l->file[i] == file;
		if (!l->file[i])
			free_place = i;
	}
	if (same >= LANE_OF_FILE)
		return false;
	if (file)
		l->file[free_place] = file;
	l->active++;
	return true;
}

static void give_back(struct lane *l, uint64_t file)
{
	l->active--;
	for (unsigned i = 0; file && i < l->most; i++)
		if (l->file[i] == file) {
			l->file[i] = 0;
			return;
		}
}

/* lock held. The first that can begin leaves the queue with its turn. */
static struct lane_job *next(struct lane *l)
{
	struct lane_job *j;

	TAILQ_FOREACH(j, &l->queue, link)
	if (take(l, j->file)) {
		TAILQ_REMOVE(&l->queue, j, link);
		l->room += j->bytes;
		return j;
	}
	return NULL;
}

enum lane_turn lane_enter(struct lane *l, const struct lane_job *j)
{
	LOCK_SCOPE(&l->lock);
	if (take(l, j->file))
		return LANE_GO;
	if (j->bytes > l->room)
		return LANE_FULL;
	l->room -= j->bytes;
	return LANE_WAIT;
}

/* lock held, and given up while a job runs: this one, which has its turn, and what can begin after it. */
static void work_off(struct lane *l, struct lane_job *j)
{
	for (; j; j = next(l)) {
		uint64_t file = j->file;

		(void)pthread_mutex_unlock(&l->lock);
		j->run(j);
		(void)pthread_mutex_lock(&l->lock);
		give_back(l, file);
	}
}

void lane_leave(struct lane *l, const struct lane_job *j)
{
	LOCK_SCOPE(&l->lock);
	give_back(l, j->file);
	work_off(l, next(l));
}

void lane_add(struct lane *l, struct lane_job *j)
{
	LOCK_SCOPE(&l->lock);
	if (take(l, j->file)) {
		l->room += j->bytes;
		work_off(l, j);
	} else {
		TAILQ_INSERT_TAIL(&l->queue, j, link);
	}
}

void lane_forego(struct lane *l, const struct lane_job *j)
{
	LOCK_SCOPE(&l->lock);
	l->room += j->bytes;
}
