/* keys_report.c — the inventory of keys, for people and as JSON. Both say the same. */
#include "keys.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "io.h"
#include "keyage.h"

/* How many domains a text lists one by one; JSON lists all. */
#define DOMAINS_SHOWN 16u

static void key_name(char *out, size_t size, const struct keytab_row *r)
{
	char hex[2 * sizeof(r->hash) + 1];

	bytes_hex(hex, r->hash, sizeof(r->hash));
	if (r->name && 4 * strlen(r->name) < size)
		cmd_escape(out, r->name);
	else
		(void)snprintf(out, size, "unknown key (hash %s)", hex);
}

static void material_text(char out[65], const uint8_t material[static 32])
{
	if (bytes_zero(material, 32))
		(void)snprintf(out, 65, "-");
	else
		bytes_hex(out, material, 32);
}

static bool slot_of(const struct keys_slot *s, const struct keytab_row *r)
{
	return s->provider == r->provider && bytes_equal(s->hash, r->hash, sizeof(r->hash)) &&
	    bytes_equal(s->material, r->material, sizeof(r->material));
}

static const char *role(const struct keys_slot *s)
{
	if (s->ruling)
		return "ruling slot";
	return s->stale ? "older copy of the descriptor" : "other slot: a rotation is under way";
}

/* ---- text */

static void print_seals(const struct keys *k, const char *what, const struct keytab_seals *s)
{
	char oldest[21], newest[21];

	if (!s->n)
		return;
	io_utc(oldest, s->oldest);
	io_utc(newest, s->newest);
	(void)printf("    %s  %" PRIu64 ", oldest %s (%" PRIu32 " days), newest %s (%" PRIu32 " days)\n", what, s->n,
	    oldest, keyage_days(s->oldest, k->now), newest, keyage_days(s->newest, k->now));
}

static void print_row(const struct keys *k, const struct keytab_row *r)
{
	char material[65], id[33], sealed[21];
	uint64_t all = r->domains + r->rotating;
	unsigned shown = 0;

	material_text(material, r->material);
	(void)printf("  material  %s\n", material);
	print_seals(k, "files in use     ", &r->file[KEYTAB_RULING]);
	print_seals(k, "superseded seals ", &r->file[KEYTAB_SUPERSEDED]);
	print_seals(k, "files put aside  ", &r->file[KEYTAB_ASIDE]);
	for (size_t i = 0; i < k->nslot && shown < DOMAINS_SHOWN && shown < all; i++) {
		const struct keys_slot *s = &k->slot[i];

		if (!slot_of(s, r))
			continue;
		shown++;
		bytes_hex(id, k->domain[s->domain].id, CONTEXT_ID);
		io_utc(sealed, s->sealed);
		(void)printf("    key domain %-6u %s, %s, sealed %s\n", (unsigned)k->domain[s->domain].index, id,
		    role(s), sealed);
	}
	if (shown < all)
		(void)printf("    and %" PRIu64 " more slots of key domains\n", all - shown);
}

/* The rows of one key: their number. */
static size_t rows_of_key(const struct keytab *t, size_t from, bool *needed)
{
	size_t n = 0;

	*needed = false;
	for (; from + n < t->n && keytab_same(&t->row[from], &t->row[from + n]); n++)
		*needed = *needed || keytab_row_needed(&t->row[from + n]);
	return n;
}

static void print_keys(const struct keys *k)
{
	size_t n;
	bool needed;

	for (size_t at = 0; at < k->tab.n; at += n) {
		const char *provider = kms_provider_to_name(k->tab.row[at].provider);
		char name[4 * DESCRIPTOR_KEY_MAX + 1];

		n = rows_of_key(&k->tab, at, &needed);
		key_name(name, sizeof(name), &k->tab.row[at]);
		(void)printf("key       %s\n  provider  %s\n  needed    %s\n", name, provider ? provider : "unknown",
		    needed ? "yes" : "no");
		for (size_t i = 0; i < n; i++)
			print_row(k, &k->tab.row[at + i]);
	}
	if (k->tab.others.n || k->tab.others_domains)
		(void)printf("others    %" PRIu64 " files and %" PRIu64
		             " slots of key domains under keys beyond the first %u\n",
		    k->tab.others.n, k->tab.others_domains, KEYTAB_ROWS);
}

static void print_domains(const struct keys *k)
{
	char id[33], since[21];

	for (size_t i = 0; i < k->ndomain && i < DOMAINS_SHOWN; i++) {
		const struct keys_domain *d = &k->domain[i];

		bytes_hex(id, d->id, CONTEXT_ID);
		io_utc(since, d->since);
		if (d->lost)
			(void)printf("domain    %u %s: its descriptor is damaged or missing\n", (unsigned)d->index, id);
		else
			(void)printf("domain    %u %s: sealed under the same key material for %" PRIu32
			             " days, since %s\n",
			    (unsigned)d->index, id, keyage_days(d->since, k->now), since);
	}
	if (k->ndomain > DOMAINS_SHOWN)
		(void)printf("domain    and %zu more\n", k->ndomain - DOMAINS_SHOWN);
}

void keys_print(const struct keys *k)
{
	char id[33];

	bytes_hex(id, k->store->desc.store, CONTEXT_ID);
	(void)printf("store     %s%s\n", id, k->live ? ", in use" : "");
	print_keys(k);
	print_domains(k);
	if (k->scanned)
		(void)printf("files     %" PRIu64 ": %" PRIu64 " sealed by KMS keys, %" PRIu64
		             " by their domain's key, "
		             "%" PRIu64 " unborn, %" PRIu64 " damaged, %" PRIu64 " unreadable\n",
		    k->files, k->by_kms, k->by_domain, k->unborn, k->damaged, k->unreadable);
	if (k->quarantined)
		(void)printf("aside     %" PRIu64 " files in .byokfs/quarantine are sealed too\n", k->quarantined);
	if (k->changed)
		(void)puts("note      the descriptors changed meanwhile: ask again for what holds now");
}

/* ---- JSON */

static json_t *seals_json(const struct keytab_seals *s, int64_t now)
{
	char oldest[21], newest[21];

	if (!s->n)
		return json_pack("{s:i}", "count", 0);
	io_utc(oldest, s->oldest);
	io_utc(newest, s->newest);
	return json_pack("{s:I, s:s, s:I, s:s, s:I}", "count", (json_int_t)s->n, "oldest", oldest, "oldest_days",
	    (json_int_t)keyage_days(s->oldest, now), "newest", newest, "newest_days",
	    (json_int_t)keyage_days(s->newest, now));
}

static json_t *slots_json(const struct keys *k, const struct keytab_row *r)
{
	json_t *list = json_array();
	char id[33], sealed[21];

	for (size_t i = 0; i < k->nslot && (r->domains || r->rotating); i++) {
		const struct keys_slot *s = &k->slot[i];

		if (!slot_of(s, r))
			continue;
		bytes_hex(id, k->domain[s->domain].id, CONTEXT_ID);
		io_utc(sealed, s->sealed);
		(void)json_array_append_new(list,
		    json_pack("{s:i, s:s, s:b, s:b, s:s}", "index", (int)k->domain[s->domain].index, "id", id, "ruling",
		        s->ruling, "stale_copy", s->stale, "sealed", sealed));
	}
	return list;
}

static json_t *row_json(const struct keys *k, const struct keytab_row *r)
{
	char material[65];
	char *example CLEANUP_FREE = r->example ? malloc(4 * strlen(r->example) + 1) : NULL;

	material_text(material, r->material);
	if (example)
		cmd_escape(example, r->example);
	return json_pack("{s:s, s:o, s:o, s:o, s:o, s:s*}", "material", material, "files",
	    seals_json(&r->file[KEYTAB_RULING], k->now), "superseded", seals_json(&r->file[KEYTAB_SUPERSEDED], k->now),
	    "aside", seals_json(&r->file[KEYTAB_ASIDE], k->now), "domains", slots_json(k, r), "example", example);
}

static json_t *key_json(const struct keys *k, size_t at, size_t n, bool needed)
{
	const struct keytab_row *r = &k->tab.row[at];
	const char *provider = kms_provider_to_name(r->provider);
	char name[4 * DESCRIPTOR_KEY_MAX + 1], hash[2 * sizeof(r->hash) + 1];
	json_t *list = json_array();

	key_name(name, sizeof(name), r);
	bytes_hex(hash, r->hash, sizeof(r->hash));
	for (size_t i = 0; i < n; i++)
		(void)json_array_append_new(list, row_json(k, r + i));
	return json_pack("{s:o, s:s, s:s, s:b, s:o}", "key", r->name ? json_string(name) : json_null(), "hash", hash,
	    "provider", provider ? provider : "unknown", "needed", needed, "materials", list);
}

static json_t *keys_list(const struct keys *k)
{
	json_t *list = json_array();
	size_t n;
	bool needed;

	for (size_t at = 0; at < k->tab.n; at += n) {
		n = rows_of_key(&k->tab, at, &needed);
		(void)json_array_append_new(list, key_json(k, at, n, needed));
	}
	return list;
}

static json_t *domains_list(const struct keys *k)
{
	json_t *list = json_array();
	char id[33], since[21];

	for (size_t i = 0; i < k->ndomain; i++) {
		const struct keys_domain *d = &k->domain[i];
		json_t *o;

		bytes_hex(id, d->id, CONTEXT_ID);
		io_utc(since, d->since);
		o = json_pack("{s:i, s:s, s:b}", "index", (int)d->index, "id", id, "readable", !d->lost);
		if (!d->lost)
			(void)json_object_update_new(o,
			    json_pack("{s:s, s:I, s:s}", "seal", cmd_seal_name(d->seal), "key_age_days",
			        (json_int_t)keyage_days(d->since, k->now), "since", since));
		(void)json_array_append_new(list, o);
	}
	return list;
}

static json_t *files_json(const struct keys *k)
{
	if (!k->scanned)
		return NULL;
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "total", (json_int_t)k->files, "sealed_by_kms",
	    (json_int_t)k->by_kms, "sealed_by_domain", (json_int_t)k->by_domain, "unborn", (json_int_t)k->unborn,
	    "damaged", (json_int_t)k->damaged, "unreadable", (json_int_t)k->unreadable, "other_filesystems",
	    (json_int_t)k->foreign, "quarantined", (json_int_t)k->quarantined);
}

json_t *keys_json(const struct keys *k)
{
	char *path CLEANUP_FREE = malloc(4 * strlen(k->store->path) + 1);
	char id[33];

	if (!path)
		return NULL;
	cmd_escape(path, k->store->path);
	bytes_hex(id, k->store->desc.store, CONTEXT_ID);
	return json_pack("{s:s, s:s, s:b, s:b, s:b, s:o, s:o, s:o*, s:I, s:i, s:b}", "cipherdir", path, "store", id,
	    "in_use", k->live, "complete", keys_complete(k), "changed", k->changed, "keys", keys_list(k), "domains",
	    domains_list(k), "files", files_json(k), "others",
	    (json_int_t)k->tab.others.n + (json_int_t)k->tab.others_domains,
	    "damaged_copies", (int)k->bad_copies, "authenticated", 0);
}
