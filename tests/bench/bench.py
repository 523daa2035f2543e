"""byokfs beside its encrypted neighbours and beside no encryption, on the same work, in one run. It reports and never judges a
time: the exit code is 0 unless something broke (1), that is, failed or gave back other data than was written."""
import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
os.environ["BUILD"] = os.path.abspath(os.environ.get("BUILD", os.path.join(HERE, "..", "..", "build")))

import contenders
import latency
import peers
import report
import runner
import scale
import sealing
import workloads
from comparison import Comparison

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PLACES = {"tmpfs": "/dev/shm", "disk": "/var/tmp"}


def chosen(all_names):
    """An argparse type: a comma-separated choice of names."""
    def parse(text):
        wanted = text.split(",") if text else []
        wrong = [w for w in wanted if w not in all_names]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is not one of {', '.join(all_names)}")
        return [n for n in all_names if n in wanted]
    return parse


def arguments():
    """Without --scale-curve, whose own options come after it."""
    if "--scale-curve" in sys.argv[1:]:
        sys.exit(scale.main([a for a in sys.argv[1:] if a != "--scale-curve"]))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3, help="rounds of each workload; the median counts (3)")
    p.add_argument("--scale", type=float, default=1.0, help="size of the work; 0.1 for a quick look (1)")
    p.add_argument("--where", choices=["disk", "tmpfs", "both"], default="both", help="/var/tmp, /dev/shm or both (both)")
    p.add_argument("--dir", help="keep the stores in this directory instead")
    p.add_argument("--only", type=chosen(list(workloads.ALL)), default=list(workloads.ALL), metavar="WORKLOAD,...",
                   help=", ".join(workloads.ALL))
    p.add_argument("--contenders", type=chosen(list(peers.ALL)), default=list(peers.ALL), metavar="NAME,...",
                   help=", ".join(peers.ALL))
    p.add_argument("--no-latency", action="store_true", help="without the times of single reads under load")
    p.add_argument("--kms-latency", type=int, metavar="MS", help="let every KMS answer take this much longer (0; with --sealing 10)")
    p.add_argument("--kms-connections", type=int, default=0, metavar="N", help="calls to the KMS at a time (byokfs's own default)")
    p.add_argument("--sealing", action="store_true", help="only compare byokfs with itself: --seal=file beside --seal=domain")
    p.add_argument("--keep-caches", action="store_true", help="leave the machine's caches alone, so that cold means a fresh mount only")
    p.add_argument("--priority", action="store_true", help="before everybody else on this machine, when others use it too; as root")
    p.add_argument("--scale-curve", action="store_true", help="only byokfs, on trees of 1,000 to 1,000,000 files; see scale.py --help")
    p.add_argument("--cpu", action="store_true", help="also print the processor time of the daemons")
    p.add_argument("--json", metavar="FILE", default=os.path.join(os.environ["BUILD"], "bench.json"),
                   help="write every sample there (bench.json in the build directory)")
    args = p.parse_args()
    if args.kms_latency is None:
        args.kms_latency = 10 if args.sealing else 0
    if args.rounds < 1 or args.scale <= 0:
        p.error("--rounds and --scale are above 0")
    return args


def compare(bench, place, directory, names, args):
    base = tempfile.mkdtemp(prefix="byokfs-bench.", dir=directory)
    comparison = Comparison(bench, base, names, not args.no_latency)
    start = time.monotonic()
    try:
        for number in range(args.rounds):
            comparison.round(number)
            print(f"{place}: round {number + 1} of {args.rounds}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    kind = subprocess.check_output(["findmnt", "-n", "-o", "FSTYPE", "-T", directory], text=True).split()[-1]
    return {"directory": directory, "kind": kind, **comparison.as_json()}


def taking_part(wanted):
    """Those that are there; the others are named, not silently left out."""
    names = []
    for name in wanted:
        why = peers.ALL[name].missing()
        if why:
            print(f"without {name}: {why}")
        else:
            names.append(name)
    return names


def processor():
    with open("/proc/cpuinfo") as f:
        names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def bounds(bench):
    """What the processor's AES-256-GCM allows, in bytes a second, by one thread and by as many as there are processors."""
    def speed(threads):
        return max(float(subprocess.check_output([bench.load, "gcm", "-", str(threads), "300"])) for _ in range(3))
    return {"gcm_1": speed(1), "gcm_all": speed(min(16, os.cpu_count()))}


def measure(bench, names, places, args):
    """Everything a report needs, as plain data."""
    head = {"kind": "bench", "scale": args.scale, "rounds": args.rounds, "kms_latency_ms": args.kms_latency, "machine": processor(),
            "kernel": platform.release(),
            "contenders": {n: {"role": peers.ALL[n].role, "version": peers.ALL[n].version(), "durable": peers.ALL[n].durable} for n in names},
            "workloads": {w: {"unit": workloads.ALL[w].unit, "metadata": workloads.ALL[w].metadata, "sync": workloads.ALL[w].sync,
                              "what": workloads.ALL[w].what.format(**vars(bench))} for w in args.only},
            "situations": latency.describe(bench), "bounds": bounds(bench), "load": [round(os.getloadavg()[0], 1)]}
    head["places"] = {place: compare(bench, place, directory, names, args) for place, directory in places.items()}
    head["load"].append(round(os.getloadavg()[0], 1))
    return head


def before_others():
    """A session of our own whose processes all go before those of others: the scheduler shares by sessions first, then by niceness."""
    if os.getsid(0) != os.getpid() != os.getpgrp():
        os.setsid()
    try:
        with open("/proc/self/autogroup", "w") as f:
            f.write("-19")
    except FileNotFoundError:
        os.nice(-19)


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
    if args.priority:
        before_others()
    contenders.Byokfs.latency_ms, contenders.Byokfs.connections = args.kms_latency, args.kms_connections
    names = taking_part(sealing.NAMES if args.sealing else args.contenders)
    if not names:
        sys.exit("bench: nobody to measure")
    if os.geteuid() != 0:
        print("not root: the page cache stays, so cold means a fresh mount only")
    runner.keep_caches = args.keep_caches or os.geteuid() != 0
    places = {"dir": os.path.realpath(args.dir)} if args.dir else {p: d for p, d in PLACES.items() if args.where in (p, "both")}
    with tempfile.TemporaryDirectory(prefix="byokfs-bench.") as work:
        bench = runner.Bench(work, args.scale, args.only, tree_scale=1 if args.sealing else 0.5)
        if args.sealing:
            sealing.run(bench, places, args.rounds)
            return 0
        done = measure(bench, names, places, args)
    with open(args.json, "w") as f:
        json.dump(done, f, indent=1)
    print(report.text(done, args.cpu))
    return 1 if any(p["broken"] for p in done["places"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
