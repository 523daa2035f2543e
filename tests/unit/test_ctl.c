/* test_ctl.c — the control socket: questions, answers, and clients that misbehave.
 *
 * Includes ctl.c to reach the line functions, whose deadlines are parameters.   */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <fcntl.h>

#include "../../src/ctl.c"

struct fixture {
	char dir[64];
	struct ctl *ctl;
	int calls;
};

static json_t *handle(void *arg, const json_t *request, const struct ctl_fds *in, struct ctl_fds *out)
{
	struct fixture *f = arg;
	const char *verb = jsonio_str(request, "verb");

	f->calls++;
	if (strcmp(verb, "mirror") == 0) { /* what came, once more */
		for (unsigned i = 0; i < in->n; i++)
			out->fd[out->n++] = dup(in->fd[i]);
	}
	if (strcmp(verb, "null") == 0)
		return NULL;
	if (strcmp(verb, "big") == 0) {
		char *text = calloc(1, 900001);

		memset(text, 'x', 900000);
		json_t *answer = json_pack("{s:i,s:s}", "code", 0, "text", text);

		free(text);
		return answer;
	}
	return json_pack("{s:i,s:s}", "code", 0, "echo", verb);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/test_ctl.XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	if (geteuid() != 0)
		(void)setenv("XDG_RUNTIME_DIR", f->dir, 1);
	*state = f;
	return ctl_open(&f->ctl, f->dir, handle, f);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char sub[CTL_PATH];

	ctl_close(f->ctl);
	(void)snprintf(sub, sizeof(sub), "%s/byokfs", f->dir);
	(void)rmdir(sub);
	(void)rmdir(f->dir);
	free(f);
	return 0;
}

static void ask(struct fixture *f, const char *verb, int code, const char *echo)
{
	json_t *request = json_pack("{s:s}", "verb", verb), *answer = NULL;

	assert_int_equal(ctl_call(f->dir, request, 5000, &answer), 0);
	assert_int_equal(json_integer_value(json_object_get(answer, "code")), code);
	if (echo)
		assert_string_equal(jsonio_str(answer, "echo"), echo);
	json_decref(answer);
	json_decref(request);
}

/* Sends raw bytes and returns the answer's line, or NULL when the server just closed. */
static char *raw(struct fixture *f, const char *bytes, size_t len)
{
	char *line = NULL;
	int fd CLEANUP_FD = -1;

	assert_int_equal(connect_to(f->ctl->path, &fd), 0);
	for (size_t done = 0; done < len;) {
		ssize_t n;

		if (wait_for(fd, POLLOUT, -1, io_boot_ms() + 5000) < 0)
			break;
		n = send(fd, bytes + done, len - done, MSG_NOSIGNAL);
		if (n < 0)
			break;
		done += (size_t)n;
	}
	return line_read(fd, -1, io_boot_ms() + 5000, CTL_ANSWER_MAX, &line, NULL) < 0 ? NULL : line;
}

static void questions_are_answered(void **state)
{
	struct fixture *f = *state;

	ask(f, "status", 0, "status");
	ask(f, "lock", 0, "lock");
	ask(f, "null", EXIT_FAILED, NULL);
	assert_int_equal(f->calls, 3);
}

static void mirror(struct fixture *f, unsigned n, int code)
{
	json_t *request = json_pack("{s:s}", "verb", "mirror"), *answer = NULL;
	struct ctl_fds send = { .n = 0 }, got = { .n = 0 };
	struct stat here, there;

	while (send.n < n)
		send.fd[send.n++] = open(f->dir, O_PATH);
	assert_int_equal(ctl_call_fds(f->ctl->path, request, &send, 5000, &answer, code ? NULL : &got), code);
	assert_int_equal(got.n, code ? 0 : n);
	assert_int_equal(stat(f->dir, &here), 0);
	for (unsigned i = 0; i < got.n; i++) {
		assert_int_equal(fstat(got.fd[i], &there), 0);
		assert_int_equal(here.st_ino, there.st_ino);
		assert_int_equal(fcntl(got.fd[i], F_GETFD), FD_CLOEXEC);
	}
	ctl_fds_close(&send);
	ctl_fds_close(&got);
	json_decref(request);
	json_decref(answer);
}

static unsigned open_descriptors(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1000; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void descriptors_come_along(void **state)
{
	struct fixture *f = *state;
	unsigned before = open_descriptors();

	mirror(f, 0, 0);
	mirror(f, 1, 0);
	mirror(f, CTL_FDS, 0);
	mirror(f, 1, -EPROTO); /* nobody wants them */
	ask(f, "status", 0, "status");
	for (int i = 0; i < 500 && open_descriptors() > before; i++)
		(void)usleep(10000); /* the daemon closes its own after the answer */
	assert_int_equal(open_descriptors(), before);
}

static void a_large_answer_arrives_whole(void **state)
{
	struct fixture *f = *state;
	json_t *request = json_pack("{s:s}", "verb", "big"), *answer = NULL;

	assert_int_equal(ctl_call(f->dir, request, 5000, &answer), 0);
	assert_int_equal(strlen(jsonio_str(answer, "text")), 900000);
	json_decref(answer);
	json_decref(request);
}

static void malformed_requests_reach_no_handler(void **state)
{
	static const char *const bad[] = { "\n", "x\n", "[]\n", "{}\n", "{\"verb\":1}\n",
		"{\"verb\":\"a\",\"verb\":\"b\"}\n", "{\"verb\":\"a\"} x\n" };
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char *line = raw(f, bad[i], strlen(bad[i]));

		assert_non_null(line);
		assert_non_null(strstr(line, "\"code\":2"));
		free(line);
	}
	assert_int_equal(f->calls, 0);
	ask(f, "status", 0, "status");
}

static void oversize_requests_are_cut_off(void **state)
{
	struct fixture *f = *state;
	const size_t n = CTL_REQUEST_MAX + 65536;
	char *huge = malloc(n);

	assert_non_null(huge);
	memset(huge, ' ', n);
	assert_null(raw(f, huge, n));
	memcpy(huge + CTL_REQUEST_MAX - 15, "{\"verb\":\"edge\"}\n", 16);
	char *line = raw(f, huge, CTL_REQUEST_MAX + 1); /* exactly the limit */
	assert_non_null(line);
	assert_non_null(strstr(line, "edge"));
	free(line);
	free(huge);
}

static void a_client_that_leaves_does_no_harm(void **state)
{
	struct fixture *f = *state;
	int fd = -1;

	assert_int_equal(connect_to(f->ctl->path, &fd), 0);
	(void)close(fd);
	assert_int_equal(connect_to(f->ctl->path, &fd), 0);
	assert_int_equal(send(fd, "{\"verb\":\"big\"}\n", 15, MSG_NOSIGNAL), 15);
	(void)close(fd); /* without reading */
	ask(f, "status", 0, "status");
}

static void closing_does_not_wait_for_a_silent_client(void **state)
{
	struct fixture *f = *state;
	int fd = -1;
	uint64_t start;

	ask(f, "status", 0, "status");
	assert_int_equal(connect_to(f->ctl->path, &fd), 0);
	assert_int_equal(send(fd, "{\"verb\":", 8, MSG_NOSIGNAL), 8);
	start = io_boot_ms();
	ctl_close(f->ctl);
	f->ctl = NULL;
	assert_true(io_boot_ms() - start < PATIENCE_MS);
	(void)close(fd);
}

/* One deadline for the whole line, however often bytes trickle in. */
static void a_deadline_ends_every_wait(void **state)
{
	char *line = NULL, *big;
	int fd[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd), 0);
	assert_int_equal(send(fd[1], "{", 1, 0), 1);
	assert_int_equal(line_read(fd[0], -1, io_boot_ms() + 30, 4096, &line, NULL), -ETIMEDOUT);
	assert_int_equal(send(fd[1], "a\n", 2, 0), 2);
	assert_int_equal(line_read(fd[0], -1, io_boot_ms(), 4096, &line, NULL), -ETIMEDOUT);
	big = malloc(8 << 20);
	memset(big, 'x', 8 << 20);
	big[(8 << 20) - 1] = '\0';
	assert_int_equal(line_write(fd[0], -1, io_boot_ms() + 30, big, NULL), -ETIMEDOUT);
	free(big);
	(void)close(fd[1]);
	(void)close(fd[0]);
}

static void a_second_daemon_is_refused_and_a_dead_one_replaced(void **state)
{
	struct fixture *f = *state;
	struct ctl *second = NULL;
	struct sockaddr_un sun;
	int fd;

	assert_int_equal(ctl_open(&second, f->dir, handle, f), -EBUSY);
	ask(f, "status", 0, "status"); /* the first still serves */
	ctl_close(f->ctl);
	f->ctl = NULL;
	char path[CTL_PATH];
	assert_int_equal(ctl_path(f->dir, path), 0);
	assert_int_equal(address(&sun, path), 0);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (const struct sockaddr *)&sun, sizeof(sun)), 0);
	(void)close(fd); /* the socket file stays, as after SIGKILL */
	assert_int_equal(ctl_open(&f->ctl, f->dir, handle, f), 0);
	ask(f, "status", 0, "status");
}

static void no_daemon_is_told_apart(void **state)
{
	struct fixture *f = *state;
	json_t *request = json_pack("{s:s}", "verb", "status"), *answer = NULL;

	ctl_close(f->ctl);
	f->ctl = NULL;
	assert_int_equal(ctl_call(f->dir, request, 1000, &answer), -ENOENT);
	assert_int_equal(ctl_call("/nonexistent/mount", request, 1000, &answer), -ENOENT);
	json_decref(request);
}

static void one_mount_has_one_path(void **state)
{
	struct fixture *f = *state;
	char a[CTL_PATH], b[CTL_PATH], other[128];

	assert_int_equal(ctl_path(f->dir, a), 0);
	(void)snprintf(other, sizeof(other), "%s/../%s/.", f->dir, strrchr(f->dir, '/') + 1);
	assert_int_equal(ctl_path(other, b), 0);
	assert_string_equal(a, b);
	assert_int_equal(ctl_path("/", b), 0);
	assert_string_not_equal(a, b);
	assert_int_equal(strlen(strrchr(a, '/') + 1), 32 + strlen(".sock"));
}

static void the_socket_is_private(void **state)
{
	struct fixture *f = *state;
	char dir[CTL_PATH], path[CTL_PATH];
	struct stat st;

	assert_int_equal(ctl_directory(dir), 0);
	assert_int_equal(stat(dir, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	assert_int_equal(access(f->ctl->path, F_OK), 0);
	strcpy(path, f->ctl->path);
	ctl_close(f->ctl);
	f->ctl = NULL;
	assert_int_equal(access(path, F_OK), -1);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(questions_are_answered),
		T(descriptors_come_along),
		T(a_large_answer_arrives_whole),
		T(malformed_requests_reach_no_handler),
		T(oversize_requests_are_cut_off),
		T(a_client_that_leaves_does_no_harm),
		T(closing_does_not_wait_for_a_silent_client),
		T(a_deadline_ends_every_wait),
		T(a_second_daemon_is_refused_and_a_dead_one_replaced),
		T(no_daemon_is_told_apart),
		T(one_mount_has_one_path),
		T(the_socket_is_private),
	};

	return cmocka_run_group_tests_name("ctl", tests, NULL, NULL);
}
