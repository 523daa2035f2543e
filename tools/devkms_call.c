/* devkms_call.c — arguments, answers and errors of one KMS operation, in the words AWS uses for them. */
#include <errno.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <strings.h>

#include "bytes.h"
#include "devkms.h"
#include "jsonio.h"

int dk_fail(struct dk_call *c, const char *type, const char *fmt, ...)
{
	va_list ap;

	c->err.status = 400;
	(void)snprintf(c->err.type, sizeof(c->err.type), "%s", type);
	va_start(ap, fmt);
	(void)vsnprintf(c->err.message, sizeof(c->err.message), fmt, ap);
	va_end(ap);
	return -EPERM;
}

int dk_deny(struct dk_call *c, const char *action, const char *resource)
{
	return dk_fail(c, "AccessDeniedException",
	    "User: %s is not authorized to perform: %s on resource: %s because no identity-based policy allows the "
	    "%s action",
	    c->caller.arn, action, resource, action);
}

const char *dk_req_header(const struct dk_request *r, const char *name)
{
	for (size_t i = 0; i < r->headers; i++)
		if (strcasecmp(r->header[i].name, name) == 0)
			return r->header[i].value;
	return NULL;
}

void dk_uuid(char out[37])
{
	uint8_t r[16];
	char hex[33];

	randombytes_buf(r, sizeof(r));
	r[6] = (uint8_t)((r[6] & 0x0f) | 0x40);
	r[8] = (uint8_t)((r[8] & 0x3f) | 0x80);
	bytes_hex(hex, r, sizeof(r));
	(void)snprintf(out, 37, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

/* AWS names members with a lower-case first letter in its complaints. */
static const char *complain_name(const char *member, char out[static 64])
{
	(void)snprintf(out, 64, "%s", member);
	if (out[0] >= 'A' && out[0] <= 'Z')
		out[0] = (char)(out[0] - 'A' + 'a');
	return out;
}

static int complain(struct dk_call *c, const char *member, const char *value, const char *rule, long long bound)
{
	char name[64], shown[96] = "", limit[24] = "";

	if (value)
		(void)snprintf(shown, sizeof(shown), " '%.80s'", value);
	if (bound >= 0)
		(void)snprintf(limit, sizeof(limit), "%lld", bound);
	return dk_fail(c, "ValidationException",
	    "1 validation error detected: Value%s at '%s' failed to satisfy constraint: %s%s", shown,
	    complain_name(member, name), rule, limit);
}

int dk_arg_opt(struct dk_call *c, const char *member, size_t min, size_t max, const char **out)
{
	const json_t *v = json_object_get(c->in, member);
	size_t len;

	*out = NULL;
	if (!v || json_is_null(v))
		return 0;
	if (!json_is_string(v))
		return dk_fail(c, "SerializationException", "class of member %s is not a string", member);
	len = json_string_length(v);
	if (strlen(json_string_value(v)) != len)
		return dk_fail(c, "SerializationException", "member %s contains a null character", member);
	if (len < min)
		return complain(c, member, json_string_value(v), "Member must have length greater than or equal to ",
		    (long long)min);
	if (len > max)
		return complain(
		    c, member, json_string_value(v), "Member must have length less than or equal to ", (long long)max);
	*out = json_string_value(v);
	return 0;
}

int dk_arg_str(struct dk_call *c, const char *member, size_t min, size_t max, const char **out)
{
	int r = dk_arg_opt(c, member, min, max, out);
	char name[64];

	if (r == 0 && !*out)
		return dk_fail(c, "ValidationException",
		    "1 validation error detected: Value null at '%s' failed to satisfy constraint: Member must not "
		    "be null",
		    complain_name(member, name));
	return r;
}

int dk_arg_int(struct dk_call *c, const char *member, int64_t min, int64_t max, int64_t fallback, int64_t *out)
{
	const json_t *v = json_object_get(c->in, member);
	char text[24];

	*out = fallback;
	if (!v || json_is_null(v))
		return 0;
	if (!json_is_integer(v))
		return dk_fail(c, "SerializationException", "class of member %s is not an integer", member);
	*out = json_integer_value(v);
	(void)snprintf(text, sizeof(text), "%lld", (long long)*out);
	if (*out < min)
		return complain(c, member, text, "Member must have value greater than or equal to ", min);
	if (*out > max)
		return complain(c, member, text, "Member must have value less than or equal to ", max);
	return 0;
}

int dk_arg_bool(struct dk_call *c, const char *member, bool *out)
{
	const json_t *v = json_object_get(c->in, member);

	*out = false;
	if (!v || json_is_null(v))
		return 0;
	if (!json_is_boolean(v))
		return dk_fail(c, "SerializationException", "class of member %s is not a boolean", member);
	*out = json_is_true(v);
	return 0;
}

int dk_arg_blob(struct dk_call *c, const char *member, size_t max, struct dk_bytes *out)
{
	const char *text;
	int n, r = dk_arg_str(c, member, 0, DK_BODY_MAX, &text);

	if (r < 0)
		return r;
	n = bytes_unb64(B64_STD, out->b, max < sizeof(out->b) ? max : sizeof(out->b), text, strlen(text));
	if (n == -E2BIG)
		return complain(c, member, NULL, "Member must have length less than or equal to ", (long long)max);
	if (n < 0)
		return dk_fail(c, "SerializationException", "member %s is not base64", member);
	if (n == 0)
		return complain(c, member, NULL, "Member must have length greater than or equal to 1", -1);
	out->len = (size_t)n;
	return 0;
}

void dk_put_str(struct dk_call *c, const char *member, const char *value)
{
	(void)json_object_set_new(c->out, member, json_string(value));
}

void dk_put_blob(struct dk_call *c, const char *member, const uint8_t *p, size_t n)
{
	CLEANUP_FREE char *text = malloc(bytes_b64_size(n));

	if (!text)
		return;
	(void)bytes_b64(B64_STD, text, p, n);
	dk_put_str(c, member, text);
	sodium_memzero(text, bytes_b64_size(n));
}

void dk_put_hex(struct dk_call *c, const char *member, const uint8_t *p, size_t n)
{
	char text[65];

	bytes_hex(text, p, n < 32 ? n : 32);
	dk_put_str(c, member, text);
}
