/* Random operations on one file, each checked against a model in memory (the idea of fsx).
 *
 * model FILE [-l LINK] [-m SAVED] [-s SEED] [-n OPERATIONS] [-z MAXSIZE] [-x COMMAND] [-X COMMAND] [-d] [-D] [-y] [-M] [-F]
 * LINK is a second name of the file, used for every other read. SAVED, outside the filesystem under test, holds the model
 * from an earlier run. -d: O_DIRECT, -D: a descriptor with O_DIRECT beside the others, -y: O_SYNC, -M: no mmap, -F: no
 * fallocate. Now and then COMMAND is run, -x while the file is open, -X while it is closed. Exit code 0: no difference;
 * else the last operations and the difference are printed, and the seed that repeats them. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *path, *link_path, *saved, *while_open, *while_closed;
static uint64_t seed = 1, first_seed = 1;
static size_t max_size = 300000;
static int direct, mixed, sync_flag, no_map, no_allocate;
static unsigned char *model, *buf;
static size_t size;
static int fd = -1, link_fd = -1, direct_fd = -1;
static char history[64][96];
static unsigned long op;

static uint64_t rnd(uint64_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return below ? (seed >> 11) % below : 0;
}

static void note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(history[op % 64], sizeof(history[0]), fmt, ap);
	va_end(ap);
}

static void fail(const char *what)
{
	fprintf(stderr, "seed %llu, operation %lu: %s: %s\n", (unsigned long long)first_seed, op, what, strerror(errno));
	for (unsigned long i = op > 40 ? op - 40 : 0; i <= op; i++)
		fprintf(stderr, "  %lu %s\n", i, history[i % 64]);
	exit(1);
}

static void compare(const unsigned char *got, size_t off, size_t n, const char *what)
{
	if (memcmp(got, model + off, n) == 0)
		return;
	size_t i = 0, last = n - 1, count = 0;

	while (got[i] == model[off + i])
		i++;
	while (got[last] == model[off + last])
		last--;
	for (size_t j = i; j <= last; j++)
		count += got[j] != model[off + j];
	fprintf(stderr, "byte %zu is %02x, not %02x; %zu bytes differ up to %zu\n", off + i, got[i], model[off + i], count, off + last);
	errno = 0;
	fail(what);
}

static void open_file(void)
{
	int flags = O_RDWR | (direct ? O_DIRECT : 0) | (sync_flag ? O_SYNC : 0);

	fd = open(path, flags);
	if (fd < 0)
		fail("open");
	link_fd = link_path ? open(link_path, O_RDONLY | (direct ? O_DIRECT : 0)) : -1;
	direct_fd = mixed ? open(path, O_RDWR | O_DIRECT) : -1;
	if ((link_path && link_fd < 0) || (mixed && direct_fd < 0))
		fail("open again");
}

static void close_file(void)
{
	if (close(fd) || (link_fd >= 0 && close(link_fd)) || (mixed && close(direct_fd)))
		fail("close");
}

/* Offsets like edges: of inline data, of a page's two parts, of pages, of the file. */
static size_t place(size_t below)
{
	static const size_t edges[] = {0, 1504, 4064, 4096, 16384, 16384 + 106 * 4096, 16384 + 212 * 4096};
	size_t at;

	if (!below)
		return 0;
	switch (rnd(4)) {
	case 0:
		at = edges[rnd(sizeof(edges) / sizeof(*edges))] + rnd(40) - 20;
		break;
	case 1:
		at = rnd(below / 4096 + 1) * 4096 + (rnd(2) ? 4064 : 0) + rnd(5) - 2;
		break;
	case 2:
		at = size + rnd(5) - 2;
		break;
	default:
		at = rnd(below);
	}
	at = at >= below ? rnd(below) : at;
	return direct ? at / 4096 * 4096 : at;
}

static size_t length(size_t room)
{
	size_t n = rnd(4) ? rnd(9000) + 1 : rnd(3) ? rnd(64) + 1 : rnd(room) + 1;
	n = n > room ? room : n;
	return direct ? n / 4096 * 4096 : n;
}

static void check_size(int on)
{
	struct stat st;

	if (fstat(on, &st))
		fail("fstat");
	if ((size_t)st.st_size != size) {
		fprintf(stderr, "size is %lld, not %zu\n", (long long)st.st_size, size);
		errno = 0;
		fail("size");
	}
}

static void do_read(void)
{
	size_t off = place(max_size), n = length(max_size - off), want = off >= size ? 0 : size - off < n ? size - off : n;
	int from = mixed && rnd(3) == 0 ? direct_fd : link_fd >= 0 && rnd(2) ? link_fd : fd;

	note("%s %zu+%zu of %zu", from == direct_fd ? "read direct" : "read", off, n, size);
	ssize_t got = pread(from, buf, n, (off_t)off);

	if (got != (ssize_t)want)
		fail(got < 0 ? "pread" : got < (ssize_t)want ? "too little read" : "too much read");
	compare(buf, off, want, "read");
}

static void fill(size_t n)
{
	unsigned char c = (unsigned char)(op + 1);

	for (size_t i = 0; i < n; i++)
		buf[i] = (unsigned char)(i % 7 ? c + i / 512 : rnd(256));
}

static void grow(size_t end)
{
	if (end > size) {
		memset(model + size, 0, end - size);
		size = end;
	}
}

static void wrote(size_t off, size_t n)
{
	grow(off);
	memcpy(model + off, buf, n);
	if (off + n > size)
		size = off + n;
}

static void do_write(void)
{
	size_t off = place(max_size), n = length(max_size - off);

	int to = mixed && rnd(3) == 0 ? direct_fd : fd;
	note("%s %zu+%zu of %zu", to == direct_fd ? "write direct" : "write", off, n, size);
	if (!n)
		return;
	fill(n);
	if (pwrite(to, buf, n, (off_t)off) != (ssize_t)n)
		fail("pwrite");
	wrote(off, n);
}

static void do_append(void)
{
	size_t n = length(max_size - size);
	int a = open(path, O_WRONLY | O_APPEND);

	note("append %zu to %zu", n, size);
	if (!n || direct) {
		close(a);
		return;
	}
	fill(n);
	if (a < 0 || write(a, buf, n) != (ssize_t)n || close(a))
		fail("append");
	wrote(size, n);
}

static void do_truncate(void)
{
	size_t to = rnd(3) ? place(max_size) : rnd(2) ? size - rnd(size < 5000 ? size + 1 : 5000) : 0;

	note("truncate %zu to %zu", size, to);
	if (rnd(2) ? ftruncate(fd, (off_t)to) : truncate(path, (off_t)to))
		fail("truncate");
	grow(to);
	size = to;
}

static void *map(size_t *off, size_t *n, int prot)
{
	size_t from, skip;
	unsigned char *p;
	if (!size)
		return NULL;
	*off = rnd(size);
	*n = rnd(20000) + 1;
	if (*n > size - *off)
		*n = size - *off;
	skip = *off % 4096;
	from = *off - skip;
	p = mmap(NULL, *n + skip, prot, MAP_SHARED, fd, (off_t)from);
	if (p == MAP_FAILED)
		fail("mmap");
	/* beyond the end there are zeros up to the page's end */
	if (from + skip + *n == size && size % 4096)
		for (size_t i = skip + *n; i % 4096; i++)
			if (p[i]) {
				errno = 0;
				fail("mapped bytes beyond the end are not zero");
			}
	return p + skip;
}

static void unmap(unsigned char *p, size_t n)
{
	size_t skip = (uintptr_t)p % 4096;

	if (munmap(p - skip, n + skip))
		fail("munmap");
}

static void do_map_read(void)
{
	size_t off = 0, n = 0;
	unsigned char *p = map(&off, &n, PROT_READ);

	note("map read %zu+%zu of %zu", off, n, size);
	if (!p)
		return;
	compare(p, off, n, "map read");
	unmap(p, n);
}

static void do_map_write(void)
{
	size_t off = 0, n = 0;
	unsigned char *p = map(&off, &n, PROT_READ | PROT_WRITE);

	note("map write %zu+%zu of %zu", off, n, size);
	if (!p)
		return;
	fill(n);
	memcpy(p, buf, n);
	memcpy(model + off, buf, n);
	if (rnd(3) == 0 && msync(p - (uintptr_t)p % 4096, n + (uintptr_t)p % 4096, rnd(2) ? MS_SYNC : MS_ASYNC))
		fail("msync");
	if (rnd(8) == 0 && madvise(p - (uintptr_t)p % 4096, n + (uintptr_t)p % 4096, MADV_DONTNEED))
		fail("madvise");
	unmap(p, n);
}

static void do_allocate(void)
{
	static const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
	int mode = modes[rnd(5)];
	size_t off = place(max_size), n = length(max_size - off), end = off + n, clear = end > size ? size : end;

	note("allocate mode %d %zu+%zu of %zu", mode, off, n, size);
	if (!n)
		return;
	if (fallocate(fd, mode, (off_t)off, (off_t)n))
		fail("fallocate");
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) && clear > off)
		memset(model + off, 0, clear - off);
	if (!(mode & FALLOC_FL_KEEP_SIZE))
		grow(end);
}

static void do_copy(void)
{
	size_t from = place(size), to = place(max_size), n = length(max_size - to);
	loff_t in, out;

	if (from >= size)
		return;
	n = n > size - from ? size - from : n;
	if (direct || (from < to + n && to < from + n))
		return;
	note("copy %zu+%zu to %zu of %zu", from, n, to, size);
	for (in = (loff_t)from, out = (loff_t)to; n;) {
		ssize_t got = copy_file_range(fd, &in, fd, &out, n, 0);

		if (got <= 0)
			fail("copy_file_range");
		memcpy(buf, model + in - got, (size_t)got);
		wrote((size_t)(out - got), (size_t)got);
		n -= (size_t)got;
	}
}

static void do_seek(void)
{
	size_t off = place(size);

	if (!size || off >= size)
		return;
	note("seek from %zu of %zu", off, size);
	off_t data = lseek(fd, (off_t)off, SEEK_DATA), hole = lseek(fd, (off_t)off, SEEK_HOLE);
	size_t end = data < 0 ? size : (size_t)data;

	if ((data < 0 && errno != ENXIO) || hole < (off_t)off || (size_t)hole > size || (data >= 0 && (size_t)data >= size))
		fail("lseek");
	for (size_t i = off; i < end; i++)
		if (model[i]) {
			errno = 0;
			fail("SEEK_DATA jumped over data");
		}
	if ((size_t)hole < size && model[hole]) {
		errno = 0;
		fail("SEEK_HOLE points at data");
	}
}

static void do_sync(void)
{
	note("sync");
	if (rnd(2) ? fsync(fd) : fdatasync(fd))
		fail("fsync");
}

static void do_forget(void)
{
	note("forget the kernel's pages");
	if (fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		fail("forget");
}

static void command(const char *line)
{
	note("%s", line);
	if (system(line))
		fail(line);
}

static void do_reopen(void)
{
	note("reopen");
	close_file();
	if (while_closed && rnd(20) == 0)
		command(while_closed);
	open_file();
}

static void do_write_truncating(void)
{
	int t = open(path, O_WRONLY | O_TRUNC);

	note("open O_TRUNC at %zu", size);
	if (t < 0 || close(t))
		fail("open O_TRUNC");
	size = 0;
}

static void step(void)
{
	switch (rnd(20)) {
	case 0: case 1: case 2:
		do_read();
		break;
	case 3: case 4: case 5: case 6:
		do_write();
		break;
	case 7:
		do_append();
		break;
	case 8: case 9:
		do_truncate();
		break;
	case 10: case 11:
		if (!no_map)
			do_map_read();
		break;
	case 12: case 13:
		if (!no_map)
			do_map_write();
		break;
	case 14: case 15:
		if (!no_allocate)
			do_allocate();
		break;
	case 16:
		do_copy();
		break;
	case 17:
		do_seek();
		break;
	case 18:
		if (rnd(3) == 0)
			do_sync();
		else if (rnd(4) == 0)
			do_forget();
		else if (while_open && rnd(30) == 0)
			command(while_open);
		break;
	default:
		if (rnd(40) == 0)
			do_write_truncating();
		else if (rnd(2))
			do_reopen();
	}
	check_size(link_fd >= 0 && rnd(2) ? link_fd : fd);
}

static void load(void)
{
	FILE *f = saved ? fopen(saved, "rb") : NULL;
	if (!f)
		return;
	size = fread(model, 1, max_size, f);
	fclose(f);
}

static void whole(void)
{
	int r = open(path, O_RDONLY);
	size_t at = 0;

	note("read all of %zu", size);
	check_size(r);
	for (ssize_t n; (n = read(r, buf, 65536)) > 0; at += (size_t)n)
		compare(buf, at, (size_t)n, "whole file");
	if (r < 0 || at != size || close(r))
		fail("whole file");
}

int main(int argc, char **argv)
{
	unsigned long operations = 1000;
	int c, flags;

	while ((c = getopt(argc, argv, "l:m:s:n:z:x:X:dDyMF")) != -1)
		switch (c) {
		case 'l': link_path = optarg; break;
		case 'm': saved = optarg; break;
		case 's': first_seed = strtoull(optarg, NULL, 10); break;
		case 'n': operations = strtoul(optarg, NULL, 10); break;
		case 'z': max_size = strtoul(optarg, NULL, 10); break;
		case 'x': while_open = optarg; break;
		case 'X': while_closed = optarg; break;
		case 'd': direct = 1; break;
		case 'D': mixed = 1; break;
		case 'y': sync_flag = 1; break;
		case 'M': no_map = 1; break;
		case 'F': no_allocate = 1; break;
		default: return 2;
		}
	if (optind + 1 != argc)
		return 2;
	path = argv[optind];
	seed = first_seed * 0x9e3779b97f4a7c15ull + 1;
	max_size = (max_size + 4095) / 4096 * 4096;
	if (posix_memalign((void **)&model, 4096, max_size) || posix_memalign((void **)&buf, 4096, max_size + 65536))
		return 2;
	memset(model, 0, max_size);
	load();
	flags = open(path, O_RDWR | O_CREAT, 0644);
	if (flags < 0 || close(flags))
		fail("create");
	if (link_path && link(path, link_path) && errno != EEXIST)
		fail("link");
	whole();
	open_file();
	for (op = 1; op <= operations; op++)
		step();
	whole();
	close_file();
	whole();
	if (saved) {
		FILE *f = fopen(saved, "wb");

		if (!f || fwrite(model, 1, size, f) != size || fclose(f))
			fail("save");
	}
	return 0;
}
