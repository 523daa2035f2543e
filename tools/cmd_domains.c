/* cmd_domains.c — `byokfsctl domain list`: which key domains a store has, where, and under which keys. Hides that no
 * table says where a domain's root lies: the store's directories are walked for the ids, and a plain path is found by
 * inode numbers, which a mount shares with its store. */
#include "cmd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bytes.h"
#include "check.h"
#include "ctl.h"
#include "jsonio.h"
#include "progress.h"
#include "walk.h"

#define CALL_MS 10000u

struct row {
	const struct descriptor_domain_line *line;
	char *cipher, *plain; /* paths below store and mount, or NULL */
	json_t *live;         /* what the daemon says of it, borrowed, or NULL */
};

struct list {
	struct store *store;
	const char *mount; /* NULL: not a live mount */
	json_t *live;      /* every domain the daemon told of */
	struct row *rows;
	size_t n;
	struct progress progress;
	uint64_t seen;
};

/* ---- where the roots are */

static void enter(void *arg, int dirfd, const char *path, const struct stat *st)
{
	struct list *l = arg;
	uint8_t id[16];
	uint16_t index;

	(void)st;
	progress_at(&l->progress, ++l->seen);
	if (check_dir_id(dirfd, &index, id))
		return;
	for (size_t i = 0; i < l->n; i++)
		if (!l->rows[i].cipher && l->rows[i].line->index == index &&
		    bytes_equal(l->rows[i].line->dirid, id, sizeof(id)))
			l->rows[i].cipher = strdup(path);
}

static bool entry(void *arg, int dirfd, const char *path, const char *name, const struct stat *st)
{
	(void)arg;
	(void)dirfd;
	(void)path;
	return S_ISDIR(st->st_mode) && strncmp(name, NAME_RESERVED, strlen(NAME_RESERVED)) != 0;
}

static void failed(void *arg, const char *path, int err)
{
	(void)arg;
	cmd_error("cannot read '%s' in the store: %s", path, strerror(-err));
}

static void leave(void *arg)
{
	(void)arg;
}

static int find_roots(struct list *l)
{
	const struct walk_ops ops = { .arg = l, .enter = enter, .entry = entry, .failed = failed, .leave = leave };
	int ret;

	progress_begin(&l->progress, "directories", 0);
	ret = walk(l->store->fd, &ops);
	progress_clear(&l->progress);
	return ret;
}

/* ---- plain paths */

/* The name with this inode number in a directory, malloc'ed, or NULL. */
static char *name_of(int dirfd, ino_t ino)
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *e;
	char *name = NULL;

	while (dir && !name && (e = readdir(dir)))
		if (e->d_ino == ino && strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			name = strdup(e->d_name);
	if (dir)
		(void)closedir(dir);
	else if (fd >= 0)
		(void)close(fd);
	return name;
}

/* One step down in store and mount at once: *name is the plain one, malloc'ed. */
static int step(int *cipher_fd, int *plain_fd, const char *entry_name, char **name)
{
	struct stat st;
	int next;

	if (fstatat(*cipher_fd, entry_name, &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	*name = name_of(*plain_fd, st.st_ino);
	if (!*name)
		return -ENOENT;
	next = openat(*cipher_fd, entry_name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	cleanup_fd(cipher_fd);
	*cipher_fd = next;
	next = openat(*plain_fd, *name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	cleanup_fd(plain_fd);
	*plain_fd = next; /* the last one may be locked: then nobody goes further */
	return 0;
}

static char *plain_path(const struct list *l, const char *cipher)
{
	int cipher_fd CLEANUP_FD = openat(l->store->fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int plain_fd CLEANUP_FD = open(l->mount, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char *way CLEANUP_FREE = strdup(cipher);
	char *path = strdup(l->mount), *save = NULL;

	for (char *part = way ? strtok_r(way, "/", &save) : NULL; part && path; part = strtok_r(NULL, "/", &save)) {
		char *name CLEANUP_FREE = NULL;
		char *longer = NULL;

		if (strcmp(part, ".") == 0)
			continue;
		if (step(&cipher_fd, &plain_fd, part, &name) || asprintf(&longer, "%s/%s", path, name) < 0)
			longer = NULL;
		free(path);
		path = longer;
	}
	return path;
}

/* ---- what the daemon says */

static bool live_page(struct list *l, json_int_t from, json_t **answer)
{
	json_t *request = json_pack("{s:s, s:I}", "verb", "status", "from", from);
	int ret = request ? ctl_call(l->mount, request, CALL_MS, answer) : -ENOMEM;

	json_decref(request);
	return ret == 0 && cmd_answer_code(*answer) == EXIT_OK;
}

/* All domains, a page at a time; the store's path with the first. */
static bool live_domains(struct list *l, char **cipherdir)
{
	json_int_t from = 0;

	for (;;) {
		json_t *answer = NULL;
		const json_t *page, *last;
		size_t n;

		if (!live_page(l, from, &answer)) {
			json_decref(answer);
			return from > 0;
		}
		if (!*cipherdir && jsonio_str(answer, "cipherdir"))
			*cipherdir = strdup(jsonio_str(answer, "cipherdir"));
		page = json_object_get(answer, "domains");
		n = json_array_size(page);
		last = n ? json_object_get(json_array_get(page, n - 1), "index") : NULL;
		from = json_integer_value(last) + 1;
		(void)json_array_extend(l->live, (json_t *)(uintptr_t)page);
		bool all = n == 0 ||
		    json_array_size(l->live) >= (size_t)json_integer_value(json_object_get(answer, "domain_count"));

		json_decref(answer);
		if (all)
			return true;
	}
}

static json_t *live_of(const struct list *l, uint16_t index)
{
	json_t *d;
	size_t i;

	json_array_foreach(l->live, i, d)
	{
		if (json_integer_value(json_object_get(d, "index")) == index)
			return d;
	}
	return NULL;
}

/* ---- printing */

struct described {
	char id[33];
	char key[DESCRIPTOR_KEY_MAX + 1];
	const char *seal, *state, *reason;
};

static void describe(const struct list *l, const struct row *r, struct described *out)
{
	struct descriptor_domain *d CLEANUP_FREE = calloc(1, sizeof(*d));
	const struct descriptor_slot *slot;

	memset(out, 0, sizeof(*out));
	bytes_hex(out->id, r->line->domain, CONTEXT_ID);
	out->state = r->live ? jsonio_str(r->live, "state") : NULL;
	out->reason = r->live ? jsonio_str(r->live, "reason") : NULL;
	if (!d || store_read_domain(l->store, r->line, 0, d))
		return;
	out->seal = cmd_seal_name(d->seal);
	slot = descriptor_ruling_slot(d);
	if (slot)
		(void)snprintf(out->key, sizeof(out->key), "%s", slot->key);
	descriptor_domain_free(d);
}

static char *escaped(const char *text)
{
	char *safe = text ? malloc(4 * strlen(text) + 1) : NULL;

	if (safe)
		cmd_escape(safe, text);
	return safe;
}

static json_t *row_json(const struct list *l, const struct row *r)
{
	char *plain CLEANUP_FREE = escaped(r->plain);
	char *cipher CLEANUP_FREE = escaped(r->cipher);
	struct described d;

	describe(l, r, &d);
	return json_pack("{s:i, s:s, s:s?, s:s?, s:s?, s:s?, s:s?, s:s?, s:b}", "index", (int)r->line->index, "id",
	    d.id, "path", plain, "cipher_path", cipher, "key", d.key[0] ? d.key : NULL, "seal", d.seal, "state",
	    d.state, "reason", d.reason && *d.reason ? d.reason : NULL, "directory", r->cipher != NULL);
}

static void row_print(const struct list *l, const struct row *r)
{
	char *plain CLEANUP_FREE = escaped(r->plain);
	char *cipher CLEANUP_FREE = escaped(r->cipher);
	struct described d;

	describe(l, r, &d);
	(void)printf("%-5u %-8s %-6s %s  %s  ", (unsigned)r->line->index, d.state ? d.state : "-",
	    d.seal ? d.seal : "-", d.id, d.key[0] ? d.key : "(descriptor damaged)");
	if (plain)
		(void)puts(plain);
	else if (cipher)
		(void)printf("cipher:%s\n", cipher);
	else
		(void)puts("(no directory)");
}

static int print(const struct list *l, bool json)
{
	json_t *all = json ? json_array() : NULL;

	if (!json)
		(void)printf("%-5s %-8s %-6s %-32s  KEY  PATH\n", "INDEX", "STATE", "SEAL", "ID");
	for (size_t i = 0; i < l->n; i++) {
		if (json)
			(void)json_array_append_new(all, row_json(l, &l->rows[i]));
		else
			row_print(l, &l->rows[i]);
	}
	if (json)
		return cmd_print_json(all);
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

static int make_rows(struct list *l)
{
	int ret;

	l->n = l->store->desc.n;
	l->rows = calloc(l->n, sizeof(*l->rows));
	if (!l->rows)
		return -ENOMEM;
	for (size_t i = 0; i < l->n; i++) {
		l->rows[i].line = &l->store->desc.domains[i];
		l->rows[i].live = live_of(l, l->rows[i].line->index);
	}
	ret = find_roots(l);
	for (size_t i = 0; i < l->n && l->mount; i++)
		if (l->rows[i].cipher)
			l->rows[i].plain = plain_path(l, l->rows[i].cipher);
	return ret;
}

static int list_store(struct list *l, const char *cipherdir, bool json)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	char why[STORE_WHY];
	int code, ret = store_open(l->store, cipherdir, &options, why);

	if (ret < 0) {
		cmd_error("%s", why);
		return cmd_exit_store(ret);
	}
	ret = make_rows(l);
	code = ret < 0 ? EXIT_FAILED : print(l, json);
	if (ret < 0)
		cmd_error("cannot walk the store: %s", strerror(-ret));
	for (size_t i = 0; i < l->n && l->rows; i++) {
		free(l->rows[i].cipher);
		free(l->rows[i].plain);
	}
	free(l->rows);
	store_close(l->store, true);
	return code;
}

int cmd_domain_list(const char *path, bool json)
{
	struct list l = { .store = calloc(1, sizeof(*l.store)), .mount = path, .live = json_array() };
	char *cipherdir CLEANUP_FREE = NULL;
	int code;

	if (!l.store || !l.live) {
		cmd_error("out of memory");
		free(l.store);
		json_decref(l.live);
		return EXIT_FAILED;
	}
	if (!live_domains(&l, &cipherdir))
		l.mount = NULL;
	code = list_store(&l, cipherdir ? cipherdir : path, json);
	json_decref(l.live);
	free(l.store);
	return code;
}
