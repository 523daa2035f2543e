/* The verbs of the control socket (ctl.h): status, lock, unlock. */
#ifndef BYOKFS_CONTROL_H
#define BYOKFS_CONTROL_H

#include <jansson.h>

/* arg: struct service. A new reference, or NULL when memory ran out. */
json_t *control_answer(void *arg, const json_t *request);

#endif
