/* byokfs: main() is the list of what happens, in order. Everything that can be refused is refused while the
 * administrator is watching: options, configuration, the store, the KMS, the mount itself. The watchdog is forked
 * before there is a key to copy.              */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "audit.h"
#include "bytes.h"
#include "config.h"
#include "exitcode.h"
#include "fdpool.h"
#include "fs.h"
#include "fuseio.h"
#include "io.h"
#include "keyahead.h"
#include "log.h"
#include "main_internal.h"
#include "ops.h"
#include "params.h"
#include "pathcheck.h"
#include "secret.h"
#include "service.h"
#include "state.h"
#include "sweep.h"

/* How long a mount waits for the lock of a store that is mounted no more. */
#define PREDECESSOR_MS 10000u
/* Descriptors of directories that are kept at most, however many are allowed. */
#define FDS_MOST 65536u

int main_fail(int code, const char *what, const char *hint)
{
	fprintf(stderr, "byokfs: error: %s\n", what);
	if (hint)
		fprintf(stderr, "byokfs: hint: %s\n", hint);
	return code;
}

int main_fail_errno(const char *what, int err)
{
	char text[200];

	(void)snprintf(text, sizeof(text), "%s: %s", what, strerror(err < 0 ? -err : err));
	return main_fail(EXIT_FAILED, text, NULL);
}

/* As many descriptors as allowed. Open files and directories want one each and make do with half of them, the table of
 * directories with a quarter, which this returns; the rest is for sockets, and for work under way. */
static size_t raise_nofile(bool shared)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim))
		return 256;
	lim.rlim_cur = lim.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &lim);
	(void)getrlimit(RLIMIT_NOFILE, &lim);
	if (lim.rlim_cur > 4 * FDS_MOST)
		lim.rlim_cur = 4 * FDS_MOST;
	/* The locks of applications take a quarter, too. */
	fdpool_limit(shared ? lim.rlim_cur / 4 : lim.rlim_cur / 2);
	return lim.rlim_cur / 4;
}

/* umount(8) comes back before the daemon it ends has flushed everything: whoever mounts again at once need not know.
 * A mount that is there to stay, or on another host, is not waited for. */
static int open_free_store(struct daemon *d, const struct store_options *so, char *why)
{
	const struct timespec pause = { .tv_nsec = 50 * 1000 * 1000 };
	uint64_t end = io_boot_ms() + PREDECESSOR_MS;
	int r = store_open(&d->store, d->options.store, so, why);
	bool here = true;

	/* It may go between a look at it and a try: only who fails after the look is kept out from elsewhere. */
	while (r == -EBUSY && here && io_boot_ms() < end && !pathcheck_mounted(d->options.store)) {
		here = pathcheck_locked(d->options.store, ".byokfs/lock");
		if (here)
			(void)nanosleep(&pause, NULL);
		r = store_open(&d->store, d->options.store, so, why);
	}
	return r;
}

static int open_store(struct daemon *d)
{
	struct store_options so = { .readonly = d->options.readonly,
		.shared = d->config.mount.shared,
		.torn_ok = d->config.mount.torn_ok };
	char why[STORE_WHY], id[33];
	int r = open_free_store(d, &so, why);

	switch (r) {
	case 0:
		break;
	case -EBUSY:
		return main_fail(EXIT_ALREADY, why, NULL);
	case -ENOENT:
	case -EINVAL:
	case -ENOTDIR:
	case -EPROTONOSUPPORT:
	case -EBADMSG:
		return main_fail(EXIT_NOT_A_STORE, why, r == -ENOENT ? "make one with 'byokfsctl init'" : NULL);
	default:
		return main_fail(EXIT_FAILED, why, NULL);
	}
	d->store_open = true;
	bytes_hex(id, d->store.desc.store, 16);
	if (d->config.store.id && strcmp(d->config.store.id, id) != 0) {
		(void)snprintf(why, sizeof(why), "this is store '%s', not the one pinned by [store] id", id);
		return main_fail(EXIT_CONFIG, why, NULL);
	}
	if (d->config.store.suite && d->config.store.suite != d->store.desc.suite)
		return main_fail(EXIT_CONFIG, "the store's suite is not the one pinned by [store] suite", NULL);
	static const char *const names[] = { "siv64", "siv32", "plain" };

	if (d->config.store.names && strcmp(d->config.store.names, names[d->store.desc.names]) != 0)
		return main_fail(EXIT_CONFIG, "the store's names mode is not the one pinned by [store] names", NULL);
	return 0;
}

/* Before the first request to the KMS. An audit that was asked for must be there. */
static int open_audit(struct daemon *d)
{
	char why[AUDIT_WHY];
	struct kms_params kms;
	int r;

	if (!d->config.audit.file && !d->config.audit.syslog)
		return 0;
	params_kms(&kms, &d->config, NULL);
	const struct audit_params params = { .path = d->config.audit.file,
		.syslog = d->config.audit.syslog,
		.changes_only = strcmp(d->config.audit.level, "changes") == 0,
		.program = "byokfs/" BYOKFS_VERSION,
		.mount = d->options.mountpoint,
		.key = kms.key,
		.store = d->store.desc.store };

	r = audit_open(&d->audit, &params, why);
	if (!r)
		return 0;
	return main_fail(EXIT_CONFIG, why,
	    r == -EBUSY ? "every mount needs an [audit] file of its own"
	                : "[audit] file must be a regular file of the daemon's user in a directory that exists");
}

/* With the keys at hand, everything the descriptors say is proved before anybody can use it. */
static int authenticate(struct daemon *d)
{
	char why[STORE_WHY];
	int r;

	struct lease *lease = atomic_load(&d->fs.first->lease);

	if (lease_enter(lease, LEASE_WORK)) {
		if (d->config.mount.locked_start)
			return 0; /* purge.c does it when the domain opens */
		return main_fail(EXIT_UNREACHABLE, "the lease ended before the mount began", NULL);
	}
	r = store_authenticate(&d->store, lease_domain_keys(lease), lease_names(lease), why);
	if (!r)
		r = store_mark(&d->store, why);
	lease_leave(lease, LEASE_WORK);
	if (r)
		return main_fail(r == -EBADMSG ? EXIT_NOT_A_STORE
		        : r == -EBUSY          ? EXIT_ALREADY
		                               : EXIT_FAILED,
		    why, NULL);
	if (domains_load(&d->fs))
		return main_fail_errno("cannot set up the key domains", ENOMEM);
	atomic_store(&d->fs.first->ready, true);
	return 0;
}

static int open_fs(struct daemon *d)
{
	struct inode_params ip = { .root_fd = d->store.fd,
		.max_fds = raise_nofile(d->config.mount.shared),
		.shared = d->config.mount.shared };
	struct fs *fs = &d->fs;
	int r = inode_table_open(&fs->inodes, &ip);

	if (!r)
		r = states_open(fs);
	if (!r && d->config.mount.shared)
		r = locks_open(fs, ip.max_fds);
	if (!r)
		r = lane_open(&fs->lane, d->config.mount.threads, LANE_BYTES);
	if (r)
		return main_fail_errno("cannot set up the file table", r);
	fs->audit = d->audit;
	fs_describe_in(fs);
	pthread_mutex_init(&fs->dirs_lock, NULL);
	inode_share_top(fs->inodes, watchdog_top(d->service.watchdog));
	fs->params = (struct fs_params){
		.timeout = d->config.mount.attr_timeout_ms / 1000.0,
		.entry_timeout = d->config.mount.shared ? 0 : d->config.mount.attr_timeout_ms / 1000.0,
		.shared = d->config.mount.shared,
		.readonly = d->options.readonly,
		.noatime = d->options.noatime,
		.writeback = d->config.mount.writeback && !d->options.readonly,
		.commit_strict = d->config.mount.commit_strict,
		.multiuser = geteuid() == 0,
		.max_background = d->config.mount.max_background,
	};
	return 0;
}

/* INIT was answered: only now does a larger readahead stay, and only now does the mount answer. */
static void answered(void *arg)
{
	struct daemon *d = arg;

	if (d->connection && fuseio_readahead(d->connection, d->config.mount.readahead_kib))
		log_debug("readahead stays at the kernel's default");
	service_ready(&d->service);
}

static int mount_fs(struct daemon *d)
{
	struct fs *fs = &d->fs;
	int r;

	fs->se = fuse_session_new(&d->options.args, &fs_ops, sizeof(fs_ops), fs);
	if (!fs->se)
		return main_fail(EXIT_USAGE, "libfuse refuses the mount options", NULL);
	if (fuse_session_mount(fs->se, d->options.mountpoint))
		return main_fail(EXIT_FAILED, "cannot mount", "is /dev/fuse there, and may you use it?");
	if (strcmp(d->config.mount.transport, "fuse") != 0)
		fuseio_want_ring(d->config.mount.threads + LANE_SPARE, strcmp(d->config.mount.transport, "auto") == 0);
	r = fuseio_attach(fs->se, answered, d);
	if (r)
		return main_fail_errno("cannot attach to the FUSE device", r);
	if (fuseio_connection(d->options.mountpoint, &d->connection))
		d->connection = 0;
	fs->connection = d->connection;
	r = watchdog_arm(d->service.watchdog, fuse_session_fd(fs->se), d->connection);
	return r ? main_fail_errno("cannot arm the watchdog", r) : 0;
}

/* What the audit's lines about changes of state start from. */
static void audit_first_state(const struct daemon *d)
{
	struct lease_status ls;

	domain_status(d->fs.first, &ls);
	audit_state(d->audit, &d->store.ids, lease_state_name(ls.state), *ls.reason ? ls.reason : "mounted");
}

static int serve(struct daemon *d)
{
	struct fuse_loop_config *loop = fuse_loop_cfg_create();
	struct fs *fs = &d->fs;
	int r;

	if (!loop)
		return main_fail_errno("cannot start", ENOMEM);
	fuse_loop_cfg_set_max_threads(loop, d->config.mount.threads + LANE_SPARE);
	fuse_loop_cfg_set_idle_threads(loop, d->config.mount.threads + LANE_SPARE);
	fuse_loop_cfg_set_clone_fd(loop, 0);
	audit_first_state(d);
	r = domains_start(fs);
	if (!r)
		r = states_start(fs);
	if (!r)
		r = locks_start(fs);
	if (!r)
		r = sweep_start(fs);
	if (!r)
		r = keyahead_start(fs, d->config.cache.read_ahead);
	d->service.fs = fs;
	d->service.key = d->kms;
	d->service.mountpoint = d->options.mountpoint;
	d->service.options = &d->options;
	d->service.config = &d->config;
	if (!r)
		r = service_start(&d->service);
	if (r) {
		fuse_loop_cfg_destroy(loop);
		return main_fail_errno("cannot start threads", r);
	}
	d->service.keep_stderr = !d->config.log.syslog;
	if (!d->options.foreground && d->config.log.syslog)
		log_setup("byokfs", options_log_level(&d->options, &d->config), true);
	log_info("mounted '%s' at '%s'", d->options.store, d->options.mountpoint);
	r = fuse_session_loop_mt(fs->se, loop);
	fuseio_ring_stop();
	fuse_loop_cfg_destroy(loop);
	log_info("unmounting '%s'%s", d->options.mountpoint, r < 0 ? ": the session ended with an error" : "");
	return 0;
}

/* Ends the connection. Where the mount is ours no more, something else may be mounted there by now. */
static void cut(struct daemon *d)
{
	CLEANUP_FD int fd = d->service.detached ? fuseio_open_abort(d->connection) : -1;
	bool done = d->service.detached ? write(fd, "1", 1) == 1
	                                : umount2(d->options.mountpoint, MNT_FORCE | MNT_DETACH) == 0;

	if (!done)
		log_debug("the connection ends with the device");
}

/* The reverse order; every part may be missing. */
static void end(struct daemon *d, bool mounted)
{
	bool clean = false;

	/* Nobody serves the connection any more: notifications that wait for an answer must fail, not hang; that of a
	 * `domain add` which service_stop() waits for, too. */
	if (__atomic_load_n(&d->service.cut, __ATOMIC_ACQUIRE))
		cut(d);
	service_stop(&d->service);
	locks_stop(&d->fs);
	sweep_stop(&d->fs);
	if (d->fs.states)
		clean = states_stop(&d->fs, !d->options.readonly && mounted);
	keyahead_stop(&d->fs);
	if (d->fs.domains) /* their threads finish or fail what was parked, so the states outlive them */
		domains_stop(&d->fs);
	if (mounted)
		fuse_session_unmount(d->fs.se);
	keyahead_close(&d->fs);
	if (d->fs.states)
		states_close(&d->fs);
	lane_close(d->fs.lane);
	if (d->fs.inodes)
		inode_table_close(d->fs.inodes);
	watchdog_stop(d->service.watchdog);
	fuseio_ring_close();
	if (d->fs.se)
		fuse_session_destroy(d->fs.se);
	domains_free(&d->fs);
	kms_close(d->previous);
	kms_close(d->kms);
	audit_close(d->audit, mounted ? "unmounted" : "not mounted");
	if (d->store_open)
		store_close(&d->store, clean || !mounted);
	options_free(&d->options);
	config_free(&d->config);
}

static int check_paths(const struct daemon *d)
{
	CLEANUP_FREE char *path = pathcheck_find(&d->config, d->options.mountpoint);
	CLEANUP_FREE char *what = NULL;

	if (!path)
		return 0;
	if (asprintf(&what, "'%s' lies below the mount point '%s', and the daemon itself needs it", path,
	        d->options.mountpoint) < 0)
		what = NULL;
	return main_fail(EXIT_CONFIG, what ? what : "out of memory",
	    "move the file elsewhere: to read it, the daemon would wait for itself");
}

static int run(struct daemon *d)
{
	int code = check_paths(d);

	if (!code)
		code = open_store(d);

	if (code)
		return code;
	if (watchdog_start(&d->service.watchdog))
		return main_fail(EXIT_FAILED, "cannot start the watchdog", NULL);
	secret_lock_process();
	code = open_audit(d);
	if (!code)
		code = main_open_keys(d);
	if (!code)
		code = authenticate(d);
	if (!code)
		code = open_fs(d);
	if (!code)
		code = mount_fs(d);
	if (!code)
		code = serve(d);
	return code;
}

int main(int argc, char **argv)
{
	static struct daemon d; /* descriptors hold blobs: too large for the stack */
	bool done;
	int code;

	log_setup("byokfs", LOG_LEVEL_INFO, false);
	config_init(&d.config);
	code = options_parse(&d.options, &d.config, argc, argv, &done);
	if (code || done || d.options.fake)
		return code;
	log_setup("byokfs", options_log_level(&d.options, &d.config), false);
	code = service_background(d.options.foreground, d.options.mountpoint, &d.service.ready_fd);
	if (code)
		return main_fail_errno("cannot go to the background", code);
	if (secret_init(d.config.cache.allow_unlocked))
		return main_fail(EXIT_FAILED, "cannot protect the memory of keys",
		    "raise 'ulimit -l', or set cache.allow_unlocked = yes to accept swapping");
	(void)umask(0);
	service_block_signals();
	code = run(&d);
	end(&d, d.fs.se && fuse_session_fd(d.fs.se) >= 0);
	return code;
}
