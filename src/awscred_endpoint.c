/* awscred_endpoint.c — names of AWS's services. Hides: the partitions, whose hosts end differently, and the few names
 * that follow no template. */
#include <stdio.h>
#include <string.h>

#include "awscred.h"

/* By the beginning of a Region's name; the last one is everybody else's. */
static const struct partition {
	const char *prefix, *suffix, *dual;
} partitions[] = {
	{ "cn-", "amazonaws.com.cn", "api.amazonwebservices.com.cn" },
	{ "us-iso-", "c2s.ic.gov", "api.aws.ic.gov" },
	{ "us-isob-", "sc2s.sgov.gov", "api.aws.scloud" },
	{ "us-isof-", "csp.hci.ic.gov", "api.aws.hci.ic.gov" },
	{ "eu-isoe-", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk" },
	{ "eusc-", "amazonaws.eu", "api.amazonwebservices.eu" },
	{ "", "amazonaws.com", "api.aws" },
};

void awscred_host(char *out, const char *service, const char *region, bool fips, bool dualstack)
{
	const struct partition *p = partitions;

	while (strncmp(region, p->prefix, strlen(p->prefix)))
		p++;
	/* GovCloud's STS is a FIPS endpoint under its usual name */
	if (fips && !dualstack && !strcmp(service, "sts") && !strncmp(region, "us-gov-", 7))
		fips = false;
	snprintf(out, 300, "%.60s%s.%.63s.%s", service, fips ? "-fips" : "", region, dualstack ? p->dual : p->suffix);
}
