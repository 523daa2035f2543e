/* config_internal.h — the table of keys, between config_keys.c (what a key and a value may be) and config.c (files, the
 * whole). */
#ifndef BYOKFS_CONFIG_INTERNAL_H
#define BYOKFS_CONFIG_INTERNAL_H

#include "config.h"

#define CONFIG_KEYS 64u /* room for the table, checked there */

/* The key, or -EINVAL, -ENOTSUP (of a later version) with a reason. *number counts from 0 in table order. */
MUST_CHECK int config_key_find(const char *section, const char *name, size_t *number, char *why);
/* The value as text into the field; "" takes a text back. */
MUST_CHECK int config_key_set(struct config *, size_t number, const char *value, char *why);
/* A list goes on: the value behind what is there already. */
MUST_CHECK int config_key_append(struct config *, size_t number, const char *value, char *why);
bool config_key_is_list(size_t number);
/* A text with a preset that has none: the administrator emptied it, or memory was short. NULL: all there. */
const char *config_key_missing(const struct config *);

/* Writes why (CONFIG_WHY bytes) and returns err. */
int config_fail(char *why, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
