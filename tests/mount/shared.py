"""Several hosts on one store, as far as one machine can play them: each is a mount with a daemon of its own, and the
locks between daemons are the backing's."""
import os
import subprocess
import sys

from conftest import Mount


class Host(Mount):
    """One more mount of a store. cipher: its directory, as this host reaches it."""

    def __init__(self, base, kms, cipher, options=("mount.shared=yes",), **kw):
        os.makedirs(base, exist_ok=True)
        os.symlink(cipher, os.path.join(base, "cipher"))
        super().__init__(base, kms, options=options, **kw)


def pair(base, kms, cipher=None, ways=None, **kw):
    """Two hosts, mounted. ways: the two ways to the store's directory."""
    ways = ways or [cipher or os.path.join(base, "store")] * 2
    os.makedirs(ways[0], exist_ok=True)
    hosts = [Host(os.path.join(base, name), kms, way, **kw) for name, way in zip("ab", ways)]
    try:
        for host in hosts:
            host.mount()
    except BaseException:
        for host in hosts:
            host.close()
        raise
    return hosts


class Actor:
    """A process of an application: runs the Python given and answers line by line."""

    def __init__(self, code, *args):
        self.process = subprocess.Popen([sys.executable, "-uc", code, *map(str, args)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self):
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, line):
        self.say(line)
        return self.hear()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


LOCKER = r"""
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for line in sys.stdin:
    how, what = line.split()[:2]
    rest = [int(x) for x in line.split()[2:]] or [0, 0]
    kind = {"sh": fcntl.LOCK_SH, "ex": fcntl.LOCK_EX, "un": fcntl.LOCK_UN}[what.rstrip("!")]
    flags = kind if what.endswith("!") or what == "un" else kind | fcntl.LOCK_NB
    try:
        if how == "flock":
            fcntl.flock(fd, flags)
        elif how == "fcntl":
            fcntl.lockf(fd, flags, rest[1], rest[0])
        elif how == "ofd":
            t = {"sh": fcntl.F_RDLCK, "ex": fcntl.F_WRLCK, "un": fcntl.F_UNLCK}[what]
            fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", t, 0, rest[0], rest[1], 0))
        elif how == "get":
            t = {"sh": fcntl.F_RDLCK, "ex": fcntl.F_WRLCK}[what]
            got = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", t, 0, rest[0], rest[1], 0)))
            print({fcntl.F_UNLCK: "free", fcntl.F_RDLCK: "sh", fcntl.F_WRLCK: "ex"}[got[0]], got[2], got[3])
            continue
        elif how == "reopen":
            os.close(os.open(sys.argv[1], os.O_RDONLY))
        elif how == "close":
            os.close(fd)
            fd = os.open(sys.argv[1], os.O_RDWR)
        print("ok")
    except BlockingIOError:
        print("busy")
    except OSError as e:
        print(os.strerror(e.errno))
"""

# Appends records of one writer: "<writer> <number> <filler>\n", whole.
APPENDER = r"""
import os, sys
path, writer, count, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for n in range(count):
    head = f"{writer} {n} "
    record = (head + "x" * (size + n * 37 % 61 - len(head)) + "\n").encode()
    assert os.write(fd, record) == len(record)
os.close(fd)
"""


def append_from(hosts, name, writers, count, size):
    """Every host appends with that many processes; then each record is there, whole, once, and a writer's in order."""
    processes = [subprocess.Popen([sys.executable, "-c", APPENDER, host.path(name), f"{h}.{w}", str(count), str(size)])
                 for h, host in enumerate(hosts) for w in range(writers)]
    try:
        for p in processes:
            assert p.wait(120) == 0
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
                p.wait()
    for host in hosts:
        with open(host.path(name)) as f:
            check_records(f.read(), len(hosts) * writers, count, size)


def check_records(text, writers, count, size):
    seen = {}
    for line in text.splitlines():
        writer, number, filler = line.split(" ")
        assert int(number) == seen.get(writer, -1) + 1, "lost, doubled or out of order"
        assert set(filler) <= {"x"} and len(line) == max(size + int(number) * 37 % 61, len(f"{writer} {number} "))
        seen[writer] = int(number)
    assert len(seen) == writers and set(seen.values()) == {count - 1}
