/* check.c — the walk of a check: directories, their ids and domains, what each entry is, and how findings are kept. */
#include "check.h"

#include <errno.h>
#include <search.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cmd.h"
#include "walk.h"

void check_say(struct check *c, enum check_severity severity, const char *path, const char *name, const char *fmt, ...)
{
	static const char *const words[] = { [CHECK_DAMAGE] = "damage", [CHECK_WARNING] = "warning" };
	char *safe CLEANUP_FREE = malloc(4 * (strlen(path) + strlen(name)) + 3);
	char what[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	*(severity == CHECK_DAMAGE ? &c->damage : &c->warnings) += 1;
	if (!safe) {
		c->err = -ENOMEM;
		return;
	}
	cmd_escape(safe, path);
	if (*name) {
		char *end = safe + strlen(safe);

		*end = '/';
		cmd_escape(end + 1, name);
	}
	if (!c->findings) {
		progress_clear(&c->progress);
		(void)printf("%s: %s: %s\n", words[severity], safe, what);
	} else if (json_array_size(c->findings) >= CHECK_FINDINGS) {
		c->dropped++;
	} else {
		(void)json_array_append_new(
		    c->findings, json_pack("{s:s,s:s,s:s}", "severity", words[severity], "path", safe, "what", what));
	}
}

const struct descriptor_domain_line *check_domain(const struct check *c, uint16_t index)
{
	for (size_t i = 0; i < c->store->desc.n; i++)
		if (c->store->desc.domains[i].index == index)
			return &c->store->desc.domains[i];
	return NULL;
}

const struct descriptor_domain *check_descriptor(struct check *c, uint16_t index)
{
	const struct descriptor_domain_line *line = check_domain(c, index);

	if (index == c->store->domain.index || !line)
		return index == c->store->domain.index ? &c->store->domain : NULL;
	if (c->nested_line == line)
		return c->nested;
	if (c->nested)
		descriptor_domain_free(c->nested);
	free(c->nested);
	c->nested = calloc(1, sizeof(*c->nested));
	c->nested_line = line;
	if (c->nested && store_read_domain(c->store, line, 0, c->nested) == 0)
		return c->nested;
	free(steal_ptr(&c->nested));
	return NULL;
}

struct seen {
	uint8_t id[16];
	ino_t ino;
};

static int seen_order(const void *a, const void *b)
{
	return memcmp(a, b, 16); /* public ids */
}

/* Two directories with one id: the second is EIO. */
static void unique(struct check *c, const char *path, const uint8_t id[static 16], ino_t ino)
{
	struct seen *s = malloc(sizeof(*s)), **found;

	if (s)
		memcpy(s->id, id, 16);
	if (s)
		s->ino = ino;
	found = s ? tsearch(s, &c->ids, seen_order) : NULL;
	if (!found) {
		free(s);
		c->err = -ENOMEM;
	} else if (*found != s) {
		check_say(c, CHECK_DAMAGE, path, "",
		    "has the directory id of the directory with inode %ju: a copy inside the store",
		    (uintmax_t)(*found)->ino);
		free(s);
	}
}

static bool push_domain(struct check *c, uint16_t domain)
{
	if (c->depth == c->room) {
		size_t room = 2 * c->room + 64;
		uint16_t *more = realloc(c->domains, room * sizeof(*more));

		if (!more) {
			c->err = -ENOMEM;
			return false;
		}
		c->domains = more;
		c->room = room;
	}
	c->domains[c->depth++] = domain;
	return true;
}

static uint16_t current_domain(const struct check *c)
{
	return c->depth ? c->domains[c->depth - 1] : 0;
}

/* The domain a directory belongs to; complains when it may not be where it is. */
static uint16_t place(struct check *c, const char *path, uint16_t index, const uint8_t id[static 16])
{
	const struct descriptor_domain_line *line = check_domain(c, index);
	bool is_root = line && memcmp(line->dirid, id, 16) == 0;

	if (c->depth == 0 && (index != 0 || !is_root))
		check_say(
		    c, CHECK_DAMAGE, path, "", "the root's " NAME_DIR_FILE " is not the one in the store descriptor");
	else if (c->depth > 0 && !line)
		check_say(c, CHECK_DAMAGE, path, "",
		    "belongs to key domain %u, which the store descriptor does not know", index);
	else if (c->depth > 0 && index != current_domain(c) && !is_root)
		check_say(
		    c, CHECK_DAMAGE, path, "", "belongs to another key domain than its parent and is no domain's root");
	return line ? index : current_domain(c);
}

static void enter(void *arg, int dirfd, const char *path, const struct stat *st)
{
	struct check *c = arg;
	uint16_t index = 0, domain = current_domain(c);
	uint8_t id[16];
	int ret = check_dir_id(dirfd, &index, id);

	c->directories++;
	c->dev = st->st_dev;
	if (ret == -ENOENT)
		check_say(c, CHECK_DAMAGE, path, "", "has no " NAME_DIR_FILE);
	else if (ret < 0)
		check_say(c, CHECK_DAMAGE, path, "", "its " NAME_DIR_FILE " is malformed");
	else {
		domain = place(c, path, index, id);
		unique(c, path, id, st->st_ino);
	}
	(void)push_domain(c, domain);
}

static void leave(void *arg)
{
	struct check *c = arg;

	if (c->depth)
		c->depth--;
}

/* Reserved names: what is known is fine or litter, what is not is left alone (byokfs-format(5), section 1). */
static void reserved(struct check *c, const char *path, const char *name)
{
	if (strcmp(name, NAME_DIR_FILE) == 0)
		return;
	if (strncmp(name, ".byokfs.tmp.", 12) == 0 || strncmp(name, ".byokfs.del.", 12) == 0) {
		if (!c->live)
			check_say(
			    c, CHECK_WARNING, path, name, "unfinished work of a mount that is gone: may be removed");
	} else {
		check_say(c, CHECK_WARNING, path, name, "reserved name that this version does not know");
	}
}

static bool entry(void *arg, int dirfd, const char *path, const char *name, const struct stat *st)
{
	struct check *c = arg;

	progress_at(&c->progress, c->files + c->directories);
	if (strncmp(name, NAME_RESERVED, strlen(NAME_RESERVED)) == 0) {
		reserved(c, path, name);
		return false;
	}
	if (c->depth == 1 && strcmp(name, "lost+found") == 0 && S_ISDIR(st->st_mode) &&
	    c->store->desc.names != NAME_PLAIN)
		return false;
	if (!check_name(c, dirfd, path, name, st))
		return false;
	if (S_ISDIR(st->st_mode)) {
		if (st->st_dev == c->dev)
			return true;
		check_say(c, CHECK_WARNING, path, name, "another filesystem is mounted here: not looked into");
	} else if (S_ISREG(st->st_mode)) {
		c->files++;
		check_file(c, dirfd, path, name, st, current_domain(c));
	} else if (S_ISLNK(st->st_mode)) {
		c->links++;
		check_link(c, dirfd, path, name);
	} else {
		c->specials++;
	}
	return false;
}

static void failed(void *arg, const char *path, int err)
{
	check_say(arg, CHECK_DAMAGE, path, "", "cannot be read: %s", strerror(-err));
}

int check_run(struct check *c, const struct store *store, json_t *findings)
{
	const struct walk_ops ops = { .arg = c, .enter = enter, .entry = entry, .failed = failed, .leave = leave };
	int ret;

	*c = (struct check){ .store = store, .findings = findings };
	progress_begin(&c->progress, "files and directories", 0);
	check_descriptors(c);
	check_markers(c);
	ret = walk(store->fd, &ops);
	progress_clear(&c->progress);
	tdestroy(c->ids, free);
	c->ids = NULL;
	free(c->domains);
	c->domains = NULL;
	if (c->nested)
		descriptor_domain_free(c->nested);
	free(steal_ptr(&c->nested));
	return ret < 0 ? ret : c->err;
}
