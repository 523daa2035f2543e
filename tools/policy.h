/* policy.h — IAM documents that allow byokfs what it needs under a customer's key, and nothing else. Pure.
 *
 * Uses of the key are conditioned on the store (kms:EncryptionContext:byokfs-store) and on the names of the pairs
 * (kms:EncryptionContextKeys), always on both: ForAllValues alone is true of an empty context. DescribeKey and the
 * rotation reads carry no context and stand in statements of their own. */
#ifndef BYOKFS_POLICY_H
#define BYOKFS_POLICY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "cleanup.h"

#define POLICY_WHY       400u
#define POLICY_PRINCIPAL 256u
#define POLICY_REPLICAS  32u

/* What stands for a value nobody gave: well-formed, and allows nothing. */
#define POLICY_NO_ACCOUNT  "111122223333"
#define POLICY_NO_VENDOR   "444455556666"
#define POLICY_NO_KEY      "arn:aws:kms:us-east-1:" POLICY_NO_ACCOUNT ":key/REPLACE-WITH-KEY-ID"
#define POLICY_NO_STORE    "REPLACE-WITH-STORE-ID"
#define POLICY_NO_EXTERNAL "REPLACE-WITH-EXTERNAL-ID"

struct policy_arn {
	char partition[24], service[16], region[40], account[13];
	const char *resource; /* points into the text */
};

/* Strings are borrowed. */
struct policy {
	const char *store;
	const char *key; /* full ARN */
	const char *replica[POLICY_REPLICAS];
	size_t nreplica;
	json_t *names; /* all pair names a request may carry, byokfs's own included */
	const char *host, *rotator; /* NULL: none */
	const char *admin;          /* NULL: whoever the account's own policies allow */
	bool no_root;               /* leave out the statement that recovers a key whose administrator is gone */
	const char *trusted;        /* who may assume the host's role, or NULL: nobody has to */
	const char *external_id;
	const char *role_suffix; /* Terraform: of the documents that have this host's role; NULL: these */
};

/* arn:partition:service:region:account:resource; 0 or -EINVAL. Region and account may be empty. */
MUST_CHECK int policy_arn_parse(struct policy_arn *out, const char *text);
/* One role or user, by its lasting name. 0, or -EINVAL with why (POLICY_WHY). */
MUST_CHECK int policy_check_principal(const char *arn, char *why);
/* The same, or a whole account as its number or root: out (POLICY_PRINCIPAL) is the principal in that partition. */
MUST_CHECK int policy_trustee(char *out, const char *text, const char *partition, char *why);
MUST_CHECK int policy_check_key(const char *arn, char *why);
MUST_CHECK int policy_check_external_id(const char *text, char *why);
/* Are both Regions' copies of one multi-Region key? */
bool policy_siblings(const char *key, const char *other);

/* The documents; NULL when there is no memory or nobody to write it for. */
json_t *policy_for_key(const struct policy *);
json_t *policy_for_host(const struct policy *);
json_t *policy_for_rotator(const struct policy *);
json_t *policy_for_trust(const struct policy *);

/* Terraform for them, as `terraform fmt` would leave it. suffix: of the resources' names, "" or "_2". */
enum policy_part { POLICY_KEY = 1, POLICY_HOST = 2, POLICY_ROTATOR = 4, POLICY_TRUST = 8, POLICY_ALL = 15 };
MUST_CHECK int policy_terraform(FILE *, const struct policy *, unsigned parts, const char *suffix);
/* One HCL attribute or block body: strings quoted and escaped, {"$expr": text} as it is, {"$json": value} in
 * jsonencode(). */
void policy_hcl_body(FILE *, json_t *object, unsigned indent);

#endif
