#!/bin/sh
# Builds the Debian packages of the last commit into BUILD/deb: `make deb`. What differs from one build to the next (version,
# maintainer, date) is filled in here; all else is tools/debian. DEB_MAINTAINER="Name <mail>" names who built it.
set -eu
build=${1:?the build directory}
# The caller's objects and settings are not the packages'.
unset BUILD SAN OPT WERROR MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL
cd "$(dirname "$0")/.."
dir=$build/deb
version=
day=$(date -u +%Y%m%d)
maintainer=${DEB_MAINTAINER:-byokfs developers <byokfs@users.noreply.github.com>}

rm -rf "$dir"
mkdir -p "$dir/byokfs"
if below=$(git rev-parse --show-prefix 2>/dev/null) && [ -z "$below" ]; then
	[ -z "$(git status --porcelain -uno)" ] || echo "deb.sh: warning: changes that are not committed are not in the packages" >&2
	version=$(git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/')
	day=$(git log -1 --format=%cd.%h --date=format:%Y%m%d)
	git archive -o "$dir/byokfs.tar" HEAD
else # a tree without git, or in somebody else's
	echo "deb.sh: no repository of this user's here: the packages are of the tree as it is" >&2
	tar -c -f "$dir/byokfs.tar" --exclude='./build*' --exclude=./.git --exclude="./${build#"$PWD"/}" .
fi
tar -x -f "$dir/byokfs.tar" -C "$dir/byokfs"
rm "$dir/byokfs.tar"
version=${version:-1.0.0~git$day}
cp -a "$dir/byokfs/tools/debian" "$dir/byokfs/debian"
cd "$dir/byokfs"
sed -i "s|@MAINTAINER@|$(printf %s "$maintainer" | sed 's/[&|\\]/\\&/g')|" debian/control
sed -n '5,$p' LICENSE | sed 's/^$/./; s/^/ /' >debian/licence
sed -i -e '/@LICENSE@/{r debian/licence' -e 'd}' debian/copyright
rm debian/licence
cat >debian/changelog <<END
byokfs ($version-1) UNRELEASED; urgency=medium

  * Built from its repository; CHANGELOG.md says what is new.

 -- $maintainer  $(date -R)
END
dpkg-buildpackage -b -uc -us >../build.log 2>&1 || {
	tail -40 ../build.log >&2
	exit 1
}
cd ..
rm -rf byokfs
ls "$PWD"/*.deb
