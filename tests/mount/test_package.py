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
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    run("sh", "tools/deb.sh", str(build), cwd=TOP, env=env)
    return sorted(glob.glob(f"{build}/deb/*.deb")), glob.glob(f"{build}/deb/*.changes")[0]


@pytest.fixture
def installed(packages):
    assert not shutil.which("byokfs"), "byokfs is installed on this machine: its package would be replaced"
    debs = [p for p in packages[0] if "dbgsym" not in p]
    assert [re.sub("_.*", "", os.path.basename(p)) for p in debs] == ["byokfs-devkms", "byokfs"]
    try:
        run("dpkg", "-i", *debs)
        yield debs
    finally:
        subprocess.run(["dpkg", "--purge", "byokfs", "byokfs-devkms"], capture_output=True)


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
        subprocess.run(["umount", point], capture_output=True)
    wait_until(lambda: not os.path.ismount(point))
    run("dpkg", "--purge", "byokfs", "byokfs-devkms")
    assert traces() == []
