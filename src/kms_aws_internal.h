/* kms_aws_internal.h — what the files of kms_aws share: where a key's Regions are, whose turn
 * it is, one signed call. */
#ifndef BYOKFS_KMS_AWS_INTERNAL_H
#define BYOKFS_KMS_AWS_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "awsclock.h"
#include "awscred.h"
#include "http.h"
#include "jsonio.h"
#include "kms_provider.h"

#define AWS_HOST_MAX 300u
#define AWS_URL_MAX  512u

/* Where requests go and what they are signed for. */
struct aws_endpoint {
	char url[AWS_URL_MAX];   /* with a path */
	char host[AWS_HOST_MAX]; /* as in the Host header */
	char path[AWS_URL_MAX];
	char region[64];
	bool plain; /* http: http.c then speaks to this host only */
};

/* --- kms_aws_region.c: whose turn it is. Pure: no clock, no lock, no network. --- */

#define AWS_REGIONS 9u /* home, which is number 0, and its replicas */

/* What one Region is known for. Times are io_boot_ms()'s, 0: not. */
struct aws_seen {
	uint64_t failing; /* since when it has not been reached */
	uint64_t good_at; /* its last success */
	uint64_t denied;  /* its denial is final for all of them since then */
	bool opening;     /* it was Decrypt that was denied: only a Decrypt proves anything else */
	unsigned good;    /* successes in a row, where two are asked for: after a denial, and of home while away */
};

struct aws_choice {
	unsigned n;        /* Regions that may be asked; 1: no failover */
	uint32_t after_ms; /* kms.failover_after */
	unsigned at;       /* asked now, unless one denied */
	uint64_t try_home; /* while away: when home is tried next on the side */
	struct aws_seen seen[AWS_REGIONS];
};

/* One call, made for one Region; until is what it may take of its deadline. */
struct aws_turn {
	unsigned region;
	bool aside;   /* home, tried on the side while away */
	bool opening; /* a Decrypt; false from aws_choice_turn() */
	uint64_t sent, until;
};

/* What came of a turn: what became of the request, beside its status. */
enum aws_reach {
	AWS_NOT_SENT, /* it never left this host */
	AWS_SENT,
	AWS_REFUSED, /* the Region says no to this key, whatever the status makes of it */
	AWS_REACHED, /* an answer came, good or bad */
};

enum aws_event { AWS_NOTHING, AWS_WENT_AWAY, AWS_MOVED, AWS_CAME_HOME, AWS_DENIED, AWS_ALLOWED };

void aws_choice_init(struct aws_choice *, unsigned n, uint32_t after_ms);
/* The Region asked now. */
unsigned aws_choice_region(const struct aws_choice *);
struct aws_turn aws_choice_turn(struct aws_choice *, uint64_t now, uint64_t deadline);
/* What came of a turn. */
enum aws_event aws_choice_told(
    struct aws_choice *, const struct aws_turn *, enum kms_status, enum aws_reach, uint64_t now);

/* --- kms_aws_endpoint.c, kms_aws_set.c: names and places --- */

/* Region of a key ARN; false when this is none or the region does not fit. */
bool aws_arn_region(char out[static 64], const char *arn);
/* An ARN of a key, not of an alias. */
bool aws_arn_is_key(const char *name);
/* Of a key whose replicas in other Regions are the same key. */
bool aws_arn_is_multi(const char *arn);
/* One key under two names: equal, or a multi-Region key's ARNs. */
bool aws_same_key(const char *a, const char *b);
/* The endpoint of the configured key, by the settings' order; of a replica: url, or NULL for its Region's own.
 * 0, or -EINVAL with *err filled. */
MUST_CHECK int aws_endpoint_find(
    struct aws_endpoint *out, const struct kms_params *, struct awscred *, struct kms_err *err);
MUST_CHECK int aws_endpoint_replica(
    struct aws_endpoint *out, const char *arn, const char *url, struct awscred *, struct kms_err *err);

struct aws_region {
	struct aws_endpoint endpoint;
	char key[KMS_KEY_MAX + 1]; /* the key's name there */
};

/* The key's Regions, home first. Constant but for refs and choice, which struct aws's lock guards. */
struct aws_set {
	unsigned refs, n;
	struct aws_choice choice;
	struct aws_region region[AWS_REGIONS];
};

/* key: instead of params->key unless NULL. *out has one reference. 0, -ENOMEM, or -EINVAL with *err filled. */
MUST_CHECK int aws_set_make(
    struct aws_set **out, const struct kms_params *, const char *key, struct awscred *, struct kms_err *err);

struct aws {
	struct http *http;
	struct awscred *cred;
	bool borrowed; /* cred is another's, who is closed later */
	struct awsclock clock;
	atomic_bool worked;   /* the key has answered well before, wherever */
	pthread_mutex_t lock; /* guards set, and what it says of itself; never held across the network */
	struct aws_set *set;
};

/* A reference to the Regions of now; aws_set_put() it. */
struct aws_set *aws_set_get(struct aws *);
void aws_set_put(struct aws *, struct aws_set *);
/* A call under way keeps its set though another one takes its place. */
struct aws_set *aws_turn_begin(struct aws *, uint64_t deadline, bool opening, struct aws_turn *out);
void aws_turn_end(struct aws *, struct aws_set *, const struct aws_turn *, enum kms_status, enum aws_reach);
/* Takes over the reference. What is known of Regions that stay is kept, and which one is asked. */
void aws_set_swap(struct aws *, struct aws_set *);

/* --- kms_aws_call.c --- */

struct aws_call {
	const char *operation;
	const json_t *request;
	bool known_key; /* about the configured key, so worked applies */
	const struct aws_endpoint *at;
	uint64_t deadline;
};

/* One signed request, and once more after a repair (credentials read again, clock corrected). KMS_OK: *answer
 * is an object to json_decref(), and request_id (128 bytes) that of the answer. *reach: of the last
 * request; AWS_REFUSED only of the configured key. */
enum kms_status aws_call(struct aws *, const struct aws_call *, json_t **answer, char *request_id,
    enum aws_reach *reach, struct kms_err *err);

#endif
