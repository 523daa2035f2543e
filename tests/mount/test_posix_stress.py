"""Random operations with a model: on one file, with locks and unmounts under its feet (c/model.c), and by several processes in one tree.

BYOKFS_OPERATIONS=N: so many for each variant of the file (5,000 here; 100,000 is the run of a release), and of each process in the tree an eighth."""
import errno
import os
import pickle
import random

import pytest

from conftest import CTL, wait_until
from posix_tools import KEEP_SIZE, PUNCH_HOLE, VARIANTS, compile_c, fallocate, mounted, read, renameat2, run, write

OPERATIONS = int(os.environ.get("BYOKFS_OPERATIONS", "5000"))
GROUP = 110 * 4096

# What the store is like, and how the file is used.
FILES = {
    "mixed": ("default", ["-D"]),
    "small": ("default", ["-D", "-z", "8192"]),
    "through": ("writethrough", ["-D"]),
    "domain": ("domain", ["-D", "-z", str(3 * GROUP)]),
    "suite2": ("suite2", ["-D"]),
    "direct": ("domain", ["-d"]),
    "sync": ("domain", ["-y", "-z", "40000"]),
    "shared": ("shared", ["-M", "-D"]),  # hosts that share a store map nothing shared
}
STORES = {**VARIANTS, "shared": {"init": ["--seal=domain"], "options": ["mount.shared=yes"]}}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_c(tmp_path_factory.mktemp("tools"), "model")


def open_again(m):
    """A shell command: lock and unlock of the whole store."""
    env = " ".join(f"{k}={v}" for k, v in m.environment().items() if k.startswith("AWS_"))
    return f"{env} {CTL} lock {m.plain} >/dev/null && {env} {CTL} unlock {m.plain} >/dev/null"


@pytest.mark.parametrize("name", FILES)
def test_one_file(shared_devkms, program, tmp_path, name):
    """Keys are dropped and fetched again while the file is open and while it is closed; between two parts it is unmounted."""
    variant, args = FILES[name]
    with mounted(kms=shared_devkms, **STORES[variant]) as m:
        f, saved, again = m.path("f"), os.path.join(tmp_path, "model"), open_again(m)
        for part in range(2):
            out = run(program, "-n", str(OPERATIONS // 2), "-s", str(31 + part), "-m", saved, "-x", again, "-X", again, *args, f, check=False, timeout=3600)
            assert out.returncode == 0, out.stderr
            m.remount()
        assert read(f) == read(saved)
        data_is_sound(m)


def data_is_sound(m):
    """What check says of every page; and the log tells of nothing but the locks."""
    m.umount()
    assert not [line for line in m.read_log().splitlines() if not line.endswith("locked: locked by the administrator")], m.read_log()
    os.truncate(m.log, 0)
    r = m.ctl("check", "--data", "-c", m.ini, m.cipher)
    assert r.returncode == 0 and "no damage" in r.stdout + r.stderr, r.stdout + r.stderr
    m.mount()


# ---- a tree ----

class File:
    """What a file should hold; the same object for all its names."""

    def __init__(self):
        self.data, self.xattr = b"", None


class Tree:
    """One process's part of the tree: a dictionary of relative path -> "dir", ("link", target) or File, and the operations on both."""

    def __init__(self, root, seed):
        self.root, self.seed, self.n, self.objects, self.done = root, seed, 0, {"": "dir"}, 0

    def at(self, name):
        return os.path.join(self.root, name) if name else self.root

    def pick(self, kind):
        return self.rng.choice([None, *(p for p, o in self.objects.items() if kind(o))])

    def new_name(self):
        self.n += 1
        parent = self.pick(lambda o: o == "dir") or ""
        name = f"{self.n}-" + "n" * self.rng.choice([1, 10, 100, 200])
        return os.path.join(parent, name) if parent.count("/") < 6 else name

    def below(self, name):
        return [p for p in self.objects if p.startswith(name + "/")]

    def file(self):
        return self.pick(lambda o: isinstance(o, File))

    def create(self):
        name = self.new_name()
        os.close(os.open(self.at(name), os.O_CREAT | os.O_EXCL | os.O_RDWR))
        self.objects[name] = File()

    def mkdir(self):
        name = self.new_name()
        os.mkdir(self.at(name))
        self.objects[name] = "dir"

    def symlink(self):
        name, target = self.new_name(), "t" * self.rng.randint(1, 900)
        os.symlink(target, self.at(name))
        self.objects[name] = ("link", target)

    def link(self):
        old, name = self.file(), self.new_name()
        if old:
            os.link(self.at(old), self.at(name))
            self.objects[name] = self.objects[old]

    def unlink(self):
        name = self.pick(lambda o: o != "dir")
        if name:
            held = os.open(self.at(name), os.O_RDONLY) if isinstance(self.objects[name], File) else None
            os.unlink(self.at(name))
            gone = self.objects.pop(name)
            if held is not None:
                assert os.pread(held, 1 << 20, 0) == gone.data
                os.close(held)

    def rmdir(self):
        name = self.pick(lambda o: o == "dir")
        if name and self.below(name):
            self.fails(errno.ENOTEMPTY, os.rmdir, self.at(name))
        elif name:
            os.rmdir(self.at(name))
            del self.objects[name]

    def fails(self, code, call, *args):
        try:
            call(*args)
        except OSError as e:
            assert e.errno == code, e
        else:
            raise AssertionError(f"{call} should fail with {errno.errorcode[code]}")

    def moved(self, old, new):
        for p in [old, *self.below(old)]:
            self.objects[new + p[len(old):]] = self.objects.pop(p)

    def rename(self):
        old, new = self.pick(lambda o: True), self.new_name()
        if not old or new.startswith(old + "/"):
            return
        os.rename(self.at(old), self.at(new))
        self.moved(old, new)

    def rename_over(self):
        old, new = self.file(), self.pick(lambda o: True)
        if not old or not new:
            return
        if self.objects[new] == "dir":
            self.fails(errno.ENOTEMPTY if old.startswith(new + "/") else errno.EISDIR, os.rename, self.at(old), self.at(new))
            return
        os.rename(self.at(old), self.at(new))
        if self.objects[old] is not self.objects[new]:  # two names of one file stay
            self.objects[new] = self.objects.pop(old)

    def exchange(self):
        a, b = self.pick(lambda o: o != "dir"), self.pick(lambda o: o != "dir")
        if a and b:
            renameat2(self.at(a), self.at(b), 2)
            self.objects[a], self.objects[b] = self.objects[b], self.objects[a]

    def write(self):
        name = self.file()
        if not name:
            return
        f, off, data = self.objects[name], self.rng.randrange(120_000), self.rng.randbytes(self.rng.choice([1, 50, 1504, 4096, 30_000]))
        off = self.rng.choice([0, len(f.data), off])
        fd = os.open(self.at(name), os.O_RDWR)
        assert os.pwrite(fd, data, off) == len(data)
        f.data = f.data[:off].ljust(off, b"\0") + data + f.data[off + len(data):]
        if self.rng.random() < 0.2:
            os.fsync(fd)
        os.close(fd)

    def truncate(self):
        name = self.file()
        if name:
            n = self.rng.choice([0, 1504, 4096, self.rng.randrange(150_000)])
            os.truncate(self.at(name), n)
            self.objects[name].data = self.objects[name].data[:n].ljust(n, b"\0")

    def punch(self):
        name = self.file()
        if name:
            f, off, n = self.objects[name], self.rng.randrange(50_000), self.rng.randrange(1, 50_000)
            fd = os.open(self.at(name), os.O_RDWR)
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, off, n)
            os.close(fd)
            end = min(off + n, len(f.data))
            f.data = f.data[:off] + bytes(max(0, end - off)) + f.data[max(end, off):] if off < len(f.data) else f.data

    def xattr(self):
        name = self.file()
        if name:
            self.objects[name].xattr = self.rng.randbytes(self.rng.randrange(1, 200))
            os.setxattr(self.at(name), "user.test", self.objects[name].xattr)

    def look(self):
        name = self.file()
        if name:
            self.same_file(name)
        where = self.pick(lambda o: o == "dir") or ""
        self.same_directory(where)

    def same_file(self, name):
        f, st = self.objects[name], os.lstat(self.at(name))
        assert st.st_size == len(f.data) and st.st_nlink == sum(o is f for o in self.objects.values()), name
        assert read(self.at(name)) == f.data, name
        if f.xattr:
            assert os.getxattr(self.at(name), "user.test") == f.xattr

    def same_directory(self, name):
        mine = {os.path.basename(p) for p in self.objects if p and os.path.dirname(p) == name}
        assert set(os.listdir(self.at(name))) == mine, name

    def compare(self):
        for name, o in self.objects.items():
            if o == "dir":
                self.same_directory(name)
            elif isinstance(o, File):
                self.same_file(name)
            else:
                assert os.readlink(self.at(name)) == o[1]

    def run(self, count):
        self.rng = random.Random(self.seed * 1000 + self.done)
        calls = [self.create] * 3 + [self.write] * 6 + [self.truncate, self.punch, self.xattr, self.look, self.look, self.mkdir, self.symlink, self.link,
                                                        self.unlink, self.unlink, self.rmdir, self.rename, self.rename_over, self.exchange]
        for _ in range(count):
            call = self.rng.choice(calls)
            self.done += 1
            try:
                call()
            except BaseException as e:
                raise AssertionError(f"seed {self.seed}, operation {self.done}, {call.__name__}: {e!r}") from e
        del self.rng


def whole(data):
    """Everything in the shared part is written whole, then renamed into place: one letter, many times."""
    return data == data[:1] * len(data) and len(data) in (0, 3000, 9000)


EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EINVAL}


def share(root, seed, count):
    """Twenty names that everybody makes, moves, links, reads and removes. Whatever is there is whole; no other errno."""
    rng = random.Random(seed)

    def some():
        return os.path.join(root, *(rng.choice([[], [f"d{rng.randrange(3)}"]])), f"s{rng.randrange(8)}")
    mine = os.path.join(root, f"tmp{seed}")
    for i in range(count):
        what, a, b = rng.randrange(7), some(), some()
        try:
            if what == 0:
                write(mine, bytes([65 + i % 26]) * rng.choice([0, 3000, 9000]))
                os.rename(mine, a)
            elif what == 1:
                os.rename(a, b)
            elif what == 2:
                os.link(a, b)
            elif what == 3:
                os.unlink(a)
            elif what == 4:
                (os.mkdir if rng.random() < 0.5 else os.rmdir)(os.path.dirname(a) if os.path.dirname(a) != root else os.path.join(root, "d0"))
            elif what == 5:
                assert all(n[:3] == "tmp" or n[0] in "sd" for n in os.listdir(root))
            else:
                fd = os.open(a, os.O_RDONLY)
                data = os.read(fd, 10_000)
                os.close(fd)
                assert whole(data), (a, len(data))
        except OSError as e:
            assert e.errno in EXPECTED, e
    if os.path.exists(mine):
        os.unlink(mine)


def in_processes(bodies):
    """Runs them at once; what they return. Not threads: each is an application."""
    running = []
    for body in bodies:
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                answer = (True, body())
            except BaseException as e:
                answer = (False, repr(e))
            with os.fdopen(w, "wb") as f:
                f.write(pickle.dumps(answer))
            os._exit(0)
        os.close(w)
        running.append((pid, r))
    out = []
    for pid, r in running:
        with os.fdopen(r, "rb") as f:
            out.append(f.read())
        os.waitpid(pid, 0)
    answers = [pickle.loads(text) for text in out]
    assert all(ok for ok, _ in answers), [what for ok, what in answers if not ok]
    return [what for _, what in answers]


def one_round(m, trees, count, seed):
    def body(tree):
        def work():
            tree.run(count)
            share(m.path("shared"), tree.seed * 100 + seed, count // 2)
            return tree
        return work
    return in_processes([body(t) for t in trees])


@pytest.mark.parametrize("variant", ["default", "shared"] + ["writethrough", "domain", "suite2"] * (OPERATIONS > 5000))
def test_a_tree(shared_devkms, variant):
    """Four processes; after each round the keys go and come back, or the kernel forgets, or all is unmounted; then everything is compared."""
    def lock():
        assert m.ctl("lock", m.plain).returncode == 0 and m.ctl("unlock", m.plain).returncode == 0
        wait_until(lambda: m.state() == "open")

    def forget():
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
    with mounted(kms=shared_devkms, **STORES[variant]) as m:
        os.mkdir(m.path("shared"))
        trees = [Tree(m.path(f"own{i}"), i + 1) for i in range(4)]
        for t in trees:
            os.mkdir(t.root)
        for number, between in enumerate((lock, forget, m.remount, lock)):
            trees = one_round(m, trees, max(OPERATIONS // 32, 10), number)
            between()
            for t in trees:
                t.compare()
            for base, _, names in os.walk(m.path("shared")):
                assert all(whole(read(os.path.join(base, n))) for n in names)
        data_is_sound(m)
        for t in trees:
            t.compare()
