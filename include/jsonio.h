/* jsonio.h — size-capped JSON in, one line of JSON out; the only user of jansson beside it are its callers'
 * json_t handles.
 *
 * Parsing rejects duplicates and trailing bytes. secret_init() has given jansson an allocator that wipes. */
#ifndef BYOKFS_JSONIO_H
#define BYOKFS_JSONIO_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

/* NULL on any syntax error, duplicates, depth over 16, or len over max. Give back with json_decref(). */
json_t *jsonio_parse(const char *text, size_t len, size_t max);
/* The string member, or NULL when absent or of another type. Owned by obj. */
const char *jsonio_str(const json_t *obj, const char *member);
/* The string member copied with its NUL; 0, -ENOENT, -EINVAL (type), -E2BIG. */
MUST_CHECK int jsonio_copy(char *out, size_t size, const json_t *obj, const char *member);
/* base64 string member decoded; *len in: room, out: bytes. 0, -ENOENT, -EINVAL, -E2BIG. */
MUST_CHECK int jsonio_blob(uint8_t *out, size_t *len, const json_t *obj, const char *member);
/* A string of bytes that may be none of UTF-8: what is not ASCII then stands there as \\xNN. NULL: no memory. */
json_t *jsonio_text(const char *);
/* Compact text, malloc'ed, or NULL. Not for secrets. */
char *jsonio_print(const json_t *);
/* The same in secret memory, 65535 bytes at most; give back with secret_free(). */
char *jsonio_print_secret(const json_t *);

#endif
