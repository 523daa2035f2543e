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

	*p = (struct progress){ .what = what, .total = total, .start = io_boot_ms() };
	p->next = p->start + SILENT_MS;
	p->on = isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

static void draw(struct progress *p, uint64_t done, uint64_t now)
{
	uint64_t elapsed = now - p->start;
	char bar[WIDTH + 1];
	unsigned full;

	if (p->total == 0) {
		(void)fprintf(stderr, "\r\033[K%" PRIu64 " %s, %" PRIu64 " s, %" PRIu64 "/s", done, p->what,
		    elapsed / 1000, done * 1000 / elapsed);
	} else {
		full = done >= p->total ? WIDTH : (unsigned)(done * WIDTH / p->total);
		memset(bar, '#', full);
		memset(bar + full, '.', WIDTH - full);
		bar[WIDTH] = '\0';
		(void)fprintf(stderr, "\r\033[K[%s] %" PRIu64 " of %" PRIu64 " %s, %" PRIu64 " s", bar, done, p->total,
		    p->what, elapsed / 1000);
	}
	(void)fflush(stderr);
	p->shown = true;
}

void progress_at(struct progress *p, uint64_t done)
{
	uint64_t now;

	if (!p->on)
		return;
	now = io_boot_ms();
	if (now < p->next)
		return;
	draw(p, done, now);
	p->next = now + EVERY_MS;
}

void progress_clear(struct progress *p)
{
	if (p->shown) {
		(void)fputs("\r\033[K", stderr);
		(void)fflush(stderr);
	}
	p->shown = false;
}
