/* Hides: which settings are paths, and how a path is followed component by component: a link below the mount point may
 * lead out of it again, and still could not be followed once the mount is there. */
#include "pathcheck.h"

#include <limits.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "awscred.h"

#define FUSE_SUPER_MAGIC 0x65735546

#define LINKS_MAX 40

static bool inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0' || n == 1);
}

static bool through(const char *path, const char *dir, int links);

/* Where the link at path, whose last component begins at `last`, leads. */
static bool link_through(const char *path, size_t last, const char *dir, int links)
{
	char target[PATH_MAX], whole[2 * PATH_MAX];
	ssize_t n = readlink(path, target, sizeof(target) - 1);

	if (n <= 0 || links >= LINKS_MAX)
		return false;
	target[n] = '\0';
	(void)snprintf(whole, sizeof(whole), "%.*s%s", *target == '/' ? 0 : (int)last, path, target);
	return through(whole, dir, links + 1);
}

static bool through(const char *path, const char *dir, int links)
{
	char prefix[2 * PATH_MAX], real[PATH_MAX];
	size_t begin = 0, end = 0;

	while (end < sizeof(prefix) - 1 && path[end]) {
		begin = end + strspn(path + end, "/");
		end = begin + strcspn(path + begin, "/");
		if (begin == end || end >= sizeof(prefix))
			break;
		memcpy(prefix, path, end);
		prefix[end] = '\0';
		if (realpath(prefix, real) && inside(real, dir))
			return true;
		if (link_through(prefix, begin, dir, links))
			return true;
	}
	return false;
}

bool pathcheck_through(const char *path, const char *dir)
{
	return through(path, dir, 0);
}

struct search {
	const char *mountpoint;
	char *found;
};

static void look(void *arg, const char *path)
{
	struct search *s = arg;

	if (!s->found && path && *path && pathcheck_through(path, s->mountpoint))
		s->found = strdup(path);
}

char *pathcheck_find(const struct config *c, const char *mountpoint)
{
	const char *const paths[] = { c->source, c->kms.ca_bundle, c->vault.token_file, c->vault.secret_id_file,
		c->vault.ca_bundle, c->pkcs11.module, c->pkcs11.pin_file, c->keyfile.path, c->audit.file };
	struct search s = { .mountpoint = mountpoint };

	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		look(&s, paths[i]);
	if (c->kms.provider && strcmp(c->kms.provider, "aws") == 0)
		awscred_paths(c->kms.profile, look, &s);
	return s.found;
}

bool pathcheck_mounted(const char *store)
{
	FILE *table = setmntent("/proc/self/mounts", "re");
	char line[2 * PATH_MAX + 1024];
	struct mntent entry;
	bool found = false;

	if (!table)
		return true;
	while (!found && getmntent_r(table, &entry, line, sizeof(line)))
		found = strcmp(entry.mnt_type, "fuse.byokfs") == 0 && strcmp(entry.mnt_fsname, store) == 0;
	(void)endmntent(table);
	return found;
}

bool pathcheck_locked(const char *store, const char *file)
{
	char path[2 * PATH_MAX], line[256], wanted[40];
	struct statfs fs;
	struct stat st;
	FILE *table;
	bool found = false;

	(void)snprintf(path, sizeof(path), "%s/%s", store, file);
	/* The kernel's table has no locks of FUSE file systems. */
	if (stat(path, &st) || statfs(path, &fs) || fs.f_type == FUSE_SUPER_MAGIC)
		return true;
	/* "1: OFDLCK ADVISORY  WRITE -1 fe:01:1234 0 EOF"; the device there is not always stat's */
	(void)snprintf(wanted, sizeof(wanted), ":%llu ", (unsigned long long)st.st_ino);
	table = fopen("/proc/locks", "re");
	if (!table)
		return true;
	while (!found && fgets(line, sizeof(line), table))
		found = strstr(line, wanted) != NULL;
	(void)fclose(table);
	return found;
}
