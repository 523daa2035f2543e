/* log.h — one line per event to stderr or, once detached, to syslog(3). Thread-safe; keeps errno.
 *
 * Never key material, never file content. A plain path may be logged: the log belongs to the
 * administrator of the host, who sees the mount anyway.                                     */
#ifndef BYOKFS_LOG_H
#define BYOKFS_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* ident is printed before every message ("byokfs: "). to_syslog switches from stderr to syslog. */
void log_setup(const char *ident, enum log_level max, bool to_syslog);

/* From now on; any thread. */
void log_set_level(enum log_level max);

/* What this thread is about, put before its messages until changed; borrowed. NULL or "": nothing. */
void log_label(const char *label);

void log_at(enum log_level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* An error, but not the same line again within the hour: what is damaged is read over and over. */
void log_err_once(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for something damaged or tampered with, which is counted when it is said. */
void log_damage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
uint64_t log_damage_count(void);

#define log_err(...)   log_at(LOG_LEVEL_ERR, __VA_ARGS__)
#define log_warn(...)  log_at(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_at(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
