/* test_policy.c — policy documents for a customer's key: who may stand in them, what they say, and the same as HCL. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../tools/policy_arn.c"
#include "../../tools/policy_doc.c"
#include "../../tools/policy_hcl.c"

#define KEY   "arn:aws:kms:us-east-1:111122223333:key/11111111-2222-3333-4444-555555555555"
#define MRK   "arn:aws:kms:us-east-1:111122223333:key/mrk-11112222333344445555666677778888"
#define OTHER "arn:aws:kms:eu-west-1:111122223333:key/mrk-11112222333344445555666677778888"
#define HOST  "arn:aws:iam::111122223333:role/byokfs-host"
#define STORE "00112233445566778899aabbccddeeff"

static json_t *names(void)
{
	return json_pack("[s,s,s,s,s]", "byokfs-store", "byokfs-domain", "byokfs-file", "byokfs-use", "tenant");
}

/* names is the caller's to release. */
static struct policy usual(json_t *n)
{
	return (struct policy){ .store = STORE, .key = KEY, .names = n, .host = HOST };
}

static json_t *statement(json_t *document, const char *sid)
{
	json_t *s;
	size_t i;

	json_array_foreach(json_object_get(document, "Statement"), i, s)
	{
		if (strcmp(json_string_value(json_object_get(s, "Sid")), sid) == 0)
			return s;
	}
	return NULL;
}

static bool has(const json_t *list, const char *word)
{
	const json_t *v;
	size_t i;

	if (json_is_string(list))
		return strcmp(json_string_value(list), word) == 0;
	json_array_foreach(list, i, v)
	{
		if (strcmp(json_string_value(v), word) == 0)
			return true;
	}
	return false;
}

/* ---- names ---- */

static void arns_are_taken_apart(void **state)
{
	struct policy_arn a;

	(void)state;
	assert_int_equal(policy_arn_parse(&a, "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/a:b"), 0);
	assert_string_equal(a.partition, "aws-us-gov");
	assert_string_equal(a.service, "kms");
	assert_string_equal(a.region, "us-gov-west-1");
	assert_string_equal(a.account, "111122223333");
	assert_string_equal(a.resource, "key/a:b");
}

static void what_is_no_arn_is_refused(void **state)
{
	static const char *const wrong[] = { "", "arn", "arn:", "arn:aws:kms",
		"arn:aws:kms:r:111122223333:", "arn:azure:kms:r:111122223333:k", "arn:awsx:kms:r:111122223333:k",
		"arn:aws:kms:r:11112222333:k", "arn:aws:kms:r:1111222233334:k", "arn:aws:kms:R:111122223333:k",
		"arn:aws::r:111122223333:k", "ARN:aws:kms:r:111122223333:k", "arn:aws:kms:r:11112222333x:k",
		"arn:aws-aaaaaaaaaaaaaaaaaaaaaaaaaaaa:kms:r:111122223333:k" };
	struct policy_arn a;

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		if (policy_arn_parse(&a, wrong[i]) == 0)
			fail_msg("'%s' was accepted", wrong[i]);
}

static void principals_are_one_role_or_user(void **state)
{
	static const struct {
		const char *text, *why;
	} wrong[] = { { "arn:aws:iam::111122223333:role/*", "wildcards" }, { "*", "wildcards" },
		{ "byokfs-host", "not an ARN" }, { "arn:aws:iam::111122223333:root", "everybody" },
		{ "arn:aws:sts::111122223333:assumed-role/h/s", "arn:aws:iam::111122223333:role/h" },
		{ "arn:aws:iam::111122223333:group/g", "not the ARN of an IAM role or user" },
		{ "arn:aws:iam::111122223333:role/", "not the ARN" },
		{ "arn:aws:iam::111122223333:role/a/", "not the ARN" },
		{ "arn:aws:iam::111122223333:role/a b", "not the ARN" }, { "arn:aws:iam:::role/a", "not the ARN" },
		{ "arn:aws:iam:us-east-1:111122223333:role/a", "not the ARN" }, { KEY, "not the ARN" },
		{ "arn:aws:iam::111122223333:role/${aws:username}", "not the ARN" } };
	char why[POLICY_WHY];

	(void)state;
	assert_int_equal(policy_check_principal(HOST, why), 0);
	assert_int_equal(policy_check_principal("arn:aws-cn:iam::111122223333:user/dept/a.b@c_d+e=f,g", why), 0);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_true(policy_check_principal(wrong[i].text, why) < 0);
		if (!strstr(why, wrong[i].why))
			fail_msg("'%s': %s", wrong[i].text, why);
	}
}

static void trustees_may_be_accounts(void **state)
{
	char out[POLICY_PRINCIPAL], why[POLICY_WHY];

	(void)state;
	assert_int_equal(policy_trustee(out, "444455556666", "aws-cn", why), 0);
	assert_string_equal(out, "arn:aws-cn:iam::444455556666:root");
	assert_int_equal(policy_trustee(out, "arn:aws:iam::444455556666:root", "aws", why), 0);
	assert_string_equal(out, "arn:aws:iam::444455556666:root");
	assert_int_equal(policy_trustee(out, HOST, "aws", why), 0);
	assert_string_equal(out, HOST);
	assert_true(policy_trustee(out, "44445555666", "aws", why) < 0);
	assert_true(policy_trustee(out, "4444555566667", "aws", why) < 0);
	assert_true(policy_trustee(out, "arn:aws:iam::444455556666:role/*", "aws", why) < 0);
	assert_true(policy_trustee(out, "*", "aws", why) < 0);
}

static void keys_and_external_ids(void **state)
{
	char why[POLICY_WHY], longest[1300];

	(void)state;
	assert_int_equal(policy_check_key(KEY, why), 0);
	assert_int_equal(policy_check_key(MRK, why), 0);
	assert_true(policy_check_key("arn:aws:kms:us-east-1:111122223333:alias/a", why) < 0);
	assert_non_null(strstr(why, "alias"));
	assert_true(policy_check_key("arn:aws:kms:us-east-1:111122223333:key/a/b", why) < 0);
	assert_true(policy_check_key("arn:aws:kms::111122223333:key/a", why) < 0);
	assert_true(policy_check_key("arn:aws:s3:us-east-1:111122223333:key/a", why) < 0);
	assert_int_equal(policy_check_external_id("Ab1+=,.@:/_-", why), 0);
	assert_true(policy_check_external_id("a", why) < 0);
	assert_true(policy_check_external_id("a b", why) < 0);
	assert_true(policy_check_external_id("a${b}", why) < 0);
	memset(longest, 'x', sizeof(longest));
	longest[1224] = '\0';
	assert_int_equal(policy_check_external_id(longest, why), 0);
	longest[1224] = 'x';
	longest[1225] = '\0';
	assert_true(policy_check_external_id(longest, why) < 0);
	assert_true(policy_siblings(MRK, OTHER));
	assert_false(policy_siblings(KEY, KEY));
	assert_false(
	    policy_siblings(MRK, "arn:aws:kms:eu-west-1:444455556666:key/mrk-11112222333344445555666677778888"));
	assert_false(policy_siblings(MRK, "arn:aws:kms:eu-west-1:111122223333:key/mrk-1"));
}

/* ---- documents ---- */

static void uses_of_the_key_are_conditioned_twice(void **state)
{
	json_t *n = names(), *document, *s, *condition;
	struct policy p = usual(n);

	(void)state;
	p.rotator = "arn:aws:iam::111122223333:role/rotator";
	document = policy_for_key(&p);
	for (int i = 0; i < 2; i++) {
		s = statement(document, i ? "ByokfsRotate" : "ByokfsHostUse");
		condition = json_object_get(s, "Condition");
		assert_string_equal(json_string_value(json_object_get(json_object_get(condition, "StringEquals"),
		                        "kms:EncryptionContext:byokfs-store")),
		    STORE);
		assert_true(json_equal(json_object_get(json_object_get(condition, "ForAllValues:StringEquals"),
		                           "kms:EncryptionContextKeys"),
		    n));
		assert_int_equal(json_object_size(condition), 2);
	}
	s = statement(document, "ByokfsHostUse");
	assert_int_equal(json_array_size(json_object_get(s, "Action")), 2);
	assert_true(has(json_object_get(s, "Action"), "kms:GenerateDataKey"));
	assert_true(has(json_object_get(s, "Action"), "kms:Decrypt"));
	assert_null(json_object_get(statement(document, "ByokfsHostDescribe"), "Condition"));
	json_decref(document);
	json_decref(n);
}

static void only_the_host_may_decrypt(void **state)
{
	json_t *n = names(), *document, *s;
	struct policy p = usual(n);
	size_t i, allowed = 0;

	(void)state;
	p.rotator = "arn:aws:iam::111122223333:role/rotator";
	p.admin = "arn:aws:iam::111122223333:role/admin";
	document = policy_for_key(&p);
	json_array_foreach(json_object_get(document, "Statement"), i, s)
	{
		const json_t *a = json_object_get(s, "Action");

		allowed += has(a, "kms:Decrypt");
		assert_string_equal(json_string_value(json_object_get(s, "Effect")), "Allow");
		assert_false(has(a, "kms:*") || has(a, "kms:Encrypt") || has(a, "kms:CreateGrant") || has(a, "*"));
	}
	assert_int_equal(allowed, 1);
	json_decref(document);
	json_decref(n);
}

static void the_account_recovers_or_administers(void **state)
{
	static const char *const kill_switches[] = { "kms:DisableKey", "kms:EnableKey", "kms:ScheduleKeyDeletion",
		"kms:CancelKeyDeletion", "kms:DeleteImportedKeyMaterial", "kms:GetParametersForImport",
		"kms:ImportKeyMaterial", "kms:ListGrants", "kms:RevokeGrant" };
	json_t *n = names(), *document, *s;
	struct policy p = usual(n);

	(void)state;
	document = policy_for_key(&p);
	s = statement(document, "KeyAdministration");
	assert_string_equal(json_string_value(json_object_get(json_object_get(s, "Principal"), "AWS")),
	    "arn:aws:iam::111122223333:root");
	assert_true(has(json_object_get(s, "Action"), "kms:PutKeyPolicy"));
	assert_false(has(json_object_get(s, "Action"), "kms:ReplicateKey"));
	for (size_t i = 0; i < sizeof(kill_switches) / sizeof(kill_switches[0]); i++)
		if (!has(json_object_get(s, "Action"), kill_switches[i]))
			fail_msg("the owner lost %s", kill_switches[i]);
	assert_null(statement(document, "AccountRootAgainstLockOut"));
	json_decref(document);
	p.admin = "arn:aws:iam::111122223333:role/admin";
	p.key = MRK;
	document = policy_for_key(&p);
	s = statement(document, "AccountRootAgainstLockOut");
	assert_true(has(json_object_get(s, "Action"), "kms:PutKeyPolicy"));
	assert_false(has(json_object_get(s, "Action"), "kms:DisableKey"));
	assert_true(has(json_object_get(statement(document, "KeyAdministration"), "Action"), "kms:ReplicateKey"));
	json_decref(document);
	p.no_root = true;
	document = policy_for_key(&p);
	assert_null(statement(document, "AccountRootAgainstLockOut"));
	json_decref(document);
	json_decref(n);
}

static void roles_get_the_key_and_its_replicas(void **state)
{
	json_t *n = names(), *document, *resource;
	struct policy p = usual(n);

	(void)state;
	assert_null(policy_for_rotator(&p));
	assert_null(policy_for_trust(&p));
	document = policy_for_host(&p);
	assert_string_equal(json_string_value(json_object_get(statement(document, "ByokfsHostUse"), "Resource")), KEY);
	assert_null(json_object_get(statement(document, "ByokfsHostUse"), "Principal"));
	json_decref(document);
	p.key = MRK;
	p.replica[p.nreplica++] = OTHER;
	document = policy_for_host(&p);
	resource = json_object_get(statement(document, "ByokfsHostUse"), "Resource");
	assert_int_equal(json_array_size(resource), 2);
	assert_true(has(resource, MRK) && has(resource, OTHER));
	json_decref(document);
	json_decref(n);
}

static void trust_asks_for_the_external_id(void **state)
{
	json_t *n = names(), *document, *s;
	struct policy p = usual(n);

	(void)state;
	p.trusted = "arn:aws:iam::444455556666:root";
	p.external_id = "customer-7";
	document = policy_for_trust(&p);
	s = statement(document, "ByokfsAssume");
	assert_string_equal(json_string_value(json_object_get(s, "Action")), "sts:AssumeRole");
	assert_string_equal(json_string_value(json_object_get(
	                        json_object_get(json_object_get(s, "Condition"), "StringEquals"), "sts:ExternalId")),
	    "customer-7");
	json_decref(document);
	json_decref(n);
}

/* ---- HCL ---- */

static char *hcl(const char *json)
{
	json_t *o = json_loads(json, 0, NULL);
	char *text = NULL;
	size_t size = 0;
	FILE *f = open_memstream(&text, &size);

	assert_non_null(o);
	assert_non_null(f);
	policy_hcl_body(f, o, 0);
	(void)fclose(f);
	json_decref(o);
	return text;
}

static void hcl_strings_are_literal(void **state)
{
	char *text = hcl("{\"a\": \"${x} %{y} $x $$ \\\"q\\\" \\\\ \\n \\u0001 $${z}\"}");

	(void)state;
	assert_string_equal(text, "a = \"$${x} %%{y} $x $$ \\\"q\\\" \\\\ \\n \\u0001 $$${z}\"\n");
	free(text);
}

static void hcl_aligns_neighbours_on_one_line(void **state)
{
	char *text = hcl("{\"a\":1,\"long\":true,\"many\":[\"x\"],\"b\":\"c\",\"k:v\":{\"$expr\":\"r.x.arn\"},\"e\":[],"
	                 "\"j\":{\"$json\":{\"z\":{}}}}");

	(void)state;
	assert_string_equal(text,
	    "a    = 1\nlong = true\nmany = [\n  \"x\",\n]\nb     = \"c\"\n\"k:v\" = r.x.arn\ne     = []\n"
	    "j = jsonencode({\n  z = {\n  }\n})\n");
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arns_are_taken_apart),
		cmocka_unit_test(what_is_no_arn_is_refused),
		cmocka_unit_test(principals_are_one_role_or_user),
		cmocka_unit_test(trustees_may_be_accounts),
		cmocka_unit_test(keys_and_external_ids),
		cmocka_unit_test(uses_of_the_key_are_conditioned_twice),
		cmocka_unit_test(only_the_host_may_decrypt),
		cmocka_unit_test(the_account_recovers_or_administers),
		cmocka_unit_test(roles_get_the_key_and_its_replicas),
		cmocka_unit_test(trust_asks_for_the_external_id),
		cmocka_unit_test(hcl_strings_are_literal),
		cmocka_unit_test(hcl_aligns_neighbours_on_one_line),
	};

	return cmocka_run_group_tests_name("policy", tests, NULL, NULL);
}
