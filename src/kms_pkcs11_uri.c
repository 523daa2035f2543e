/* kms_pkcs11_uri.c — how a key on a token is named: RFC 7512, token and object only. Hides the percent signs. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kms_pkcs11_internal.h"

static const char scheme[] = "pkcs11:";

static int refuse(char why[static 160], const char *what, const char *value)
{
	(void)snprintf(why, 160, "%s: '%.80s'", what, value);
	return -EINVAL;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The value up to ';' or the end, percent-decoded; *rest behind it. -EINVAL: empty, too long, NUL or control bytes. */
static int decode(char *out, size_t size, const char *p, const char **rest)
{
	size_t n = 0;

	for (; *p && *p != ';'; p++) {
		int c = (unsigned char)*p;

		if (c == '%') {
			int high = hex_digit(p[1]), low = high < 0 ? -1 : hex_digit(p[2]);

			if (low < 0)
				return -EINVAL;
			c = high * 16 + low;
			p += 2;
		} else if (c == '?') {
			return -EINVAL;
		}
		if (c < ' ' || c == 127 || n + 1 >= size)
			return -EINVAL;
		out[n++] = (char)c;
	}
	out[n] = '\0';
	*rest = *p ? p + 1 : p;
	return n ? 0 : -EINVAL;
}

static int parse_uri(struct p11_name *out, const char *uri, char why[static 160])
{
	const char *p = uri + sizeof(scheme) - 1;

	while (*p) {
		int r;

		if (!strncmp(p, "token=", 6) && !*out->token)
			r = decode(out->token, sizeof(out->token), p + 6, &p);
		else if (!strncmp(p, "object=", 7) && !*out->key)
			r = decode(out->key, sizeof(out->key), p + 7, &p);
		else
			return refuse(why, "a key's URI has one token=LABEL and one object=LABEL, no more", uri);
		if (r)
			return refuse(why, "not a label of a token or a key in the URI", uri);
	}
	return 0;
}

/* A label as one writes it into the configuration. */
static int plain(char *out, size_t size, const char *label, char why[static 160])
{
	if (!*label || strlen(label) >= size)
		return refuse(why, "an impossible label", label);
	for (const char *p = label; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 127)
			return refuse(why, "control characters in a label", "");
	strcpy(out, label);
	return 0;
}

int p11_name_parse(struct p11_name *out, const char *key, const char *token, char why[static 160])
{
	char named[P11_LABEL];
	int r = 0;

	memset(out, 0, sizeof(*out));
	if (!key || !*key)
		return refuse(why, "no key's label", "");
	if (strncmp(key, scheme, sizeof(scheme) - 1))
		r = plain(out->key, sizeof(out->key), key, why);
	else
		r = parse_uri(out, key, why);
	if (r || !token)
		return r || (*out->token && *out->key) ? r : refuse(why, "no label of a token and a key", key);
	r = plain(named, sizeof(named), token, why);
	/* The PIN is that token's, and goes to no other. */
	if (!r && *out->token && strcmp(out->token, named))
		return refuse(why, "the key is on another token than [pkcs11] token", key);
	if (!r)
		memcpy(out->token, named, sizeof(named));
	return r || *out->key ? r : refuse(why, "no label of a key", key);
}

static char *encode(char *to, const char *label)
{
	static const char digits[] = "0123456789ABCDEF";

	for (; *label; label++) {
		unsigned char c = (unsigned char)*label;

		if (c < 128 && (isalnum(c) || strchr("-._~", c))) {
			*to++ = (char)c;
			continue;
		}
		*to++ = '%';
		*to++ = digits[c >> 4];
		*to++ = digits[c & 15];
	}
	return to;
}

void p11_name_uri(char out[static KMS_KEY_MAX + 1], const struct p11_name *name)
{
	static const char token[] = "pkcs11:token=", object[] = ";object=";
	char *p = out;

	_Static_assert(sizeof(token) + sizeof(object) + 3 * (P11_LABEL + P11_KEY) < KMS_KEY_MAX, "a name fits");
	memcpy(p, token, sizeof(token) - 1);
	p = encode(p + sizeof(token) - 1, name->token);
	memcpy(p, object, sizeof(object) - 1);
	*encode(p + sizeof(object) - 1, name->key) = '\0';
}
