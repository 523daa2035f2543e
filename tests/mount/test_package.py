"""The Debian package: built, clean for lintian, installed, mounted through fstab, removed, purged. Needs root, and a machine without byokfs."""
import glob
import os
import re
import shutil
import subprocess

import pytest

from conftest import BUILD, environment, wait_until

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/usr/share/doc", "/usr/share/man", "/lib/systemd/system", "/etc/byokfs",
               "/usr/share/bash-completion/completions", "/usr/share/zsh/vendor-completions")


def run(*argv, code=0, **kw):
    p = subprocess.run(argv, capture_output=True, text=True, env=kw.pop("env", environment()), timeout=300, **kw)
    assert p.returncode == code, f"{argv}: {p.returncode}\n{p.stdout}{p.stderr}"
    return p.stdout


def traces():
    found = []
    for top in DIRECTORIES:
        for where, dirs, files in os.walk(top):
            found += [os.path.join(where, n) for n in dirs + files if "byokfs" in n]
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory, whole_machine):
    if os.geteuid() != 0 or not shutil.which("lintian"):
        pytest.skip("packages are installed by root only, and judged by lintian")
    build = tmp_path_factory.mktemp("deb")
    run("sh", "tools/deb.sh", str(build), cwd=TOP, env={**os.environ, "MAKEFLAGS": f" -- BUILD={build}/other", "BUILD": f"{build}/more"})
    assert sorted(os.listdir(build)) == ["deb"], "built with the caller's settings"
    return sorted(glob.glob(f"{build}/deb/*.deb")), glob.glob(f"{build}/deb/*.changes")[0]


def purge(note):
    subprocess.run(["dpkg", "--purge", "byokfs", "byokfs-devkms"], capture_output=True)
    note.truncate(0)


@pytest.fixture
def installed(packages, whole_machine):
    whole_machine.seek(0)
    if whole_machine.read():
        purge(whole_machine)
    assert not shutil.which("byokfs"), "byokfs is installed on this machine: its package would be replaced"
    debs = [p for p in packages[0] if "dbgsym" not in p]
    assert [re.sub("_.*", "", os.path.basename(p)) for p in debs] == ["byokfs-devkms", "byokfs"]
    print("packages are installed", file=whole_machine, flush=True)
    try:
        run("dpkg", "-i", *debs)
        yield debs
    finally:
        purge(whole_machine)


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository; what would build the packages keeps what it would be given."""
    os.makedirs(tmp_path / "bin")
    with open(tmp_path / "bin/dpkg-buildpackage", "w") as f:
        f.write(f"#!/bin/sh\ncp -a . {tmp_path}/given && touch ../a.deb\n")
    os.chmod(tmp_path / "bin/dpkg-buildpackage", 0o755)
    top = tmp_path / "outer/tree"
    os.makedirs(top)
    for name in ("tools", "LICENSE", "README.md"):
        run("cp", "-a", f"{TOP}/{name}", str(top))
    return top


def source(tree, build, **env):
    """What deb.sh says on stderr, the changelog of its packages, and what is in their source."""
    given = tree.parent.parent / "given"
    shutil.rmtree(given, ignore_errors=True)
    p = subprocess.run(["sh", f"{tree}/tools/deb.sh", build], env={**os.environ, "PATH": f"{tree.parent.parent}/bin:{os.environ['PATH']}", **env},
                       capture_output=True, text=True, timeout=60)
    assert p.returncode == 0 and p.stdout.endswith("/deb/a.deb\n"), p
    return p.stderr, open(given / "debian/changelog").read(), given


def git(where, *argv):
    run("git", "-C", str(where), "-c", "user.name=n", "-c", "user.email=m", "-c", "commit.gpgsign=false", *argv)


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_sources_of_the_package(tree):
    """The last commit, or the tree when it is not a repository: then not what it is built into, nor another's version."""
    outer = tree.parent
    git(outer, "init", "-q")
    git(outer, "commit", "-q", "--allow-empty", "-m", "other")
    git(outer, "tag", "v9.9")
    err, log, given = source(tree, "out", DEB_MAINTAINER="A & B | C <a@b.c>")
    assert err == "deb.sh: no repository of this user's here: the packages are of the tree as it is\n" and log.startswith("byokfs (1.0.0~git2") and " -- A & B | C <a@b.c>  " in log
    assert "\nMaintainer: A & B | C <a@b.c>\n" in open(given / "debian/control").read()
    assert sorted(os.listdir(given)) == ["LICENSE", "README.md", "debian", "tools"]

    git(tree, "init", "-q")
    git(tree, "add", "tools", "LICENSE")
    git(tree, "commit", "-q", "-m", "first")
    git(tree, "tag", "v1.2.0")
    err, log, given = source(tree, str(tree / "build"))
    assert not err and log.startswith("byokfs (1.2.0-1) ") and "README.md" not in os.listdir(given)
    with open(tree / "LICENSE", "a") as f:
        f.write("changed\n")
    err, log, given = source(tree, "build")
    assert err == "deb.sh: warning: changes that are not committed are not in the packages\n"
    assert "changed" not in open(given / "LICENSE").read()
    git(tree, "commit", "-q", "-a", "-m", "second")
    err, log, given = source(tree, "build")
    assert not err and log.startswith("byokfs (1.2.0+1.g") and "changed" in open(given / "LICENSE").read()


def test_package_is_clean_for_lintian(packages):
    out = subprocess.run(["lintian", "--fail-on", "error,warning", packages[1]], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout
    assert not re.search("^[EW]:", out.stdout, re.M)


def test_installed_mounted_through_fstab_and_removed(installed, devkms, tmp_path):
    for name in ("byokfs", "byokfsctl", "byokfs-devkms"):
        assert shutil.which(name)
    assert os.path.realpath("/sbin/mount.byokfs") == "/usr/sbin/byokfs"
    for unit in ("byokfs@.service", "byokfs.target", "byokfs-keyage.service", "byokfs-keyage.timer"):
        text = open(f"/lib/systemd/system/{unit}").read()
        assert "/usr/local" not in text
    for page in ("8 byokfs", "8 mount.byokfs", "8 byokfsctl", "5 byokfs.ini", "5 byokfs-format", "5 byokfs-audit", "1 byokfs-devkms"):
        section, name = page.split()
        assert os.path.exists(f"/usr/share/man/man{section}/{name}.{section}.gz")
    words = run("bash", "-c", ". /usr/share/bash-completion/completions/byokfsctl; COMP_WORDS=(byokfsctl stat); COMP_CWORD=1; _byokfsctl; echo ${COMPREPLY[@]}")
    assert words == "status\n"

    ini, store, point, fstab = (str(tmp_path / n) for n in ("byokfs.ini", "cipher", "plain", "fstab"))
    with open(ini, "w") as f:
        f.write(f"[kms]\nkey = {devkms.key}\nendpoint = {devkms.endpoint}\n")
    os.mkdir(store)
    os.mkdir(point)
    run("byokfsctl", "init", "-c", ini, store)
    with open(fstab, "w") as f:
        f.write(f"{store} {point} byokfs _netdev,nofail,noauto,nosuid,nodev,config={ini} 0 0\n")
    try:
        run("mount", "--fstab", fstab, point)
        with open(f"{point}/file", "w") as f:
            f.write("kept")
        assert run("findmnt", "-n", "-o", "FSTYPE", point).strip() == "fuse.byokfs"
        run("umount", point)
        assert not os.listdir(point)
        run("mount", "--fstab", fstab, point)
        assert open(f"{point}/file").read() == "kept"
        # The daemon goes on when its package goes.
        run("dpkg", "--remove", "byokfs")
        assert not shutil.which("byokfs")
        assert open(f"{point}/file").read() == "kept"
    finally:
        if os.path.ismount(point):
            subprocess.run(["umount", "-l", point], capture_output=True)
    wait_until(lambda: not os.path.ismount(point))
    run("dpkg", "--purge", "byokfs", "byokfs-devkms")
    assert traces() == []
