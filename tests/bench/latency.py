"""How long a 4 KiB read takes on a busy mount: alone, beside a process that streams writes, and while 1,000 small files are opened
cold. The reads are of pages nobody has read since the mount, one at a time, so each is a request to the daemon."""
import os
import select
import signal
import subprocess

from contenders import Broken
from runner import PATIENCE, drop_caches, scaled

SITUATIONS = {"alone": "nobody else", "streaming": "another process writes {stream} MiB files, fsync, over and over",
              "opening": "another process opens and reads {opened} small files, cold"}
PERCENTILES = (50, 99, 99.9)


def sizes(scale):
    return {"file": max(16, scaled(192, scale)), "stream": scaled(128, scale), "opened": scaled(1000, scale),
            "milliseconds": scaled(2000, scale)}


def describe(bench):
    return {name: what.format(**sizes(bench.scale)) for name, what in SITUATIONS.items()}


class Latency:
    """Sizes, and one measurement after the other on a mounted contender."""

    def __init__(self, bench, run):
        self.bench, self.run = bench, run
        for name, value in sizes(bench.scale).items():
            setattr(self, name, value)

    def prepare(self):
        self.run.load("seq-write", "probed", self.file)
        self.run.load("small-make", "opened", self.opened)

    def spawn(self, *args):
        """Returns when the command has begun its work."""
        child = subprocess.Popen([self.bench.load, *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if not select.select([child.stdout], [], [], PATIENCE)[0] or child.stdout.readline() != "ready\n":
            self.run.fs.abort()
            child.kill()
            child.wait()
            raise Broken(f"{args[0]} does not start")
        return child

    def finish(self, child, tell=True):
        """Output of a command that ends when told to; a dead filesystem must not keep us."""
        if tell:
            child.send_signal(signal.SIGTERM)
        try:
            said = self.run.wait(child)[0]
        except BaseException:
            self.run.fs.abort()
            child.kill()
            child.wait()
            raise
        if child.returncode:
            raise Broken(f"{child.args[1]}: exit code {child.returncode}")
        return said

    def probe(self, milliseconds):
        return self.spawn("probe", self.run.path("probed"), self.file, milliseconds)

    def alone(self):
        return self.finish(self.probe(self.milliseconds), tell=False)

    def streaming(self):
        writer = self.spawn("stream", self.run.path("stream"), self.stream, 0)
        try:
            said = self.finish(self.probe(self.milliseconds), tell=False)
        finally:
            written = int(self.finish(writer))
        os.unlink(self.run.path("stream"))
        if not written:
            raise Broken("the other process wrote nothing")
        return said

    def opening(self):
        """The reads end with the opens, whatever time these take."""
        probe = self.probe(60000)
        try:
            self.run.load("small-read", "opened", self.opened, 1)
        finally:
            said = self.finish(probe)
        return said

    def measure(self):
        """situation -> nanoseconds of every read, each on a cold mount."""
        self.prepare()
        found = {}
        for name in SITUATIONS:
            self.run.cold()
            found[name] = [int(line) for line in getattr(self, name)().split()]
        return found


def percentile(ordered, p):
    """The smallest value that p percent of the values do not exceed."""
    return ordered[min(len(ordered) - 1, int(-(-len(ordered) * p // 100)) - 1)]


def summary(nanoseconds):
    ordered = sorted(nanoseconds)
    us = {f"p{p:g}": round(percentile(ordered, p) / 1000, 1) for p in PERCENTILES}
    return {**us, "max": round(ordered[-1] / 1000, 1), "reads": len(ordered)}


def single_reads(run):
    drop_caches()
    run.fs.mount()
    found = Latency(run.bench, run).measure()
    run.fs.umount()
    return found
