/* check_data.c — contents: every unit of every file, by a crew of threads.
 *
 * Hides how work is shared: the walk queues a file once for each thread that may help with it; whoever comes first gets
 * its key, then each takes the next stretch of it, with a state of its own. The last one out tells what was found.
 *
 * On a live store a file may change under the reader. Only what fails is looked at again, by a page 0 read anew: if
 * nothing moved meanwhile it is damage, and if something moves each time the file is busy, which says nothing. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "crew.h"
#include "io.h"
#include "secret.h"
#include "walk.h"

#define QUEUE       64u
#define STRETCH     (32u << 20) /* of backing; about */
#define STRETCHES   4096u       /* of one file, at most */
#define FAULTS      2000u       /* of one file, told singly */
#define TRIES       5u
#define QUIET_MS    100 /* a file that changed no later than this ago may be changing */

struct faults {
	struct file_fault *f;
	size_t n, room;
	uint64_t more;
};

struct data_file {
	struct check *c;
	char *path, *name;
	int fd;
	uint16_t domain;
	uint8_t page[LAYOUT_PAGE];
	struct header_ident ident;
	uint64_t size;              /* as page 0 says */
	unsigned stretches;
	atomic_uint next, left;     /* stretches begun; jobs that still hold it */
	pthread_mutex_t lock;       /* guards what follows */
	bool asked;
	enum check_key got;
	char why[CHECK_WHY];
	struct file_keys *keys;
	struct block_file block;
	struct faults faults;
	int err;
};

static void data_file_free(struct data_file *d)
{
	if (!d)
		return;
	if (d->block.serial)
		block_forget(d->block.serial);
	secret_free(d->keys);
	cleanup_fd(&d->fd);
	(void)pthread_mutex_destroy(&d->lock);
	free(d->faults.f);
	free(d->path);
	free(d->name);
	free(d);
}

/* ---- one state of a file ---- */

static void add_fault(struct faults *to, const struct file_fault *fault)
{
	struct file_fault *more;

	if (to->n == FAULTS) {
		to->more++;
		return;
	}
	if (to->n == to->room) {
		size_t room = 2 * to->room + 16;

		more = realloc(to->f, room * sizeof(*more));
		if (!more) {
			to->more++;
			return;
		}
		to->f = more;
		to->room = room;
	}
	to->f[to->n++] = *fault;
}

static void note_fault(void *arg, const struct file_fault *fault)
{
	add_fault(arg, fault);
}

/* What file_open() does not like of page 0. */
static void note_reason(void *arg, enum unit_type type, uint64_t index, const char *reason)
{
	(void)type;
	(void)index;
	*(const char **)arg = reason;
}

struct state {
	struct file *file;
	struct file_key key;
};

static int state_open(struct state *s, struct data_file *d, struct faults *faults)
{
	const char *reason = NULL;
	const struct file_params params = { .readonly = true, .damaged = note_reason, .arg = &reason };
	bool wrong;
	int fd = fcntl(d->fd, F_DUPFD_CLOEXEC, 0), ret;

	if (fd < 0)
		return -errno;
	s->key = (struct file_key){ d->keys, &d->block };
	ret = file_open(&s->file, fd, &s->key, &params, &wrong);
	if (ret == 0)
		return 0;
	(void)close(fd);
	s->file = NULL;
	if (ret == -EIO)
		add_fault(faults,
		    &(struct file_fault){ FILE_UNREADABLE, UNIT_ROOT, 0, reason ? reason : "the backing cannot read it",
		        0, d->size });
	return ret;
}

/* Bytes [from, to), while the domain stays open. -EPERM: it does not. */
static int state_verify(struct state *s, struct data_file *d, uint64_t from, uint64_t to, struct faults *faults)
{
	uint64_t bytes = 0;
	int ret;

	if (!check_keys_get(d->c->keys, d->domain))
		return -EPERM;
	ret = file_verify(s->file, &s->key, from, to, note_fault, faults, &bytes);
	check_keys_put(d->c->keys, d->domain);
	atomic_fetch_add(&d->c->bytes, bytes);
	progress_add(&d->c->progress, 0, bytes);
	return ret;
}

/* ---- sharing a file ---- */

static bool get_key(struct data_file *d)
{
	LOCK_SCOPE(&d->lock);
	if (d->asked)
		return d->got == CHECK_KEY_OK;
	d->asked = true;
	d->got = CHECK_KEY_REFUSED;
	(void)snprintf(d->why, sizeof(d->why), "out of memory");
	d->keys = secret_alloc(sizeof(*d->keys));
	if (d->keys)
		d->got = check_keys_file(d->c->keys, d->domain, d->page, &d->ident, d->keys, d->why);
	if (d->got != CHECK_KEY_OK)
		return false;
	d->block = (struct block_file){ .serial = block_serial(), .suite = d->ident.suite, .key = d->keys->page };
	memcpy(d->block.store, d->ident.store, CONTEXT_ID);
	memcpy(d->block.file, d->ident.file, CONTEXT_ID);
	return true;
}

/* Where stretch i begins: with a group, so that no two threads read one node of that level. */
static uint64_t stretch_at(const struct data_file *d, unsigned i)
{
	uint64_t groups = layout_data_pages(d->size) / LAYOUT_GROUP_FAN + 1, each = groups / d->stretches + 1;

	if (i == 0)
		return 0;
	if (i * each > groups)
		return d->size;
	return (LAYOUT_ROOT_DATA + i * each * LAYOUT_GROUP_FAN) * LAYOUT_PAGE;
}

static int take_stretches(struct data_file *d, struct faults *faults)
{
	struct state s = { .file = NULL };
	int ret = 0;

	for (;;) {
		unsigned i = atomic_fetch_add(&d->next, 1);
		uint64_t from, to;

		if (i >= d->stretches || ret < 0)
			break;
		if (!s.file)
			ret = state_open(&s, d, faults);
		if (ret < 0)
			break;
		from = stretch_at(d, i);
		to = i + 1 == d->stretches ? UINT64_MAX - LAYOUT_PAGE : stretch_at(d, i + 1);
		if (from < to)
			ret = state_verify(&s, d, from, to, faults);
	}
	file_close(s.file);
	return ret;
}

static void merge(struct data_file *d, struct faults *mine, int ret)
{
	LOCK_SCOPE(&d->lock);
	for (size_t i = 0; i < mine->n; i++)
		add_fault(&d->faults, &mine->f[i]);
	d->faults.more += mine->more;
	if (ret < 0 && d->err == 0)
		d->err = ret;
	free(mine->f);
}

/* ---- what became of it ---- */

static int fault_order(const void *a, const void *b)
{
	const struct file_fault *x = a, *y = b;

	if (x->type != y->type)
		return x->type < y->type ? -1 : 1;
	if (x->index != y->index)
		return x->index < y->index ? -1 : 1;
	return x->off < y->off ? -1 : x->off > y->off;
}

static int place_order(const void *a, const void *b)
{
	const struct file_fault *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

/* A node that two stretches met is one finding. */
static void tidy(struct faults *l)
{
	size_t n = 0;

	if (l->n == 0)
		return;
	qsort(l->f, l->n, sizeof(*l->f), fault_order);
	for (size_t i = 1; i < l->n; i++) {
		struct file_fault *last = &l->f[n], *f = &l->f[i];
		uint64_t end = f->off + f->len;

		if (last->type == f->type && last->index == f->index) {
			if (end > last->off + last->len)
				last->len = end - last->off;
		} else {
			l->f[++n] = *f;
		}
	}
	l->n = n + 1;
	qsort(l->f, l->n, sizeof(*l->f), place_order);
}

struct look {
	struct timespec ctime;
	nlink_t links;
	uint8_t page[LAYOUT_PAGE];
	bool quiet;
};

static int take_look(const struct data_file *d, struct look *l)
{
	struct timespec now;
	struct stat st;
	int64_t age;

	memset(l, 0, sizeof(*l));
	if (fstat(d->fd, &st) < 0 || clock_gettime(CLOCK_REALTIME, &now) < 0)
		return -errno;
	age = (now.tv_sec - st.st_ctim.tv_sec) * 1000 + (now.tv_nsec - st.st_ctim.tv_nsec) / 1000000;
	l->ctime = st.st_ctim;
	l->links = st.st_nlink;
	l->quiet = age > QUIET_MS || age < 0;
	return io_pread(d->fd, l->page, sizeof(l->page), 0) < 0 ? -EIO : 0;
}

static bool moved(const struct look *a, const struct look *b)
{
	return !a->quiet || a->ctime.tv_sec != b->ctime.tv_sec || a->ctime.tv_nsec != b->ctime.tv_nsec ||
	    memcmp(a->page, b->page, sizeof(a->page)) != 0;
}

/* The bytes that failed, once more. */
static int look_again(struct data_file *d, struct faults *out)
{
	struct state s = { .file = NULL };
	int ret = state_open(&s, d, out);

	for (size_t i = 0; ret == 0 && i < d->faults.n; i++) {
		const struct file_fault *f = &d->faults.f[i];

		ret = state_verify(&s, d, f->type == UNIT_ROOT ? 0 : f->off,
		    f->type == UNIT_ROOT || d->faults.more ? UINT64_MAX - LAYOUT_PAGE : f->off + f->len, out);
		if (f->type == UNIT_ROOT || d->faults.more)
			break;
	}
	file_close(s.file);
	return ret == -EIO ? 0 : ret;
}

/* Is it damage? What is left of it then is in d->faults. */
static bool confirmed(struct data_file *d)
{
	const struct timespec nap = { .tv_nsec = (QUIET_MS + 20) * 1000000l };
	struct look *look CLEANUP_FREE = calloc(2, sizeof(*look));

	for (unsigned i = 0; look && i < TRIES; i++) {
		struct faults again = { .n = 0 };

		(void)nanosleep(&nap, NULL);
		if (take_look(d, &look[0]) < 0 || look[0].links == 0)
			return false;
		d->err = look_again(d, &again);
		free(d->faults.f);
		d->faults = again;
		if (d->err < 0 || (again.n == 0 && again.more == 0))
			return false;
		if (take_look(d, &look[1]) == 0 && !moved(&look[0], &look[1]))
			return true;
	}
	if (look) {
		atomic_fetch_add(&d->c->busy, 1);
		check_say(d->c, CHECK_WARNING, d->path, d->name,
		    "busy: it changed each of %u times it was read, so nothing can be said of it", TRIES);
	}
	return false;
}

static void tell_faults(struct data_file *d)
{
	tidy(&d->faults);
	for (size_t i = 0; i < d->faults.n; i++)
		check_say_fault(d->c, d->path, d->name, &d->faults.f[i]);
	if (d->faults.more)
		check_say(d->c, CHECK_DAMAGE, d->path, d->name, "and %" PRIu64 " more damaged units", d->faults.more);
	check_fix_in(d->c, d->domain, FIX_MEND, true, d->path, d->name,
	    d->faults.n ? d->faults.f[0].reason : "damaged units");
	LOCK_SCOPE(&d->c->lock);
	d->c->fixable += d->faults.n + (d->faults.more > 0) - 1; /* one fix for all of them */
}

static void shut_out(struct data_file *d, const char *why)
{
	if (check_keys_first(d->c->keys, d->domain))
		check_say(d->c, CHECK_WARNING, d->path, d->name, "not checked, as others of its key domain: %s", why);
	LOCK_SCOPE(&d->c->lock);
	d->c->unchecked++;
}

static void ended(struct data_file *d)
{
	if (d->err == -EPERM) {
		shut_out(d, "its key domain was locked meanwhile");
	} else if (d->err < 0 && d->err != -EIO) {
		LOCK_SCOPE(&d->c->lock);
		d->c->err = d->err;
	} else {
		atomic_fetch_add(&d->c->authenticated, 1);
	}
}

static void conclude(struct data_file *d)
{
	if (d->got == CHECK_KEY_BROKEN) {
		check_say(d->c, CHECK_DAMAGE, d->path, d->name, "%s", d->why);
		check_fix(d->c, FIX_MOVE, true, d->path, d->name, d->why);
	} else if (d->got != CHECK_KEY_OK) {
		shut_out(d, d->why);
	} else {
		if ((d->faults.n || d->faults.more) && (!d->c->live || confirmed(d)))
			tell_faults(d);
		ended(d);
	}
	progress_add(&d->c->progress, 1, 0);
}

static void work(void *arg, void *item, unsigned worker)
{
	struct data_file *d = item;
	struct faults mine = { .n = 0 };

	(void)arg;
	(void)worker;
	if (atomic_load(&d->next) < d->stretches && get_key(d))
		merge(d, &mine, take_stretches(d, &mine));
	if (atomic_fetch_sub(&d->left, 1) > 1)
		return;
	conclude(d);
	data_file_free(d);
}

/* ---- from the walk ---- */

void check_data_file(struct check *c, int fd, const char *path, const char *name, const struct stat *st,
    const uint8_t page[static LAYOUT_PAGE], const struct header_ident *ident)
{
	struct data_file *d = calloc(1, sizeof(*d));
	uint64_t stretches = (uint64_t)st->st_blocks * 512 / STRETCH + 1;
	struct header_state state;
	unsigned jobs;

	if (d) {
		d->path = strdup(path);
		d->name = strdup(name);
	}
	if (!d || !d->path || !d->name || header_state_hint(page, &state) < 0) {
		c->err = -ENOMEM;
		(void)close(fd);
		free(d);
		return;
	}
	(void)pthread_mutex_init(&d->lock, NULL);
	d->c = c;
	d->fd = fd;
	d->domain = check_here(c)->domain;
	memcpy(d->page, page, LAYOUT_PAGE);
	d->ident = *ident;
	d->size = state.size;
	d->stretches = stretches > STRETCHES ? STRETCHES : (unsigned)stretches;
	jobs = d->stretches < c->jobs ? d->stretches : c->jobs;
	atomic_store(&d->left, jobs);
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	for (unsigned i = 0; i < jobs; i++)
		crew_put(c->crew, d);
}

/* How many files there are, for the progress bar's sake. */
static void count_enter(void *arg, int dirfd, const char *path, const struct stat *st)
{
	(void)arg;
	(void)dirfd;
	(void)path;
	(void)st;
}

static bool count_entry(void *arg, int dirfd, const char *path, const char *name, const struct stat *st)
{
	(void)dirfd;
	(void)path;
	if (strncmp(name, NAME_RESERVED, strlen(NAME_RESERVED)) == 0)
		return false;
	*(uint64_t *)arg += S_ISREG(st->st_mode);
	return S_ISDIR(st->st_mode);
}

static void count_failed(void *arg, const char *path, int err)
{
	(void)arg;
	(void)path;
	(void)err;
}

static void count_leave(void *arg)
{
	(void)arg;
}

int check_data_begin(struct check *c)
{
	uint64_t files = 0;
	const struct walk_ops ops = {
		.arg = &files, .enter = count_enter, .entry = count_entry, .failed = count_failed, .leave = count_leave
	};

	if (c->progress.on && walk(c->store->fd, &ops) == 0)
		atomic_store(&c->progress.total, files);
	c->data_ms = io_boot_ms();
	return crew_open(&c->crew, c->jobs, QUEUE, work, c);
}

void check_data_end(struct check *c)
{
	if (!c->crew)
		return;
	crew_close(c->crew);
	c->crew = NULL;
	c->data_ms = io_boot_ms() - c->data_ms;
}
