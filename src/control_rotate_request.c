/* control_rotate_request.c — what a rotator sends, taken apart. Hides its encodings; whoever may connect is root or the
 * mount's own user, yet what he passes on comes from a store and a key service. */
#include <limits.h>
#include <string.h>

#include "bytes.h"
#include "control.h"
#include "jsonio.h"
#include "reseal.h"

static bool take_number(uint64_t *out, uint64_t max, const json_t *o, const char *member)
{
	const json_t *v = json_object_get(o, member);

	if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > max)
		return false;
	*out = (uint64_t)json_integer_value(v);
	return true;
}

static bool take_hex(uint8_t *out, size_t n, const json_t *o, const char *member)
{
	const char *hex = jsonio_str(o, member);

	return hex && bytes_unhex(out, n, hex, strlen(hex)) == 0;
}

static bool take_blob(uint8_t out[static DESCRIPTOR_BLOB_MAX], uint16_t *len, const json_t *o, const char *member)
{
	size_t n = DESCRIPTOR_BLOB_MAX;

	if (jsonio_blob(out, &n, o, member) || n == 0)
		return false;
	*len = (uint16_t)n;
	return true;
}

static bool take_slot(struct descriptor_slot *s, const json_t *o)
{
	const char *provider = jsonio_str(o, "provider");
	uint64_t sealed;

	s->provider = provider ? kms_provider_from_name(provider) : 0;
	if (json_object_get(o, "material") && !take_hex(s->material, sizeof(s->material), o, "material"))
		return false;
	if (!s->provider || jsonio_copy(s->key, sizeof(s->key), o, "key") || !s->key[0] ||
	    !take_number(&sealed, INT64_MAX, o, "sealed"))
		return false;
	s->sealed = (int64_t)sealed;
	return take_blob(s->blob, &s->blob_len, o, "blob") && take_blob(s->probe, &s->probe_len, o, "probe");
}

bool control_rotate_wish(struct reseal_wish *w, const json_t *request)
{
	const json_t *context = json_object_get(request, "context");

	memset(w, 0, sizeof(*w));
	if (context) {
		if (!json_is_string(context) || context_parse_extra(&w->extra, json_string_value(context)))
			return false;
		w->have_extra = true;
	}
	return take_number(&w->seq, INT64_MAX, request, "seq") && take_slot(&w->slot, json_object_get(request, "slot"));
}

/* The 512 bytes as they would stand in page 0. */
static bool take_file_slot(struct header_slot *slot, const json_t *item)
{
	uint8_t page[LAYOUT_PAGE];
	size_t n = HEADER_SLOT_BYTES;

	return jsonio_blob(page + HEADER_SLOT_AT(0), &n, item, "slot") == 0 && n == HEADER_SLOT_BYTES &&
	    header_slot(page, 0, slot) == 0;
}

static bool take_path(char *path, const json_t *item)
{
	const char *hex = jsonio_str(item, "path");
	size_t n = hex ? strlen(hex) / 2 : 0;

	if (n == 0 || n >= PATH_MAX || bytes_unhex((uint8_t *)path, n, hex, strlen(hex)))
		return false;
	path[n] = '\0';
	return strlen(path) == n;
}

/* One of three names. */
static bool take_name(struct reseal_item *out, char *path, const json_t *item, const struct ctl_fds *fds)
{
	uint64_t which;

	if (json_object_get(item, "path"))
		return take_path(path, item);
	if (json_object_get(item, "node"))
		return take_number(&out->node, UINT32_MAX, item, "node") && out->node;
	if (!fds->n || !take_number(&which, fds->n - 1, item, "fd"))
		return false;
	out->fd = fds->fd[which];
	return true;
}

bool control_rotate_item(struct reseal_item *out, char *path, struct header_slot *slot, const json_t *item,
    const struct ctl_fds *fds)
{
	uint64_t seq;

	*out = (struct reseal_item){ .fd = -1 };
	if (!take_name(out, path, item, fds))
		return false;
	if (!take_number(&out->ino, INT64_MAX, item, "ino") ||
	    !take_hex(out->file, sizeof(out->file), item, "file") || !take_number(&seq, UINT32_MAX, item, "seq"))
		return false;
	out->path = json_object_get(item, "path") ? path : NULL;
	out->seq = (uint32_t)seq;
	if (!json_object_get(item, "slot"))
		return true;
	out->slot = slot;
	return take_file_slot(slot, item);
}
