"""What --seal=file costs beside --seal=domain when the key service is not next door: one tree unpacked and read back, and how many
calls that takes. The two take turns step by step, so that a slow minute of the machine meets both."""
import os
import random
import statistics
import subprocess
import tempfile

import contenders
import runner
import workloads

NAMES = ("byokfs-domain", "byokfs-file")
STEPS = {"untar": "tar xf: {files} files", "read-tree": "tar cf - of them, cold: directory order",
         "read-random": "open and read {some} of them in any order, cold"}
SHARE = 8   # of the files, in read-random


def in_any_order(run):
    files = sorted(os.path.join(d, f) for d, _, names in os.walk(run.path("tree")) for f in names)
    files = [f for f in random.Random(7).sample(files, len(files) // SHARE) if not os.path.islink(f)]

    def step():
        for name in files:
            with open(name, "rb") as f:
                f.read()
    run.cold()
    run.measure("read-random", len(files), runner.clocked, step)


def untar(run):
    run.fs.mount()
    run.measure("untar", run.bench.files, runner.clocked, run.output, "tar", "-C", run.fs.plain, "-xf", run.bench.archive)


def read_tree(run):
    run.cold()
    if run.measure("read-tree", run.bench.files, runner.clocked, workloads.read_tree, run) != run.bench.expect:
        raise contenders.Broken("the tree read back is not the one unpacked")


def one_round(number, bench, directory, samples):
    """Who begins alternates."""
    order = NAMES[::-1] if number % 2 else NAMES
    runs = {n: runner.Run(bench, contenders.OURS[n](os.path.join(directory, f"{n}.{number}"))) for n in order}
    try:
        for run in runs.values():
            run.fs.create()
        for step in (untar, read_tree, in_any_order):
            for run in runs.values():
                runner.drop_caches()
                step(run)
        for name, run in runs.items():
            run.fs.umount()
            for step, sample in run.samples.items():
                samples.setdefault(step, {}).setdefault(name, []).append(sample)
    finally:
        for run in runs.values():
            run.fs.close()


def cells(samples, unit=lambda s: s.seconds):
    values = [unit(s) for s in samples]
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def show(title, bench, samples):
    rows = [("", "domain, s", "file, s", "file/domain", "KMS domain", "KMS file", "work")]
    for step, what in STEPS.items():
        domain, file = (samples[step][n] for n in NAMES)
        ratios = [f.seconds / d.seconds for f, d in zip(file, domain)]
        rows.append((step, cells(domain), cells(file), f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})",
                     *(f"{statistics.median(s.kms for s in by):.0f}" for by in (domain, file)),
                     what.format(files=bench.files, some=int(file[0].amount))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip())
    print("Medians and spread; file/domain is the median of the rounds' own ratios. KMS: calls while the step ran, canaries too.")
    print("Processor seconds of the daemon: " + ", ".join(
        f"{step} {' / '.join(f'{statistics.median(s.cpu for s in samples[step][n]):.2f}' for n in NAMES)}" for step in STEPS), flush=True)


def run(bench, places, rounds):
    """places: name -> directory. Whatever breaks ends the run with its reason."""
    for place, directory in places.items():
        samples = {}
        with tempfile.TemporaryDirectory(prefix="byokfs-bench.", dir=directory) as base:
            for number in range(rounds):
                one_round(number, bench, base, samples)
        kind = subprocess.check_output(["findmnt", "-n", "-o", "FSTYPE", "-T", directory], text=True).split()[-1]
        show(f"{place}: {directory} ({kind}), {rounds} rounds, KMS answers {contenders.Byokfs.latency_ms} ms later, "
             f"{contenders.Byokfs.connections} connections", bench, samples)
