/* file_fd.c — the descriptor of the backing file, which comes and goes when there are many, and what is asked of it
 * directly: times, and the right to write. */
#include <errno.h>
#include <fcntl.h>

#include "file_internal.h"

static struct file *file_of(struct fdslot *s)
{
	return (struct file *)(void *)((char *)s - offsetof(struct file, slot));
}

static int slot_reopen(struct fdslot *s)
{
	const struct file *f = file_of(s);

	return f->params.reopen(f->params.arg, atomic_load(&f->reader));
}

/* An error of writing is told to whoever flushes a descriptor that was open when it happened: a new one would not hear
 * of it. */
static int slot_settle(struct fdslot *s)
{
	struct file *f = file_of(s);
	struct stat st;
	int rc = file_io->stat(s->fd, &st);

	if (rc != 0)
		return rc;
	if (st.st_nlink == 0 && !f->params.kept(f->params.arg))
		return -EBUSY; /* made without a name: it would be gone */
	rc = atomic_load(&f->unsynced) ? file_sync(f) : 0;
	if (rc != 0)
		atomic_store(&f->lost, rc);
	return rc;
}

bool file_flushed(const struct file *f)
{
	return atomic_load(&f->flushed);
}

void file_join_pool(struct file *f)
{
	static const struct fdslot_ops ops = { .reopen = slot_reopen, .settle = slot_settle };

	atomic_store(&f->reader, f->params.readonly);
	if (f->params.reopen)
		fdslot_open(&f->slot, f->slot.fd, &ops);
}

int file_hold(struct file *f)
{
	return fdslot_hold(&f->slot);
}

void file_release(struct file *f)
{
	fdslot_release(&f->slot);
}

int file_make_writable(struct file *f, int fd)
{
	uint64_t hint;
	int rc = file_hold(f);

	if (rc < 0)
		return rc;
	(void)pthread_rwlock_wrlock(&f->content);
	rc = dup3(fd, f->slot.fd, O_CLOEXEC) < 0 ? -errno : 0;
	if (rc == 0 && f->params.readonly) {
		f->params.readonly = false;
		atomic_store(&f->reader, false);
		hint = layout_hint(f->size, f->inlined);
		f->want_hint = f->want_hint || f->st_size != hint;
		f->repair = f->st_size / LAYOUT_PAGE > hint / LAYOUT_PAGE;
		file_publish(f);
	}
	(void)pthread_rwlock_unlock(&f->content);
	file_release(f);
	return rc;
}

int file_set_times(struct file *f, const struct timespec times[2])
{
	int rc = file_hold(f);

	if (rc < 0)
		return rc;
	(void)pthread_rwlock_wrlock(&f->content);
	rc = futimens(f->slot.fd, times) == 0 ? 0 : -errno;
	(void)pthread_rwlock_unlock(&f->content);
	file_release(f);
	return rc;
}

bool file_has_mtime(struct file *f, const struct timespec *mtime)
{
	struct stat st;
	int fd = file_hold(f);
	bool same;

	if (fd < 0)
		return false;
	(void)pthread_rwlock_wrlock(&f->content);
	same = fstat(fd, &st) == 0 && st.st_mtim.tv_sec == mtime->tv_sec && st.st_mtim.tv_nsec == mtime->tv_nsec;
	(void)pthread_rwlock_unlock(&f->content);
	file_release(f);
	return same;
}
