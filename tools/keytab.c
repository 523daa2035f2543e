/* keytab.c — see keytab.h. Hides the index over the rows. */
#include "keytab.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "kms.h"

#define INDEX (4u * KEYTAB_ROWS) /* a power of two */

_Static_assert(KEYTAB_ROWS < UINT16_MAX, "the index has 16 bits");

int keytab_init(struct keytab *t)
{
	memset(t, 0, sizeof(*t));
	t->row = calloc(KEYTAB_ROWS, sizeof(*t->row));
	t->index = calloc(INDEX, sizeof(*t->index));
	return t->row && t->index ? 0 : -ENOMEM;
}

void keytab_free(struct keytab *t)
{
	for (size_t i = 0; i < t->n; i++) {
		free(t->row[i].name);
		free(t->row[i].example);
	}
	free(t->row);
	free(t->index);
	memset(t, 0, sizeof(*t));
}

/* Its row, made when there is none; NULL when the table is full. */
static struct keytab_row *row_of(
    struct keytab *t, uint8_t provider, const uint8_t hash[static 8], const uint8_t material[static 32])
{
	size_t at = (le32_get(hash) ^ le32_get(material) ^ provider) & (INDEX - 1);
	struct keytab_row *r;

	for (; t->index[at]; at = (at + 1) & (INDEX - 1)) {
		r = &t->row[t->index[at] - 1u];
		if (r->provider == provider && bytes_equal(r->hash, hash, 8) && bytes_equal(r->material, material, 32))
			return r;
	}
	if (t->n == KEYTAB_ROWS)
		return NULL;
	r = &t->row[t->n++];
	t->index[at] = (uint16_t)t->n;
	r->provider = provider;
	memcpy(r->hash, hash, 8);
	memcpy(r->material, material, 32);
	return r;
}

static void count(struct keytab_seals *s, int64_t when)
{
	if (!s->n || when < s->oldest)
		s->oldest = when;
	if (!s->n || when > s->newest)
		s->newest = when;
	s->n++;
}

char *keytab_path(const char *dir, const char *name)
{
	char *path;

	if (strcmp(dir, ".") == 0)
		return strdup(name);
	if (!*name)
		return strdup(dir);
	return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

int keytab_file(
    struct keytab *t, const struct header_slot *slot, enum keytab_kind kind, const char *dir, const char *name)
{
	struct keytab_row *r = row_of(t, slot->provider, slot->key_hash, slot->material);

	if (r)
		count(&r->file[kind], slot->sealed_at);
	else if (kind != KEYTAB_SUPERSEDED)
		count(&t->others, slot->sealed_at);
	if (!r || kind == KEYTAB_SUPERSEDED || r->example)
		return 0;
	r->example = keytab_path(dir, name);
	return r->example ? 0 : -ENOMEM;
}

int keytab_domain(struct keytab *t, const struct descriptor_slot *slot, bool ruling)
{
	struct keytab_row *r;
	uint8_t hash[8];

	kms_key_hash(hash, slot->key);
	r = row_of(t, slot->provider, hash, slot->material);
	if (!r) {
		t->others_domains++;
		return 0;
	}
	*(ruling ? &r->domains : &r->rotating) += 1;
	if (!r->name)
		r->name = strdup(slot->key);
	return r->name ? 0 : -ENOMEM;
}

int keytab_name(struct keytab *t, const char *name)
{
	uint8_t hash[8];

	kms_key_hash(hash, name);
	for (size_t i = 0; i < t->n; i++) {
		if (t->row[i].name || !bytes_equal(t->row[i].hash, hash, sizeof(hash)))
			continue;
		t->row[i].name = strdup(name);
		if (!t->row[i].name)
			return -ENOMEM;
	}
	return 0;
}

/* Public bytes, compared for an order only. */
static int bytes_order(const uint8_t *a, const uint8_t *b, size_t n)
{
	for (; n; n--, a++, b++)
		if (*a != *b)
			return *a < *b ? -1 : 1;
	return 0;
}

static int row_order(const void *x, const void *y)
{
	const struct keytab_row *a = x, *b = y;
	int order = (!a->name) - (!b->name);

	if (!order && a->name)
		order = strcmp(a->name, b->name);
	if (!order)
		order = (int)a->provider - (int)b->provider;
	if (!order)
		order = bytes_order(a->hash, b->hash, sizeof(a->hash));
	return order ? order : bytes_order(a->material, b->material, sizeof(a->material));
}

int keytab_sort(struct keytab *t)
{
	for (size_t i = 0; i < t->n; i++) {
		int ret = t->row[i].name ? keytab_name(t, t->row[i].name) : 0;

		if (ret < 0)
			return ret;
	}
	qsort(t->row, t->n, sizeof(*t->row), row_order);
	memset(t->index, 0, INDEX * sizeof(*t->index));
	return 0;
}

bool keytab_same(const struct keytab_row *a, const struct keytab_row *b)
{
	return a->provider == b->provider && bytes_equal(a->hash, b->hash, sizeof(a->hash));
}

uint64_t keytab_row_files(const struct keytab_row *r)
{
	return r->file[KEYTAB_RULING].n + r->file[KEYTAB_ASIDE].n;
}

bool keytab_row_needed(const struct keytab_row *r)
{
	return keytab_row_files(r) || r->domains || r->rotating;
}

/* A Region's copy of the key that nobody named is a hash like any other. No hash at all is any key's. */
static bool may_be(const struct keytab_row *r, const char *name)
{
	if (bytes_zero(r->hash, sizeof(r->hash)))
		return true;
	return !r->name && r->provider == kms_provider_from_name("aws") && kms_name_is_multi(name);
}

void keytab_need(const struct keytab *t, const char *name, struct keytab_need *out)
{
	uint8_t hash[8];

	*out = (struct keytab_need){ .maybe = t->others.n + t->others_domains };
	kms_key_hash(hash, name);
	for (size_t i = 0; i < t->n; i++) {
		const struct keytab_row *r = &t->row[i];

		if (bytes_equal(r->hash, hash, sizeof(hash)) || (r->name && kms_same_name(r->name, name))) {
			out->files += keytab_row_files(r);
			out->domains += r->domains + r->rotating;
			out->superseded += r->file[KEYTAB_SUPERSEDED].n;
			out->example = out->example ? out->example : r->example;
		} else if (may_be(r, name)) {
			out->maybe += keytab_row_files(r);
		}
	}
}
