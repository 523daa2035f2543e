/* progress.c — see progress.h. Hides the clock and the terminal. */
#include "progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io.h"

#define SILENT_MS 2000u
#define EVERY_MS  200u
#define WIDTH     30u

void progress_begin(struct progress *p, const char *what, uint64_t total)
{
	const char *term = getenv("TERM");

	memset(p, 0, sizeof(*p));
	p->what = what;
	atomic_store(&p->total, total);
	p->start = io_boot_ms();
	atomic_store(&p->next, p->start + SILENT_MS);
	(void)pthread_mutex_init(&p->lock, NULL);
	p->on = isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

static void draw_left(uint64_t seconds)
{
	if (seconds < 60)
		(void)fprintf(stderr, ", %" PRIu64 " s left", seconds);
	else if (seconds < 3600)
		(void)fprintf(stderr, ", %" PRIu64 ":%02" PRIu64 " min left", seconds / 60, seconds % 60);
	else
		(void)fprintf(stderr, ", %" PRIu64 ":%02" PRIu64 " h left", seconds / 3600, seconds / 60 % 60);
}

/* The lock is held. */
static void draw(struct progress *p, uint64_t now)
{
	uint64_t done = atomic_load(&p->done), total = atomic_load(&p->total), bytes = atomic_load(&p->bytes);
	uint64_t elapsed = now - p->start;
	char bar[WIDTH + 1];
	unsigned full;

	if (total == 0) {
		(void)fprintf(stderr, "\r\033[K%" PRIu64 " %s, %" PRIu64 "/s", done, p->what, done * 1000 / elapsed);
	} else {
		full = done >= total ? WIDTH : (unsigned)(done * WIDTH / total);
		memset(bar, '#', full);
		memset(bar + full, '.', WIDTH - full);
		bar[WIDTH] = '\0';
		(void)fprintf(stderr, "\r\033[K[%s] %" PRIu64 " of %" PRIu64 " %s, %" PRIu64 "/s", bar, done, total,
		    p->what, done * 1000 / elapsed);
	}
	if (bytes)
		(void)fprintf(stderr, ", %" PRIu64 " MB/s", bytes / 1000 / elapsed);
	if (done > 0 && done < total)
		draw_left((total - done) * elapsed / done / 1000);
	(void)fflush(stderr);
	p->shown = true;
}

static void show(struct progress *p)
{
	uint64_t now;

	if (!p->on)
		return;
	now = io_boot_ms();
	if (now < atomic_load(&p->next) || pthread_mutex_trylock(&p->lock))
		return;
	atomic_store(&p->next, now + EVERY_MS);
	draw(p, now);
	(void)pthread_mutex_unlock(&p->lock);
}

void progress_at(struct progress *p, uint64_t done)
{
	atomic_store(&p->done, done);
	show(p);
}

void progress_add(struct progress *p, uint64_t n, uint64_t bytes)
{
	atomic_fetch_add(&p->done, n);
	atomic_fetch_add(&p->bytes, bytes);
	show(p);
}

void progress_clear(struct progress *p)
{
	LOCK_SCOPE(&p->lock);
	if (p->shown) {
		(void)fputs("\r\033[K", stderr);
		(void)fflush(stderr);
	}
	p->shown = false;
}
