/* kms_pkcs11: against SoftHSM2, and against a module that fails as told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fake_pkcs11.h"
#include "io.h"
#include "kms.h"
#include "secret.h"

#include "../../src/kms_pkcs11_internal.h"

#define SOFTHSM "/usr/lib/softhsm/libsofthsm2.so"
#define TOOL    "pkcs11-tool --module " SOFTHSM " --token-label 'My token' --login --pin 123456 "
#define NAME    "pkcs11:token=My%20token;object=the%2Fkey"
#define WAIT_MS 30000u /* longer than anything here takes */

struct fixture {
	char dir[40], pin[60], fake_path[300];
	struct fake *fake;
	void (*reset)(void);
	struct kms *kms;
	struct kms_params params;
	struct context ctx;
	uint8_t *secret;
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
};

static uint64_t far(void)
{
	return io_boot_ms() + WAIT_MS;
}

/* ---- fixtures ---- */

static void __attribute__((format(printf, 2, 3))) shell(const struct fixture *f, const char *fmt, ...)
{
	char command[600];
	va_list ap;
	size_t n = (size_t)snprintf(command, sizeof(command), "cd %s && ", f->dir);

	va_start(ap, fmt);
	n += (size_t)vsnprintf(command + n, sizeof(command) - n, fmt, ap);
	va_end(ap);
	snprintf(command + n, sizeof(command) - n, " >>log 2>&1");
	if (system(command))
		fail_msg("failed: %s", command);
}

static void write_pin(const struct fixture *f, const char *pin, mode_t mode)
{
	int fd = open(f->pin, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, pin, strlen(pin)), strlen(pin));
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static struct fixture *make(void)
{
	struct fixture *f = test_calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/byokfs-pkcs11.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->pin, sizeof(f->pin), "%s/pin", f->dir);
	write_pin(f, "123456\n", 0600);
	f->ctx.n = 2;
	strcpy(f->ctx.pair[0].name, "byokfs-store");
	strcpy(f->ctx.pair[0].value, "00112233");
	strcpy(f->ctx.pair[1].name, "byokfs-use");
	strcpy(f->ctx.pair[1].value, "domain");
	f->secret = secret_alloc(32);
	f->params.provider = "pkcs11";
	f->params.pkcs11.pin_file = f->pin;
	f->params.request_timeout_ms = WAIT_MS;
	return f;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char command[80];

	kms_close(f->kms);
	secret_free(f->secret);
	snprintf(command, sizeof(command), "rm -rf %s", f->dir);
	assert_int_equal(system(command), 0);
	test_free(f);
	return 0;
}

/* A module that answers otherwise would make every test here fail, so its absence is a failure, not a skip. */
static int setup_softhsm(void **state)
{
	struct fixture *f = make();
	char conf[60];
	FILE *file;

	if (access(SOFTHSM, R_OK))
		fail_msg("no " SOFTHSM ": install softhsm2 and opensc");
	snprintf(conf, sizeof(conf), "%s/softhsm2.conf", f->dir);
	file = fopen(conf, "we");
	assert_non_null(file);
	fprintf(file, "directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", f->dir);
	fclose(file);
	assert_int_equal(setenv("SOFTHSM2_CONF", conf, 1), 0);
	shell(f, "mkdir tokens");
	shell(f, "softhsm2-util --init-token --free --label 'My token' --pin 123456 --so-pin 12345678");
	shell(f, TOOL "--keygen --key-type AES:32 --label the/key --sensitive");
	f->params.pkcs11.module = SOFTHSM;
	f->params.pkcs11.token = "My token";
	f->params.key = "the/key";
	*state = f;
	return 0;
}

/* The fake stands beside this program. */
static int setup_fake(void **state)
{
	struct fixture *f = make();
	ssize_t n = readlink("/proc/self/exe", f->fake_path, sizeof(f->fake_path) - 20);
	struct fake *(*fake)(void);
	void *library;

	assert_true(n > 0);
	f->fake_path[n] = '\0';
	strcpy(strrchr(f->fake_path, '/'), "/fake_pkcs11.so");
	library = dlopen(f->fake_path, RTLD_NOW);
	if (!library)
		fail_msg("%s", dlerror());
	*(void **)&fake = dlsym(library, "fake_state");
	*(void **)&f->reset = dlsym(library, "fake_reset");
	f->reset();
	f->fake = fake();
	f->params.pkcs11.module = f->fake_path;
	f->params.pkcs11.token = "fake";
	f->params.key = "key";
	*state = f;
	return 0;
}

static void open_kms(struct fixture *f)
{
	int r = kms_open(&f->kms, &f->params, true, &f->err);

	if (r)
		fail_msg("kms_open: %d %s %s", r, f->err.code, f->err.message);
}

/* One attempt for what the wrapper would try again. */
static enum kms_status generate(struct fixture *f)
{
	return kms_generate(f->kms, &f->ctx, far(), f->secret, &f->blob, &f->used, &f->err);
}

static enum kms_status decrypt(struct fixture *f)
{
	return kms_decrypt(
	    f->kms, &f->ctx, f->blob.bytes, f->blob.len, far(), f->secret, &f->used, &f->err);
}

/* Without the wrapper's retries, which go on until the deadline. */
static enum kms_status attempt(struct fixture *f)
{
	struct kms_item item = {
		.context = &f->ctx, .blob = f->blob.bytes, .len = f->blob.len, .secret = f->secret
	};

	kms_decrypt_batch(f->kms, &item, 1, far());
	f->err = item.err;
	return item.err.status;
}

static void tell(struct fixture *f, enum fake_call call, ck_rv_t answer, unsigned times)
{
	f->fake->answer[call] = answer;
	f->fake->times[call] = times;
}

/* ---- names ---- */

static void test_names(void **state)
{
	static const char *const bad[] = { "", "pkcs11:", "pkcs11:object=a", "pkcs11:token=a", "pkcs11:token=;object=a",
		"pkcs11:token=a;object=b;object=c", "pkcs11:token=a;object=b;id=%01", "pkcs11:token=a;object=%zz",
		"pkcs11:token=a;object=%4", "pkcs11:token=a;object=b%00", "pkcs11:token=a;object=b?pin-value=1",
		"pkcs11:token=123456789012345678901234567890123;object=b", "pkcs11:object=b;token=b;token=a",
		"line\nfeed" };
	char why[160], uri[KMS_KEY_MAX + 1], longest[200];
	struct p11_name n;

	(void)state;
	assert_int_equal(p11_name_parse(&n, "the/key", "My token", why), 0);
	p11_name_uri(uri, &n);
	assert_string_equal(uri, NAME);
	assert_int_equal(p11_name_parse(&n, uri, NULL, why), 0);
	assert_string_equal(n.token, "My token");
	assert_string_equal(n.key, "the/key");
	assert_int_equal(p11_name_parse(&n, "pkcs11:object=%c3%A4;token=x", "x", why), 0);
	p11_name_uri(uri, &n);
	assert_string_equal(uri, "pkcs11:token=x;object=%C3%A4");
	assert_int_equal(p11_name_parse(&n, "key", NULL, why), -EINVAL);
	assert_int_equal(p11_name_parse(&n, uri, "y", why), -EINVAL);
	assert_non_null(strstr(why, "another token"));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(p11_name_parse(&n, bad[i], NULL, why), -EINVAL);
		assert_true(*why);
	}
	memset(longest, 0xff, sizeof(longest));
	longest[128] = '\0';
	assert_int_equal(p11_name_parse(&n, longest, "12345678901234567890123456789012", why), 0);
	p11_name_uri(uri, &n);
	assert_int_equal(p11_name_parse(&n, uri, NULL, why), 0);
	assert_string_equal(n.key, longest);
	longest[128] = 'x';
	longest[129] = '\0';
	assert_int_equal(p11_name_parse(&n, longest, "t", why), -EINVAL);
}

static void test_meanings(void **state)
{
	(void)state;
	assert_int_equal(p11_meaning(CKR_OBJECT_HANDLE_INVALID).status, KMS_DENIED);
	assert_int_equal(p11_meaning(CKR_DEVICE_REMOVED).status, KMS_DOWN);
	assert_string_equal(p11_meaning(CKR_DEVICE_REMOVED).name, "CKR_DEVICE_REMOVED");
	assert_int_equal(p11_meaning(0x35).status, KMS_BAD_BLOB);
	assert_int_equal(p11_meaning(0x80000123).status, KMS_CONFIG);
	assert_string_equal(p11_meaning(0x80000123).name, "CKR_0x80000123");
	for (ck_rv_t rv = 1; rv < 0x300; rv++) {
		struct p11_meaning m = p11_meaning(rv);

		assert_true(m.status != KMS_OK && m.status <= KMS_CONFIG && !strncmp(m.name, "CKR_", 4));
	}
}

/* ---- SoftHSM2 ---- */

static void test_round_trips(void **state)
{
	struct fixture *f = *state;
	uint8_t first[32], blob[61];
	struct kms_description *d = test_malloc(sizeof(*d));
	struct kms_where where;

	open_kms(f);
	assert_string_equal(kms_key(f->kms), NAME);
	assert_int_equal(generate(f), KMS_OK);
	assert_string_equal(f->used.key, NAME);
	assert_int_equal(f->blob.len, 61);
	assert_int_equal(f->blob.bytes[0], 1);
	memcpy(first, f->secret, 32);
	memcpy(blob, f->blob.bytes, 61);
	explicit_bzero(f->secret, 32);
	assert_int_equal(decrypt(f), KMS_OK);
	assert_memory_equal(f->secret, first, 32);
	assert_int_equal(kms_encrypt(f->kms, &f->ctx, first, far(), &f->blob, &f->used, &f->err), KMS_OK);
	assert_memory_not_equal(f->blob.bytes + 1, blob + 1, 12);
	assert_int_equal(decrypt(f), KMS_OK);
	assert_memory_equal(f->secret, first, 32);
	assert_int_equal(generate(f), KMS_OK);
	assert_memory_not_equal(f->secret, first, 32);
	assert_int_equal(kms_describe(f->kms, NAME, far(), d, &f->err), KMS_OK);
	assert_string_equal(d->arn, NAME);
	assert_string_equal(d->state, "Enabled");
	assert_string_equal(d->spec, "AES_256");
	assert_int_equal(kms_describe(f->kms, "pkcs11:token=a;object=b", far(), d, &f->err), KMS_CONFIG);
	kms_where(f->kms, &where);
	assert_non_null(strstr(where.identity, "My token"));
	test_free(d);
}

static void test_every_bit_and_the_context_count(void **state)
{
	static const uint8_t zero[32];
	struct fixture *f = *state;

	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	for (size_t bit = 0; bit < 8 * 61; bit++) {
		f->blob.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(decrypt(f), KMS_BAD_BLOB);
		assert_memory_equal(f->secret, zero, 32);
		f->blob.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (f->blob.len = 1; f->blob.len < 100; f->blob.len++)
		assert_int_equal(decrypt(f), f->blob.len == 61 ? KMS_OK : KMS_BAD_BLOB);
	f->blob.len = 61;
	f->ctx.pair[1].value[0] = 'D';
	assert_int_equal(decrypt(f), KMS_BAD_BLOB);
	f->ctx.n = 1;
	assert_int_equal(decrypt(f), KMS_BAD_BLOB);
	f->ctx.n = 2;
	f->ctx.pair[1].value[0] = 'd';
	assert_int_equal(decrypt(f), KMS_OK);
}

static void test_reconfigure(void **state)
{
	struct fixture *f = *state;

	open_kms(f);
	assert_int_equal(kms_reconfigure(f->kms, &f->params, &f->err), 0);
	f->params.key = NAME;
	assert_int_equal(kms_reconfigure(f->kms, &f->params, &f->err), 0);
	f->params.pkcs11.token = "Other";
	assert_int_equal(kms_reconfigure(f->kms, &f->params, &f->err), -EINVAL);
	f->params.pkcs11.token = "My token";
	f->params.key = "other";
	assert_int_equal(kms_reconfigure(f->kms, &f->params, &f->err), -EINVAL);
	assert_string_equal(f->err.code, "OtherKey");
	assert_int_equal(generate(f), KMS_OK);
}

static void test_opens_what_another_process_sealed(void **state)
{
	struct fixture *f = *state;
	uint8_t first[32];

	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	memcpy(first, f->secret, 32);
	kms_close(f->kms);
	f->params.key = NAME; /* as a descriptor names it */
	open_kms(f);
	assert_int_equal(decrypt(f), KMS_OK);
	assert_memory_equal(f->secret, first, 32);
}

static void test_destroyed_replaced_and_back(void **state)
{
	struct fixture *f = *state;

	shell(f, "dd if=/dev/urandom of=key bs=32 count=1");
	shell(f, TOOL "--delete-object --type secrkey --label the/key");
	shell(f, TOOL "--write-object key --type secrkey --key-type AES:32 --label the/key --sensitive");
	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	shell(f, TOOL "--delete-object --type secrkey --label the/key");
	assert_int_equal(decrypt(f), KMS_DENIED);
	assert_string_equal(f->err.code, "NoSuchKey");
	f->blob.len = 61;
	shell(f, TOOL "--keygen --key-type AES:32 --label the/key --sensitive");
	assert_int_equal(decrypt(f), KMS_DENIED);
	assert_string_equal(f->err.code, "OtherKey");
	assert_int_equal(generate(f), KMS_DENIED);
	f->blob.len = 61;
	shell(f, TOOL "--delete-object --type secrkey --label the/key");
	shell(f, TOOL "--write-object key --type secrkey --key-type AES:32 --label the/key --sensitive");
	assert_int_equal(decrypt(f), KMS_OK);
}

static void test_token_away_and_back(void **state)
{
	struct fixture *f = *state;

	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	shell(f, "mv tokens away");
	assert_int_equal(attempt(f), KMS_DOWN);
	shell(f, "mv away tokens");
	assert_int_equal(decrypt(f), KMS_OK); /* with the wrapper's patience */
}

static void test_keys_that_will_not_do(void **state)
{
	static const struct {
		const char *make, *label, *code;
	} cases[] = {
		{ "--keygen --key-type AES:32 --label out --extractable --sensitive", "out", "ExtractableKey" },
		{ "--keygen --key-type AES:32 --label open", "open", "ExtractableKey" },
		{ "--keygen --key-type AES:16 --label short --sensitive", "short", "WrongKey" },
		{ "--keygen --key-type AES:32 --label the/key --sensitive", "the/key", "AmbiguousKey" },
		{ "--keygen --key-type GENERIC:32 --label generic --sensitive", "generic", "NoSuchKey" },
		{ "--list-objects", "nothing", "NoSuchKey" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		shell(f, TOOL "%s", cases[i].make);
		f->params.key = cases[i].label;
		open_kms(f);
		assert_int_equal(generate(f), KMS_CONFIG);
		assert_string_equal(f->err.code, cases[i].code);
		kms_close(f->kms);
		f->kms = NULL;
	}
}

static void test_wrong_pin(void **state)
{
	struct fixture *f = *state;

	write_pin(f, "654321\n", 0600);
	open_kms(f);
	assert_int_equal(generate(f), KMS_CONFIG);
	assert_string_equal(f->err.code, "CKR_PIN_INCORRECT");
	write_pin(f, "123456\r\n", 0600);
	assert_int_equal(generate(f), KMS_CONFIG);
	kms_refresh(f->kms);
	assert_int_equal(generate(f), KMS_OK);
	write_pin(f, "123456", 0640);
	assert_int_equal(decrypt(f), KMS_OK); /* logged in is logged in */
}

struct burst {
	struct fixture *f;
	unsigned failures;
};

static void *many(void *arg)
{
	struct burst *b = arg;
	struct kms_blob *blob = calloc(1, sizeof(*blob));
	uint8_t *one = secret_alloc(32), *two = secret_alloc(32);
	struct kms_used used;
	struct kms_err err;

	for (int i = 0; i < 50; i++)
		if (kms_generate(b->f->kms, &b->f->ctx, far(), one, blob, &used, &err) != KMS_OK ||
		    kms_decrypt(b->f->kms, &b->f->ctx, blob->bytes, blob->len, far(), two, &used,
		        &err) != KMS_OK ||
		    memcmp(one, two, 32))
			b->failures++;
	secret_free(one);
	secret_free(two);
	free(blob);
	return NULL;
}

static void test_many_threads(void **state)
{
	struct fixture *f = *state;
	struct burst bursts[16];
	pthread_t threads[16];

	f->params.max_connections = 4;
	open_kms(f);
	for (int i = 0; i < 16; i++) {
		bursts[i] = (struct burst){ f, 0 };
		assert_int_equal(pthread_create(&threads[i], NULL, many, &bursts[i]), 0);
	}
	for (int i = 0; i < 16; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(bursts[i].failures, 0);
	}
}

static void test_two_at_once_and_one_after_the_other(void **state)
{
	struct fixture *f = *state;
	struct kms *other = NULL;

	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	assert_int_equal(kms_open(&other, &f->params, true, &f->err), 0);
	assert_int_equal(kms_decrypt(other, &f->ctx, f->blob.bytes, 61, far(), f->secret, &f->used, &f->err),
	    KMS_OK);
	kms_close(f->kms); /* the module stays up for the other */
	f->kms = other;
	assert_int_equal(decrypt(f), KMS_OK);
}

/* ---- refused at open ---- */

static void test_refused_at_open(void **state)
{
	struct fixture *f = *state;

	write_pin(f, "123456", 0640);
	assert_int_equal(kms_open(&f->kms, &f->params, true, &f->err), -EACCES);
	assert_non_null(strstr(f->err.message, "chmod 600"));
	assert_int_equal(f->err.status, KMS_CONFIG);
	write_pin(f, "\n", 0600);
	assert_int_equal(kms_open(&f->kms, &f->params, true, &f->err), -EACCES);
	assert_int_equal(unlink(f->pin), 0);
	assert_int_equal(kms_open(&f->kms, &f->params, true, &f->err), -EACCES);
	assert_string_equal(f->err.code, "NoPin");
	write_pin(f, "123456", 0400);
	f->params.pkcs11.module = "/nowhere.so";
	assert_int_equal(kms_open(&f->kms, &f->params, true, &f->err), -ELIBACC);
	assert_non_null(strstr(f->err.message, "/nowhere.so"));
	f->params.pkcs11.module = "/lib/x86_64-linux-gnu/libz.so.1";
	assert_true(kms_open(&f->kms, &f->params, true, &f->err) < 0);
	f->params.pkcs11.module = "fake.so";
	assert_int_equal(kms_open(&f->kms, &f->params, true, &f->err), -EINVAL);
	f->params.pkcs11.module = f->fake_path;
	f->params.key = "pkcs11:token=other;object=key";
	assert_int_equal(kms_open(&f->kms, &f->params, true, &f->err), -EINVAL);
	assert_string_equal(f->err.code, "BadKeyName");
	assert_int_equal(f->fake->calls[FAKE_INITIALIZE], 0);
}

/* ---- faults ---- */

static void test_nothing_is_asked_in_open(void **state)
{
	struct fixture *f = *state;

	open_kms(f);
	for (int i = 0; i < FAKE_CALLS; i++)
		assert_int_equal(f->fake->calls[i], 0);
	assert_int_equal(generate(f), KMS_OK);
	assert_int_equal(decrypt(f), KMS_OK);
	assert_int_equal(f->fake->calls[FAKE_INITIALIZE], 1);
	assert_int_equal(f->fake->calls[FAKE_LOGIN], 1);
	assert_int_equal(f->fake->calls[FAKE_FIND], 1);
	kms_close(f->kms);
	f->kms = NULL;
	assert_int_equal(f->fake->calls[FAKE_FINALIZE], 1);
	assert_int_equal(f->fake->sessions, 0);
}

static void test_lost_sessions_come_back(void **state)
{
	static const ck_rv_t lost[] = { CKR_SESSION_HANDLE_INVALID, CKR_SESSION_CLOSED, CKR_DEVICE_REMOVED,
		CKR_TOKEN_NOT_PRESENT, CKR_OPERATION_ACTIVE, CKR_KEY_HANDLE_INVALID, CKR_OBJECT_HANDLE_INVALID,
		CKR_USER_NOT_LOGGED_IN };
	struct fixture *f = *state;

	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	for (size_t i = 0; i < sizeof(lost) / sizeof(lost[0]); i++) {
		tell(f, FAKE_DECRYPT, lost[i], 1);
		assert_int_equal(attempt(f), KMS_OK);
	}
	f->fake->first_key = 200; /* handles moved */
	assert_int_equal(attempt(f), KMS_OK);
	f->fake->loggedin = false;
	assert_int_equal(attempt(f), KMS_OK);
	f->fake->first_session = f->fake->first_session + 100; /* all gone */
	assert_int_equal(attempt(f), KMS_DOWN);
	f->fake->first_session = 0;
	assert_int_equal(attempt(f), KMS_OK);
	assert_int_equal(f->fake->calls[FAKE_INITIALIZE], 1);
}

static void test_classes(void **state)
{
	static const struct {
		ck_rv_t rv;
		enum kms_status status;
		const char *code;
	} cases[] = {
		{ CKR_DEVICE_ERROR, KMS_DOWN, "CKR_DEVICE_ERROR" },
		{ CKR_DEVICE_MEMORY, KMS_DOWN, "CKR_DEVICE_MEMORY" },
		{ CKR_HOST_MEMORY, KMS_DOWN, "CKR_HOST_MEMORY" },
		{ CKR_DEVICE_REMOVED, KMS_DOWN, "CKR_DEVICE_REMOVED" },
		{ CKR_SESSION_COUNT, KMS_BUSY, "CKR_SESSION_COUNT" },
		{ CKR_ENCRYPTED_DATA_INVALID, KMS_BAD_BLOB, "CKR_ENCRYPTED_DATA_INVALID" },
		{ CKR_GENERAL_ERROR, KMS_BAD_BLOB, "CKR_GENERAL_ERROR" },
		{ CKR_KEY_FUNCTION_NOT_PERMITTED, KMS_DENIED, "CKR_KEY_FUNCTION_NOT_PERMITTED" },
		{ CKR_MECHANISM_INVALID, KMS_CONFIG, "CKR_MECHANISM_INVALID" },
		{ 0x87654321, KMS_CONFIG, "CKR_0x87654321" },
	};
	struct fixture *f = *state;

	open_kms(f);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(generate(f), KMS_OK);
		tell(f, FAKE_DECRYPT, cases[i].rv, 50);
		assert_int_equal(attempt(f), cases[i].status);
		assert_string_equal(f->err.code, cases[i].code);
		tell(f, FAKE_DECRYPT, CKR_OK, 0);
		assert_int_equal(attempt(f), KMS_OK);
	}
	/* Neither way works: the device, not the blob. */
	tell(f, FAKE_DECRYPT, CKR_GENERAL_ERROR, 50);
	tell(f, FAKE_ENCRYPT, CKR_GENERAL_ERROR, 50);
	assert_int_equal(attempt(f), KMS_DOWN);
	tell(f, FAKE_DECRYPT, CKR_OK, 0);
	tell(f, FAKE_ENCRYPT, CKR_ENCRYPTED_DATA_INVALID, 1);
	assert_int_equal(generate(f), KMS_CONFIG);
}

/* One failure that passes before the test seal says nothing of the blob, and nothing of whose key it is. */
static void test_a_hiccup_is_no_bad_blob(void **state)
{
	static const ck_rv_t hiccups[] = { CKR_FUNCTION_FAILED, CKR_GENERAL_ERROR };
	struct fixture *f = *state;

	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	for (size_t i = 0; i < sizeof(hiccups) / sizeof(hiccups[0]); i++) {
		tell(f, FAKE_DECRYPT, hiccups[i], 1);
		assert_int_equal(attempt(f), KMS_OK);
		f->fake->first_key += 100; /* handles moved: the first decryption is the check's */
		tell(f, FAKE_DECRYPT, hiccups[i], 1);
		assert_int_equal(attempt(f), KMS_OK);
		tell(f, FAKE_DECRYPT, hiccups[i], 2);
		assert_int_equal(attempt(f), KMS_BAD_BLOB);
	}
	tell(f, FAKE_DECRYPT, CKR_FUNCTION_FAILED, 1);
	f->blob.bytes[20] ^= 1;
	assert_int_equal(attempt(f), KMS_BAD_BLOB);
}

static void test_revocations(void **state)
{
	struct fixture *f = *state;

	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	f->fake->keys = 0;
	assert_int_equal(attempt(f), KMS_DENIED);
	f->fake->keys = 1;
	assert_int_equal(attempt(f), KMS_OK);
	f->fake->may_not_decrypt = true; /* the owner took CKA_DECRYPT away */
	tell(f, FAKE_DECRYPT, CKR_KEY_FUNCTION_NOT_PERMITTED, 9);
	assert_int_equal(attempt(f), KMS_DENIED);
	tell(f, FAKE_DECRYPT, CKR_OK, 0);
	f->fake->may_not_decrypt = false;
	assert_int_equal(attempt(f), KMS_OK);
	f->fake->key = 6; /* another key, the same label; nothing is sealed under it */
	f->fake->first_key = 300;
	assert_int_equal(attempt(f), KMS_DENIED);
	assert_string_equal(f->err.code, "OtherKey");
	assert_int_equal(generate(f), KMS_DENIED);
	f->blob.len = 61;
	f->fake->key = 5;
	assert_int_equal(attempt(f), KMS_OK);
	f->fake->extractable = true;
	f->fake->first_key = 400;
	assert_int_equal(attempt(f), KMS_CONFIG);
	assert_string_equal(f->err.code, "ExtractableKey");
}

/* A key that was never there has not been taken away; a token that is not there may come. */
static void test_first_use(void **state)
{
	struct fixture *f = *state;

	f->fake->keys = 0;
	open_kms(f);
	f->blob.len = 61;
	f->blob.bytes[0] = 1;
	assert_int_equal(attempt(f), KMS_CONFIG);
	assert_string_equal(f->err.code, "NoSuchKey");
	f->fake->keys = 2;
	assert_int_equal(attempt(f), KMS_CONFIG);
	f->fake->keys = 1;
	f->fake->bits = 128;
	assert_int_equal(attempt(f), KMS_CONFIG);
	f->fake->bits = 256;
	f->fake->insensitive = true;
	assert_int_equal(attempt(f), KMS_CONFIG);
	f->fake->insensitive = false;
	kms_close(f->kms);
	open_kms(f);
	f->fake->tokens = 2;
	assert_int_equal(attempt(f), KMS_CONFIG);
	assert_string_equal(f->err.code, "AmbiguousToken");
	f->fake->present = false;
	assert_int_equal(attempt(f), KMS_DOWN);
	assert_string_equal(f->err.code, "CKR_TOKEN_NOT_PRESENT");
	tell(f, FAKE_SLOTS, CKR_GENERAL_ERROR, 9);
	assert_int_equal(attempt(f), KMS_DOWN);
	kms_close(f->kms);
	open_kms(f);
	tell(f, FAKE_INITIALIZE, CKR_CANT_LOCK, 9);
	assert_int_equal(attempt(f), KMS_CONFIG);
}

static void test_module_that_sees_late(void **state)
{
	struct fixture *f = *state;

	f->fake->sees_late = true;
	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	f->fake->present = false;
	kms_close(f->kms);
	open_kms(f);
	assert_int_equal(attempt(f), KMS_DOWN);
	f->fake->present = true;
	assert_int_equal(decrypt(f), KMS_OK); /* after C_Finalize, which is done once a second at most */
	assert_true(f->fake->calls[FAKE_FINALIZE] >= 2);
}

static void test_a_wrong_pin_is_tried_once(void **state)
{
	struct fixture *f = *state;
	struct kms *other = NULL;

	write_pin(f, "nonsense", 0600);
	open_kms(f);
	assert_int_equal(kms_open(&other, &f->params, true, &f->err), 0);
	assert_int_equal(generate(f), KMS_CONFIG);
	assert_string_equal(f->err.code, "CKR_PIN_INCORRECT");
	for (int i = 0; i < 5; i++)
		assert_int_equal(generate(f), KMS_CONFIG);
	write_pin(f, "123456", 0600);
	assert_int_equal(kms_encrypt(other, &f->ctx, f->secret, far(), &f->blob, &f->used, &f->err),
	    KMS_CONFIG); /* for the whole process */
	assert_int_equal(f->fake->calls[FAKE_LOGIN], 1);
	kms_refresh(other);
	assert_int_equal(generate(f), KMS_OK);
	assert_int_equal(f->fake->calls[FAKE_LOGIN], 2);
	kms_close(other);
}

static void test_the_last_try_is_not_ours(void **state)
{
	struct fixture *f = *state;
	char token[] = "fake";

	/* The process's record of this token starts anew for this test only if no PIN was accepted yet: main() runs it
	 * first. */
	f->params.pkcs11.token = token;
	f->fake->flags = CKF_USER_PIN_FINAL_TRY;
	open_kms(f);
	assert_int_equal(generate(f), KMS_CONFIG);
	assert_string_equal(f->err.code, "PinFinalTry");
	f->fake->flags = CKF_USER_PIN_LOCKED;
	assert_int_equal(generate(f), KMS_CONFIG);
	assert_string_equal(f->err.code, "CKR_PIN_LOCKED");
	assert_int_equal(f->fake->calls[FAKE_LOGIN], 0);
	f->fake->flags = 0;
	assert_int_equal(generate(f), KMS_OK);
	f->fake->loggedin = false;
	f->fake->flags = CKF_USER_PIN_FINAL_TRY; /* a PIN that was right is */
	assert_int_equal(generate(f), KMS_OK);
}

static void test_the_token_may_choose_the_nonce(void **state)
{
	struct fixture *f = *state;
	uint8_t nonce[12];

	f->fake->own_nonce = true;
	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	memset(nonce, 0x77, sizeof(nonce));
	assert_memory_equal(f->blob.bytes + 1, nonce, sizeof(nonce));
	assert_int_equal(decrypt(f), KMS_OK);
}

static void wait_for(const atomic_uint *what, unsigned value)
{
	uint64_t end = far();

	while (atomic_load(what) != value) {
		assert_true(io_boot_ms() < end);
		usleep(1000);
	}
}

/* A call into the module does not come back: callers go at their deadlines, and so does close. */
static void test_a_module_that_hangs(void **state)
{
	struct fixture *f = *state;

	f->params.max_connections = 2;
	open_kms(f);
	assert_int_equal(generate(f), KMS_OK);
	f->fake->hang = true;
	for (unsigned i = 1; i <= 2; i++) {
		assert_int_equal(kms_decrypt(f->kms, &f->ctx, f->blob.bytes, 61, io_boot_ms() + 20, f->secret,
		                     &f->used, &f->err),
		    KMS_DOWN);
		assert_string_equal(f->err.code, "Timeout");
		wait_for(&f->fake->hanging, i);
	}
	/* All threads are stuck. */
	assert_int_equal(
	    kms_decrypt(f->kms, &f->ctx, f->blob.bytes, 61, io_boot_ms() + 20, f->secret, &f->used, &f->err), KMS_DOWN);
	assert_non_null(strstr(f->err.message, "all threads"));
	f->fake->hang = false;
	wait_for(&f->fake->hanging, 0);
	assert_int_equal(decrypt(f), KMS_OK);
	f->fake->hang = true;
	assert_int_equal(
	    kms_decrypt(f->kms, &f->ctx, f->blob.bytes, 61, io_boot_ms() + 20, f->secret, &f->used, &f->err), KMS_DOWN);
	wait_for(&f->fake->hanging, 1);
	kms_close(f->kms);
	f->kms = NULL;
	assert_int_equal(f->fake->calls[FAKE_FINALIZE], 0); /* somebody is inside */
	f->fake->hang = false;
	wait_for(&f->fake->calls[FAKE_FINALIZE], 1);
}

#define SOFT(test) cmocka_unit_test_setup_teardown(test, setup_softhsm, teardown)
#define FAKE(test) cmocka_unit_test_setup_teardown(test, setup_fake, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_meanings),
		FAKE(test_the_last_try_is_not_ours),
		FAKE(test_refused_at_open),
		FAKE(test_nothing_is_asked_in_open),
		FAKE(test_lost_sessions_come_back),
		FAKE(test_classes),
		FAKE(test_a_hiccup_is_no_bad_blob),
		FAKE(test_revocations),
		FAKE(test_first_use),
		FAKE(test_module_that_sees_late),
		FAKE(test_a_wrong_pin_is_tried_once),
		FAKE(test_the_token_may_choose_the_nonce),
		FAKE(test_a_module_that_hangs),
		SOFT(test_round_trips),
		SOFT(test_every_bit_and_the_context_count),
		SOFT(test_reconfigure),
		SOFT(test_opens_what_another_process_sealed),
		SOFT(test_destroyed_replaced_and_back),
		SOFT(test_token_away_and_back),
		SOFT(test_keys_that_will_not_do),
		SOFT(test_wrong_pin),
		SOFT(test_many_threads),
		SOFT(test_two_at_once_and_one_after_the_other),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
