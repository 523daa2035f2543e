/* check_file.c — page 0 of a backing file and its size: everything in it that needs no key to be judged. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "header.h"
#include "io.h"
#include "kms.h"
#include "layout.h"

struct at {
	struct check *c;
	const char *path, *name;
};

#define DAMAGE(at, ...)  check_say((at)->c, CHECK_DAMAGE, (at)->path, (at)->name, __VA_ARGS__)
#define MOVE(at, why)    check_fix((at)->c, FIX_MOVE, true, (at)->path, (at)->name, why)
#define WARNING(at, ...) check_say((at)->c, CHECK_WARNING, (at)->path, (at)->name, __VA_ARGS__)

static bool check_ident(const struct at *at, const struct header_ident *ident)
{
	const struct store *s = at->c->store;
	const struct descriptor_domain_line *line = check_domain(at->c, check_here(at->c)->domain);
	char hex[2 * CONTEXT_ID + 1];

	if (!bytes_equal(ident->store, s->desc.store, CONTEXT_ID)) {
		bytes_hex(hex, ident->store, CONTEXT_ID);
		DAMAGE(at, "belongs to another store, %s", hex);
		MOVE(at, "belongs to another store");
	} else if (line && !bytes_equal(ident->domain, line->domain, CONTEXT_ID)) {
		bytes_hex(hex, ident->domain, CONTEXT_ID);
		DAMAGE(at, "belongs to another key domain, %s", hex);
		MOVE(at, "belongs to another key domain");
	} else if (ident->suite != s->desc.suite) {
		DAMAGE(at, "is of suite %u, the store of suite %u", ident->suite, s->desc.suite);
		MOVE(at, "is of another suite than the store");
	} else {
		return true;
	}
	return false;
}

/* Is the key that sealed this slot one the descriptor names? */
static bool key_known(const struct descriptor_domain *d, const struct header_slot *slot)
{
	uint8_t hash[8];

	for (int i = 0; i < 2; i++) {
		if (!d->slot[i].seq)
			continue;
		kms_key_hash(hash, d->slot[i].key);
		if (memcmp(hash, slot->key_hash, sizeof(hash)) == 0)
			return true;
	}
	return false;
}

static bool check_slots(const struct at *at, const uint8_t *page)
{
	const struct descriptor_domain *d;
	struct header_slot ruling, slot;

	if (header_ruling_slot(page, &ruling) < 0) {
		DAMAGE(at, "no sealed key in its header is intact");
		MOVE(at, "no sealed key in its header is intact");
		return false;
	}
	for (int i = 0; i < 2; i++)
		if (header_slot(page, i, &slot) == -EBADMSG)
			WARNING(at, "slot %c of its header is damaged; the other one is intact", 'A' + i);
	d = ruling.wrap == HEADER_WRAP_KMS ? check_descriptor(at->c, check_here(at->c)->domain) : NULL;
	if (!d)
		return true;
	if (!descriptor_generation(d, ruling.generation))
		DAMAGE(
		    at, "its key was sealed under context %u, which the descriptor does not record", ruling.generation);
	else if (!key_known(d, &ruling))
		WARNING(at, "its key was sealed under a KMS key that the descriptor does not name");
	return true;
}

static void wrong_size(const struct at *at, const struct header_state *state, uint64_t size, uint64_t hint)
{
	if (at->c->doubt)
		at->c->in_doubt++;
	else if (size >= hint)
		DAMAGE(at, "is longer (%" PRIu64 " bytes) than its header implies (%" PRIu64 ")", size, hint);
	else if (size / LAYOUT_PAGE < layout_pages(state->csize, state->inlined))
		DAMAGE(at,
		    "is shorter (%" PRIu64 " bytes) than its header implies (%" PRIu64
		    "), and than what was promised",
		    size, hint);
	else
		DAMAGE(at, "is shorter (%" PRIu64 " bytes) than its header implies (%" PRIu64 ")", size, hint);
}

/* false: no state in it is worth reading on. */
static bool check_size(const struct at *at, const uint8_t *page, const struct stat *st)
{
	struct header_state state;
	uint64_t hint, size = (uint64_t)st->st_size;

	if (header_state_hint(page, &state) < 0) {
		DAMAGE(at, "neither state in its header is plausible");
		MOVE(at, "neither state in its header is plausible");
		return false;
	}
	hint = layout_hint(state.size, state.inlined);
	if (size == hint)
		return true;
	wrong_size(at, &state, size, hint);
	/* whole pages come and go with the keys only, which tell what they were */
	if (at->c->keys || size / LAYOUT_PAGE == hint / LAYOUT_PAGE)
		check_fix_in(at->c, check_here(at->c)->domain, FIX_HINT, !at->c->doubt, at->path, at->name,
		    "its length is not what its header implies");
	return true;
}

static void unborn(const struct at *at)
{
	at->c->unborn++;
	WARNING(at, "was created and never written: reading it is EIO; may be removed");
	check_fix(at->c, FIX_MOVE, false, at->path, at->name, "was created and never written");
}

/* Its shape; then, with keys, what is in it. fd is taken over. */
static void check_page(const struct at *at, int fd, const uint8_t *page, const struct stat *st)
{
	const struct check_level *here = check_here(at->c);
	int own CLEANUP_FD = fd;
	struct header_ident ident;
	int ret = header_ident(page, &ident);

	if (ret == -ENODATA) {
		unborn(at);
	} else if (ret < 0) {
		DAMAGE(at, "not a byokfs file, or its header is damaged");
		MOVE(at, "not a byokfs file, or its header is damaged");
	} else if (check_ident(at, &ident) && check_slots(at, page) && check_size(at, page, st) && at->c->keys) {
		if (here->open)
			check_xattrs(at->c, fd, here->domain, ident.file, at->path, at->name);
		check_data_file(at->c, steal_fd(&own), at->path, at->name, st, page, &ident);
	}
}

void check_file(struct check *c, int dirfd, const char *path, const char *name, const struct stat *before)
{
	const struct at at = { .c = c, .path = path, .name = name };
	uint8_t page[LAYOUT_PAGE] = { 0 };
	struct stat st;
	int fd CLEANUP_FD = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | O_NOATIME);
	ssize_t n;

	if (fd < 0 && errno == EPERM)
		fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && c->live)
		return;
	if (fd < 0 || fstat(fd, &st) < 0) {
		DAMAGE(&at, "cannot be opened: %s", strerror(errno));
		return;
	}
	if (st.st_dev != before->st_dev || st.st_ino != before->st_ino || !S_ISREG(st.st_mode)) {
		WARNING(&at, "was exchanged while it was looked at");
		return;
	}
	n = io_pread(fd, page, sizeof(page), 0);
	if (n < 0) {
		DAMAGE(&at, "cannot be read: %s", strerror((int)-n));
	} else if ((size_t)n < sizeof(page) && !bytes_zero(page, sizeof(page))) {
		DAMAGE(&at, "cut off within its header");
		MOVE(&at, "cut off within its header");
	} else {
		check_page(&at, steal_fd(&fd), page, &st);
	}
}
