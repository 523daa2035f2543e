/* log.c — one line per event.
 *
 * Hides where lines go (stderr, the journal behind stderr, syslog), and that file names and answers of
 * servers may hold control characters: those are escaped, so that nobody can forge a second line.       */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#define LINE_MAX_BYTES 2048u

/* Set before there are threads, read-only afterwards. */
static struct {
	char ident[32];
	enum log_level max;
	bool to_syslog;
	bool to_journal;
} setup = { .ident = "byokfs", .max = LOG_LEVEL_INFO };

/* JOURNAL_STREAM is "device:inode" of the stream; a redirected stderr is not it any more (systemd.exec(5)). */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
	       st.st_dev == dev && st.st_ino == ino;
}

void log_setup(const char *ident, enum log_level max, bool to_syslog)
{
	(void)snprintf(setup.ident, sizeof(setup.ident), "%s", ident);
	setup.max = max;
	setup.to_journal = stderr_is_journal();
	if (to_syslog)
		openlog(setup.ident, LOG_PID, LOG_DAEMON);
	else if (setup.to_syslog)
		closelog();
	setup.to_syslog = to_syslog;
}

static int priority_of(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERR:
		return LOG_ERR;
	case LOG_LEVEL_WARN:
		return LOG_WARNING;
	case LOG_LEVEL_INFO:
		return LOG_INFO;
	case LOG_LEVEL_DEBUG:
		break;
	}
	return LOG_DEBUG;
}

/* Copies text with control characters as \n, \t or \xNN; cuts what does not fit. Returns the length. */
static size_t escape(char *out, size_t size, const char *text)
{
	static const char digits[] = "0123456789abcdef";
	size_t n = 0;

	for (; *text && n + 5 <= size; text++) {
		unsigned char c = (unsigned char)*text;

		if (c >= 0x20 && c != 0x7f) {
			out[n++] = (char)c;
			continue;
		}
		out[n++] = '\\';
		if (c == '\n' || c == '\t') {
			out[n++] = c == '\n' ? 'n' : 't';
			continue;
		}
		out[n++] = 'x';
		out[n++] = digits[c >> 4];
		out[n++] = digits[c & 15];
	}
	out[n] = '\0';
	return n;
}

static void write_stderr(int priority, const char *message)
{
	char line[LINE_MAX_BYTES + 64], level[8] = "";
	int n;

	if (setup.to_journal)
		(void)snprintf(level, sizeof(level), "<%d>", priority);
	n = snprintf(line, sizeof(line), "%s%s: %s\n", level, setup.ident, message);
	/* nothing can be done about a log that cannot be written */
	if (n > 0 && write(STDERR_FILENO, line, (size_t)n) < 0)
		return;
}

void log_at(enum log_level level, const char *fmt, ...)
{
	char raw[LINE_MAX_BYTES / 2], message[LINE_MAX_BYTES];
	int saved = errno;
	va_list args;

	if (level > setup.max)
		return;
	va_start(args, fmt);
	if (vsnprintf(raw, sizeof(raw), fmt, args) < 0)
		raw[0] = '\0';
	va_end(args);
	(void)escape(message, sizeof(message), raw);
	if (setup.to_syslog)
		syslog(priority_of(level), "%s", message);
	else
		write_stderr(priority_of(level), message);
	errno = saved;
}
