"""byokfs beside gocryptfs and securefs, on the same work, in one run. It reports and never judges a time:
the exit code is 0 unless something broke (1), that is, failed or gave back other data than was written."""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict

HERE = os.path.dirname(os.path.abspath(__file__))
os.environ["BUILD"] = os.path.abspath(os.environ.get("BUILD", os.path.join(HERE, "..", "..", "build")))

import contenders
import report
import sealing
import workloads

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PLACES = {"disk": "/var/tmp", "tmpfs": "/dev/shm"}


def chosen(all_names):
    """An argparse type: a comma-separated choice of names."""
    def parse(text):
        wanted = text.split(",")
        wrong = [w for w in wanted if w not in all_names]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is not one of {', '.join(all_names)}")
        return [n for n in all_names if n in wanted]
    return parse


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3, help="rounds of each workload; the median counts (3)")
    p.add_argument("--scale", type=float, default=1.0, help="size of the work; 0.1 for a quick look (1)")
    p.add_argument("--where", choices=["disk", "tmpfs", "both"], default="both", help="/var/tmp, /dev/shm or both (both)")
    p.add_argument("--dir", help="keep the stores in this directory instead")
    p.add_argument("--only", type=chosen(list(workloads.ALL)), default=list(workloads.ALL), metavar="WORKLOAD,...",
                   help=", ".join(workloads.ALL))
    p.add_argument("--contenders", type=chosen(list(contenders.ALL)), default=list(contenders.ALL), metavar="NAME,...",
                   help=", ".join(contenders.ALL))
    p.add_argument("--kms-latency", type=int, metavar="MS", help="let every KMS answer take this much longer (0; with --sealing 10)")
    p.add_argument("--kms-connections", type=int, default=0, metavar="N", help="calls to the KMS at a time (byokfs's own default)")
    p.add_argument("--sealing", action="store_true", help="only compare byokfs with itself: --seal=file beside --seal=domain")
    p.add_argument("--cpu", action="store_true", help="also print the processor time of the daemons")
    p.add_argument("--json", metavar="FILE", help="write every sample there")
    args = p.parse_args()
    if args.kms_latency is None:
        args.kms_latency = 10 if args.sealing else 0
    if args.rounds < 1 or args.scale <= 0:
        p.error("--rounds and --scale are above 0")
    return args


class Comparison:
    """All rounds in one place. Who breaks is out of the remaining rounds, and the run is a failure."""

    def __init__(self, bench, directory, names):
        self.bench, self.directory = bench, directory
        self.names, self.broken, self.results = list(names), {}, {}

    def groups(self):
        return [g for g, names in workloads.GROUPS.items() if set(names) & set(self.bench.only)]

    def round(self, number):
        """Contenders take turns group by group, so that a slow minute of the machine meets all of them."""
        stores = {}
        order = self.names[number % len(self.names):] + self.names[:number % len(self.names)]
        try:
            for group in self.groups():
                for name in order:
                    if name not in self.broken:
                        self.turn(group, name, number, stores)
        finally:
            for store in stores.values():
                store.close()

    def turn(self, group, name, number, stores):
        try:
            if name not in stores:
                stores[name] = contenders.ALL[name](os.path.join(self.directory, f"{name}.{number}"))
                stores[name].create()
            for workload, sample in workloads.run_group(group, self.bench, stores[name]).items():
                self.results.setdefault(workload, {}).setdefault(name, []).append(sample)
        except (contenders.Broken, AssertionError, OSError, subprocess.SubprocessError) as e:
            said = getattr(e, "stderr", None) or ""
            self.broken[name] = f"{group.__name__}, round {number + 1}: {e if isinstance(e, contenders.Broken) else repr(e)} {said}"
            print(f"\n{name} BROKE: {self.broken[name]}\n{stores[name].log_tail()}", flush=True)
            stores[name].close()

    def as_json(self):
        return {"broken": self.broken, "results": {w: {n: [asdict(s) for s in samples] for n, samples in by.items()}
                                                   for w, by in self.results.items()}}


def compare(bench, place, directory, names, args):
    base = tempfile.mkdtemp(prefix="byokfs-bench.", dir=directory)
    comparison = Comparison(bench, base, names)
    start = time.monotonic()
    try:
        for number in range(args.rounds):
            comparison.round(number)
            print(f"{place}: round {number + 1} of {args.rounds}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    kind = subprocess.check_output(["findmnt", "-n", "-o", "FSTYPE", "-T", directory], text=True).split()[-1]
    ours = [n for n in names if not contenders.ALL[n].is_peer]
    report.show(f"{place}: {directory} ({kind}), {args.rounds} rounds", bench, names, ours, comparison.results, args.cpu)
    return comparison


def taking_part(wanted):
    """Those that are there; the others are named, not silently left out."""
    names = []
    for name in wanted:
        why = contenders.ALL[name].missing()
        if why:
            print(f"without {name}: {why}")
        else:
            names.append(name)
    return names


def versions(names):
    ask = {"gocryptfs": ["gocryptfs", "-version"], "securefs": ["dpkg-query", "-W", "-f=securefs ${Version}", "securefs"],
           "byokfs-domain": [os.path.join(os.environ["BUILD"], "byokfs"), "-V"]}
    said = [subprocess.run(ask[n], capture_output=True, text=True, check=False).stdout.strip().split(";")[0] for n in names if n in ask]
    return ", ".join(s for s in said if s)


def on_signal(number, _frame):
    """The first one begins the clean-up, and no second one interrupts it."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main():
    args = arguments()
    for number in SIGNALS:
        signal.signal(number, on_signal)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        sys.exit("bench: no /dev/fuse here")
    contenders.Byokfs.latency_ms, contenders.Byokfs.connections = args.kms_latency, args.kms_connections
    names = taking_part(sealing.NAMES if args.sealing else args.contenders)
    if not names:
        sys.exit("bench: nobody to measure")
    if os.geteuid() != 0:
        print("not root: the page cache stays, so cold means a fresh mount only")
    print(f"{versions(names)}; scale {args.scale:g}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, "
          f"KMS answers {f'{args.kms_latency} ms later' if args.kms_latency else 'at once'}", flush=True)
    places = {"dir": os.path.realpath(args.dir)} if args.dir else {p: d for p, d in PLACES.items() if args.where in (p, "both")}
    with tempfile.TemporaryDirectory(prefix="byokfs-bench.") as work:
        bench = workloads.Bench(work, args.scale, args.only)
        if args.sealing:
            sealing.run(bench, places, args.rounds)
            return 0
        done = {place: compare(bench, place, directory, names, args) for place, directory in places.items()}
    print(f"{report.LEGEND}\nLoad average at the end: {os.getloadavg()[0]:.1f}.")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"scale": args.scale, "rounds": args.rounds, "kms_latency_ms": args.kms_latency,
                       "places": {p: c.as_json() for p, c in done.items()}}, f, indent=1)
    return 1 if any(c.broken for c in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
