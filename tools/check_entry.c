/* check_entry.c — names, long names, links and directory ids by their shape: what can be said of them without a key. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "dir.h"

#define SIV_IV    16
#define LONG_HASH 24u
#define LINK_SALT 8

/* Content of a symlink, NUL-terminated; its length or -errno. */
static int link_content(int dirfd, const char *name, char *out, size_t size)
{
	ssize_t n = readlinkat(dirfd, name, out, size);

	if (n < 0)
		return -errno;
	if ((size_t)n >= size)
		return -ENAMETOOLONG;
	out[n] = '\0';
	return (int)n;
}

int check_dir_mac(int dirfd, const struct name_keys *names)
{
	char text[NAME_DIR_ID_TEXT + 2];
	uint16_t domain;
	uint8_t id[16];
	int n = link_content(dirfd, NAME_DIR_FILE, text, sizeof(text));

	return n < 0 ? n : name_dir_parse(names, text, (size_t)n, &domain, id);
}

int check_dir_id(int dirfd, uint16_t *domain, uint8_t id[static 16])
{
	char text[NAME_DIR_ID_TEXT + 2];
	uint8_t raw[34];
	int n = link_content(dirfd, NAME_DIR_FILE, text, sizeof(text));

	if (n < 0)
		return n;
	if (n != (int)NAME_DIR_ID_TEXT || bytes_unb64(B64_URL, raw, sizeof(raw), text, (size_t)n) != (int)sizeof(raw))
		return -EBADMSG;
	*domain = le16_get(raw);
	memcpy(id, raw + 2, 16);
	return 0;
}

static int decode_entry(const struct check *c, uint8_t *out, size_t max, const char *text)
{
	if (c->store->desc.names == NAME_SIV32)
		return bytes_unb32(out, max, text, strlen(text));
	return bytes_unb64(B64_URL, out, max, text, strlen(text));
}

static bool is_siv(int len)
{
	return len >= 2 * SIV_IV && len % SIV_IV == 0;
}

/* What another filesystem is mounted on stays where it is. */
static void not_ours(struct check *c, const char *path, const char *name, const struct stat *st)
{
	check_say(c, CHECK_WARNING, path, name, "not a name of this store: not shown by mounts");
	if (st->st_dev == c->dev)
		check_fix(c, FIX_MOVE, false, path, name, "not a name of this store");
}

/* Does the name decrypt in its directory? A store with plain names has nothing to decrypt. */
static bool authentic(struct check *c, const char *path, const char *name, const char *long_target)
{
	const struct check_level *here = check_here(c);
	const struct name_keys *names = here->open ? check_keys_get(c->keys, here->domain) : NULL;
	char plain[NAME_MAX_PLAIN + 1];
	int ret;

	if (!names)
		return true;
	ret = name_decrypt(names, here->id, name, long_target, plain);
	check_keys_put(c->keys, here->domain);
	explicit_bzero(plain, sizeof(plain));
	if (ret >= 0)
		return true;
	check_say(c, CHECK_DAMAGE, path, name, "its name does not decrypt in this directory: not shown by mounts");
	check_fix(c, FIX_MOVE, true, path, name, "its name does not decrypt in this directory");
	return false;
}

/* `L.<hash>` needs `L.<hash>.n`, whose content hashes to it. */
static bool check_long(struct check *c, int dirfd, const char *path, const char *name, const struct stat *st)
{
	char other[NAME_ENTRY_MAX + 3], text[NAME_LONG_TARGET_MAX + 2];
	uint8_t hash[LONG_HASH], want[LONG_HASH], siv[NAME_LONG_TARGET_MAX];
	struct stat now;
	int n;

	if (decode_entry(c, want, sizeof(want), name + 2) != (int)sizeof(want)) {
		not_ours(c, path, name, st);
		return false;
	}
	(void)snprintf(other, sizeof(other), "%s.n", name);
	n = link_content(dirfd, other, text, sizeof(text));
	if (n == -ENOENT && c->live && fstatat(dirfd, name, &now, AT_SYMLINK_NOFOLLOW) < 0)
		return false; /* removed meanwhile, the entry first */
	if (n < 0) {
		check_say(c, CHECK_DAMAGE, path, name, "the other half of its long name, '%s', is missing", other);
		check_fix(c, FIX_MOVE, true, path, name, "the other half of its long name is missing");
		return !c->keys && !c->repair;
	}
	n = bytes_unb64(B64_URL, siv, sizeof(siv), text, (size_t)n);
	if (is_siv(n))
		(void)crypto_generichash(hash, sizeof(hash), siv, (unsigned long long)n, NULL, 0);
	if (is_siv(n) && bytes_equal(hash, want, sizeof(hash)))
		return authentic(c, path, name, text);
	check_say(c, CHECK_DAMAGE, path, name, "the other half of its long name, '%s', does not belong to it", other);
	check_fix(c, FIX_MOVE, true, path, name, "the other half of its long name does not belong to it");
	return !c->keys && !c->repair;
}

/* `L.<hash>.n` alone is litter of an interrupted operation. */
static void check_half(struct check *c, int dirfd, const char *path, const char *name, size_t len)
{
	char first[NAME_ENTRY_MAX + 1];
	struct stat st;

	memcpy(first, name, len - 2);
	first[len - 2] = '\0';
	if (fstatat(dirfd, first, &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT || c->live)
		return;
	check_say(c, CHECK_WARNING, path, name, "half of a long name without a file: may be removed");
	check_fix(c, FIX_REMOVE, false, path, name, "half of a long name without a file");
}

bool check_name(struct check *c, int dirfd, const char *path, const char *name, const struct stat *st)
{
	uint8_t siv[NAME_ENTRY_MAX];
	size_t len = strlen(name);

	if (c->store->desc.names == NAME_PLAIN)
		return true;
	if (strncmp(name, "L.", 2) == 0 && len > 4 && strcmp(name + len - 2, ".n") == 0) {
		check_half(c, dirfd, path, name, len);
		return false;
	}
	if (strncmp(name, "L.", 2) == 0)
		return check_long(c, dirfd, path, name, st);
	if (is_siv(decode_entry(c, siv, sizeof(siv), name)))
		return authentic(c, path, name, NULL);
	not_ours(c, path, name, st);
	return false;
}

static bool target_opens(struct check *c, const char *text, int n)
{
	const struct check_level *here = check_here(c);
	const struct name_keys *names = here->open ? check_keys_get(c->keys, here->domain) : NULL;
	char target[NAME_LINK_MAX + 1];
	int ret;

	if (!names)
		return true;
	ret = name_link_decrypt(names, text, (size_t)n, target);
	check_keys_put(c->keys, here->domain);
	explicit_bzero(target, sizeof(target));
	return ret >= 0;
}

void check_link(struct check *c, int dirfd, const char *path, const char *name)
{
	char text[NAME_LINK_TEXT(NAME_LINK_MAX)];
	uint8_t raw[NAME_LINK_TEXT(NAME_LINK_MAX)];
	int n = dir_link_text(dirfd, name, text);

	if (n < 0 && n != -EBADMSG) {
		if (n != -ENOENT || !c->live)
			check_say(c, CHECK_DAMAGE, path, name, "cannot be read: %s", strerror(-n));
		return;
	}
	if (n < 0 || bytes_unb64(B64_URL, raw, sizeof(raw), text, (size_t)n) <= LINK_SALT + SIV_IV) {
		check_say(c, CHECK_DAMAGE, path, name, "a symlink that byokfs did not write");
		check_fix(c, FIX_MOVE, true, path, name, "a symlink that byokfs did not write");
	} else if (!target_opens(c, text, n)) {
		check_say(c, CHECK_DAMAGE, path, name, "the target of the symlink does not decrypt");
		check_fix(c, FIX_MOVE, true, path, name, "the target of the symlink does not decrypt");
	}
}
