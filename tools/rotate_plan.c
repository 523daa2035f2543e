/* rotate_plan.c — which domains, from which key. Hides the rule that a key is asked only if the administrator named it:
 * in the configuration, on the command line, or by choosing a nested domain whose descriptor names it. A name that
 * stands in the store alone could be a key of whoever wrote it there. */
#include "rotate.h"

#include <errno.h>
#include <stdio.h>

#include "bytes.h"
#include "params.h"

static bool same(const void *kms, const char *a, const char *b)
{
	return kms_same_key(kms, a, b);
}

/* ---- keys */

static const char *configured_key(const struct config *c)
{
	struct kms_params p;

	params_kms(&p, c, NULL);
	return p.key;
}

static const char *previous_key(const struct config *c)
{
	struct kms_params p;

	return params_previous(&p, c, NULL, NULL) ? p.key : NULL;
}

/* The full name, as descriptors have it: an alias is what it stands for now, if the KMS tells. malloc'ed; NULL for
 * none.
 */
static char *resolve(const struct rotation *r, const char *key)
{
	struct kms_params params;
	struct kms *kms = NULL;
	struct kms_err err;
	char *name;

	if (!key)
		return NULL;
	params_kms(&params, &r->config, NULL);
	params.key = key;
	params.region = strncmp(key, "arn:", 4) == 0 ? NULL : params.region;
	params.replicas = NULL;
	params.failover = false;
	params.observe = gate_observe;
	params.observer = r->gate;
	params.share = r->kms;
	if (kms_open(&kms, &params, true, &err))
		return strdup(key);
	name = strdup(kms_key(kms));
	kms_close(kms);
	return name;
}

static bool named(const struct rotation *r, const char *key)
{
	const char *const names[] = { r->configured, r->previous, r->leaving, kms_key(r->kms) };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i] && same(r->kms, names[i], key))
			return true;
	return false;
}

const struct rotate_source *rotate_source_of(const struct rotation *r, const uint8_t hash[static 8])
{
	for (size_t i = 0; i < r->nsource; i++)
		if (bytes_equal(r->source[i].hash, hash, 8))
			return &r->source[i];
	return NULL;
}

const struct rotate_source *rotate_source_named(const struct rotation *r, const char *key)
{
	for (size_t i = 0; i < r->nsource; i++)
		if (strcmp(r->source[i].key, key) == 0)
			return &r->source[i];
	return NULL;
}

/* With --through-host the old key is asked as itself: another Region's endpoint, the same credentials. */
static int open_source(struct rotation *r, struct rotate_source *s)
{
	struct kms_params params;
	struct kms_err err;

	if (cmd_kms_params(&params, &r->config, &err) != EXIT_OK)
		return cmd_kms_failed("cannot use the key service", &err);
	params.key = s->key;
	params.region = NULL;
	params.replicas = NULL;
	params.failover = false;
	params.max_connections = r->jobs;
	params.observe = gate_observe;
	params.observer = r->gate;
	params.share = r->kms;
	return kms_open(&s->kms, &params, false, &err) == 0 ? EXIT_OK : cmd_kms_failed("cannot use the old key", &err);
}

static int add_source(struct rotation *r, const char *key)
{
	struct rotate_source *more, *s;

	if (!key || !*key || rotate_source_named(r, key))
		return EXIT_OK;
	more = realloc(r->source, (r->nsource + 1) * sizeof(*more));
	if (!more) {
		cmd_error("out of memory");
		return EXIT_FAILED;
	}
	r->source = more;
	s = &r->source[r->nsource];
	*s = (struct rotate_source){ .key = strdup(key) };
	if (!s->key)
		return EXIT_FAILED;
	r->nsource++;
	kms_key_hash(s->hash, key);
	return r->through_host ? open_source(r, s) : EXIT_OK;
}

/* ---- domains */

static int order(const void *a, const void *b)
{
	const struct rotate_domain *x = a, *y = b;

	return memcmp(x->ids.domain, y->ids.domain, CONTEXT_ID); /* public ids */
}

struct rotate_domain *rotate_domain_of(const struct rotation *r, const uint8_t id[static CONTEXT_ID])
{
	struct rotate_domain key;

	memcpy(key.ids.domain, id, CONTEXT_ID);
	return r->n ? bsearch(&key, r->domain, r->n, sizeof(*r->domain), order) : NULL;
}

static bool chosen_by_name(const struct rotation *r, const struct descriptor_domain_line *line)
{
	char id[2 * CONTEXT_ID + 1], index[8];

	bytes_hex(id, line->domain, CONTEXT_ID);
	(void)snprintf(index, sizeof(index), "%u", (unsigned)line->index);
	return strcmp(r->chosen, "all") == 0 || strcmp(r->chosen, id) == 0 || strcmp(r->chosen, index) == 0;
}

/* Without --domain: domain 0, and those that are under its key or on the way with it. */
static bool chosen(const struct rotation *r, const struct descriptor_domain *d)
{
	const struct descriptor_domain *first = &r->store->domain;

	if (r->chosen || d->index == 0)
		return true;
	for (int i = 0; i < 2; i++) {
		const char *key = d->slot[i].key;

		if (!d->slot[i].seq)
			continue;
		if (r->configured && same(r->kms, key, r->configured) && !same(r->kms, key, kms_key(r->kms)))
			return true;
		for (int k = 0; k < 2; k++)
			if (first->slot[k].seq && same(r->kms, key, first->slot[k].key))
				return true;
	}
	return false;
}

size_t rotate_region(const char *arn, const char **region)
{
	*region = "";
	for (int i = 0; i < 3 && arn; i++) {
		arn = strchr(arn, ':');
		arn = arn ? arn + 1 : NULL;
	}
	if (!arn)
		return 0;
	*region = arn;
	return strcspn(arn, ":");
}

static int check_regions(const struct rotation *r, const struct rotate_domain *d)
{
	const char *a, *b;
	size_t n = rotate_region(d->from, &a), m = rotate_region(kms_key(r->kms), &b);

	if (r->through_host || strcmp(kms_provider_name(r->kms), "aws") != 0 || (n == m && strncmp(a, b, n) == 0))
		return EXIT_OK;
	cmd_error("the KMS cannot re-encrypt from one Region to another: '%s' to '%s'", d->from, kms_key(r->kms));
	cmd_hint("--through-host decrypts and encrypts on this host instead: keys are in its memory for a moment");
	return EXIT_CONFIG;
}

static int check_third(const struct rotate_domain *d)
{
	cmd_error("a rotation of domain %u from '%s' to '%s' is under way", (unsigned)d->line->index,
	    descriptor_other_slot(d->desc)->key, descriptor_ruling_slot(d->desc)->key);
	cmd_hint("go on with it, or turn round, by --to and either key");
	return EXIT_ALREADY;
}

static int check_domain(const struct rotation *r, const struct rotate_domain *d)
{
	const struct descriptor_slot *ruling = descriptor_ruling_slot(d->desc);
	const char *provider = kms_provider_to_name(ruling->provider);

	if (ruling->provider != kms_provider_number(r->kms)) {
		cmd_error("domain %u is under a key of provider '%s', not '%s'", (unsigned)d->line->index,
		    provider ? provider : "unknown", kms_provider_name(r->kms));
		return EXIT_CONFIG;
	}
	if (d->state == ROTATE_THIRD)
		return check_third(d);
	if (d->state == ROTATE_FRESH && r->same_key && !same(r->kms, ruling->key, kms_key(r->kms))) {
		cmd_error("--same-key: domain %u is under '%s', not '%s'", (unsigned)d->line->index, ruling->key,
		    kms_key(r->kms));
		return EXIT_USAGE;
	}
	if ((!r->chosen || d->line->index == 0) && !named(r, d->from)) {
		cmd_error("domain %u leaves '%s', which neither the configuration nor --from names",
		    (unsigned)d->line->index, d->from);
		cmd_hint("is it yours? Then name it by --from: a name that stands in the store alone is not asked");
		return EXIT_CONFIG;
	}
	return check_regions(r, d);
}

/* Takes desc over. */
static int add_domain(struct rotation *r, const struct descriptor_domain_line *line, struct descriptor_domain *desc)
{
	struct rotate_domain *d = &r->domain[r->n];
	int code;

	*d = (struct rotate_domain){ .line = line, .ids = r->store->ids, .desc = desc };
	memcpy(d->ids.domain, line->domain, CONTEXT_ID);
	d->state = rotate_state_of(desc, same, r->kms, kms_key(r->kms), r->same_key);
	d->from = strdup(rotate_left_key(desc, d->state));
	r->n++;
	if (!d->from)
		return EXIT_FAILED;
	d->anew = d->state != ROTATE_NOTHING && same(r->kms, d->from, kms_key(r->kms));
	if (d->state == ROTATE_RESUME || d->state == ROTATE_NOTHING)
		d->target = descriptor_ruling_slot(desc);
	code = d->state == ROTATE_NOTHING ? EXIT_OK : check_domain(r, d);
	return code == EXIT_OK ? add_source(r, d->from) : code;
}

static int look_at(struct rotation *r, size_t i)
{
	const struct descriptor_domain_line *line = &r->store->desc.domains[i];
	struct descriptor_domain *desc = NULL;
	int ret;

	if (r->chosen && !chosen_by_name(r, line))
		return EXIT_OK;
	desc = calloc(1, sizeof(*desc));
	ret = desc ? store_read_domain(r->store, line, 0, desc) : -ENOMEM;
	if (ret == 0 && chosen(r, desc))
		return add_domain(r, line, desc);
	if (ret == 0)
		descriptor_domain_free(desc);
	free(desc);
	if (ret == 0)
		return EXIT_OK;
	if (i == 0 || ret == -ENOMEM || (r->chosen && strcmp(r->chosen, "all") != 0)) {
		cmd_error("cannot read the descriptor of domain %u: %s", (unsigned)line->index,
		    ret == -EINVAL || ret == -EBADMSG ? "it is damaged" : strerror(-ret));
		return ret == -ENOMEM ? EXIT_FAILED : EXIT_DAMAGE;
	}
	(void)fprintf(stderr, "byokfsctl: warning: domain %u is left out: its descriptor cannot be read\n",
	    (unsigned)line->index);
	return EXIT_OK;
}

static int load(struct rotation *r)
{
	int code = EXIT_OK;

	r->domain = calloc(r->store->desc.n, sizeof(*r->domain));
	if (!r->domain)
		return EXIT_FAILED;
	for (size_t i = 0; i < r->store->desc.n && code == EXIT_OK; i++)
		code = look_at(r, i);
	if (code == EXIT_OK && r->n == 0) {
		cmd_error("--domain: the store has no domain '%s'", r->chosen);
		return EXIT_USAGE;
	}
	return code;
}

static void forget(struct rotate_domain *d)
{
	descriptor_domain_free(d->desc);
	free(d->desc);
	free(d->from);
	free(d->fresh);
}

/* What needs nothing is left alone, unless files of another key are looked for. */
static void keep_those_to_do(struct rotation *r)
{
	size_t kept = 0;

	for (size_t i = 0; i < r->n; i++) {
		if (r->domain[i].state == ROTATE_NOTHING && !r->from)
			forget(&r->domain[i]);
		else
			memmove(&r->domain[kept++], &r->domain[i], sizeof(r->domain[i]));
	}
	r->n = kept;
}

int rotate_plan(struct rotation *r)
{
	int code;

	r->configured = resolve(r, configured_key(&r->config));
	r->previous = resolve(r, previous_key(&r->config));
	r->leaving = resolve(r, r->from);
	code = load(r);
	if (code != EXIT_OK)
		return code;
	keep_those_to_do(r);
	if (r->n == 0) {
		cmd_error("everything is under '%s' already", kms_key(r->kms));
		cmd_hint("--same-key seals it again under the newest material of the key");
		return EXIT_ALREADY;
	}
	qsort(r->domain, r->n, sizeof(*r->domain), order);
	code = add_source(r, r->configured);
	if (code == EXIT_OK)
		code = add_source(r, r->leaving);
	if (code == EXIT_OK)
		code = add_source(r, r->previous);
	return code == EXIT_OK ? add_source(r, kms_key(r->kms)) : code;
}

void rotate_plan_free(struct rotation *r)
{
	for (size_t i = 0; i < r->n; i++)
		forget(&r->domain[i]);
	for (size_t i = 0; i < r->nsource; i++) {
		kms_close(r->source[i].kms);
		free(r->source[i].key);
	}
	free(r->domain);
	free(r->source);
	free(r->configured);
	free(r->previous);
	free(r->leaving);
}
