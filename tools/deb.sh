#!/bin/sh
# Builds the Debian packages of the last commit into BUILD/deb: `make deb`. What differs from one build to the next (version,
# maintainer, date) is filled in here; all else is tools/debian. DEB_MAINTAINER="Name <mail>" names who built it.
set -eu
build=$1
cd "$(dirname "$0")/.."
dir=$build/deb
version=$(git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/') || version=
[ -n "$version" ] || version=1.0.0~git$(git log -1 --format=%cd.%h --date=format:%Y%m%d 2>/dev/null || date -u +%Y%m%d)
maintainer=${DEB_MAINTAINER:-byokfs developers <byokfs@users.noreply.github.com>}

rm -rf "$dir"
mkdir -p "$dir/byokfs"
git archive HEAD 2>/dev/null | tar -x -C "$dir/byokfs" 2>/dev/null ||
	tar -c --exclude='./build*' --exclude=./.git . | tar -x -C "$dir/byokfs"
cp -a "$dir/byokfs/tools/debian" "$dir/byokfs/debian"
cd "$dir/byokfs"
sed -i "s|@MAINTAINER@|$maintainer|" debian/control
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
