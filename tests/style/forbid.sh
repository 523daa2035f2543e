#!/bin/sh
# Calls and words that do not belong here. Prints file:line and exits 1.
# shellcheck disable=SC2086,SC2046,SC2010 # lists of files without blanks are meant to split
set -eu
if [ ! -d include ] || [ ! -d src ]; then
	echo "forbid.sh: run me in the top directory" >&2
	exit 2
fi
bad=0

# forbid PATTERN REASON FILES...: outside comments that begin the line
forbid() {
	pattern=$1 reason=$2
	shift 2
	if found=$(grep -nE "$pattern" "$@" /dev/null | grep -vE '^[^:]*:[0-9]+:[ 	]*(/?\*|//)'); then
		printf '%s\n' "$found" | sed "s|\$|   <- $reason|"
		bad=1
	fi
}

all=$(ls include/*.h src/*.[ch] tools/*.[ch])
src=$(ls include/*.h src/*.[ch])
{
	forbid '\b(gets|strncat|sprintf|vsprintf|strtok|tmpnam|mktemp|alloca)\(' 'no bound' $all
	forbid '\b(atoi|atol|atoll|atof)\(' 'does not tell errors' $all
	forbid '\b(system|popen|execl|execlp|execv|execvp|execve|execvpe|posix_spawnp?)\(' 'no child processes' \
		$(echo "$all" | grep -vxE 'src/awscred_process.c|tools/import_mount.c') # a credential helper, byokfs itself: no shell
	forbid '\b(rand|srand|random|drand48|RAND_bytes|randombytes_[a-z]+)\(' 'secret_random or secret_nonce' $src
	forbid '\b(exit|_exit|err|errx)\(' 'a module does not end the process' $(ls $src | grep -vE 'src/(main|service|watchdog|awscred_process)\.c')
	forbid '\b(readdir_r|gethostbyname|localtime|gmtime|asctime|ctime|strerror_r)\(' 'not safe with threads' $src
	forbid '\b(setenv|putenv)\(' 'not safe with threads' $(ls $src | grep -v 'src/service\.c') # before there are any
	forbid '\bmemset\([^,]*\b(secret|dek|plain_key|session_token)[^,]*, *0' 'explicit_bzero: memset may be left out' $all
}

# strcpy only where the size was compared in the lines right above; each file says how often.
# memcmp never on MACs, tags, commitments, secrets (bytes_equal); each use was looked at, the count is the record.
counted() {
	call=$1
	shift
	for entry in "$@"; do
		file=${entry%=*} want=${entry#*=}
		have=$(grep -cE "\\b$call\\(" "$file" 2>/dev/null || true)
		if [ "${have:-0}" -gt "$want" ]; then
			echo "$file:1: $have uses of $call(), $want were looked at: use bytes_equal()/snprintf(), or raise the count in forbid.sh"
			bad=1
		fi
	done
	for file in $(grep -lE "\\b$call\\(" $all || true); do
		case " $* " in
		*" $file="*) ;;
		*)
			grep -nE "\\b$call\\(" "$file" | sed "s|^|$file:|; s|\$|   <- $call() was not looked at here: see forbid.sh|"
			bad=1
			;;
		esac
	done
}
	counted memcmp src/block.c=1 src/block_pool.c=1 src/file_shared.c=3 src/file_write.c=2 src/header.c=1 src/inode.c=1 src/inode_fd.c=1 \
	src/lease_key.c=3 src/lease_key_life.c=1 src/lease_key_table.c=1 src/ops.c=1 src/state.c=3 src/store_copies.c=1 src/store.c=1 tools/check.c=2 tools/check_file.c=1 \
	tools/check_data.c=1 tools/check_keys.c=1 tools/devkms_crypto.c=1 tools/keys_files.c=1 tools/rotate_plan.c=1
counted strcpy src/awscred_answer.c=2 src/awscred_file.c=3 src/awscred_sts.c=1 src/kms_aws_endpoint.c=4 src/kms_keyfile.c=6 src/kms_open.c=1 src/kms_pkcs11.c=6 src/kms_pkcs11_uri.c=1
counted strcat src/awscred_sts.c=1 src/kms_aws_endpoint.c=1

if grep -nE '\b(TODO|FIXME|XXX|HACK)\b' $all tests/unit/*.[ch] Makefile README.md docs/* systemd/* 2>/dev/null; then
	echo "   <- unfinished work has no place in the tree"
	bad=1
fi
[ $bad = 0 ] && echo "forbid: nothing forbidden"
exit $bad
