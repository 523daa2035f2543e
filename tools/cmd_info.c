/* cmd_info.c — `byokfsctl info`: what the descriptors say, unauthenticated. */
#include "cmd.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "io.h"

static void time_text(char out[21], int64_t t)
{
	if (t)
		io_utc(out, t);
	else
		(void)snprintf(out, 21, "-");
}

static json_t *slot_json(const struct descriptor_slot *s, const char *name, bool ruling)
{
	char sealed[21], material[65];
	const char *provider = kms_provider_to_name(s->provider);

	time_text(sealed, s->sealed);
	bytes_hex(material, s->material, sizeof(s->material));
	return json_pack("{s:s,s:b,s:I,s:s,s:s,s:s,s:i,s:s,s:i,s:i}", "slot", name, "ruling", ruling, "seq",
	    (json_int_t)s->seq, "provider", provider ? provider : "unknown", "key", s->key, "material", material,
	    "context", (int)s->context, "sealed", sealed, "blob_bytes", (int)s->blob_len, "probe_bytes",
	    (int)s->probe_len);
}

static json_t *slots_json(const struct descriptor_domain *d)
{
	const struct descriptor_slot *ruling = descriptor_ruling_slot(d);
	json_t *list = json_array();

	for (int i = 0; i < 2; i++)
		if (d->slot[i].seq)
			(void)json_array_append_new(list, slot_json(&d->slot[i], i ? "b" : "a", &d->slot[i] == ruling));
	return list;
}

static json_t *contexts_json(const struct descriptor_domain *d)
{
	json_t *all = json_object();

	for (size_t g = 0; g < d->ngen; g++) {
		json_t *pairs = json_object();
		char number[8];

		for (size_t i = 0; i < d->gen[g].extra.n; i++)
			(void)json_object_set_new(
			    pairs, d->gen[g].extra.pair[i].name, json_string(d->gen[g].extra.pair[i].value));
		(void)snprintf(number, sizeof(number), "%u", d->gen[g].number);
		(void)json_object_set_new(all, number, pairs);
	}
	return all;
}

/* One member per nested domain, as far as its descriptor can be read. */
static json_t *nested_json(const struct store *s)
{
	json_t *list = json_array();

	for (size_t i = 1; i < s->desc.n; i++) {
		struct descriptor_domain *d CLEANUP_FREE = calloc(1, sizeof(*d));
		const struct descriptor_domain_line *line = &s->desc.domains[i];
		char id[33], rotated[21];
		json_t *o;

		bytes_hex(id, line->domain, CONTEXT_ID);
		o = json_pack("{s:s,s:i}", "id", id, "index", (int)line->index);
		(void)json_array_append_new(list, o);
		if (!d || store_read_domain(s, line, 0, d))
			continue;
		time_text(rotated, d->rotated);
		(void)json_object_update_new(o,
		    json_pack("{s:s,s:I,s:s,s:o,s:o}", "seal", cmd_seal_name(d->seal), "seq", (json_int_t)d->seq,
		        "rotated", rotated, "contexts", contexts_json(d), "slots", slots_json(d)));
		descriptor_domain_free(d);
	}
	return list;
}

static json_t *info_json(const struct store *s)
{
	char id[33], domain[33], commit[65], created[21], rotated[21];

	bytes_hex(id, s->desc.store, CONTEXT_ID);
	bytes_hex(domain, s->domain.domain, CONTEXT_ID);
	bytes_hex(commit, s->domain.commit, sizeof(s->domain.commit));
	time_text(created, s->desc.created);
	time_text(rotated, s->domain.rotated);
	return json_pack("{s:s,s:i,s:i,s:i,s:s,s:s,s:s,s:I,s:i,s:{s:s,s:i,s:s,s:s,s:I,s:s,s:o,s:o},s:o,s:b}", "store",
	    id, "version", 1, "layout", 1, "suite", (int)s->desc.suite, "names", cmd_names_mode(s->desc.names),
	    "created", created, "by", s->desc.by, "seq", (json_int_t)s->desc.seq, "domains", (int)s->desc.n, "domain",
	    "id", domain, "index", (int)s->domain.index, "seal", cmd_seal_name(s->domain.seal), "commit", commit, "seq",
	    (json_int_t)s->domain.seq, "rotated", rotated, "contexts", contexts_json(&s->domain), "slots",
	    slots_json(&s->domain), "nested", nested_json(s), "authenticated", 0);
}

static void print_slot(const struct descriptor_slot *s, bool ruling)
{
	char sealed[21], material[65];
	const char *provider = kms_provider_to_name(s->provider);

	time_text(sealed, s->sealed);
	bytes_hex(material, s->material, sizeof(s->material));
	(void)printf("key       %s\n  provider  %s%s\n  sealed    %s, context %u, %u bytes\n", s->key,
	    provider ? provider : "unknown", ruling ? "" : " (not the ruling slot: a rotation is in progress)", sealed,
	    s->context, s->blob_len);
	if (!bytes_zero(s->material, sizeof(s->material)))
		(void)printf("  material  %s\n", material);
}

static void print_rotation(const struct descriptor_domain *d)
{
	if (descriptor_other_slot(d))
		(void)printf("rotation  from %s to %s is under way\n", descriptor_other_slot(d)->key,
		    descriptor_ruling_slot(d)->key);
}

static void print_contexts(const struct descriptor_domain *d)
{
	for (size_t g = 0; g < d->ngen; g++) {
		const struct context_extra *e = &d->gen[g].extra;

		(void)printf("context   %u:", d->gen[g].number);
		for (size_t i = 0; i < e->n; i++)
			(void)printf("%s %s:%s", i ? "," : "", e->pair[i].name, e->pair[i].value);
		(void)printf("%s\n", e->n ? "" : " no extra pairs");
	}
}

static void print_info(const struct store *s)
{
	char id[33], domain[33], created[21], rotated[21];

	bytes_hex(id, s->desc.store, CONTEXT_ID);
	bytes_hex(domain, s->domain.domain, CONTEXT_ID);
	time_text(created, s->desc.created);
	time_text(rotated, s->domain.rotated);
	(void)printf("store     %s\nformat    version 1, layout 1\nsuite     %u (%s)\nnames     %s\n", id,
	    s->desc.suite, cmd_suite_name(s->desc.suite), cmd_names_mode(s->desc.names));
	(void)printf("created   %s by %s\ndomain    %s (%zu in all)\nseal      %s\n", created, s->desc.by, domain,
	    s->desc.n, cmd_seal_name(s->domain.seal));
	if (s->domain.rotated)
		(void)printf("rotated   %s\n", rotated);
	for (int i = 0; i < 2; i++)
		if (s->domain.slot[i].seq)
			print_slot(&s->domain.slot[i], &s->domain.slot[i] == descriptor_ruling_slot(&s->domain));
	print_rotation(&s->domain);
	print_contexts(&s->domain);
}

static void print_nested(const struct store *s)
{
	for (size_t i = 1; i < s->desc.n; i++) {
		struct descriptor_domain *d CLEANUP_FREE = calloc(1, sizeof(*d));
		const struct descriptor_domain_line *line = &s->desc.domains[i];
		bool read = d && store_read_domain(s, line, 0, d) == 0;
		char id[33];

		bytes_hex(id, line->domain, CONTEXT_ID);
		(void)printf("\ndomain    %s (index %u)\n", id, (unsigned)line->index);
		if (!read) {
			(void)printf("  its descriptor is damaged or missing\n");
			continue;
		}
		(void)printf("seal      %s\n", cmd_seal_name(d->seal));
		for (int k = 0; k < 2; k++)
			if (d->slot[k].seq)
				print_slot(&d->slot[k], &d->slot[k] == descriptor_ruling_slot(d));
		print_rotation(d);
		print_contexts(d);
		descriptor_domain_free(d);
	}
}

int cmd_info(int argc, char **argv)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	char why[STORE_WHY];
	struct cmd_args args;
	struct store *store;
	int ret, code = cmd_parse(&args, argc, argv, CMD_JSON, NULL, 1, 1);

	if (code >= 0)
		return code;
	store = calloc(1, sizeof(*store));
	ret = store ? store_open(store, args.operand[0], &options, why) : -ENOMEM;
	if (ret < 0) {
		cmd_error("%s", store ? why : "out of memory");
		free(store);
		return cmd_exit_store(ret);
	}
	if (args.json) {
		code = cmd_print_json(info_json(store));
	} else {
		print_info(store);
		print_nested(store);
		code = fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
	}
	store_close(store, true);
	free(store);
	return code;
}
