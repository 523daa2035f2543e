/* params.h — from the configuration to what modules take: the one place where the programs read kms settings. */
#ifndef BYOKFS_PARAMS_H
#define BYOKFS_PARAMS_H

#include "config.h"
#include "kms.h"

/* Strings are borrowed from the configuration; user_agent too. */
void params_kms(struct kms_params *, const struct config *, const char *user_agent);
/* The same for the key that a rotation is leaving, an open one of the first being share. False: none is configured. */
bool params_previous(struct kms_params *, const struct config *, const char *user_agent, struct kms *share);

#endif
