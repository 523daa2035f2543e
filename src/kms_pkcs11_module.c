/* kms_pkcs11_module.c — the vendor's library, of which a process has one.
 *
 * Hides: loading, and that C_Initialize and C_Finalize are the process's, not the caller's: several open key services
 * share the library, its sessions and its login. The library stays loaded for ever. Some modules notice a token that
 * went away and came back only after C_Finalize; nobody may be inside then, hence the gate. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "io.h"
#include "kms_pkcs11_internal.h"

#define RESTART_MS 1000u

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static struct p11_module *modules; /* never shorter */

/* registry held. */
static int load(struct p11_module *m, char why[static 160])
{
	ck_rv_t (*list)(struct ck_function_list **);
	void *library = dlopen(m->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	ck_rv_t rv;

	if (!library) {
		(void)snprintf(why, 160, "cannot load the module: %.130s", dlerror());
		return -ELIBACC;
	}
	*(void **)&list = dlsym(library, "C_GetFunctionList");
	rv = list ? list(&m->f) : CKR_OK;
	if (!list || rv != CKR_OK || !m->f || m->f->version.major < 2) {
		(void)snprintf(why, 160, "'%.110s' is not a PKCS#11 module", m->path);
		(void)dlclose(library);
		return -ELIBBAD;
	}
	return 0;
}

/* registry held. */
static int add(struct p11_module **out, const char *path, char why[static 160])
{
	size_t n = strlen(path) + 1;
	CLEANUP_FREE struct p11_module *m = calloc(1, sizeof(*m) + n);
	int r;

	(void)snprintf(why, 160, "out of memory");
	if (!m)
		return -ENOMEM;
	memcpy(m->path, path, n);
	r = load(m, why);
	if (!r)
		r = -pthread_rwlock_init(&m->gate, NULL);
	if (r)
		return r;
	m->next = modules;
	*out = modules = steal_ptr(&m);
	return 0;
}

int p11_module_load(struct p11_module **out, const char *path, char why[static 160])
{
	LOCK_SCOPE(&registry);
	for (struct p11_module *m = modules; m; m = m->next)
		if (!strcmp(m->path, path)) {
			*out = m;
			return 0;
		}
	return add(out, path, why);
}

struct p11_token *p11_module_token(struct p11_module *m, const char *label)
{
	struct p11_token *t;

	LOCK_SCOPE(&registry);
	for (t = m->tokens; t; t = t->next)
		if (!strcmp(t->label, label))
			return t;
	t = calloc(1, sizeof(*t));
	if (!t)
		return NULL;
	(void)pthread_mutex_init(&t->login, NULL);
	(void)snprintf(t->label, sizeof(t->label), "%s", label);
	t->next = m->tokens;
	m->tokens = t;
	return t;
}

/* ---- initialised or not ---- */

/* gate held exclusively. */
static ck_rv_t start(struct p11_module *m)
{
	struct ck_c_initialize_args args = { .flags = CKF_OS_LOCKING_OK };
	ck_rv_t rv = m->f->C_Initialize(&args);

	if (rv != CKR_OK && rv != CKR_CRYPTOKI_ALREADY_INITIALIZED)
		return rv;
	m->up = true;
	m->generation++;
	m->started = io_boot_ms();
	return CKR_OK;
}

/* gate held exclusively. */
static void stop(struct p11_module *m)
{
	if (m->up)
		(void)m->f->C_Finalize(NULL);
	m->up = false;
}

ck_rv_t p11_module_enter(struct p11_module *m, uint64_t *generation)
{
	for (;;) {
		ck_rv_t rv = CKR_OK;

		(void)pthread_rwlock_rdlock(&m->gate);
		if (m->up) {
			*generation = m->generation;
			return CKR_OK;
		}
		(void)pthread_rwlock_unlock(&m->gate);
		(void)pthread_rwlock_wrlock(&m->gate);
		if (!m->up)
			rv = start(m);
		(void)pthread_rwlock_unlock(&m->gate);
		if (rv != CKR_OK)
			return rv;
	}
}

void p11_module_leave(struct p11_module *m)
{
	(void)pthread_rwlock_unlock(&m->gate);
}

bool p11_module_restart(struct p11_module *m, uint64_t generation)
{
	bool done;

	if (pthread_rwlock_trywrlock(&m->gate))
		return false;
	done = m->generation != generation;
	if (!done && io_boot_ms() - m->started >= RESTART_MS) {
		stop(m);
		done = true; /* p11_module_enter() starts it */
	}
	(void)pthread_rwlock_unlock(&m->gate);
	return done;
}

void p11_module_attach(struct p11_module *m)
{
	LOCK_SCOPE(&registry);
	m->users++;
}

void p11_module_detach(struct p11_module *m)
{
	bool last;

	(void)pthread_mutex_lock(&registry);
	last = --m->users == 0;
	(void)pthread_mutex_unlock(&registry);
	if (!last)
		return;
	(void)pthread_rwlock_wrlock(&m->gate);
	stop(m); /* whoever came in between finds another generation */
	(void)pthread_rwlock_unlock(&m->gate);
}
