/* kms_keyfile: the sealing against numbers computed elsewhere, and the file as a switch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "io.h"
#include "kms.h"
#include "secret.h"

/* Key file 00 01 .. 1f; both made with Python's hmac and cryptography from the text of byokfs-format(5),
 * section 8. */
#define NAME "keyfile:344ab22bd8b52641"
#define SEALED                                                         \
	"303132333435363738393a3b03c92849df9b9731203c2c837e4177feee01" \
	"c1f6c7289574fa105690cc480c54c3c63202f439b637e25d1ffbf2167951"

struct fixture {
	char dir[40], path[60];
	struct kms *kms;
	struct context ctx;
	uint8_t secret[32];
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
};

static void write_key(const struct fixture *f, uint8_t first, size_t n, mode_t mode)
{
	uint8_t key[40];
	int fd = open(f->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	for (size_t i = 0; i < sizeof(key); i++)
		key[i] = (uint8_t)(first + i);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, key, n), n);
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static int open_kms(struct fixture *f)
{
	const struct kms_params params = { .provider = "keyfile", .keyfile_path = f->path };

	return kms_open(&f->kms, &params, true, &f->err);
}

static int setup(void **state)
{
	struct fixture *f = test_calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/byokfs-keyfile.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/key", f->dir);
	f->ctx.n = 2;
	strcpy(f->ctx.pair[0].name, "byokfs-store");
	strcpy(f->ctx.pair[0].value, "00112233");
	strcpy(f->ctx.pair[1].name, "byokfs-use");
	strcpy(f->ctx.pair[1].value, "domain");
	write_key(f, 0, 32, 0600);
	*state = f;
	return 0;
}

static int setup_open(void **state)
{
	setup(state);
	return open_kms(*state);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	kms_close(f->kms);
	(void)unlink(f->path);
	(void)rmdir(f->path);
	assert_int_equal(rmdir(f->dir), 0);
	test_free(f);
	return 0;
}

static enum kms_status generate(struct fixture *f)
{
	return kms_generate(f->kms, &f->ctx, io_boot_ms(), f->secret, &f->blob, &f->used, &f->err);
}

static enum kms_status decrypt(struct fixture *f)
{
	return kms_decrypt(f->kms, &f->ctx, f->blob.bytes, f->blob.len, io_boot_ms(), f->secret, &f->used, &f->err);
}

static void test_known_blob(void **state)
{
	struct fixture *f = *state;

	assert_string_equal(kms_key(f->kms), NAME);
	f->blob.len = 60;
	assert_int_equal(bytes_unhex(f->blob.bytes, 60, SEALED, strlen(SEALED)), 0);
	assert_int_equal(decrypt(f), KMS_OK);
	for (int i = 0; i < 32; i++)
		assert_int_equal(f->secret[i], 0xa0 + i);
	assert_string_equal(f->used.key, NAME);
}

static void test_round_trips(void **state)
{
	struct fixture *f = *state;
	uint8_t first[32], blob[60];

	assert_int_equal(generate(f), KMS_OK);
	assert_int_equal(f->blob.len, 60);
	memcpy(first, f->secret, 32);
	memcpy(blob, f->blob.bytes, 60);
	memset(f->secret, 0, 32);
	assert_int_equal(decrypt(f), KMS_OK);
	assert_memory_equal(f->secret, first, 32);
	assert_int_equal(kms_encrypt(f->kms, &f->ctx, first, io_boot_ms(), &f->blob, &f->used, &f->err), KMS_OK);
	assert_memory_not_equal(f->blob.bytes, blob, 60); /* a fresh nonce */
	memset(f->secret, 0, 32);
	assert_int_equal(decrypt(f), KMS_OK);
	assert_memory_equal(f->secret, first, 32);
	assert_int_equal(generate(f), KMS_OK);
	assert_memory_not_equal(f->secret, first, 32);
}

static void test_every_bit_of_the_blob_counts(void **state)
{
	static const uint8_t zero[32];
	struct fixture *f = *state;

	assert_int_equal(generate(f), KMS_OK);
	for (size_t bit = 0; bit < 480; bit++) {
		f->blob.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(decrypt(f), KMS_BAD_BLOB);
		assert_memory_equal(f->secret, zero, 32);
		f->blob.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	f->blob.len = 59;
	assert_int_equal(decrypt(f), KMS_BAD_BLOB);
	f->blob.len = 61;
	assert_int_equal(decrypt(f), KMS_BAD_BLOB);
	f->blob.len = 60;
	assert_int_equal(decrypt(f), KMS_OK);
}

static void test_context_is_bound(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(generate(f), KMS_OK);
	f->ctx.pair[1].value[0] = 'D';
	assert_int_equal(decrypt(f), KMS_BAD_BLOB);
	f->ctx.n = 1;
	assert_int_equal(decrypt(f), KMS_BAD_BLOB);
	f->ctx.n = 2;
	f->ctx.pair[1].value[0] = 'd';
	assert_int_equal(decrypt(f), KMS_OK);
}

static void test_removed_file_denies_until_it_is_back(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(generate(f), KMS_OK);
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(decrypt(f), KMS_DENIED);
	assert_non_null(strstr(f->err.message, f->path));
	assert_int_equal(generate(f), KMS_DENIED);
	write_key(f, 0, 32, 0600);
	f->blob.len = 60;
	assert_int_equal(generate(f), KMS_OK);
	assert_int_equal(decrypt(f), KMS_OK);
}

static void test_changed_file_denies(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(generate(f), KMS_OK);
	write_key(f, 1, 32, 0600);
	assert_int_equal(decrypt(f), KMS_DENIED);
	write_key(f, 0, 0, 0600);
	assert_int_equal(decrypt(f), KMS_DENIED);
	write_key(f, 0, 33, 0600);
	assert_int_equal(decrypt(f), KMS_DENIED);
	write_key(f, 0, 32, 0640);
	assert_int_equal(decrypt(f), KMS_CONFIG);
	write_key(f, 0, 32, 0400);
	assert_int_equal(decrypt(f), KMS_OK);
}

/* A loop of links stands for a file that is there and cannot be read, which root, too, meets. */
static void test_unreadable_file_is_down(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(generate(f), KMS_OK);
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(symlink(f->path, f->path), 0);
	assert_int_equal(decrypt(f), KMS_DOWN);
	assert_string_equal(f->err.code, "Unreadable");
}

static void test_refused_at_open(void **state)
{
	static const mode_t modes[] = { 0640, 0604, 0620, 0601 };
	const struct kms_params relative = { .provider = "keyfile", .keyfile_path = "key" };
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		write_key(f, 0, 32, modes[i]);
		assert_int_equal(open_kms(f), -EACCES);
		assert_non_null(strstr(f->err.message, "chmod 600"));
		assert_int_equal(f->err.status, KMS_CONFIG);
	}
	write_key(f, 0, 31, 0600);
	assert_int_equal(open_kms(f), -EINVAL);
	write_key(f, 0, 33, 0600);
	assert_int_equal(open_kms(f), -EINVAL);
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(open_kms(f), -ENOENT);
	assert_int_equal(f->err.status, KMS_DENIED);
	assert_int_equal(mkdir(f->path, 0700), 0);
	assert_int_equal(open_kms(f), -EINVAL);
	assert_int_equal(kms_open(&f->kms, &relative, true, &f->err), -EINVAL);
	assert_string_equal(f->err.code, "NoKey");
}

/* Without the file its name is what the caller knows it must be. */
static void test_awaited(void **state)
{
	static const char *const others[] = { NULL, "", "keyfile:", "keyfile:344ab22bd8b5264",
		"keyfile:344ab22bd8b526411", "keyfile:344AB22BD8B52641",
		"arn:aws:kms:eu-west-1:111122223333:key/1234" };
	struct fixture *f = *state;
	struct kms_params params = { .provider = "keyfile", .keyfile_path = f->path };

	assert_int_equal(unlink(f->path), 0);
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		params.key = others[i];
		assert_int_equal(kms_open(&f->kms, &params, true, &f->err), -ENOENT);
	}
	params.key = NAME;
	write_key(f, 0, 32, 0644);
	assert_int_equal(kms_open(&f->kms, &params, true, &f->err), -EACCES);
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(kms_open(&f->kms, &params, true, &f->err), 0);
	assert_string_equal(kms_key(f->kms), NAME);
	assert_int_equal(generate(f), KMS_DENIED);
	write_key(f, 7, 32, 0600);
	assert_int_equal(generate(f), KMS_DENIED);
	write_key(f, 0, 32, 0600);
	assert_int_equal(generate(f), KMS_OK);
	assert_int_equal(decrypt(f), KMS_OK);
}

static void test_describe(void **state)
{
	struct fixture *f = *state;
	struct kms_description *d = test_malloc(sizeof(*d));

	assert_int_equal(kms_describe(f->kms, NAME, io_boot_ms(), d, &f->err), KMS_OK);
	assert_string_equal(d->arn, NAME);
	assert_string_equal(d->state, "Enabled");
	assert_int_equal(kms_describe(f->kms, "keyfile:00", io_boot_ms(), d, &f->err), KMS_CONFIG);
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(kms_describe(f->kms, NAME, io_boot_ms(), d, &f->err), KMS_DENIED);
	test_free(d);
}

#define OPEN(test) cmocka_unit_test_setup_teardown(test, setup_open, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		OPEN(test_known_blob),
		OPEN(test_round_trips),
		OPEN(test_every_bit_of_the_blob_counts),
		OPEN(test_context_is_bound),
		OPEN(test_removed_file_denies_until_it_is_back),
		OPEN(test_changed_file_denies),
		OPEN(test_unreadable_file_is_down),
		cmocka_unit_test_setup_teardown(test_refused_at_open, setup, teardown),
		cmocka_unit_test_setup_teardown(test_awaited, setup, teardown),
		OPEN(test_describe),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("kms_keyfile", tests, NULL, NULL);
}
