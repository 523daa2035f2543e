#!/bin/sh
# make try / make untry: a store of your own over a local KMS, in try/ below the source tree.
# try/plain is the mount, try/store the ciphertext, try/kms the state of byokfs-devkms, try/byokfs.ini the configuration.
set -eu

verb=$1
build=$(cd "$2" && pwd)
top=$(cd "$(dirname "$0")/.." && pwd)
dir=$top/try
plain=$dir/plain

mounted() { grep -qs " $plain fuse.byokfs " /proc/mounts; }

unmount() {
	if mounted; then
		if [ "$(id -u)" = 0 ]; then umount "$plain"; else fusermount3 -u "$plain"; fi
	fi
}

stop_kms() {
	[ -f "$dir/kms.pid" ] || return 0
	pid=$(cat "$dir/kms.pid")
	if grep -qs devkms "/proc/$pid/cmdline"; then
		kill "$pid"
		while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
	fi
	rm -f "$dir/kms.pid"
}

start() {
	if mounted; then
		echo "already mounted at try/plain; 'make untry' takes it down" >&2
		exit 9
	fi
	stop_kms
	mkdir -p "$plain" "$dir/kms"
	rm -f "$dir/kms.port"
	"$build/byokfs-devkms" --state "$dir/kms" --port 0 --port-file "$dir/kms.port" --create-key >"$dir/kms.log" 2>&1 &
	echo $! >"$dir/kms.pid"
	n=0
	while [ ! -s "$dir/kms.port" ]; do
		n=$((n + 1))
		if [ $n -gt 100 ]; then
			cat "$dir/kms.log" >&2
			exit 1
		fi
		sleep 0.1
	done
	endpoint=http://127.0.0.1:$(cat "$dir/kms.port")
	export AWS_ACCESS_KEY_ID=AKIADEVKMS0000000000 AWS_SECRET_ACCESS_KEY=devkms-secret-not-for-production
	unset AWS_SESSION_TOKEN AWS_PROFILE AWS_ENDPOINT_URL AWS_ENDPOINT_URL_KMS 2>/dev/null || true
	key=$(grep -o 'arn:aws:kms:[^ ]*' "$dir/kms.log" | head -n 1)
	cat >"$dir/byokfs.ini" <<INI
[kms]
provider = aws
key = $key
endpoint = $endpoint

[cache]
probe = 1s
lease = 3s
INI
	if [ ! -d "$dir/store" ]; then
		mkdir "$dir/store"
		"$build/byokfsctl" init -c "$dir/byokfs.ini" "$dir/store" >"$dir/init.log"
	fi
	"$build/byokfs" -c "$dir/byokfs.ini" "$dir/store" "$plain"
	rel=${build#"$top"/}
	cat <<TEXT
write a file:        echo hello > try/plain/hello.txt && cat try/plain/hello.txt
see the ciphertext:  ls -R try/store
disable the key:     $rel/byokfs-devkms disable --endpoint $endpoint; sleep 2; cat try/plain/hello.txt
enable it again:     $rel/byokfs-devkms enable --endpoint $endpoint; sleep 3; cat try/plain/hello.txt
unmount, clean up:   make untry
TEXT
}

case $verb in
start) start ;;
stop)
	unmount
	stop_kms
	rm -rf "$dir"
	;;
*)
	echo "usage: try.sh start|stop BUILD" >&2
	exit 2
	;;
esac
