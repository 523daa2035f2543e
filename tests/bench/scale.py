"""What an operation costs, and what the daemon holds in memory, as the tree grows: 10^3 to 10^6 files, 100 in a directory.

    make bench-scale            (BENCH='--files 1000000 --seal file --dir /var/tmp --nofile 1024 --json out.json')

Reports and never judges a time. create, remove: by one process. walk, stat, read: after the kernel has forgotten all
there was (drop_caches); hot-read: once more, from the kernel's caches. CPU: the daemon's processor time. Bytes an inode: resident memory after the walk,
less what there was after the mount, by the number of inodes."""
import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
os.environ["BUILD"] = os.path.abspath(os.environ.get("BUILD", os.path.join(HERE, "..", "..", "build")))

import contenders

STORES = {"domain": contenders.ByokfsDomain, "file": contenders.ByokfsFile}
PATIENCE = 3600
REPEAT = {1000: 5, 10000: 3}


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--files", type=int, default=1000000, help="files of the largest tree (1000000)")
    p.add_argument("--seal", choices=list(STORES), default="domain")
    p.add_argument("--dir", default="/dev/shm", help="where the store is (/dev/shm)")
    p.add_argument("--per-directory", type=int, default=100, help="files in a directory (100)")
    p.add_argument("--nofile", type=int, default=1024, help="descriptors the daemon may have (1024)")
    p.add_argument("--json", metavar="FILE", help="write every point there")
    p.add_argument("--scale-curve", action="store_true", help=argparse.SUPPRESS)
    return p.parse_args(argv)


def status(pid):
    """Resident memory in bytes, and the number of descriptors."""
    with open(f"/proc/{pid}/status") as f:
        lines = dict(line.split(":", 1) for line in f)
    return {"rss": int(lines["VmRSS"].split()[0]) * 1024, "fds": len(os.listdir(f"/proc/{pid}/fd"))}


def limit_descriptors(n):
    """Of everything started from now on; the hard limit, too, or the daemon raises it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))


def drop(what):
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write(str(what))


class Tree:
    def __init__(self, forest, store, files, per_directory):
        self.forest, self.store, self.files, self.per_directory = forest, store, files, per_directory
        self.base = None

    def run(self, op):
        done = subprocess.run([self.forest, op, self.store.plain, str(self.files), str(self.per_directory)],
                              capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise contenders.Broken(f"{op} of {self.files}: {done.stderr.strip()}")
        return int(done.stdout) / 1000 / self.files

    def timed(self, op, name):
        before = self.store.cpu()
        us = self.run(op)
        return self.point(name, us, (self.store.cpu() - before) * 1e6 / self.files)

    def point(self, op, us=None, cpu_us=None):
        """Memory is counted by the inodes there are: others may make the kernel forget some."""
        now = status(self.store.process.pid)
        inodes = self.store.store.status()["counters"]["inodes"] - 1
        each = (now["rss"] - self.base["rss"]) / inodes if inodes > self.files / 2 else None
        return {"files": self.files, "op": op, "us": us, "cpu_us": cpu_us, **now, "inodes": inodes, "bytes_per_inode": each}

    def measure(self):
        self.base = status(self.store.process.pid)
        points = [self.timed("create", "create")]
        self.store.umount()
        self.store.mount()
        self.base = status(self.store.process.pid)
        for op, name, caches in (("walk", "walk", 3), ("stat", "stat", 3), ("read", "read", 3), ("read", "hot-read", 0), ("remove", "remove", 2)):
            if caches:
                drop(caches)
            points.append(self.timed(op, name))
        drop(2)
        points.append(self.point("forgotten"))
        return points


def best(rounds):
    """The quickest round of each operation; its own memory beside it."""
    return [min(points, key=lambda p: p["us"] or 0) for points in zip(*rounds, strict=True)]


def show(points):
    for p in points:
        each = "-" if p["bytes_per_inode"] is None else f"{p['bytes_per_inode']:.0f}"
        us = f"{p['us']:10.1f} {p['cpu_us']:9.1f}" if p["us"] is not None else f"{'-':>10} {'-':>9}"
        print(f"{p['files']:9} {p['op']:10} {us} {p['rss'] / 2**20:9.1f} {p['fds']:6} {p['inodes']:9} {each:>9}",
              flush=True)


def run(args):
    points = []
    base = tempfile.mkdtemp(prefix="byokfs-scale.", dir=args.dir)
    forest = os.path.join(base, "forest")
    store = STORES[args.seal](os.path.join(base, "store"))
    print(f"{args.seal} mode, {args.dir}, {args.per_directory} files in a directory, {args.nofile} descriptors\n"
          "    files op                us    CPU us   RSS MiB    fds    inodes   B/inode", flush=True)
    try:
        subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-o", forest, os.path.join(HERE, "forest.c")], check=True)
        store.create()
        limit_descriptors(args.nofile)
        files = 1000
        while files <= args.files:
            rounds = []
            for _ in range(REPEAT.get(files, 1)):
                store.mount()
                rounds.append(Tree(forest, store, files, args.per_directory).measure())
                store.umount()
            show(best(rounds))
            points += best(rounds)
            files *= 10
    finally:
        store.close()
        shutil.rmtree(base, ignore_errors=True)
    return {"kind": "scale", "seal": args.seal, "per_directory": args.per_directory, "points": points}


def main(argv=None):
    args = arguments(argv)
    try:
        result = run(args)
    except contenders.Broken as e:
        sys.exit(f"scale: {e}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
