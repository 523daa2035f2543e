/* The store's descriptor and the mount markers as text. Domain descriptors are in descriptor_domain.c. */
#include "descriptor.h"

#include <errno.h>
#include <inttypes.h>

#include "block.h"
#include "bytes.h"
#include "descriptor_text.h"

#define LAYOUT_1     1u
#define DOMAINS_MAX  65536u
#define MARKER_BYTES 4096u
#define STORE_TITLE  "byokfs-store"
#define MARKER_TITLE "byokfs-mount"

static const char *const names_words[] = {
	[NAME_SIV64] = "siv64", [NAME_SIV32] = "siv32", [NAME_PLAIN] = "plain", NULL
};
static const char *const mode_words[] = { "rw", "shared", NULL };

/* Cuts the next blank-separated word off a value. */
static struct descriptor_value cut_word(struct descriptor_value *v)
{
	const char *blank = memchr(v->text, ' ', v->len);
	struct descriptor_value word = { .text = v->text, .len = blank ? (size_t)(blank - v->text) : v->len };
	size_t used = word.len + (blank ? 1 : 0);

	v->text += used;
	v->len -= used;
	return word;
}

static bool cut_hex(struct descriptor_value *v, uint8_t *out, size_t n)
{
	struct descriptor_value word = cut_word(v);

	return bytes_unhex(out, n, word.text, word.len) == 0;
}

/* "<index> <domain_id> <dirid> <commitment>" */
static bool parse_domain(struct descriptor_value v, struct descriptor_domain_line *d)
{
	struct descriptor_value word = cut_word(&v);
	uint64_t index;

	if (!descriptor_parse_number(word.text, word.len, UINT16_MAX, &index))
		return false;
	d->index = (uint16_t)index;
	return cut_hex(&v, d->domain, sizeof(d->domain)) && cut_hex(&v, d->dirid, sizeof(d->dirid)) &&
	    cut_hex(&v, d->commit, sizeof(d->commit)) && v.len == 0;
}

static int grow_domains(struct descriptor_store *s, size_t *room)
{
	struct descriptor_domain_line *more;
	size_t n = *room ? 2 * *room : 4;

	if (s->n < *room)
		return 0;
	more = reallocarray(s->domains, n, sizeof(*more));
	if (!more)
		return -ENOMEM;
	s->domains = more;
	*room = n;
	return 0;
}

static void read_domains(struct descriptor_reader *r, struct descriptor_store *s)
{
	size_t room = 0;

	while (descriptor_next_is(r, "domain=")) {
		struct descriptor_domain_line d = { 0 };

		if (!parse_domain(descriptor_line(r, "domain"), &d) || s->n == DOMAINS_MAX ||
		    (s->n == 0 ? d.index != 0 : d.index <= s->domains[s->n - 1].index)) {
			descriptor_fail(r, -EINVAL);
			return;
		}
		if (grow_domains(s, &room) != 0) {
			descriptor_fail(r, -ENOMEM);
			return;
		}
		s->domains[s->n++] = d;
	}
	if (s->n == 0)
		descriptor_fail(r, -EINVAL);
}

int descriptor_store_parse(struct descriptor_store *out, const char *text, size_t len)
{
	struct descriptor_reader r;
	uint64_t suite, layout;
	int rc;

	memset(out, 0, sizeof(*out));
	rc = descriptor_begin(&r, STORE_TITLE, text, len, DESCRIPTOR_STORE_BYTES);
	if (rc != 0)
		return rc;
	descriptor_hex(&r, "store", out->store, sizeof(out->store));
	suite = descriptor_number(&r, "suite", UINT8_MAX);
	layout = descriptor_number(&r, "layout", UINT8_MAX);
	if (r.err == 0 && (!block_suite_known((unsigned)suite) || layout != LAYOUT_1))
		descriptor_fail(&r, -EPROTONOSUPPORT);
	out->suite = (uint8_t)suite;
	out->names = (enum name_mode)descriptor_word(&r, "names", names_words);
	out->created = descriptor_time(&r, "created");
	descriptor_string(&r, "by", out->by, sizeof(out->by) - 1);
	out->seq = descriptor_number(&r, "seq", UINT64_MAX);
	read_domains(&r, out);
	descriptor_hex(&r, "mac", out->mac, sizeof(out->mac));
	rc = descriptor_end(&r);
	if (rc != 0)
		descriptor_store_free(out);
	return rc;
}

void descriptor_store_free(struct descriptor_store *s)
{
	free(s->domains);
	memset(s, 0, sizeof(*s));
}

/* Everything the MAC covers. */
static void put_store(struct descriptor_writer *w, const struct descriptor_store *s)
{
	(void)fprintf(w->f, STORE_TITLE " 1\n");
	descriptor_put_hex(w, "store", s->store, sizeof(s->store));
	(void)fprintf(w->f, "suite=%u\nlayout=%u\nnames=%s\n", s->suite, LAYOUT_1, names_words[s->names]);
	descriptor_put_time(w, "created", s->created, false);
	descriptor_put_string(w, "by", s->by);
	(void)fprintf(w->f, "seq=%" PRIu64 "\n", s->seq);
	for (size_t i = 0; i < s->n; i++) {
		const struct descriptor_domain_line *d = &s->domains[i];
		char domain[2 * CONTEXT_ID + 1], dirid[2 * CONTEXT_ID + 1], commit[2 * 32 + 1];

		if (i == 0 ? d->index != 0 : d->index <= s->domains[i - 1].index)
			w->err = -EINVAL;
		bytes_hex(domain, d->domain, sizeof(d->domain));
		bytes_hex(dirid, d->dirid, sizeof(d->dirid));
		bytes_hex(commit, d->commit, sizeof(d->commit));
		(void)fprintf(w->f, "domain=%u %s %s %s\n", d->index, domain, dirid, commit);
	}
	if (s->n == 0)
		w->err = -EINVAL;
}

int descriptor_store_verify(const struct descriptor_store *s, const struct domain_keys *keys)
{
	CLEANUP_WRITER struct descriptor_writer w = { 0 };
	uint8_t mac[32];

	if (descriptor_writer_begin(&w) != 0)
		return -ENOMEM;
	put_store(&w, s);
	descriptor_writer_mac(&w, keys->store, mac);
	return w.err == 0 && bytes_equal(mac, s->mac, sizeof(mac)) ? 0 : -EBADMSG;
}

int descriptor_store_print(struct descriptor_store *s, const struct domain_keys *keys, char **text, size_t *len)
{
	CLEANUP_WRITER struct descriptor_writer w = { 0 };

	if (descriptor_writer_begin(&w) != 0)
		return -ENOMEM;
	put_store(&w, s);
	if (keys)
		descriptor_writer_mac(&w, keys->store, s->mac);
	descriptor_put_hex(&w, "mac", s->mac, sizeof(s->mac));
	return descriptor_writer_end(&w, DESCRIPTOR_STORE_BYTES, text, len);
}

/* "<seconds>.<nanoseconds, nine digits>" */
static void read_start(struct descriptor_reader *r, struct descriptor_marker *m)
{
	struct descriptor_value v = descriptor_line(r, "start");
	const char *dot = memchr(v.text, '.', v.len);
	uint64_t sec = 0, nsec = 0;

	if (!dot || v.len != (size_t)(dot - v.text) + 10 ||
	    !descriptor_parse_number(v.text, (size_t)(dot - v.text), INT64_MAX, &sec)) {
		descriptor_fail(r, -EINVAL);
		return;
	}
	for (size_t i = 1; i <= 9; i++) {
		if (dot[i] < '0' || dot[i] > '9')
			descriptor_fail(r, -EINVAL);
		nsec = nsec * 10 + (uint64_t)(dot[i] - '0');
	}
	m->start_sec = (int64_t)sec;
	m->start_nsec = (long)nsec;
}

int descriptor_marker_parse(struct descriptor_marker *out, const char *text, size_t len)
{
	struct descriptor_reader r;
	int rc;

	memset(out, 0, sizeof(*out));
	rc = descriptor_begin(&r, MARKER_TITLE, text, len, MARKER_BYTES);
	if (rc != 0)
		return rc;
	descriptor_hex(&r, "store", out->store, sizeof(out->store));
	out->shared = descriptor_word(&r, "mode", mode_words) == 1;
	read_start(&r, out);
	out->inode = descriptor_number(&r, "inode", UINT64_MAX);
	rc = descriptor_end(&r);
	if (rc != 0)
		memset(out, 0, sizeof(*out));
	return rc;
}

int descriptor_marker_print(const struct descriptor_marker *m, char **text, size_t *len)
{
	CLEANUP_WRITER struct descriptor_writer w = { 0 };

	if (m->start_sec < 0 || m->start_nsec < 0 || m->start_nsec > 999999999)
		return -EINVAL;
	if (descriptor_writer_begin(&w) != 0)
		return -ENOMEM;
	(void)fprintf(w.f, MARKER_TITLE " 1\n");
	descriptor_put_hex(&w, "store", m->store, sizeof(m->store));
	(void)fprintf(w.f, "mode=%s\nstart=%" PRId64 ".%09ld\ninode=%" PRIu64 "\n", mode_words[m->shared], m->start_sec,
	    m->start_nsec, m->inode);
	return descriptor_writer_end(&w, MARKER_BYTES, text, len);
}
