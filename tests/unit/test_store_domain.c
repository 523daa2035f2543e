/* The store descriptor's table grows by a line: order, both copies, and what a crash in between leaves. */
#include "bytes.h"
#include "store_fixture.h"

static struct descriptor_domain *fresh(const struct store *s, uint16_t index, uint8_t fill)
{
	struct descriptor_domain *d = calloc(1, sizeof(*d));
	struct context_ids ids = bk.ids;

	assert_non_null(d);
	memset(ids.domain, fill, sizeof(ids.domain));
	assert_int_equal(store_first_domain(d, &ids, &recipe()->slot, NULL, &bk.keys), 0);
	assert_memory_equal(d->store, s->desc.store, 16);
	d->index = index;
	return d;
}

static void drop(struct descriptor_domain *d)
{
	descriptor_domain_free(d);
	free(d);
}

static void add(struct store *s, uint16_t index, uint8_t fill)
{
	struct descriptor_domain *d = fresh(s, index, fill);
	uint8_t dirid[16];

	memset(dirid, fill, sizeof(dirid));
	assert_int_equal(store_add_domain(s, d, &bk.keys, dirid, &bk.keys, why), 0);
	drop(d);
}

static const char *file_of(uint8_t fill, const char *suffix)
{
	static char name[4][80];
	static unsigned turn;
	uint8_t id[16];
	char hex[33], *out = name[turn++ % 4];

	memset(id, fill, sizeof(id));
	bytes_hex(hex, id, sizeof(id));
	(void)snprintf(out, sizeof(name[0]), "domains/%s%s", hex, suffix);
	return in_store(out);
}

static void lines(void **state)
{
	struct descriptor_domain *d = calloc(1, sizeof(*d));
	struct store *s = mounted(&rw);

	(void)state;
	assert_int_equal(store_free_index(s), 1);
	add(s, 1, 0x11);
	assert_int_equal(store_free_index(s), 2);
	add(s, 65535, 0x22);
	assert_int_equal(store_free_index(s), 2);
	add(s, 2, 0x33);
	assert_int_equal(s->desc.n, 4);
	assert_int_equal(s->desc.domains[2].index, 2);
	assert_int_equal(s->desc.domains[3].index, 65535);
	assert_int_equal(s->desc.seq, 4);
	unmounted(s, true);
	s = mounted(&rw); /* and its MAC is good */
	assert_int_equal(s->desc.n, 4);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(store_read_domain(s, &s->desc.domains[i], 0, d), 0);
		assert_int_equal(d->index, s->desc.domains[i].index);
		assert_int_equal(descriptor_domain_verify(d, &bk.keys), 0);
		descriptor_domain_free(d);
		assert_int_equal(store_read_domain(s, &s->desc.domains[i], 1, d), -ENOENT);
	}
	unmounted(s, true);
	free(d);
}

static void full(void **state)
{
	struct store *s = mounted(&rw);
	struct descriptor_domain_line *before = s->desc.domains, *all = calloc(65536, sizeof(*all));
	size_t n = s->desc.n;

	(void)state;
	assert_non_null(all);
	for (unsigned i = 0; i < 65536; i++)
		all[i].index = (uint16_t)i;
	s->desc.domains = all;
	s->desc.n = 65536;
	assert_int_equal(store_free_index(s), -ENOSPC);
	s->desc.domains = before;
	s->desc.n = n;
	free(all);
	unmounted(s, true);
}

static void others_and_lost_copies(void **state)
{
	struct descriptor_domain *d = calloc(1, sizeof(*d));
	struct store *s = mounted(&rw);
	char *text;
	size_t len;

	(void)state;
	add(s, 1, 0x11);
	add(s, 2, 0x22);
	/* Another's descriptor in its place. */
	text = slurp(file_of(0x22, ""), &len);
	spew(file_of(0x11, ""), text, len);
	free(text);
	assert_int_equal(store_read_domain(s, &s->desc.domains[1], 0, d), -EBADMSG);
	assert_int_equal(store_read_domain(s, &s->desc.domains[1], 1, d), 0);
	assert_int_equal(store_restore_domain(s, d), 0);
	descriptor_domain_free(d);
	assert_int_equal(store_read_domain(s, &s->desc.domains[1], 0, d), 0);
	/* A copy that is gone comes back, but not on a read-only mount. */
	assert_int_equal(unlink(file_of(0x11, "~")), 0);
	s->readonly = true;
	assert_int_equal(store_restore_domain(s, d), 0);
	assert_int_equal(access(file_of(0x11, "~"), F_OK), -1);
	s->readonly = false;
	assert_int_equal(store_restore_domain(s, d), 0);
	assert_int_equal(access(file_of(0x11, "~"), F_OK), 0);
	descriptor_domain_free(d);
	spew(file_of(0x22, ""), "x", 1);
	spew(file_of(0x22, "~"), "x", 1);
	assert_int_equal(store_read_domain(s, &s->desc.domains[2], 0, d), -EINVAL);
	assert_int_equal(unlink(file_of(0x22, "")), 0);
	assert_int_equal(unlink(file_of(0x22, "~")), 0);
	assert_int_equal(store_read_domain(s, &s->desc.domains[2], 0, d), -ENOENT);
	unmounted(s, true);
	free(d);
}

/* Nothing can be written: the table is as before, and what follows is newer than anything half written. */
static void failures(void **state)
{
	struct store *s = mounted(&rw);
	struct descriptor_domain *d = fresh(s, 1, 0x11);
	uint8_t dirid[16] = { 1 };
	int meta = s->meta_fd;

	(void)state;
	s->meta_fd = bk.fd; /* no domains/ there */
	assert_int_equal(store_add_domain(s, d, &bk.keys, dirid, &bk.keys, why), -ENOENT);
	assert_non_null(strstr(why, "descriptor"));
	s->meta_fd = meta;
	assert_int_equal(s->desc.n, 1);
	d->slot[0].seq = 0; /* cannot be written down */
	assert_int_equal(store_add_domain(s, d, &bk.keys, dirid, &bk.keys, why), -EINVAL);
	assert_int_equal(access(file_of(0x11, ""), F_OK), -1);
	assert_int_equal(s->desc.n, 1);
	drop(d);
	add(s, 1, 0x22);
	unmounted(s, true);
	s = mounted(&rw);
	assert_int_equal(s->desc.n, 2);
	unmounted(s, true);
}

/* A line is taken back, with its descriptor; another domain stays. */
static void taken_back(void **state)
{
	struct descriptor_domain *d = calloc(1, sizeof(*d));
	struct store *s = mounted(&rw);
	uint8_t id[16];
	int meta = s->meta_fd;

	(void)state;
	assert_non_null(d);
	add(s, 1, 0x11);
	add(s, 2, 0x22);
	memset(id, 0x33, sizeof(id));
	assert_int_equal(store_drop_domain(s, id, &bk.keys, why), -ENOENT);
	assert_int_equal(store_drop_domain(s, s->desc.domains[0].domain, &bk.keys, why), -ENOENT);
	memset(id, 0x11, sizeof(id));
	s->meta_fd = -1;
	assert_int_equal(store_drop_domain(s, id, &bk.keys, why), -EBADF);
	s->meta_fd = meta;
	assert_int_equal(s->desc.n, 3);
	assert_int_equal(access(file_of(0x11, ""), F_OK), 0);
	assert_int_equal(store_drop_domain(s, id, &bk.keys, why), 0);
	assert_int_equal(access(file_of(0x11, ""), F_OK), -1);
	assert_int_equal(access(file_of(0x11, "~"), F_OK), -1);
	unmounted(s, true);
	s = mounted(&rw);
	assert_int_equal(s->desc.n, 2);
	assert_int_equal(s->desc.domains[1].index, 2);
	assert_int_equal(store_read_domain(s, &s->desc.domains[1], 0, d), 0);
	descriptor_domain_free(d);
	memset(id, 0x22, sizeof(id));
	assert_int_equal(store_drop_domain(s, id, &bk.keys, why), 0);
	assert_int_equal(store_free_index(s), 1);
	unmounted(s, true);
	free(d);
}

/* A nested domain's descriptor is written again: both copies, its MAC as it was, seq raised. */
static void rewritten(void **state)
{
	struct descriptor_domain *d = calloc(1, sizeof(*d)), *again = calloc(1, sizeof(*again));
	struct store *s = mounted(&rw);
	size_t a_len, b_len;
	char *a, *b;

	(void)state;
	add(s, 1, 0x11);
	assert_int_equal(store_read_domain(s, &s->desc.domains[1], 0, d), 0);
	assert_int_equal(descriptor_put_slot(d, &d->slot[0]), 0);
	assert_int_equal(store_put_domain(s, d, why), 0);
	assert_int_equal(d->seq, 2);
	assert_int_equal(s->domain.seq, 1); /* another one */
	assert_int_equal(s->domain.slot[1].seq, 0);
	a = slurp(file_of(0x11, ""), &a_len);
	b = slurp(file_of(0x11, "~"), &b_len);
	assert_int_equal(a_len, b_len);
	assert_memory_equal(a, b, a_len);
	free(a);
	free(b);
	assert_int_equal(store_read_domain(s, &s->desc.domains[1], 0, again), 0);
	assert_int_equal(descriptor_domain_verify(again, &bk.keys), 0);
	assert_int_equal(again->seq, 2);
	assert_int_equal(descriptor_ruling_slot(again)->seq, 2);
	descriptor_domain_free(again);
	s->readonly = true;
	assert_int_equal(store_put_domain(s, d, why), -EROFS);
	assert_non_null(strstr(why, "domain 1"));
	assert_int_equal(d->seq, 2);
	s->readonly = false;
	d->seq = UINT64_MAX;
	assert_int_equal(store_put_domain(s, d, why), -EOVERFLOW);
	descriptor_domain_free(d);
	unmounted(s, true);
	free(d);
	free(again);
}

/* Domain 0: the store's own, or a copy of it, which leaves the store's own alone. */
static void first_rewritten(void **state)
{
	struct store *s = mounted(&rw);
	struct descriptor_domain *d = calloc(1, sizeof(*d));
	const struct context_extra extra = { .n = 1, .pair = { { "team", "a" } } };
	int meta = s->meta_fd;
	uint16_t g;

	(void)state;
	assert_int_equal(descriptor_domain_copy(d, &s->domain), 0);
	assert_int_equal(descriptor_add_generation(d, &extra, &g), 0);
	assert_int_equal(descriptor_put_slot(d, &d->slot[0]), 0);
	s->meta_fd = bk.fd; /* no domains/ there */
	assert_int_equal(store_put_domain(s, d, why), -ENOENT);
	s->meta_fd = meta;
	assert_int_equal(d->seq, 2); /* skipped */
	assert_int_equal(store_put_domain(s, d, why), 0);
	assert_int_equal(d->seq, 3);
	assert_int_equal(s->domain.seq, 1);
	assert_int_equal(s->domain.ngen, 1);
	assert_int_equal(s->domain.slot[1].seq, 0);
	descriptor_domain_free(d);
	free(d);
	unmounted(s, true);
	s = mounted(&rw);
	assert_int_equal(s->domain.seq, 3);
	assert_string_equal(descriptor_generation(&s->domain, g)->pair[0].value, "a");
	assert_int_equal(descriptor_finish(&s->domain, 1767225605), 0);
	assert_int_equal(store_put_domain(s, &s->domain, why), 0);
	unmounted(s, true);
	s = mounted(&ro);
	assert_int_equal(s->domain.rotated, 1767225605);
	assert_int_equal(s->domain.slot[0].seq, 0);
	unmounted(s, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(lines),
		TEST(full),
		TEST(others_and_lost_copies),
		TEST(failures),
		TEST(taken_back),
		TEST(rewritten),
		TEST(first_rewritten),
	};

	return cmocka_run_group_tests_name("store_domain", tests, backing_main_setup, NULL);
}
