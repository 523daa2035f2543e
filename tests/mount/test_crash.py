"""kill -9 of the daemon at any instant: every byte that fsync acknowledged, every size, every name.

Each round runs four workloads at once, kills the daemon in the middle, mounts again and compares with a model. A workload is a
sequence of operations that both the worker and the model generate from the same seed; the worker only logs how many were acknowledged, so
at most one operation is in flight. BYOKFS_KILLS sets the number of rounds."""
import copy
import errno
import os
import random
import stat
import time

import pytest

from faults import GONE, Child, get, put, say

PAGE, BODY = 4096, 4064
KILLS = int(os.environ.get("BYOKFS_KILLS", "200"))


class Wrong(AssertionError):
    pass


def check(condition, what):
    if not condition:
        raise Wrong(what)


def whole(n, data):
    """A write that was cut short by the daemon's end was not acknowledged."""
    if n != len(data):
        raise OSError(errno.EIO, "short write")


class Workload:
    """prepare() once; then for each round: work() in the worker, verify() after the kill with the number of acknowledged operations."""

    def __init__(self, base, name):
        self.dir = os.path.join(base, name)
        self.rng = random.Random(name)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def prepare(self):
        os.mkdir(self.dir)

    def run(self, seed, done):
        """In the worker."""
        rng = random.Random(seed)
        while True:
            self.perform(self.next(rng))
            done()

    def verify(self, seed, acked):
        rng = random.Random(seed)
        for _ in range(acked):
            self.apply(self.next(rng))
        self.compare(self.next(rng))


class Append(Workload):
    """1 to 200 bytes and fsync, again and again, across every size at which the layout changes."""
    STARTS = (0, 1400, 3900, 4000, 8100, 16200, 450_400)

    def prepare(self):
        super().prepare()
        self.files = {}
        self.number = 0
        self.left = 0

    def next(self, rng):
        if self.left == 0:
            start = rng.choice(self.STARTS)
            return self.number + 1, rng.randbytes(start + rng.randint(1, 200)), rng.randint(5, 40)
        return self.number, rng.randbytes(rng.randint(1, 200)), self.left - 1

    def perform(self, op):
        number, data, left = op
        fd = os.open(self.path(str(number)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        whole(os.write(fd, data), data)
        os.fsync(fd)
        os.close(fd)
        self.apply(op)

    def apply(self, op):
        self.number, data, self.left = op
        self.files[self.number] = self.files.get(self.number, b"") + data

    def compare(self, op):
        number, data, _ = op
        names = {int(name) for name in os.listdir(self.dir)}
        sizes = {n: os.stat(self.path(str(n))).st_size for n in names}
        check(names in (set(self.files), set(self.files) | {number}), f"files {names}")
        for n in names:
            want = self.files.get(n, b"")
            more = data if n == number else b""
            got = get(self.path(str(n)))
            check(len(got) == sizes[n], f"append {n}: stat said {sizes[n]}, read gives {len(got)}")
            check(len(want) <= len(got) and got == (want + more)[:len(got)],
                  f"append {n}: {len(want)} bytes acknowledged, {len(got)} found, first difference at {differ(got, want + more)}")
            self.files[n] = got
        if number in names and number != self.number:
            self.number, self.left = number, 3
        for n in sorted(names)[:-4]:
            os.unlink(self.path(str(n)))
            del self.files[n]


def differ(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


class Overwrite(Workload):
    """100 bytes and fsync anywhere in a file of 256 KiB."""
    SIZE = 256 * 1024

    def prepare(self):
        super().prepare()
        self.data = bytearray(self.rng.randbytes(self.SIZE))
        put(self.path("f"), self.data)

    def run(self, seed, done):
        self.fd = os.open(self.path("f"), os.O_RDWR)
        super().run(seed, done)

    def next(self, rng):
        page = rng.randrange(self.SIZE // PAGE)
        off = page * PAGE + (rng.randint(3950, 4095) if rng.random() < 0.5 else rng.randrange(PAGE))
        return min(off, self.SIZE - 100), rng.randbytes(100)

    def perform(self, op):
        whole(os.pwrite(self.fd, op[1], op[0]), op[1])
        os.fsync(self.fd)

    def apply(self, op):
        self.data[op[0]:op[0] + 100] = op[1]

    def compare(self, op):
        size = os.stat(self.path("f")).st_size
        got = get(self.path("f"))
        check(size == len(got) == self.SIZE, f"overwrite: stat {size}, read {len(got)}")
        after = copy.copy(self.data)
        after[op[0]:op[0] + 100] = op[1]
        for at in range(0, self.SIZE, PAGE):
            page, old, new = got[at:at + PAGE], self.data[at:at + PAGE], after[at:at + PAGE]
            if page not in (old, new):
                check(page == new[:BODY] + old[BODY:], f"overwrite: page {at // PAGE} is neither old nor new, in flight {op[0]}")
        self.data = bytearray(got)


class Bulk(Workload):
    """128 KiB and 1 MiB overwrites of a file that was fsynced, all of it once, then fsync, and again. Every page is old or new or new up
    to 4064. (Within one round no page is written twice: the kernel may hand a page over while the next write(2) is changing it.)"""
    PAGES = 1024

    @staticmethod
    def page(version, number):
        return (version.to_bytes(8, "little") + number.to_bytes(8, "little")) * (PAGE // 16)

    def prepare(self):
        super().prepare()
        self.versions = [[0] for _ in range(self.PAGES)]
        self.version = 0
        self.todo = []
        put(self.path("f"), b"".join(self.page(0, k) for k in range(self.PAGES)))

    def run(self, seed, done):
        self.fd = os.open(self.path("f"), os.O_RDWR)
        super().run(seed, done)

    def next(self, rng):
        if not self.todo:
            self.todo, at = [None], 0
            while at < self.PAGES:
                n = min(rng.choice((32, 256)), self.PAGES - at)
                self.todo.append((at, n))
                at += n
            writes = self.todo[1:]
            rng.shuffle(writes)
            self.todo = [None, *writes]
        return self.todo[-1]

    def perform(self, op):
        if op is None:
            os.fsync(self.fd)
        else:
            first, n = op
            data = b"".join(self.page(self.version + 1, k) for k in range(first, first + n))
            whole(os.pwrite(self.fd, data, first * PAGE), data)
        self.apply(op)

    def apply(self, op):
        self.todo.pop()
        if op is None:
            self.versions = [v[-1:] for v in self.versions]
            return
        self.version += 1
        for k in range(op[0], op[0] + op[1]):
            self.versions[k].append(self.version)

    def compare(self, op):
        if op is not None:
            self.apply(op)
        self.todo = []
        size = os.stat(self.path("f")).st_size
        got = get(self.path("f"))
        check(size == len(got) == self.PAGES * PAGE, f"bulk: stat {size}, read {len(got)}")
        for k in range(self.PAGES):
            page = got[k * PAGE:(k + 1) * PAGE]
            body, tail = int.from_bytes(page[:8], "little"), int.from_bytes(page[BODY:BODY + 8], "little")
            known = self.versions[k]
            check(page == self.page(body, k)[:BODY] + self.page(tail, k)[BODY:] and (body, tail) in splits(known),
                  f"bulk: wrong bytes in page {k}: {runs(page)}, known {known}")
            self.versions[k] = [(body, tail)] if body != tail else [body]


def splits(known):
    """What may be in a page: each version, or a later body with an earlier tail. The first may be a mixture already."""
    pairs = [v if type(v) is tuple else (v, v) for v in known]
    return {(b[0], t[1]) for i, t in enumerate(pairs) for b in pairs[i:]}


def runs(page):
    """What a page consists of, for the message: offset of each change and (version, page)."""
    out, last = [], None
    for at in range(0, PAGE, 16):
        record = (int.from_bytes(page[at:at + 8], "little"), int.from_bytes(page[at + 8:at + 16], "little"))
        if record != last:
            out.append((at, *record))
            last = record
    return out[:20]


class Names(Workload):
    """create, mkdir, rename, unlink, rmdir, link, symlink, truncate, punch: before or after, never between."""

    def prepare(self):
        super().prepare()
        self.tree = {}  # path -> bytes of a file, None of a directory, str of a symlink

    def pick(self, rng, kind):
        return rng.choice([p for p in sorted(self.tree) if isinstance(self.tree[p], kind)] or [None])

    def new_name(self, rng):
        parent = self.pick(rng, type(None)) if rng.random() < 0.6 else None
        name = f"{rng.randrange(40)}" * rng.choice((1, 1, 1, 90))
        return os.path.join(parent, name) if parent and parent.count("/") < 3 else name

    def next(self, rng):
        while True:
            op = getattr(self, "op_" + rng.choice(("create", "create", "mkdir", "rename", "rename", "unlink", "rmdir", "symlink",
                                                  "truncate", "truncate", "punch")))(rng)
            if op:
                return op

    def op_create(self, rng):
        path = self.new_name(rng)
        return None if path in self.tree or len(self.tree) > 60 else ("create", path, rng.randbytes(rng.choice((0, 10, 1504, 1505, 5000, 20000))))

    def op_mkdir(self, rng):
        path = self.new_name(rng)
        return None if path in self.tree or len(self.tree) > 60 else ("mkdir", path)

    def op_symlink(self, rng):
        path = self.new_name(rng)
        return None if path in self.tree or len(self.tree) > 60 else ("symlink", path, "t" * rng.randint(1, 300))

    def op_rename(self, rng):
        path, to = self.pick(rng, (bytes, type(None), str)), self.new_name(rng)
        if path is None or path == to or (to + "/").startswith(path + "/"):
            return None
        if to in self.tree and not (isinstance(self.tree[path], bytes) and isinstance(self.tree[to], bytes)):
            return None
        return "rename", path, to

    def op_unlink(self, rng):
        path = self.pick(rng, (bytes, str))
        return ("unlink", path) if path and rng.random() < 0.5 else None

    def op_rmdir(self, rng):
        path = self.pick(rng, type(None))
        return ("rmdir", path) if path and not any(p.startswith(path + "/") for p in self.tree) else None

    def op_truncate(self, rng):
        path = self.pick(rng, bytes)
        return ("truncate", path, rng.choice((0, 1, 1504, 1505, 4064, 4096, 9000, 16385, 30000))) if path else None

    def op_punch(self, rng):
        path = self.pick(rng, bytes)
        size = len(self.tree[path]) if path else 0
        return ("punch", path, rng.randrange(size), rng.randint(1, size)) if size > 5 else None

    def perform(self, op):
        kind, path = op[0], self.path(op[1])
        if kind == "create":
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            whole(os.write(fd, op[2]), op[2])
            os.fsync(fd)
            os.close(fd)
        elif kind == "mkdir":
            os.mkdir(path)
        elif kind == "symlink":
            os.symlink(op[2], path)
        elif kind == "rename":
            os.rename(path, self.path(op[2]))
        elif kind == "unlink":
            os.unlink(path)
        elif kind == "rmdir":
            os.rmdir(path)
        elif kind == "truncate":
            os.truncate(path, op[2])
        else:
            fd = os.open(path, os.O_RDWR)
            punch(fd, op[2], op[3])
            os.fsync(fd)
            os.close(fd)
        self.apply(op)

    def apply(self, op):
        self.tree = applied(self.tree, op)

    def compare(self, op):
        sizes, found = {}, {}
        for base, dirs, files in os.walk(self.dir):
            for name in dirs + files:
                full = os.path.join(base, name)
                rel = os.path.relpath(full, self.dir)
                st = os.lstat(full)
                if stat.S_ISREG(st.st_mode):
                    sizes[rel] = st.st_size
                found[rel] = None if stat.S_ISDIR(st.st_mode) else os.readlink(full) if stat.S_ISLNK(st.st_mode) else b""
        for rel, size in sizes.items():
            found[rel] = get(self.path(rel))
            check(len(found[rel]) == size, f"names: {rel}: stat {size}, read {len(found[rel])}")
        after = applied(self.tree, op)
        if found not in (self.tree, after):
            check(between(self.tree, after, found, op), f"names: in flight {op[:2]}, different: "
                  f"{[(p[:40], brief(self.tree.get(p, 0)), brief(found.get(p, 0))) for p in set(self.tree) | set(found) if self.tree.get(p, 0) != found.get(p, 0)]}")
        self.tree = found


def brief(x):
    return f"{len(x)} bytes" if isinstance(x, bytes) else x


def punch(fd, off, length):
    from conftest import LIBC
    import ctypes
    if LIBC.fallocate(fd, 3, ctypes.c_int64(off), ctypes.c_int64(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def applied(tree, op):
    tree = dict(tree)
    kind, path = op[0], op[1]
    if kind == "create":
        tree[path] = op[2]
    elif kind == "mkdir":
        tree[path] = None
    elif kind == "symlink":
        tree[path] = op[2]
    elif kind == "rename":
        for p in [p for p in tree if p == path or p.startswith(path + "/")]:
            tree[op[2] + p[len(path):]] = tree.pop(p)
    elif kind in ("unlink", "rmdir"):
        del tree[path]
    elif kind == "truncate":
        tree[path] = tree[path][:op[2]].ljust(op[2], b"\0")
    else:
        end = min(op[2] + op[3], len(tree[path]))
        tree[path] = tree[path][:op[2]] + bytes(end - op[2]) + tree[path][end:]
    return tree


def between(before, after, found, op):
    """What a kill may leave of an operation that is not one step: a created file without all of its data, a punch page by page."""
    path = op[1]
    rest = {p: v for p, v in found.items() if p != path}
    if op[0] not in ("create", "punch") or rest != {p: v for p, v in after.items() if p != path} or path not in found:
        return False
    if op[0] == "create":
        return after[path].startswith(found[path])
    old, new, got = before[path], after[path], found[path]
    parts = [(at, min(at + n, len(old))) for k in range(0, len(old), PAGE) for at, n in ((k, BODY), (k + BODY, 32))]
    return len(got) == len(old) and all(got[a:b] in (old[a:b], new[a:b]) for a, b in parts)


class Worker:
    """A forked process that runs a workload until the filesystem dies under it; how far it came is in a file outside of the mount."""

    def __init__(self, load, seed, log):
        self.load, self.seed, self.log = load, seed, log
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        self.child = Child(lambda tell: self.run(tell, fd))
        os.close(fd)

    def run(self, tell, fd):
        try:
            self.load.run(self.seed, lambda: os.write(fd, b"."))
        except OSError as e:
            tell(f"errno {e.errno}")

    def acked(self):
        code, lines = self.child.wait(20), self.child.lines()
        check(code == 0 and len(lines) == 1 and int(lines[0].split()[1]) in GONE, f"{type(self.load).__name__}: {lines}")
        return os.path.getsize(self.log)


def kills(store, tmp_path, n, seed):
    rng = random.Random(seed)
    mount = store.mount()
    loads = [kind(mount.plain, kind.__name__) for kind in (Append, Overwrite, Names, Bulk)]
    for load in loads:
        load.prepare()
    done = dict.fromkeys((type(load).__name__ for load in loads), 0)
    begin = time.monotonic()
    for kill in range(n):
        workers = [Worker(load, rng.random(), str(tmp_path / f"log{i}")) for i, load in enumerate(loads)]
        time.sleep(rng.choice((0.01, 0.05, 0.15)) * rng.random() + 0.01)
        mount.kill()
        acked = [w.acked() for w in workers]
        mount.clear_dead()
        if kill % 10 == 9 or kill == n - 1:
            r = mount.ctl("check", mount.cipher)
            assert r.returncode == 0, r.stdout + r.stderr
        mount.mount()
        for worker, count in zip(workers, acked):
            try:
                worker.load.verify(worker.seed, count)
            except (Wrong, OSError) as e:
                raise AssertionError(f"kill {kill}, {count} operations acknowledged: {e}\n{mount.read_log()[-3000:]}") from e
            done[type(worker.load).__name__] += count
    say(f"{n} kills in {time.monotonic() - begin:.0f} s, acknowledged operations: {done}")
    mount.remount()
    for load in loads:
        load.verify(0, 0)
    assert "does not authenticate" not in mount.read_log()
    return done


def test_kill_minus_nine(store, tmp_path):
    done = kills(store, tmp_path, KILLS, 1)
    assert all(count > KILLS for count in done.values()), done


@pytest.mark.ring
@pytest.mark.sanitizer
def test_a_few_kills(store, tmp_path):
    kills(store, tmp_path, 6, 2)


def test_kill_in_the_first_moment(store, tmp_path):
    """The daemon that has just taken over from a dead one dies as well, and the next, in the middle of putting sizes right."""
    mount = store.mount()
    data = random.Random(5).randbytes(20_000)
    names = [f"f{i}" for i in range(150)]
    for name in names:
        fd = os.open(mount.path(name), os.O_WRONLY | os.O_CREAT)
        os.write(fd, data)
        os.fsync(fd)
        os.write(fd, b"not acknowledged" * 500)
        os.close(fd)
    for delay in (0, 0, 0.01, 0.02, 0.05, 0.1):
        mount.kill()
        mount.clear_dead()
        mount.mount()
        time.sleep(delay)
    sizes = {name: os.stat(mount.path(name)).st_size for name in names}
    for name in names:
        got = get(mount.path(name))
        assert len(got) == sizes[name] and got[:len(data)] == data, name
        assert got[len(data):] == (b"not acknowledged" * 500)[:len(got) - len(data)]
    mount.umount()
    assert mount.ctl("check", mount.cipher).returncode == 0


def test_kill_before_anything_was_written(store):
    mount = store.mount()
    for _ in range(3):
        fd = os.open(mount.path("empty"), os.O_WRONLY | os.O_CREAT)
        mount.kill()
        try:
            os.close(fd)
        except OSError as e:
            assert e.errno in GONE
        mount.clear_dead()
        mount.mount()
        assert os.stat(mount.path("empty")).st_size == 0 and get(mount.path("empty")) == b""
    os.unlink(mount.path("empty"))
    with pytest.raises(OSError) as e:
        os.stat(mount.path("empty"))
    assert e.value.errno == errno.ENOENT
