/* log.c — one line per event.
 *
 * Hides where lines go (stderr, the journal behind stderr, syslog), and that file names and answers of
 * servers may hold control characters: those are escaped, so that nobody can forge a second line.       */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"

#define LINE_MAX_BYTES 2048u
#define AGAIN_S        3600
#define REMEMBERED     1024u

/* Set before there are threads, read-only afterwards but for max. */
static struct {
	char ident[32];
	_Atomic enum log_level max;
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

void log_set_level(enum log_level max)
{
	setup.max = max;
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

static _Thread_local const char *label;

void log_label(const char *text)
{
	label = text && *text ? text : NULL;
}

static void print(char message[static LINE_MAX_BYTES], const char *fmt, va_list args)
{
	char raw[LINE_MAX_BYTES / 2];
	int n = label ? snprintf(raw, sizeof(raw), "%.100s: ", label) : 0;

	if (n < 0 || vsnprintf(raw + n, sizeof(raw) - (size_t)n, fmt, args) < 0)
		raw[0] = '\0';
	(void)escape(message, LINE_MAX_BYTES, raw);
}

static void emit(enum log_level level, const char *message)
{
	if (setup.to_syslog)
		syslog(priority_of(level), "%s", message);
	else
		write_stderr(priority_of(level), message);
}

void log_at(enum log_level level, const char *fmt, ...)
{
	char message[LINE_MAX_BYTES];
	int saved = errno;
	va_list args;

	if (level > setup.max)
		return;
	va_start(args, fmt);
	print(message, fmt, args);
	va_end(args);
	emit(level, message);
	errno = saved;
}

/* Was this line printed within the hour? A hash is all that is kept, and a newer line may take its place. */
static bool said_lately(const char *message)
{
	static struct {
		uint64_t hash;
		time_t at;
	} said[REMEMBERED];
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	uint64_t hash = 14695981039346656037u; /* FNV-1a */
	struct timespec now;

	for (const char *p = message; *p; p++)
		hash = (hash ^ (unsigned char)*p) * 1099511628211u;
	(void)clock_gettime(CLOCK_BOOTTIME, &now);
	LOCK_SCOPE(&lock);
	size_t i = hash % REMEMBERED;
	bool again = said[i].hash == hash && said[i].at && now.tv_sec < said[i].at + AGAIN_S;

	if (!again) {
		said[i].hash = hash;
		said[i].at = now.tv_sec + 1; /* 0 is never */
	}
	return again;
}

static bool say_once(const char *fmt, va_list args)
{
	char message[LINE_MAX_BYTES];

	print(message, fmt, args);
	if (said_lately(message))
		return false;
	emit(LOG_LEVEL_ERR, message);
	return true;
}

void log_err_once(const char *fmt, ...)
{
	int saved = errno;
	va_list args;

	va_start(args, fmt);
	(void)say_once(fmt, args);
	va_end(args);
	errno = saved;
}

static _Atomic uint64_t damage;

void log_damage(const char *fmt, ...)
{
	int saved = errno;
	va_list args;

	va_start(args, fmt);
	if (say_once(fmt, args))
		damage++;
	va_end(args);
	errno = saved;
}

uint64_t log_damage_count(void)
{
	return damage;
}
