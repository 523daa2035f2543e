/* rotate_begin.c — descriptors of domains: the new slot comes in first and the old one goes last. Hides whether a
 * daemon writes them, which proves the new slot before, or this program. */
#include "rotate.h"

#include <errno.h>
#include <stdio.h>

#include "bytes.h"
#include "io.h"

/* ---- sealing */

struct sealing {
	struct rotation *r;
	struct rotate_worker *w;
	struct rotate_domain *d;
	const struct descriptor_slot *old;
};

static int seal_one(const struct sealing *s, enum context_use use, const uint8_t *blob, size_t len, uint8_t *out,
    uint16_t *out_len, uint8_t material[static 32])
{
	const struct reseal x = { .from = rotate_source_named(s->r, s->old->key),
		.use = use,
		.ids = &s->d->ids,
		.before = descriptor_generation(s->d->desc, s->old->context),
		.after = descriptor_generation(s->d->desc, s->d->fresh->context),
		.blob = blob,
		.len = len };
	const struct kms_blob *sealed;
	const struct kms_used *used;
	const struct kms_err *err;
	enum verdict v = rotate_reseal(s->r, s->w, &x, &sealed, &used, &err);
	char text[800];

	if (v == VERDICT_FILE) {
		kms_err_text(text, sizeof(text), err);
		gate_stop(s->r->gate, EXIT_NOT_A_STORE, NULL, "domain %u does not open under '%s': %s",
		    (unsigned)s->d->line->index, s->old->key, text);
	}
	if (v != VERDICT_OK)
		return EXIT_FAILED;
	memcpy(out, sealed->bytes, sealed->len);
	*out_len = (uint16_t)sealed->len;
	memcpy(material, used->material, 32);
	return EXIT_OK;
}

static int seal_slot(const struct sealing *s)
{
	struct descriptor_slot *f = s->d->fresh;
	uint8_t ignored[32];
	int code;

	*f = (struct descriptor_slot){ .seq = 1, .provider = kms_provider_number(s->r->kms), .sealed = io_unix_time() };
	(void)snprintf(f->key, sizeof(f->key), "%s", kms_key(s->r->kms));
	if (descriptor_add_generation(s->d->desc, &s->r->config.extra, &f->context) < 0) {
		cmd_error("no room for one more set of context pairs in domain %u", (unsigned)s->d->line->index);
		return EXIT_FAILED;
	}
	code = seal_one(s, CONTEXT_DOMAIN, s->old->blob, s->old->blob_len, f->blob, &f->blob_len, f->material);
	if (code == EXIT_OK)
		code = seal_one(s, CONTEXT_PROBE, s->old->probe, s->old->probe_len, f->probe, &f->probe_len, ignored);
	return code;
}

static bool as_before(const struct descriptor_slot *old, const struct descriptor_slot *fresh)
{
	return bytes_equal(old->material, fresh->material, sizeof(old->material)) && old->context == fresh->context;
}

static int prepare_domain(struct rotation *r, struct rotate_worker *w, struct rotate_domain *d)
{
	struct sealing s = { .r = r, .w = w, .d = d, .old = descriptor_ruling_slot(d->desc) };
	int code;

	d->fresh = calloc(1, sizeof(*d->fresh));
	if (!d->fresh)
		return EXIT_FAILED;
	code = seal_slot(&s);
	if (code != EXIT_OK || !d->anew)
		return code;
	if (bytes_zero(d->fresh->material, sizeof(d->fresh->material))) {
		cmd_error("--same-key: the key service does not tell which material of '%s' it used", kms_key(r->kms));
		return EXIT_CONFIG;
	}
	if (!as_before(s.old, d->fresh)) { /* one that goes on may find still newer material: that is where it goes */
		d->target = NULL;
		return EXIT_OK;
	}
	if (d->state == ROTATE_RESUME)
		free(steal_ptr(&d->fresh));
	else
		d->state = ROTATE_NOTHING;
	return EXIT_OK;
}

int rotate_prepare(struct rotation *r)
{
	struct rotate_worker *w;
	size_t todo = 0;
	int code = EXIT_OK;

	if (rotate_worker_open(&w, r) < 0)
		return EXIT_FAILED;
	for (size_t i = 0; i < r->n && code == EXIT_OK; i++) {
		struct rotate_domain *d = &r->domain[i];

		if (d->state == ROTATE_FRESH || d->state == ROTATE_BACK || (d->state == ROTATE_RESUME && d->anew))
			code = prepare_domain(r, w, d);
		if (d->state == ROTATE_NOTHING)
			d->target = descriptor_ruling_slot(d->desc);
		todo += d->state != ROTATE_NOTHING || r->from;
	}
	rotate_worker_close(w);
	if (code != EXIT_OK || todo)
		return code;
	cmd_error("everything is under the newest material of '%s' already", kms_key(r->kms));
	return EXIT_ALREADY;
}

/* ---- writing */

static int put(struct rotation *r, struct rotate_domain *d)
{
	char why[STORE_WHY];
	int ret = descriptor_put_slot(d->desc, d->fresh);

	if (ret < 0)
		(void)snprintf(why, sizeof(why), "cannot put a new slot into the descriptor of domain %u: %s",
		    (unsigned)d->line->index, strerror(-ret));
	else
		ret = store_put_domain(r->store, d->desc, why);
	if (ret == 0)
		return EXIT_OK;
	cmd_error("%s", why);
	return EXIT_FAILED;
}

/* What a daemon wrote. */
static int read_again(struct rotation *r, struct rotate_domain *d)
{
	struct descriptor_domain *desc = calloc(1, sizeof(*desc));
	int ret = desc ? store_read_domain(r->store, d->line, 0, desc) : -ENOMEM;

	if (ret < 0) {
		free(desc);
		cmd_error(
		    "cannot read the descriptor of domain %u again: %s", (unsigned)d->line->index, strerror(-ret));
		return EXIT_FAILED;
	}
	descriptor_domain_free(d->desc);
	free(d->desc);
	d->desc = desc;
	if (kms_same_key(r->kms, descriptor_ruling_slot(desc)->key, kms_key(r->kms)))
		return EXIT_OK;
	cmd_error("the descriptor of domain %u does not name '%s' now: was it changed by somebody else?",
	    (unsigned)d->line->index, kms_key(r->kms));
	return EXIT_FAILED;
}

static int begin(struct rotation *r, struct rotate_domain *d)
{
	const struct descriptor_slot *ruling = descriptor_ruling_slot(d->desc);
	int code = EXIT_OK;

	if (d->state == ROTATE_NOTHING)
		return EXIT_OK;
	if (r->live) { /* of one that goes on too: the daemon may not have the new key yet */
		code = live_begin(r, d, d->fresh ? d->fresh : ruling, d->fresh && d->fresh->context != ruling->context);
		if (code == EXIT_OK)
			code = read_again(r, d);
	} else if (d->fresh) {
		code = put(r, d);
	}
	d->target = descriptor_ruling_slot(d->desc);
	free(steal_ptr(&d->fresh));
	return code;
}

int rotate_begin(struct rotation *r)
{
	int code = EXIT_OK;

	for (size_t i = 0; i < r->n && code == EXIT_OK && !gate_stopped(r->gate); i++)
		code = begin(r, &r->domain[i]);
	return code;
}

static int finish(struct rotation *r, struct rotate_domain *d)
{
	char why[STORE_WHY];
	int ret;

	if (d->state == ROTATE_NOTHING)
		return EXIT_OK;
	if (r->live)
		return live_finish(r, d);
	ret = descriptor_finish(d->desc, io_unix_time());
	if (ret == 0)
		ret = store_put_domain(r->store, d->desc, why);
	else
		(void)snprintf(why, sizeof(why), "domain %u is not under way", (unsigned)d->line->index);
	if (ret == 0)
		return EXIT_OK;
	cmd_error("%s", why);
	return EXIT_FAILED;
}

/* The store's own domain last: which others belong to the job is told by its keys. */
int rotate_finish(struct rotation *r)
{
	struct rotate_domain *first = NULL;
	int code = EXIT_OK;

	for (size_t i = 0; i < r->n && code == EXIT_OK; i++) {
		if (r->domain[i].line->index == 0)
			first = &r->domain[i];
		else
			code = finish(r, &r->domain[i]);
	}
	return code == EXIT_OK && first ? finish(r, first) : code;
}
