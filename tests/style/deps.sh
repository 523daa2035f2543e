#!/bin/sh
# Include direction. Three tables: which layer a module is in, who may see which library, who may see which private header.
# A file may include headers of its own layer and of those below. Run in the top directory; prints file:line and exits 1.
set -eu
if [ ! -d include ] || [ ! -d src ]; then
	echo "deps.sh: run me in the top directory" >&2
	exit 2
fi

awk '
function layer_of(file,   name, best, bestlen, m) {
	name = file; sub(/.*\//, "", name); sub(/\.[ch]$/, "", name)
	best = -1; bestlen = 0
	for (m in layer)
		if ((name == m || index(name, m "_") == 1) && length(m) > bestlen) { best = layer[m]; bestlen = length(m) }
	return best
}
function complain(what) { printf "%s:%d: %s\n", FILENAME, FNR, what; bad = 1 }
function place(n, names,   i, list, k) { k = split(names, list, " "); for (i = 1; i <= k; i++) layer[list[i]] = n }
function may(header, files) { allowed[header] = "^(" files ")$" }

BEGIN {
	# base, format (pure), keys, files, FUSE, configuration and control, programs
	place(0, "cleanup bytes bulk io log secret jsonio exitcode histogram fdpool")
	place(1, "layout context hmac kdf block header name descriptor acl keyage job")
	place(2, "sigv4 http awsclock stsxml awscred kms seal audit lease")
	place(3, "dir store file inode xattr newborn reslot")
	place(4, "fuseio fs lane domain ops state reseal purge keywait keyahead sweep watchdog alive uring")
	place(5, "config ctl")
	place(6, "control service options params pathcheck notify main")

	may("fuse_lowlevel.h", "include/fs.h|src/(ops.*|fuseio.*|purge|main|options)\\.[ch]")
	may("curl/curl.h", "src/http(_.*)?\\.[ch]")
	may("ini.h", "src/config\\.c")
	may("expat.h", "src/stsxml\\.c")
	may("microhttpd.h", "tools/devkms.*\\.c")
	may("jansson.h", "include/(jsonio|ctl)\\.h|src/secret\\.c|src/control\\.h|tools/.*")
	may("sodium.h", "src/(block_aead|bytes|ctl|descriptor_text|lease_key_table|name|name_xattr|secret|store_copies|audit_line|audit_check)\\.c|" \
	    "tools/(check_entry|cmd_init|devkms_.*|import_file)\\.c")
	may("p11-kit/pkcs11.h", "src/kms_pkcs11.*\\.[ch]")
	may("openssl/", "src/(block_internal|hmac|kdf|kms_open|kms_keyfile|name_siv|secret|sigv4)\\.[ch]|tools/devkms_(vault_)?crypto\\.c")

	# Private headers belong to the files of their module; these are shared by a neighbour on purpose.
	neighbour["lease_key_internal.h"] = "^src/lease(_.*)?\\.[ch]$"
	neighbour["dir_internal.h"] = "^src/(store_create|store_marker|xattr)\\.c$"
}

/^[ \t]*#[ \t]*include[ \t]*</ {
	h = $0; sub(/.*</, "", h); sub(/>.*/, "", h)
	key = index(h, "openssl/") == 1 ? "openssl/" : h
	if (key in allowed && FILENAME !~ allowed[key])
		complain("<" h "> is not for this file")
	next
}
/^[ \t]*#[ \t]*include[ \t]*"/ {
	h = $0; sub(/[^"]*"/, "", h); sub(/".*/, "", h)
	if (FILENAME ~ /^tools\//)
		next
	own = layer_of(FILENAME); its = layer_of(h)
	if (own < 0) complain("a module that no layer names: add it to deps.sh")
	else if (its < 0) complain("\"" h "\" is of a module that no layer names: add it to deps.sh")
	else if (its > own) complain("\"" h "\" (layer " its ") from layer " own)
	else if (own == 3 && its == 2) complain("\"" h "\": files know no key service")
	if (h == "config.h" && own < 6 && FILENAME !~ /^src\/config/) complain("\"config.h\": modules take their own parameters")
	if (h ~ /_internal\.h$/) {
		owner = h; sub(/_internal\.h$/, "", owner)
		base = FILENAME; sub(/.*\//, "", base)
		if (index(base, owner) != 1 && !(h in neighbour && FILENAME ~ neighbour[h]))
			complain("\"" h "\" is private to " owner)
	}
}
END { exit bad }
' include/*.h src/*.[ch] tools/*.[ch] && echo "deps: include directions hold"
