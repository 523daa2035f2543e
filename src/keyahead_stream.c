/* Streams: readers who open files in the order of their directories.
 *
 * A stream goes as tar, cp, grep and find do: through all of a directory, into each directory in it where it stands,
 * then on in the one above. Its cursor goes the same way ahead of the reader, at most `window` files. It begins when a
 * file is opened soon after the one before it in its directory, and lives on the files that were fetched and then
 * opened: twice as many as those are fetched ahead, so who jumps about pays little. A tree may lead back into itself:
 * the cursor then goes round until its window ends. */
#include <string.h>

#include "keyahead_internal.h"

#define STEPS_MAX 64u
/* So many files opened elsewhere: nobody follows this stream any more. */
#define LOST      64u
/* After CALM files in a row whose key was there, one in STRIDE is tried. */
#define CALM      16u
#define STRIDE    8u

static void cursor_to(struct order_stream *s, const struct order *o, const struct order_reading *d, uint32_t at)
{
	s->dir = (uint32_t)(d - o->dir);
	s->dirserial = d->serial;
	s->at = at;
}

static uint32_t window_of(const struct order *o, const struct order_stream *s)
{
	uint32_t want = 2 * s->run > ORDER_WINDOW ? 2 * s->run : ORDER_WINDOW;

	return want < o->params.window ? want : o->params.window;
}

/* The stream that fetched this file, or whose cursor the reader overtakes here. */
static struct order_stream *stream_of(struct order *o, struct order_entry *e)
{
	for (unsigned i = 0; i < ORDER_STREAMS; i++) {
		if (o->opens - o->stream[i].last > LOST)
			o->stream[i].serial = 0;
		if (e->stream && o->stream[i].serial == e->stream)
			return &o->stream[i];
	}
	e->stream = 0;
	for (unsigned i = 0; i < ORDER_STREAMS; i++) {
		struct order_stream *s = &o->stream[i];
		const struct order_reading *d = s->serial ? order_dir_at(o, s->dir, s->dirserial) : NULL;
		const struct order_entry *at = d ? order_entry_at(o, s->at, d) : NULL;

		if (at && d == order_dir_of(o, e) && e->pos >= at->pos && e->pos - at->pos <= ORDER_GAP &&
		    o->opens - s->last <= 2 * ORDER_STREAMS)
			return s;
	}
	return NULL;
}

/* The reader opened the file after one opened before. */
static struct order_stream *stream_begin(struct order *o)
{
	struct order_stream *oldest = &o->stream[0];
	uint32_t run = o->stream[o->newest].run / 2;

	for (unsigned i = 1; i < ORDER_STREAMS; i++)
		if (o->stream[i].touched < oldest->touched || !o->stream[i].serial)
			oldest = &o->stream[i];
	/* Whoever lost the way once may lose it again: what the last stream had earned counts half. */
	o->stream[o->newest].run = run;
	*oldest = (struct order_stream){ .serial = order_serial(o), .run = run, .mark_dir = ORDER_NONE };
	o->newest = (uint32_t)(oldest - o->stream);
	return oldest;
}

bool order_opened(struct order *o, dev_t dev, uint64_t ino, uint64_t now)
{
	struct order_entry *e = order_entry_find(o, dev, ino, false);
	struct order_reading *d = e ? order_dir_of(o, e) : NULL;
	struct order_stream *s;
	bool near;

	if (!d || d->opened == e->pos)
		return false;
	o->opens++;
	near = d->opened != ORDER_NONE && e->pos > d->opened && e->pos - d->opened <= ORDER_GAP;
	d->opened = e->pos;
	s = stream_of(o, e);
	if (!s && !near)
		return false;
	if (!s)
		s = stream_begin(o);
	if (!e->stream || s->dirserial == 0 || now - s->touched >= o->params.stale_ms) {
		/* The cursor goes on from here. */
		cursor_to(s, o, d, (uint32_t)(e - o->entry));
		s->passed = s->issued;
	} else if (e->at - s->passed < s->issued - s->passed) {
		s->passed = e->at + 1;
	}
	s->run += s->run < o->params.window;
	s->touched = now;
	s->last = o->opens;
	s->paused = false;
	o->newest = (uint32_t)(s - o->stream);
	/* Not for every file: waking a thread costs as much as what it does then. */
	return s->issued - s->passed + (window_of(o, s) + 7) / 8 <= window_of(o, s);
}

/* What the cursor meets next. */
enum step { STEP_FILE, STEP_VISIT, STEP_ON, STEP_STOP };

/* A directory stands here: into it, once it is known. */
static enum step into(struct order *o, struct order_stream *s, struct order_entry *e, const struct order_reading *in)
{
	const struct order_dir id = { in->id.dev, e->ino };
	const struct order_reading *d = order_dir_find(o, &id);

	if (!d && !e->tried) {
		e->tried = true;
		return STEP_VISIT;
	}
	s->issued++;
	if (d)
		cursor_to(s, o, d, ORDER_NONE);
	else
		s->at = (uint32_t)(e - o->entry);
	return STEP_ON;
}

/* The directory ends here: on in the one above, behind it. */
static enum step out_of(struct order *o, struct order_stream *s, const struct order_reading *d)
{
	const struct order_entry *e = d->complete ? order_entry_find(o, d->id.dev, d->id.ino, true) : NULL;

	if (!e)
		return STEP_STOP;
	cursor_to(s, o, order_dir_of(o, e), (uint32_t)(e - o->entry));
	return STEP_ON;
}

static enum step step(struct order *o, struct order_stream *s, struct order_entry **out)
{
	const struct order_reading *d = order_dir_at(o, s->dir, s->dirserial);
	const struct order_entry *last = d ? order_entry_at(o, s->at, d) : NULL;

	if (!d || (s->at != ORDER_NONE && !last) || s->issued - s->passed >= window_of(o, s))
		return STEP_STOP;
	*out = order_entry_at(o, last ? last->after : d->first, d);
	if (!*out)
		return out_of(o, s, d);
	if ((*out)->kind == ORDER_DIR)
		return into(o, s, *out, d);
	s->at = (uint32_t)(*out - o->entry);
	(*out)->stream = s->serial;
	(*out)->at = s->issued++;
	return STEP_FILE;
}

static void tell(struct order *o, const struct order_stream *s, const struct order_entry *e, struct order_item *out)
{
	out->dir = order_dir_of(o, e)->id;
	out->ino = e->ino;
	out->kind = e->kind;
	out->stream = (unsigned)(s - o->stream);
	(void)strncpy(out->name, e->name, sizeof(out->name) - 1);
	out->name[sizeof(out->name) - 1] = '\0';
}

/* Keys are at hand: only one file in some is tried. before: the cursor's place before this one. */
static bool skip(struct order_stream *s, const struct order_stream *before)
{
	if (s->calm < CALM)
		return false;
	if (s->mark_dir == ORDER_NONE) {
		s->mark_dir = before->dir;
		s->mark_serial = before->dirserial;
		s->mark_at = before->at;
	}
	return s->issued % STRIDE != 0;
}

static bool stream_next(struct order *o, struct order_stream *s, struct order_item *out)
{
	for (unsigned n = 0; n < STEPS_MAX; n++) {
		struct order_stream before = *s;
		enum step what;
		struct order_entry *e;

		what = step(o, s, &e);
		if (what == STEP_STOP)
			break;
		if (what == STEP_ON || (what == STEP_FILE && skip(s, &before)))
			continue;
		tell(o, s, e, out);
		return true;
	}
	s->paused = true;
	return false;
}

bool order_next(struct order *o, struct order_item *out)
{
	for (unsigned i = 0; i < ORDER_STREAMS; i++) {
		struct order_stream *s = &o->stream[(o->newest + i) % ORDER_STREAMS];

		if (s->serial && !s->paused && stream_next(o, s, out))
			return true;
	}
	return false;
}

void order_result(struct order *o, const struct order_item *item, bool asked)
{
	struct order_stream *s = &o->stream[item->stream];

	if (!asked) {
		s->calm += s->calm < CALM;
		s->mark_dir = ORDER_NONE;
		return;
	}
	s->calm = 0;
	if (s->mark_dir == ORDER_NONE)
		return;
	/* Back to what was skipped. */
	s->dir = s->mark_dir;
	s->dirserial = s->mark_serial;
	s->at = s->mark_at;
	s->mark_dir = ORDER_NONE;
}
