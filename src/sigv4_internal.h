/* sigv4_internal.h — what sigv4.c and sigv4_uri.c share. */
#ifndef BYOKFS_SIGV4_INTERNAL_H
#define BYOKFS_SIGV4_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>

#include "cleanup.h"

/* Text of known room; once something did not fit, it stays full. */
struct sigv4_text {
	char *p;
	size_t len, size;
	bool full;
};

/* 0 or -ENOMEM. */
MUST_CHECK int sigv4_text_open(struct sigv4_text *, size_t size);
/* Wipes; the empty struct is fine. */
void sigv4_text_close(struct sigv4_text *);
void sigv4_text_put(struct sigv4_text *, char);
void sigv4_text_add(struct sigv4_text *, const char *);

/* Without dot segments and empty segments, percent-encoded; path begins with '/'. */
void sigv4_add_normal_path(struct sigv4_text *, const char *path);
/* Percent-encoded only. */
void sigv4_add_exact_path(struct sigv4_text *, const char *path);
/* Parameters in order; 0, -EINVAL (too many), -ENOMEM. */
MUST_CHECK int sigv4_add_query(struct sigv4_text *, const char *query);

#endif
