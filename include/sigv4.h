/* sigv4.h — AWS Signature Version 4 for requests whose whole body is at hand. Pure: time and credentials are
 * arguments.
 *
 * AWS General Reference, "Signing AWS API requests"; checked against aws-c-auth's vectors and botocore. */
#ifndef BYOKFS_SIGV4_H
#define BYOKFS_SIGV4_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

struct sigv4_credentials {
	char access_key[129];
	char secret_key[129];
	char *session_token; /* NULL: long-term; NUL-terminated, owned by whoever made the struct */
};

struct sigv4_header {
	const char *name; /* any case */
	const char *value;
};

struct sigv4_request {
	const char *method;
	const char *path;  /* absolute, as sent (percent-encoded) */
	bool exact_path;   /* keep dot segments and doubled slashes, as S3 wants; every other service normalises
	                    */
	const char *query; /* without '?', as sent; "" for none */
	const struct sigv4_header
	    *header; /* what will be sent and signed, Host included; x-amz-date and token are added here */
	size_t nheader;
	const void *body;
	size_t bodylen;
	const char *region, *service;
	int64_t time; /* Unix seconds, already corrected for skew */
};

struct sigv4_signature {
	char amz_date[17];        /* "YYYYMMDDTHHMMSSZ" */
	char authorization[1024]; /* value of the Authorization header */
};

/* 0; -EINVAL when a part is malformed or too long; -ENOMEM; -EIO when the library fails. Signs x-amz-date,
 * and x-amz-security-token when there is a token: send both headers with exactly these values. */
MUST_CHECK int sigv4_sign(struct sigv4_signature *out, const struct sigv4_request *, const struct sigv4_credentials *);
/* The canonical request, an empty line, the string to sign; for tests and debugging; malloc'ed. */
MUST_CHECK int sigv4_canonical(char **out, const struct sigv4_request *, const struct sigv4_credentials *);

#endif
