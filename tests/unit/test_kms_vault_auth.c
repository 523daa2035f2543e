/* kms_vault_auth: the token file on a filesystem that hangs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the filesystem ---- */

static atomic_bool hangs;
static sem_t arrived, go;

static void gate(void)
{
	if (!atomic_load(&hangs))
		return;
	(void)sem_post(&arrived);
	while (sem_wait(&go) && errno == EINTR)
		;
}

static int gate_open(const char *path, int flags)
{
	gate();
	return open(path, flags);
}

static int gate_stat(const char *path, struct stat *st)
{
	gate();
	return stat(path, st);
}

#define open(path, flags) gate_open(path, flags)
#define stat(path, st)    gate_stat(path, st)
#include "../../src/kms_vault_auth.c"
#undef open
#undef stat

/* ---- the tests ---- */

struct fixture {
	char dir[40], token[60];
	struct vault_link *link;
	struct kms_err err;
};

static void write_token(const struct fixture *f, const char *text)
{
	char other[80];
	FILE *file;

	(void)snprintf(other, sizeof(other), "%s.new", f->token);
	file = fopen(other, "we");
	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
	assert_int_equal(chmod(other, 0600), 0);
	assert_int_equal(rename(other, f->token), 0);
}

static void begin(struct fixture *f)
{
	struct kms_params p = { .provider = "vault", .key = "k" };

	memset(f, 0, sizeof(*f));
	strcpy(f->dir, "/tmp/byokfs-vault.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	(void)snprintf(f->token, sizeof(f->token), "%s/token", f->dir);
	write_token(f, "s.first\n");
	p.vault.address = "http://127.0.0.1:1";
	p.vault.token_file = f->token;
	atomic_store(&hangs, false);
	assert_int_equal(sem_init(&arrived, 0, 0), 0);
	assert_int_equal(sem_init(&go, 0, 0), 0);
	assert_int_equal(vault_link_open(&f->link, &p, &f->err), 0);
}

static void end(struct fixture *f)
{
	vault_link_close(f->link);
	(void)unlink(f->token);
	assert_int_equal(rmdir(f->dir), 0);
}

/* The token, "" when there is none; its number in *serial. */
static enum kms_status get(struct fixture *f, uint64_t deadline, char token[static 40], uint64_t *serial)
{
	char *header = NULL;
	enum kms_status status = vault_token_get(f->link, deadline, &header, serial, &f->err);

	(void)snprintf(token, 40, "%s", header ? header + strlen(HEADER) : "");
	secret_free(header);
	return status;
}

static void *read_token(void *arg)
{
	struct fixture *f = arg;
	char *header = NULL;
	uint64_t serial;
	struct kms_err err;
	bool good = vault_token_get(f->link, io_boot_ms() + 20, &header, &serial, &err) == KMS_OK &&
	    strcmp(header, HEADER "s.second") == 0;

	secret_free(header);
	return good ? arg : NULL;
}

static pthread_t hang_reader(struct fixture *f)
{
	pthread_t thread;

	atomic_store(&hangs, true);
	assert_int_equal(pthread_create(&thread, NULL, read_token, f), 0);
	while (sem_wait(&arrived) && errno == EINTR)
		;
	atomic_store(&hangs, false);
	return thread;
}

static void release(struct fixture *f, pthread_t reader)
{
	void *good;

	assert_int_equal(sem_post(&go), 0);
	assert_int_equal(pthread_join(reader, &good), 0);
	assert_ptr_equal(good, f);
}

static void others_keep_their_deadline(void **state)
{
	struct fixture f;
	pthread_t reader;
	char token[40];
	uint64_t serial;

	(void)state;
	begin(&f);
	write_token(&f, "s.second\n");
	reader = hang_reader(&f);
	assert_int_equal(get(&f, io_boot_ms() + 20, token, &serial), KMS_DOWN);
	assert_string_equal(f.err.code, "Timeout");
	assert_string_equal(token, "");
	vault_token_forget(f.link); /* neither does SIGHUP wait */
	release(&f, reader);
	assert_int_equal(get(&f, io_boot_ms() + 3000, token, &serial), KMS_OK);
	assert_string_equal(token, "s.second");
	end(&f);
}

static void others_go_on_with_the_token_at_hand(void **state)
{
	struct fixture f;
	pthread_t reader;
	char token[40];
	uint64_t serial;

	(void)state;
	begin(&f);
	assert_int_equal(get(&f, io_boot_ms() + 3000, token, &serial), KMS_OK);
	write_token(&f, "s.second\n");
	reader = hang_reader(&f);
	assert_int_equal(get(&f, io_boot_ms() + 20, token, &serial), KMS_OK);
	assert_string_equal(token, "s.first");
	vault_token_bad(f.link, serial); /* the server knows it no longer */
	assert_int_equal(get(&f, io_boot_ms() + 20, token, &serial), KMS_DOWN);
	release(&f, reader);
	assert_int_equal(get(&f, io_boot_ms() + 3000, token, &serial), KMS_OK);
	assert_string_equal(token, "s.second");
	end(&f);
}

/* The same file, but what it holds was refused while it was looked at. */
static void a_refused_token_is_read_again(void **state)
{
	struct fixture f;
	pthread_t reader;
	char token[40];
	uint64_t serial;

	(void)state;
	begin(&f);
	write_token(&f, "s.second\n");
	assert_int_equal(get(&f, io_boot_ms() + 3000, token, &serial), KMS_OK);
	reader = hang_reader(&f);
	vault_token_bad(f.link, serial);
	release(&f, reader);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(others_keep_their_deadline),
		cmocka_unit_test(others_go_on_with_the_token_at_hand),
		cmocka_unit_test(a_refused_token_is_read_again),
	};

	if (secret_init(true))
		return 1;
	log_setup("test", LOG_LEVEL_ERR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
