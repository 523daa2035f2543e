/* byokfs-devkms.c — the program: options, start, the lines a script waits for, a clean stop. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>

#include "devkms.h"
#include "exitcode.h"
#include "io.h"
#include "log.h"
#include "secret.h"

#define DEFAULT_KEY    "AKIADEVKMS0000000000"
#define DEFAULT_SECRET "devkms-secret-not-for-production"

struct options {
	const char *state, *port_file, *pid_file, *access_key, *secret_file, *region, *account, *alias, *listen;
	unsigned long port;
	bool create_key, multi_region, daemon, verbose;
};

static const char usage[] =
    "usage: byokfs-devkms --state DIR [--port N] [--port-file FILE] [--listen 127.x.y.z]\n"
    "           [--access-key ID --secret-file FILE] [--region REGION] [--account ID]\n"
    "           [--create-key [--multi-region] [--alias NAME]] [--daemon [--pid-file FILE]] [--verbose]\n"
    "       byokfs-devkms status|enable|disable [--endpoint URL] [--key ARN]\n"
    "A local key service with the AWS KMS and STS protocols. NOT FOR PRODUCTION: its keys lie in clear in DIR.\n";

static int complain(int code, const char *what, const char *detail)
{
	(void)fprintf(stderr, "byokfs-devkms: error: %s: %s\n", what, detail);
	return code;
}

static int parse_options(int argc, char **argv, struct options *o)
{
	enum { STATE = 256, PORT, PORT_FILE, PID_FILE, ACCESS_KEY, SECRET_FILE, REGION, ACCOUNT, ALIAS, LISTEN };
	static const struct option table[] = { { "state", required_argument, NULL, STATE },
		{ "port", required_argument, NULL, PORT }, { "port-file", required_argument, NULL, PORT_FILE },
		{ "pid-file", required_argument, NULL, PID_FILE },
		{ "access-key", required_argument, NULL, ACCESS_KEY },
		{ "secret-file", required_argument, NULL, SECRET_FILE }, { "region", required_argument, NULL, REGION },
		{ "account", required_argument, NULL, ACCOUNT }, { "alias", required_argument, NULL, ALIAS },
		{ "listen", required_argument, NULL, LISTEN }, { "create-key", no_argument, NULL, 'c' },
		{ "multi-region", no_argument, NULL, 'm' }, { "daemon", no_argument, NULL, 'd' },
		{ "foreground", no_argument, NULL, 'f' }, { "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { 0 } };
	const char **text[] = { [STATE - STATE] = &o->state,
		[PORT_FILE - STATE] = &o->port_file,
		[PID_FILE - STATE] = &o->pid_file,
		[ACCESS_KEY - STATE] = &o->access_key,
		[SECRET_FILE - STATE] = &o->secret_file,
		[REGION - STATE] = &o->region,
		[ACCOUNT - STATE] = &o->account,
		[ALIAS - STATE] = &o->alias,
		[LISTEN - STATE] = &o->listen };
	char *end;
	int x;

	while ((x = getopt_long(argc, argv, "", table, NULL)) != -1) {
		if (x == PORT) {
			o->port = strtoul(optarg, &end, 10);
			if (*end || end == optarg || o->port > 65535)
				return complain(EXIT_USAGE, "not a port", optarg);
		} else if (x >= STATE) {
			*text[x - STATE] = optarg;
		} else if (x == 'h' || x == 'V') {
			(void)printf("%s", x == 'h' ? usage : "byokfs-devkms " BYOKFS_VERSION "\n");
			exit(EXIT_OK);
		} else if (x == '?') {
			return EXIT_USAGE;
		}
		o->create_key |= x == 'c';
		o->multi_region |= x == 'm';
		o->daemon = (o->daemon || x == 'd') && x != 'f';
		o->verbose |= x == 'v';
	}
	if (optind < argc)
		return complain(EXIT_USAGE, "unexpected argument", argv[optind]);
	return o->state ? EXIT_OK : complain(EXIT_USAGE, "missing option", "--state DIR");
}

static int read_secret(const char *file, char out[static 129])
{
	CLEANUP_FREE char *text = NULL;
	size_t n;
	int r = io_read_file(AT_FDCWD, file, 4096, &text, &n);

	if (r < 0)
		return r;
	n = strcspn(text, "\r\n");
	if (n == 0 || n > 128)
		r = -EINVAL;
	else
		(void)snprintf(out, 129, "%.*s", (int)n, text);
	explicit_bzero(text, strlen(text));
	return r;
}

static int configure(struct devkms *srv, const struct options *o, uint32_t *address)
{
	const char *listen = o->listen ? o->listen : "127.0.0.1", *region = o->region ? o->region : "us-east-1";
	const char *account = o->account ? o->account : "111122223333";
	struct in_addr in;
	int r;

	if (inet_pton(AF_INET, listen, &in) != 1 || ntohl(in.s_addr) >> 24 != 127)
		return complain(EXIT_USAGE, "this server listens on the loopback interface only, refused", listen);
	*address = ntohl(in.s_addr);
	if (strlen(region) >= DK_REGION || strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(region) ||
	    !region[0])
		return complain(EXIT_USAGE, "not a region", region);
	if (strlen(account) != 12 || strspn(account, "0123456789") != 12)
		return complain(EXIT_USAGE, "an account has 12 digits", account);
	if ((o->access_key != NULL) != (o->secret_file != NULL))
		return complain(EXIT_USAGE, "missing option", "--access-key and --secret-file go together");
	if (o->access_key && (strlen(o->access_key) < 16 || strlen(o->access_key) > 128))
		return complain(EXIT_USAGE, "an access key id has 16 to 128 characters", o->access_key);
	(void)snprintf(srv->region, sizeof(srv->region), "%s", region);
	(void)snprintf(srv->account, sizeof(srv->account), "%s", account);
	(void)snprintf(srv->access_key, sizeof(srv->access_key), "%s", o->access_key ? o->access_key : DEFAULT_KEY);
	(void)snprintf(srv->secret, sizeof(srv->secret), "%s", DEFAULT_SECRET);
	r = o->secret_file ? read_secret(o->secret_file, srv->secret) : 0;
	return r < 0 ? complain(EXIT_CONFIG, o->secret_file, strerror(-r)) : EXIT_OK;
}

/* One key to begin with, unless the state has one (or the alias) already. */
static int first_key(struct devkms *srv, const struct options *o)
{
	struct dk_store *s = &srv->store;
	struct dk_family *f;
	struct dk_key *k;
	char name[260] = "";
	int r;

	if (!o->create_key)
		return 0;
	if (o->alias &&
	    snprintf(name, sizeof(name), "%s%s", strncmp(o->alias, "alias/", 6) == 0 ? "" : "alias/", o->alias) >= 257)
		return -ENAMETOOLONG;
	LOCK_SCOPE(&s->lock);
	if (o->alias ? dk_alias_find(s, name, srv->region) != NULL : s->families != NULL)
		return 0;
	r = dk_family_new(s, o->multi_region, false, io_unix_time(), &f);
	if (r == 0)
		r = dk_key_new(srv, f, srv->region, "made by byokfs-devkms --create-key", NULL, io_unix_time(), &k);
	if (r == 0)
		(void)snprintf(f->primary, sizeof(f->primary), "%s", srv->region);
	if (r == 0 && o->alias)
		r = dk_alias_new(s, name, k, io_unix_time());
	return r < 0 ? r : dk_store_save(s);
}

static int write_number(const char *file, unsigned long n)
{
	CLEANUP_FREE char *a = strdup(file), *b = strdup(file);
	CLEANUP_FD int dir = a ? open(dirname(a), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	char text[24];

	if (dir < 0 || !b)
		return a && b ? -errno : -ENOMEM;
	return io_replace_file(dir, basename(b), text, (size_t)snprintf(text, sizeof(text), "%lu\n", n), 0644);
}

static void announce(struct devkms *srv, const struct options *o, uint16_t port)
{
	struct dk_store *s = &srv->store;

	(void)printf("listening on http://%s:%u\n", o->listen ? o->listen : "127.0.0.1", port);
	(void)printf("access key %s\n", srv->access_key);
	if (!o->secret_file)
		(void)printf("secret %s\n", srv->secret);
	LOCK_SCOPE(&s->lock);
	for (const struct dk_family *f = s->families; f; f = f->next)
		for (const struct dk_key *k = f->keys; k; k = k->next)
			(void)printf("key %s %s\n", k->arn, dk_state_name[k->state]);
	for (const struct dk_alias *a = s->aliases; a; a = a->next)
		(void)printf("%s %s\n", a->name, a->target->arn);
	(void)fflush(stdout);
}

/* The parent waits for the start and exits with its verdict. Returns in the child; *report is where to tell it. */
static int detach(int *report)
{
	int pipes[2];
	char verdict = EXIT_FAILED;
	pid_t child;

	if (pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	child = fork();
	if (child < 0)
		return -errno;
	if (child > 0) {
		(void)close(pipes[1]);
		if (read(pipes[0], &verdict, 1) != 1)
			verdict = EXIT_FAILED;
		_exit(verdict);
	}
	(void)close(pipes[0]);
	(void)setsid();
	*report = pipes[1];
	return 0;
}

static void let_go(int *report)
{
	CLEANUP_FD int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	char verdict = EXIT_OK;

	if (null >= 0) {
		(void)dup2(null, STDIN_FILENO);
		(void)dup2(null, STDOUT_FILENO);
		(void)dup2(null, STDERR_FILENO);
	}
	if (write(*report, &verdict, 1) != 1)
		log_warn("nobody waits for the start any more");
	(void)close(steal_fd(report));
}

/* Signals are blocked in every thread and taken here. */
static int serve(struct devkms *srv, const struct options *o, uint32_t address, const sigset_t *ends)
{
	struct dk_server *server = NULL;
	CLEANUP_FD int report = -1;
	uint16_t port = 0;
	int sig, r = o->daemon ? detach(&report) : 0;

	if (r < 0)
		return complain(EXIT_FAILED, "cannot detach", strerror(-r));
	r = dk_server_start(srv, address, (uint16_t)o->port, &server, &port);
	if (r < 0)
		return complain(EXIT_FAILED, "cannot listen", strerror(-r));
	announce(srv, o, port);
	if (o->port_file)
		r = write_number(o->port_file, port);
	if (r == 0 && o->pid_file)
		r = write_number(o->pid_file, (unsigned long)getpid());
	if (r < 0) {
		dk_server_stop(server);
		return complain(EXIT_FAILED, "cannot write the port or pid file", strerror(-r));
	}
	if (report >= 0)
		let_go(&report);
	(void)sigwait(ends, &sig);
	dk_server_stop(server);
	if (o->pid_file)
		(void)unlink(o->pid_file);
	return EXIT_OK;
}

static int run(const struct options *o, const sigset_t *ends)
{
	CLEANUP_FREE struct devkms *srv = calloc(1, sizeof(*srv));
	uint32_t address = 0;
	int code, r;

	if (!srv)
		return complain(EXIT_FAILED, "cannot start", strerror(ENOMEM));
	code = configure(srv, o, &address);
	if (code != EXIT_OK)
		return code;
	srv->store.dir = srv->store.guard = -1;
	dk_faults_init(&srv->faults);
	r = dk_stats_init(&srv->stats);
	if (r == 0)
		r = dk_store_open(srv, o->state);
	if (r == 0)
		r = dk_vault_load(&srv->vault, srv->store.dir);
	if (r == 0)
		r = first_key(srv, o);
	if (r == -EBUSY)
		code = complain(EXIT_ALREADY, o->state, "another byokfs-devkms uses it");
	else if (r < 0)
		code = complain(EXIT_FAILED, o->state, strerror(-r));
	else
		code = serve(srv, o, address, ends);
	dk_vault_close(&srv->vault);
	dk_store_close(&srv->store);
	dk_stats_free(&srv->stats);
	return code;
}

int main(int argc, char **argv)
{
	struct options o = { .state = NULL };
	sigset_t ends;
	int code;

	if (secret_init(true) < 0)
		return EXIT_FAILED;
	if (argc > 1 &&
	    (strcmp(argv[1], "status") == 0 || strcmp(argv[1], "enable") == 0 || strcmp(argv[1], "disable") == 0))
		return dk_client_main(argc - 1, argv + 1);
	code = parse_options(argc, argv, &o);
	if (code != EXIT_OK) {
		(void)fputs(usage, stderr);
		return code;
	}
	log_setup("byokfs-devkms", o.verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, false);
	(void)setvbuf(stdout, NULL, _IOLBF, 0);
	(void)fputs("byokfs-devkms: NOT FOR PRODUCTION: a stand-in for AWS KMS, its keys lie in clear in the state "
	            "directory\n",
	    stderr);
	(void)signal(SIGPIPE, SIG_IGN);
	(void)sigemptyset(&ends);
	(void)sigaddset(&ends, SIGTERM);
	(void)sigaddset(&ends, SIGINT);
	(void)pthread_sigmask(SIG_BLOCK, &ends, NULL);
	return run(&o, &ends);
}
