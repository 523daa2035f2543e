/* jsonio.c — jansson with limits.
 *
 * Hides: the depth check before the parser sees the text (jansson's own limit is 2048), jansson's flags, and
 * that text printed by jansson comes from jansson's allocator, which free(3) must not see. */
#include "jsonio.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "bytes.h"
#include "secret.h"

#define DEPTH_MAX       16
#define PRINT_FLAGS     (JSON_COMPACT | JSON_ENCODE_ANY)
#define SECRET_TEXT_USUAL 2048u
#define SECRET_TEXT_MAX 65535u

/* Brackets outside strings; whether they match is the parser's business. */
static bool too_deep(const char *text, size_t len)
{
	bool in_string = false;
	size_t depth = 0;

	for (size_t i = 0; i < len; i++) {
		if (in_string && text[i] == '\\')
			i++;
		else if (text[i] == '"')
			in_string = !in_string;
		else if (!in_string && (text[i] == '{' || text[i] == '[')) {
			if (++depth > DEPTH_MAX)
				return true;
		} else if (!in_string && (text[i] == '}' || text[i] == ']') && depth)
			depth--;
	}
	return false;
}

json_t *jsonio_parse(const char *text, size_t len, size_t max)
{
	if (!text || len > max || too_deep(text, len))
		return NULL;
	return json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
}

const char *jsonio_str(const json_t *obj, const char *member)
{
	return json_string_value(json_object_get(obj, member));
}

int jsonio_copy(char *out, size_t size, const json_t *obj, const char *member)
{
	const json_t *value = json_object_get(obj, member);
	size_t len;

	if (!value)
		return -ENOENT;
	if (!json_is_string(value))
		return -EINVAL;
	len = json_string_length(value);
	if (len >= size)
		return -E2BIG;
	memcpy(out, json_string_value(value), len + 1);
	return 0;
}

int jsonio_blob(uint8_t *out, size_t *len, const json_t *obj, const char *member)
{
	const json_t *value = json_object_get(obj, member);
	int n;

	if (!value)
		return -ENOENT;
	if (!json_is_string(value))
		return -EINVAL;
	n = bytes_unb64(B64_STD, out, *len, json_string_value(value), json_string_length(value));
	if (n < 0)
		return n;
	*len = (size_t)n;
	return 0;
}

json_t *jsonio_text(const char *s)
{
	json_t *v = json_string(s);
	char *safe = v ? NULL : malloc(4 * strlen(s) + 1), *p = safe;

	for (; safe && *s; s++)
		p += snprintf(p, 5, (unsigned char)*s < 0x80 ? "%c" : "\\x%02x", (unsigned char)*s);
	if (!v && safe)
		v = json_stringn(safe, (size_t)(p - safe));
	free(safe);
	return v;
}

/* jansson may run out of memory between measuring and printing. */
static bool print_into(char *out, size_t len, const json_t *json)
{
	if (json_dumpb(json, out, len, PRINT_FLAGS) != len)
		return false;
	out[len] = '\0';
	return true;
}

char *jsonio_print(const json_t *json)
{
	size_t len = json_dumpb(json, NULL, 0, PRINT_FLAGS);
	CLEANUP_FREE char *out = len ? malloc(len + 1) : NULL;

	return out && print_into(out, len, json) ? steal_ptr(&out) : NULL;
}

/* Most fit at once; measuring costs as much as printing. */
char *jsonio_print_secret(const json_t *json)
{
	char *out = secret_alloc(SECRET_TEXT_USUAL);
	size_t len = out ? json_dumpb(json, out, SECRET_TEXT_USUAL, PRINT_FLAGS) : 0;

	if (len && len < SECRET_TEXT_USUAL) {
		out[len] = '\0';
		return out;
	}
	secret_free(out);
	out = len && len <= SECRET_TEXT_MAX ? secret_alloc(len + 1) : NULL;
	if (!out || print_into(out, len, json))
		return out;
	secret_free(out);
	return NULL;
}
