/* exitcode.h — the exit codes of all programs: an ABI for scripts (product.md). Unknown non-zero means failure. */
#ifndef BYOKFS_EXITCODE_H
#define BYOKFS_EXITCODE_H

enum exitcode {
	EXIT_OK = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_CONFIG = 3,      /* configuration or credentials */
	EXIT_NOT_A_STORE = 4, /* or wrong format version */
	EXIT_DENIED = 5,      /* the KMS denies: disabled, deleted, not permitted */
	EXIT_UNREACHABLE = 6, /* the KMS cannot be reached */
	EXIT_DAMAGE = 7,
	EXIT_NO_MOUNT = 8,
	EXIT_ALREADY = 9, /* already done, or in progress */
};

#endif
