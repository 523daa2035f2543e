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
#define WARNING(at, ...) check_say((at)->c, CHECK_WARNING, (at)->path, (at)->name, __VA_ARGS__)

static void check_ident(const struct at *at, const struct header_ident *ident, uint16_t domain)
{
	const struct store *s = at->c->store;
	const struct descriptor_domain_line *line = check_domain(at->c, domain);
	char hex[2 * CONTEXT_ID + 1];

	if (!bytes_equal(ident->store, s->desc.store, CONTEXT_ID)) {
		bytes_hex(hex, ident->store, CONTEXT_ID);
		DAMAGE(at, "belongs to another store, %s", hex);
	} else if (line && !bytes_equal(ident->domain, line->domain, CONTEXT_ID)) {
		bytes_hex(hex, ident->domain, CONTEXT_ID);
		DAMAGE(at, "belongs to another key domain, %s", hex);
	} else if (ident->suite != s->desc.suite) {
		DAMAGE(at, "is of suite %u, the store of suite %u", ident->suite, s->desc.suite);
	}
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

static void check_slots(const struct at *at, const uint8_t *page, uint16_t domain)
{
	const struct descriptor_domain *d;
	struct header_slot ruling, slot;

	if (header_ruling_slot(page, &ruling) < 0) {
		DAMAGE(at, "no sealed key in its header is intact");
		return;
	}
	for (int i = 0; i < 2; i++)
		if (header_slot(page, i, &slot) == -EBADMSG)
			WARNING(at, "slot %c of its header is damaged; the other one is intact", 'A' + i);
	d = ruling.wrap == HEADER_WRAP_KMS ? check_descriptor(at->c, domain) : NULL;
	if (!d)
		return;
	if (!descriptor_generation(d, ruling.generation))
		DAMAGE(
		    at, "its key was sealed under context %u, which the descriptor does not record", ruling.generation);
	else if (!key_known(d, &ruling))
		WARNING(at, "its key was sealed under a KMS key that the descriptor does not name");
}

static void check_size(const struct at *at, const uint8_t *page, const struct stat *st)
{
	struct header_state state;
	uint64_t hint;

	if (header_state_hint(page, &state) < 0) {
		DAMAGE(at, "neither state in its header is plausible");
		return;
	}
	hint = layout_hint(state.size, state.inlined);
	if ((uint64_t)st->st_size == hint)
		return;
	if (at->c->doubt)
		at->c->in_doubt++;
	else if ((uint64_t)st->st_size < hint)
		DAMAGE(at, "is shorter (%jd bytes) than its header implies (%" PRIu64 ")", (intmax_t)st->st_size, hint);
	else
		DAMAGE(at, "is longer (%jd bytes) than its header implies (%" PRIu64 ")", (intmax_t)st->st_size, hint);
}

static void check_page(const struct at *at, const uint8_t *page, const struct stat *st, uint16_t domain)
{
	struct header_ident ident;
	int ret = header_ident(page, &ident);

	if (ret == -ENODATA) {
		at->c->unborn++;
		WARNING(at, "was created and never written: reading it is EIO; may be removed");
	} else if (ret < 0) {
		DAMAGE(at, "not a byokfs file, or its header is damaged");
	} else {
		check_ident(at, &ident, domain);
		check_slots(at, page, domain);
		check_size(at, page, st);
	}
}

void check_file(
    struct check *c, int dirfd, const char *path, const char *name, const struct stat *before, uint16_t domain)
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
	if (n < 0)
		DAMAGE(&at, "cannot be read: %s", strerror((int)-n));
	else if ((size_t)n < sizeof(page) && !bytes_zero(page, sizeof(page)))
		DAMAGE(&at, "cut off within its header");
	else
		check_page(&at, page, &st, domain);
}
