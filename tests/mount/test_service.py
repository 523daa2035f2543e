"""Under systemd: readiness, state, reloads, and proof of life, as sd_notify(3) tells them; the log as the journal takes it."""
import os
import shutil
import signal
import socket
import stat
import subprocess

import pytest

from conftest import BYOKFS, Mount, wait_until
from faults import FreezableDisk, put
from programs import Systemd, background, terminate


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    s = Systemd(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", s.name)
    yield s
    s.close()


def put_ini(store, text):
    with open(store.ini, "w") as f:
        f.write(text)


def until(systemd, wanted):
    """Messages up to the one that is, or satisfies, what is wanted."""
    heard = []
    while not heard or not (wanted(heard[-1]) if callable(wanted) else heard[-1] == wanted):
        heard.append(systemd.hear())
        assert len(heard) < 200, heard
    return heard


@pytest.mark.sanitizer
def test_state(store, systemd, devkms):
    store.mount()
    assert systemd.hear() == "READY=1\nSTATUS=open"
    store.ctl("lock", store.plain, check=True)
    assert until(systemd, "STATUS=locked: locked by the administrator")
    store.ctl("unlock", store.plain, check=True)
    assert until(systemd, "STATUS=open")
    devkms.disable()
    assert until(systemd, lambda m: m.startswith("STATUS=locked: KMS said DisabledException"))
    devkms.enable()
    assert until(systemd, "STATUS=open")
    terminate(store)
    assert systemd.hear() == "STOPPING=1"


def test_state_of_nested_domains(store, systemd, devkms):
    store.mount()
    other = devkms.client.create_key()["KeyMetadata"]["Arn"]
    os.mkdir(store.path("n"))
    store.ctl("domain", "add", store.path("n"), "--key", other, check=True)
    devkms.disable(other)
    until(systemd, "STATUS=open; 1 of 2 key domains are open")
    devkms.enable(other)
    until(systemd, "STATUS=open")


def test_locked_start(store, systemd, devkms):
    """Ready although locked; the state says why."""
    devkms.disable()
    store.mount("locked_start", check=False)
    first = systemd.hear()
    assert first.startswith("READY=1\nSTATUS=locked: KMS said DisabledException"), first
    devkms.enable()
    until(systemd, "STATUS=open")


@pytest.mark.parametrize("how", ["signal", "verb"])
def test_reload(store, systemd, how):
    store.mount()
    systemd.hear()

    def once():
        if how == "signal":
            store.process.send_signal(signal.SIGHUP)
        else:
            store.ctl("reload", store.plain)
        begin, end = systemd.hear(), systemd.hear()
        assert begin.startswith("RELOADING=1\nMONOTONIC_USEC=") and int(begin.rsplit("=", 1)[1]) > 0, begin
        assert end == "READY=1\nSTATUS=open"

    once()
    with open(store.ini, "a") as f:
        f.write("nonsense\n")
    once()  # a service that keeps its configuration is ready too


# ---- WATCHDOG=1

@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "300000")


def pats(systemd, n):
    for _ in range(n):
        until(systemd, "WATCHDOG=1")


def test_alive_when_idle_and_without_a_kms(store, systemd, watched, devkms):
    store.mount()
    put(store.path("a"), b"x")
    pats(systemd, 5)
    devkms.fault(hang=True)
    wait_until(lambda: store.state() == "locked")
    pats(systemd, 5)
    devkms.clear()
    wait_until(lambda: store.state() == "open")
    pats(systemd, 5)


def test_alive_while_a_reload_waits_for_the_kms(store, systemd, watched, devkms):
    """The name of a key is looked up by a KMS that hangs: neither the proof of life nor SIGTERM waits for it."""
    with open(store.ini) as f:
        text = f.read()
    put_ini(store, text.replace("request_timeout = 2s", "request_timeout = 5s"))
    devkms.client.create_alias(AliasName="alias/other", TargetKeyId=devkms.key)
    store.mount()
    systemd.hear()
    put_ini(store, text.replace(f"key = {devkms.key}", "key = alias/other\nregion = us-east-1"))
    devkms.fault(hang=True)
    store.process.send_signal(signal.SIGHUP)
    until(systemd, lambda m: m.startswith("RELOADING=1"))
    heard = until(systemd, lambda m: m.startswith("READY=1"))
    assert heard.count("WATCHDOG=1") >= 5, heard
    devkms.clear()


def test_no_proof_for_somebody_else(store, systemd, monkeypatch):
    """WATCHDOG_PID names the process that is watched; nothing is sent where nothing is asked for."""
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    store.mount()
    assert systemd.hear() == "READY=1\nSTATUS=open"
    store.ctl("lock", store.plain, check=True)
    heard = until(systemd, lambda m: m.startswith("STATUS=locked"))
    assert "WATCHDOG=1" not in heard


def threads_in_storage(pid):
    """Threads of a process in uninterruptible sleep."""
    n = 0
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/stat") as f:
            n += f.read().rsplit(")", 1)[1].split()[0] == "D"
    return n


def answers(m, begun):
    """Is a thread free to answer a request that needs no storage? The one who asks is left behind when not."""
    asks = subprocess.Popen(["stat", "-f", m.plain], stdout=subprocess.DEVNULL)
    try:
        return asks.wait(0.3) == 0
    except subprocess.TimeoutExpired:
        begun.append(asks)
        return False


def test_alive_while_the_storage_hangs(tmp_path, shared_devkms, systemd, watched):
    """Every thread that serves requests waits for a frozen disk: killing the daemon would lose what it holds."""
    writers = []
    with FreezableDisk(tmp_path, mib=64) as disk:
        m = Mount(disk.base(), shared_devkms)
        try:
            m.mount()
            for i in range(8):
                os.mkdir(m.path(str(i)))
            disk.freeze()
            for i in range(8):
                writers.append(subprocess.Popen(["mkdir", m.path(str(i), "new")]))
            wait_until(lambda: threads_in_storage(m.process.pid) >= 1)
            wait_until(lambda: not answers(m, writers))
            pats(systemd, 10)
            assert threads_in_storage(m.process.pid) >= 1 and not answers(m, writers)
            disk.thaw()
            assert not any(w.wait(30) for w in writers)
            pats(systemd, 3)
            m.umount()
        finally:
            disk.thaw()
            for w in writers:
                w.wait(30)
            m.close()


# ---- the journal

def test_journal(store, monkeypatch):
    """Priorities before lines when stderr is the journal's stream, and only then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        st = os.fstat(theirs.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{st.st_dev}:{st.st_ino}")
        args = [BYOKFS, "-f", "-c", store.ini, store.cipher, store.plain]
        store.process = subprocess.Popen(args, stderr=theirs, env=store.environment())
        wait_until(store.mounted)
        os.listdir(store.plain)
        store.ctl("lock", store.plain, check=True)
        store.umount()
        theirs.close()
        lines = b"".join(iter(lambda: ours.recv(65536), b"")).decode().splitlines()
    assert any(line.startswith("<6>byokfs: mounted ") for line in lines), lines
    assert any(line.startswith("<4>byokfs: locked: ") for line in lines), lines
    assert all(line[0] == "<" and line[1] in "34567" and line[2:].startswith(">byokfs: ") for line in lines), lines
    store.mount()
    assert "byokfs: mounted" in store.read_log() and "<6>" not in store.read_log()


# ---- the unit

UNIT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "systemd", "byokfs@.service")
NAMESPACE = {"PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "PrivateIPC", "ProtectSystem", "ProtectHome", "ProtectProc",
             "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProcSubset", "MountFlags",
             "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "BindPaths", "BindReadOnlyPaths",
             "TemporaryFileSystem", "RootDirectory", "RootImage", "MountImages", "ExtensionImages", "DynamicUser", "LogNamespace"}
BREAKS = {"ProtectClock", "DevicePolicy", "DeviceAllow", "RestrictSUIDSGID", "MemoryDenyWriteExecute", "NoNewPrivileges", "StandardError"}


def directives():
    with open(UNIT) as f:
        return dict(line.strip().split("=", 1) for line in f if "=" in line and not line.startswith("#"))


def test_unit_keeps_the_mount_visible():
    """Nothing that makes a mount namespace, nor what else the daemon or what lies in a mount cannot do without."""
    unit = directives()
    assert not NAMESPACE & set(unit) and not BREAKS & set(unit)
    assert unit["Type"] == "notify" and int(unit["WatchdogSec"]) >= 30 and unit["KillMode"] == "process"
    assert unit["LimitCORE"] == "0" and unit["WatchdogSignal"] == "SIGKILL"


def test_unit_verifies(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    build = os.path.dirname(os.path.abspath(BYOKFS))
    with open(UNIT) as f:
        text = f.read().replace("/usr/local/sbin", build).replace("Documentation=man:byokfs(8)\n", "")
    (tmp_path / "byokfs@.service").write_text(text)
    (tmp_path / "byokfs.target").write_text("[Unit]\nDescription=t\n")
    r = subprocess.run(["systemd-analyze", "verify", "./byokfs@data.service"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                       env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"})
    assert r.returncode == 0 and "byokfs" not in r.stderr, r


def test_with_the_capabilities_of_the_unit(tmp_path, shared_devkms):
    """Every kind of object, owner and mode, and a mount that stops as it should."""
    keep = ",".join("+" + c.removeprefix("CAP_").lower() for c in directives()["CapabilityBoundingSet"].split())
    m = Mount(tmp_path / "m", shared_devkms)
    wrapper = tmp_path / "byokfs"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-all,{keep} {os.path.abspath(BYOKFS)} "$@"\n')
    wrapper.chmod(0o755)
    try:
        with background(m, program=str(wrapper)) as (r, pid):
            assert r.code == 0, r
            with open(f"/proc/{pid}/status") as f:
                assert "CapBnd:\t000001ffffffffff" not in f.read()
            p = m.path("file")
            put(p, b"x" * 5000)
            os.chown(p, 1234, 2345)
            os.chmod(p, 0o6755)
            os.mknod(m.path("null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            os.mkfifo(m.path("fifo"))
            os.symlink("file", m.path("link"))
            os.link(p, m.path("hard"))
            os.setxattr(p, "trusted.t", b"1")
            os.setxattr(p, "user.u", b"2")
            os.mkdir(m.path("d"), 0o700)
            os.chown(m.path("d"), 1234, 2345)
            put(m.path("d", "inside"), b"y")
            subprocess.run(["setpriv", "--reuid=1234", "--regid=2345", "--clear-groups", "sh", "-c", "echo theirs > mine"],
                           cwd=m.path("d"), check=True)
            assert os.stat(m.path("d", "mine")).st_uid == 1234 and stat.S_IMODE(os.stat(p).st_mode) == 0o6755
            m.ctl("lock", m.plain, check=True)
            m.ctl("unlock", m.plain, check=True)
            assert os.stat(m.path("null")).st_rdev == os.makedev(1, 3) and os.getxattr(p, "trusted.t") == b"1"
    finally:
        m.close()
