"""One contender doing one piece of work: what it is measured with, and what all contenders share."""
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import tree
from contenders import COMPILER, Broken

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 300


@dataclass
class Sample:
    seconds: float
    amount: float   # bytes for MB/s, operations for us/op
    cpu: float
    kms: int


def scaled(base, scale):
    return max(1, round(base * scale))


class Bench:
    """What all contenders share: sizes, the load generator, the archive and what is in it."""

    def __init__(self, work, scale, only, tree_scale=0.5):
        self.only, self.work, self.scale = only, work, scale
        self.seq, self.rand_file, self.each = scaled(256, scale), scaled(128, scale), scaled(96, scale)
        self.rand = min(scaled(4096, scale), self.rand_file * 256)
        self.append, self.append_open, self.append_fsync = scaled(20000, scale), scaled(2000, scale), scaled(400, scale)
        self.small, self.times, self.units = scaled(1000, scale), 5, scaled(150, scale)
        self.mails, self.commits, self.wal_commits = scaled(600, scale), scaled(150, scale), scaled(400, scale)
        self.load = build_load(work)
        self.archive = os.path.join(work, "tree.tar")
        tree.write_archive(self.archive, scale * tree_scale)
        with open(self.archive, "rb") as f:
            self.expect = subprocess.run([self.load, "tar-sum", "-", "0", "0"], stdin=f, capture_output=True, text=True,
                                         check=True).stdout.split()
        self.files = int(self.expect[0])
        self.entries = sum(map(int, self.expect[:3]))
        self.git_archive = None

    def git(self):
        """An archive of a repository whose one commit is the tree; made when first asked for."""
        if not self.git_archive:
            with tempfile.TemporaryDirectory(dir=self.work) as d:
                subprocess.run(["tar", "-C", d, "-xf", self.archive], check=True)
                repository, files = os.path.join(d, "git"), os.path.join(d, "tree")
                for args in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"], ["gc", "-q"]):
                    subprocess.run(git_command(repository, files, *args), env=git_environment(), check=True, capture_output=True)
                self.git_archive = os.path.join(self.work, "git.tar")
                subprocess.run(["tar", "-C", d, "-cf", self.git_archive, "git"], check=True)
        return self.git_archive


def git_command(repository, files, *args):
    return ["git", "-c", "safe.directory=*", f"--git-dir={repository}", f"--work-tree={files}", *args]


def git_environment():
    who = {f"GIT_{role}_{part}": v for role in ("AUTHOR", "COMMITTER") for part, v in (("NAME", "bench"), ("EMAIL", "bench@localhost"))}
    return {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "LC_ALL": "C"}


def build_load(work):
    program = os.path.join(work, "load")
    sources = [os.path.join(HERE, f) for f in sorted(os.listdir(HERE)) if f.startswith("load") and f.endswith(".c")]
    subprocess.run([*COMPILER, "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-o", program, *sources, "-lcrypto", "-lpthread"], check=True)
    return program


keep_caches = False   # bench.py may set it: for one who may not drop them, or would disturb others


def drop_caches():
    """Also settles what the step before left to write, so that nobody pays for somebody else's."""
    if not keep_caches:
        os.sync()
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
        """Seconds by the generator's own clock (0 for a command that takes none), and nothing."""
        return int(self.output(self.bench.load, what, self.path(name), str(size), str(count)) or 0) / 1e9, None

    def together(self, *commands):
        """Runs load commands (what, name, size, count) at the same time: seconds from the start of the first to the end of the last."""
        def one(command):
            return self.load(*command)
        start = time.monotonic()
        with ThreadPoolExecutor(len(commands)) as pool:
            list(pool.map(one, commands))
        return time.monotonic() - start, None

    def output(self, *args, stdin=subprocess.DEVNULL, env=None):
        """What a command says. If its filesystem dies or takes for ever, the command is not left hanging in the kernel."""
        with subprocess.Popen(args, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as child:
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
    if not keep_caches:
        os.sync()
    return run


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
