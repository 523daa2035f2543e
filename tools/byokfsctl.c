/* byokfsctl.c — administers stores and live mounts: a table of verbs, help printed from it, dispatch. */
#include <stdio.h>
#include <string.h>

#include "cmd.h"
#include "log.h"
#include "secret.h"

const struct cmd cmd_table[] = {
	{ "init", cmd_init,
	    "CIPHERDIR [-c FILE] [-o KEY=VALUE] [--seal=file|domain] [--names=siv64|siv32|plain] [--plain-names] "
	    "[--suite=1|2] [--json]",
	    "make an empty directory a store under the configured key",
	    "The KMS seals the store's secret and must unseal it again before anything is written.\n"
	    "\n"
	    "  --seal=file     every file's key is sealed by the KMS: its log shows each one (default)\n"
	    "  --seal=domain   files' keys are wrapped by the store's: one KMS call per lease\n"
	    "  --names=siv64   encrypted names (default); siv32 for backings that fold case\n"
	    "  --plain-names   names stay readable, as --names=plain\n"
	    "  --suite=1|2     1 AES-256-GCM, 2 XChaCha20-Poly1305; default: 1 where the CPU has AES\n" },
	{ "info", cmd_info, "CIPHERDIR [--json]", "show a store's descriptor, without the KMS",
	    "Nothing shown is secret, and nothing shown has been authenticated: that takes the key (byokfsctl "
	    "test).\n" },
	{ "test", cmd_test, "[CIPHERDIR] [-c FILE] [-o KEY=VALUE] [--json]",
	    "try configuration, credentials and key, step by step",
	    "One line each: ok, note, or FAILED and what to do. Every missing permission is named, with its key\n"
	    "and the identity that lacks it. With CIPHERDIR the store's own encryption context is used, and the\n"
	    "key must open each domain. Refused calls are part of the test: its owner sees them in CloudTrail.\n"
	    "The exit code tells the first failure: 3 configuration or credentials, 5 denied, 6 not reached.\n" },
	{ "policy", cmd_policy,
	    "[CIPHERDIR] [-c FILE] [-o KEY=VALUE] [--host ARN] [--rotator ARN] [--admin ARN] [--no-root] "
	    "[--external-id ID] [--account ID] [--key ARN] [--only=key|host|rotator|trust] [--terraform]",
	    "print the least policies for a key of AWS KMS",
	    "One JSON object: the key's policy, the host role's permissions, the rotator's, the role's trust.\n"
	    "\n"
	    "  --host ARN         role or user that asks the KMS (default: role_arn in [kms])\n"
	    "  --rotator ARN      role that rotates: ReEncrypt only\n"
	    "  --admin ARN        who administers the key, without Decrypt (default: as the account's policies say)\n"
	    "  --no-root          leave out the statement that recovers the key when the administrator is gone\n"
	    "  --external-id ID   what the role's trust asks for (default: external_id in [kms])\n"
	    "  --account ID       account, or ARN of the role in it, that may assume the host's role\n"
	    "  --key ARN          this key only\n"
	    "  --only=DOCUMENT    that document alone, as the AWS CLI takes it\n"
	    "  --terraform        resources instead of JSON\n" },
	{ "status", cmd_status, "[MOUNT] [--json | --prometheus] [--watch[=SECONDS]]",
	    "show the state of a mount, or of all",
	    "open, or locked with the reason and since when; lease, counters, the KMS's latency and errors. A mount\n"
	    "whose daemon died is 'dead'.\n"
	    "\n"
	    "  --json             for programs; with --watch one line each time\n"
	    "  --prometheus       metrics in the text format 0.0.4, for node_exporter's textfile collector;\n"
	    "                     without MOUNT of all mounts. A mount that is down is byokfs_up 0, and no error\n"
	    "  --watch[=SECONDS]  over and over (default: every 2 seconds), with rates; SIGINT ends it\n" },
	{ "lock", cmd_lock, "MOUNT [--domain=PATH|ID]", "write back, then drop every key and all cached plaintext now",
	    "The mount answers EIO until 'byokfsctl unlock', whatever the KMS says meanwhile.\n"
	    "\n"
	    "  --domain=PATH|ID  only this key domain: a path in it (with a '/'), its id or its index;\n"
	    "                    without it all key domains of the mount\n" },
	{ "unlock", cmd_unlock, "MOUNT [--domain=PATH|ID]", "ask the KMS again and open",
	    "Undoes 'byokfsctl lock', and does not wait for the next probe. --domain as there.\n" },
	{ "reload", cmd_reload, "MOUNT [--json]", "read the mount's configuration and credentials again",
	    "What SIGHUP does, with an answer: which settings changed, and which wait for the next mount. When the\n"
	    "configuration is wrong nothing changes, and the exit code is 3.\n" },
	{ "domain", cmd_domain, "add PATH --key KEY [--seal=file|domain] [--json] | list MOUNT|CIPHERDIR [--json]",
	    "give a directory of a mounted store a key of its own, or list such key domains",
	    "add   makes an empty directory of a live mount the root of a new key domain: what is in it is sealed\n"
	    "      under KEY (an ARN; an alias is resolved and its key pinned) and locks with KEY alone.\n"
	    "      The KMS must seal and unseal under KEY before anything is written. A rename or hard link\n"
	    "      into or out of the domain is refused with EXDEV; mv(1) then copies.\n"
	    "list  index, id, path, key, seal and, for a live mount, state of every key domain.\n"
	    "\n"
	    "  --key KEY       the key, of the configured provider\n"
	    "  --seal=file     every file's key is sealed by the KMS (default)\n"
	    "  --seal=domain   files' keys are wrapped by the domain's\n" },
	{ "keys", cmd_keys,
	    "CIPHERDIR|--instances DIR [--needs KEY] [--key KEY]... [--alert|--max-age DAYS] [--descriptors] "
	    "[--jobs N] [-c FILE] [-o KEY=VALUE] [--json]",
	    "tell which KMS keys a store or a copy of it still depends on",
	    "Reads descriptors and page 0 of every file: no KMS, no keys, nothing is written, mounted or not.\n"
	    "What it tells are the storage's claims. Exit code 7 when not all of it could be read.\n"
	    "\n"
	    "  --needs KEY      is this key (a full ARN) needed? 0 not needed, 1 needed or perhaps, 7 damage\n"
	    "  --key KEY        a name for seals of which only a hash is known; may be given several times\n"
	    "  --alert          exit code 1 when keys are as old as key_age_days in [alert] says\n"
	    "  --max-age DAYS   the same, with these days\n"
	    "  --descriptors    read no files\n"
	    "  --instances DIR  the stores that CIPHERDIR= in DIR/*.conf names, one after the other\n"
	    "  --jobs N         files read at once (default 8)\n" },
	{ "check", cmd_check, "CIPHERDIR [--data] [--repair] [-c FILE] [-o SETTING] [--jobs N] [--json]",
	    "check a store's structure, or all that it holds, and repair it",
	    "Without keys: descriptors, names, directory ids, page 0 and size of every file; changes nothing.\n"
	    "Exit code 7 when something is damaged. Litter and sizes in doubt are warnings.\n"
	    "\n"
	    "  --data      opens the keys and authenticates names, links, attributes and every page of every file;\n"
	    "              of a mounted store, what does not change while it is read\n"
	    "  --repair    of a store that is not mounted: removes litter, restores copies and lengths, moves what is\n"
	    "              beyond saving to .byokfs/quarantine; with --data, makes damaged files readable again, and\n"
	    "              prints each range of bytes that is lost\n"
	    "  --jobs N    threads that read files\n" },
	{ "rotate", cmd_rotate,
	    "CIPHERDIR|MOUNT --to KEY [-c FILE] [-o KEY=VALUE] [--from KEY] [--domain ID|all] [--jobs N] [--rate N] "
	    "[--patience TIME] [--dry-run] [--same-key] [--through-host] [--json]",
	    "seal every sealed key under another KMS key",
	    "The KMS re-encrypts each sealed key: no plaintext key is ever on this host, and files stay as they are.\n"
	    "A mounted store stays mounted and in use. Interrupted, the same command goes on.\n"
	    "\n"
	    "  --to KEY          the key to go to: ARN, id or alias, which is resolved and its key pinned\n"
	    "  --from KEY        a key that files may be under besides those of the configuration and the descriptor\n"
	    "  --domain ID|all   one key domain by id or index, or all (default: those under the store's own key)\n"
	    "  --jobs N          requests at a time (default 16)\n"
	    "  --rate N          requests per second, at most\n"
	    "  --patience TIME   how long the KMS may stay silent before the work is given up (default 5m)\n"
	    "  --dry-run         count, and say what it would take; nothing is changed\n"
	    "  --same-key        seal under the key's newest material; --to may be left out\n"
	    "  --through-host    decrypt and encrypt here: key services without ReEncrypt, two Regions\n" },
	{ "history", cmd_history, "CIPHERDIR|MOUNT [--json]", "show the rotations of a store",
	    "Who, when, from which key to which, how many files, with what outcome. Nothing shown has been\n"
	    "authenticated: whoever writes to the store can change it.\n" },
	{ "audit", cmd_audit, "verify FILE... [--anchor=HASH] [--json]", "check the chain of an audit log",
	    "Files from the oldest to the newest; '-' is standard input. Finds lines that were changed, removed,\n"
	    "inserted or moved. A cut-off end shows only against an anchor: a line's hash that was kept elsewhere\n"
	    "('byokfsctl status' and the daemon's log tell the newest). Exit code 7 when something was found.\n" },
	{ "import", cmd_import,
	    "SRC CIPHERDIR [-c FILE] [-o KEY=VALUE] [--into=PATH] [--jobs=N] [--verify=copied|full|none] [--overwrite] "
	    "[--json]",
	    "copy a tree into a store, verified; run again, it goes on",
	    "Through the mount of the store when there is one, else through one of its own. What is there already\n"
	    "with the same size, mode, owner and time is done; what is there and differs is a conflict.\n"
	    "\n"
	    "  --into=PATH       below this directory of the store; made when it is missing\n"
	    "  --jobs=N          copies so many files at once (default 8, at most 64)\n"
	    "  --verify=copied   reads back what was copied, past the kernel's cache (default)\n"
	    "  --verify=full     and what was there already: both sides are read\n"
	    "  --verify=none     reads nothing back\n"
	    "  --overwrite       replaces files that are there and differ\n"
	    "\n"
	    "Exit code 1: something was not copied, and was named; 5 or 6: the store locked meanwhile; 7: what was\n"
	    "read back is not what was copied.\n" },
	{ "help", cmd_help, "[VERB | byokfs.ini]", "explain a verb, or print every configuration key", "" },
	{ "version", cmd_version, "", "print the version", "" },
	{ NULL, NULL, NULL, NULL, NULL },
};

const struct cmd *cmd_find(const char *name)
{
	for (const struct cmd *c = cmd_table; c->name; c++)
		if (strcmp(c->name, name) == 0)
			return c;
	return NULL;
}

static void overview(FILE *f)
{
	(void)fputs("usage: byokfsctl VERB [options] ...\n\n", f);
	for (const struct cmd *c = cmd_table; c->name; c++)
		(void)fprintf(f, "  %-8s %s\n", c->name, c->summary);
	(void)fputs(
	    "\n'byokfsctl help VERB' explains a verb; 'byokfsctl help byokfs.ini' prints every configuration key.\n"
	    "exit codes: 0 ok, 1 failed, 2 usage, 3 configuration or credentials, 4 not a store, 5 denied by the KMS,\n"
	    "6 KMS not reached, 7 damage, 8 no such mount, 9 already done or in progress\n",
	    f);
}

void cmd_usage(FILE *f, const struct cmd *c)
{
	(void)fprintf(f, "usage: byokfsctl %s%s%s\n", c->name, *c->usage ? " " : "", c->usage);
}

int cmd_help(int argc, char **argv)
{
	const struct cmd *c = argc > 1 ? cmd_find(argv[1]) : NULL;

	if (argc > 2) {
		cmd_error("one argument too many: '%s'", argv[2]);
		return EXIT_USAGE;
	}
	if (argc > 1 && strcmp(argv[1], "byokfs.ini") == 0) {
		config_describe(stdout);
	} else if (argc > 1 && !c) {
		cmd_error("unknown verb '%s'", argv[1]);
		return EXIT_USAGE;
	} else if (c) {
		cmd_usage(stdout, c);
		(void)printf("\n%c%s.\n%s", c->summary[0] - 'a' + 'A', c->summary + 1, c->help);
	} else {
		overview(stdout);
	}
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

int cmd_version(int argc, char **argv)
{
	if (argc > 1) {
		cmd_error("one argument too many: '%s'", argv[1]);
		return EXIT_USAGE;
	}
	return printf("byokfsctl " BYOKFS_VERSION ", format version 1\n") > 0 && fflush(stdout) == 0 ? EXIT_OK
	                                                                                             : EXIT_FAILED;
}

int main(int argc, char **argv)
{
	static char help[] = "help", version[] = "version";
	const struct cmd *c;

	log_setup("byokfsctl", LOG_LEVEL_WARN, false);
	if (argc < 2) {
		overview(stderr);
		return EXIT_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
		argv[1] = help;
	else if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)
		argv[1] = version;
	c = cmd_find(argv[1]);
	if (!c) {
		cmd_error("unknown verb '%s'", argv[1]);
		cmd_hint("'byokfsctl help' lists the verbs");
		return EXIT_USAGE;
	}
	if (secret_init(false) < 0)
		return EXIT_FAILED;
	int code = c->run(argc - 1, argv + 1);

	cmd_audit_end();
	return code;
}
