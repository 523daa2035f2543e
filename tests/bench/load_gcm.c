/* What this machine's AES-256-GCM allows: pages of 4 KiB sealed one by one under one key, as the daemon does it. No
 * filesystem can be faster than that and encrypt so.                                                                 */
#include "load.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define THREADS 16u
#define AAD 32
#define PAGES_A_LOOK 256

struct sealer {
	pthread_t thread;
	uint64_t end, bytes;
};

static bool seal_page(EVP_CIPHER_CTX *ctx, uint64_t number, unsigned char page[static PAGE])
{
	unsigned char iv[12] = {0}, aad[AAD] = {0}, tag[16];
	int n;

	memcpy(iv, &number, sizeof(number));
	memcpy(aad, &number, sizeof(number));
	return EVP_EncryptInit_ex2(ctx, NULL, NULL, iv, NULL) == 1 && EVP_EncryptUpdate(ctx, NULL, &n, aad, AAD) == 1 &&
	    EVP_EncryptUpdate(ctx, page, &n, page, PAGE) == 1 && EVP_EncryptFinal_ex(ctx, tag, &n) == 1 &&
	    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, sizeof(tag), tag) == 1;
}

static void *seal_until_end(void *arg)
{
	static const unsigned char key[32] = "no secret: the data is noise";
	struct sealer *s = arg;
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	EVP_CIPHER *gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	unsigned char pages[8][PAGE] = {{0}};

	if (!ctx || !gcm || EVP_EncryptInit_ex2(ctx, gcm, key, NULL, NULL) != 1)
		fail("AES-256-GCM", "libcrypto");
	for (uint64_t i = 0; i % PAGES_A_LOOK || now_ns() < s->end; i++) {
		if (!seal_page(ctx, i, pages[i % 8]))
			fail("seal", "libcrypto");
		s->bytes += PAGE;
	}
	EVP_CIPHER_CTX_free(ctx);
	EVP_CIPHER_free(gcm);
	return NULL;
}

/* Prints the bytes a second that so many threads seal. */
static void gcm_speed(const char *unused, uint64_t threads, uint64_t milliseconds)
{
	struct sealer sealers[THREADS] = {{0}};
	uint64_t start = now_ns(), bytes = 0;

	(void)unused;
	if (threads < 1 || threads > THREADS)
		fail("number of threads", "gcm");
	for (uint64_t t = 0; t < threads; t++) {
		sealers[t].end = start + milliseconds * 1000000;
		if (pthread_create(&sealers[t].thread, NULL, seal_until_end, &sealers[t]) != 0)
			fail("pthread_create", "gcm");
	}
	for (uint64_t t = 0; t < threads; t++) {
		(void)pthread_join(sealers[t].thread, NULL);
		bytes += sealers[t].bytes;
	}
	printf("%.0f\n", (double)bytes * 1e9 / (double)(now_ns() - start));
}

const struct command gcm_commands[] = {
	{"gcm", false, gcm_speed},
	{NULL, false, NULL},
};
