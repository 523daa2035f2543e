/* config_keys.c — the table of keys; everything else walks it.
 *
 * Hides how a text becomes a value: units, ranges, choices, defaults. A default is written in the table as one would
 * write it in the file and goes the same way; so does `-o`.                                                       */
#include "config_internal.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>

#include "bytes.h"

enum kind {
	TEXT,     /* max: longest */
	PATH,     /* TEXT that begins with '/' */
	CHOICE,   /* TEXT, one of choices */
	ID,       /* TEXT, 32 lower-case hex digits */
	CONTEXT,  /* TEXT, name:value, ... */
	LIST,     /* TEXT; indented lines go on with it */
	FLAG,     /* bool; choices are the words for false and true */
	DURATION, /* uint32_t milliseconds */
	NUMBER,   /* uint32_t */
};

struct key {
	const char *section, *name;
	enum kind kind;
	size_t offset;
	uint32_t min, max;
	const char *preset; /* as one would write it; "" none */
	const char *unit;
	const char *choices; /* separated by '|' */
	const char *later;   /* choices of later versions, to say so */
	const char *doc;
};

#define AT(f)  offsetof(struct config, f)
#define SECOND 1000u
#define HOUR   (3600u * SECOND)

static const struct key keys[] = {
	{ "kms", "provider", CHOICE, AT(kms.provider), 0, 0, "aws", "", "aws|vault|pkcs11|keyfile", NULL,
	    "who keeps the key: AWS KMS; Vault or OpenBao, see [vault]; a token, see [pkcs11]; a file, see [keyfile]" },
	{ "kms", "key", TEXT, AT(kms.key), 0, 2048, "", "ARN, id or alias", NULL, NULL,
	    "the customer's key; mounts need the ARN that init printed" },
	{ "kms", "previous", TEXT, AT(kms.previous), 0, 2048, "", "ARN", NULL, NULL,
	    "the key a rotation is leaving, for as long as 'byokfsctl keys --needs' says it is needed" },
	{ "kms", "region", TEXT, AT(kms.region), 0, 63, "", "name", NULL, NULL,
	    "default: the ARN's, else AWS_REGION, AWS_DEFAULT_REGION, the profile's" },
	{ "kms", "endpoint", TEXT, AT(kms.endpoint), 0, 500, "", "URL", NULL, NULL,
	    "default: AWS_ENDPOINT_URL_KMS, AWS_ENDPOINT_URL, the profile's, the Region's" },
	{ "kms", "profile", TEXT, AT(kms.profile), 0, 128, "", "name", NULL, NULL,
	    "profile of the shared AWS files; when set, credentials in the environment are not used" },
	{ "kms", "ca_bundle", PATH, AT(kms.ca_bundle), 0, 4095, "", "absolute path", NULL, NULL,
	    "certificates to trust; default: the system's" },
	{ "kms", "proxy", TEXT, AT(kms.proxy), 0, 500, "", "URL or none", NULL, NULL,
	    "default: https_proxy and no_proxy of the environment" },
	{ "kms", "context", CONTEXT, AT(kms.context), 0, 2048, "", "name:value, ...", NULL, NULL,
	    "extra encryption-context pairs of new stores, shown in CloudTrail" },
	{ "kms", "role_arn", TEXT, AT(kms.role_arn), 0, 2048, "", "ARN", NULL, NULL,
	    "role to assume before the KMS is asked, with the credentials found otherwise" },
	{ "kms", "external_id", TEXT, AT(kms.external_id), 0, 1224, "", "text", NULL, NULL,
	    "ExternalId that the role's trust policy asks for" },
	{ "kms", "session_name", TEXT, AT(kms.session_name), 0, 64, "", "name", NULL, NULL,
	    "role session shown in CloudTrail; default: byokfs-<host>" },
	{ "kms", "replicas", LIST, AT(kms.replicas), 0, 4095, "", "ARN or ARN@URL, ...; may go on on indented lines",
	    NULL, NULL, "the multi-Region key's replicas, with an endpoint where it is not their Region's usual one" },
	{ "kms", "failover", FLAG, AT(kms.failover), 0, 0, "no", "", "no|unreachable", NULL,
	    "unreachable: ask a replica while the key's Region cannot be reached; never after a denial" },
	{ "kms", "failover_after", DURATION, AT(kms.failover_after_ms), 0, HOUR, "5s", "duration", NULL, NULL,
	    "how long the Region must have been unreachable; less than the lease to keep it" },
	{ "kms", "connect_timeout", DURATION, AT(kms.connect_timeout_ms), 50, 60 * SECOND, "2s", "duration", NULL, NULL,
	    "for one connection; capped by request_timeout" },
	{ "kms", "request_timeout", DURATION, AT(kms.request_timeout_ms), 100, 120 * SECOND, "5s", "duration", NULL,
	    NULL, "for one answer, retries included; capped by the lease" },
	{ "kms", "max_connections", NUMBER, AT(kms.max_connections), 1, 64, "32", "connections", NULL, NULL,
	    "at most, to the KMS at once" },
	{ "vault", "address", TEXT, AT(vault.address), 0, 500, "", "URL", NULL, NULL,
	    "https://host:port of the server" },
	{ "vault", "mount", TEXT, AT(vault.mount), 0, 128, "transit", "path", NULL, NULL,
	    "where the transit engine is" },
	{ "vault", "key", TEXT, AT(vault.key), 0, 128, "", "name", NULL, NULL, "the customer's key in that engine" },
	{ "vault", "previous", TEXT, AT(vault.previous), 0, 128, "", "name", NULL, NULL,
	    "the key in that engine that a rotation is leaving; see 'previous' in [kms]" },
	{ "vault", "namespace", TEXT, AT(vault.namespace), 0, 255, "", "path", NULL, NULL, "default: none" },
	{ "vault", "token_file", PATH, AT(vault.token_file), 0, 4095, "", "absolute path", NULL, NULL,
	    "file with a token, read again when it changes (an agent's sink); or use role_id" },
	{ "vault", "role_id", TEXT, AT(vault.role_id), 0, 255, "", "id", NULL, NULL, "AppRole to log in with" },
	{ "vault", "secret_id_file", PATH, AT(vault.secret_id_file), 0, 4095, "", "absolute path", NULL, NULL,
	    "file with the AppRole's secret id" },
	{ "vault", "auth_mount", TEXT, AT(vault.auth_mount), 0, 128, "approle", "path", NULL, NULL,
	    "where AppRole is enabled" },
	{ "vault", "ca_bundle", PATH, AT(vault.ca_bundle), 0, 4095, "", "absolute path", NULL, NULL,
	    "certificates to trust; default: the system's" },
	{ "pkcs11", "module", PATH, AT(pkcs11.module), 0, 4095, "", "absolute path", NULL, NULL,
	    "the token's PKCS#11 library" },
	{ "pkcs11", "token", TEXT, AT(pkcs11.token), 0, 32, "", "label", NULL, NULL, "the token" },
	{ "pkcs11", "key", TEXT, AT(pkcs11.key), 0, 128, "", "label", NULL, NULL,
	    "the customer's key on it: AES-256, not extractable" },
	{ "pkcs11", "previous", TEXT, AT(pkcs11.previous), 0, 128, "", "label", NULL, NULL,
	    "the key on it that a rotation is leaving; see 'previous' in [kms]" },
	{ "pkcs11", "pin_file", PATH, AT(pkcs11.pin_file), 0, 4095, "", "absolute path", NULL, NULL,
	    "file with the user PIN, not readable by others" },
	{ "keyfile", "path", PATH, AT(keyfile.path), 0, 4095, "", "absolute path", NULL, NULL,
	    "32 bytes of key, kept by the administrator: not a KMS, nobody else can revoke it" },
	{ "cache", "probe", DURATION, AT(cache.probe_ms), 100, HOUR, "10s", "duration", NULL, NULL,
	    "how often one canary Decrypt asks whether the key still works" },
	{ "cache", "lease", DURATION, AT(cache.lease_ms), 200, 24 * HOUR, "30s", "duration", NULL, NULL,
	    "how long keys stay usable without a good answer; at least twice the probe" },
	{ "cache", "max_age", DURATION, AT(cache.max_age_ms), 500, 24 * HOUR, "300s", "duration", NULL, NULL,
	    "how long one file's key is used before the KMS must unwrap it again" },
	{ "cache", "idle", DURATION, AT(cache.idle_ms), 100, 24 * HOUR, "60s", "duration", NULL, NULL,
	    "unused file keys are wiped after this" },
	{ "cache", "pool", NUMBER, AT(cache.pool), 0, 4096, "256", "keys", NULL, NULL,
	    "fresh file keys kept ready for new files, at most (seal=file); as many as are being used" },
	{ "cache", "read_ahead", NUMBER, AT(cache.read_ahead), 0, 4096, "256", "keys", NULL, NULL,
	    "file keys unwrapped ahead, at most, while files are opened in directory order (seal=file); 0: none" },
	{ "cache", "allow_unlocked", FLAG, AT(cache.allow_unlocked), 0, 0, "no", "", "no|yes", NULL,
	    "go on where keys cannot be locked into memory (they may reach the swap)" },
	{ "mount", "writeback", FLAG, AT(mount.writeback), 0, 0, "on", "", "off|on", NULL,
	    "the kernel collects writes; off: every write(2) reports its own error" },
	{ "mount", "shared", FLAG, AT(mount.shared), 0, 0, "no", "", "no|yes", NULL,
	    "other hosts mount the store too, all with 'yes'; every write is flushed, writeback is off" },
	{ "mount", "commit", FLAG, AT(mount.commit_strict), 0, 0, "normal", "", "normal|strict", NULL,
	    "strict: fsync also records versions up to the root (2 to 5 flushes instead of 1)" },
	{ "mount", "torn_ok", FLAG, AT(mount.torn_ok), 0, 0, "no", "", "no|yes", NULL,
	    "accept a backing with blocks under 4096 bytes: a power cut may then damage pages" },
	{ "mount", "locked_start", FLAG, AT(mount.locked_start), 0, 0, "no", "", "no|yes", NULL,
	    "mount locked when the KMS says no or nothing, and open by itself later" },
	{ "mount", "readahead", NUMBER, AT(mount.readahead_kib), 0, 16384, "2048", "KiB", NULL, NULL,
	    "the kernel's read-ahead for this mount (root only)" },
	{ "mount", "threads", NUMBER, AT(mount.threads), 1, 64, "4", "threads", NULL, NULL,
	    "that serve the kernel's requests" },
	{ "mount", "max_background", NUMBER, AT(mount.max_background), 1, 65535, "64", "requests", NULL, NULL,
	    "asynchronous requests the kernel may have on the way" },
	{ "mount", "attr_timeout", DURATION, AT(mount.attr_timeout_ms), 0, 24 * HOUR, "0", "duration", NULL, NULL,
	    "how long the kernel may keep names and attributes; 0, or more than the lease: the lease" },
	{ "mount", "transport", CHOICE, AT(mount.transport), 0, 0, "fuse", "", "fuse|io_uring|auto", NULL,
	    "how requests come from the kernel; auto: over io_uring where it may be" },
	{ "store", "id", ID, AT(store.id), 0, 32, "", "32 hex digits", NULL, NULL,
	    "refuse any other store (byokfsctl info prints it); init makes such" },
	{ "store", "names", CHOICE, AT(store.names), 0, 0, "", "", "siv64|siv32|plain", NULL,
	    "refuse a store with other names; init makes such" },
	{ "store", "suite", NUMBER, AT(store.suite), 0, 2, "0", "suite", NULL, NULL,
	    "refuse a store of the other suite; init makes such; 0: any" },
	{ "log", "syslog", FLAG, AT(log.syslog), 0, 0, "yes", "", "no|yes", NULL,
	    "once mounted, write to syslog instead of stderr (not with -f)" },
	{ "log", "level", CHOICE, AT(log.level), 0, 0, "info", "", "err|warn|info|debug", NULL, "how much is logged" },
	{ "audit", "file", PATH, AT(audit.file), 0, 4095, "", "absolute path", NULL, NULL,
	    "one hash-chained JSON line per KMS call and change of state; opened anew on SIGHUP" },
	{ "audit", "syslog", FLAG, AT(audit.syslog), 0, 0, "no", "", "no|yes", NULL, "the same lines to syslog" },
	{ "audit", "level", CHOICE, AT(audit.level), 0, 0, "calls", "", "changes|calls", NULL,
	    "changes: only changes of state and calls that failed" },
	{ "alert", "key_age_days", NUMBER, AT(alert.key_age_days), 0, 36500, "90", "days", NULL, NULL,
	    "warn when keys have been sealed under the same key material for as long; 0: never" },
};
#define NKEYS (sizeof(keys) / sizeof(keys[0]))
_Static_assert(NKEYS <= CONFIG_KEYS, "raise CONFIG_KEYS");

int config_fail(char *why, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(why, CONFIG_WHY, fmt, ap);
	va_end(ap);
	return err;
}

/* Position of word in a list "a|b|c", or -1. */
static int choice_index(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (int i = 0; list; i++) {
		const char *end = strchrnul(list, '|');

		if ((size_t)(end - list) == len && len && strncmp(list, word, len) == 0)
			return i;
		list = *end ? end + 1 : NULL;
	}
	return -1;
}

/* The digits at the head of text; *rest behind them. */
static int number_parse(const char *text, uint64_t *out, const char **rest)
{
	uint64_t n = 0;
	const char *p = text;

	for (; isdigit((unsigned char)*p) && p - text < 10; p++)
		n = n * 10 + (uint64_t)(*p - '0');
	*out = n;
	*rest = p;
	return p == text || isdigit((unsigned char)*p) ? -EINVAL : 0;
}

static int duration_unit(const char *unit, uint64_t *ms)
{
	static const struct {
		const char *name;
		uint64_t ms;
	} units[] = { { "ms", 1 }, { "s", SECOND }, { "m", 60 * SECOND }, { "h", HOUR } };

	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (strcmp(unit, units[i].name) == 0) {
			*ms = units[i].ms;
			return 0;
		}
	return -EINVAL;
}

static void duration_print(char out[24], uint32_t ms)
{
	if (ms == 0)
		(void)snprintf(out, 24, "0");
	else if (ms % HOUR == 0)
		(void)snprintf(out, 24, "%uh", ms / HOUR);
	else if (ms % SECOND == 0)
		(void)snprintf(out, 24, "%us", ms / SECOND);
	else
		(void)snprintf(out, 24, "%ums", ms);
}

static void range_print(char out[64], const struct key *k)
{
	char lo[24], hi[24];

	if (k->kind == DURATION) {
		duration_print(lo, k->min);
		duration_print(hi, k->max);
		(void)snprintf(out, 64, "%s to %s", lo, hi);
	} else {
		(void)snprintf(out, 64, "%u to %u", k->min, k->max);
	}
}

static int set_number(const struct key *k, void *field, const char *value, char *why)
{
	uint64_t n = 0, scale = 1;
	const char *unit = "";
	char range[64];

	if (number_parse(value, &n, &unit) < 0)
		return config_fail(why, -EINVAL, "'%.60s' is not a number", value);
	if (k->kind == DURATION && n > 0 && duration_unit(unit, &scale) < 0)
		return config_fail(why, -EINVAL, "'%.60s' needs a unit: ms, s, m or h", value);
	if (k->kind == DURATION && n == 0 && *unit && duration_unit(unit, &scale) < 0)
		return config_fail(why, -EINVAL, "unknown unit '%.20s': ms, s, m or h", unit);
	if (k->kind == NUMBER && *unit)
		return config_fail(why, -EINVAL, "'%.60s' is not a plain number", value);
	if (n * scale < k->min || n * scale > k->max) {
		range_print(range, k);
		return config_fail(why, -ERANGE, "'%.60s' is out of range (%s)", value, range);
	}
	*(uint32_t *)field = (uint32_t)(n * scale);
	return 0;
}

static int set_flag(const struct key *k, void *field, const char *value, char *why)
{
	int i = choice_index(k->choices, value);

	/* Words for plain yes and no are taken for one another; commit's are not. */
	if (i < 0 && choice_index("no|yes|off|on", k->preset) >= 0) {
		i = choice_index("no|yes|off|on|false|true|0|1", value);
		i = i < 0 ? i : i & 1;
	}
	if (i < 0)
		return config_fail(why, -EINVAL, "'%.60s' is neither of %s", value, k->choices);
	*(bool *)field = i == 1;
	return 0;
}

static int text_refused(const struct key *k, const char *value, char *why)
{
	struct context_extra *extra;
	uint8_t id[CONTEXT_ID];
	int ret;

	for (const char *p = value; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			return config_fail(why, -EINVAL, "control character in the value");
	if (k->kind == CHOICE && choice_index(k->later, value) >= 0)
		return config_fail(why, -ENOTSUP, "%s '%s' is not supported by this version", k->name, value);
	if (k->kind == CHOICE && choice_index(k->choices, value) < 0)
		return config_fail(why, -EINVAL, "'%.60s' is none of %s", value, k->choices);
	if (k->kind != CHOICE && strlen(value) > k->max)
		return config_fail(why, -ERANGE, "the value is longer than %u bytes", k->max);
	if (k->kind == PATH && *value != '/')
		return config_fail(why, -EINVAL, "'%.60s' is not an absolute path", value);
	if (k->kind == ID && bytes_unhex(id, sizeof(id), value, strlen(value)) < 0)
		return config_fail(why, -EINVAL, "'%.60s' is not 32 lower-case hex digits", value);
	if (k->kind != CONTEXT)
		return 0;
	extra = calloc(1, sizeof(*extra)); /* too large for a stack */
	if (!extra)
		return config_fail(why, -ENOMEM, "out of memory");
	ret = context_parse_extra(extra, value);
	free(extra);
	return ret < 0
	    ? config_fail(why, ret, "'%.60s' is not a list name:value, ... (names [a-z0-9-], at most 8)", value)
	    : 0;
}

/* An empty value takes a setting back. */
static int set_text(const struct key *k, void *field, const char *value, char *why)
{
	char **slot = field, *copy = NULL;
	int ret;

	if (*value) {
		ret = text_refused(k, value, why);
		if (ret < 0)
			return ret;
		copy = strdup(value);
		if (!copy)
			return config_fail(why, -ENOMEM, "out of memory");
	}
	free(*slot);
	*slot = copy;
	return 0;
}

int config_key_set(struct config *c, size_t number, const char *value, char *why)
{
	const struct key *k = &keys[number];
	void *field = (char *)c + k->offset;

	switch (k->kind) {
	case DURATION:
	case NUMBER:
		return set_number(k, field, value, why);
	case FLAG:
		c->mount.writeback_set |= field == &c->mount.writeback;
		return set_flag(k, field, value, why);
	default:
		return set_text(k, field, value, why);
	}
}

bool config_key_is_list(size_t number)
{
	return keys[number].kind == LIST;
}

int config_key_append(struct config *c, size_t number, const char *value, char *why)
{
	char *const *field = (char *const *)((const char *)c + keys[number].offset);
	CLEANUP_FREE char *whole = NULL;

	if (asprintf(&whole, "%s%s%s", *field ? *field : "", *field ? " " : "", value) < 0)
		return config_fail(why, -ENOMEM, "out of memory");
	return config_key_set(c, number, whole, why);
}

static bool is_text(const struct key *k)
{
	return k->kind <= LIST;
}

int config_key_find(const char *section, const char *name, size_t *number, char *why)
{
	bool known = false;

	for (size_t i = 0; i < NKEYS; i++) {
		if (strcmp(keys[i].section, section) != 0)
			continue;
		known = true;
		if (strcmp(keys[i].name, name) == 0) {
			*number = i;
			return 0;
		}
	}
	if (!*section)
		return config_fail(why, -EINVAL, "'%.40s' stands before the first [section]", name);
	if (!known)
		return config_fail(why, -EINVAL, "unknown section [%.40s]", section);
	return config_fail(why, -EINVAL, "unknown key '%.40s' in [%.40s]", name, section);
}

void config_init(struct config *c)
{
	char why[CONFIG_WHY];

	memset(c, 0, sizeof(*c));
	for (size_t i = 0; i < NKEYS; i++)
		if (config_key_set(c, i, keys[i].preset, why) < 0)
			continue; /* no memory: config_check() sees the empty text */
	c->mount.writeback_set = false;
}

void config_free(struct config *c)
{
	for (size_t i = 0; i < NKEYS; i++) {
		if (is_text(&keys[i]))
			free(*(char **)((char *)c + keys[i].offset));
	}
	free(c->source);
	memset(c, 0, sizeof(*c));
}

static bool same(const struct key *k, const struct config *a, const struct config *b)
{
	const char *at = (const char *)a + k->offset, *bt = (const char *)b + k->offset;
	const char *x, *y;

	if (k->kind == FLAG)
		return *(const bool *)at == *(const bool *)bt;
	if (!is_text(k))
		return *(const uint32_t *)(const void *)at == *(const uint32_t *)(const void *)bt;
	x = *(char *const *)(const void *)at;
	y = *(char *const *)(const void *)bt;
	return x && y ? !strcmp(x, y) : x == y;
}

void config_compare(const struct config *a, const struct config *b, void (*fn)(void *arg, const char *name), void *arg)
{
	char name[64];

	for (size_t i = 0; i < NKEYS; i++) {
		if (same(&keys[i], a, b))
			continue;
		(void)snprintf(name, sizeof(name), "%s.%s", keys[i].section, keys[i].name);
		fn(arg, name);
	}
}

const char *config_key_missing(const struct config *c)
{
	for (size_t i = 0; i < NKEYS; i++)
		if (is_text(&keys[i]) && *keys[i].preset && !*(char *const *)((const char *)c + keys[i].offset))
			return keys[i].name;
	return NULL;
}

int config_set(struct config *c, const char *name, const char *value, char *why)
{
	const char *dot = strchr(name, '.');
	size_t k = 0;
	char section[32], what[CONFIG_WHY];
	int ret;

	if (!dot || (size_t)(dot - name) >= sizeof(section))
		return config_fail(why, -EINVAL, "'%.60s' is not section.key", name);
	(void)snprintf(section, sizeof(section), "%.*s", (int)(dot - name), name);
	ret = config_key_find(section, dot + 1, &k, what);
	if (ret == 0)
		ret = config_key_set(c, k, value, what);
	return ret < 0 ? config_fail(why, ret, "-o %.60s: %.300s", name, what) : 0;
}

static void describe_key(FILE *f, const struct key *k)
{
	char range[64] = "";

	if (k->kind == DURATION || k->kind == NUMBER)
		range_print(range, k);
	(void)fprintf(f, "\n# %s (", k->doc);
	if (k->choices)
		for (const char *p = k->choices; *p; p++)
			(void)(*p == '|' ? fputs(" or ", f) : fputc(*p, f));
	else
		(void)fprintf(f, "%s%s%s", k->unit, *range ? ", " : "", range);
	(void)fprintf(f, ")\n;%s =%s%s\n", k->name, *k->preset ? " " : "", k->preset);
}

void config_describe(FILE *f)
{
	const char *section = "";

	(void)fputs(
	    "# byokfs.ini: every key with its unit or choices and its default. See byokfs.ini(5).\n"
	    "# Lines hold at most 190 bytes; a comment is a line of its own, or follows a value after \" ;\".\n"
	    "# Durations take ms, s, m, h. Keys themselves never stand here: only their names, and paths of files.\n",
	    f);
	for (size_t i = 0; i < NKEYS; i++) {
		if (strcmp(section, keys[i].section) != 0)
			(void)fprintf(f, "\n[%s]", keys[i].section);
		section = keys[i].section;
		describe_key(f, &keys[i]);
	}
}
