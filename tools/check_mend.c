/* check_mend.c — one file's content: what will be lost is written down and the file copied before anything is changed
 * in place. Hides that nothing else is changed then: what cannot be read only now may be well again tomorrow. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check_repair.h"
#include "cmd.h"
#include "io.h"
#include "layout.h"
#include "secret.h"

#define RUNS_MAX (1u << 20)

/* Physical pages that were damaged when the repair was planned, ascending. */
struct runs {
	struct run {
		uint64_t first, n;
	} *run;
	size_t n, room;
};

struct mend {
	const struct repair_at *at;
	int fd;
	struct file_keys *keys;
	struct block_file block;
	const char *reason; /* of page 0 */
	bool noted;         /* the quarantine has a copy */
	int err;
	uint64_t lost, doubted;
	json_t *ranges;
	struct runs planned;
	bool strange; /* something fails that did not when it was planned */
};

static void page0_reason(void *arg, enum unit_type type, uint64_t index, const char *reason)
{
	(void)type;
	(void)index;
	((struct mend *)arg)->reason = reason;
}

static int add_page(struct runs *to, uint64_t phys)
{
	struct run *last = to->n && to->run ? &to->run[to->n - 1] : NULL;

	if (last && last->first + last->n == phys) {
		last->n++;
		return 0;
	}
	if (!to->run || to->n == to->room) {
		size_t room = 2 * to->room + 16;

		last = room <= RUNS_MAX ? realloc(to->run, room * sizeof(*last)) : NULL;
		if (!last)
			return -ENOMEM;
		to->run = last;
		to->room = room;
	}
	to->run[to->n++] = (struct run){ phys, 1 };
	return 0;
}

static int run_order(const void *key, const void *run)
{
	const struct run *r = run;
	uint64_t phys = *(const uint64_t *)key;

	return phys < r->first ? -1 : phys >= r->first + r->n;
}

static bool may_plan(void *arg, enum unit_type type, uint64_t index)
{
	struct mend *m = arg;

	if (m->err == 0)
		m->err = add_page(&m->planned, layout_phys(type, index));
	return m->err == 0;
}

static bool was_planned(void *arg, enum unit_type type, uint64_t index)
{
	struct mend *m = arg;
	uint64_t phys = layout_phys(type, index);

	m->strange = !m->planned.n ||
	    !bsearch(&phys, m->planned.run, m->planned.n, sizeof(*m->planned.run), run_order);
	return !m->strange;
}

/* With the root its size was lost: what there is of it may be older, or rounded to a page, or the storage's claim. */
#define ROOT_LOST "; its root was lost, and its length may be wrong"

static bool root_planned(const struct mend *m)
{
	return m->planned.n && m->planned.run[0].first == 0;
}

static int keep_copy(struct mend *m)
{
	const struct repair_at *at = m->at;
	const struct quarantine_item item = { "copy", at->cipher, at->plain, at->fix->why };
	int ret = m->noted ? 0 : quarantine_note(&at->r->q, &item);

	if (ret == 0 && !m->noted)
		ret = quarantine_copy(&at->r->q, m->fd);
	m->noted = true;
	return ret;
}

static void say_range(const struct mend *m, const struct file_fault *f)
{
	char unit[40];

	if (m->at->r->list) {
		if (json_array_size(m->ranges) < REPAIR_RANGES)
			(void)json_array_append_new(m->ranges,
			    json_pack("{s:I,s:I,s:b}", "offset", (json_int_t)f->off, "length", (json_int_t)f->len,
			        "doubted", f->kind == FILE_DOUBTED));
		return;
	}
	(void)printf("lost: %s%s%s%s: %s %" PRIu64 " bytes at %" PRIu64 ": %s: %s\n", m->at->cipher,
	    m->at->plain ? " (" : "", m->at->plain ? m->at->plain : "", m->at->plain ? ")" : "",
	    f->kind == FILE_DOUBTED ? "perhaps" : "lost", f->len, f->off, check_unit_name(unit, f), f->reason);
}

static void planned(void *arg, const struct file_fault *f)
{
	struct mend *m = arg;

	if (m->err == 0)
		m->err = keep_copy(m);
	if (m->err == 0)
		m->err = quarantine_range(&m->at->r->q, f->kind == FILE_DOUBTED ? "doubted" : "lost", f->len, f->off);
	*(f->kind == FILE_DOUBTED ? &m->doubted : &m->lost) += f->len;
	say_range(m, f);
}

static void done(void *arg, const struct file_fault *f)
{
	(void)arg;
	(void)f;
}

/* -EIO: beyond repair; 1: there is something to be made anew, and a copy of what was. */
static int plan(struct mend *m)
{
	const struct file_key key = { m->keys, &m->block };
	const struct file_params params = { .readonly = true, .damaged = page0_reason, .arg = m };
	int ret = file_mend(m->fd, &key, &params, &(struct file_mender){ planned, may_plan, m });
	int kept = m->err;

	if (kept == 0 && ret == 1)
		kept = keep_copy(m);
	if (kept == 0 && m->noted)
		kept = quarantine_sync(&m->at->r->q);
	return kept < 0 ? kept : ret;
}

static int carry_out(struct mend *m)
{
	const struct file_key key = { m->keys, &m->block };
	const struct file_params params = { .damaged = page0_reason, .arg = m };
	struct repair *r = m->at->r;
	int ret = file_mend(m->fd, &key, &params, &(struct file_mender){ done, was_planned, m });

	if (ret < 0 && m->strange)
		cmd_error("%s: more of it cannot be read now than when its repair was planned", m->at->cipher);
	if (ret < 0)
		return ret;
	r->lost_bytes += m->lost;
	r->doubted_bytes += m->doubted;
	r->losses += m->lost || m->doubted;
	if (m->at->fix->kind == FIX_HINT && !m->noted) {
		r->lengths++;
		repair_say(m->at, "repaired", 0, NULL, "its length is what its header says again");
		return 0;
	}
	r->mended++;
	repair_say(m->at, "repaired", r->q.n, json_incref(m->ranges),
	    "lost %" PRIu64 " bytes, perhaps %" PRIu64 " more; what was made anew has no memory of older versions%s",
	    m->lost, m->doubted, root_planned(m) ? ROOT_LOST : "");
	return 0;
}

static int with_key(struct mend *m, const struct header_ident *ident)
{
	int ret;

	m->block = (struct block_file){ .serial = block_serial(), .suite = ident->suite, .key = m->keys->page };
	memcpy(m->block.store, ident->store, CONTEXT_ID);
	memcpy(m->block.file, ident->file, CONTEXT_ID);
	ret = plan(m);
	if (ret == -EIO && !m->noted)
		ret = repair_move(m->at, m->reason ? m->reason : "its first page cannot be read");
	else if (ret == 1 || (ret == 0 && m->at->fix->kind == FIX_HINT)) /* else done, by another of its names */
		ret = carry_out(m);
	block_forget(m->block.serial);
	return ret;
}

static int get_keys(struct mend *m)
{
	uint8_t page[LAYOUT_PAGE];
	struct header_ident ident;
	char why[CHECK_WHY];
	enum check_key got;

	if (io_pread(m->fd, page, sizeof(page), 0) != (ssize_t)sizeof(page) || header_ident(page, &ident) != 0)
		return repair_move(m->at, "not a byokfs file, or its header is damaged");
	got = check_keys_file(m->at->r->c->keys, m->at->fix->domain, page, &ident, m->keys, why);
	if (got == CHECK_KEY_BROKEN)
		return repair_move(m->at, why);
	return got == CHECK_KEY_OK ? with_key(m, &ident) : -EACCES;
}

int repair_mend(const struct repair_at *at)
{
	struct mend m = { .at = at, .ranges = json_array() };
	struct stat st;
	int ret;

	if (fstatat(at->dirfd, at->entry, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISREG(st.st_mode))
		return -EIO;
	m.fd = openat(at->dirfd, at->entry, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (m.fd < 0)
		return -errno;
	m.keys = secret_alloc(sizeof(*m.keys));
	ret = m.keys ? get_keys(&m) : -ENOMEM;
	secret_free(m.keys);
	free(m.planned.run);
	json_decref(m.ranges);
	(void)close(m.fd);
	return ret;
}
