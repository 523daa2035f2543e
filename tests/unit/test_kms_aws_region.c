/* kms_aws_region: which Region is asked, rule by rule. The clock is a number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../src/kms_aws_internal.h"

#define AFTER    5000u
#define DEADLINE 4000u /* from now */

static struct aws_choice c;
static uint64_t now;

static void begin(unsigned n)
{
	now = 1000000;
	aws_choice_init(&c, n, AFTER);
}

static struct aws_turn turn(void)
{
	return aws_choice_turn(&c, now, now + DEADLINE);
}

/* A call that takes ms: its Region, after its outcome was told; *event what that led to. */
static unsigned call(enum kms_status status, uint64_t ms, enum aws_event *event)
{
	struct aws_turn t = turn();

	now += ms;
	*event = aws_choice_told(&c, &t, status, status == KMS_DOWN ? AWS_SENT : AWS_REACHED, now);
	return t.region;
}

/* A call to this Region, with nothing to report. */
static void quiet(unsigned region, enum kms_status status, uint64_t ms)
{
	enum aws_event event;

	assert_int_equal(call(status, ms, &event), region);
	assert_int_equal(event, AWS_NOTHING);
}

static void loud(unsigned region, enum kms_status status, uint64_t ms, enum aws_event expected)
{
	enum aws_event event;

	assert_int_equal(call(status, ms, &event), region);
	assert_int_equal(event, expected);
}

static void asked(unsigned region)
{
	assert_int_equal(aws_choice_region(&c), region);
}

static void go_away(void)
{
	quiet(0, KMS_DOWN, 10);
	now += AFTER;
	loud(0, KMS_DOWN, 10, AWS_WENT_AWAY);
	asked(1);
}

/* Home again, until the next try on the side is due. */
static void wait_for_home(void)
{
	now = c.try_home;
}

/* ---- going away ---- */

static void test_away_after_a_while_only(void **state)
{
	(void)state;
	begin(2);
	quiet(0, KMS_OK, 10);
	quiet(0, KMS_DOWN, 10);
	now += AFTER - 30;
	quiet(0, KMS_DOWN, 10);
	quiet(0, KMS_DOWN, 9); /* a millisecond short */
	loud(0, KMS_DOWN, 1, AWS_WENT_AWAY);
	asked(1);
	quiet(1, KMS_OK, 10);
}

/* The silence is as old as the first question without an answer. */
static void test_a_hanging_region(void **state)
{
	(void)state;
	begin(2);
	quiet(0, KMS_OK, 10);
	loud(0, KMS_DOWN, AFTER, AWS_WENT_AWAY);
}

/* But never older than the last answer. */
static void test_an_answer_in_between(void **state)
{
	struct aws_turn slow;

	(void)state;
	begin(2);
	slow = turn();
	now += AFTER;
	quiet(0, KMS_OK, 10);
	now += 10;
	assert_int_equal(aws_choice_told(&c, &slow, KMS_DOWN, AWS_SENT, now), AWS_NOTHING);
	asked(0);
}

static void test_a_success_starts_anew(void **state)
{
	static const enum kms_status reached[] = { KMS_OK, KMS_BUSY, KMS_BAD_BLOB, KMS_CONFIG };

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		begin(2);
		quiet(0, KMS_DOWN, 10);
		now += AFTER - 20;
		quiet(0, reached[i], 10);
		now += 20;
		quiet(0, KMS_DOWN, 10);
		asked(0);
	}
}

/* Throttling, credentials and this host's own trouble are no reason. */
static void test_other_trouble(void **state)
{
	struct aws_turn t;

	(void)state;
	begin(2);
	for (int i = 0; i < 10; i++) {
		quiet(0, KMS_BUSY, AFTER);
		quiet(0, KMS_CONFIG, AFTER);
		quiet(0, KMS_BAD_BLOB, AFTER);
		t = turn();
		now += AFTER;
		assert_int_equal(aws_choice_told(&c, &t, KMS_DOWN, AWS_NOT_SENT, now), AWS_NOTHING);
	}
	asked(0);
}

static void test_no_failover(void **state)
{
	(void)state;
	begin(1);
	for (int i = 0; i < 10; i++)
		quiet(0, KMS_DOWN, AFTER);
	assert_int_equal(turn().until, now + DEADLINE);
	begin(1);
	loud(0, KMS_DENIED, 10, AWS_DENIED);
	quiet(0, KMS_OK, 10);
	loud(0, KMS_OK, 10, AWS_ALLOWED);
}

static void test_at_once(void **state)
{
	(void)state;
	begin(2);
	c.after_ms = 0;
	loud(0, KMS_DOWN, 10, AWS_WENT_AWAY);
}

/* ---- deadlines ---- */

static void test_never_the_whole_deadline(void **state)
{
	(void)state;
	begin(2);
	assert_int_equal(turn().until, now + DEADLINE / 2);
	go_away();
	assert_int_equal(turn().until, now + DEADLINE); /* nowhere else to go */
	wait_for_home();
	assert_int_equal(turn().until, now + DEADLINE / 4);
	begin(3);
	go_away();
	assert_int_equal(turn().until, now + DEADLINE / 2);
	assert_int_equal(aws_choice_turn(&c, now, now - 1).until, now); /* late already */
}

/* ---- several replicas ---- */

static void test_the_next_replica(void **state)
{
	(void)state;
	begin(4);
	go_away();
	loud(1, KMS_DOWN, 10, AWS_MOVED);
	loud(2, KMS_DOWN, 10, AWS_MOVED);
	quiet(3, KMS_BUSY, 10);
	quiet(3, KMS_DOWN, 10); /* all of them fail: on in turn, without a word */
	quiet(1, KMS_DOWN, 10);
	quiet(2, KMS_OK, 10);
	loud(2, KMS_DOWN, 10, AWS_NOTHING);
	quiet(3, KMS_OK, 10);
	asked(3);
}

/* One that has answered since is asked before one that has not. */
static void test_the_replica_that_answers(void **state)
{
	struct aws_turn late;

	(void)state;
	begin(4);
	go_away();
	loud(1, KMS_DOWN, 10, AWS_MOVED);
	late = turn();
	loud(2, KMS_DOWN, 10, AWS_MOVED);
	assert_int_equal(aws_choice_told(&c, &late, KMS_OK, AWS_REACHED, now), AWS_NOTHING);
	loud(3, KMS_DOWN, 10, AWS_MOVED);
	asked(2);
}

static void test_a_late_failure_moves_nobody(void **state)
{
	struct aws_turn late;

	(void)state;
	begin(3);
	late = turn();
	go_away();
	assert_int_equal(aws_choice_told(&c, &late, KMS_DOWN, AWS_SENT, now), AWS_NOTHING);
	asked(1);
}

/* ---- coming home ---- */

static void test_two_answers_bring_it_home(void **state)
{
	(void)state;
	begin(2);
	go_away();
	quiet(1, KMS_OK, 10);
	wait_for_home();
	quiet(0, KMS_OK, 10);
	asked(1);
	loud(0, KMS_OK, 10, AWS_CAME_HOME); /* the second try follows at once */
	asked(0);
	quiet(0, KMS_OK, 10);
	quiet(0, KMS_DOWN, 10); /* and everything begins anew */
	asked(0);
}

static void test_in_a_row(void **state)
{
	static const enum kms_status between[] = { KMS_DOWN, KMS_BUSY, KMS_CONFIG, KMS_BAD_BLOB };

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		begin(2);
		go_away();
		wait_for_home();
		quiet(0, KMS_OK, 10);
		quiet(0, between[i], 10);
		quiet(1, KMS_OK, 10); /* the next try waits for its turn */
		wait_for_home();
		quiet(0, KMS_OK, 10);
		asked(1);
		loud(0, KMS_OK, 10, AWS_CAME_HOME);
	}
}

/* Answers of the replica bring nothing home. */
static void test_home_is_tried_now_and_then(void **state)
{
	static const uint32_t after[] = { 0, 1000, 5000, 3600000 }, pause[] = { 1000, 1000, 5000, 10000 };

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		begin(2);
		go_away();
		c.after_ms = after[i];
		wait_for_home();
		quiet(0, KMS_DOWN, 10);
		now += pause[i] - 11;
		quiet(1, KMS_OK, 0);
		now++;
		quiet(0, KMS_DOWN, 10);
		quiet(1, KMS_OK, 10);
	}
}

static void test_old_news_of_replicas(void **state)
{
	(void)state;
	begin(3);
	go_away();
	loud(1, KMS_DOWN, 10, AWS_MOVED);
	wait_for_home();
	quiet(0, KMS_OK, 10);
	loud(0, KMS_OK, 10, AWS_CAME_HOME);
	go_away(); /* to the first one again */
}

/* ---- denials ---- */

static void test_denied_at_home_is_final(void **state)
{
	(void)state;
	begin(2);
	quiet(0, KMS_OK, 10);
	loud(0, KMS_DENIED, 10, AWS_DENIED);
	quiet(0, KMS_DENIED, 10); /* said once */
	for (int i = 0; i < 10; i++)
		quiet(0, KMS_DOWN, AFTER);
	assert_int_equal(turn().until, now + DEADLINE);
	asked(0);
	quiet(0, KMS_OK, 10);
	quiet(0, KMS_DOWN, AFTER); /* one answer was an accident */
	quiet(0, KMS_DOWN, AFTER);
	quiet(0, KMS_OK, 10);
	quiet(0, KMS_DENIED, 10);
	quiet(0, KMS_OK, 10);
	loud(0, KMS_OK, 10, AWS_ALLOWED);
	go_away();
}

static void test_denied_while_home_fails(void **state)
{
	(void)state;
	begin(2);
	quiet(0, KMS_DOWN, 10);
	now += AFTER;
	loud(0, KMS_DENIED, 10, AWS_DENIED);
	quiet(0, KMS_DOWN, AFTER);
	asked(0);
}

static void test_denied_by_the_replica(void **state)
{
	(void)state;
	begin(3);
	go_away();
	loud(1, KMS_DENIED, 10, AWS_DENIED);
	for (int i = 0; i < 10; i++)
		quiet(1, KMS_DOWN, 2 * AFTER); /* neither home nor the other replica */
	quiet(1, KMS_OK, 10);
	loud(1, KMS_OK, 10, AWS_ALLOWED);
	asked(1);
	quiet(0, KMS_OK, 10); /* now home may be tried */
	loud(0, KMS_OK, 10, AWS_CAME_HOME);
}

static void test_denied_at_home_while_away(void **state)
{
	(void)state;
	begin(2);
	go_away();
	quiet(1, KMS_OK, 10);
	wait_for_home();
	loud(0, KMS_DENIED, 10, AWS_DENIED);
	asked(0);
	quiet(0, KMS_DOWN, 2 * AFTER);
	quiet(0, KMS_OK, 10);
	loud(0, KMS_OK, 10, AWS_ALLOWED);
	asked(0);
	quiet(0, KMS_OK, 10);
}

/* Two Regions deny: both must allow. */
static void test_denied_by_both(void **state)
{
	struct aws_turn replica;

	(void)state;
	begin(2);
	go_away();
	replica = turn();
	wait_for_home();
	loud(0, KMS_DENIED, 10, AWS_DENIED);
	assert_int_equal(aws_choice_told(&c, &replica, KMS_DENIED, AWS_REACHED, now), AWS_DENIED);
	quiet(0, KMS_OK, 10);
	loud(0, KMS_OK, 10, AWS_ALLOWED);
	quiet(1, KMS_OK, 10);
	loud(1, KMS_OK, 10, AWS_ALLOWED);
	asked(0);
}

/* What was asked before the denial and answered late proves nothing. */
static void test_answers_from_before_the_denial(void **state)
{
	struct aws_turn a, b, elsewhere;

	(void)state;
	begin(2);
	a = turn();
	b = turn();
	now += 10;
	loud(0, KMS_DENIED, 10, AWS_DENIED);
	assert_int_equal(aws_choice_told(&c, &a, KMS_OK, AWS_REACHED, now), AWS_NOTHING);
	assert_int_equal(aws_choice_told(&c, &b, KMS_OK, AWS_REACHED, now), AWS_NOTHING);
	quiet(0, KMS_DOWN, AFTER);
	asked(0);
	begin(2);
	go_away();
	elsewhere = turn();
	wait_for_home();
	loud(0, KMS_DENIED, 10, AWS_DENIED);
	elsewhere.sent = now;
	assert_int_equal(aws_choice_told(&c, &elsewhere, KMS_OK, AWS_REACHED, now), AWS_NOTHING);
	assert_int_equal(aws_choice_told(&c, &elsewhere, KMS_OK, AWS_REACHED, now), AWS_NOTHING);
	asked(0);
}

/* The owner may deny Decrypt alone: successes of anything else do not open the way to a replica. */
static void test_denied_decrypt(void **state)
{
	struct aws_turn t;

	(void)state;
	begin(2);
	t = turn();
	t.opening = true;
	assert_int_equal(aws_choice_told(&c, &t, KMS_DENIED, AWS_REACHED, now), AWS_DENIED);
	quiet(0, KMS_DENIED, 10); /* of another operation: not forgotten for that */
	for (int i = 0; i < 10; i++)
		quiet(0, KMS_OK, 10);
	quiet(0, KMS_DOWN, 10);
	quiet(0, KMS_DOWN, 2 * AFTER);
	asked(0);
	for (unsigned i = 0; i < 2; i++) {
		t = turn();
		t.opening = true;
		assert_int_equal(
		    aws_choice_told(&c, &t, KMS_OK, AWS_REACHED, now), i ? AWS_ALLOWED : AWS_NOTHING);
	}
	loud(0, KMS_DENIED, 10, AWS_DENIED); /* of something else: that, or a Decrypt, ends it */
	quiet(0, KMS_OK, 10);
	loud(0, KMS_OK, 10, AWS_ALLOWED);
	go_away();
}

/* "Access denied" before the key has worked is a mistake to whoever asked, and yet a denial to the other Regions. */
static void test_refused_before_it_worked(void **state)
{
	struct aws_turn t;

	(void)state;
	begin(2);
	t = turn();
	assert_int_equal(aws_choice_told(&c, &t, KMS_CONFIG, AWS_REFUSED, now), AWS_DENIED);
	quiet(0, KMS_DOWN, 10);
	quiet(0, KMS_DOWN, 2 * AFTER);
	asked(0);
	quiet(0, KMS_OK, 10);
	loud(0, KMS_OK, 10, AWS_ALLOWED);
}

/* The owner refuses the role: no Region said so, and none is to be waited for. */
static void test_denied_by_sts(void **state)
{
	struct aws_turn t;

	(void)state;
	begin(2);
	go_away();
	t = turn();
	assert_int_equal(aws_choice_told(&c, &t, KMS_DENIED, AWS_NOT_SENT, now), AWS_NOTHING);
	asked(1);
	quiet(1, KMS_OK, 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_away_after_a_while_only),
		cmocka_unit_test(test_a_hanging_region),
		cmocka_unit_test(test_an_answer_in_between),
		cmocka_unit_test(test_a_success_starts_anew),
		cmocka_unit_test(test_other_trouble),
		cmocka_unit_test(test_no_failover),
		cmocka_unit_test(test_at_once),
		cmocka_unit_test(test_never_the_whole_deadline),
		cmocka_unit_test(test_the_next_replica),
		cmocka_unit_test(test_the_replica_that_answers),
		cmocka_unit_test(test_a_late_failure_moves_nobody),
		cmocka_unit_test(test_two_answers_bring_it_home),
		cmocka_unit_test(test_in_a_row),
		cmocka_unit_test(test_home_is_tried_now_and_then),
		cmocka_unit_test(test_old_news_of_replicas),
		cmocka_unit_test(test_denied_at_home_is_final),
		cmocka_unit_test(test_denied_while_home_fails),
		cmocka_unit_test(test_denied_by_the_replica),
		cmocka_unit_test(test_denied_at_home_while_away),
		cmocka_unit_test(test_denied_by_both),
		cmocka_unit_test(test_answers_from_before_the_denial),
		cmocka_unit_test(test_denied_decrypt),
		cmocka_unit_test(test_refused_before_it_worked),
		cmocka_unit_test(test_denied_by_sts),
	};

	return cmocka_run_group_tests_name("kms_aws_region", tests, NULL, NULL);
}
