/* kms_batch ADDRESS KEY TOKEN-FILE N: seals N secrets under contexts of their own, spoils every seventh blob, opens all
 * in batches, and says what came of it. For tests against byokfs-devkms. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "io.h"
#include "kms.h"
#include "secret.h"

struct one {
	struct context ctx;
	struct kms_blob blob;
	uint8_t secret[32], again[32];
};

static int seal(struct kms *kms, struct one *o, unsigned i)
{
	const struct context_ids ids = { .suite = 1 };
	struct context_extra extra = { .n = 0 };
	struct kms_used used;
	struct kms_err err;
	uint8_t file[CONTEXT_ID] = { (uint8_t)i, (uint8_t)(i >> 8) };
	char value[201];

	memset(value, 'x', 200);
	value[200] = '\0';
	if (context_add_extra(&extra, "tenant", value))
		return 1;
	context_build(&o->ctx, CONTEXT_FILE, &ids, file, &extra);
	if (kms_generate(kms, &o->ctx, kms_deadline(kms), o->secret, &o->blob, &used, &err) != KMS_OK) {
		fprintf(stderr, "%s: %s\n", err.code, err.message);
		return 1;
	}
	if (i % 7 == 6)
		o->blob.bytes[30] = o->blob.bytes[30] == 'A' ? 'B' : 'A';
	return 0;
}

static int open_all(struct kms *kms, struct one *all, unsigned n)
{
	struct kms_item *items = calloc(n, sizeof(*items));
	unsigned opened = 0, bad = 0;

	if (!items)
		return 1;
	for (unsigned i = 0; i < n; i++)
		items[i] = (struct kms_item){ .context = &all[i].ctx,
			.blob = all[i].blob.bytes,
			.len = all[i].blob.len,
			.secret = all[i].again };
	kms_decrypt_batch(kms, items, n, kms_deadline(kms));
	for (unsigned i = 0; i < n; i++) {
		opened += items[i].err.status == KMS_OK && bytes_equal(all[i].secret, all[i].again, 32);
		bad += items[i].err.status == KMS_BAD_BLOB && i % 7 == 6 && bytes_zero(all[i].again, 32);
	}
	printf("opened %u bad %u of %u, %zu at a time\n", opened, bad, n, kms_batch_max(kms));
	free(items);
	return 0;
}

int main(int argc, char **argv)
{
	struct kms_params p = { .provider = "vault", .proxy = "" };
	unsigned n = argc == 5 ? (unsigned)strtoul(argv[4], NULL, 10) : 0;
	struct one *all = n ? calloc(n, sizeof(*all)) : NULL;
	struct kms *kms = NULL;
	struct kms_err err;
	int code = 0;

	if (!all || secret_init(true))
		return 2;
	p.vault.address = argv[1];
	p.key = argv[2];
	p.vault.token_file = argv[3];
	if (kms_open(&kms, &p, true, &err)) {
		fprintf(stderr, "%s\n", err.message);
		return 1;
	}
	for (unsigned i = 0; i < n && !code; i++)
		code = seal(kms, &all[i], i);
	if (!code)
		code = open_all(kms, all, n);
	kms_close(kms);
	free(all);
	return code;
}
