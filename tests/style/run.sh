#!/bin/sh
# All style checks: seconds, no build. Run in the top directory.
set -u
bad=0
sh tests/style/deps.sh || bad=1
sh tests/style/forbid.sh || bad=1
/usr/bin/python3 -B tests/style/length.py || bad=1
for page in docs/*.[158]; do
	if command -v mandoc >/dev/null; then
		mandoc -Tlint -Wwarning "$page" || bad=1
	fi
done
# A developer's tree may hold new files; what a build and its tests leave behind is CI's question.
if [ -n "${CI:-}" ]; then
	sh tests/style/untracked.sh || bad=1
fi
exit $bad
