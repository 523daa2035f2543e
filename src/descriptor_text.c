/* Lines, sums, and the few kinds of value that descriptors are made of (byokfs-format(5), section 8).
 *
 * The grammar has one spelling for every value, so that printing a parsed text gives the same bytes; the MAC of a
 * parsed descriptor is checked in that way.                                                   */
#include "descriptor_text.h"

#include <errno.h>
#include <sodium.h>
#include <time.h>

#include "bytes.h"
#include "io.h"

#define SUM_NAME "sum="
#define SUM_LINE (sizeof(SUM_NAME) - 1 + 64 + 1)
#define TIME_LEN 20u
#define TIME_MAX 253402300799ll /* 9999-12-31T23:59:59Z */

bool descriptor_is_clean(const char *text, size_t len)
{
	if (len == 0 || text[0] == ' ' || text[len - 1] == ' ')
		return false;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < ' ' || text[i] > '~' || (text[i] == ' ' && text[i + 1] == ' '))
			return false;
	}
	return true;
}

void descriptor_fail(struct descriptor_reader *r, int err)
{
	if (r->err == 0)
		r->err = err;
	r->at = r->end;
}

/* The next line without its newline; empty at the end or when it is not clean. */
static struct descriptor_value next_line(struct descriptor_reader *r)
{
	const char *nl = memchr(r->at, '\n', (size_t)(r->end - r->at));
	struct descriptor_value line = { .text = r->at };

	if (!nl || !descriptor_is_clean(r->at, (size_t)(nl - r->at))) {
		descriptor_fail(r, -EINVAL);
		return (struct descriptor_value){ .text = "", .len = 0 };
	}
	line.len = (size_t)(nl - r->at);
	r->at = nl + 1;
	return line;
}

/* "<title> 1". Any other version is told apart, so that an old program does not call a new store damaged. */
static int check_title(struct descriptor_reader *r, const char *title)
{
	struct descriptor_value line = next_line(r);
	size_t n = strlen(title);
	uint64_t version = 0;

	if (line.len < n + 2 || strncmp(line.text, title, n) != 0 || line.text[n] != ' ' ||
	    !descriptor_parse_number(line.text + n + 1, line.len - n - 1, UINT64_MAX, &version))
		return -EINVAL;
	return version == 1 ? 0 : -EPROTONOSUPPORT;
}

static int check_sum(const char *text, size_t body)
{
	const char *line = text + body;
	uint8_t stored[32], sum[crypto_hash_sha256_BYTES];
	int rc;

	if (strncmp(line, SUM_NAME, strlen(SUM_NAME)) != 0 || line[SUM_LINE - 1] != '\n')
		return -EINVAL;
	rc = bytes_unhex(stored, sizeof(stored), line + strlen(SUM_NAME), 64);
	if (rc != 0)
		return rc;
	(void)crypto_hash_sha256(sum, (const uint8_t *)text, body);
	return bytes_equal(sum, stored, sizeof(sum)) ? 0 : -EINVAL;
}

int descriptor_begin(struct descriptor_reader *r, const char *title, const char *text, size_t len, size_t max)
{
	int rc;

	*r = (struct descriptor_reader){ .at = text, .end = text };
	if (len <= SUM_LINE || len > max)
		return -EINVAL;
	r->end = text + len - SUM_LINE;
	rc = check_title(r, title);
	if (rc == 0)
		rc = check_sum(text, len - SUM_LINE);
	if (rc != 0)
		descriptor_fail(r, rc);
	return rc;
}

int descriptor_end(const struct descriptor_reader *r)
{
	if (r->err != 0)
		return r->err;
	return r->at == r->end ? 0 : -EINVAL;
}

bool descriptor_next_is(const struct descriptor_reader *r, const char *prefix)
{
	size_t n = strlen(prefix);

	return (size_t)(r->end - r->at) >= n && strncmp(r->at, prefix, n) == 0;
}

struct descriptor_value descriptor_line(struct descriptor_reader *r, const char *name)
{
	struct descriptor_value line = next_line(r);
	size_t n = strlen(name);

	if (line.len < n + 2 || strncmp(line.text, name, n) != 0 || line.text[n] != '=' || line.text[n + 1] == ' ') {
		descriptor_fail(r, -EINVAL);
		return (struct descriptor_value){ .text = "", .len = 0 };
	}
	line.text += n + 1;
	line.len -= n + 1;
	return line;
}

void descriptor_hex(struct descriptor_reader *r, const char *name, uint8_t *out, size_t n)
{
	struct descriptor_value v = descriptor_line(r, name);

	if (bytes_unhex(out, n, v.text, v.len) != 0)
		descriptor_fail(r, -EINVAL);
}

bool descriptor_parse_number(const char *text, size_t len, uint64_t max, uint64_t *out)
{
	uint64_t v = 0;

	if (len == 0 || (len > 1 && text[0] == '0'))
		return false;
	for (size_t i = 0; i < len; i++) {
		uint64_t digit = (uint64_t)(text[i] - '0');

		if (text[i] < '0' || text[i] > '9' || v > (max - digit) / 10 || digit > max)
			return false;
		v = v * 10 + digit;
	}
	*out = v;
	return true;
}

uint64_t descriptor_number(struct descriptor_reader *r, const char *name, uint64_t max)
{
	struct descriptor_value v = descriptor_line(r, name);
	uint64_t n = 0;

	if (!descriptor_parse_number(v.text, v.len, max, &n))
		descriptor_fail(r, -EINVAL);
	return n;
}

static int two_digits(const char *p)
{
	return (p[0] - '0') * 10 + (p[1] - '0');
}

bool descriptor_parse_time(const char *text, size_t len, int64_t *out)
{
	static const char shape[] = "dddd-dd-ddTdd:dd:ddZ";
	char again[TIME_LEN + 1];
	struct tm tm = { 0 };

	if (len != TIME_LEN)
		return false;
	for (size_t i = 0; i < TIME_LEN; i++) {
		if (shape[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != shape[i])
			return false;
	}
	tm.tm_year = two_digits(text) * 100 + two_digits(text + 2) - 1900;
	tm.tm_mon = two_digits(text + 5) - 1;
	tm.tm_mday = two_digits(text + 8);
	tm.tm_hour = two_digits(text + 11);
	tm.tm_min = two_digits(text + 14);
	tm.tm_sec = two_digits(text + 17);
	*out = timegm(&tm);
	if (*out < 0 || *out > TIME_MAX)
		return false;
	io_utc(again, *out); /* 31 February and the like come out differently */
	return strncmp(again, text, TIME_LEN) == 0;
}

int64_t descriptor_time(struct descriptor_reader *r, const char *name)
{
	struct descriptor_value v = descriptor_line(r, name);
	int64_t t = 0;

	if (!descriptor_parse_time(v.text, v.len, &t))
		descriptor_fail(r, -EINVAL);
	return t;
}

unsigned descriptor_word(struct descriptor_reader *r, const char *name, const char *const *words)
{
	struct descriptor_value v = descriptor_line(r, name);

	for (unsigned i = 0; words[i]; i++) {
		if (strlen(words[i]) == v.len && strncmp(words[i], v.text, v.len) == 0)
			return i;
	}
	descriptor_fail(r, -EINVAL);
	return 0;
}

void descriptor_string(struct descriptor_reader *r, const char *name, char *out, size_t max)
{
	struct descriptor_value v = descriptor_line(r, name);

	if (v.len > max) {
		descriptor_fail(r, -EINVAL);
		v.len = 0;
	} else if (v.len == 1 && v.text[0] == '-') {
		v.len = 0;
	}
	memcpy(out, v.text, v.len);
	out[v.len] = '\0';
}

int descriptor_writer_begin(struct descriptor_writer *w)
{
	*w = (struct descriptor_writer){ 0 };
	w->f = open_memstream(&w->text, &w->len);
	return w->f ? 0 : -ENOMEM;
}

void descriptor_put_hex(struct descriptor_writer *w, const char *name, const uint8_t *in, size_t n)
{
	char hex[2 * 32 + 1];

	bytes_hex(hex, in, n);
	(void)fprintf(w->f, "%s=%s\n", name, hex);
}

void descriptor_put_time(struct descriptor_writer *w, const char *name, int64_t t, bool none)
{
	char text[TIME_LEN + 1] = "-";

	if (t < 0 || t > TIME_MAX)
		w->err = -EINVAL;
	else if (t != 0 || !none)
		io_utc(text, t);
	(void)fprintf(w->f, "%s=%s\n", name, text);
}

void descriptor_put_string(struct descriptor_writer *w, const char *name, const char *value)
{
	if (*value && !descriptor_is_clean(value, strlen(value)))
		w->err = -EINVAL;
	(void)fprintf(w->f, "%s=%s\n", name, *value ? value : "-");
}

void descriptor_writer_mac(struct descriptor_writer *w, const uint8_t key[static 32], uint8_t mac[static 32])
{
	memset(mac, 0, 32);
	if (fflush(w->f) != 0)
		w->err = -ENOMEM;
	else
		(void)crypto_auth_hmacsha256(mac, (const uint8_t *)w->text, w->len, key);
}

int descriptor_writer_end(struct descriptor_writer *w, size_t max, char **text, size_t *len)
{
	uint8_t sum[crypto_hash_sha256_BYTES] = { 0 };
	int rc;

	if (fflush(w->f) != 0)
		return -ENOMEM;
	(void)crypto_hash_sha256(sum, (const uint8_t *)w->text, w->len);
	descriptor_put_hex(w, "sum", sum, sizeof(sum));
	rc = ferror(w->f) ? -ENOMEM : w->err;
	if (fclose(w->f) != 0 && rc == 0)
		rc = -ENOMEM;
	w->f = NULL;
	if (rc == 0 && w->len > max)
		rc = -EFBIG;
	if (rc != 0)
		return rc;
	*len = w->len;
	*text = steal_ptr(&w->text);
	return 0;
}

void descriptor_writer_free(struct descriptor_writer *w)
{
	if (w->f)
		(void)fclose(w->f);
	free(w->text);
}
