/* What the parts of the load generator share. Every page says which page it is and in which generation it was written, so
 * each command checks all it reads. Whatever is wrong ends the process with a message and without a time.            */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096u
#define CHUNK (1u << 20)

/* One kind of work: `load NAME PATH A B`. What a and b count is the command's own; a timed one prints its nanoseconds. */
struct command {
	const char *name;
	bool timed;
	void (*run)(const char *path, uint64_t a, uint64_t b);
};

/* Each ends with a NULL name. */
extern const struct command file_commands[], small_commands[], tree_commands[], probe_commands[], gcm_commands[];

extern unsigned char buffer[CHUNK]; /* anybody's, between two calls */

/* Prints what, path and errno ("wrong data" if it is 0); ends the process. */
__attribute__((noreturn)) void fail(const char *what, const char *path);
uint64_t now_ns(void);
/* splitmix64: the same numbers everywhere. */
uint64_t next_random(uint64_t *state);
/* The first count of the numbers 0..n-1 in random order, none twice; to be freed. */
uint32_t *choose(uint64_t n, uint64_t count, uint64_t seed);

void page_fill(unsigned char *to, uint64_t page, uint64_t generation);
void page_check(const unsigned char *at, uint64_t page, uint64_t generation, const char *path);

int open_file(const char *path, int flags);
void close_file(int fd, bool sync, const char *path);
void check_size(int fd, uint64_t size, const char *path);
/* Exactly n bytes; a short write is a failure, for every filesystem here could have done all. */
void write_all(int fd, const void *from, size_t n, const char *path);
void read_all(int fd, void *to, size_t n, const char *path);

#endif
