#!/bin/sh
# After a build and the tests the work tree holds nothing that git neither tracks nor ignores.
set -eu
git rev-parse --is-inside-work-tree >/dev/null 2>&1 || { echo "untracked: not a git work tree, skipped"; exit 0; }
left=$(git status --porcelain --untracked-files=all | grep '^??' || true)
if [ -n "$left" ]; then
	printf '%s\n' "$left" | sed 's/^?? \(.*\)/\1:1: neither tracked nor ignored/'
	exit 1
fi
echo "untracked: none"
