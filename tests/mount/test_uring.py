"""mount.transport = io_uring: what only that transport can get wrong. That everything else works over it too is shown by the tests marked "ring"."""
import ctypes
import errno
import fcntl
import os
import signal
import struct
import subprocess
import threading
import time

import pytest

from conftest import BYOKFS, LIBC, URING_PARAMETER, wait_until
from faults import Child, err, get, pattern, put, say

DATA = pattern(5, 300 * 1024)
PARKED = int(os.environ.get("BYOKFS_PARKED", "200"))


def transport(mount):
    return mount.status()["transport"]


def warnings(mount):
    return [line for line in mount.read_log().splitlines() if "no io_uring" in line]


# ---- which transport it is

def test_status_says_so(ring, mount):
    assert transport(mount) == "io_uring" and warnings(mount) == []
    assert "transport         io_uring" in mount.ctl("status", mount.plain).stdout
    assert 'transport="io_uring"' in mount.ctl("status", "--prometheus", mount.plain).stdout
    put(mount.path("f"), DATA)
    assert get(mount.path("f")) == DATA


def test_the_default_is_the_device(store):
    store.mount()
    assert transport(store) == "fuse" and warnings(store) == []


def test_in_the_background(ring, store):
    """The rings are made by the process that stays."""
    subprocess.run([BYOKFS, "-c", store.ini, "-o", "mount.transport=io_uring", store.cipher, store.plain], check=True,
                   env=store.environment(), timeout=30)
    try:
        assert transport(store) == "io_uring"
        put(store.path("f"), DATA)
        assert get(store.path("f")) == DATA
    finally:
        pid = store.status()["pid"]
        subprocess.run(["umount", store.plain], check=True, timeout=60)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat").read().split()[2] == "Z")


# ---- falling back

@pytest.fixture
def forbidden(ring_alone):
    with open(URING_PARAMETER, "r+") as f:
        before = f.read().strip()
        f.write("N")
    yield
    with open(URING_PARAMETER, "w") as f:
        f.write(before)


def falls_back(mount, why):
    assert transport(mount) == "fuse"
    lines = warnings(mount)
    assert len(lines) == 1 and why in lines[0], mount.read_log()
    put(mount.path("f"), DATA)
    assert get(mount.path("f")) == DATA
    mount.umount()


def test_the_kernel_may_not(forbidden, store):
    store.mount("mount.transport=io_uring")
    falls_back(store, "'echo Y > /sys/module/fuse/parameters/enable_uring' before mounting")
    os.unlink(store.log)
    store.mount("mount.transport=auto")
    assert transport(store) == "fuse" and warnings(store) == []


def test_auto_takes_the_ring(ring, store):
    store.transport = "auto"
    store.mount()
    assert transport(store) == "io_uring"


def refuse(number, code):
    """To be run in a child: from now on this system call fails."""
    # if the number is in A: return ERRNO; else ALLOW
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | code), (0x06, 0, 0, 0x7fff0000)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *c) for c in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
    if LIBC.prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER: root needs no more
        os._exit(99)


@pytest.mark.parametrize("code,why", [(errno.EPERM, "kernel.io_uring_disabled"), (errno.ENOSYS, "has no io_uring"),
                                      (errno.ENOMEM, "Cannot allocate memory")])
@pytest.mark.parametrize("call", ["setup", "enter"])
def test_io_uring_is_refused(ring, store, monkeypatch, call, code, why):
    """By a sandbox, the administrator, or for lack of memory; and when the kernel has already agreed."""
    popen = subprocess.Popen
    number = {"setup": 425, "enter": 426}[call]
    monkeypatch.setattr(subprocess, "Popen", lambda args, **kw: popen(
        args, **kw, preexec_fn=(lambda: refuse(number, code)) if args[0] == BYOKFS else None))
    store.mount()
    monkeypatch.undo()
    falls_back(store, why)


# ---- requests that wait

@pytest.fixture
def cold(ring, make_mount, devkms):
    """A mount with many files whose keys have to be asked for, and one whose key is there."""
    m = make_mount("cold", devkms, ini=f"[kms]\nprovider = aws\nkey = {devkms.key}\nendpoint = {devkms.endpoint}\nrequest_timeout = 10s\n"
                   "[cache]\nprobe = 30s\nlease = 60s\nread_ahead = 0\n").mount()
    for i in range(PARKED):
        put(m.path(f"f{i}"), DATA[:5000 + i], sync=False)
    put(m.path("hot"), DATA)
    m.remount()
    return m


def on_cpu(cpu, fn):
    def run():
        os.sched_setaffinity(0, {cpu})  # of this thread
        fn()
    return threading.Thread(target=run)


def test_many_wait_for_keys_and_nobody_else_does(cold, devkms):
    """All of one CPU, so that one queue has them all: many times the requests it has entries for."""
    fd = os.open(cold.path("hot"), os.O_RDWR)
    assert os.pread(fd, len(DATA), 0) == DATA
    cpu = min(os.sched_getaffinity(0))
    wrong = []

    def reader(i):
        def run():
            try:
                if get(cold.path(f"f{i}")) != DATA[:5000 + i]:
                    wrong.append(i)
            except OSError as e:
                wrong.append((i, e))
        return run

    devkms.fault(operations=["Decrypt"], hang=True)
    threads = [on_cpu(cpu, reader(i)) for i in range(PARKED)]
    for t in threads:
        t.start()
    try:
        # Every one of them has reached the daemon: none is left behind in a queue.
        wait_until(lambda: cold.status()["counters"]["waiting"] >= PARKED, 15)
        done = []

        def others():
            for _ in range(20):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(fd, len(DATA), 0) == DATA
                os.pwrite(fd, DATA[:4096], 0)
                os.fsync(fd)
                assert len(os.listdir(cold.plain)) == PARKED + 1
                os.stat(cold.path("f1"))
            done.append(True)

        t = on_cpu(cpu, others)
        begin = time.monotonic()
        t.start()
        t.join(20)
        say(f"20 rounds of operations beside {PARKED} requests that wait for the KMS: {time.monotonic() - begin:.2f} s")
        assert done and cold.status()["counters"]["waiting"] >= PARKED
    finally:
        devkms.clear()
        for t in threads:
            t.join(60)
        os.close(fd)
    # Those whose call hung are refused or answered by a second try; nobody got wrong bytes, nobody hangs.
    assert not any(t.is_alive() for t in threads)
    assert all(isinstance(w, tuple) and w[1].errno == errno.EIO for w in wrong), wrong
    for i in range(PARKED):
        assert get(cold.path(f"f{i}")) == DATA[:5000 + i]


def test_a_burst_is_not_left_in_the_queue(cold, devkms):
    """All entries of a queue are parked at once, while more requests are in it that the kernel would pass on only when one is answered."""
    burst = 60
    for i in range(burst):
        os.stat(cold.path(f"f{i}"))  # so that what waits is the open
    cpu = min(os.sched_getaffinity(0))
    done = []
    devkms.fault(operations=["Decrypt"], hang=True)
    cold.process.send_signal(signal.SIGSTOP)
    try:
        threads = [on_cpu(cpu, lambda i=i: done.append((i, err(get, cold.path(f"f{i}"))))) for i in range(burst)]
        threads.append(on_cpu(cpu, lambda: done.append(os.statvfs(cold.plain).f_namemax)))
        for t in threads:
            t.start()
        wait_until(lambda: all(b"fuse" in wchan(t.native_id) or b"request_wait" in wchan(t.native_id) for t in threads))
    finally:
        cold.process.send_signal(signal.SIGCONT)
    try:
        wait_until(lambda: done, 5)
        assert done == [255]
        wait_until(lambda: cold.status()["counters"]["waiting"] >= burst, 5)
    finally:
        devkms.clear()
        for t in threads:
            t.join(60)
    assert len(done) == burst + 1


def wchan(tid):
    """Where in the kernel a thread of ours sleeps."""
    with open(f"/proc/self/task/{tid}/wchan", "rb") as f:
        return f.read()


def test_many_wait_for_a_lock(ring, make_mount, devkms):
    m = make_mount("shared", devkms).mount("mount.shared=yes")
    for name in ("f", "other"):
        put(m.path(name), b"x")
    fd = os.open(m.path("f"), os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)

    def waiter(tell):
        with open(m.path("f"), "r+b") as f:
            tell("asks")
            fcntl.lockf(f, fcntl.LOCK_EX)
            tell("has it")

    children = [Child(waiter) for _ in range(40)]
    for _ in range(20):
        assert get(m.path("other")) == b"x"
        assert len(os.listdir(m.plain)) == 2
    # One is killed: an interrupt on the device for a request of the ring.
    time.sleep(0.2)
    os.kill(children[0].pid, signal.SIGKILL)
    assert children[0].wait() == -signal.SIGKILL
    assert children[1].running()
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert [c.wait(60) for c in children[1:]] == [0] * 39
    assert all(c.lines()[-1] == "has it" for c in children[1:])
    os.close(fd)
    m.umount()


# ---- the end

def writer(path):
    def run(tell):
        with open(path, "wb", buffering=0) as f:
            tell("ready")
            while True:
                f.write(DATA)
                os.fsync(f.fileno())
                f.seek(0)
    return run


@pytest.mark.parametrize("how", ["kill", "term", "lazy"])
def test_it_ends_in_mid_write(ring, store, how):
    store.mount()
    children = [Child(writer(store.path(f"w{i}"))) for i in range(4)]
    wait_until(lambda: all(os.path.exists(store.path(f"w{i}")) for i in range(4)))
    if how == "kill":
        store.kill()
        store.clear_dead()
    elif how == "term":
        store.process.send_signal(signal.SIGTERM)
        assert store.process.wait(30) == 0
        store.process = None
    else:
        subprocess.run(["umount", "-l", store.plain], check=True)
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
        assert store.process.wait(30) == 0
        store.process = None
    for child in children:
        assert child.wait(30) != 0
    store.mount()
    for i in range(4):
        assert get(store.path(f"w{i}")) in (b"", DATA) or how == "kill"


def test_keys_that_never_come_do_not_keep_it(cold, devkms):
    """An unmount by force while requests are parked: they are answered, the daemon ends."""
    devkms.fault(operations=["Decrypt"], hang=True)
    children = [Child(lambda tell, i=i: tell(str(err(get, cold.path(f"f{i}"))))) for i in range(30)]
    wait_until(lambda: cold.status()["counters"]["waiting"] >= 30)
    cold.process.send_signal(signal.SIGTERM)
    assert cold.process.wait(40) == 0
    cold.process = None
    assert [c.wait(30) for c in children] == [0] * 30
    assert all(int(c.lines()[0]) != 0 for c in children)
    devkms.clear()
    cold.mount()
    assert get(cold.path("f3")) == DATA[:5003]


# ---- what it leaves in memory

def test_no_plaintext_stays_in_the_rings(ring, store):
    """What was read and written is not in the daemon's memory once it rests."""
    store.mount()
    secret = b"a needle that nobody else has %d\n" % os.getpid()
    put(store.path("f"), secret * 4000)
    fd = os.open(store.path("f"), os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, len(secret), 0) == secret
    # The next request would overwrite it. What the daemon itself keeps of an open file goes with the keys.
    assert store.ctl("lock", store.plain).returncode == 0
    assert found(store.process.pid, secret) == 0
    os.close(fd)
    assert store.ctl("unlock", store.plain).returncode == 0
    assert get(store.path("f")) == secret * 4000


def found(pid, needle):
    """How often this stands in the anonymous memory of a process."""
    n = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in maps:
            where, mode = line.split()[:2]
            first, last = (int(x, 16) for x in where.split("-"))
            if mode[:2] != "rw" or "[v" in line:
                continue
            for at in range(first, last, 1 << 20):
                try:
                    mem.seek(at)
                    n += mem.read(min(1 << 20, last - at)).count(needle)
                except OSError:
                    pass
    return n
