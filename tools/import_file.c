/* import_file.c — the bytes of one file: copied with a hash, read back past the kernel's cache and hashed again.
 *
 * The hash is Poly1305 under a random key that nobody else sees: two different files of a terabyte have the same one
 * with a chance of 2^-66, whoever chose them, at six times the speed of BLAKE2b. It leaves out blocks of zeros, so that
 * a hole and written zeros are equal; what it covers is (offset, block) for every other block, and the size. Holes are
 * skipped by SEEK_DATA where the file says that it has any. */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <string.h>

#include "bytes.h"
#include "import.h"
#include "io.h"
#include "secret.h"

#define CHUNK 4096u

static void hash_block(crypto_onetimeauth_state *state, uint64_t off, const uint8_t *p, size_t n)
{
	uint8_t at[8];

	if (bytes_zero(p, n))
		return;
	le64_put(at, off);
	(void)crypto_onetimeauth_update(state, at, sizeof(at));
	(void)crypto_onetimeauth_update(state, p, n);
}

static void hash_blocks(crypto_onetimeauth_state *state, uint64_t off, const uint8_t *p, size_t n)
{
	for (size_t at = 0; at < n; at += IMPORT_BLOCK)
		hash_block(state, off + at, p + at, n - at < IMPORT_BLOCK ? n - at : IMPORT_BLOCK);
}

static void hash_end(crypto_onetimeauth_state *state, uint64_t size, uint8_t hash[static IMPORT_HASH])
{
	uint8_t at[8];

	le64_put(at, size);
	(void)crypto_onetimeauth_update(state, at, sizeof(at));
	(void)crypto_onetimeauth_final(state, hash);
}

static bool has_holes(const struct stat *st)
{
	return (uint64_t)st->st_blocks * 512 + CHUNK <= (uint64_t)st->st_size;
}

/* The block that holds the next data at or behind off; size when there is none. */
static uint64_t next_data(int fd, uint64_t off, uint64_t size)
{
	off_t at = lseek(fd, (off_t)off, SEEK_DATA);

	if (at < 0)
		return errno == ENXIO ? size : off; /* who cannot seek for data has data everywhere */
	at -= at % IMPORT_BLOCK;
	return (uint64_t)at < off ? off : (uint64_t)at;
}

/* What is not zero of a block of a file with holes. */
static int write_runs(int fd, const uint8_t *p, size_t n, uint64_t off)
{
	size_t from = 0;
	int ret = 0;

	while (ret == 0 && from < n) {
		size_t to, step = n - from < CHUNK ? n - from : CHUNK;

		if (bytes_zero(p + from, step)) {
			from += step;
			continue;
		}
		for (to = from; to < n && !bytes_zero(p + to, n - to < CHUNK ? n - to : CHUNK);)
			to += n - to < CHUNK ? n - to : CHUNK;
		ret = io_pwrite(fd, p + from, to - from, off + from);
		from = to;
	}
	return ret;
}

static int as_fault(struct import_work *w, int err, bool target, const char *what)
{
	errno = -err;
	return import_fault(w, target, what);
}

int import_file_copy(struct import_work *w, uint8_t hash[static IMPORT_HASH])
{
	uint64_t size = (uint64_t)w->st.st_size, off = 0;
	bool holes = has_holes(&w->st);
	crypto_onetimeauth_state state;

	secret_random(w->key, sizeof(w->key));
	(void)crypto_onetimeauth_init(&state, w->key);
	while (off < size && (!holes || (off = next_data(w->src, off, size)) < size)) {
		size_t want = size - off < IMPORT_BLOCK ? (size_t)(size - off) : IMPORT_BLOCK;
		ssize_t n = import_stopped(w->im) ? -ECANCELED : io_pread(w->src, w->buffer, want, off);
		int ret;

		if (n < 0)
			return as_fault(w, (int)n, false, "read");
		if (n == 0)
			return -EAGAIN; /* it has shrunk, or never was that long */
		if (w->im->verify != VERIFY_NONE)
			hash_block(&state, off, w->buffer, (size_t)n);
		ret = holes ? write_runs(w->dst, w->buffer, (size_t)n, off)
		            : io_pwrite(w->dst, w->buffer, (size_t)n, off);
		if (ret < 0)
			return as_fault(w, ret, true, "write");
		off += (size_t)n;
		progress_add(&w->im->progress, 0, (uint64_t)n);
	}
	if (holes && ftruncate(w->dst, (off_t)size) < 0)
		return import_fault(w, true, "set the size of");
	hash_end(&state, size, hash);
	return 0;
}

static int hash_all(struct import_work *w, int fd, bool target, uint8_t hash[static IMPORT_HASH])
{
	uint64_t size = (uint64_t)w->st.st_size, off = 0;
	bool holes = has_holes(&w->st);
	crypto_onetimeauth_state state;

	(void)crypto_onetimeauth_init(&state, w->key);
	while (off < size && (!holes || (off = next_data(fd, off, size)) < size)) {
		size_t want = holes ? IMPORT_BLOCK : IMPORT_BUFFER;
		ssize_t n;

		if (want > size - off)
			want = (size_t)(size - off);
		n = import_stopped(w->im) ? -ECANCELED : io_pread(fd, w->buffer, want, off);
		if (n < 0)
			return as_fault(w, (int)n, target, target ? "read back" : "read");
		if ((size_t)n < want)
			break;
		hash_blocks(&state, off, w->buffer, want);
		off += want;
	}
	hash_end(&state, off < size ? off : size, hash);
	return 0;
}

int import_file_read_back(struct import_work *w, uint8_t hash[static IMPORT_HASH])
{
	if (fcntl(w->dst, F_SETFL, O_DIRECT) < 0)
		return import_fault(w, true, "read back");
	return hash_all(w, w->dst, true, hash);
}

int import_file_compare(struct import_work *w)
{
	uint8_t src[IMPORT_HASH], dst[IMPORT_HASH];
	int ret;

	secret_random(w->key, sizeof(w->key));
	ret = hash_all(w, w->src, false, src);
	if (ret == 0)
		ret = import_file_read_back(w, dst);
	/* An error of write-back that nobody was told yet is told to the first who asks. The second one hears of what
	 * is there. */
	if (ret == -EIO && w->target)
		ret = import_file_read_back(w, dst);
	return ret < 0 ? ret : bytes_equal(src, dst, IMPORT_HASH) ? 0 : -EBADMSG;
}
