# bash completion for byokfsctl(8)

_byokfsctl_mounts() {
	awk '$3 == "fuse.byokfs" { print $2 }' /proc/self/mounts 2>/dev/null
}

_byokfsctl() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb=${COMP_WORDS[1]} words=
	COMPREPLY=()
	if ((COMP_CWORD == 1)); then
		mapfile -t COMPREPLY < <(compgen -W 'init info test policy status lock unlock reload domain check keys rotate history audit import help version' -- "$cur")
		return
	fi
	case $prev in
	-c | --config)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	-o)
		words=$(byokfsctl help byokfs.ini 2>/dev/null | awk '/^\[/ { s = substr($1, 2, length($1) - 2) } /^;/ { print s "." substr($1, 2) "=" }')
		compopt -o nospace
		mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
		return
		;;
	esac
	case $verb in
	init) words='-c -o --seal=file --seal=domain --names=siv64 --names=siv32 --names=plain --plain-names --suite=1 --suite=2 --json' ;;
	test) words='-c -o --json' ;;
	policy)
		words='-c -o --host --rotator --admin --no-root --external-id --account --key --only=key --only=host --only=rotator --only=trust --terraform'
		;;
	rotate)
		words='-c -o --to --from --domain --jobs --rate --patience --dry-run --same-key --through-host --json'
		;;
	info | reload | history) words=--json ;;
	status) words='--json --prometheus --watch --watch=' ;;
	check) words='--data --repair -c -o --jobs --json' ;;
	keys) words='--needs --key --alert --max-age --descriptors --instances --jobs -c -o --json' ;;
	lock | unlock) words=--domain= ;;
	domain) words='--key --seal=file --seal=domain --json' ;;
	audit) words='--anchor= --json' ;;
	import) words='-c -o --into= --jobs= --verify=copied --verify=full --verify=none --overwrite --json' ;;
	help) words='init info test policy status lock unlock reload domain check keys rotate history audit import version byokfs.ini' ;;
	esac
	if [[ $verb == audit && $COMP_CWORD -eq 2 ]]; then
		mapfile -t COMPREPLY < <(compgen -W verify -- "$cur")
	elif [[ $verb == domain && $COMP_CWORD -eq 2 ]]; then
		mapfile -t COMPREPLY < <(compgen -W 'add list' -- "$cur")
	elif [[ $verb == audit && $cur != -* ]]; then
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
	elif [[ $cur == -* || $verb == help ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
	elif [[ $verb == status || $verb == lock || $verb == unlock || $verb == reload ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_byokfsctl_mounts)" -- "$cur")
	else
		mapfile -t COMPREPLY < <(compgen -d -- "$cur")
	fi
}
complete -F _byokfsctl byokfsctl
