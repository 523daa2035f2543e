/* config.h — byokfs.ini and `-o section.key=value` in one table: parse, check, defaults (byokfs.ini(5)).
 *
 * Unknown section or key, duplicate, value out of range, over-long line: an error naming file, line and key. Durations
 * take ms, s, m, h; a list may go on on indented lines. Choices of later versions are refused as such. No
 * other layer includes this header: main and the tools hand each module its own parameters. */
#ifndef BYOKFS_CONFIG_H
#define BYOKFS_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cleanup.h"
#include "context.h"

#define CONFIG_WHY  400u
#define CONFIG_LINE 190u /* longest line of a file, without its end */
#define CONFIG_PATH "/etc/byokfs/byokfs.ini"

struct config {
	char *source; /* file it came from, or NULL */
	struct {
		char *provider, *key, *previous, *region, *endpoint, *profile, *ca_bundle;
		char *proxy;   /* NULL: the environment's; "" none ("none" in the ini) */
		char *context; /* as written; extra holds it parsed */
		char *role_arn, *external_id, *session_name;
		char *replicas; /* as written: ARNs between commas and blanks */
		bool failover;  /* to a replica, when the Region cannot be reached */
		uint32_t failover_after_ms, connect_timeout_ms, request_timeout_ms, max_connections;
	} kms;
	struct {
		char *address, *mount, *key, *previous, *namespace, *token_file, *role_id, *secret_id_file, *auth_mount;
		char *ca_bundle;
	} vault;
	struct {
		char *module, *token, *key, *previous, *pin_file;
	} pkcs11;
	struct {
		char *path;
	} keyfile;
	struct {
		uint32_t probe_ms, lease_ms, max_age_ms, idle_ms, pool, read_ahead;
		bool allow_unlocked;
	} cache;
	struct {
		bool writeback, torn_ok, commit_strict, locked_start, shared;
		bool writeback_set; /* not by default */
		uint32_t readahead_kib, threads, max_background;
		uint32_t attr_timeout_ms; /* 0 in the ini = the lease; config_check() sets and caps it */
		char *transport;          /* "fuse", "io_uring", "auto" */
	} mount;
	struct {
		char *id, *names; /* pins of what the store must be; NULL: not pinned */
		uint32_t suite;   /* 0: not pinned */
	} store;
	struct {
		bool syslog;
		char *level; /* err, warn, info, debug */
	} log;
	struct {
		char *file, *level; /* "calls", "changes" */
		bool syslog;
	} audit;
	struct {
		uint32_t key_age_days; /* 0: never */
	} alert;
	struct context_extra extra; /* kms.context, parsed */
};

/* Defaults. */
void config_init(struct config *);
void config_free(struct config *);
/* Reads a file: 0, or -errno with why ("/etc/byokfs/byokfs.ini:14: unknown key 'ttll' in [cache]"). */
MUST_CHECK int config_read(struct config *, const char *path, char *why);
/* "section.key", "value" from -o; overrides the file. */
MUST_CHECK int config_set(struct config *, const char *name, const char *value, char *why);
/* What only the whole can tell: lease >= 2 * probe..., key given, provider known, paths absolute. Fills extra. */
MUST_CHECK int config_check(struct config *, char *why);
/* Finds and reads the file by the contract's order: explicit path (must exist), $BYOKFS_CONFIG (must exist),
 * /etc/byokfs/byokfs.ini (may be missing). */
MUST_CHECK int config_load(struct config *, const char *explicit_path, char *why);
/* The same in a daemon that must not wait: -EINVAL for what is no regular file. */
MUST_CHECK int config_reload(struct config *, const char *explicit_path, char *why);
/* Calls fn with "section.key" of every setting in which the two differ. */
void config_compare(const struct config *, const struct config *, void (*fn)(void *arg, const char *name), void *arg);
/* byokfs.ini.example, byte for byte: every key, commented out, with unit, range, default and a line of explanation. */
void config_describe(FILE *);

#endif
