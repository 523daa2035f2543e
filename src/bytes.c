/* bytes.c — text encodings and checksums.
 *
 * Hides which parts libsodium does (hex and base64, in constant time) and which are ours: strictness of
 * the decoders, base32, CRC-32C.                                                                         */
#include "bytes.h"

#include <errno.h>
#include <limits.h>
#include <sodium.h>
#include <string.h>

void bytes_hex(char *out, const uint8_t *in, size_t n)
{
	(void)sodium_bin2hex(out, 2 * n + 1, in, n);
}

/* Value of a lower-case hex digit; bit 8 set for anything else. No branch and no table depends on c. */
static unsigned hex_digit(unsigned c)
{
	unsigned num = c ^ '0'; /* 0..9 for digits, when c's high nibble is 3 */
	unsigned let = c - 'a'; /* 0..5 for letters, wraps below 'a' */
	unsigned is_num = (num - 10) >> 8 & 0xff;
	unsigned is_let = (let - 6) >> 8 & 0xff & ~(let >> 8);

	return (is_num & num) | (is_let & (let + 10)) | ((~(is_num | is_let) & 0x80) << 1);
}

int bytes_unhex(uint8_t *out, size_t n, const char *text, size_t textlen)
{
	unsigned bad = 0;

	if (n > SIZE_MAX / 2 || textlen != 2 * n)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		unsigned hi = hex_digit((unsigned char)text[2 * i]);
		unsigned lo = hex_digit((unsigned char)text[2 * i + 1]);

		bad |= hi | lo;
		out[i] = (uint8_t)(hi << 4 | (lo & 0xf));
	}
	return bad & 0x100 ? -EINVAL : 0;
}

static int b64_variant(enum bytes_b64 kind)
{
	return kind == B64_STD ? sodium_base64_VARIANT_ORIGINAL : sodium_base64_VARIANT_URLSAFE_NO_PADDING;
}

size_t bytes_b64(enum bytes_b64 kind, char *out, const uint8_t *in, size_t n)
{
	size_t size = sodium_base64_encoded_len(n, b64_variant(kind));

	(void)sodium_bin2base64(out, size, in, n, b64_variant(kind));
	return size - 1;
}

/* Bytes that so many characters stand for, or -EINVAL for a length no encoder makes. */
static ssize_t b64_decoded_len(enum bytes_b64 kind, const char *text, size_t textlen)
{
	size_t chars = textlen;

	if (kind == B64_STD) {
		if (textlen % 4)
			return -EINVAL;
		for (int pads = 0; pads < 2 && chars && text[chars - 1] == '='; pads++)
			chars--;
	}
	return chars % 4 == 1 ? -EINVAL : (ssize_t)(chars / 4 * 3 + (chars % 4 ? chars % 4 - 1 : 0));
}

int bytes_unb64(enum bytes_b64 kind, uint8_t *out, size_t max, const char *text, size_t textlen)
{
	ssize_t want;
	size_t got;
	unsigned all = 0;

	if (textlen > INT_MAX)
		return -E2BIG;
	want = b64_decoded_len(kind, text, textlen);
	if (want < 0)
		return (int)want;
	if ((size_t)want > max)
		return -E2BIG;
	/* libsodium refuses stray bits, missing or excess padding, and whatever follows; but 1.0.18 takes some
	 * bytes from 0x80 on for '-', '_', '+' or '/' */
	for (size_t i = 0; i < textlen; i++)
		all |= (unsigned char)text[i];
	if (all > 0x7f)
		return -EINVAL;
	if (sodium_base642bin(out, (size_t)want, text, textlen, NULL, &got, NULL, b64_variant(kind)) != 0 ||
	    got != (size_t)want) {
		explicit_bzero(out, (size_t)want);
		return -EINVAL;
	}
	return (int)want;
}

static const char b32_alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";

size_t bytes_b32(char *out, const uint8_t *in, size_t n)
{
	size_t len = 0;
	unsigned acc = 0, bits = 0;

	for (size_t i = 0; i < n; i++) {
		acc = (acc << 8 | in[i]) & 0xfff;
		for (bits += 8; bits >= 5; bits -= 5)
			out[len++] = b32_alphabet[acc >> (bits - 5) & 31];
	}
	if (bits)
		out[len++] = b32_alphabet[acc << (5 - bits) & 31];
	out[len] = '\0';
	return len;
}

static int b32_digit(char c)
{
	if (c >= 'a' && c <= 'z')
		return c - 'a';
	if (c >= '2' && c <= '7')
		return c - '2' + 26;
	return -1;
}

int bytes_unb32(uint8_t *out, size_t max, const char *text, size_t textlen)
{
	size_t len = 0;
	unsigned acc = 0, bits = 0;

	if (textlen > INT_MAX)
		return -E2BIG;
	if (textlen % 8 == 1 || textlen % 8 == 3 || textlen % 8 == 6)
		return -EINVAL;
	if (textlen / 8 * 5 + textlen % 8 * 5 / 8 > max)
		return -E2BIG;
	for (size_t i = 0; i < textlen; i++) {
		int digit = b32_digit(text[i]);

		if (digit < 0)
			return -EINVAL;
		acc = (acc << 5 | (unsigned)digit) & 0xfff;
		bits += 5;
		if (bits >= 8) {
			bits -= 8;
			out[len++] = (uint8_t)(acc >> bits);
		}
	}
	return acc & ((1u << bits) - 1) ? -EINVAL : (int)len;
}

#ifdef __x86_64__
/* Whole words, by the processor's own instruction. */
__attribute__((target("sse4.2"))) static uint32_t crc32c_words(uint32_t crc, const uint8_t *in, size_t words)
{
	uint64_t word, wide = crc;

	for (; words; words--, in += sizeof(word)) {
		memcpy(&word, in, sizeof(word));
		wide = __builtin_ia32_crc32di(wide, word);
	}
	return (uint32_t)wide;
}
#endif

static uint32_t crc32c_bytes(uint32_t crc, const uint8_t *in, size_t n)
{
	/* one entry per nibble of the reflected polynomial 0x82f63b78 */
	static const uint32_t table[16] = {
		0x00000000,
		0x105ec76f,
		0x20bd8ede,
		0x30e349b1,
		0x417b1dbc,
		0x5125dad3,
		0x61c69362,
		0x7198540d,
		0x82f63b78,
		0x92a8fc17,
		0xa24bb5a6,
		0xb21572c9,
		0xc38d26c4,
		0xd3d3e1ab,
		0xe330a81a,
		0xf36e6f75,
	};

	for (size_t i = 0; i < n; i++) {
		crc ^= in[i];
		crc = crc >> 4 ^ table[crc & 15];
		crc = crc >> 4 ^ table[crc & 15];
	}
	return crc;
}

uint32_t bytes_crc32c(const uint8_t *in, size_t n)
{
	uint32_t crc = UINT32_MAX;

#ifdef __x86_64__
	if (__builtin_cpu_supports("sse4.2")) {
		crc = crc32c_words(crc, in, n / 8);
		in += n / 8 * 8;
		n %= 8;
	}
#endif
	return ~crc32c_bytes(crc, in, n);
}

bool bytes_zero(const void *p, size_t n)
{
	const uint8_t *b = p;
	uint64_t word;

	for (; n >= sizeof(word); n -= sizeof(word), b += sizeof(word)) {
		memcpy(&word, b, sizeof(word));
		if (word)
			return false;
	}
	for (; n; n--, b++)
		if (*b)
			return false;
	return true;
}

bool bytes_equal(const void *a, const void *b, size_t n)
{
	return sodium_memcmp(a, b, n) == 0;
}
