/* rotate_key.c — one sealed secret from one key to another. Hides the two ways: ReEncrypt, which happens within the
 * KMS, and --through-host, where the secret is in this host's memory for a moment. */
#include "rotate.h"

#include <errno.h>

#include "secret.h"

struct rotate_worker {
	struct context before, after;
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
	uint8_t *secret; /* --through-host, else NULL */
	struct kms *kms;
	const struct reseal *what;
};

int rotate_worker_open(struct rotate_worker **out, const struct rotation *r)
{
	struct rotate_worker *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->kms = r->kms;
	if (r->through_host)
		w->secret = secret_alloc(KDF_SECRET);
	if (r->through_host && !w->secret) {
		free(w);
		return -ENOMEM;
	}
	*out = w;
	return 0;
}

void rotate_worker_close(struct rotate_worker *w)
{
	if (!w)
		return;
	secret_free(w->secret);
	free(w);
}

static enum kms_status reencrypt(void *arg, struct kms_err *err)
{
	struct rotate_worker *w = arg;
	const struct reseal *x = w->what;
	enum kms_status s = kms_reencrypt(w->kms, x->from->key, &w->before, x->blob, x->len, kms_key(w->kms), &w->after,
	    kms_deadline(w->kms), &w->blob, &w->used, err);

	w->err = *err;
	return s;
}

static enum kms_status decrypt(void *arg, struct kms_err *err)
{
	struct rotate_worker *w = arg;
	const struct reseal *x = w->what;
	enum kms_status s = kms_decrypt(
	    x->from->kms, &w->before, x->blob, x->len, kms_deadline(x->from->kms), w->secret, &w->used, err);

	w->err = *err;
	return s;
}

static enum kms_status encrypt(void *arg, struct kms_err *err)
{
	struct rotate_worker *w = arg;

	return kms_encrypt(w->kms, &w->after, w->secret, kms_deadline(w->kms), &w->blob, &w->used, err);
}

enum verdict rotate_reseal(struct rotation *r, struct rotate_worker *w, const struct reseal *x,
    const struct kms_blob **blob, const struct kms_used **used, const struct kms_err **err)
{
	enum verdict v;

	w->what = x;
	context_build(&w->before, x->use, x->ids, x->file, x->before);
	context_build(&w->after, x->use, x->ids, x->file, x->after);
	if (r->through_host) {
		v = gate_call(r->gate, decrypt, w);
		if (v == VERDICT_OK)
			v = gate_call(r->gate, encrypt, w);
		explicit_bzero(w->secret, KDF_SECRET);
	} else {
		v = gate_call(r->gate, reencrypt, w);
	}
	*blob = &w->blob;
	*used = &w->used;
	*err = &w->err;
	return v;
}
