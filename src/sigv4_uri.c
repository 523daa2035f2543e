/* sigv4_uri.c — canonical path and query.
 *
 * Hides: percent-encoding, dot segments, and the order of query parameters. */
#include "sigv4_internal.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#define PARAMS_MAX 128u

/* ---- text ---- */

int sigv4_text_open(struct sigv4_text *t, size_t size)
{
	t->p = malloc(size);
	if (!t->p)
		return -ENOMEM;
	t->p[0] = '\0';
	t->size = size;
	t->len = 0;
	t->full = false;
	return 0;
}

void sigv4_text_close(struct sigv4_text *t)
{
	if (t->p)
		explicit_bzero(t->p, t->size);
	free(t->p);
	t->p = NULL;
}

void sigv4_text_put(struct sigv4_text *t, char c)
{
	if (t->full || t->len + 1 >= t->size) {
		t->full = true;
		return;
	}
	t->p[t->len++] = c;
	t->p[t->len] = '\0';
}

void sigv4_text_add(struct sigv4_text *t, const char *s)
{
	for (; *s; s++)
		sigv4_text_put(t, *s);
}

static bool unreserved(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("-._~", c));
}

static void put_encoded(struct sigv4_text *t, char c)
{
	static const char digit[] = "0123456789ABCDEF";

	if (unreserved(c)) {
		sigv4_text_put(t, c);
		return;
	}
	sigv4_text_put(t, '%');
	sigv4_text_put(t, digit[(uint8_t)c >> 4]);
	sigv4_text_put(t, digit[(uint8_t)c & 15]);
}

/* ---- path ---- */

/* Takes back the last "/segment". */
static void path_up(struct sigv4_text *t, size_t start)
{
	while (t->len > start && t->p[t->len - 1] != '/')
		t->len--;
	if (t->len > start)
		t->len--;
}

void sigv4_add_normal_path(struct sigv4_text *t, const char *path)
{
	size_t start = t->len;

	for (const char *s = path; *s;) {
		size_t n;

		s += strspn(s, "/");
		n = strcspn(s, "/");
		if (n == 2 && !strncmp(s, "..", 2))
			path_up(t, start);
		else if (n && !(n == 1 && *s == '.')) {
			sigv4_text_put(t, '/');
			for (size_t i = 0; i < n; i++)
				put_encoded(t, s[i]);
		}
		s += n;
	}
	if (t->len == start || path[strlen(path) - 1] == '/')
		sigv4_text_put(t, '/');
}

void sigv4_add_exact_path(struct sigv4_text *t, const char *path)
{
	for (; *path; path++) {
		if (*path == '/')
			sigv4_text_put(t, '/');
		else
			put_encoded(t, *path);
	}
}

/* ---- query ---- */

struct param {
	size_t name, value; /* where they begin in the scratch text */
	const char *base;
};

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes, then encodes: a query sent with more or fewer escapes than needed signs alike. Ends with a NUL. */
static void add_recoded(struct sigv4_text *t, const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int high = i + 2 < n && s[i] == '%' ? hex_value(s[i + 1]) : -1;
		int low = high >= 0 ? hex_value(s[i + 2]) : -1;

		if (low >= 0) {
			put_encoded(t, (char)(high << 4 | low));
			i += 2;
		} else
			put_encoded(t, s[i]);
	}
	sigv4_text_put(t, '\0');
}

static int param_order(const void *va, const void *vb)
{
	const struct param *a = va, *b = vb;
	int d = strcmp(a->base + a->name, b->base + b->name);

	return d ? d : strcmp(a->base + a->value, b->base + b->value);
}

/* Number of parameters, or -EINVAL. */
static int split_query(struct param param[static PARAMS_MAX], struct sigv4_text *scratch, const char *query)
{
	size_t count = 0;

	for (const char *s = query; *s;) {
		size_t n = strcspn(s, "&"), name = strcspn(s, "=&");

		if (n) {
			if (count == PARAMS_MAX)
				return -EINVAL;
			param[count].base = scratch->p;
			param[count].name = scratch->len;
			add_recoded(scratch, s, name);
			param[count].value = scratch->len;
			add_recoded(scratch, s + name + (name < n), n - name - (name < n));
			count++;
		}
		s += n + (s[n] == '&');
	}
	return scratch->full ? -EINVAL : (int)count;
}

int sigv4_add_query(struct sigv4_text *t, const char *query)
{
	__attribute__((cleanup(sigv4_text_close))) struct sigv4_text scratch = { 0 };
	struct param param[PARAMS_MAX];
	int count, r = sigv4_text_open(&scratch, 3 * strlen(query) + 2 * PARAMS_MAX + 1);

	if (r)
		return r;
	count = split_query(param, &scratch, query);
	if (count < 0)
		return count;
	qsort(param, (size_t)count, sizeof(param[0]), param_order);
	for (int i = 0; i < count; i++) {
		if (i)
			sigv4_text_put(t, '&');
		sigv4_text_add(t, scratch.p + param[i].name);
		sigv4_text_put(t, '=');
		sigv4_text_add(t, scratch.p + param[i].value);
	}
	return 0;
}
