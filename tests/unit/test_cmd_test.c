/* test_cmd_test.c — what `byokfsctl test` reads out of AWS's words: refusals, and who the caller is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../tools/aws_denial.c"
#include "../../tools/cmd_test_identity.c"
#include "../../tools/policy_arn.c"

#define KEY     "arn:aws:kms:us-east-1:111122223333:key/k"
#define SESSION "arn:aws:sts::444455556666:assumed-role/host/byokfs-a"
#define LACKS   "User: " SESSION " is not authorized to perform: kms:Decrypt on resource: " KEY

static void a_refusal_names_who_what_and_where(void **state)
{
	struct aws_denial d;

	(void)state;
	aws_denial_parse(&d, LACKS " because no identity-based policy allows the kms:Decrypt action");
	assert_string_equal(d.who, SESSION);
	assert_string_equal(d.action, "kms:Decrypt");
	assert_string_equal(d.resource, KEY);
	assert_int_equal(d.policy, DENIAL_IDENTITY);
	assert_false(d.explicitly);
}

static void whose_policy_decided(void **state)
{
	static const struct {
		const char *why, *todo;
		enum aws_denial_policy policy;
		bool explicitly;
	} cases[] = {
		{ " because no resource-based policy allows the kms:Decrypt action", "--only=key", DENIAL_RESOURCE,
		    false },
		{ " because no permissions boundary allows the kms:Decrypt action",
		    "the permissions boundary must allow", DENIAL_BOUNDARY, false },
		{ " because no service control policy allows the kms:Decrypt action", "service control policy",
		    DENIAL_SERVICE_CONTROL, false },
		{ " because no session policy allows the kms:Decrypt action", "the session policy", DENIAL_SESSION,
		    false },
		{ " because no VPC endpoint policy allows the kms:Decrypt action", "VPC endpoint", DENIAL_ENDPOINT,
		    false },
		{ " with an explicit deny in a resource-based policy", "a Deny in the policy of the key",
		    DENIAL_RESOURCE, true },
		{ " with an explicit deny in an identity-based policy", "a Deny in the permissions", DENIAL_IDENTITY,
		    true },
		{ " with an explicit deny in a resource control policy", "a Deny in the resource control policy",
		    DENIAL_RESOURCE_CONTROL, true },
		{ " with an explicit deny", "must allow it", DENIAL_UNSAID, false },
		{ "", "must allow it", DENIAL_UNSAID, false },
	};
	char message[600], todo[1000];
	struct aws_denial d;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		(void)snprintf(message, sizeof(message), LACKS "%s", cases[i].why);
		aws_denial_parse(&d, message);
		assert_int_equal(d.policy, cases[i].policy);
		assert_int_equal(d.explicitly, cases[i].explicitly);
		assert_string_equal(d.action, "kms:Decrypt");
		aws_denial_todo(todo, sizeof(todo), &d, NULL);
		if (!strstr(todo, cases[i].todo))
			fail_msg("'%s': %s", cases[i].why, todo);
	}
}

static void a_hint_is_a_command(void **state)
{
	struct aws_denial d;
	char todo[1000];

	(void)state;
	aws_denial_parse(&d, LACKS " because no resource-based policy allows the kms:Decrypt action");
	aws_denial_todo(todo, sizeof(todo), &d, "/srv/cipher");
	assert_non_null(
	    strstr(todo, "'byokfsctl policy /srv/cipher --only=key --host arn:aws:iam::444455556666:role/host'"));
	aws_denial_parse(&d, "no");
	aws_denial_todo(todo, sizeof(todo), &d, NULL);
	assert_non_null(strstr(todo, "'byokfsctl policy'"));
}

/* The service's words, and a directory's name, are not the shell's. */
static void a_hint_is_safe_to_paste(void **state)
{
	static const struct {
		const char *who, *dir, *command;
	} cases[] = {
		{ "arn:aws:iam::1:role/$(reboot)", NULL, "'byokfsctl policy --only=key'" },
		{ "arn:aws:iam::444455556666:role/`reboot`", NULL, "'byokfsctl policy --only=key'" },
		{ "arn:aws:iam::444455556666:role/a;reboot", NULL, "'byokfsctl policy --only=key'" },
		{ "arn:aws:iam::444455556666:root';reboot;'", NULL, "'byokfsctl policy --only=key'" },
		{ "arn:aws:iam::444455556666:role/x", NULL,
		    "'byokfsctl policy --only=key --host arn:aws:iam::444455556666:role/x'" },
		{ "", "/srv/my store", "'byokfsctl policy /srv/my\\ store --only=key'" },
		{ "", "/srv/$(reboot)`x`'\"\\;&|<>*?[]{}~#!",
		    "policy /srv/\\$\\(reboot\\)\\`x\\`\\'\\\"\\\\\\;\\&\\|\\<\\>\\*\\?\\[\\]\\{\\}\\~\\#\\! --only" },
		{ "", "-rf", "'byokfsctl policy ./-rf --only=key'" },
		{ "", "/srv/line\nfeed", "'byokfsctl policy CIPHERDIR --only=key'" },
		{ "", "/srv/\033[2J\xff", "'byokfsctl policy CIPHERDIR --only=key'" },
	};
	struct aws_denial d = { .policy = DENIAL_RESOURCE };
	char todo[1000], longest[3000];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		strcpy(d.who, cases[i].who);
		aws_denial_todo(todo, sizeof(todo), &d, cases[i].dir);
		if (!strstr(todo, cases[i].command))
			fail_msg("'%s', '%s': %s", cases[i].who, cases[i].dir ? cases[i].dir : "", todo);
	}
	memset(longest, ' ', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	aws_denial_todo(todo, sizeof(todo), &d, longest);
	assert_non_null(strstr(todo, "'byokfsctl policy CIPHERDIR --only=key'"));
}

static void other_words_leave_it_empty(void **state)
{
	static const char *const texts[] = { "",
		"The ciphertext refers to a customer master key that does not exist, does not exist in this region, or "
		"you "
		"are not allowed to access.",
		"User: ", "not authorized to perform: ", "User:  on resource: " };
	struct aws_denial d;
	char *huge = malloc(5000);

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		aws_denial_parse(&d, texts[i]);
		assert_string_equal(d.who, "");
		assert_string_equal(d.action, "");
		assert_string_equal(d.resource, "");
	}
	assert_non_null(huge);
	memset(huge, 'x', 4999);
	huge[4999] = '\0';
	memcpy(huge, "User: ", 6);
	aws_denial_parse(&d, huge);
	assert_string_equal(d.who, "");
	free(huge);
}

static void sessions_have_roles(void **state)
{
	char role[300];

	(void)state;
	aws_denial_role(role, sizeof(role), SESSION);
	assert_string_equal(role, "arn:aws:iam::444455556666:role/host");
	aws_denial_role(role, sizeof(role), "arn:aws-us-gov:sts::444455556666:assumed-role/a.b/c");
	assert_string_equal(role, "arn:aws-us-gov:iam::444455556666:role/a.b");
	aws_denial_role(role, sizeof(role), "arn:aws:iam::444455556666:user/x");
	assert_string_equal(role, "arn:aws:iam::444455556666:user/x");
	aws_denial_role(role, sizeof(role), "");
	assert_string_equal(role, "");
}

static bool reads(const char *xml, char *arn, size_t size)
{
	struct stsxml x;

	return stsxml_parse(&x, xml, strlen(xml)) == 0 && test_whoami_arn(arn, size, &x);
}

#define CALLER(arn)                                                                                              \
	"<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>" arn "</Arn><UserId>A</UserId>" \
	"</GetCallerIdentityResult></GetCallerIdentityResponse>"

static void the_caller_is_read_from_sts(void **state)
{
	static const char *const wrong[] = { "", "<Arn>", "<a/>", "<a><Arn>" SESSION "</Arn></a>", CALLER(""),
		CALLER("nonsense"), CALLER("arn:aws:iam::1:user/a&#x9b;2J"), CALLER("arn:aws:iam::1:user/a b"),
		CALLER("arn:aws:iam::1:user/&x;"), CALLER("arn:aws:iam::1:user/a\xff") };
	char arn[300];

	(void)state;
	assert_true(reads(CALLER(SESSION), arn, sizeof(arn)));
	assert_string_equal(arn, SESSION);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		if (reads(wrong[i], arn, sizeof(arn)))
			fail_msg("'%s' was taken", wrong[i]);
	assert_false(reads(CALLER(SESSION), arn, strlen(SESSION)));
	assert_true(reads(CALLER(SESSION), arn, strlen(SESSION) + 1));
}

static void hosts_go_without_the_usual_port(void **state)
{
	char host[40];

	(void)state;
	assert_int_equal(host_of(host, sizeof(host), "https://sts.us-east-1.amazonaws.com:443/"), 0);
	assert_string_equal(host, "sts.us-east-1.amazonaws.com");
	assert_int_equal(host_of(host, sizeof(host), "http://127.0.0.1:8080/"), 0);
	assert_string_equal(host, "127.0.0.1:8080");
	assert_true(host_of(host, sizeof(host), "nonsense") < 0);
	assert_true(host_of(host, sizeof(host), "https:///") < 0);
	assert_true(host_of(host, 5, "https://sts.us-east-1.amazonaws.com/") < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_refusal_names_who_what_and_where),
		cmocka_unit_test(whose_policy_decided),
		cmocka_unit_test(a_hint_is_a_command),
		cmocka_unit_test(a_hint_is_safe_to_paste),
		cmocka_unit_test(other_words_leave_it_empty),
		cmocka_unit_test(sessions_have_roles),
		cmocka_unit_test(the_caller_is_read_from_sts),
		cmocka_unit_test(hosts_go_without_the_usual_port),
	};

	return cmocka_run_group_tests_name("cmd_test", tests, NULL, NULL);
}
