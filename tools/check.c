/* check.c — the walk of a check: directories, their ids and domains, and what each entry is. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "exitcode.h"
#include "walk.h"

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

const struct check_level *check_here(const struct check *c)
{
	static const struct check_level none;

	return c->depth ? &c->level[c->depth - 1] : &none;
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
static bool unique(struct check *c, const char *path, const uint8_t id[static 16], ino_t ino)
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
		return false;
	}
	return true;
}

static void push(struct check *c, const struct check_level *level)
{
	if (c->depth == c->room) {
		size_t room = 2 * c->room + 64;
		struct check_level *more = realloc(c->level, room * sizeof(*more));

		if (!more) {
			c->err = -ENOMEM;
			return;
		}
		c->level = more;
		c->room = room;
	}
	c->level[c->depth++] = *level;
}

/* The domain a directory belongs to; complains when it may not be where it is. */
static bool place(struct check *c, const char *path, struct check_level *l)
{
	const struct descriptor_domain_line *line = check_domain(c, l->domain);
	uint16_t above = check_here(c)->domain;
	bool is_root = line && memcmp(line->dirid, l->id, 16) == 0, fits = false;

	if (c->depth == 0 && (l->domain != 0 || !is_root))
		check_say(
		    c, CHECK_DAMAGE, path, "", "the root's " NAME_DIR_FILE " is not the one in the store descriptor");
	else if (c->depth > 0 && !line)
		check_say(c, CHECK_DAMAGE, path, "",
		    "belongs to key domain %u, which the store descriptor does not know", l->domain);
	else if (c->depth > 0 && l->domain != above && !is_root)
		check_say(
		    c, CHECK_DAMAGE, path, "", "belongs to another key domain than its parent and is no domain's root");
	else
		fits = true;
	if (is_root && c->met)
		c->met[line - c->store->desc.domains] = true;
	if (!line)
		l->domain = above;
	return fits;
}

/* Not looked into, because its key is not there: once for each domain. */
static void tell_shut(struct check *c, const char *path, uint16_t domain, const char *why)
{
	const struct descriptor_domain_line *line = check_domain(c, domain);

	if (line && c->told && !c->told[line - c->store->desc.domains]) {
		c->told[line - c->store->desc.domains] = true;
		check_say(c, CHECK_WARNING, path, "", "key domain %u does not open, its contents are not checked: %s",
		    domain, why);
	}
}

/* With its domain's keys, if they are to be had. */
static bool authenticate(struct check *c, int dirfd, const char *path, struct check_level *l)
{
	char why[CHECK_WHY] = "its key is denied, or was meanwhile";
	const struct name_keys *names;
	int ret;

	if (check_keys_enter(c->keys, l->domain, why) != EXIT_OK) {
		tell_shut(c, path, l->domain, why);
		return true;
	}
	names = check_keys_get(c->keys, l->domain);
	if (!names) {
		tell_shut(c, path, l->domain, why);
		return true;
	}
	ret = check_dir_mac(dirfd, names);
	check_keys_put(c->keys, l->domain);
	if (ret < 0) {
		check_say(c, CHECK_DAMAGE, path, "", "its " NAME_DIR_FILE " does not authenticate");
		return false;
	}
	l->open = true;
	return true;
}

/* A directory of a live store that is just being removed loses its id first. */
static bool is_going(int dirfd)
{
	const struct timespec nap = { .tv_nsec = 100 * 1000 * 1000 };
	struct stat st;

	(void)nanosleep(&nap, NULL);
	return fstat(dirfd, &st) == 0 && st.st_nlink == 0;
}

static bool judge_dir(struct check *c, int dirfd, const char *path, const struct stat *st, struct check_level *l)
{
	int ret = check_dir_id(dirfd, &l->domain, l->id);

	if (ret == -ENOENT && c->live && is_going(dirfd)) {
		l->dead = true;
		return true;
	}
	if (ret < 0) {
		l->domain = check_here(c)->domain;
		check_say(c, CHECK_DAMAGE, path, "",
		    ret == -ENOENT ? "has no " NAME_DIR_FILE : "its " NAME_DIR_FILE " is malformed");
		return false;
	}
	ret = place(c, path, l);
	if (!unique(c, path, l->id, st->st_ino) || !ret)
		return false;
	return !c->keys || authenticate(c, dirfd, path, l);
}

static void enter(void *arg, int dirfd, const char *path, const struct stat *st)
{
	struct check *c = arg;
	struct check_level l = { .dead = check_here(c)->dead };

	c->directories++;
	c->dev = st->st_dev;
	if (!l.dead && !judge_dir(c, dirfd, path, st, &l)) {
		/* without keys, or a repair that moves it away, its contents are worth a look all the same */
		l.dead = c->keys || (c->repair && c->depth > 0);
		l.open = false;
		if (c->depth > 0)
			check_fix(c, FIX_MOVE, true, path, "", "the directory's " NAME_DIR_FILE " is no good here");
	}
	if (l.open)
		check_xattrs(c, dirfd, l.domain, l.id, path, "");
	push(c, &l);
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
		if (c->live)
			return;
		check_say(c, CHECK_WARNING, path, name, "unfinished work of a mount that is gone: may be removed");
		check_fix(c, FIX_REMOVE, false, path, name, "unfinished work of a mount that is gone");
	} else {
		check_say(c, CHECK_WARNING, path, name, "reserved name that this version does not know");
	}
}

static bool directory(struct check *c, const char *path, const char *name, const struct stat *st)
{
	if (st->st_dev == c->dev)
		return true;
	check_say(c, CHECK_WARNING, path, name, "another filesystem is mounted here: not looked into");
	return false;
}

static bool entry(void *arg, int dirfd, const char *path, const char *name, const struct stat *st)
{
	struct check *c = arg;

	if (check_here(c)->dead)
		return false;
	if (!c->keys)
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
	if (S_ISDIR(st->st_mode))
		return directory(c, path, name, st);
	if (S_ISREG(st->st_mode)) {
		c->files++;
		check_file(c, dirfd, path, name, st);
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
	const struct check *c = arg;

	if (err != -ENOENT || !c->live) /* a live store changes */
		check_say(arg, CHECK_DAMAGE, path, "", "cannot be read: %s", strerror(-err));
}

/* A line of the table without a directory is what a `domain add` that was cut short leaves. */
static void lines_without_root(struct check *c)
{
	for (size_t i = 1; c->met && i < c->store->desc.n; i++)
		if (!c->met[i])
			check_say(c, CHECK_WARNING, ".byokfs", "store",
			    "key domain %u has no directory: never finished, or removed",
			    c->store->desc.domains[i].index);
}

static int begin(struct check *c)
{
	(void)pthread_mutex_init(&c->lock, NULL);
	c->last_fix = &c->fixes;
	c->met = calloc(c->store->desc.n, sizeof(*c->met));
	c->told = calloc(c->store->desc.n, sizeof(*c->told));
	progress_begin(&c->progress, c->keys ? "files" : "files and directories", 0);
	return c->met && c->told ? 0 : -ENOMEM;
}

int check_run(struct check *c)
{
	const struct walk_ops ops = { .arg = c, .enter = enter, .entry = entry, .failed = failed, .leave = leave };
	int ret = begin(c);

	if (ret == 0) {
		check_descriptors(c);
		check_markers(c);
		check_strays_of_store(c);
		check_jobs(c);
		ret = c->keys ? check_data_begin(c) : 0;
	}
	if (ret == 0) {
		ret = walk(c->store->fd, &ops);
		if (ret == 0)
			lines_without_root(c);
		check_data_end(c);
	}
	progress_clear(&c->progress);
	return ret < 0 ? ret : c->err;
}

void check_end(struct check *c)
{
	check_fixes_free(c);
	tdestroy(c->ids, free);
	free(c->level);
	free(c->met);
	free(c->told);
	if (c->nested)
		descriptor_domain_free(c->nested);
	free(c->nested);
	(void)pthread_mutex_destroy(&c->lock);
}
