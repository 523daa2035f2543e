/* A domain whose keys are swapped: which key services it may use, what is its own to close, and what the store
 * remembers.
 */
#include "store_fixture.h"

#include "domain.h"
#include "fs.h"
#include "kms_provider.h"
#include "secret.h"

enum { OLD, NEW, THIRD, KEYS };

static const char *const names[KEYS] = { "key/old", "key/new", "key/third" };
static struct fs fs;
static struct store *store;
static int closed[KEYS];

/* Every key opens every domain secret of the fixture. */
static enum kms_status fake_decrypt(void *priv, const char *key, const struct context *c, const uint8_t *blob,
    size_t len, uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	size_t i = (size_t)((int *)priv - closed);

	(void)key;
	(void)c;
	(void)blob;
	(void)len;
	(void)deadline;
	(void)err;
	memset(used, 0, sizeof(*used));
	(void)snprintf(used->key, sizeof(used->key), "%s", names[i]);
	backing_count_up(secret, 0x20, 32);
	return KMS_OK;
}

static void fake_close(void *priv)
{
	++*(int *)priv;
}

static const struct kms_provider provider = {
	.name = "fake", .number = 1, .decrypt = fake_decrypt, .close = fake_close
};

static struct kms *open_key(int i)
{
	struct kms *kms;

	assert_int_equal(kms_open_with(&kms, &provider, &closed[i], names[i], 1000), 0);
	return kms;
}

static struct kms *old_key, *new_key;

static void put_slot(struct descriptor_domain *d, int which, int key, uint64_t seq)
{
	d->slot[which] = (struct descriptor_slot){
		.seq = seq, .provider = 1, .context = 1, .sealed = 1767225600, .blob_len = 60, .probe_len = 60
	};
	(void)snprintf(d->slot[which].key, sizeof(d->slot[which].key), "%s", names[key]);
}

static void open_first(struct kms *kms)
{
	const struct lease_params params = { .probe_ms = 1000000,
		.lease_ms = 3000000,
		.max_age_ms = 1000000,
		.idle_ms = 1000000,
		.drain_ms = 100,
		.threads = 1,
		.previous = domain_second(&fs, &store->domain, kms) };
	struct kms_err err;
	struct lease *lease;

	assert_int_equal(
	    lease_open(&lease, &params, kms, &store->domain, &store->ids, store->desc.names, false, &err), KMS_OK);
	atomic_store(&fs.first->kms, lease_kms(lease, false));
	atomic_store(&fs.first->previous, lease_kms(lease, true));
	atomic_store(&fs.first->lease, lease);
}

static int setup_fs(void **state)
{
	const struct domains_params params = { .lease.probe_ms = 1000 };

	(void)setup_created(state);
	store = mounted(&rw);
	memset(&fs, 0, sizeof(fs));
	memset(closed, 0, sizeof(closed));
	fs.store = store;
	assert_int_equal(domains_init(&fs, &params), 0);
	put_slot(&store->domain, 0, OLD, 1);
	old_key = open_key(OLD);
	new_key = open_key(NEW);
	return 0;
}

static int teardown_fs(void **state)
{
	if (fs.domains) {
		domains_stop(&fs);
		domains_free(&fs);
	}
	kms_close(new_key);
	kms_close(old_key);
	/* The fixture's keys are of its own provider: nothing of this was written. */
	unmounted(store, true);
	return teardown(state);
}

static struct descriptor_domain *with_slots(int a, uint64_t a_seq, int b, uint64_t b_seq)
{
	struct descriptor_domain *d;

	assert_int_equal(domain_descriptor(fs.first, &d), 0);
	put_slot(d, 0, a, a_seq);
	put_slot(d, 1, b, b_seq);
	d->seq++;
	return d;
}

static void assert_keys(const struct kms *now, const struct kms *before)
{
	const struct lease *l = atomic_load(&fs.first->lease);

	assert_ptr_equal(fs.first->kms, now);
	assert_ptr_equal(fs.first->previous, before);
	assert_ptr_equal(lease_kms(l, false), now);
	assert_ptr_equal(lease_kms(l, true), before);
}

/* Begin, turn round, go on, finish: descriptor, lease and store agree at every step, and what was opened for the domain
 * is closed once, with it. */
static void steps_of_a_rotation(void **state)
{
	struct kms *to = open_key(NEW);

	(void)state;
	domains_keys(&fs, old_key, NULL);
	open_first(old_key);
	assert_keys(old_key, NULL);
	assert_int_equal(domain_rekey(fs.first, with_slots(OLD, 1, NEW, 2), to, true), 0);
	assert_keys(to, old_key);
	assert_string_equal(descriptor_ruling_slot(&store->domain)->key, names[NEW]);
	assert_ptr_equal(fs.first->descriptor, &store->domain);
	assert_ptr_equal(domain_service_of(fs.first, names[OLD]), old_key);
	assert_null(domain_service_of(fs.first, names[THIRD]));
	assert_int_equal(domain_rekey(fs.first, with_slots(OLD, 3, NEW, 2), old_key, true), 0);
	assert_keys(old_key, to);
	assert_int_equal(domain_rekey(fs.first, with_slots(OLD, 3, NEW, 4), to, true), 0);
	/* The same once more, as after a rotator was killed. */
	assert_int_equal(domain_rekey(fs.first, with_slots(OLD, 3, NEW, 4), to, true), 0);
	assert_keys(to, old_key);
	assert_int_equal(closed[NEW] + closed[OLD], 0);
	assert_int_equal(domain_rekey(fs.first, with_slots(OLD, 0, NEW, 4), to, false), 0);
	assert_keys(to, NULL);
	assert_int_equal(closed[NEW] + closed[OLD], 0);
	domains_stop(&fs);
	domains_free(&fs);
	assert_int_equal(closed[NEW], 1);
	assert_int_equal(closed[OLD], 0);
}

/* Names of the store alone give no permission. */
static void which_second_key(void **state)
{
	struct descriptor_domain *d;
	struct kms *third = open_key(THIRD);

	(void)state;
	domains_keys(&fs, old_key, new_key);
	open_first(old_key);
	assert_keys(old_key, new_key);
	d = with_slots(OLD, 1, NEW, 2);
	assert_ptr_equal(domain_second(&fs, d, old_key), new_key);
	assert_ptr_equal(domain_second(&fs, d, new_key), old_key);
	put_slot(d, 1, THIRD, 2);
	assert_null(domain_second(&fs, d, old_key));
	/* A nested domain under a key of its own: no other one, unless it is listed as previous, or the other slot's.
	 */
	d->index = 1;
	put_slot(d, 0, OLD, 1);
	assert_ptr_equal(domain_second(&fs, d, third), old_key);
	memset(&d->slot[0], 0, sizeof(d->slot[0]));
	assert_ptr_equal(domain_second(&fs, d, third), new_key);
	domains_keys(&fs, old_key, NULL);
	assert_null(domain_second(&fs, d, third));
	descriptor_domain_free(d);
	free(d);
	kms_close(third);
}

static void the_configuration_changes(void **state)
{
	struct kms *third = open_key(THIRD);

	(void)state;
	domains_keys(&fs, old_key, NULL);
	open_first(old_key);
	assert_int_equal(domains_previous(&fs, old_key, third), 0);
	assert_keys(old_key, third);
	assert_int_equal(domains_previous(&fs, old_key, NULL), 0);
	assert_keys(old_key, NULL);
	/* Under way: what it is leaving stays, and so does what it goes to. */
	assert_int_equal(domain_rekey(fs.first, with_slots(OLD, 1, NEW, 2), open_key(NEW), true), 0);
	assert_int_equal(domains_previous(&fs, fs.first->kms, NULL), -EBUSY);
	assert_ptr_equal(fs.first->previous, old_key);
	assert_int_equal(domains_previous(&fs, old_key, NULL), -EBUSY);
	assert_int_equal(domains_previous(&fs, fs.first->kms, old_key), 0);
	assert_keys(fs.first->kms, old_key);
	/* Over. */
	assert_int_equal(domain_rekey(fs.first, with_slots(OLD, 0, NEW, 2), fs.first->kms, true), 0);
	assert_ptr_equal(fs.first->previous, old_key);
	assert_int_equal(domains_previous(&fs, fs.first->kms, NULL), 0);
	assert_null(fs.first->previous);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(steps_of_a_rotation, setup_fs, teardown_fs),
		cmocka_unit_test_setup_teardown(which_second_key, setup_fs, teardown_fs),
		cmocka_unit_test_setup_teardown(the_configuration_changes, setup_fs, teardown_fs),
	};

	return cmocka_run_group_tests_name("domain: keys swapped", tests, backing_main_setup, NULL);
}
