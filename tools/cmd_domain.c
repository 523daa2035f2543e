/* cmd_domain.c — `byokfsctl domain add`: asks the daemon of a live mount, which does it. Hides how a directory is named
 * to it: by inode numbers, which FUSE and backing share, while open descriptors keep the kernel from forgetting them.
 */
#include "cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "ctl.h"
#include "io.h"
#include "jsonio.h"

#define CALL_MS   10000u
#define RESULT_MS 120000u
#define POLL_MS   50

int cmd_mount_of(const char *path, char *out)
{
	char above[PATH_MAX];
	struct stat here, st;

	(void)snprintf(out, PATH_MAX, "%s", path);
	if (stat(out, &here))
		return -errno;
	while (strcmp(out, "/") != 0) {
		(void)snprintf(above, sizeof(above), "%s", out);
		(void)dirname(above);
		if (stat(above, &st))
			return -errno;
		if (st.st_dev != here.st_dev)
			break;
		memcpy(out, above, sizeof(above));
	}
	return 0;
}

/* The directory, its parent, and the mount they are in. */
struct place {
	char path[PATH_MAX], parent[PATH_MAX], mount[PATH_MAX];
	const char *name;
	int fd, parent_fd;
	struct stat st, parent_st;
};

static int refuse(const char *path, const char *why)
{
	cmd_error("cannot make '%s' a key domain: %s", path, why);
	return EXIT_FAILED;
}

static int open_place(struct place *p, const char *path)
{
	int ret;

	if (!realpath(path, p->path))
		return refuse(path, strerror(errno));
	(void)snprintf(p->parent, sizeof(p->parent), "%s", p->path);
	(void)dirname(p->parent);
	p->name = strrchr(p->path, '/') + 1;
	p->fd = open(p->path, O_PATH | O_CLOEXEC);
	p->parent_fd = open(p->parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (p->fd < 0 || p->parent_fd < 0 || fstat(p->fd, &p->st) || fstat(p->parent_fd, &p->parent_st))
		return refuse(path, strerror(errno));
	if (!S_ISDIR(p->st.st_mode))
		return refuse(path, strerror(ENOTDIR));
	ret = cmd_mount_of(p->path, p->mount);
	if (ret)
		return refuse(path, strerror(-ret));
	if (p->st.st_dev == p->parent_st.st_dev && strcmp(p->path, "/") != 0)
		return EXIT_OK;
	(void)refuse(path, "it is a mount's root: the store's own domain already, or no byokfs at all");
	return EXIT_ALREADY;
}

static void close_place(struct place *p)
{
	cleanup_fd(&p->fd);
	cleanup_fd(&p->parent_fd);
}

static json_t *add_request(const struct place *p, const char *key, const char *seal)
{
	char name[2 * NAME_MAX + 1];

	bytes_hex(name, (const uint8_t *)p->name, strlen(p->name));
	return json_pack("{s:s, s:I, s:I, s:s, s:s, s:s}", "verb", "domain-add", "parent",
	    (json_int_t)p->parent_st.st_ino, "dir", (json_int_t)p->st.st_ino, "name", name, "key", key, "seal", seal);
}

/* Asks until the daemon has an answer. EXIT_OK: *answer is a new reference. */
static int result(const char *mount, json_int_t job, json_t **answer)
{
	const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };
	json_t *request = json_pack("{s:s, s:I}", "verb", "domain-result", "job", job);
	uint64_t end = io_boot_ms() + RESULT_MS;
	int ret = request ? 0 : -ENOMEM;

	while (ret == 0) {
		ret = ctl_call(mount, request, CALL_MS, answer);
		if (ret || !json_is_true(json_object_get(*answer, "running")))
			break;
		json_decref(*answer);
		*answer = NULL;
		ret = io_boot_ms() < end ? 0 : -ETIMEDOUT;
		(void)nanosleep(&pause, NULL);
	}
	json_decref(request);
	return ret ? cmd_call_failed(mount, ret) : EXIT_OK;
}

static int ask(const struct place *p, const char *key, const char *seal, json_t **answer)
{
	json_t *request = add_request(p, key, seal), *begun = NULL;
	int code, ret = request ? ctl_call(p->mount, request, CALL_MS, &begun) : -ENOMEM;

	json_decref(request);
	if (ret)
		return cmd_call_failed(p->mount, ret);
	code = cmd_answer_code(begun);
	if (code) {
		*answer = begun;
		return EXIT_OK;
	}
	code = result(p->mount, json_integer_value(json_object_get(begun, "job")), answer);
	json_decref(begun);
	return code;
}

static int report(const struct place *p, const json_t *answer, bool json)
{
	const char *id = jsonio_str(answer, "id"), *key = jsonio_str(answer, "key"), *seal = jsonio_str(answer, "seal");

	if (json)
		return cmd_print_json(json_pack("{s:s*, s:O, s:s*, s:s*, s:s*}", "id", id, "index",
		    json_object_get(answer, "index"), "key", key, "seal", seal, "path", p->path));
	(void)printf("domain  %s\nindex   %d\nkey     %s\nseal    %s\n", id ? id : "?",
	    (int)json_integer_value(json_object_get(answer, "index")), key ? key : "?", seal ? seal : "?");
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

static int add(const struct cmd_args *args, const char *key, const char *seal)
{
	struct place p = { .fd = -1, .parent_fd = -1 };
	json_t *answer = NULL;
	int code = open_place(&p, args->operand[1]);

	if (code == EXIT_OK)
		code = ask(&p, key, seal, &answer);
	if (answer) {
		code = cmd_answer_code(answer);
		if (code)
			cmd_answer_error(answer, "cannot make '%s' a key domain", args->operand[1]);
		else
			code = report(&p, answer, args->json);
	}
	json_decref(answer);
	close_place(&p);
	return code;
}

int cmd_domain(int argc, char **argv)
{
	const char *key = NULL, *seal = NULL;
	const struct cmd_option options[] = { { "key", &key, NULL }, { "seal", &seal, NULL }, { 0 } };
	struct cmd_args args;
	int code = cmd_parse(&args, argc, argv, CMD_JSON, options, 2, 2);

	if (code >= 0)
		return code;
	bool adding = strcmp(args.operand[0], "add") == 0;

	if (!adding && strcmp(args.operand[0], "list") != 0) {
		cmd_error("'%s' is neither add nor list", args.operand[0]);
		return EXIT_USAGE;
	}
	if (!adding && (key || seal)) {
		cmd_error("--key and --seal belong to 'domain add'");
		return EXIT_USAGE;
	}
	if (adding && (!key || !*key)) {
		cmd_error("a key domain needs a key of its own: give --key");
		return EXIT_USAGE;
	}
	if (seal && strcmp(seal, "file") != 0 && strcmp(seal, "domain") != 0) {
		cmd_error("--seal: '%s' is neither file nor domain", seal);
		return EXIT_USAGE;
	}
	return adding ? add(&args, key, seal ? seal : "file") : cmd_domain_list(args.operand[1], args.json);
}
