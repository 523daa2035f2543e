/* awscred_split.c — a command line into words, as botocore splits credential_process: quotes and backslashes of a POSIX
 * shell, nothing else of it. */
#include <errno.h>
#include <string.h>

#include "awscred_internal.h"

/* Copies one word to *to; p stands at its first character. NULL: a quote does not end. */
static char *take_word(char *p, char **to)
{
	char quote = '\0';

	for (; *p && (quote || !strchr(" \t\r\n", *p)); p++) {
		if (quote && *p == quote) {
			quote = '\0';
		} else if (!quote && (*p == '\'' || *p == '"')) {
			quote = *p;
		} else if (*p == '\\' && quote != '\'') {
			/* within double quotes it escapes only these two */
			if (quote && p[1] != '"' && p[1] != '\\') {
				*(*to)++ = *p;
				continue;
			}
			if (!*++p)
				return NULL;
			*(*to)++ = *p;
		} else {
			*(*to)++ = *p;
		}
	}
	return quote ? NULL : p;
}

int awscred_split(char *text, char *argv[static AWSCRED_ARGS_MAX])
{
	size_t n = 0;
	char *p = text, *to = text;

	for (;;) {
		bool more;

		p += strspn(p, " \t\r\n");
		if (!*p)
			break;
		if (n + 1 == AWSCRED_ARGS_MAX)
			return -E2BIG;
		argv[n++] = to;
		p = take_word(p, &to);
		if (!p)
			return -EINVAL;
		more = *p; /* the NUL below may land on it */
		p += more;
		*to++ = '\0';
		if (!more)
			break;
	}
	argv[n] = NULL;
	return n ? 0 : -EINVAL;
}
