/* The watchdog with a socket in place of /dev/fuse: what it says when its daemon dies, and when it does not. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "watchdog.h"

#define TOP 100u

/* The first child of this process, as long as it is the only one. */
static pid_t only_child(void)
{
	char path[64], text[32] = "";
	CLEANUP_FD int fd = -1;

	(void)snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_true(read(fd, text, sizeof(text) - 1) > 0);
	return (pid_t)atoi(text);
}

static void wait_for_name(pid_t pid, const char *name)
{
	char path[64];

	(void)snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	for (int tries = 0;; tries++) {
		char text[32] = "";
		CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

		assert_true(fd >= 0);
		assert_true(read(fd, text, sizeof(text) - 1) > 0);
		if (strncmp(text, name, strlen(name)) == 0)
			return;
		assert_true(tries < 10000);
		(void)nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
}

static void test_life(void **state)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct watchdog *w = NULL;
	pid_t pid;

	(void)state;
	assert_int_equal(watchdog_start(&w), 0);
	assert_true(watchdog_alive(w));
	assert_int_equal(atomic_load(watchdog_top(w)), 0);
	pid = only_child();
	wait_for_name(pid, "byokfs-watchdog");
	for (int i = 0; i < 3; i++)
		assert_int_equal(kill(pid, signals[i]), 0);
	assert_true(watchdog_alive(w));
	assert_int_equal(getsid(pid), pid);
	watchdog_stop(w);
	/* Gone and buried. */
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
	watchdog_stop(NULL);
}

static void test_notices_its_own_death(void **state)
{
	struct watchdog *w = NULL;
	pid_t pid;

	(void)state;
	assert_int_equal(watchdog_start(&w), 0);
	pid = only_child();
	assert_int_equal(kill(pid, SIGKILL), 0);
	for (int tries = 0; watchdog_alive(w); tries++) {
		assert_true(tries < 10000);
		(void)nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	assert_int_equal(watchdog_arm(w, 0, 0), -EPIPE);
	watchdog_stop(w);
}

enum fate { FATE_DIES, FATE_LEAVES, FATE_DIES_WITH_CHILD };

/* A daemon in a process of its own, with `device` for /dev/fuse. */
static _Noreturn void daemon_main(int device, int leash, enum fate fate)
{
	struct watchdog *w = NULL;
	char c;

	if (watchdog_start(&w))
		_exit(1);
	atomic_store(watchdog_top(w), TOP);
	if (watchdog_arm(w, device, 0))
		_exit(2);
	if (fate == FATE_LEAVES)
		watchdog_stop(w);
	/* A child that was forgotten keeps the daemon's socket open. */
	if (fate == FATE_DIES_WITH_CHILD && fork() == 0)
		(void)!read(leash, &c, 1);
	_exit(0);
}

/* Reads until the end, or until the epoch's end; returns how many inodes were invalidated. */
static unsigned listen_to(int fd, bool *epoch)
{
	struct {
		struct fuse_out_header head;
		struct fuse_notify_inval_inode_out body;
	} m;
	bool seen[TOP + 1] = { false };
	unsigned n = 0;
	ssize_t got;

	*epoch = false;
	while (!*epoch && (got = recv(fd, &m, sizeof(m), 0)) > 0) {
		assert_int_equal(m.head.unique, 0);
		assert_int_equal(m.head.len, got);
		if (m.head.error == 8) {
			*epoch = true;
			continue;
		}
		assert_int_equal(m.head.error, FUSE_NOTIFY_INVAL_INODE);
		assert_int_equal(got, sizeof(m));
		assert_in_range(m.body.ino, 1, TOP);
		assert_int_equal(m.body.off, 0);
		assert_int_equal(m.body.len, 0);
		assert_false(seen[m.body.ino]);
		seen[m.body.ino] = true;
		n++;
	}
	return n;
}

static void run(enum fate fate, unsigned expected)
{
	int device[2], leash[2], status;
	bool epoch;
	pid_t pid;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, device), 0);
	assert_int_equal(pipe2(leash, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)close(device[0]);
		(void)close(leash[1]);
		daemon_main(device[1], leash[0], fate);
	}
	(void)close(device[1]);
	(void)close(leash[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(listen_to(device[0], &epoch), expected);
	/* Names last. */
	assert_int_equal(epoch, expected > 0);
	(void)close(leash[1]);
	/* It does not stay. */
	assert_int_equal(listen_to(device[0], &epoch), 0);
	assert_false(epoch);
	(void)close(device[0]);
}

static void test_daemon_dies(void **state)
{
	(void)state;
	run(FATE_DIES, TOP);
}

static void test_daemon_leaves(void **state)
{
	(void)state;
	run(FATE_LEAVES, 0);
}

static void test_daemon_dies_with_child(void **state)
{
	(void)state;
	run(FATE_DIES_WITH_CHILD, TOP);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_life), cmocka_unit_test(test_notices_its_own_death),
		cmocka_unit_test(test_daemon_dies), cmocka_unit_test(test_daemon_leaves),
		cmocka_unit_test(test_daemon_dies_with_child) };

	(void)alarm(60);
	return cmocka_run_group_tests_name("watchdog", tests, NULL, NULL);
}
