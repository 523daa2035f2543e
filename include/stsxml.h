/* stsxml.h — what an answer of AWS's Security Token Service says. The only user of expat.
 *
 * Query protocol of 2011-06-15. A document type declaration, and so any entity, is refused; depth and lengths are
 * bounded; the parser's memory is wiped. Unknown elements are passed over. */
#ifndef BYOKFS_STSXML_H
#define BYOKFS_STSXML_H

#include <stddef.h>

#include "cleanup.h"

/* Empty text: not there. Holds secrets: keep it in secret memory. */
struct stsxml {
	char access_key[129], secret_key[129], token[8192], expiration[40]; /* of Credentials */
	char arn[300];                                                      /* of AssumedRoleUser, or the caller's */
	char code[96], message[256];                                        /* of Error */
	char request_id[128];
};

/* 0, -EINVAL (no well-formed document, a DOCTYPE, an element twice, one too long), -ENOMEM. Pure. */
MUST_CHECK int stsxml_parse(struct stsxml *out, const char *text, size_t len);

#endif
