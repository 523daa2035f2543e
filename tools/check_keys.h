/* check_keys.h — the keys that `check --data` opens: each key domain's when the walk first comes to it, and files'.
 *
 * Domains stay open by leases, as in a mount: a key that is denied meanwhile closes its domain, and what has not been
 * looked at by then is not. */
#ifndef BYOKFS_CHECK_KEYS_H
#define BYOKFS_CHECK_KEYS_H

#include "config.h"
#include "header.h"
#include "kdf.h"
#include "name.h"
#include "store.h"

struct check_keys;

#define CHECK_WHY 400u

/* Opens the root's domain and authenticates the store. EXIT_OK, or an exit code: an error was printed. */
MUST_CHECK int check_keys_open(struct check_keys **, struct store *, const struct config *);
/* NULL is fine. */
void check_keys_close(struct check_keys *);
/* The same for a domain that a directory belongs to; only the thread that walks. EXIT_OK, or why it stays shut. */
MUST_CHECK int check_keys_enter(struct check_keys *, uint16_t index, char why[static CHECK_WHY]);
/* Its names, until put back; NULL when it is not open (any more). Any thread. */
const struct name_keys *check_keys_get(struct check_keys *, uint16_t index);
void check_keys_put(struct check_keys *, uint16_t index);

enum check_key { CHECK_KEY_OK, CHECK_KEY_BROKEN /* damage: no slot opens to it */, CHECK_KEY_REFUSED };
/* A file's keys, as IDENT and the slots of its page 0 say; out is the caller's, in secret memory. Asks the KMS, on this
 * thread. A domain whose key was denied, or whose KMS cannot be reached, is not asked again. */
enum check_key check_keys_file(struct check_keys *, uint16_t index, const uint8_t page[static LAYOUT_PAGE],
    const struct header_ident *, struct file_keys *out, char why[static CHECK_WHY]);
/* True once for each domain: for telling why its files' keys do not come. */
bool check_keys_first(struct check_keys *, uint16_t index);
/* Was a domain that had opened shut for a while, so that some names, links and attributes were not authenticated? */
bool check_keys_lapsed(const struct check_keys *);
/* The worst that kept something shut, as an exit code; EXIT_OK: nothing. */
int check_keys_code(const struct check_keys *);

#endif
