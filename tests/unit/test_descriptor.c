/* Descriptors and markers: the vectors of byokfs-format(5), section 17, every damaged byte, every broken rule. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>
#include <sodium.h>

#include "bytes.h"
#include "descriptor.h"

#define CREATED    1767225600 /* 2026-01-01T00:00:00Z */
#define STORE_ID   "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
#define DOMAIN_ID  "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf"
#define DIR_ID     "d0d1d2d3d4d5d6d7d8d9dadbdcdddedf"
#define COMMIT     "c0b394fef8a0a6e9df0f5935883bfb6db84d4cf6a013bbedf5928a11f8ae9667"
#define STORE_MAC  "d5bd1cdf7f0189a6fe88b040fb2db8ea171aecda452bbd94927797f93c0345c1"
#define DOMAIN_MAC "29a8fd8a5096241c89052b261e2ee59d24d82bda640d82986b4b03da4cb06752"
#define MATERIAL   "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

#define STORE_BODY                                                             \
	"byokfs-store 1\nstore=" STORE_ID "\nsuite=1\nlayout=1\nnames=siv64\n" \
	"created=2026-01-01T00:00:00Z\nby=byokfs 1.0.0\nseq=1\n"               \
	"domain=0 " DOMAIN_ID " " DIR_ID " " COMMIT "\n"                       \
	"mac=" STORE_MAC "\n"
#define DOMAIN_HEAD                                                                       \
	"byokfs-domain 1\nstore=" STORE_ID "\ndomain=" DOMAIN_ID "\nindex=0\nseal=file\n" \
	"created=2026-01-01T00:00:00Z\ncommit=" COMMIT "\nmac=" DOMAIN_MAC "\n"
#define SLOT_A                                                                            \
	"a.seq=1\na.provider=aws\na.key=arn:aws:kms:eu-central-1:111122223333:key/1234\n" \
	"a.material=" MATERIAL "\na.context=1\na.sealed=2026-01-01T00:00:01Z\na.blob=QUJD\na.probe=REVGRw==\n"
#define SLOT_B                                                          \
	"b.seq=2\nb.provider=keyfile\nb.key=keyfile:0011223344556677\n" \
	"b.material=-\nb.context=3\nb.sealed=2026-02-28T23:59:59Z\nb.blob=QQ==\nb.probe=Qg==\n"
#define CONTEXTS    "context.1=-\ncontext.3=team:a%20b%2cc,tier:x.:/@+-_9\n"
#define DOMAIN_BODY DOMAIN_HEAD "seq=7\nrotated=-\n" CONTEXTS SLOT_A SLOT_B
#define MARKER_BODY "byokfs-mount 1\nstore=" STORE_ID "\nmode=rw\nstart=1767225600.000000001\ninode=4711\n"

#define SMALL_SLOT                                                                               \
	{                                                                                        \
		.seq = 1, .provider = 1, .key = "k", .context = 1, .blob_len = 1, .probe_len = 1 \
	}

static struct domain_keys keys;

static void count_up(uint8_t *p, uint8_t first, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (uint8_t)(first + i);
}

static int setup(void **state)
{
	struct context_ids ids = { .suite = 1 };
	uint8_t secret[32];

	(void)state;
	count_up(secret, 0x20, sizeof(secret));
	count_up(ids.store, 0xa0, 16);
	count_up(ids.domain, 0xb0, 16);
	return kdf_domain(&keys, secret, &ids);
}

/* ---- the three kinds behind one face, so that the generic tests run over all ------------------ */

static int parse_store(const char *text, size_t len)
{
	struct descriptor_store s;
	int rc = descriptor_store_parse(&s, text, len);

	if (rc != 0)
		assert_true(bytes_zero(&s, sizeof(s)));
	descriptor_store_free(&s);
	return rc;
}

static int parse_domain(const char *text, size_t len)
{
	struct descriptor_domain d;
	int rc = descriptor_domain_parse(&d, text, len);

	if (rc != 0)
		assert_true(bytes_zero(&d, sizeof(d)));
	descriptor_domain_free(&d);
	return rc;
}

static int parse_marker(const char *text, size_t len)
{
	struct descriptor_marker m;

	return descriptor_marker_parse(&m, text, len);
}

struct kind {
	const char *body;
	int (*parse)(const char *text, size_t len);
};

static const struct kind kinds[] = { { STORE_BODY, parse_store }, { DOMAIN_BODY, parse_domain },
	{ MARKER_BODY, parse_marker } };
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* body + "sum=<SHA-256>\n", exactly as long as needed, so that a sanitizer sees every read beyond it. */
static char *with_sum(const char *body, size_t len, size_t *total)
{
	uint8_t sum[32];
	char *text = malloc(len + 69), hex[65];

	assert_non_null(text);
	(void)crypto_hash_sha256(sum, (const uint8_t *)body, len);
	bytes_hex(hex, sum, sizeof(sum));
	memcpy(text, body, len);
	memcpy(text + len, "sum=", 4);
	memcpy(text + len + 4, hex, 64);
	text[len + 68] = '\n';
	*total = len + 69;
	return text;
}

static int parse_summed(const struct kind *k, const char *body, size_t len)
{
	size_t total;
	CLEANUP_FREE char *text = with_sum(body, len, &total);

	return k->parse(text, total);
}

/* The body with the first occurrence of a text replaced, summed and parsed. */
static int parse_with(const struct kind *k, const char *from, const char *to)
{
	const char *at = strstr(k->body, from);
	CLEANUP_FREE char *body = NULL;

	assert_non_null(at);
	assert_true(asprintf(&body, "%.*s%s%s", (int)(at - k->body), k->body, to, at + strlen(from)) > 0);
	return parse_summed(k, body, strlen(body));
}

/* ---- vectors and round trips ------------------------------------------------------------------ */

static void test_vector_store(void **state)
{
	struct descriptor_store s;
	CLEANUP_FREE char *expected = NULL, *text = NULL;
	size_t total, len;

	(void)state;
	expected = with_sum(STORE_BODY, strlen(STORE_BODY), &total);
	assert_int_equal(descriptor_store_parse(&s, expected, total), 0);
	assert_int_equal(s.suite, 1);
	assert_int_equal(s.names, NAME_SIV64);
	assert_int_equal(s.created, CREATED);
	assert_string_equal(s.by, "byokfs 1.0.0");
	assert_int_equal(s.seq, 1);
	assert_int_equal(s.n, 1);
	assert_int_equal(s.domains[0].dirid[15], 0xdf);
	assert_int_equal(descriptor_store_verify(&s, &keys), 0);
	memset(s.mac, 0, sizeof(s.mac));
	assert_int_equal(descriptor_store_verify(&s, &keys), -EBADMSG);
	assert_int_equal(descriptor_store_print(&s, &keys, &text, &len), 0);
	assert_int_equal(len, total);
	assert_memory_equal(text, expected, total);
	s.domains[0].commit[0] ^= 1;
	assert_int_equal(descriptor_store_verify(&s, &keys), -EBADMSG);
	descriptor_store_free(&s);
}

static void test_vector_domain(void **state)
{
	struct descriptor_domain d;
	CLEANUP_FREE char *expected = NULL, *text = NULL;
	size_t total, len;

	(void)state;
	expected = with_sum(DOMAIN_BODY, strlen(DOMAIN_BODY), &total);
	assert_int_equal(descriptor_domain_parse(&d, expected, total), 0);
	assert_int_equal(d.created, CREATED);
	assert_int_equal(d.seq, 7);
	assert_int_equal(d.rotated, 0);
	assert_int_equal(descriptor_domain_verify(&d, &keys), 0);
	memset(d.mac, 0, sizeof(d.mac));
	assert_int_equal(descriptor_domain_print(&d, &keys, &text, &len), 0);
	assert_int_equal(len, total);
	assert_memory_equal(text, expected, total);
	d.seal = SEAL_DOMAIN;
	assert_int_equal(descriptor_domain_verify(&d, &keys), -EBADMSG);
	descriptor_domain_free(&d);
}

static void test_slots_and_generations(void **state)
{
	struct descriptor_domain d;
	CLEANUP_FREE char *text = NULL;
	size_t total;
	const struct context_extra *e;

	(void)state;
	text = with_sum(DOMAIN_BODY, strlen(DOMAIN_BODY), &total);
	assert_int_equal(descriptor_domain_parse(&d, text, total), 0);
	assert_ptr_equal(descriptor_ruling_slot(&d), &d.slot[1]);
	assert_int_equal(d.slot[0].provider, 1);
	assert_string_equal(d.slot[0].key, "arn:aws:kms:eu-central-1:111122223333:key/1234");
	assert_int_equal(d.slot[0].material[1], 0x11);
	assert_int_equal(d.slot[0].blob_len, 3);
	assert_memory_equal(d.slot[0].blob, "ABC", 3);
	assert_memory_equal(d.slot[0].probe, "DEFG", 4);
	assert_int_equal(d.slot[1].provider, 3);
	assert_true(bytes_zero(d.slot[1].material, 32));
	assert_int_equal(descriptor_generation(&d, 1)->n, 0);
	assert_null(descriptor_generation(&d, 2));
	e = descriptor_generation(&d, 3);
	assert_int_equal(e->n, 2);
	assert_string_equal(e->pair[0].name, "team");
	assert_string_equal(e->pair[0].value, "a b,c");
	assert_string_equal(e->pair[1].value, "x.:/@+-_9");
	d.slot[1].seq = 0;
	assert_ptr_equal(descriptor_ruling_slot(&d), &d.slot[0]);
	d.slot[0].seq = 0;
	assert_null(descriptor_ruling_slot(&d));
	descriptor_domain_free(&d);
}

static void test_marker(void **state)
{
	struct descriptor_marker m = {
		.shared = true, .start_sec = CREATED, .start_nsec = 999999999, .inode = UINT64_MAX
	};
	struct descriptor_marker back;
	CLEANUP_FREE char *text = NULL;
	size_t len;

	(void)state;
	count_up(m.store, 0xa0, 16);
	assert_int_equal(descriptor_marker_print(&m, &text, &len), 0);
	assert_non_null(strstr(text, "\nmode=shared\nstart=1767225600.999999999\ninode=18446744073709551615\nsum="));
	assert_int_equal(descriptor_marker_parse(&back, text, len), 0);
	assert_memory_equal(back.store, m.store, 16);
	assert_true(back.shared);
	assert_int_equal(back.start_sec, m.start_sec);
	assert_int_equal(back.start_nsec, m.start_nsec);
	assert_true(back.inode == m.inode);
	m.start_nsec = 1000000000;
	CLEANUP_FREE char *none = NULL;
	assert_int_equal(descriptor_marker_print(&m, &none, &len), -EINVAL);
}

/* All domains that a store may have, and the size of such a text. */
static void test_many_domains(void **state)
{
	struct descriptor_store s = { .suite = 2, .names = NAME_PLAIN, .created = CREATED, .seq = 9, .n = 65536 }, back;
	CLEANUP_FREE char *text = NULL;
	size_t len;

	(void)state;
	s.domains = calloc(s.n, sizeof(*s.domains));
	assert_non_null(s.domains);
	for (size_t i = 0; i < s.n; i++)
		s.domains[i].index = (uint16_t)i;
	assert_int_equal(descriptor_store_print(&s, &keys, &text, &len), 0);
	assert_true(len < DESCRIPTOR_STORE_BYTES);
	assert_int_equal(descriptor_store_parse(&back, text, len), 0);
	assert_int_equal(back.n, s.n);
	assert_int_equal(back.domains[65535].index, 65535);
	assert_string_equal(back.by, "");
	assert_int_equal(back.names, NAME_PLAIN);
	assert_int_equal(descriptor_store_verify(&back, &keys), 0);
	descriptor_store_free(&back);
	descriptor_store_free(&s);
}

static void test_many_generations(void **state)
{
	CLEANUP_FREE char *text = NULL, *again = NULL;
	struct descriptor_domain d = { .slot[0] = SMALL_SLOT, .ngen = DESCRIPTOR_GENERATIONS_MAX }, back;
	size_t len;

	(void)state;
	d.gen = calloc(d.ngen + 1, sizeof(*d.gen));
	assert_non_null(d.gen);
	for (size_t i = 0; i <= d.ngen; i++)
		d.gen[i].number = (uint16_t)(i + 1);
	assert_int_equal(descriptor_domain_print(&d, &keys, &text, &len), 0);
	assert_int_equal(descriptor_domain_parse(&back, text, len), 0);
	assert_int_equal(back.ngen, DESCRIPTOR_GENERATIONS_MAX);
	descriptor_domain_free(&back);
	d.ngen++;
	assert_int_equal(descriptor_domain_print(&d, &keys, &again, &len), -EINVAL);
	descriptor_domain_free(&d);
}

static void test_print_refuses(void **state)
{
	struct descriptor_store s = { .suite = 1 };
	struct descriptor_domain d = { .slot[0] = SMALL_SLOT };
	CLEANUP_FREE char *text = NULL;
	size_t len;

	(void)state;
	assert_int_equal(descriptor_store_print(&s, &keys, &text, &len), -EINVAL); /* no domain */
	s.domains = calloc(2, sizeof(*s.domains));
	s.n = 2;
	assert_int_equal(descriptor_store_print(&s, &keys, &text, &len), -EINVAL); /* not ascending */
	s.n = 1;
	strcpy(s.by, "two  blanks");
	assert_int_equal(descriptor_store_print(&s, &keys, &text, &len), -EINVAL);
	strcpy(s.by, "line\nbreak");
	assert_int_equal(descriptor_store_print(&s, &keys, &text, &len), -EINVAL);
	strcpy(s.by, "x");
	s.created = -1;
	assert_int_equal(descriptor_store_print(&s, &keys, &text, &len), -EINVAL);
	descriptor_store_free(&s);
	assert_int_equal(descriptor_domain_print(&d, &keys, &text, &len), -EINVAL); /* generation 1 is not recorded */
	d.gen = calloc(1, sizeof(*d.gen));
	d.ngen = 1;
	d.gen[0].number = 1;
	d.slot[0].probe_len = 0;
	assert_int_equal(descriptor_domain_print(&d, &keys, &text, &len), -EINVAL);
	d.slot[0].probe_len = 1;
	d.slot[1] = d.slot[0];
	assert_int_equal(descriptor_domain_print(&d, &keys, &text, &len), -EINVAL); /* which one rules? */
	d.slot[1].seq = 2;
	assert_null(text);
	assert_int_equal(descriptor_domain_print(&d, &keys, &text, &len), 0);
	descriptor_domain_free(&d);
}

/* ---- damage ----------------------------------------------------------------------------------- */

static void test_good_bodies_parse(void **state)
{
	(void)state;
	for (size_t i = 0; i < KINDS; i++)
		assert_int_equal(parse_summed(&kinds[i], kinds[i].body, strlen(kinds[i].body)), 0);
}

/* Every bit of every byte, every byte missing, every byte doubled, every prefix: refused. */
static void test_damage(void **state)
{
	(void)state;
	for (size_t k = 0; k < KINDS; k++) {
		size_t total;
		CLEANUP_FREE char *text = with_sum(kinds[k].body, strlen(kinds[k].body), &total);

		for (size_t i = 0; i < total; i++) {
			CLEANUP_FREE char *cut = malloc(total + 1);

			for (int bit = 0; bit < 8; bit++) {
				text[i] = (char)(text[i] ^ 1 << bit);
				assert_int_not_equal(kinds[k].parse(text, total), 0);
				text[i] = (char)(text[i] ^ 1 << bit);
			}
			assert_non_null(cut);
			memcpy(cut, text, i);
			memcpy(cut + i, text + i + 1, total - i - 1);
			assert_int_not_equal(kinds[k].parse(cut, total - 1), 0);
			memcpy(cut + i, text + i, total - i);
			memmove(cut + i + 1, cut + i, total - i);
			assert_int_not_equal(kinds[k].parse(cut, total + 1), 0);
			assert_int_not_equal(kinds[k].parse(text, i), 0);
		}
	}
}

/* The same with a recomputed sum: what still parses must say something else or be another spelling of nothing, i.e.
 * print exactly as it was read; everything else is refused. Whatever happens, no crash and no stray read. */
static void check_reprint(size_t kind, const char *body, size_t len)
{
	size_t total, again_len = 0;
	CLEANUP_FREE char *text = with_sum(body, len, &total), *again = NULL;
	struct descriptor_store s;
	struct descriptor_domain d;
	struct descriptor_marker m;

	if (kind == 0 && descriptor_store_parse(&s, text, total) == 0) {
		assert_int_equal(descriptor_store_print(&s, NULL, &again, &again_len), 0);
		descriptor_store_free(&s);
	} else if (kind == 1 && descriptor_domain_parse(&d, text, total) == 0) {
		assert_int_equal(descriptor_domain_print(&d, NULL, &again, &again_len), 0);
		descriptor_domain_free(&d);
	} else if (kind == 2 && descriptor_marker_parse(&m, text, total) == 0) {
		assert_int_equal(descriptor_marker_print(&m, &again, &again_len), 0);
	}
	if (again) {
		assert_int_equal(again_len, total);
		assert_memory_equal(again, text, total);
	}
}

static void test_damage_with_good_sum(void **state)
{
	static const char with[] = "0a=-% ,:.\n\r\t\0zZ\x7f\x80";

	(void)state;
	for (size_t k = 0; k < KINDS; k++) {
		size_t len = strlen(kinds[k].body);
		CLEANUP_FREE char *body = malloc(len + 1);

		assert_non_null(body);
		for (size_t i = 0; i < len; i++) {
			memcpy(body, kinds[k].body, len);
			for (size_t c = 0; c < sizeof(with) - 1; c++) {
				body[i] = with[c];
				check_reprint(k, body, len);
			}
			memcpy(body + i, kinds[k].body + i + 1, len - i - 1);
			check_reprint(k, body, len - 1);
			memcpy(body, kinds[k].body, i);
			body[i] = ' ';
			memcpy(body + i + 1, kinds[k].body + i, len - i);
			check_reprint(k, body, len + 1);
			check_reprint(k, kinds[k].body, i);
		}
	}
}

/* Each line left out, doubled, or exchanged with the next. */
static void test_lines_fixed(void **state)
{
	(void)state;
	for (size_t k = 0; k < KINDS; k++) {
		const char *body = kinds[k].body, *end = body + strlen(body);

		for (const char *line = body; line < end; line = strchr(line, '\n') + 1) {
			int before = (int)(line - body), n = (int)(strchr(line, '\n') + 1 - line);
			const char *next = line + n;
			int m = next < end ? (int)(strchr(next, '\n') + 1 - next) : 0;
			CLEANUP_FREE char *out = NULL, *twice = NULL, *swapped = NULL;
			bool optional = strncmp(line, "context.", 8) == 0; /* a generation that no slot needs */

			assert_true(asprintf(&out, "%.*s%s", before, body, next) >= 0);
			if (!optional)
				assert_int_not_equal(parse_summed(&kinds[k], out, strlen(out)), 0);
			assert_true(asprintf(&twice, "%.*s%.*s%s", before, body, n, line, line) >= 0);
			assert_int_not_equal(parse_summed(&kinds[k], twice, strlen(twice)), 0);
			assert_true(
			    asprintf(&swapped, "%.*s%.*s%.*s%s", before, body, m, next, n, line, next + m) >= 0);
			if (m > 0)
				assert_int_not_equal(parse_summed(&kinds[k], swapped, strlen(swapped)), 0);
		}
	}
}

static void test_versions(void **state)
{
	(void)state;
	assert_int_equal(parse_with(&kinds[0], "byokfs-store 1", "byokfs-store 2"), -EPROTONOSUPPORT);
	assert_int_equal(parse_with(&kinds[0], "byokfs-store 1", "byokfs-store 10"), -EPROTONOSUPPORT);
	assert_int_equal(parse_with(&kinds[0], "byokfs-store 1", "byokfs-store 01"), -EINVAL);
	assert_int_equal(parse_with(&kinds[0], "byokfs-store 1", "byokfs-store"), -EINVAL);
	assert_int_equal(parse_with(&kinds[0], "byokfs-store 1", "byokfs-domain 1"), -EINVAL);
	assert_int_equal(parse_with(&kinds[0], "suite=1", "suite=2"), 0);
	assert_int_equal(parse_with(&kinds[0], "suite=1", "suite=3"), -EPROTONOSUPPORT);
	assert_int_equal(parse_with(&kinds[0], "suite=1", "suite=0"), -EPROTONOSUPPORT);
	assert_int_equal(parse_with(&kinds[0], "suite=1", "suite=256"), -EINVAL);
	assert_int_equal(parse_with(&kinds[0], "layout=1", "layout=2"), -EPROTONOSUPPORT);
	assert_int_equal(parse_with(&kinds[1], "byokfs-domain 1", "byokfs-domain 2"), -EPROTONOSUPPORT);
	assert_int_equal(parse_with(&kinds[2], "byokfs-mount 1", "byokfs-mount 2"), -EPROTONOSUPPORT);
}

struct change {
	size_t kind;
	const char *from, *to;
};

static const struct change refused[] = {
	{ 0, "seq=1", "seq=01" },
	{ 0, "seq=1", "seq=18446744073709551616" },
	{ 0, "seq=1", "seq=" },
	{ 0, "seq=1", "seq=-1" },
	{ 0, "seq=1", "seq= 1" },
	{ 0, "seq=1", "seq=1 " },
	{ 0, "siv64", "siv65" },
	{ 0, "siv64", "Siv64" },
	{ 0, "store=a0", "store=A0" },
	{ 0, "by=byokfs 1.0.0", "by=byokfs  1.0.0" },
	{ 0, "by=byokfs 1.0.0", "by=" },
	{ 0, "by=byokfs 1.0.0", "by=1234567890123456789012345678901234567890123456789012345678901234" },
	{ 0, "01-01T", "02-29T" },
	{ 0, "01-01T", "13-01T" },
	{ 0, "01-01T", "00-01T" },
	{ 0, "2026-", "1969-" },
	{ 0, "00Z", "60Z" },
	{ 0, "00:00Z", "00:00z" },
	{ 0, "domain=0 ", "domain=1 " },
	{ 0, "domain=0 ", "domain=65536 " },
	{ 0, "domain=0 ", "domain=00 " },
	{ 0, "domain=0 ", "domain=0  " },
	{ 0, "mac=", "domain=0 " DOMAIN_ID " " DIR_ID " " COMMIT "\nmac=" },
	{ 0, "mac=", "domain=1 " DOMAIN_ID " " DIR_ID " " COMMIT " x\nmac=" },
	{ 0, "mac=", "domain=1 " DOMAIN_ID " " DIR_ID "\nmac=" },
	{ 0, "mac=", "x=1\nmac=" },
	{ 1, "index=0", "index=65536" },
	{ 1, "seal=file", "seal=both" },
	{ 1, "rotated=-", "rotated=1970-01-01T00:00:00Z" },
	{ 1, "rotated=-", "rotated=--" },
	{ 1, "context.1=", "context.0=" },
	{ 1, "context.1=", "context.01=" },
	{ 1, "context.1=", "context.3=" },
	{ 1, "context.1=", "context.4=" },
	{ 1, "context.1=", "context.=-\ncontext.1=" },
	{ 1, "context.1=-", "context.1=" },
	{ 1, "context.3=", "context.65536=" },
	{ 1, "context.3=", "context.4=" }, /* slot b needs 3 */
	{ 1, "team:", "team" },
	{ 1, "team:", ":" },
	{ 1, "team:", "Team:" },
	{ 1, "team:", "byokfs-team:" },
	{ 1, "team:", "aws-team:" },
	{ 1, "team:", "tier:" }, /* twice */
	{ 1, "%20", " " },
	{ 1, "%20", "%2" },
	{ 1, "%2c", "%2C" },
	{ 1, "%20", "%41" },
	{ 1, "%20", "%0a" },
	{ 1, "%20", "%00" },
	{ 1, "%20", "%zz" },
	{ 1, "%2cc,", "%2cc,," },
	{ 1, "_9\n", "_9,\n" },
	{ 1, "_9\n", "_%\n" },
	{ 1, "a.seq=1", "a.seq=0" },
	{ 1, "a.seq=1", "a.seq=2" }, /* as b */
	{ 1, "provider=aws", "provider=AWS" },
	{ 1, "provider=aws", "provider=none" },
	{ 1, "a.key=arn:", "a.key= arn:" },
	{ 1, "b.key=keyfile:0011223344556677", "b.key=-" },
	{ 1, "a.material=0011", "a.material=001" },
	{ 1, MATERIAL, "0000000000000000000000000000000000000000000000000000000000000000" },
	{ 1, "a.context=1", "a.context=2" },
	{ 1, "a.sealed=2026", "a.sealed=-\na.sealed=2026" },
	{ 1, "REVGRw==", "REVGRw" },
	{ 1, "REVGRw==", "REVGRx==" },
	{ 1, "QUJD", "-" },
	{ 1, SLOT_A SLOT_B, "" },
	{ 1, SLOT_A SLOT_B, SLOT_B SLOT_A },
	{ 1, SLOT_B, SLOT_B SLOT_B },
	{ 2, "mode=rw", "mode=ro" },
	{ 2, ".000000001", ".1" },
	{ 2, ".000000001", ".0000000010" },
	{ 2, ".000000001", ".00000000x" },
	{ 2, ".000000001", "" },
	{ 2, "=1767225600.", "=9223372036854775808." },
	{ 2, "=1767225600.", "=01767225600." },
	{ 2, "=1767225600.", "=." },
	{ 2, "inode=4711", "inode=4711\ninode=4711" },
	{ 2, "store=", "\nstore=" },
};

static void test_grammar(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		const struct change *c = &refused[i];
		int rc = parse_with(&kinds[c->kind], c->from, c->to);

		if (rc != -EINVAL)
			print_error("'%s' -> '%s' gives %d\n", c->from, c->to, rc);
		assert_int_equal(rc, -EINVAL);
	}
}

static void test_grammar_accepts(void **state)
{
	(void)state;
	assert_int_equal(parse_with(&kinds[0], "by=byokfs 1.0.0", "by=-"), 0);
	assert_int_equal(parse_with(&kinds[0], "01-01T", "12-31T"), 0);
	assert_int_equal(parse_with(&kinds[0], "2026-01-01T", "2028-02-29T"), 0);
	assert_int_equal(parse_with(&kinds[0], "mac=", "domain=65535 " DOMAIN_ID " " DIR_ID " " COMMIT "\nmac="), 0);
	assert_int_equal(parse_with(&kinds[1], "rotated=-", "rotated=2026-01-01T00:00:00Z"), 0);
	assert_int_equal(parse_with(&kinds[1], SLOT_B, ""), 0);
	assert_int_equal(parse_with(&kinds[1], SLOT_A, ""), 0);
	assert_int_equal(parse_with(&kinds[1], "context.3=", "context.65535=-\ncontext.3="), -EINVAL);
	assert_int_equal(parse_with(&kinds[1], SLOT_A, "context.65535=-\n" SLOT_A), 0);
	assert_int_equal(parse_with(&kinds[2], "mode=rw", "mode=shared"), 0);
}

/* Lengths that a hostile text may claim. */
static int parse_slot_with(const char *name, size_t len, char c)
{
	CLEANUP_FREE char *value = malloc(len + 1), *to = NULL;
	const char *from = strcmp(name, "key") == 0 ? "b.key=keyfile:0011223344556677" : "b.blob=QQ==";

	assert_non_null(value);
	memset(value, c, len);
	value[len] = '\0';
	assert_true(asprintf(&to, "b.%s=%s", name, value) > 0);
	return parse_with(&kinds[1], from, to);
}

static void test_caps(void **state)
{
	(void)state;
	assert_int_equal(parse_slot_with("key", DESCRIPTOR_KEY_MAX, 'k'), 0);
	assert_int_equal(parse_slot_with("key", DESCRIPTOR_KEY_MAX + 1, 'k'), -EINVAL);
	assert_int_equal(parse_slot_with("blob", DESCRIPTOR_BLOB_MAX / 3 * 4, 'A'), 0);
	assert_int_equal(parse_slot_with("blob", DESCRIPTOR_BLOB_MAX / 3 * 4 + 4, 'A'), -EINVAL);
	assert_int_equal(parse_slot_with("blob", DESCRIPTOR_DOMAIN_BYTES, 'A'), -EINVAL);
	for (size_t k = 0; k < KINDS; k++) {
		assert_int_equal(kinds[k].parse("", 0), -EINVAL);
		assert_int_equal(parse_summed(&kinds[k], "", 0), -EINVAL);
		assert_int_equal(parse_summed(&kinds[k], "\n", 1), -EINVAL);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vector_store),
		cmocka_unit_test(test_vector_domain),
		cmocka_unit_test(test_slots_and_generations),
		cmocka_unit_test(test_marker),
		cmocka_unit_test(test_many_domains),
		cmocka_unit_test(test_many_generations),
		cmocka_unit_test(test_print_refuses),
		cmocka_unit_test(test_good_bodies_parse),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_damage_with_good_sum),
		cmocka_unit_test(test_lines_fixed),
		cmocka_unit_test(test_versions),
		cmocka_unit_test(test_grammar),
		cmocka_unit_test(test_grammar_accepts),
		cmocka_unit_test(test_caps),
	};

	return cmocka_run_group_tests_name("descriptor", tests, setup, NULL);
}
