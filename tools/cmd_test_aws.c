/* cmd_test_aws.c — the steps of `byokfsctl test` that are AWS's: credentials, their identity, the key's state and
 * Region, its replicas. Of other providers only the key's state is asked, where they tell one. */
#include "cmd_test.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "aws_denial.h"
#include "io.h"
#include "policy.h"

/* ---- credentials ---- */

static void show_credentials(struct trial *t, struct awscred *cred, const struct sigv4_credentials *c)
{
	char who[256], date[21], until[32] = "";
	size_t n = strlen(c->access_key);
	int64_t expires;

	awscred_identity(cred, who, &expires);
	io_utc(date, expires);
	if (expires)
		(void)snprintf(until, sizeof(until), " until %s", date);
	test_ok(t, "credentials", "from %s, access key %.4s...%s%s%s", who, c->access_key,
	    c->access_key + (n > 8 ? n - 4 : n), c->session_token ? ", temporary" : "", until);
}

/* The Region whose STS is asked: the key's own, which is also the one whose endpoint is open to this host. */
static bool key_region(char out[static 64], const struct trial *t)
{
	const char *region = t->config.kms.region;
	struct policy_arn arn;

	if (!region && t->config.kms.key && policy_arn_parse(&arn, t->config.kms.key) == 0)
		region = arn.region;
	(void)snprintf(out, 64, "%s", region ? region : "");
	return *out != '\0';
}

/* Nothing depends on it but the words of later steps. */
static void show_identity(struct trial *t, struct awscred *cred, const struct sigv4_credentials *c)
{
	char region[64], role[sizeof(t->identity)], why[AWSCRED_WHY] = "";

	if (!key_region(region, t))
		(void)snprintf(region, sizeof(region), "%s", *t->host_region ? t->host_region : "us-east-1");
	if (test_whoami(t->identity, sizeof(t->identity), cred, c, &t->config, region, why) == 0) {
		aws_denial_role(role, sizeof(role), t->identity);
		test_ok(t, "identity", "%s: policies must name %s", t->identity,
		    strcmp(role, t->identity) == 0 ? "it" : role);
	} else {
		test_note(t, "identity", "not known: %s", why);
	}
}

static const char *credentials_todo(int ret)
{
	if (ret == -EACCES)
		return "the role's trust policy must name this host's identity, and the external id: 'byokfsctl policy "
		       "--only=trust'";
	return ret == -ETIMEDOUT ? "check the network, and that the source answers"
	                         : "see CREDENTIALS in byokfs(8) for where they are looked for";
}

static int credentials_code(int ret)
{
	return ret == -EACCES ? EXIT_DENIED : ret == -ETIMEDOUT ? EXIT_UNREACHABLE : EXIT_CONFIG;
}

bool test_credentials(struct trial *t)
{
	char region[64], why[AWSCRED_WHY] = "out of memory";
	struct awscred_params params = { .profile = t->config.kms.profile,
		.role_arn = t->config.kms.role_arn,
		.external_id = t->config.kms.external_id,
		.session_name = t->config.kms.session_name,
		.ca_bundle = t->config.kms.ca_bundle,
		.proxy = t->config.kms.proxy,
		.user_agent = "byokfsctl/" BYOKFS_VERSION,
		.connect_timeout_ms = t->config.kms.connect_timeout_ms };
	struct sigv4_credentials *c = NULL;
	struct awscred *cred = NULL;
	int ret;

	params.region = key_region(region, t) ? region : NULL;
	ret = awscred_open(&cred, &params);
	if (ret == 0) {
		if (awscred_region(cred, t->host_region, why))
			t->host_region[0] = '\0'; /* it serves a hint only; what needs the file says what is wrong */
		ret = awscred_get(cred, io_boot_ms() + t->config.kms.request_timeout_ms, &c, why);
	}
	if (ret == 0 && c) {
		show_credentials(t, cred, c);
		show_identity(t, cred, c);
	} else {
		test_failed(t, credentials_code(ret), "credentials", credentials_todo(ret), "%s", why);
	}
	awscred_put(c);
	awscred_close(cred);
	return ret == 0;
}

/* ---- the key ---- */

static void judge_key(struct trial *t, const char *step, const struct kms_description *d)
{
	char regions[sizeof(d->regions) + 32] = "";

	if (test_is_aws(t) && *d->regions)
		(void)snprintf(regions, sizeof(regions), ", multi-Region: %s", d->regions);
	else if (test_is_aws(t))
		(void)snprintf(regions, sizeof(regions), ", %s-Region", d->multi_region ? "multi" : "single");
	if (*d->state && strcmp(d->state, "Enabled") != 0)
		test_failed(t, EXIT_DENIED, step, "its owner must enable it", "its state is %s", d->state);
	else if (test_is_aws(t) &&
	    (strcmp(d->spec, "SYMMETRIC_DEFAULT") != 0 || strcmp(d->usage, "ENCRYPT_DECRYPT") != 0))
		test_failed(
		    t, EXIT_CONFIG, step, "use a symmetric encryption key", "is of spec %s for %s", d->spec, d->usage);
	else if (test_is_vault(t) && strcmp(d->usage, "ENCRYPT_DECRYPT") != 0)
		test_failed(t, EXIT_CONFIG, step, "use a key of type aes256-gcm96", "is of type %s", d->spec);
	else if (test_is_vault(t))
		test_ok(t, step, "enabled, %s", d->spec);
	else
		test_ok(t, step, "enabled%s%s", test_is_aws(t) ? ", symmetric" : "", regions);
}

static void judge_region(struct trial *t, const char *arn)
{
	struct policy_arn a;

	if (policy_arn_parse(&a, arn) < 0 || !*a.region)
		return;
	if (*t->host_region && strcmp(t->host_region, a.region) != 0)
		test_note(t, "region",
		    "the key is in %s, this host in %s: every call crosses Regions; a multi-Region key "
		    "can have a replica in %s",
		    a.region, t->host_region, t->host_region);
	else
		test_ok(t, "region", "%s%s", a.region, *t->host_region ? ", this host's too" : "");
}

/* Not every host may call DescribeKey, and a mount by ARN does not need it. */
static void may_not_describe(struct trial *t)
{
	test_note(t, "key",
	    "this identity may not call DescribeKey; mounting by ARN does not need it, but this test then "
	    "does not see the key's state");
	test_missing(t, "kms:DescribeKey", kms_key(t->kms), t->identity);
}

/* False: nothing else will work either. */
bool test_describe(struct trial *t)
{
	struct kms_description *d CLEANUP_FREE = calloc(1, sizeof(*d));
	bool go_on = d != NULL;

	if (!d)
		return false;
	if (kms_describe(t->kms, kms_key(t->kms), kms_deadline(t->kms), d, &t->err) == KMS_OK) {
		judge_key(t, "key", d);
	} else if (test_is_aws(t) && test_denied(&t->err)) {
		may_not_describe(t);
	} else if (test_is_vault(t) && strcmp(t->err.code, "PermissionDenied") == 0) {
		test_note(t, "key", "this token may not read the key's properties; mounting does not need it");
	} else if (strcmp(t->err.code, "Unsupported") != 0) {
		test_kms_failed(t, "key", "DescribeKey", kms_key(t->kms));
		go_on = false;
	}
	if (go_on && test_is_aws(t))
		judge_region(t, kms_key(t->kms));
	return go_on;
}

/* ---- replicas ---- */

/* What the home Region sealed must open in this one: that is all a failover does. */
static void try_replica(struct trial *t, struct kms *kms, const char *step, const char *arn)
{
	struct kms_description *d CLEANUP_FREE = calloc(1, sizeof(*d));

	if (!d)
		return;
	if (kms_describe(kms, arn, kms_deadline(kms), d, &t->err) == KMS_OK) {
		judge_key(t, step, d);
	} else if (test_denied(&t->err)) {
		test_note(t, step, "this identity may not call DescribeKey there");
		test_missing(t, "kms:DescribeKey", arn, t->identity);
	} else {
		test_kms_failed(t, step, "DescribeKey", arn);
		return;
	}
	if (t->blob.len == 0)
		return;
	if (kms_decrypt(kms, t->context, t->blob.bytes, t->blob.len, kms_deadline(kms), t->again, &t->used, &t->err) ==
	    KMS_OK)
		test_ok(t, step, "unseals what the key's own Region sealed");
	else
		test_kms_failed(t, step, "Decrypt", arn);
}

static void open_replica(struct trial *t, char *word)
{
	char *url = strchr(word, '@'), step[80];
	struct kms_params params;
	struct kms *kms = NULL;
	struct policy_arn arn;

	if (url)
		*url++ = '\0'; /* ARN@URL */
	(void)snprintf(step, sizeof(step), "replica %s", policy_arn_parse(&arn, word) == 0 ? arn.region : "?");
	if (cmd_kms_params(&params, &t->config, &t->err) != EXIT_OK) {
		test_kms_failed(t, step, "DescribeKey", word);
		return;
	}
	params.key = word;
	params.region = params.replicas = NULL;
	params.endpoint = url;
	params.failover = false;
	if (kms_open(&kms, &params, false, &t->err) < 0)
		test_kms_failed(t, step, "DescribeKey", word);
	else
		try_replica(t, kms, step, word);
	kms_close(kms);
}

void test_replicas(struct trial *t)
{
	char *list CLEANUP_FREE = t->config.kms.replicas ? strdup(t->config.kms.replicas) : NULL, *save = NULL;

	for (char *word = list ? strtok_r(list, ", \t\r\n", &save) : NULL; word;
	     word = strtok_r(NULL, ", \t\r\n", &save))
		open_replica(t, word);
}
