"""From samples to a table: medians, the faster peer, how byokfs compares."""
import statistics

import workloads

NOISY = 1.3   # the slowest round took this many times the fastest


def in_unit(unit, sample, seconds):
    if unit == "MB/s":
        return sample.amount / 1e6 / seconds
    return seconds * 1e6 / sample.amount if unit == "us/op" else seconds


def cell(name, samples):
    """Median in the workload's unit; ~ when the rounds disagree."""
    if not samples:
        return "-"
    seconds = [s.seconds for s in samples]
    value = in_unit(workloads.ALL[name].unit, samples[0], statistics.median(seconds))
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}{'~' if max(seconds) > NOISY * min(seconds) else ' '}"


def median_seconds(samples):
    return statistics.median(s.seconds for s in samples) if samples else None


def ratio(ours, peers):
    """Our time over the faster peer's; ! where that is longer."""
    known = [p for p in map(median_seconds, peers) if p]
    if not ours or not known:
        return "-"
    value = median_seconds(ours) / min(known)
    return f"{value:.2f}{'!' if value > 1.005 else ' '}"


def print_rows(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())


def short(name):
    return name.replace("byokfs-", "")


def show(title, bench, names, ours, results, cpu):
    """results: workload -> contender -> samples. names: contenders in order; ours: those that are byokfs."""
    rows = [["", "unit", *names, *(f"{short(n)}/peer" for n in ours), *(f"KMS {short(n)}" for n in ours), "work"]]
    for name in workloads.ALL:
        if name not in results:
            continue
        by = {n: results[name].get(n, []) for n in names}
        peers = [by[n] for n in names if n not in ours]
        rows.append([name, workloads.ALL[name].unit, *(cell(name, by[n]) for n in names), *(ratio(by[n], peers) for n in ours),
                     *(f"{statistics.median(s.kms for s in by[n]):.0f}" if by[n] else "-" for n in ours), bench.describe(name)])
    width = max(len(r[-1]) for r in rows)
    print(f"\n{title}")
    print_rows([[*r[:-1], r[-1].ljust(width)] for r in rows])
    if cpu:
        print("\nprocessor seconds of the daemon, median")
        print_rows([["", "", *names], *([name, "", *(f"{statistics.median(s.cpu for s in results[name][n]):.2f}"
                                                     if results[name].get(n) else "-" for n in names)]
                                        for name in workloads.ALL if name in results)])


LEGEND = """
MB/s: more is better; s and us/op: less is better. Medians; ~: the slowest round took over 1.3 times the fastest.
.../peer: time of byokfs over the time of the faster peer, whatever the unit: below 1 byokfs is faster, ! marks where it is not.
KMS: calls to the key service while the work ran. securefs is excused from the times of files, which it loses in untar."""
