/* name_siv.h — AES-256-SIV (RFC 5297) with two associated strings, the first fixed per key. Private to name*.c.
 *
 * Any number of threads may use one struct siv.                                             */
#ifndef BYOKFS_NAME_SIV_H
#define BYOKFS_NAME_SIV_H

#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

#define SIV_KEY 64u
#define SIV_TAG 16u

struct siv;

/* key: the MAC half, then the CTR half. ad1 is the first associated string of every call. 0, -ENOMEM or -EIO. */
MUST_CHECK int siv_open(struct siv **out, const uint8_t key[static SIV_KEY], const char *ad1);
/* Wipes; NULL is fine. Nobody may be inside. */
void siv_close(struct siv *);

/* out holds n + SIV_TAG: the synthetic IV, then the ciphertext; text and out must not overlap. 0, -ENOMEM or -EIO. */
MUST_CHECK int siv_seal(struct siv *, const uint8_t *ad2, size_t ad2len, const void *text, size_t n, uint8_t *out);
/* text holds n - SIV_TAG; wiped unless 0 is returned. -EBADMSG when it does not authenticate, -ENOMEM, -EIO. */
MUST_CHECK int siv_unseal(struct siv *, const uint8_t *ad2, size_t ad2len, const uint8_t *in, size_t n, void *text);

#endif
