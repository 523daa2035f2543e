/* context.c — encryption contexts.
 *
 * Hides the names of our own pairs, the rules for the administrator's, and the one byte encoding E() that
 * providers without maps and the key derivation share.                                                   */
#include "context.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"

static bool valid_name(const char *name, size_t len)
{
	if (len == 0 || len > sizeof(((struct context_pair *)0)->name) - 1)
		return false;
	if (strncmp(name, "byokfs-", 7) == 0 || strncmp(name, "aws", 3) == 0)
		return false;
	return strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") >= len;
}

static bool valid_value(const char *value, size_t len)
{
	if (len == 0)
		return false;
	for (size_t i = 0; i < len; i++)
		if (value[i] < 0x20 || value[i] > 0x7e)
			return false;
	return true;
}

static int add_pair(struct context_extra *extra, const char *name, size_t namelen, const char *value, size_t valuelen)
{
	size_t total = 0;
	struct context_pair *pair;

	if (extra->n >= CONTEXT_EXTRA_MAX || valuelen > CONTEXT_EXTRA_BYTES || !valid_name(name, namelen) ||
	    !valid_value(value, valuelen))
		return -EINVAL;
	for (size_t i = 0; i < extra->n; i++) {
		const struct context_pair *other = &extra->pair[i];

		if (strlen(other->name) == namelen && strncmp(other->name, name, namelen) == 0)
			return -EINVAL;
		total += strlen(other->name) + strlen(other->value);
	}
	if (total + namelen + valuelen > CONTEXT_EXTRA_BYTES)
		return -EINVAL;
	pair = &extra->pair[extra->n++];
	memset(pair, 0, sizeof(*pair));
	memcpy(pair->name, name, namelen);
	memcpy(pair->value, value, valuelen);
	return 0;
}

int context_add_extra(struct context_extra *extra, const char *name, const char *value)
{
	return add_pair(extra, name, strlen(name), value, strlen(value));
}

/* Narrows [*from, *to) to what is left without blanks around. */
static void trim(const char **from, const char **to)
{
	while (*from < *to && (**from == ' ' || **from == '\t'))
		(*from)++;
	while (*to > *from && ((*to)[-1] == ' ' || (*to)[-1] == '\t'))
		(*to)--;
}

/* One "name:value"; the value may hold further colons, as ARNs do. */
static int parse_item(struct context_extra *out, const char *from, const char *to)
{
	const char *name_end, *value;

	trim(&from, &to);
	name_end = memchr(from, ':', (size_t)(to - from));
	if (!name_end)
		return -EINVAL;
	value = name_end + 1;
	trim(&from, &name_end);
	trim(&value, &to);
	return add_pair(out, from, (size_t)(name_end - from), value, (size_t)(to - value));
}

int context_parse_extra(struct context_extra *out, const char *text)
{
	const char *end = text + strlen(text);
	int rc = 0;

	memset(out, 0, sizeof(*out));
	trim(&text, &end);
	if (text == end || (end - text == 1 && *text == '-'))
		return 0;
	while (rc == 0) {
		const char *comma = memchr(text, ',', (size_t)(end - text));

		rc = parse_item(out, text, comma ? comma : end);
		if (!comma)
			break;
		text = comma + 1;
	}
	if (rc != 0)
		memset(out, 0, sizeof(*out));
	return rc;
}

/* Keeps the pairs ascending. The caller never exceeds CONTEXT_PAIRS_MAX. */
static void insert(struct context *out, const char *name, const char *value)
{
	size_t at = out->n++;

	for (; at > 0 && strcmp(out->pair[at - 1].name, name) > 0; at--)
		out->pair[at] = out->pair[at - 1];
	(void)snprintf(out->pair[at].name, sizeof(out->pair[at].name), "%s", name);
	(void)snprintf(out->pair[at].value, sizeof(out->pair[at].value), "%s", value);
}

static void insert_id(struct context *out, const char *name, const uint8_t *id)
{
	char hex[2 * CONTEXT_ID + 1];

	bytes_hex(hex, id, CONTEXT_ID);
	insert(out, name, hex);
}

static const char *use_name(enum context_use use)
{
	switch (use) {
	case CONTEXT_FILE:
		return "file";
	case CONTEXT_DOMAIN:
		return "domain";
	case CONTEXT_PROBE:
		break;
	}
	return "probe";
}

void context_build(struct context *out, enum context_use use, const struct context_ids *ids, const uint8_t *file_id,
    const struct context_extra *extra)
{
	memset(out, 0, sizeof(*out));
	insert_id(out, "byokfs-store", ids->store);
	insert_id(out, "byokfs-domain", ids->domain);
	if (use == CONTEXT_FILE)
		insert_id(out, "byokfs-file", file_id);
	insert(out, "byokfs-use", use_name(use));
	for (size_t i = 0; extra && i < extra->n; i++)
		insert(out, extra->pair[i].name, extra->pair[i].value);
}

static size_t put_string(uint8_t *out, const char *s)
{
	size_t len = strlen(s);

	le16_put(out, (uint16_t)len);
	memcpy(out + 2, s, len);
	return 2 + len;
}

size_t context_encode(uint8_t out[static CONTEXT_ENCODED_MAX], const struct context *context)
{
	size_t n = 0;

	for (size_t i = 0; i < context->n; i++) {
		n += put_string(out + n, context->pair[i].name);
		n += put_string(out + n, context->pair[i].value);
	}
	return n;
}

static size_t put_id(uint8_t *out, const char *name, const uint8_t *id)
{
	char hex[2 * CONTEXT_ID + 1];
	size_t n = put_string(out, name);

	bytes_hex(hex, id, CONTEXT_ID);
	return n + put_string(out + n, hex);
}

size_t context_canonical(uint8_t out[static 256], const struct context_ids *ids, const uint8_t *file_id)
{
	size_t n = put_id(out, "byokfs-domain", ids->domain);

	if (file_id)
		n += put_id(out + n, "byokfs-file", file_id);
	n += put_id(out + n, "byokfs-store", ids->store);
	n += put_string(out + n, "byokfs-use");
	return n + put_string(out + n, use_name(file_id ? CONTEXT_FILE : CONTEXT_DOMAIN));
}
