"""fstab and mount(8), as at boot: the helper stands where it is installed, in a mount namespace of the test's own."""
import errno
import os
import subprocess
import time

import pytest

from conftest import BYOKFS, CTL, NAMESPACE, Mount, wait_until
from programs import ALREADY, CONFIG, DENIED, NOT_A_STORE, UNREACHABLE, USAGE, markers, run, said


class Host:
    """A mount namespace with byokfs installed: /sbin/mount.byokfs, byokfs on the path, and a file for -T."""

    def __init__(self, base):
        self.base = str(base)
        sbin = os.path.join(self.base, "sbin")
        os.mkdir(sbin)
        for name in ("mount.byokfs", "byokfs"):
            os.symlink(os.path.abspath(BYOKFS), os.path.join(sbin, name))
        self.fstab = os.path.join(self.base, "fstab")
        self.stores = []
        self.process = subprocess.Popen(
            [*NAMESPACE, "sh", "-c", f"mount -t overlay -o lowerdir={sbin}:/usr/sbin overlay /usr/sbin && echo ready && exec sleep 3600"],
            stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def run(self, *args, **kw):
        return run("nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", "--", *args, **kw)

    def write(self, *lines):
        with open(self.fstab, "w") as f:
            f.write("".join(line + "\n" for line in lines))

    def mount(self, *args, **kw):
        return self.run("mount", "-T", self.fstab, *args, **kw)

    def fs(self, at):
        """Type, source and options of what is mounted there, or None."""
        r = self.run("findmnt", "-rno", "FSTYPE,SOURCE,OPTIONS", at)
        return r.out.split() if r.code == 0 else None

    def umount(self, at):
        r = self.run("umount", at)
        assert r.code == 0, r

    def close(self):
        for m in self.stores:
            while self.fs(m.plain):
                self.run("umount", "-l", m.plain)
            wait_until(lambda m=m: not markers(m), 30)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def host(tmp_path):
    h = Host(tmp_path)
    yield h
    h.close()


@pytest.fixture
def store(host, tmp_path, devkms):
    m = Mount(tmp_path, devkms)
    host.stores.append(m)
    return m


@pytest.mark.parametrize("kind", ["byokfs", "fuse.byokfs"])
def test_fstab(host, store, kind):
    """Both types; by mount point, by source, and all; what only mount(8) and systemd care about is no mistake."""
    options = f"config={store.ini},rw,nosuid,nodev,noatime,_netdev,nofail,noauto,x-systemd.automount,x-byokfs.note=1,comment=hi"
    host.write(f"{store.cipher} {store.plain} {kind} {options} 0 0")
    for what in (store.plain, store.cipher):
        r = host.mount(what)
        assert (r.code, r.err) == (0, ""), r
        mounted_as, source, flags = host.fs(store.plain)
        assert (mounted_as, source) == ("fuse.byokfs", store.cipher)
        assert {"rw", "nosuid", "nodev", "noatime"} <= set(flags.split(","))
        assert host.run("sh", "-c", f"echo hi > {store.plain}/a && cat {store.plain}/a").out == "hi\n"
        host.umount(store.plain)
        wait_until(lambda: host.run(CTL, "status", store.plain).code == 8)
    assert host.mount("-a", "-t", kind).code == 0 and host.fs(store.plain) is None, "noauto"
    host.write(f"{store.cipher} {store.plain} {kind} config={store.ini},ro 0 0")
    assert host.mount("-a", "-t", kind).code == 0
    assert "ro" in host.fs(store.plain)[2].split(",")
    r = host.run("touch", f"{store.plain}/b")
    assert r.code and os.strerror(errno.EROFS) in r.err, r
    r = host.run("umount", "-i", store.plain)
    assert r.code == 0, r


def test_flags_of_the_helper(host, store):
    """-f mounts nothing, -v says more but fails no more, -s passes over what nobody knows (autofs always says it)."""
    host.write(f"{store.cipher} {store.plain} byokfs config={store.ini} 0 0")
    assert host.mount("-f", store.plain).code == 0 and host.fs(store.plain) is None
    said(host.mount("-o", "nonsense", store.plain), USAGE, "'nonsense'")
    assert host.mount("-v", "-n", "-s", "-o", "nonsense,vers=3", store.plain).code == 0 and host.fs(store.plain)
    host.umount(store.plain)
    # A wrong setting is a mistake all the same: it may have been about the lease.
    said(host.mount("-s", "-o", "cache.lese=1s", store.plain), CONFIG, "cache.lese")
    assert host.fs(store.plain) is None


def test_remount_is_refused(host, store):
    host.write(f"{store.cipher} {store.plain} byokfs config={store.ini} 0 0")
    assert host.mount(store.plain).code == 0
    said(host.run("mount", "-t", "byokfs", "-o", f"remount,ro,config={store.ini}", store.cipher, store.plain), USAGE, "unmount it")
    said(host.run("mount", "-o", "remount,ro", store.plain), USAGE, "unmount it")
    assert "rw" in host.fs(store.plain)[2].split(",")
    assert host.run("touch", f"{store.plain}/still").code == 0
    said(host.run("mount", "-t", "byokfs", "-o", f"config={store.ini}", store.cipher, "/mnt"), ALREADY, store.cipher)


def test_another_namespace(host, store):
    """mount -N: the mount appears there, and only there."""
    other = subprocess.Popen(["nsenter", f"--mount=/proc/{host.process.pid}/ns/mnt", *NAMESPACE, "sh", "-c", "echo ready; exec sleep 3600"],
                             stdout=subprocess.PIPE, text=True)

    def there(*args):
        return run("nsenter", f"--mount=/proc/{other.pid}/ns/mnt", "--", *args)

    try:
        assert other.stdout.readline() == "ready\n"
        r = host.run("mount", "-N", str(other.pid), "-t", "byokfs", "-o", f"config={store.ini}", store.cipher, store.plain)
        assert r.code == 0, r
        assert host.fs(store.plain) is None
        assert there("findmnt", "-no", "FSTYPE", store.plain).out == "fuse.byokfs\n"
    finally:
        while there("umount", "-l", store.plain).code == 0:
            pass
        other.kill()
        other.communicate()


# ---- boot

def test_boot_without_a_kms(host, store, devkms):
    """With locked_start the host comes up, and the mount opens when the KMS does; without it the exit code says why."""
    devkms.stop()
    host.write(f"{store.cipher} {store.plain} byokfs config={store.ini},_netdev,kms.request_timeout=300ms 0 0")
    said(host.mount(store.plain), UNREACHABLE, "locked_start")
    assert host.mount("-a").code != 0 and host.fs(store.plain) is None
    host.write(f"{store.cipher} {store.plain} byokfs config={store.ini},_netdev,locked_start,kms.request_timeout=300ms 0 0")
    assert host.mount("-a").code == 0
    r = host.run("ls", store.plain + "/.")
    assert r.code and os.strerror(errno.EIO) in r.err, r
    assert host.run("df", store.plain).code == 0, "df answers while it is locked"
    devkms.start()
    wait_until(lambda: host.run("ls", store.plain + "/.").code == 0)
    assert host.run("touch", f"{store.plain}/a").code == 0


def test_boot_with_a_disabled_key(host, store, devkms):
    devkms.disable()
    host.write(f"{store.cipher} {store.plain} byokfs config={store.ini} 0 0")
    said(host.mount(store.plain), DENIED, "DisabledException")
    devkms.enable()


def test_nofail(host, store, tmp_path):
    """nofail is about what is not there; mount(8) keeps it to itself."""
    host.write(f"{store.cipher} {store.plain} byokfs config={store.ini},nofail 0 0",
               f"{tmp_path}/gone {tmp_path}/nowhere byokfs config={store.ini},nofail 0 0")
    begun = time.monotonic()
    host.mount("-a")
    assert host.fs(store.plain), "the other line is mounted"
    assert time.monotonic() - begun < 60
    said(host.run("mount", "-t", "byokfs", tmp_path / "gone", tmp_path), NOT_A_STORE, "gone")


def test_by_an_ordinary_user(host, store, tmp_path):
    """The option user: mount(8) gives up root before it calls the helper, which mounts through fusermount3."""
    if not os.path.exists("/usr/bin/fusermount3"):
        pytest.skip("no fusermount3")
    host.write(f"{store.cipher} {store.plain} byokfs config={store.ini},user,noauto 0 0")
    subprocess.run(["chown", "-R", "nobody", store.base], check=True)
    script = f"""mount --bind {host.fstab} /etc/fstab && mkdir -p {tmp_path}/dev && mount -t tmpfs none {tmp_path}/dev &&
        mknod -m 666 {tmp_path}/dev/fuse c 10 229 && mount --bind {tmp_path}/dev/fuse /dev/fuse"""
    r = host.run("sh", "-c", script)
    assert r.code == 0, r
    reachable = [p for p in tmp_path.parents if not p.stat().st_mode & 1]
    for p in [*reachable, tmp_path]:
        p.chmod(p.stat().st_mode | 0o11)
    try:
        r = host.run("setpriv", "--reuid", "nobody", "--clear-groups", "sh", "-c",
                     f"mount {store.plain} && echo hi > {store.plain}/a && cat {store.plain}/a && umount {store.plain}",
                     env={"HOME": store.base, "XDG_RUNTIME_DIR": store.base})
        assert r.code == 0 and r.out == "hi\n", r
    finally:
        wait_until(lambda: not markers(store), 30)  # the daemon has ended
        for p in reachable:
            p.chmod(p.stat().st_mode & ~0o11)
        subprocess.run(["chown", "-R", "root", store.base], check=True)
