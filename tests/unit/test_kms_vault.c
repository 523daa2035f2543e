/* kms_vault: requests as the documentation of Vault and OpenBao has them, answers as their servers give them. */
#include "vault_fixture.h"

/* ---- requests and answers ---- */

static void generate_seals_a_drawn_secret(void **state)
{
	static const struct fake_answer script[] = { OK(LOOKED("aes256-gcm96")), OK(SEALED) };
	static const uint8_t version[8] = { 0, 0, 0, 0, 0, 0, 0, 3 };
	struct fixture f;
	uint8_t plain[32];
	size_t len = 32;
	json_t *body;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(generate(&f, soon()), KMS_OK);
	REQUEST(&f, 0, "GET /v1/transit/keys/byokfs HTTP/1.1\r\n", "X-Vault-Token: s.first\r\n",
	    "X-Vault-Request: true\r\n");
	REQUEST(&f, 1, "POST /v1/transit/encrypt/byokfs HTTP/1.1\r\n", "X-Vault-Token: s.first\r\n");
	body = body_of(&f, 1);
	assert_int_equal(json_object_size(body), 3);
	assert_string_equal(jsonio_str(body, "associated_data"), AAD);
	assert_string_equal(jsonio_str(body, "context"), AAD);
	assert_int_equal(jsonio_blob(plain, &len, body, "plaintext"), 0);
	assert_int_equal(len, 32);
	assert_memory_equal(plain, f.secret, 32);
	json_decref(body);
	assert_int_equal(f.blob.len, strlen(BLOB));
	assert_memory_equal(f.blob.bytes, BLOB, f.blob.len);
	assert_string_equal(f.used.key, KEY);
	assert_string_equal(f.used.request_id, "r-1");
	assert_memory_equal(f.used.material + 24, version, 8);
	/* The key's properties are asked for once. */
	assert_int_equal(generate(&f, soon()), KMS_OK);
	assert_int_equal(fake_seen(f.server), 3);
	end(&f);
}

static void decrypt_opens(void **state)
{
	static const struct fake_answer script[] = { OK(OPENED), OK("{\"data\":{\"plaintext\":\"AQID\"}}"), OK("[1]") };
	struct fixture f;
	json_t *body;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	assert_secret(f.secret);
	body = body_of(&f, 0);
	assert_string_equal(jsonio_str(body, "ciphertext"), BLOB);
	assert_string_equal(jsonio_str(body, "associated_data"), AAD);
	json_decref(body);
	assert_string_equal(f.used.request_id, "r-2");
	assert_int_equal(f.used.material[31], 3);
	assert_int_equal(decrypt(&f, soon()), KMS_BAD_BLOB); /* three bytes are no secret */
	assert_wiped(f.secret);
	assert_int_equal(decrypt(&f, once()), KMS_DOWN);
	assert_string_equal(f.err.code, "MalformedAnswer");
	end(&f);
}

static void what_is_no_ciphertext_is_not_sent(void **state)
{
	static const char *const bad[] = { "vault:v3:", "vault:v:YWJj", "vault:v0:YWJj", "vault:3:YWJj", "aws blob",
		"vault:v3:YW\"j", "vault:v3YWJj", "vault:v99999999999999999999999:YWJj" };
	static const struct fake_answer script[] = { OK(OPENED) };
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), false);
	for (size_t i = 0; i < N(bad); i++) {
		assert_int_equal(kms_decrypt(f.kms, &f.ctx, (const uint8_t *)bad[i], strlen(bad[i]), soon(), f.secret,
		                     &f.used, &f.err),
		    KMS_BAD_BLOB);
		assert_string_equal(f.err.code, "InvalidCiphertext");
	}
	assert_int_equal(fake_seen(f.server), 0);
	end(&f);
}

static void weak_keys_are_refused(void **state)
{
	static const char *const types[] = { LOOKED("aes128-gcm96"), LOOKED("rsa-4096"), LOOKED("ed25519"),
		"{\"data\":{}}" };
	struct fixture f;

	(void)state;
	for (size_t i = 0; i < N(types); i++) {
		const struct fake_answer script[] = { OK(types[i]) };

		begin(&f, script, N(script), false);
		assert_int_equal(generate(&f, soon()), KMS_CONFIG);
		assert_string_equal(f.err.code, "WrongKeyType");
		assert_wiped(f.secret);
		assert_int_equal(fake_seen(f.server), 1);
		end(&f);
	}
}

static void the_key_need_not_be_readable(void **state)
{
	static const struct fake_answer script[] = { ANSWER(403, DENIED), OK(SELF), OK(SEALED) };
	static const struct fake_answer rsa[] = { ANSWER(403, DENIED), OK(SELF),
		ANSWER(400, ERRORS("'[0].associated_data' provided for non-AEAD cipher suite rsa-2048")) };
	static const struct fake_answer none[] = { ANSWER(404, "{\"errors\":[]}") };
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(generate(&f, soon()), KMS_OK);
	end(&f);
	begin(&f, rsa, N(rsa), false);
	assert_int_equal(generate(&f, soon()), KMS_CONFIG);
	assert_string_equal(f.err.code, "WrongKeyType");
	end(&f);
	begin(&f, none, N(none), false);
	assert_int_equal(generate(&f, soon()), KMS_CONFIG);
	assert_string_equal(f.err.code, "KeyNotFound");
	end(&f);
}

static void describe_tells_type_and_version(void **state)
{
	static const struct fake_answer script[] = { OK(LOOKED("aes256-gcm96")),
		OK("{\"data\":{\"type\":\"aes256-gcm96\",\"soft_deleted\":true,\"latest_version\":1}}"),
		ANSWER(403, DENIED), OK(SELF) };
	struct kms_description d;
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(kms_describe(f.kms, KEY, soon(), &d, &f.err), KMS_OK);
	assert_string_equal(d.arn, KEY);
	assert_string_equal(d.state, "Enabled");
	assert_string_equal(d.spec, "aes256-gcm96 v3");
	assert_int_equal(kms_describe(f.kms, KEY, soon(), &d, &f.err), KMS_OK);
	assert_string_equal(d.state, "SoftDeleted");
	assert_int_equal(kms_describe(f.kms, KEY, soon(), &d, &f.err), KMS_CONFIG);
	assert_string_equal(f.err.code, "PermissionDenied");
	assert_int_equal(kms_describe(f.kms, "vault:other/keys/x", soon(), &d, &f.err), KMS_CONFIG);
	end(&f);
}

/* ---- classes ---- */

static const struct {
	long http;
	const char *text;
	enum kms_status first, worked;
} errors[] = {
	{ 400, "encryption key not found", KMS_CONFIG, KMS_DENIED },
	{ 400, "refusing to use soft-deleted key", KMS_DENIED, KMS_DENIED },
	{ 400, "ciphertext or signature version is disallowed by policy (too old)", KMS_DENIED, KMS_DENIED },
	{ 400, "cipher: message authentication failed", KMS_BAD_BLOB, KMS_BAD_BLOB },
	{ 400, "chacha20poly1305: message authentication failed", KMS_BAD_BLOB, KMS_BAD_BLOB },
	{ 400, "invalid ciphertext: version is too new", KMS_BAD_BLOB, KMS_BAD_BLOB },
	{ 400, "invalid ciphertext: no prefix", KMS_BAD_BLOB, KMS_BAD_BLOB },
	{ 400, "something new", KMS_CONFIG, KMS_CONFIG },
	{ 400, "invalid role or secret ID", KMS_CONFIG, KMS_CONFIG },
	{ 403, "permission denied", KMS_CONFIG, KMS_CONFIG },
	{ 404, "no handler for route \"transit/decrypt/k\". route entry not found.", KMS_CONFIG, KMS_DENIED },
	{ 404, "no handler for route \"transit/k\". route entry found, but backend is nil.", KMS_DOWN, KMS_DOWN },
	{ 404, "", KMS_CONFIG, KMS_CONFIG },
	{ 405, "unsupported operation", KMS_CONFIG, KMS_CONFIG },
	{ 412, "required index state not present", KMS_DOWN, KMS_DOWN },
	{ 429, "rate limit quota exceeded", KMS_BUSY, KMS_BUSY },
	{ 472, "", KMS_DOWN, KMS_DOWN },
	{ 473, "", KMS_DOWN, KMS_DOWN },
	{ 307, "", KMS_DOWN, KMS_DOWN },
	{ 500, "internal error", KMS_DOWN, KMS_DOWN },
	{ 502, "", KMS_DOWN, KMS_DOWN },
	{ 503, "Vault is sealed", KMS_DOWN, KMS_DOWN },
	{ 503, "API access to this namespace has been locked by an administrator", KMS_DENIED, KMS_DENIED },
};

static void errors_have_one_class_each(void **state)
{
	const char *code;

	(void)state;
	for (size_t i = 0; i < N(errors); i++) {
		assert_int_equal(vault_classify(errors[i].http, errors[i].text, true, false, &code), errors[i].first);
		assert_int_equal(vault_classify(errors[i].http, errors[i].text, true, true, &code), errors[i].worked);
		/* Whoever stands before Vault never denies. */
		assert_int_not_equal(vault_classify(errors[i].http, errors[i].text, false, true, &code), KMS_DENIED);
		assert_int_not_equal(vault_classify(errors[i].http, errors[i].text, false, true, &code), KMS_BAD_BLOB);
	}
}

static void a_proxys_page_denies_nothing(void **state)
{
	static const char page[] = "<html>403 permission denied: encryption key not found</html>";
	static const struct fake_answer script[] = { OK(OPENED), ANSWER(403, page), ANSWER(400, page),
		ANSWER(404, page), ANSWER(200, page) };
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	for (int i = 0; i < 3; i++)
		assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_int_equal(decrypt(&f, once()), KMS_DOWN);
	end(&f);
}

static void denial_depends_on_the_token(void **state)
{
	static const struct fake_answer script[] = { ANSWER(403, DENIED),
		OK(SELF),                                   /* first use: perhaps set up wrong */
		OK(OPENED), ANSWER(403, DENIED), OK(SELF),  /* the owner's decision */
		ANSWER(403, INVALID), ANSWER(403, INVALID), /* read again, the same */
		ANSWER(403, DENIED), ANSWER(403, DENIED), ANSWER(403, DENIED), ANSWER(403, DENIED), /* older servers */
		ANSWER(403, DENIED), ANSWER(500, ERRORS("internal error")), ANSWER(500, ERRORS("internal error")) };
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_string_equal(f.err.code, "PermissionDenied");
	REQUEST(&f, 1, "GET /v1/auth/token/lookup-self HTTP/1.1\r\n", "X-Vault-Token: s.first\r\n");
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	assert_int_equal(decrypt(&f, soon()), KMS_DENIED);
	assert_non_null(strstr(f.err.message, "'transit/decrypt/byokfs'"));
	assert_wiped(f.secret);
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_string_equal(f.err.code, "InvalidToken");
	assert_int_equal(fake_seen(f.server), 7);
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_string_equal(f.err.code, "InvalidToken");
	assert_int_equal(fake_seen(f.server), 11);
	assert_int_equal(decrypt(&f, once()), KMS_DOWN);
	end(&f);
}

/* ---- the token file ---- */

static void the_token_file_is_read_again(void **state)
{
	static const struct fake_answer script[] = { OK(OPENED) };
	struct fixture f;
	char other[80];

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	(void)snprintf(other, sizeof(other), "%s/other", f.dir);
	write_file(other, "  hvs.second\r\n");
	assert_int_equal(rename(other, f.token), 0);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	REQUEST(&f, 1, "POST", "X-Vault-Token: hvs.second\r\n");
	assert_int_equal(unlink(f.token), 0); /* taken away */
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_string_equal(f.err.code, "NoToken");
	assert_int_equal(fake_seen(f.server), 2);
	write_file(f.token, "hvs.third");
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	REQUEST(&f, 2, "POST", "X-Vault-Token: hvs.third\r\n");
	kms_refresh(f.kms);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	end(&f);
}

static void bad_token_files_are_refused(void **state)
{
	static const char *const bad[] = { "", "\n", "two words", "line\nline", "a\rX-Vault-Token: b", "t\x80",
		"{\"token\":1}" };
	static const struct fake_answer script[] = { OK(OPENED) };
	static char big[VAULT_TOKEN_MAX + 2];
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), false);
	for (size_t i = 0; i < N(bad); i++) {
		write_file(f.token, bad[i]);
		assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
		assert_string_equal(f.err.code, "NoToken");
	}
	memset(big, 'a', sizeof(big) - 1);
	write_file(f.token, big);
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_int_equal(unlink(f.token), 0);
	assert_int_equal(mkfifo(f.token, 0600), 0);
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_int_equal(fake_seen(f.server), 0);
	end(&f);
}

/* ---- AppRole ---- */

static void an_approle_logs_in_once(void **state)
{
	static const struct fake_answer script[] = { OK(LOGIN("hvs.r1", "1200")), OK(OPENED), OK(OPENED),
		ANSWER(403, INVALID), OK(LOGIN("hvs.r2", "1200")), OK(OPENED) };
	struct fixture f;
	struct kms_where w;
	json_t *body;

	(void)state;
	begin(&f, script, N(script), true);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	REQUEST(&f, 0, "POST /v1/auth/approle/login HTTP/1.1\r\n", "X-Vault-Request: true");
	body = body_of(&f, 0);
	assert_int_equal(json_object_size(body), 2);
	assert_string_equal(jsonio_str(body, "role_id"), "59d6d1ca");
	assert_string_equal(jsonio_str(body, "secret_id"), "84896a0c");
	json_decref(body);
	REQUEST(&f, 1, "POST /v1/transit/decrypt", "X-Vault-Token: hvs.r1\r\n");
	kms_where(f.kms, &w);
	assert_string_equal(w.identity, "AppRole 59d6d1ca");
	assert_in_range(w.expires, (uint64_t)io_unix_time() + 1100, (uint64_t)io_unix_time() + 1201);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	/* The server has forgotten the token: a new login, and nobody notices. */
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	REQUEST(&f, 5, "POST /v1/transit/decrypt", "X-Vault-Token: hvs.r2\r\n");
	end(&f);
}

static void a_refused_login_proves_nothing(void **state)
{
	static const struct fake_answer script[] = { ANSWER(400, ERRORS("invalid role or secret ID")) };
	static const struct fake_answer sealed[] = { ANSWER(503, ERRORS("Vault is sealed")) };
	static const struct fake_answer nonsense[] = { OK(
	    "{\"auth\":{\"client_token\":\"a\\nb\",\"lease_duration\":5}}") };
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), true);
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_string_equal(f.err.code, "LoginRefused");
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG); /* within a second the server is not asked again */
	assert_int_equal(fake_seen(f.server), 1);
	kms_refresh(f.kms);
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_int_equal(fake_seen(f.server), 2);
	end(&f);
	begin(&f, sealed, N(sealed), true);
	assert_int_equal(decrypt(&f, once()), KMS_DOWN);
	assert_string_equal(f.err.code, "Sealed");
	end(&f);
	begin(&f, nonsense, N(nonsense), true);
	assert_int_equal(decrypt(&f, once()), KMS_DOWN);
	assert_string_equal(f.err.code, "MalformedAnswer");
	end(&f);
}

static void *one_call(void *arg)
{
	struct fixture *f = arg;
	uint8_t secret[32];
	struct kms_used used;
	struct kms_err err;

	return kms_decrypt(f->kms, &f->ctx, (const uint8_t *)BLOB, strlen(BLOB), soon(), secret, &used, &err) == KMS_OK
	    ? arg
	    : NULL;
}

static void many_threads_log_in_once(void **state)
{
	static const struct fake_answer script[] = { OK(LOGIN("hvs.r1", "1200")), OK(OPENED) };
	pthread_t thread[8];
	unsigned logins = 0;
	struct fixture f;
	void *good;

	(void)state;
	begin(&f, script, N(script), true);
	for (size_t i = 0; i < N(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, one_call, &f), 0);
	for (size_t i = 0; i < N(thread); i++) {
		assert_int_equal(pthread_join(thread[i], &good), 0);
		assert_non_null(good);
	}
	for (unsigned i = 0; i < fake_seen(f.server); i++) {
		char *seen = fake_request(f.server, i);

		logins += strstr(seen, "/login HTTP") != NULL;
		free(seen);
	}
	assert_int_equal(logins, 1);
	assert_int_equal(fake_seen(f.server), 9);
	end(&f);
}

static void wait_seen(struct fixture *f, unsigned n)
{
	uint64_t until = io_boot_ms() + 10000;

	while (fake_seen(f->server) < n && io_boot_ms() < until)
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	assert_true(fake_seen(f->server) >= n);
}

static void the_keeper_renews_ahead(void **state)
{
	/* Renewed for less than half of what a login gave: the token nears its greatest age, so a login comes next. */
	static const struct fake_answer script[] = { OK(LOGIN("hvs.r1", "2")), OK(OPENED), OK(LOGIN("hvs.r1", "2")),
		OK(LOGIN("hvs.r1", "0")), OK(OPENED) };
	static const struct fake_answer aged[] = { OK(LOGIN("hvs.r1", "3")), OK(OPENED), OK(LOGIN("hvs.r1", "1")),
		OK(LOGIN("hvs.r2", "1200")), OK(OPENED) };
	static const struct fake_answer gone[] = { OK(LOGIN("hvs.r1", "1")), OK(OPENED), ANSWER(403, INVALID),
		OK(LOGIN("hvs.r2", "1200")), OK(OPENED) };
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), true);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	wait_seen(&f, 4);
	REQUEST(&f, 2, "POST /v1/auth/token/renew-self HTTP/1.1\r\n", "X-Vault-Token: hvs.r1\r\n");
	REQUEST(&f, 3, "POST /v1/auth/token/renew-self HTTP/1.1\r\n", "X-Vault-Token: hvs.r1\r\n");
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	end(&f);
	begin(&f, aged, N(aged), true);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	wait_seen(&f, 4);
	REQUEST(&f, 3, "POST /v1/auth/approle/login HTTP/1.1\r\n", "59d6d1ca");
	end(&f);
	begin(&f, gone, N(gone), true);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	wait_seen(&f, 4);
	REQUEST(&f, 3, "POST /v1/auth/approle/login HTTP/1.1\r\n", "59d6d1ca");
	end(&f);
}

/* ---- batches ---- */

static void a_batch_tells_items_apart(void **state)
{
	static const struct fake_answer script[] = { OK(
	    "{\"request_id\":\"r-9\",\"data\":{\"batch_results\":[" RESULT
	    "," FAILED("cipher: message authentication failed") "," FAILED(
		"ciphertext or signature version is disallowed by policy (too old)") ",{}]}}"),
		OK(OPENED) };
	static const enum kms_status want[5] = { KMS_OK, KMS_BAD_BLOB, KMS_BAD_BLOB, KMS_DENIED, KMS_DOWN };
	struct fixture f;
	struct many m;
	json_t *body;

	(void)state;
	begin(&f, script, N(script), false);
	assert_true(kms_batch_max(f.kms) >= 64);
	run_batch(&f, &m, 5);
	assert_int_equal(fake_seen(f.server), 2); /* one more: is it still the key it was? */
	for (size_t i = 0; i < 5; i++) {
		assert_int_equal(m.item[i].err.status, want[i]);
		if (i)
			assert_wiped(m.secret[i]);
	}
	assert_secret(m.secret[0]);
	assert_string_equal(m.item[0].used.request_id, "r-9");
	assert_string_equal(m.item[0].used.key, KEY);
	body = body_of(&f, 0);
	assert_int_equal(json_array_size(json_object_get(body, "batch_input")), 4); /* what is none stays here */
	assert_string_equal(
	    jsonio_str(json_array_get(json_object_get(body, "batch_input"), 3), "associated_data"), AAD);
	assert_int_equal(json_integer_value(json_object_get(body, "partial_failure_response_code")), 200);
	json_decref(body);
	end(&f);
}

static void a_batch_fails_as_a_whole(void **state)
{
	static const struct {
		struct fake_answer answer;
		enum kms_status want;
	} cases[] = {
		{ ANSWER(400, ERRORS("encryption key not found")), KMS_DENIED },
		{ ANSWER(503, ERRORS("Vault is sealed")), KMS_DOWN },
		/* All failed: the status is 400, the items tell. */
		{ ANSWER(400,
		      "{\"data\":{\"batch_results\":[" FAILED("refusing to use soft-deleted key") "," FAILED(
		          "refusing to use soft-deleted key") "]}}"),
		    KMS_DENIED },
		{ OK("{\"data\":{\"batch_results\":[" RESULT "]}}"), KMS_DOWN }, /* whose is it? */
		{ OK("{\"data\":{}}"), KMS_DOWN },
		{ OK("{}"), KMS_DOWN },
	};
	struct fixture f;
	struct many m;

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		const struct fake_answer script[] = { OK(OPENED), cases[i].answer };

		begin(&f, script, N(script), false);
		assert_int_equal(decrypt(&f, soon()), KMS_OK);
		run_batch(&f, &m, 3);
		assert_int_equal(m.item[0].err.status, cases[i].want);
		assert_int_equal(m.item[1].err.status, KMS_BAD_BLOB);
		assert_int_equal(m.item[2].err.status, cases[i].want);
		for (size_t j = 0; j < 3; j++)
			assert_wiped(m.secret[j]);
		end(&f);
	}
}

/* ---- settings ---- */

static int try_open(struct fixture *f, const struct kms_params *p, struct kms **out)
{
	*out = NULL;
	return kms_open(out, p, true, &f->err);
}

static void keys_have_one_name(void **state)
{
	static const struct {
		const char *namespace, *mount, *key, *name; /* name NULL: refused */
	} cases[] = {
		{ NULL, NULL, "byokfs", KEY },
		{ NULL, "/transit/", "byokfs", KEY },
		{ NULL, NULL, KEY, KEY },
		{ "team-a/", "kv/transit", "k.1-b", "vault:team-a/kv/transit/keys/k.1-b" },
		{ "team-a", "transit", "vault:team-a/other/keys/k", "vault:team-a/other/keys/k" },
		{ NULL, "transit", "vault:a/keys/b/keys/k", "vault:a/keys/b/keys/k" },
		{ "team-a", "transit", "vault:team-b/transit/keys/k", NULL },
		{ NULL, NULL, "vault:transit/keys/", NULL },
		{ NULL, NULL, "vault:transit", NULL },
		{ NULL, NULL, "vault:/keys/k", NULL },
		{ NULL, NULL, "a/b", NULL },
		{ NULL, NULL, "..", NULL },
		{ NULL, NULL, "k?x=1", NULL },
		{ NULL, NULL, "-k", NULL },
		{ NULL, "../sys", "k", NULL },
		{ NULL, "a//b", "k", NULL },
		{ "a b", NULL, "k", NULL },
	};
	static const struct fake_answer script[] = { OK(OPENED) };
	struct fixture f;
	struct kms *kms;

	(void)state;
	begin(&f, script, N(script), false);
	for (size_t i = 0; i < N(cases); i++) {
		struct kms_params p = params_of(&f, false);

		p.vault.namespace = cases[i].namespace;
		p.vault.mount = cases[i].mount;
		p.key = cases[i].key;
		assert_int_equal(try_open(&f, &p, &kms), cases[i].name ? 0 : -EINVAL);
		if (cases[i].name)
			assert_string_equal(kms_key(kms), cases[i].name);
		else
			assert_int_equal(f.err.status, KMS_CONFIG);
		kms_close(kms);
	}
	end(&f);
}

static void a_namespace_goes_along(void **state)
{
	static const struct fake_answer script[] = { OK(
	    "{\"request_id\":\"r\",\"data\":{\"plaintext\":\"" SECRET_1_TO_32 "\"}}") };
	struct fixture f;
	struct kms_params p;

	(void)state;
	begin(&f, script, N(script), false);
	kms_close(f.kms);
	p = params_of(&f, false);
	p.vault.namespace = "team-a";
	assert_int_equal(try_open(&f, &p, &f.kms), 0);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	REQUEST(&f, 0, "POST /v1/transit/decrypt/byokfs HTTP/1.1\r\n", "X-Vault-Namespace: team-a\r\n");
	end(&f);
}

static void settings_are_checked(void **state)
{
	static const struct fake_answer script[] = { OK(OPENED) };
	struct fixture f;
	struct kms_params p;
	struct kms *kms;

	(void)state;
	begin(&f, script, N(script), false);
	p = params_of(&f, false);
	p.vault.address = "vault.example:8200";
	assert_int_equal(try_open(&f, &p, &kms), -EINVAL);
	p.vault.address = "https://vault.example/?x";
	assert_int_equal(try_open(&f, &p, &kms), -EINVAL);
	p = params_of(&f, false);
	p.vault.token_file = NULL;
	assert_int_equal(try_open(&f, &p, &kms), -EINVAL);
	p = params_of(&f, false);
	p.vault.role_id = "both";
	assert_int_equal(try_open(&f, &p, &kms), -EINVAL);
	p = params_of(&f, true);
	p.vault.secret_id_file = NULL;
	assert_int_equal(try_open(&f, &p, &kms), -EINVAL);
	p = params_of(&f, true);
	p.vault.auth_mount = "a/../b";
	assert_int_equal(try_open(&f, &p, &kms), -EINVAL);
	p = params_of(&f, false);
	p.vault.address = "http://192.0.2.1:8200"; /* in the clear, to another host */
	assert_int_equal(try_open(&f, &p, &kms), 0);
	kms_close(f.kms);
	f.kms = kms;
	assert_int_equal(decrypt(&f, soon()), KMS_CONFIG);
	assert_string_equal(f.err.code, "BadEndpoint");
	end(&f);
}

static void keys_of_one_server_share_a_token(void **state)
{
	static const struct fake_answer script[] = { OK(LOGIN("hvs.r1", "1200")), OK(OPENED) };
	struct fixture f;
	struct kms_params p;
	struct kms *kms;
	uint8_t secret[32];

	(void)state;
	begin(&f, script, N(script), true);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	p = params_of(&f, true);
	p.key = "second";
	p.share = f.kms;
	assert_int_equal(try_open(&f, &p, &kms), 0);
	assert_int_equal(
	    kms_decrypt(kms, &f.ctx, (const uint8_t *)BLOB, strlen(BLOB), soon(), secret, &f.used, &f.err), KMS_OK);
	assert_int_equal(fake_seen(f.server), 3);
	REQUEST(&f, 2, "POST /v1/transit/decrypt/second", "X-Vault-Token: hvs.r1\r\n");
	kms_close(kms);
	p.vault.role_id = "another";
	assert_int_equal(try_open(&f, &p, &kms), 0);
	kms_close(kms);
	/* SIGHUP: the same settings are fine, others are for the next mount. */
	p = params_of(&f, true);
	assert_int_equal(kms_reconfigure(f.kms, &p, &f.err), 0);
	p.key = "second";
	assert_int_equal(kms_reconfigure(f.kms, &p, &f.err), -EINVAL);
	p = params_of(&f, true);
	p.vault.role_id = "another";
	assert_int_equal(kms_reconfigure(f.kms, &p, &f.err), -EINVAL);
	end(&f);
}

static void silence_ends_by_the_deadline(void **state)
{
	static const struct fake_answer script[] = { { .act = FAKE_HANG } };
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), true);
	assert_int_equal(decrypt(&f, io_boot_ms() + 120), KMS_DOWN);
	assert_wiped(f.secret);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(generate_seals_a_drawn_secret),
		cmocka_unit_test(decrypt_opens),
		cmocka_unit_test(what_is_no_ciphertext_is_not_sent),
		cmocka_unit_test(weak_keys_are_refused),
		cmocka_unit_test(the_key_need_not_be_readable),
		cmocka_unit_test(describe_tells_type_and_version),
		cmocka_unit_test(errors_have_one_class_each),
		cmocka_unit_test(a_proxys_page_denies_nothing),
		cmocka_unit_test(denial_depends_on_the_token),
		cmocka_unit_test(the_token_file_is_read_again),
		cmocka_unit_test(bad_token_files_are_refused),
		cmocka_unit_test(an_approle_logs_in_once),
		cmocka_unit_test(a_refused_login_proves_nothing),
		cmocka_unit_test(many_threads_log_in_once),
		cmocka_unit_test(the_keeper_renews_ahead),
		cmocka_unit_test(a_batch_tells_items_apart),
		cmocka_unit_test(a_batch_fails_as_a_whole),
		cmocka_unit_test(keys_have_one_name),
		cmocka_unit_test(a_namespace_goes_along),
		cmocka_unit_test(settings_are_checked),
		cmocka_unit_test(keys_of_one_server_share_a_token),
		cmocka_unit_test(silence_ends_by_the_deadline),
	};

	if (secret_init(true))
		return 1;
	log_setup("test", LOG_LEVEL_ERR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
