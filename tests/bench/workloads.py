"""The work itself, in groups that share a preparation. Each step that counts is measured; each is checked, or it is worth nothing."""
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from contenders import Broken
from runner import HERE, clocked, git_command, git_environment, settled


@dataclass(frozen=True)
class Workload:
    name: str
    unit: str       # s, MB/s or us/op
    what: str
    metadata: bool = False   # names and attributes rather than data: a passthrough without encryption is the measure
    sync: bool = False       # asks for durability, which not every neighbour gives


ALL = {w.name: w for w in (
    Workload("seq-write", "MB/s", "write {seq} MiB by 1 MiB, fsync", sync=True),
    Workload("seq-read", "MB/s", "read it by 1 MiB, cold"),
    Workload("mmap-read", "MB/s", "read it through a mapping, cold"),
    Workload("par-write", "MB/s", "two processes write {each} MiB each, fsync", sync=True),
    Workload("par-read", "MB/s", "two processes read them, cold"),
    Workload("rand-read", "us/op", "{rand} x 4 KiB of {rand_file} MiB, cold"),
    Workload("rand-write", "us/op", "{rand} x 4 KiB over {rand_file} MiB, fsync", sync=True),
    Workload("append", "us/op", "{append} x 120 bytes, one descriptor"),
    Workload("append-open", "us/op", "{append_open} x open, append 120, close"),
    Workload("append-fsync", "us/op", "{append_fsync} x append 120, fsync", sync=True),
    Workload("open-read", "us/op", "open, read, close {small} small files {times} times, warm"),
    Workload("open-cold", "us/op", "open, read, close {small} small files, cold"),
    Workload("maildir", "us/op", "{mails} mails by 4 writers: write, fsync, rename", sync=True),
    Workload("sqlite-delete", "us/op", "{commits} commits, rollback journal", sync=True),
    Workload("sqlite-wal", "us/op", "{wal_commits} commits, write-ahead log, synchronous", sync=True),
    Workload("compile", "us/op", "{units} units: 75 stats, 26 reads, a 12 KiB object each"),
    Workload("untar", "s", "tar xf: {files} files", True),
    Workload("find", "s", "stat all of them, cold", True),
    Workload("read-tree", "s", "tar cf - of them, cold"),
    Workload("ls-lR", "s", "ls -lR, cold", True),
    Workload("stat-storm", "us/op", "stat all of them {times} times, warm", True),
    Workload("git-cold", "s", "git status of them, cold", True),
    Workload("git-warm", "s", "git status of them, warm", True),
    Workload("rm", "s", "rm -rf of them", True),
)}


def sequential(run):
    size = run.bench.seq
    run.measure("seq-write", size << 20, run.load, "seq-write", "big", size)
    run.cold()
    run.measure("seq-read", size << 20, run.load, "seq-read", "big", size)
    run.cold()
    run.measure("mmap-read", size << 20, run.load, "mmap-read", "big", size)
    os.unlink(run.path("big"))


def parallel(run):
    size, names = run.bench.each, ("one", "two")
    run.measure("par-write", 2 * size << 20, run.together, *(("seq-write", n, size) for n in names))
    run.cold()
    run.measure("par-read", 2 * size << 20, run.together, *(("seq-read", n, size) for n in names))
    for n in names:
        os.unlink(run.path(n))


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
        said = run.output(run.bench.load, "tar-sum", "-", "0", "0", stdin=tar.stdout)
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


def check_ls(run, listed):
    """As many files of so many bytes as in the archive."""
    sizes = [int(line.split()[4]) for line in listed.splitlines() if line.startswith("-")]
    if [str(len(sizes)), str(sum(sizes))] != [run.bench.expect[0], run.bench.expect[3]]:
        raise Broken(f"ls -lR: {len(sizes)} files of {sum(sizes)} bytes, not {run.bench.expect[0]} of {run.bench.expect[3]}")


def git_status(run):
    """The index is brought up to date first; then one file changes, and only that one may be found."""
    def status():
        said = run.output(*git_command(run.path("git"), run.path("tree"), "status", "--porcelain"), env=git_environment())
        if said.split() != ["M", name]:
            raise Broken(f"git status: {said[:200]!r}, not ' M {name}'")
    run.output("tar", "-C", run.fs.plain, "-xf", run.bench.git())
    name = sorted(n for n in os.listdir(run.path("tree")) if os.path.isfile(run.path("tree/" + n)))[0]
    with open(run.path("tree/" + name), "a") as f:
        f.write("changed\n")
    status()
    run.cold()
    run.measure("git-cold", run.bench.files, clocked, status)
    run.measure("git-warm", run.bench.files, clocked, status)
    shutil.rmtree(run.path("git"))


def source_tree(run):
    files = run.bench.files
    run.measure("untar", files, clocked, run.output, "tar", "-C", run.fs.plain, "-xf", run.bench.archive)
    run.cold()
    check_find(run, run.measure("find", files, clocked, run.output, "find", run.path("tree"), "-printf", "%y %s\n"))
    run.cold()
    summed = run.measure("read-tree", files, clocked, read_tree, run)
    if summed[:5] != run.bench.expect[:5] or (run.fs.keeps_times and summed != run.bench.expect):
        raise Broken(f"the tree read back is not the one unpacked: {summed}, not {run.bench.expect}")
    run.cold()
    check_ls(run, run.measure("ls-lR", files, clocked, run.output, "ls", "-lR", run.path("tree")))
    times = run.bench.times
    run.load("stat-tree", "tree", 1, run.bench.entries)
    run.measure("stat-storm", run.bench.entries * times, run.load, "stat-tree", "tree", times, run.bench.entries)
    if {"git-cold", "git-warm"} & set(run.bench.only):
        git_status(run)
    settled(run).measure("rm", files, clocked, run.output, "rm", "-rf", run.path("tree"))
    if os.listdir(run.fs.plain):
        raise Broken(f"rm -rf: left {os.listdir(run.fs.plain)}")


def small_files(run):
    files, times = run.bench.small, run.bench.times
    run.load("small-make", "small", files)
    run.load("small-read", "small", files, 1)
    run.measure("open-read", files * times, run.load, "small-read", "small", files, times)
    run.cold()
    run.measure("open-cold", files, run.load, "small-read", "small", files, 1)
    shutil.rmtree(run.path("small"))


def mail(run):
    settled(run).measure("maildir", run.bench.mails, run.load, "maildir", "mail", run.bench.mails)
    run.cold()
    run.load("maildir-verify", "mail", run.bench.mails)
    shutil.rmtree(run.path("mail"))


def compiling(run):
    run.load("compile-make", "make", run.bench.units)
    run.cold()
    run.measure("compile", run.bench.units, run.load, "compile", "make", run.bench.units)
    run.cold()
    run.load("compile-verify", "make", run.bench.units)
    shutil.rmtree(run.path("make"))


def database(run):
    def sqlite(what, mode, count):
        said = run.output(sys.executable, "-B", os.path.join(HERE, "transactions.py"), what, run.path(mode), mode, str(count))
        return int(said) / 1e9, None
    modes = {"delete": run.bench.commits, "wal": run.bench.wal_commits}
    for mode, count in modes.items():
        settled(run).measure(f"sqlite-{mode}", count, sqlite, "write", mode, count)
    run.cold()
    for mode, count in modes.items():
        sqlite("verify", mode, count)
        os.unlink(run.path(mode))


GROUPS = {sequential: ("seq-write", "seq-read", "mmap-read"), parallel: ("par-write", "par-read"), randomly: ("rand-read", "rand-write"),
          appending: ("append", "append-open", "append-fsync"), small_files: ("open-read", "open-cold"), mail: ("maildir",),
          database: ("sqlite-delete", "sqlite-wal"), compiling: ("compile",),
          source_tree: ("untar", "find", "read-tree", "ls-lR", "stat-storm", "git-cold", "git-warm", "rm")}
