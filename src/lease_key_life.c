/* One file's keys from derivation to wipe.
 *
 * Locked memory is scarce, and others of this process want some: when there is none, the keys that were used longest
 * ago make room. */
#include <errno.h>

#include "io.h"
#include "lease_internal.h"
#include "log.h"
#include "secret.h"

#define LOG_WINDOW_MS 10000u
#define LOG_LINES     20u

struct lease_key *lease_key_new(struct lease_keys *k, const uint8_t file[static CONTEXT_ID])
{
	struct lease_key *key = calloc(1, sizeof(*key));

	if (!key)
		return NULL;
	key->owner = k;
	memcpy(key->file, file, CONTEXT_ID);
	return key;
}

void lease_key_free(struct lease_key *key)
{
	if (!key)
		return;
	if (key->loaded)
		block_forget(key->block.serial);
	secret_free(key->keys);
	free(key->blob);
	free(key->other);
	free(key->fresh);
	free(key->made);
	free(key);
}

void lease_key_free_all(struct lease_key *list)
{
	while (list) {
		struct lease_key *next = list->next;

		lease_key_free(list);
		list = next;
	}
}

struct file_keys *lease_key_derive(
    struct lease_keys *k, const uint8_t file[static CONTEXT_ID], const uint8_t secret[static KDF_SECRET])
{
	struct file_keys *keys = secret_alloc(sizeof(*keys));

	if (!keys && lease_keys_shed(k))
		keys = secret_alloc(sizeof(*keys));
	if (keys && kdf_file(keys, secret, &k->lease->ids, file)) {
		secret_free(keys);
		return NULL;
	}
	return keys;
}

void lease_key_load(struct lease_key *key, struct file_keys *keys, uint64_t sent)
{
	const struct lease *l = key->owner->lease;

	key->keys = keys;
	key->block.serial = block_serial();
	key->block.suite = l->ids.suite;
	memcpy(key->block.store, l->ids.store, CONTEXT_ID);
	memcpy(key->block.file, key->file, CONTEXT_ID);
	key->block.key = keys->page;
	memcpy(key->commit, keys->commit, sizeof(key->commit));
	key->unwrapped = sent;
	key->refresh = sent + l->times.max_age_ms / 5 * 4;
	lease_key_touch(key);
	key->loaded = true;
}

bool lease_key_unref(struct lease_key *key)
{
	return --key->refs == 0 && !key->listed;
}

static bool same_blob(const struct lease_blob *blob, const struct header_slot *slot)
{
	return blob && blob->wrap == slot->wrap && blob->generation == slot->generation && blob->len == slot->len &&
	    bytes_equal(blob->key_hash, slot->key_hash, sizeof(blob->key_hash)) &&
	    memcmp(blob->bytes, slot->blob, slot->len) == 0;
}

static int set_blob(struct lease_blob **at, const struct header_slot *slot)
{
	struct lease_blob *blob;

	if (slot->len == 0 || slot->len > HEADER_BLOB_MAX)
		return -EIO;
	if (same_blob(*at, slot))
		return 0;
	blob = malloc(sizeof(*blob) + slot->len);
	if (!blob)
		return -ENOMEM;
	blob->wrap = slot->wrap;
	memcpy(blob->key_hash, slot->key_hash, sizeof(blob->key_hash));
	blob->generation = slot->generation;
	blob->len = slot->len;
	memcpy(blob->bytes, slot->blob, slot->len);
	free(*at);
	*at = blob;
	return 0;
}

int lease_key_set_blob(struct lease_key *key, const struct header_slot *slot)
{
	return set_blob(&key->blob, slot);
}

int lease_key_set_other(struct lease_key *key, const struct header_slot *slot)
{
	return same_blob(key->blob, slot) ? 0 : set_blob(&key->other, slot);
}

int lease_key_set_fresh(struct lease_key *key, const struct header_slot *slot)
{
	return set_blob(&key->fresh, slot);
}

void lease_park(struct lease_keys *k, struct lease_waiter **list, struct lease_waiter *w)
{
	/* Its own call and, at worst, the one a busy KMS thread is in. */
	w->deadline = lease_clock() + 2 * k->lease->call_ms;
	w->next = *list;
	*list = w;
	k->parked++;
}

void lease_tell(struct lease_waiter *list, int result)
{
	while (list) {
		struct lease_waiter *w = list;

		list = w->next;
		w->next = NULL;
		w->result = result;
		w->ready(w);
	}
}

/* May another line be logged? A damaged file read in a loop must not fill the log. */
static bool may_log(struct lease_keys *k)
{
	uint64_t now = lease_clock();

	LOCK_SCOPE(&k->lock);
	if (now - k->log_since >= LOG_WINDOW_MS) {
		k->log_since = now;
		k->log_lines = 0;
	}
	return k->log_lines++ < LOG_LINES;
}

void lease_complain(struct lease_keys *k, const uint8_t *file, const char *what)
{
	char id[2 * CONTEXT_ID + 1] = "";

	if (!may_log(k))
		return;
	if (file)
		bytes_hex(id, file, CONTEXT_ID);
	log_err("%s%s: %s", file ? "key of file " : "new file key", id, what);
}

static void drop_ref(struct lease_keys *k, struct lease_key *key)
{
	bool last;

	{
		LOCK_SCOPE(&k->lock);
		lease_key_touch(key);
		last = lease_key_unref(key);
	}
	if (last)
		lease_key_free(key);
}

void lease_key_put(struct lease_key *key)
{
	if (key)
		drop_ref(key->owner, key);
}

void lease_waiter_cancel(struct lease_waiter *w)
{
	lease_key_put(w->key);
	w->key = NULL;
}

const struct file_keys *lease_key_file(const struct lease_key *key)
{
	return key->keys;
}

const struct block_file *lease_key_block(const struct lease_key *key)
{
	return key->loaded ? &key->block : NULL;
}
