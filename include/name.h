/* name.h — names, directory ids, symlink targets, extended attributes (format.md 7). Pure but for nonces.
 *
 * AES-256-SIV is RFC 5297. struct name_keys caches keyed cipher contexts per domain; it is made when the domain opens
 * and freed (wiped) when it locks. Functions are thread-safe: contexts are copied or pooled inside.              */
#ifndef BYOKFS_NAME_H
#define BYOKFS_NAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "kdf.h"

#define NAME_MAX_PLAIN       255u
#define NAME_ENTRY_MAX       255u /* characters of an entry, without NUL */
#define NAME_LONG_TARGET_MAX 400u /* characters of an L.*.n content */
#define NAME_DIR_ID_TEXT     46u  /* characters of a .byokfs.d content */
#define NAME_DIR_FILE        ".byokfs.d"
#define NAME_RESERVED        ".byokfs"
#define NAME_LINK_MAX        4095u

enum name_mode { NAME_SIV64, NAME_SIV32, NAME_PLAIN };

struct name_keys;

/* Copies what it needs out of domain_keys. -ENOMEM or -EIO. name_free(NULL) is fine; wipes. */
MUST_CHECK int name_open(
    struct name_keys **out, enum name_mode, const struct domain_keys *, const struct context_ids *);
void name_free(struct name_keys *);
enum name_mode name_mode(const struct name_keys *);

/* One encrypted entry. long_target is empty for short names, else the content of the symlink "<entry>.n". */
struct name_entry {
	char entry[NAME_ENTRY_MAX + 1];
	char long_target[NAME_LONG_TARGET_MAX + 1];
};
/* 0; -ENAMETOOLONG over 255 bytes; -EPERM for a reserved name in plain mode; -EINVAL for "", ".", "..", or a name with
 * '/' or NUL; -ENOMEM, -EIO (the library failed). */
MUST_CHECK int name_encrypt(
    const struct name_keys *, const uint8_t dirid[static 16], const char *name, size_t len, struct name_entry *out);

/* What an entry of the backing directory is: NAME_SKIP: reserved (".byokfs*", "L.*.n"), NAME_LONG: needs the content of
 * "<entry>.n", NAME_SHORT: decrypt it. */
enum name_kind { NAME_SKIP, NAME_SHORT, NAME_LONG };
enum name_kind name_kind(const struct name_keys *, const char *entry);
/* Plain name of an entry; long_target only for NAME_LONG. out holds 256; returns its length (NUL added) or -EBADMSG
 * (or, as every function here, -ENOMEM or -EIO when the library fails). */
MUST_CHECK int name_decrypt(const struct name_keys *, const uint8_t dirid[static 16], const char *entry,
    const char *long_target, char out[static NAME_MAX_PLAIN + 1]);

/* Content of .byokfs.d. out holds NAME_DIR_ID_TEXT + 1. */
void name_dir_make(const struct name_keys *, uint16_t domain_index, const uint8_t dirid[static 16], char *out);
/* 0 or -EBADMSG. */
MUST_CHECK int name_dir_parse(
    const struct name_keys *, const char *text, size_t len, uint16_t *domain_index, uint8_t dirid[static 16]);

/* What it claims, not authenticated: a hint which keys to verify it with. 0 or -EBADMSG. */
MUST_CHECK int name_dir_peek(const char *text, size_t len, uint16_t *domain_index, uint8_t dirid[static 16]);

/* Symlink targets: out holds NAME_LINK_TEXT(len). Returns text length, -ENAMETOOLONG (over max_text) or
 * -EINVAL (empty, or with a NUL). */
#define NAME_LINK_TEXT(len) (((len) + 8u + 16u + 2u) / 3u * 4u + 1u)
MUST_CHECK int name_link_encrypt(const struct name_keys *, const char *target, size_t len, char *out, size_t max_text);
/* out holds NAME_LINK_MAX + 1; returns its length or -EBADMSG. */
MUST_CHECK int name_link_decrypt(const struct name_keys *, const char *text, size_t len, char *out);
/* The same with a given salt, for tests and vectors. */
MUST_CHECK int name_link_encrypt_with_salt(
    const struct name_keys *, const uint8_t salt[static 8], const char *target, size_t len, char *out, size_t max_text);
/* st_size of a link from the length of its content. */
static inline uint64_t name_link_size(uint64_t textlen)
{
	uint64_t n = 3 * textlen / 4;

	return n > 24 ? n - 24 : 0;
}

/* Extended attributes. id: file_id from IDENT, or dirid. Backing name "user.byokfs."+base64url. A name over
 * NAME_XATTR_SHORT bytes has the backing name "user.byokfs.L." + a hash of its ciphertext, which is the head of what is
 * stored. What is over NAME_XATTR_FIRST bytes has its rest in a second attribute, the part, under a name of its own. */
#define NAME_XATTR_MAX       255u
#define NAME_XATTR_SHORT     160u
#define NAME_XATTR_BACKING   256u
#define NAME_XATTR_OVERHEAD  40u
#define NAME_XATTR_VALUE_MAX 65536u
#define NAME_XATTR_FIRST     65536u
#define NAME_XATTR_HEAD      272u
#define NAME_XATTR_TAG       16u
#define NAME_XATTR_REST      (NAME_XATTR_HEAD + NAME_XATTR_TAG + NAME_XATTR_OVERHEAD)
#define NAME_XATTR_STORED    (NAME_XATTR_FIRST + NAME_XATTR_REST)
MUST_CHECK int name_xattr_encrypt(const struct name_keys *, const uint8_t id[static 16], const char *name,
    char out[static NAME_XATTR_BACKING]); /* 0; -ERANGE for "" and over 255 bytes */
/* Plain name (NUL added, out holds 256) or -EBADMSG (not ours, or a long one, whose name is in what is stored). */
MUST_CHECK int name_xattr_decrypt(
    const struct name_keys *, const uint8_t id[static 16], const char *backing, char *out);
bool name_xattr_is_long(const char *backing);
bool name_xattr_is_part(const char *backing);
/* Bytes that a single attribute of this backing name has besides the value. */
size_t name_xattr_over(const char *backing);
/* As name_xattr_decrypt, of either form: stored is what the attribute holds. */
MUST_CHECK int name_xattr_name(const struct name_keys *, const uint8_t id[static 16], const char *backing,
    const uint8_t *stored, size_t n, char *out);

struct name_xattr {
	char backing[NAME_XATTR_BACKING];
	char part[NAME_XATTR_BACKING]; /* "" without a second part */
	size_t first, rest;            /* bytes */
};
/* What to store for this name and value: first, then rest, bytes of out, which holds n + NAME_XATTR_REST. The part's
 * name is a new one each time. 0, -ERANGE, -E2BIG over NAME_XATTR_VALUE_MAX, -EIO, -ENOMEM. */
MUST_CHECK int name_xattr_pack(const struct name_keys *, const uint8_t id[static 16], const char *name,
    const void *value, size_t n, uint8_t *out, struct name_xattr *);
/* Length of the value (out holds n) or -EBADMSG: of first and rest together, or of a single attribute. */
MUST_CHECK int name_xattr_unpack(const struct name_keys *, const uint8_t id[static 16], const char *backing,
    const uint8_t *stored, size_t n, void *out);
/* The part that a first attribute of NAME_XATTR_FIRST bytes names, if it is no single one. */
void name_xattr_part(const char *backing, const uint8_t *stored, char out[static NAME_XATTR_BACKING]);

/* A single attribute with a short name, piece by piece. out holds n + 40. 0, -E2BIG over NAME_XATTR_VALUE_MAX, -EIO. */
MUST_CHECK int name_xattr_seal_with_nonce(const struct name_keys *, const uint8_t id[static 16], const char *backing,
    const uint8_t nonce[static 24], const void *value, size_t n, uint8_t *out);
MUST_CHECK int name_xattr_seal(const struct name_keys *, const uint8_t id[static 16], const char *backing,
    const void *value, size_t n, uint8_t *out);
/* Length of the value (out holds n - 40) or -EBADMSG. */
MUST_CHECK int name_xattr_open(
    const struct name_keys *, const uint8_t id[static 16], const char *backing, const uint8_t *in, size_t n, void *out);

#endif
