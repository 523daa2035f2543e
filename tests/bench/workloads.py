"""The work itself, in groups that share a preparation. Each step that counts is measured; each is checked, or it is worth nothing."""
import os
import shutil
import subprocess
import time
from dataclasses import dataclass

import tree
from contenders import Broken

PATIENCE = 300
COMPILER = os.environ.get("CC", "cc").split()


@dataclass(frozen=True)
class Workload:
    name: str
    unit: str       # s, MB/s or us/op
    what: str


@dataclass
class Sample:
    seconds: float
    amount: float   # bytes for MB/s, operations for us/op
    cpu: float
    kms: int


ALL = {w.name: w for w in (
    Workload("seq-write", "MB/s", "write {seq} MiB by 1 MiB, fsync"),
    Workload("seq-read", "MB/s", "read it by 1 MiB, cold"),
    Workload("rand-read", "us/op", "{rand} x 4 KiB of {rand_file} MiB, cold"),
    Workload("rand-write", "us/op", "{rand} x 4 KiB over {rand_file} MiB, fsync"),
    Workload("append", "us/op", "{append} x 120 bytes, one descriptor"),
    Workload("append-open", "us/op", "{append_open} x open, append 120, close"),
    Workload("append-fsync", "us/op", "{append_fsync} x append 120, fsync"),
    Workload("untar", "s", "tar xf: {files} files"),
    Workload("find", "s", "stat all of them, cold"),
    Workload("read-tree", "s", "tar cf - of them, cold"),
    Workload("rm", "s", "rm -rf of them"),
)}


def scaled(base, scale):
    return max(1, round(base * scale))


class Bench:
    """What all contenders share: sizes, the load generator, the archive and what is in it."""

    def __init__(self, work, scale, only):
        self.only = only
        self.seq, self.rand_file = scaled(512, scale), scaled(256, scale)
        self.rand = min(scaled(8192, scale), self.rand_file * 256)
        self.append, self.append_open, self.append_fsync = scaled(20000, scale), scaled(2000, scale), scaled(500, scale)
        self.load = os.path.join(work, "load")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "load.c")
        subprocess.run([*COMPILER, "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-o", self.load, source], check=True)
        self.archive = os.path.join(work, "tree.tar")
        tree.write_archive(self.archive, scale)
        with open(self.archive, "rb") as f:
            self.expect = subprocess.run([self.load, "tar-sum"], stdin=f, capture_output=True, text=True, check=True).stdout.split()
        self.files = int(self.expect[0])

    def describe(self, name):
        return ALL[name].what.format(**vars(self))


def drop_caches():
    """Also settles what the step before left to write, so that nobody pays for somebody else's."""
    os.sync()
    if os.geteuid() == 0:
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3\n")


class Run:
    """One contender doing one group; samples by workload."""

    def __init__(self, bench, contender):
        self.bench, self.fs, self.samples = bench, contender, {}

    def path(self, name):
        return os.path.join(self.fs.plain, name)

    def cold(self):
        self.fs.umount()
        drop_caches()
        self.fs.mount()

    def load(self, what, name, size=0, count=0):
        """Seconds by the generator's own clock, and nothing."""
        return int(self.output(self.bench.load, what, self.path(name), str(size), str(count))) / 1e9, None

    def output(self, *args, stdin=subprocess.DEVNULL):
        """What a command says. If its filesystem dies or takes for ever, the command is not left hanging in the kernel."""
        with subprocess.Popen(args, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                said, complaint = self.wait(child)
            except BaseException:
                self.fs.abort()
                child.kill()
                raise
        if child.returncode:
            raise Broken(f"{os.path.basename(args[0])} {args[1]}: {complaint.strip()[-400:]}")
        return said

    def wait(self, child):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return child.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                if not self.fs.alive():
                    raise Broken("the daemon is gone") from None
                if time.monotonic() > end:
                    raise Broken(f"still at it after {PATIENCE} seconds") from None

    def measure(self, name, amount, step, *args):
        """step returns seconds and what else there is to check."""
        self.fs.settle()
        cpu, kms = self.fs.cpu(), self.fs.kms_calls()
        seconds, value = step(*args)
        self.samples[name] = Sample(seconds, amount, self.fs.cpu() - cpu, self.fs.kms_calls() - kms)
        return value


def clocked(step, *args):
    """Seconds that step took, and what it returned."""
    start = time.monotonic()
    value = step(*args)
    return time.monotonic() - start, value


def settled(run):
    """Before a step that is not cold: the writes of the preparation are on the disk."""
    os.sync()
    return run


def sequential(run):
    size = run.bench.seq
    run.measure("seq-write", size << 20, run.load, "seq-write", "big", size)
    run.cold()
    run.measure("seq-read", size << 20, run.load, "seq-read", "big", size)
    os.unlink(run.path("big"))


def randomly(run):
    size, count = run.bench.rand_file, run.bench.rand
    run.load("seq-write", "file", size)
    run.cold()
    run.measure("rand-read", count, run.load, "rand-read", "file", size, count)
    settled(run).measure("rand-write", count, run.load, "rand-write", "file", size, count)
    run.cold()
    run.load("rand-verify", "file", size, count)
    os.unlink(run.path("file"))


def appending(run):
    counts = {"append": run.bench.append, "append-open": run.bench.append_open, "append-fsync": run.bench.append_fsync}
    for name, count in counts.items():
        settled(run).measure(name, count, run.load, name, name, 0, count)
    run.cold()
    for name, count in counts.items():
        run.load("append-verify", name, 0, count)
        os.unlink(run.path(name))


def read_tree(run):
    """tar reads, the generator counts and hashes on the other end of the pipe."""
    with subprocess.Popen(["tar", "-C", run.fs.plain, "--format=ustar", "-cf", "-", "tree"], stdout=subprocess.PIPE) as tar:
        said = run.output(run.bench.load, "tar-sum", stdin=tar.stdout)
    if tar.returncode:
        raise Broken(f"tar cf: exit code {tar.returncode}")
    return said.split()


def check_find(run, found):
    """The same numbers of files, directories and links, and the same bytes, as in the archive."""
    lines = [line.split() for line in found.splitlines()]
    kinds = [sum(kind == k for kind, _ in lines) for k in "fdl"]
    size = sum(int(size) for kind, size in lines if kind == "f")
    if [str(n) for n in (*kinds, size)] != run.bench.expect[:4]:
        raise Broken(f"find: {kinds} and {size} bytes, not {run.bench.expect[:4]}")


def source_tree(run):
    files = run.bench.files
    run.measure("untar", files, clocked, run.output, "tar", "-C", run.fs.plain, "-xf", run.bench.archive)
    run.cold()
    check_find(run, run.measure("find", files, clocked, run.output, "find", run.path("tree"), "-printf", "%y %s\n"))
    run.cold()
    summed = run.measure("read-tree", files, clocked, read_tree, run)
    if summed[:5] != run.bench.expect[:5] or (run.fs.keeps_times and summed != run.bench.expect):
        raise Broken(f"the tree read back is not the one unpacked: {summed}, not {run.bench.expect}")
    settled(run).measure("rm", files, clocked, run.output, "rm", "-rf", run.path("tree"))
    if os.listdir(run.fs.plain):
        raise Broken(f"rm -rf: left {os.listdir(run.fs.plain)}")


GROUPS = {sequential: ("seq-write", "seq-read"), randomly: ("rand-read", "rand-write"),
          appending: ("append", "append-open", "append-fsync"), source_tree: ("untar", "find", "read-tree", "rm")}


def run_group(group, bench, contender):
    """A group on a fresh mount; the samples of the workloads asked for."""
    run = Run(bench, contender)
    drop_caches()
    with open(bench.archive, "rb") as f, open(os.devnull, "wb") as sink:
        shutil.copyfileobj(f, sink, 1 << 20)
    contender.mount()
    group(run)
    contender.umount()
    return {name: sample for name, sample in run.samples.items() if name in bench.only}
