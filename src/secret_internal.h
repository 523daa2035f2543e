/* secret_internal.h — what secret.c and secret_memory.c share. */
#ifndef BYOKFS_SECRET_INTERNAL_H
#define BYOKFS_SECRET_INTERNAL_H

#include <stdbool.h>

/* Sanitizers map terabytes of shadow and trace their own process: no mlockall, no PR_SET_DUMPABLE. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SECRET_SANITIZED 1
#else
#define SECRET_SANITIZED 0
#endif

/* May secret_alloc() give unlocked memory? No, until this is called. */
void secret_memory_allow_unlocked(bool allow);

#endif
