/* Domain descriptors: an authenticated head, and below the MAC what a rotator without keys may rewrite: context
 * generations and the two slots with the sealed domain secret.                                  */
#include <errno.h>
#include <inttypes.h>

#include "bytes.h"
#include "descriptor.h"
#include "descriptor_text.h"

#define TITLE           "byokfs-domain"
#define GENERATION_NAME 16u /* "context.65535" */

static const char *const seal_words[] = { [SEAL_FILE] = "file", [SEAL_DOMAIN] = "domain", NULL };
/* Index + 1 is the provider's number. */
static const char *const provider_words[] = { "aws", "vault", "keyfile", "pkcs11", NULL };
#define PROVIDERS 4u

static bool is_literal(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
	    (c && strchr("._:/@+-", c));
}

/* Undoes %XX in a value; only what must be escaped may be. */
static bool unescape(const char *in, size_t len, char out[static CONTEXT_EXTRA_BYTES + 1])
{
	size_t n = 0;

	for (size_t i = 0; i < len; n++) {
		uint8_t c = (uint8_t)in[i];

		if (n == CONTEXT_EXTRA_BYTES)
			return false;
		if (c == '%') {
			if (len - i < 3 || bytes_unhex(&c, 1, in + i + 1, 2) != 0 || c == 0 || is_literal((char)c))
				return false;
			i += 3;
		} else if (is_literal((char)c)) {
			i++;
		} else {
			return false;
		}
		out[n] = (char)c;
	}
	out[n] = '\0';
	return true;
}

/* "name:value" with an escaped value. */
static bool read_pair(struct context_extra *extra, const char *text, size_t len)
{
	const char *colon = memchr(text, ':', len);
	char name[sizeof(extra->pair[0].name)], value[CONTEXT_EXTRA_BYTES + 1];
	size_t n = colon ? (size_t)(colon - text) : 0;

	if (n == 0 || n >= sizeof(name) || !unescape(colon + 1, len - n - 1, value))
		return false;
	memcpy(name, text, n);
	name[n] = '\0';
	return context_add_extra(extra, name, value) == 0;
}

static bool read_pairs(struct context_extra *extra, struct descriptor_value v)
{
	extra->n = 0;
	if (v.len == 1 && v.text[0] == '-')
		return true;
	while (v.len > 0) {
		const char *comma = memchr(v.text, ',', v.len);
		size_t n = comma ? (size_t)(comma - v.text) : v.len;

		if (!read_pair(extra, v.text, n) || (comma && n + 1 == v.len))
			return false;
		n += comma ? 1 : 0;
		v.text += n;
		v.len -= n;
	}
	return extra->n > 0;
}

/* The number between "context." and "=", 0 if there is none. */
static uint16_t generation_number(const struct descriptor_reader *r)
{
	const char *from = r->at + strlen("context."), *to = memchr(from, '=', (size_t)(r->end - from));
	uint64_t g = 0;

	if (!to || !descriptor_parse_number(from, (size_t)(to - from), UINT16_MAX, &g))
		return 0;
	return (uint16_t)g;
}

static int read_generation(struct descriptor_reader *r, struct descriptor_domain *d)
{
	uint16_t g = generation_number(r);
	struct descriptor_generation *more;
	char name[GENERATION_NAME];

	if (g == 0 || d->ngen == DESCRIPTOR_GENERATIONS_MAX || (d->ngen > 0 && g <= d->gen[d->ngen - 1].number))
		return -EINVAL;
	more = reallocarray(d->gen, d->ngen + 1, sizeof(*more));
	if (!more)
		return -ENOMEM;
	d->gen = more;
	more += d->ngen++;
	more->number = g;
	(void)snprintf(name, sizeof(name), "context.%u", g);
	return read_pairs(&more->extra, descriptor_line(r, name)) ? 0 : -EINVAL;
}

static void read_generations(struct descriptor_reader *r, struct descriptor_domain *d)
{
	while (descriptor_next_is(r, "context.")) {
		int rc = read_generation(r, d);

		if (rc != 0)
			descriptor_fail(r, rc);
	}
}

static uint16_t read_blob(struct descriptor_reader *r, const char *name, uint8_t out[static DESCRIPTOR_BLOB_MAX])
{
	struct descriptor_value v = descriptor_line(r, name);
	int n = bytes_unb64(B64_STD, out, DESCRIPTOR_BLOB_MAX, v.text, v.len);

	if (n > 0)
		return (uint16_t)n;
	descriptor_fail(r, -EINVAL);
	return 0;
}

/* 64 hex digits, or "-" when the provider names no material. */
static void read_material(struct descriptor_reader *r, const char *name, uint8_t out[static 32])
{
	struct descriptor_value v = descriptor_line(r, name);

	if (v.len == 1 && v.text[0] == '-')
		return;
	if (bytes_unhex(out, 32, v.text, v.len) != 0 || bytes_zero(out, 32))
		descriptor_fail(r, -EINVAL);
}

struct slot_names {
	const char *seq, *provider, *key, *material, *context, *sealed, *blob, *probe;
};

static const struct slot_names slot_names[2] = {
	{ "a.seq", "a.provider", "a.key", "a.material", "a.context", "a.sealed", "a.blob", "a.probe" },
	{ "b.seq", "b.provider", "b.key", "b.material", "b.context", "b.sealed", "b.blob", "b.probe" },
};

static void read_slot(struct descriptor_reader *r, const struct slot_names *names, const struct descriptor_domain *d,
    struct descriptor_slot *s)
{
	s->seq = descriptor_number(r, names->seq, UINT64_MAX);
	s->provider = (uint8_t)(descriptor_word(r, names->provider, provider_words) + 1);
	descriptor_string(r, names->key, s->key, DESCRIPTOR_KEY_MAX);
	read_material(r, names->material, s->material);
	s->context = (uint16_t)descriptor_number(r, names->context, UINT16_MAX);
	s->sealed = descriptor_time(r, names->sealed);
	s->blob_len = read_blob(r, names->blob, s->blob);
	s->probe_len = read_blob(r, names->probe, s->probe);
	if (s->seq == 0 || s->key[0] == '\0' || !descriptor_generation(d, s->context))
		descriptor_fail(r, -EINVAL);
}

static void read_slots(struct descriptor_reader *r, struct descriptor_domain *d)
{
	if (descriptor_next_is(r, "a."))
		read_slot(r, &slot_names[0], d, &d->slot[0]);
	if (descriptor_next_is(r, "b."))
		read_slot(r, &slot_names[1], d, &d->slot[1]);
	if (d->slot[0].seq == d->slot[1].seq) /* none, or nothing says which rules */
		descriptor_fail(r, -EINVAL);
}

/* "-" before the first rotation. */
static int64_t read_rotated(struct descriptor_reader *r)
{
	struct descriptor_value v = descriptor_line(r, "rotated");
	int64_t t = 0;

	if (v.len == 1 && v.text[0] == '-')
		return 0;
	if (!descriptor_parse_time(v.text, v.len, &t) || t == 0)
		descriptor_fail(r, -EINVAL);
	return t;
}

int descriptor_domain_parse(struct descriptor_domain *out, const char *text, size_t len)
{
	struct descriptor_reader r;
	int rc;

	memset(out, 0, sizeof(*out));
	rc = descriptor_begin(&r, TITLE, text, len, DESCRIPTOR_DOMAIN_BYTES);
	if (rc != 0)
		return rc;
	descriptor_hex(&r, "store", out->store, sizeof(out->store));
	descriptor_hex(&r, "domain", out->domain, sizeof(out->domain));
	out->index = (uint16_t)descriptor_number(&r, "index", UINT16_MAX);
	out->seal = (enum descriptor_seal)descriptor_word(&r, "seal", seal_words);
	out->created = descriptor_time(&r, "created");
	descriptor_hex(&r, "commit", out->commit, sizeof(out->commit));
	descriptor_hex(&r, "mac", out->mac, sizeof(out->mac));
	out->seq = descriptor_number(&r, "seq", UINT64_MAX);
	out->rotated = read_rotated(&r);
	read_generations(&r, out);
	read_slots(&r, out);
	rc = descriptor_end(&r);
	if (rc != 0)
		descriptor_domain_free(out);
	return rc;
}

void descriptor_domain_free(struct descriptor_domain *d)
{
	free(d->gen);
	memset(d, 0, sizeof(*d));
}

const struct descriptor_slot *descriptor_ruling_slot(const struct descriptor_domain *d)
{
	const struct descriptor_slot *s = &d->slot[d->slot[1].seq > d->slot[0].seq];

	return s->seq > 0 ? s : NULL;
}

const struct context_extra *descriptor_generation(const struct descriptor_domain *d, uint16_t number)
{
	for (size_t i = 0; i < d->ngen; i++) {
		if (d->gen[i].number == number)
			return &d->gen[i].extra;
	}
	return NULL;
}

/* Everything the MAC covers. */
static void put_head(struct descriptor_writer *w, const struct descriptor_domain *d)
{
	(void)fprintf(w->f, TITLE " 1\n");
	descriptor_put_hex(w, "store", d->store, sizeof(d->store));
	descriptor_put_hex(w, "domain", d->domain, sizeof(d->domain));
	(void)fprintf(w->f, "index=%u\nseal=%s\n", d->index, seal_words[d->seal]);
	descriptor_put_time(w, "created", d->created, false);
	descriptor_put_hex(w, "commit", d->commit, sizeof(d->commit));
}

static void put_generation(struct descriptor_writer *w, const struct descriptor_generation *g)
{
	(void)fprintf(w->f, "context.%u=%s", g->number, g->extra.n == 0 ? "-" : "");
	for (size_t i = 0; i < g->extra.n; i++) {
		const struct context_pair *p = &g->extra.pair[i];

		(void)fprintf(w->f, "%s%s:", i ? "," : "", p->name);
		for (const char *c = p->value; *c; c++)
			(void)fprintf(w->f, is_literal(*c) ? "%c" : "%%%02x", (unsigned char)*c);
	}
	(void)fputc('\n', w->f);
}

static void put_blob(struct descriptor_writer *w, const char *name, const uint8_t *blob, size_t n)
{
	char text[(DESCRIPTOR_BLOB_MAX + 2) / 3 * 4 + 1] = "";

	if (n == 0 || n > DESCRIPTOR_BLOB_MAX)
		w->err = -EINVAL;
	else
		(void)bytes_b64(B64_STD, text, blob, n);
	(void)fprintf(w->f, "%s=%s\n", name, text);
}

static void put_slot(struct descriptor_writer *w, const struct slot_names *names, const struct descriptor_domain *d,
    const struct descriptor_slot *s)
{
	if (s->provider < 1 || s->provider > PROVIDERS || s->key[0] == '\0' || !descriptor_generation(d, s->context)) {
		w->err = -EINVAL;
		return;
	}
	(void)fprintf(w->f, "%s=%" PRIu64 "\n", names->seq, s->seq);
	descriptor_put_string(w, names->provider, provider_words[s->provider - 1]);
	descriptor_put_string(w, names->key, s->key);
	if (bytes_zero(s->material, sizeof(s->material)))
		descriptor_put_string(w, names->material, "");
	else
		descriptor_put_hex(w, names->material, s->material, sizeof(s->material));
	(void)fprintf(w->f, "%s=%u\n", names->context, s->context);
	descriptor_put_time(w, names->sealed, s->sealed, false);
	put_blob(w, names->blob, s->blob, s->blob_len);
	put_blob(w, names->probe, s->probe, s->probe_len);
}

int descriptor_domain_verify(const struct descriptor_domain *d, const struct domain_keys *keys)
{
	CLEANUP_WRITER struct descriptor_writer w = { 0 };
	uint8_t mac[32];

	if (descriptor_writer_begin(&w) != 0)
		return -ENOMEM;
	put_head(&w, d);
	descriptor_writer_mac(&w, keys->desc, mac);
	return w.err == 0 && bytes_equal(mac, d->mac, sizeof(mac)) ? 0 : -EBADMSG;
}

static void put_rest(struct descriptor_writer *w, const struct descriptor_domain *d)
{
	(void)fprintf(w->f, "seq=%" PRIu64 "\n", d->seq);
	descriptor_put_time(w, "rotated", d->rotated, true);
	for (size_t i = 0; i < d->ngen; i++) {
		if (d->gen[i].number <= (i ? d->gen[i - 1].number : 0) || i == DESCRIPTOR_GENERATIONS_MAX)
			w->err = -EINVAL;
		put_generation(w, &d->gen[i]);
	}
	if (d->slot[0].seq == d->slot[1].seq)
		w->err = -EINVAL;
	for (size_t i = 0; i < 2; i++) {
		if (d->slot[i].seq > 0)
			put_slot(w, &slot_names[i], d, &d->slot[i]);
	}
}

int descriptor_domain_print(struct descriptor_domain *d, const struct domain_keys *keys, char **text, size_t *len)
{
	CLEANUP_WRITER struct descriptor_writer w = { 0 };

	if (descriptor_writer_begin(&w) != 0)
		return -ENOMEM;
	put_head(&w, d);
	if (keys)
		descriptor_writer_mac(&w, keys->desc, d->mac);
	descriptor_put_hex(&w, "mac", d->mac, sizeof(d->mac));
	put_rest(&w, d);
	return descriptor_writer_end(&w, DESCRIPTOR_DOMAIN_BYTES, text, len);
}
