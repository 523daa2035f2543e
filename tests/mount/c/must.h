/* must.h — what must hold in a program of the tests: else it says where, and ends with 1. */
#ifndef BYOKFS_TEST_MUST_H
#define BYOKFS_TEST_MUST_H

#include <stdio.h>
#include <stdlib.h>

#define MUST(x)                                                           \
	do {                                                              \
		if (!(x)) {                                               \
			fprintf(stderr, "line %d: %s\n", __LINE__, #x);   \
			perror("errno");                                  \
			exit(1);                                          \
		}                                                         \
	} while (0)

#endif
