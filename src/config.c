/* config.c — the file and the whole: reading, cross-checks, where the file is found.
 *
 * Hides how inih is kept honest. Its buffer holds 200 bytes; of a longer line it hands over the first 199 and parses
 * the rest as a line of its own, and since it splits at ':' too, the rest of an ARN *does* parse. It also takes an
 * indented line for the continuation of the one before, forgets what follows ']', and goes on after errors. So the
 * reader below gives it whole lines only, refuses every line that it would read differently from a person, and counts
 * lines, because inih's handler is not told them. */
#include "config_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHARED_ATTR_MS 1000u /* what an open file's attributes may be behind other hosts */

struct reading {
	struct config *config;
	FILE *file;
	const char *path;
	unsigned line;
	unsigned seen[CONFIG_KEYS]; /* line of the first occurrence */
	bool list, indented;        /* the last key is a list; this line goes on with it */
	int err;
	char *why;
};

static void refuse(struct reading *r, int err, const char *what)
{
	if (r->err == 0)
		r->err = config_fail(r->why, err, "%.160s:%u: %s", r->path, r->line, what);
}

/* What inih would read differently from a person. line has no end-of-line. */
static const char *line_refused(struct reading *r, char *line)
{
	char *p = line + strspn(line, " \t");

	for (const char *q = p; *q; q++)
		if ((unsigned char)*q < ' ' && *q != '\t')
			return "control character in the line";
	if (*p == '\0' || *p == '#' || *p == ';')
		return NULL;
	r->indented = p != line;
	if (r->indented && r->list && !strchr(p, '=')) {
		p[strcspn(p, ";")] = '\0'; /* inih keeps comments here */
		return NULL;
	}
	if (r->indented)
		return "a line may not begin with a blank (only a list goes on so)";
	r->list = false;
	if (*p == '[') {
		p = strchr(p, ']');
		if (!p)
			return "missing ']'";
		p += 1 + strspn(p + 1, " \t");
		return *p == '\0' || *p == '#' || *p == ';' ? NULL : "text after ']'";
	}
	p += strcspn(p, "=:;");
	return *p == '=' ? NULL : "expected 'name = value'";
}

/* One line into str, without its end; its length, or -1 at the end of the file or for a line that cannot be used. */
static int line_get(struct reading *r, char *str, size_t max)
{
	size_t n = 0;
	int c;

	r->line++;
	while ((c = getc(r->file)) != EOF && c != '\n') {
		if (c == '\0')
			return refuse(r, -EINVAL, "NUL byte in the line"), -1;
		if (n == max)
			return refuse(r, -EFBIG, "line too long (190 bytes at most)"), -1;
		str[n++] = (char)c;
	}
	if (ferror(r->file))
		return refuse(r, -EIO, "cannot be read"), -1;
	if (c == EOF && n == 0)
		return -1;
	if (n > 0 && str[n - 1] == '\r')
		n--;
	str[n] = '\0';
	if (r->line == 1 && strncmp(str, "\xef\xbb\xbf", 3) == 0) {
		n -= 3;
		memmove(str, str + 3, n + 1);
	}
	return (int)n;
}

/* inih's reader: fgets that never splits a line. */
static char *reader(char *str, int num, void *arg)
{
	struct reading *r = arg;
	const char *what;

	if (r->err < 0)
		return NULL;
	if (num < (int)CONFIG_LINE + 4) { /* CR, LF, NUL, and one to spare */
		refuse(r, -ENOTSUP, "this inih was built with too short a line buffer");
		return NULL;
	}
	if (line_get(r, str, CONFIG_LINE + 1) < 0)
		return NULL;
	if (strlen(str) > CONFIG_LINE) {
		refuse(r, -EFBIG, "line too long (190 bytes at most)");
		return NULL;
	}
	what = line_refused(r, str);
	if (what) {
		refuse(r, -EINVAL, what);
		return NULL;
	}
	return str;
}

static int handler(void *arg, const char *section, const char *name, const char *value)
{
	struct reading *r = arg;
	size_t k = 0;
	char what[CONFIG_WHY];
	int ret = config_key_find(section, name, &k, what);

	if (ret == 0 && r->seen[k] && !r->indented)
		ret = config_fail(what, -EINVAL, "'%s' in [%s] was already set in line %u", name, section, r->seen[k]);
	else if (ret == 0) {
		char why[CONFIG_WHY];

		if (!r->seen[k])
			r->seen[k] = r->line;
		ret = r->indented ? config_key_append(r->config, k, value, why)
		                  : config_key_set(r->config, k, value, why);
		r->list = config_key_is_list(k);
		if (ret < 0)
			(void)config_fail(what, ret, "'%s' in [%s]: %.200s", name, section, why);
	}
	if (ret < 0)
		refuse(r, ret, what);
	return ret == 0;
}

static int read_stream(struct config *c, FILE *f, const char *path, char *why)
{
	struct reading r = { .config = c, .file = f, .path = path, .why = why };
	int line = ini_parse_stream(reader, &r, handler, &r);

	if (r.err == 0 && line != 0)
		r.err = config_fail(why, -EINVAL, "%.160s:%d: cannot be understood", path, line);
	return r.err;
}

/* How a file may be: at the start it may be a pipe that somebody will write to. */
enum patience { MAY_WAIT, MUST_NOT_WAIT };

static FILE *open_file(const char *path, enum patience patience)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | (patience == MUST_NOT_WAIT ? O_NONBLOCK : 0));
	FILE *f = fd < 0 ? NULL : fdopen(fd, "r");

	if (fd >= 0 && !f)
		(void)close(fd);
	return f;
}

static int read_path(struct config *c, const char *path, enum patience patience, char *why)
{
	struct stat st;
	FILE *f = open_file(path, patience);
	int ret = 0;

	if (!f || fstat(fileno(f), &st) < 0)
		ret = config_fail(why, -errno, "cannot read '%.160s': %s", path, strerror(errno));
	else if (S_ISDIR(st.st_mode))
		ret = config_fail(why, -EISDIR, "cannot read '%.160s': %s", path, strerror(EISDIR));
	else if (patience == MUST_NOT_WAIT && !S_ISREG(st.st_mode))
		ret = config_fail(why, -EINVAL, "cannot read '%.160s' again: not a regular file", path);
	else if (S_ISREG(st.st_mode) && st.st_mode & S_IWOTH)
		ret = config_fail(why, -EPERM, "'%.160s' may be written by everybody: chmod o-w it", path);
	if (ret == 0)
		ret = read_stream(c, f, path, why);
	if (f)
		(void)fclose(f);
	if (ret < 0)
		return ret;
	free(c->source);
	c->source = strdup(path);
	return c->source ? 0 : config_fail(why, -ENOMEM, "out of memory");
}

int config_read(struct config *c, const char *path, char *why)
{
	return read_path(c, path, MAY_WAIT, why);
}

/* A second key of the same provider. */
static int check_previous(const struct config *c, char *why)
{
	const char *provider = c->kms.provider;
	bool aws = strcmp(provider, "aws") == 0, vault = strcmp(provider, "vault") == 0;

	if (c->kms.previous && vault)
		return config_fail(why, -EINVAL, "'previous' in [kms] names a key of AWS: set it in [vault]");
	if (c->kms.previous && strcmp(provider, "pkcs11") == 0)
		return config_fail(why, -EINVAL, "'previous' in [kms] names a key of AWS: set it in [pkcs11]");
	if (c->kms.previous && !aws)
		return config_fail(why, -EINVAL, "'previous' in [kms]: a key file has no other key");
	if (c->kms.previous && strncmp(c->kms.previous, "arn:", 4) != 0)
		return config_fail(why, -EINVAL, "'previous' in [kms] must be an ARN: '%.120s'", c->kms.previous);
	return 0;
}

static int check_vault(const struct config *c, char *why)
{
	if (!c->vault.address || !c->vault.key)
		return config_fail(why, -EINVAL, "[vault] needs 'address' and 'key'");
	if (!c->vault.token_file == !c->vault.role_id)
		return config_fail(why, -EINVAL, "[vault] needs one of 'token_file' and 'role_id'");
	if (c->vault.role_id && !c->vault.secret_id_file)
		return config_fail(why, -EINVAL, "'role_id' in [vault] needs 'secret_id_file'");
	return 0;
}

static int check_provider(struct config *c, char *why)
{
	const char *missing = config_key_missing(c);

	if (missing)
		return config_fail(why, -EINVAL, "'%s' is empty", missing);
	if (check_previous(c, why))
		return -EINVAL;
	if (strcmp(c->kms.provider, "keyfile") == 0)
		return c->keyfile.path ? 0 : config_fail(why, -EINVAL, "no key: set 'path' in [keyfile]");
	if (strcmp(c->kms.provider, "vault") == 0)
		return check_vault(c, why);
	if (strcmp(c->kms.provider, "pkcs11") == 0)
		return c->pkcs11.module && c->pkcs11.token && c->pkcs11.key && c->pkcs11.pin_file
		    ? 0
		    : config_fail(why, -EINVAL, "[pkcs11] needs 'module', 'token', 'key' and 'pin_file'");
	if (!c->kms.key)
		return config_fail(why, -EINVAL, "no key: set 'key' in [kms] to the ARN of the customer's key");
	if ((c->kms.external_id || c->kms.session_name) && !c->kms.role_arn)
		return config_fail(
		    why, -EINVAL, "'external_id' and 'session_name' in [kms] are of no use without 'role_arn'");
	if (c->kms.failover && !c->kms.replicas)
		return config_fail(why, -EINVAL, "'failover' in [kms] needs 'replicas'");
	return 0;
}

int config_check(struct config *c, char *why)
{
	int ret = check_provider(c, why);

	if (ret < 0)
		return ret;
	if (c->cache.lease_ms < 2 * (uint64_t)c->cache.probe_ms)
		return config_fail(why, -EINVAL, "'lease' in [cache] (%u ms) must be at least twice 'probe' (%u ms)",
		    c->cache.lease_ms, c->cache.probe_ms);
	if (c->kms.request_timeout_ms > c->cache.lease_ms)
		c->kms.request_timeout_ms = c->cache.lease_ms; /* a later answer could renew nothing */
	if (c->kms.connect_timeout_ms > c->kms.request_timeout_ms)
		c->kms.connect_timeout_ms = c->kms.request_timeout_ms;
	if (c->mount.shared) {
		if (c->mount.writeback_set && c->mount.writeback)
			return config_fail(why, -EINVAL,
			    "'writeback' in [mount] cannot be on with 'shared': other hosts would not see what the "
			    "kernel collects");
		c->mount.writeback = false;
		if (c->mount.attr_timeout_ms == 0 || c->mount.attr_timeout_ms > SHARED_ATTR_MS)
			c->mount.attr_timeout_ms = SHARED_ATTR_MS;
	}
	if (c->mount.attr_timeout_ms == 0 || c->mount.attr_timeout_ms > c->cache.lease_ms)
		c->mount.attr_timeout_ms = c->cache.lease_ms;
	if (c->kms.proxy && strcmp(c->kms.proxy, "none") == 0)
		c->kms.proxy[0] = '\0';
	if (context_parse_extra(&c->extra, c->kms.context ? c->kms.context : "") < 0)
		return config_fail(why, -EINVAL, "'context' in [kms] is not a list name:value, ...");
	return 0;
}

static int find_and_read(struct config *c, const char *explicit_path, enum patience patience, char *why)
{
	const char *path = explicit_path ? explicit_path : getenv("BYOKFS_CONFIG");
	int ret;

	if (path && *path)
		return read_path(c, path, patience, why);
	ret = read_path(c, CONFIG_PATH, patience, why);
	return ret == -ENOENT ? 0 : ret;
}

int config_load(struct config *c, const char *explicit_path, char *why)
{
	return find_and_read(c, explicit_path, MAY_WAIT, why);
}

int config_reload(struct config *c, const char *explicit_path, char *why)
{
	return find_and_read(c, explicit_path, MUST_NOT_WAIT, why);
}
