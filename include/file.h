/* file.h — one file's plaintext over its backing file: read, write, truncate, commit (format.md 3 to 6).
 *
 * A struct file is the state of one tenure: clock, page 0, cached nodes, versions known. There is at most one per
 * backing file (the inode owns it). It never asks for a key: every call that needs one takes it, and runs between
 * lease_enter and lease_leave.
 *
 * Principle: permissive before, restrictive after (format.md 5). Locks, inside only: a content rwlock (readers share;
 * writers, truncation and commit are exclusive), then a node-cache mutex. fsync and promotion flush with neither held;
 * only what cannot go on without a flush (dclock + W reached, an inline file becoming paged, repair of the end, growth
 * over a pending drop, more than 2048 nodes with work left) flushes inside.
 *
 * Shared mode (12): each change locks the backing file (an OFD lock on byte 2^62), takes in what others wrote, and is
 * flushed before the lock goes, so nothing is ever dirty between calls. A lock not had within FILE_LOCK_MS is -EIO, and
 * logged; at once for those who queued behind one that waited so. Readers lock only when what they see does not fit
 * together.
 *
 * Sizes and offsets are plaintext bytes. Errors are -errno: -EIO for anything that does not authenticate (logged once,
 * with the unit), -EFBIG beyond LAYOUT_SIZE_MAX, else the backing's own (ENOSPC, EDQUOT, EROFS). */
#ifndef BYOKFS_FILE_H
#define BYOKFS_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "block.h"
#include "header.h"
#include "kdf.h"

struct file;

/* Bytes of a backing file that hosts lock: those of applications are below. */
#define FILE_LOCK_SECTION (1ull << 62)
#define FILE_LOCK_FLOCK   (FILE_LOCK_SECTION + 1)
#define FILE_LOCK_MS      5000u

/* The key of the moment; borrowed for the call. */
struct file_key {
	const struct file_keys *keys;
	const struct block_file *block;
};

struct file_params {
	bool readonly;      /* never writes, not even hints */
	bool commit_strict; /* format.md 5.3 */
	bool shared;        /* other hosts may write the file (12): every change is a section, see file_shared.c */
	/* Names the file in log lines (cipher path, plain path if known); called rarely, on errors only, with this
	 * file's locks held: it must not call back. May be NULL. */
	void (*describe)(void *arg, char *out, size_t size);
	void *arg;
	/* Hears of a unit that is not acceptable, instead of the log. May be NULL. */
	void (*damaged)(void *arg, enum unit_type, uint64_t index, const char *reason);
	/* Gives a new descriptor of the backing file, or -errno; no lock of this file held. With it the descriptor is
	 * closed when there are too many (fdpool.h), and opened again for the next call. May be NULL. */
	int (*reopen)(void *arg, bool readonly);
	/* With reopen: does the file stay when it has no name and its descriptor goes? */
	bool (*kept)(void *arg);
	/* Shared mode: true ends a wait for the lock with -EIO. Asked with this file's locks held. May be NULL. */
	bool (*withdrawn)(void *arg);
};

/* Page 0 of a new, empty file: seq 1, clock 1, dclock 0, inline. The caller writes it (dir_create) before any name
 * shows it. */
MUST_CHECK int file_new_page(
    uint8_t page[static LAYOUT_PAGE], const struct header_ident *, const struct header_slot *, const struct file_key *);
/* State of a file just created with that page; fresh. fd (O_RDWR) is taken over on success. */
MUST_CHECK int file_new(struct file **out, int fd, const uint8_t page[static LAYOUT_PAGE], const struct file_key *,
    const struct file_params *);
/* Page 0 without a key: IDENT and the ruling slot, so that the key can be had. -ENODATA: unborn; -EIO: not a byokfs
 * file, or damaged. */
MUST_CHECK int file_peek(int fd, struct header_ident *, struct header_slot *);
/* The other slot of page 0, if it is filled and valid and page 0 is still this file's: 0 or -ENODATA. */
MUST_CHECK int file_peek_other(int fd, const struct header_ident *, struct header_slot *);
/* Reads and authenticates page 0. fd (O_RDWR, or O_RDONLY when params say so) is taken over on success. *hint_wrong:
 * the backing's st_size did not imply STATE's size; it has been set right unless readonly. */
MUST_CHECK int file_open(
    struct file **out, int fd, const struct file_key *, const struct file_params *, bool *hint_wrong);
/* A state opened readonly may write from now on: fd (O_RDWR, of the same file; the caller keeps it) takes the place of
 * its own. Anything may be running on the file meanwhile. */
MUST_CHECK int file_make_writable(struct file *, int fd);
/* Frees the state and closes fd. Nothing is written: flush first. NULL is fine. */
void file_close(struct file *);

/* The descriptor, until file_release(); -errno when it was closed and cannot be opened again. */
MUST_CHECK int file_hold(struct file *);
void file_release(struct file *);
const struct header_ident *file_ident(const struct file *);
/* Current plaintext size; no key, no lock, any time. */
uint64_t file_size(const struct file *);
/* Something is not written, or the hint is not exact: file_flush(hint) wanted. */
bool file_dirty(const struct file *);
/* Records, drops or dclock still to be made durable and written (promotion wanted); implies the state must stay in
 * memory. */
bool file_pending(const struct file *);
/* A flush failed, and the length on the backing is not exact: once the state is closed, the hint must not be believed
 * before somebody opened the file again. */
bool file_odd(const struct file *);
/* Never flushed since it was made. Ends with the first fsync or promotion, which is also how a directory's fsync makes
 * it durable. */
bool file_fresh(const struct file *);

/* Bytes read (short only at end of file) or -errno. Any number of readers at once. buf is wiped on error. */
MUST_CHECK ssize_t file_read(struct file *, const struct file_key *, void *buf, size_t n, uint64_t off);
/* Writes all n bytes or returns -errno (earlier bytes of the request may have been written, as POSIX allows; no byte
 * outside it changed). */
MUST_CHECK int file_write(struct file *, const struct file_key *, const void *buf, size_t n, uint64_t off);
/* The same at the end of the file, wherever that is by now: in shared mode records of several hosts stay whole. */
MUST_CHECK int file_append(struct file *, const struct file_key *, const void *buf, size_t n);
/* Sets the size; both directions. */
MUST_CHECK int file_truncate(struct file *, const struct file_key *, uint64_t size);
/* fallocate(2): mode as there (0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE[|KEEP_SIZE]); others -EOPNOTSUPP. */
MUST_CHECK int file_allocate(struct file *, const struct file_key *, int mode, uint64_t off, uint64_t len);
/* SEEK_DATA or SEEK_HOLE; offset or -ENXIO. */
MUST_CHECK int64_t file_seek(struct file *, const struct file_key *, uint64_t off, int whence);

/* Shared mode, for work on a backing file that is no file yet: its lock, without a wait (-EAGAIN), and back. */
MUST_CHECK int file_guard(int fd);
void file_unguard(int fd);
/* Shared mode: takes in what other hosts wrote since. Else nothing. */
MUST_CHECK int file_refresh(struct file *, const struct file_key *);
/* Number of the page 0 that memory is of; any time. Every change raises it. */
uint64_t file_seq(const struct file *);

/* futimens(2), in order with what the module itself does to the times. Needs no key. */
MUST_CHECK int file_set_times(struct file *, const struct timespec times[2]);
/* A flush succeeded since it was opened or made: after a power cut it is a file, whatever was written since. */
bool file_flushed(const struct file *);
/* Is this the time of its last modification? In the same order. */
bool file_has_mtime(struct file *, const struct timespec *);

/* Writes dirty nodes, page 0 and, when `hint`, the exact size hint (format.md 5.3 step 1-2, 6); mtime and atime are put
 * back. No flush of the device. For close, the 5 s timer, lock. Nothing to do: no system call. */
MUST_CHECK int file_flush(struct file *, const struct file_key *, bool hint);
/* The same, but these times are set instead, as file_set_times() would, even when the flush fails. */
MUST_CHECK int file_flush_times(struct file *, const struct file_key *, bool hint, const struct timespec times[2]);
/* fsync as 5.3: one fdatasync (more with drops pending or commit_strict). A failed flush stays failed for the tenure.
 */
MUST_CHECK int file_fsync(struct file *, const struct file_key *);
/* Promotion in two halves round a syncfs that the caller makes once for many files: begin flushes (1, 2) and returns a
 * mark; end tells whether the syncfs after it succeeded, turns versions into records and pending drops into removals.
 * Repeat while file_pending(), at most 8 rounds, then file_flush(hint). A state that is pending must not be closed
 * unless that may count as a crash. */
MUST_CHECK int file_promote_begin(struct file *, const struct file_key *, uint64_t *mark);
MUST_CHECK int file_promote_end(struct file *, const struct file_key *, uint64_t mark, bool durable);

/* Lock: forgets every plaintext byte (root, spills, inline data) and cached node; versions stay (format.md 11). What
 * was not flushed is lost as in a crash; returns true when something was. The next call with a key loads page 0 again
 * by itself. Nothing else may be running on the file. */
bool file_wipe(struct file *);

/* Re-sealing (format.md 10): fresh goes into the inactive slot of page 0 with the ruling one's seq + 1 (its own is
 * ignored), or the inactive slot is emptied; on disk and in memory. No key is needed, also after file_wipe(); mtime is
 * put back. Only the slot's 512-byte sector is written and nothing is flushed: the other slot stays valid until it is
 * emptied, and whoever empties slots makes the new ones durable before, by one syncfs(2) for all files. seq is the
 * ruling slot's as it was looked at: -ESTALE when it is another one now. -EINVAL: readers would not accept fresh;
 * -EROFS: the state cannot write. */
MUST_CHECK int file_put_slot(struct file *, uint32_t seq, const struct header_slot *fresh);
MUST_CHECK int file_clear_slot(struct file *, uint32_t seq);

/* ---- check and repair */

enum file_fault_kind {
	FILE_UNREADABLE, /* these bytes are EIO (file_verify()), */
	FILE_LOST,       /* were, and are zeros after the repair, */
	FILE_DOUBTED     /* are zeros; what would tell whether they were a hole is lost */
};
struct file_fault {
	enum file_fault_kind kind;
	enum unit_type type; /* the unit that is not acceptable */
	uint64_t index;
	const char *reason; /* static */
	uint64_t off, len;  /* bytes of the file, within its size */
};
/* Authenticates every unit that holds bytes [from, to): nodes on the way, data pages, what may be absent. Goes on
 * after damage; report is called in ascending order of the file's bytes, with the file's locks held. *bytes grows by
 * what was authenticated on the backing. The file is one's own: nothing else runs on it. 0, or -errno when the check
 * could not be done (damage is no error). */
MUST_CHECK int file_verify(struct file *, const struct file_key *, uint64_t from, uint64_t to,
    void (*report)(void *arg, const struct file_fault *), void *arg, uint64_t *bytes);
/* Makes a damaged file readable again, in place: damaged data pages become zeros, damaged nodes are made anew from
 * what authenticates below them, what lies beyond the end goes, the hint is set right. For what is made anew the
 * records that protect against rollback begin anew too. fd as in file_open(), but never taken over; params->readonly:
 * only reports what would be lost. Durable when it returns: 0, there was nothing but perhaps a
 * wrong end or hint, or 1, units were made anew (would be). After a failure, or a crash, it can be called again. With
 * a root that is lost the size is STATE's, or the hint's if that is larger. -EIO: beyond repair.
 * may is asked for each unit before it is made anew (would be), in ascending order of physical pages; false ends it
 * with -EIO and this unit as it was. So a repair does what an earlier look has told, whatever else fails this time. */
struct file_mender {
	void (*report)(void *arg, const struct file_fault *);
	bool (*may)(void *arg, enum unit_type, uint64_t index);
	void *arg;
};
MUST_CHECK int file_mend(int fd, const struct file_key *, const struct file_params *, const struct file_mender *);

#endif
