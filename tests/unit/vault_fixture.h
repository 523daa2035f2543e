/* vault_fixture.h — a provider for a key in Vault, and a server whose answers are scripted: as the documentation of
 * Vault and OpenBao has them. */
#ifndef BYOKFS_VAULT_FIXTURE_H
#define BYOKFS_VAULT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

#include "../../src/kms_vault_internal.h"
#include "fake_server.h"
#include "io.h"
#include "log.h"
#include "secret.h"

#define N(a)           (sizeof(a) / sizeof((a)[0]))
#define KEY            "vault:transit/keys/byokfs"
#define SECRET_1_TO_32 "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
#define AAD            "DABieW9rZnMtc3RvcmUEADAwZmY=" /* E({byokfs-store: 00ff}), made with Python */
/* The shapes of the API documentation's sample answers. */
#define LOOKED(type)                                           \
	"{\"request_id\":\"r-key\",\"data\":{\"type\":\"" type \
	"\",\"derived\":false,\"name\":\"byokfs\",\"latest_version\":3}}"
#define SEALED                                                                                                    \
	"{\"request_id\":\"r-1\",\"data\":{\"ciphertext\":\"vault:v3:XjsPWPjqPrBi1N2Ms2s1QM798YyFWnO4TR4lsFA=\"," \
	"\"key_version\":3}}"
#define OPENED \
	"{\"request_id\":\"r-2\",\"lease_id\":\"\",\"data\":{\"plaintext\":\"" SECRET_1_TO_32 "\"},\"auth\":null}"
#define BLOB         "vault:v3:XjsPWPjqPrBi1N2Ms2s1QM798YyFWnO4TR4lsFA="
#define ERRORS(text) "{\"errors\":[\"" text "\"]}"
#define DENIED       ERRORS("1 error occurred:\\n\\t* permission denied\\n\\n")
#define INVALID      ERRORS("2 errors occurred:\\n\\t* permission denied\\n\\t* invalid token\\n\\n")
#define SELF         "{\"data\":{\"id\":\"t\",\"policies\":[\"default\"],\"ttl\":100}}"
#define LOGIN(token, s)                                                                    \
	"{\"auth\":{\"renewable\":true,\"lease_duration\":" s ",\"client_token\":\"" token \
	"\",\"token_policies\":[\"default\"]}}"
#define OK(text)                              \
	{                                     \
		.status = 200, .body = (text) \
	}
#define ANSWER(code, text)                       \
	{                                        \
		.status = (code), .body = (text) \
	}

struct fixture {
	struct fake *server;
	struct kms *kms;
	struct context ctx;
	char dir[40], token[60], address[64];
	uint8_t secret[32];
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
};

static inline void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static inline struct kms_params params_of(struct fixture *f, bool role)
{
	struct kms_params p = { .provider = "vault", .key = "byokfs", .proxy = "", .request_timeout_ms = 5000 };

	(void)snprintf(f->address, sizeof(f->address), "http://127.0.0.1:%u/", f->server->port);
	p.vault.address = f->address;
	p.vault.mount = "transit";
	if (role) {
		p.vault.role_id = "59d6d1ca";
		p.vault.secret_id_file = f->token;
	} else {
		p.vault.token_file = f->token;
	}
	return p;
}

static inline void begin(struct fixture *f, const struct fake_answer *script, size_t n, bool role)
{
	struct kms_params p;

	memset(f, 0, sizeof(*f));
	strcpy(f->dir, "/tmp/byokfs-vault.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	(void)snprintf(f->token, sizeof(f->token), "%s/token", f->dir);
	write_file(f->token, role ? "84896a0c\n" : "s.first\n");
	f->server = fake_start(script, n);
	assert_non_null(f->server);
	f->ctx.n = 1;
	strcpy(f->ctx.pair[0].name, "byokfs-store");
	strcpy(f->ctx.pair[0].value, "00ff");
	p = params_of(f, role);
	assert_int_equal(kms_open(&f->kms, &p, true, &f->err), 0);
	assert_string_equal(kms_key(f->kms), KEY);
	assert_int_equal(fake_seen(f->server), 0);
}

static inline void end(struct fixture *f)
{
	kms_close(f->kms);
	fake_stop(f->server);
	(void)unlink(f->token);
	assert_int_equal(rmdir(f->dir), 0);
}

static inline uint64_t soon(void)
{
	return io_boot_ms() + 3000;
}

/* One attempt: the wrapper does not repeat when so little time is left. */
static inline uint64_t once(void)
{
	return io_boot_ms() + 60;
}

static inline enum kms_status generate(struct fixture *f, uint64_t deadline)
{
	return kms_generate(f->kms, &f->ctx, deadline, f->secret, &f->blob, &f->used, &f->err);
}

static inline enum kms_status decrypt(struct fixture *f, uint64_t deadline)
{
	return kms_decrypt(
	    f->kms, &f->ctx, (const uint8_t *)BLOB, strlen(BLOB), deadline, f->secret, &f->used, &f->err);
}

static inline void assert_secret(const uint8_t *secret)
{
	for (int i = 0; i < 32; i++)
		assert_int_equal(secret[i], i + 1);
}

static inline void assert_wiped(const uint8_t *secret)
{
	static const uint8_t zero[32];

	assert_memory_equal(secret, zero, 32);
}

/* The i-th request begins so, and has each of these in it. */
static inline void assert_request(struct fixture *f, unsigned i, const char *line, const char *const *parts)
{
	char *seen = fake_request(f->server, i);

	if (strncmp(seen, line, strlen(line)) != 0)
		fail_msg("request %u is not '%s' but: %s", i, line, seen);
	for (; *parts; parts++)
		if (!strstr(seen, *parts))
			fail_msg("request %u lacks '%s': %s", i, *parts, seen);
	free(seen);
}

#define REQUEST(f, i, line, ...) assert_request(f, i, line, (const char *const[]){ __VA_ARGS__, NULL })

static inline json_t *body_of(struct fixture *f, unsigned i)
{
	char *seen = fake_request(f->server, i);
	json_t *o = json_loads(strstr(seen, "\r\n\r\n") + 4, 0, NULL);

	free(seen);
	assert_non_null(o);
	return o;
}

/* ---- batches ---- */

#define RESULT    "{\"plaintext\":\"" SECRET_1_TO_32 "\",\"reference\":\"\"}"
#define FAILED(t) "{\"error\":\"" t "\",\"plaintext\":\"\",\"reference\":\"\"}"

struct many {
	struct kms_item item[5];
	uint8_t secret[5][32];
};

static inline void run_batch(struct fixture *f, struct many *m, size_t n)
{
	memset(m, 0, sizeof(*m));
	for (size_t i = 0; i < n; i++) {
		memset(m->secret[i], 0xee, 32);
		m->item[i] = (struct kms_item){
			.context = &f->ctx, .blob = (const uint8_t *)BLOB, .len = strlen(BLOB), .secret = m->secret[i]
		};
	}
	if (n > 1)
		m->item[1].len = 5; /* "vault" */
	kms_decrypt_batch(f->kms, m->item, n, soon());
}

#endif
