/* cmd_init.c — `byokfsctl init`: an empty directory becomes a store.
 *
 * Everything that can be refused is refused before the directory is touched, the KMS's unwrapping of what it just
 * sealed included. What was written is then opened like any mount would, with a secret unwrapped anew; if that fails,
 * it goes again. */
#include "cmd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "io.h"
#include "seal.h"
#include "secret.h"

/* What init works on; secrets are in secret memory. */
struct making {
	const char *path;
	struct config config;
	struct kms *kms;
	struct store_create create;
	struct domain_keys *keys;
	struct name_keys *names;
	uint8_t *secret;
	char why[STORE_WHY];
};

struct wishes {
	const char *seal, *names, *suite;
	bool plain;
};

static int wished_names(struct making *m, const struct wishes *w)
{
	const char *text = w->names ? w->names : w->plain ? "plain" : m->config.store.names;
	int mode = text ? cmd_names_from(text) : NAME_SIV64;

	if (mode < 0 || (w->names && w->plain)) {
		cmd_error("--names: '%s' is none of siv64, siv32, plain", mode < 0 ? text : "with --plain-names");
		return EXIT_USAGE;
	}
	m->create.names = (enum name_mode)mode;
	return EXIT_OK;
}

static int wished_suite(struct making *m, const struct wishes *w)
{
	if (w->suite && strcmp(w->suite, "1") != 0 && strcmp(w->suite, "2") != 0) {
		cmd_error("--suite: '%s' is neither 1 nor 2", w->suite);
		return EXIT_USAGE;
	}
	if (w->suite)
		m->create.ids.suite = (uint8_t)(w->suite[0] - '0');
	else if (m->config.store.suite)
		m->create.ids.suite = (uint8_t)m->config.store.suite;
	else
		m->create.ids.suite = crypto_aead_aes256gcm_is_available() ? 1 : 2;
	return EXIT_OK;
}

static int wished_seal(struct making *m, const struct wishes *w)
{
	if (w->seal && strcmp(w->seal, "file") != 0 && strcmp(w->seal, "domain") != 0) {
		cmd_error("--seal: '%s' is neither file nor domain", w->seal);
		return EXIT_USAGE;
	}
	m->create.seal = w->seal && strcmp(w->seal, "domain") == 0 ? SEAL_DOMAIN : SEAL_FILE;
	return EXIT_OK;
}

static int grant(struct making *m, const struct wishes *w)
{
	int code = wished_names(m, w);

	if (code == EXIT_OK)
		code = wished_suite(m, w);
	return code == EXIT_OK ? wished_seal(m, w) : code;
}

static int make_room(struct making *m)
{
	m->secret = secret_alloc(KDF_SECRET);
	m->keys = secret_alloc(sizeof(*m->keys));
	if (m->secret && m->keys)
		return EXIT_OK;
	cmd_error("cannot have memory for keys: raise the limit of locked memory (ulimit -l), or set allow_unlocked in "
	          "[cache]");
	return EXIT_FAILED;
}

/* The domain's secret and the canary's blob, sealed by the KMS, which must unseal them again. */
static int seal(struct making *m)
{
	struct kms_err err = { 0 };
	const char *what;
	char text[512];

	if (seal_domain(m->kms, &m->create.ids, &m->config.extra, &m->create.slot, m->secret, &what, &err) == KMS_OK)
		return EXIT_OK;
	if (err.status != KMS_BAD_BLOB)
		return cmd_kms_failed(what, &err);
	kms_err_text(text, sizeof(text), &err);
	cmd_error("%s: %s", what, text); /* a KMS that cannot be trusted: there is nothing to advise */
	return EXIT_FAILED;
}

static int derive(struct making *m)
{
	int ret = kdf_domain(m->keys, m->secret, &m->create.ids);

	if (ret == 0)
		ret = name_open(&m->names, m->create.names, m->keys, &m->create.ids);
	m->create.keys = m->keys;
	m->create.name_keys = m->names;
	if (ret < 0)
		cmd_error("cannot derive the store's keys: %s", strerror(-ret));
	return ret < 0 ? EXIT_FAILED : EXIT_OK;
}

static void empty_directory(int at, const char *name)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		(void)unlinkat(dirfd(dir), entry->d_name, 0);
	if (dir)
		(void)closedir(dir);
	else if (fd >= 0)
		(void)close(fd);
}

/* Takes away what store_create() wrote into a directory that was empty. */
static void undo(const char *path)
{
	static const char *const inner[] = { ".byokfs/domains", ".byokfs/mounts", ".byokfs" };
	int fd CLEANUP_FD = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return;
	for (size_t i = 0; i < sizeof(inner) / sizeof(inner[0]); i++) {
		empty_directory(fd, inner[i]);
		(void)unlinkat(fd, inner[i], AT_REMOVEDIR);
	}
	(void)unlinkat(fd, NAME_DIR_FILE, 0);
}

/* Opens the new store as a mount would. */
static int verify(struct making *m)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	struct store store;
	struct kms_err err;
	int code, ret = store_open(&store, m->path, &options, m->why);

	if (ret < 0) {
		cmd_error("%s", m->why);
		return cmd_exit_store(ret);
	}
	code = cmd_unseal(&store, m->kms, &m->config, &err, m->why);
	store_close(&store, true);
	if (code == EXIT_OK)
		return EXIT_OK;
	if (*m->why)
		cmd_error("%s", m->why);
	else
		(void)cmd_kms_failed("the new store cannot be opened", &err);
	return code;
}

/* A signal in the middle would leave half a store. */
static int write_down(struct making *m)
{
	sigset_t all, old;
	int code, ret;

	(void)sigfillset(&all);
	(void)sigprocmask(SIG_SETMASK, &all, &old);
	ret = store_create(m->path, &m->create, m->why);
	if (ret < 0) {
		cmd_error("%s", m->why);
		code = ret == -EEXIST ? EXIT_ALREADY : EXIT_FAILED;
	} else {
		code = verify(m);
		if (code != EXIT_OK)
			undo(m->path);
	}
	(void)sigprocmask(SIG_SETMASK, &old, NULL);
	return code;
}

static int report(const struct making *m, const struct cmd_args *args)
{
	const struct store_create *c = &m->create;
	char id[2 * CONTEXT_ID + 1];

	bytes_hex(id, c->ids.store, CONTEXT_ID);
	if (args->json)
		return cmd_print_json(json_pack("{s:s,s:s,s:s,s:s,s:s,s:i}", "store", id, "provider",
		    kms_provider_name(m->kms), "key", c->slot.key, "seal", cmd_seal_name(c->seal), "names",
		    cmd_names_mode(c->names), "suite", (int)c->ids.suite));
	(void)printf("store   %s\nkey     %s\nseal    %s\nnames   %s\nsuite   %u (%s)\n", id, c->slot.key,
	    cmd_seal_name(c->seal), cmd_names_mode(c->names), c->ids.suite, cmd_suite_name(c->ids.suite));
	if (m->config.kms.key && strcmp(m->config.kms.provider, "aws") == 0 &&
	    strcmp(m->config.kms.key, c->slot.key) != 0)
		(void)printf("next    write this key's ARN as 'key' into [kms] in place of '%s'\n", m->config.kms.key);
	(void)printf("next    byokfs %s%s%s%s MOUNTPOINT\n", args->config ? "-c " : "",
	    args->config ? args->config : "", args->config ? " " : "", m->path);
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

/* An id that is pinned is the one a policy may have been written for, before there was a store. */
static void choose_store_id(struct making *m)
{
	const char *id = m->config.store.id;

	if (!id || bytes_unhex(m->create.ids.store, CONTEXT_ID, id, strlen(id)) < 0)
		secret_random(m->create.ids.store, CONTEXT_ID);
}

static int make(struct making *m)
{
	struct kms_err err;
	int code, ret = store_creatable(m->path, m->config.mount.torn_ok, m->why);

	if (ret < 0) {
		cmd_error("%s", m->why);
		return ret == -EEXIST ? EXIT_ALREADY : EXIT_FAILED;
	}
	code = make_room(m);
	if (code != EXIT_OK)
		return code;
	if (cmd_kms_open(&m->kms, &m->config, &err) != EXIT_OK)
		return cmd_kms_failed("cannot use the key service", &err);
	choose_store_id(m);
	secret_random(m->create.ids.domain, CONTEXT_ID);
	secret_random(m->create.dirid, sizeof(m->create.dirid));
	m->create.by = "byokfs " BYOKFS_VERSION;
	m->create.extra = &m->config.extra;
	code = seal(m);
	if (code == EXIT_OK)
		code = derive(m);
	return code == EXIT_OK ? write_down(m) : code;
}

int cmd_init(int argc, char **argv)
{
	struct wishes w = { 0 };
	const struct cmd_option options[] = { { "seal", &w.seal, NULL }, { "names", &w.names, NULL },
		{ "suite", &w.suite, NULL }, { "plain-names", NULL, &w.plain }, { 0 } };
	struct cmd_args args;
	struct making *m;
	int code = cmd_parse(&args, argc, argv, CMD_CONFIG | CMD_JSON, options, 1, 1);

	if (code >= 0)
		return code;
	m = calloc(1, sizeof(*m));
	if (!m)
		return EXIT_FAILED;
	m->path = args.operand[0];
	code = cmd_configure(&m->config, &args);
	if (code == EXIT_OK)
		code = grant(m, &w);
	if (code == EXIT_OK)
		code = make(m);
	if (code == EXIT_OK)
		code = report(m, &args);
	name_free(m->names);
	kms_close(m->kms);
	secret_free(m->secret);
	secret_free(m->keys);
	config_free(&m->config);
	free(m);
	return code;
}
