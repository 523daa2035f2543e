#!/usr/bin/python3
"""What a run of the bench says. `report.py [--markdown] [FILE]` prints it from the JSON of a run (build/bench.json).

A ratio is a speed: how many times as fast as the other byokfs was. It is taken round by round, because the rounds of all stand
next to each other; the median counts, the spread is shown."""
import argparse
import json
import os
import statistics
import sys

NOISY = 1.3         # the slowest round took this many times the fastest
GOAL_PEER, GOAL_BOUND, GOAL_BARE = 2.0, 0.8, 1.0
SEQUENTIAL = ("seq-write", "seq-read")
ORDER = ("tmpfs", "disk")


class Ratio:
    """Speed of ours over another's, by rounds; missed when below the goal."""

    def __init__(self, ours, other, goal=None, name=""):
        pairs = list(zip(ours, other))
        each = [b / a for a, b in pairs] if len(ours) == len(other) else [statistics.median(other) / a for a in ours]
        self.value, self.low, self.high = statistics.median(each), min(each), max(each)
        self.goal, self.name = goal, name
        self.missed = goal is not None and self.value < goal

    def __str__(self):
        mark = "!" if self.missed else " "
        return f"{digits(self.value)}{mark} ({digits(self.low)}..{digits(self.high)})"


def digits(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(results, workload, name):
    return [s["seconds"] for s in results.get(workload, {}).get(name, [])]


def by_role(run, *roles):
    return [n for n, c in run["contenders"].items() if c["role"] in roles]


def fastest(run, place, workload, names):
    """Of those that did it, with the durability that was asked for; None if nobody did."""
    results, sync = run["places"][place]["results"], run["workloads"][workload]["sync"]
    known = {n: statistics.median(t) for n in names
             if (t := times(results, workload, n)) and (run["contenders"][n]["durable"] or not sync)}
    return min(known, key=known.get) if known else None


def peer_ratio(run, place, workload, ours):
    results, rival = run["places"][place]["results"], fastest(run, place, workload, by_role(run, "peer"))
    mine = times(results, workload, ours)
    return Ratio(mine, times(results, workload, rival), GOAL_PEER, rival) if rival and mine else None


def bare_ratio(run, place, workload, ours):
    results = run["places"][place]["results"]
    mine, other = times(results, workload, ours), times(results, workload, "bindfs")
    goal = GOAL_BARE if run["workloads"][workload]["metadata"] else None
    return Ratio(mine, other, goal, "bindfs") if mine and other else None


def bound_ratio(run, place, workload, ours):
    """Against the lower of what the cipher and what FUSE alone allow."""
    results = run["places"][place]["results"]
    bare, mine = fastest(run, place, workload, by_role(run, "bare")), times(results, workload, ours)
    if not bare or not mine:
        return None
    amount = results[workload][ours][0]["amount"]
    cipher = amount / run["bounds"]["gcm_all"]
    fuse = times(results, workload, bare)
    if cipher > statistics.median(fuse):
        return Ratio(mine, [cipher] * len(mine), GOAL_BOUND, "AES-GCM")
    return Ratio(mine, fuse, GOAL_BOUND, bare)


def in_unit(unit, sample, seconds):
    if unit == "MB/s":
        return sample["amount"] / 1e6 / seconds
    return seconds * 1e6 / sample["amount"] if unit == "us/op" else seconds


def cell(unit, samples, flag=""):
    """Median in the workload's unit; ~ when the rounds disagree."""
    if not samples:
        return "- "
    seconds = [s["seconds"] for s in samples]
    value = in_unit(unit, samples[0], statistics.median(seconds))
    return f"{flag}{digits(value)}{'~' if max(seconds) > NOISY * min(seconds) else ' '}"


def aligned(rows, left=1):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) if i < left or i == len(row) - 1 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
            for row in rows]


def short(name):
    return name.removeprefix("byokfs-")


def done_in(run, place):
    results = run["places"][place]["results"]
    return [w for w in run["workloads"] if w in results]


def values(run, place):
    """Everybody's medians."""
    rows, results = [["", "unit", *run["contenders"], "work"]], run["places"][place]["results"]
    for w in done_in(run, place):
        kind = run["workloads"][w]
        flags = {n: "" if c["durable"] or not kind["sync"] else "*" for n, c in run["contenders"].items()}
        rows.append([w, kind["unit"], *(cell(kind["unit"], results[w].get(n), flags[n]) for n in run["contenders"]), kind["what"]])
    return aligned(rows, 2)


def ratios(run, place):
    """byokfs over the fastest encrypted peer and over bindfs."""
    ours, results = by_role(run, "ours"), run["places"][place]["results"]
    if not ours:
        return []
    rows = [["", "fastest peer", *(f"{short(n)}/peer" for n in ours), *(f"{short(n)}/bindfs" for n in ours),
             *(f"KMS {short(n)}" for n in ours), ""]]
    for w in done_in(run, place):
        found = [*(peer_ratio(run, place, w, n) for n in ours), *(bare_ratio(run, place, w, n) for n in ours)]
        calls = [f"{statistics.median(s['kms'] for s in by):.0f}" if (by := results[w].get(n)) else "-" for n in ours]
        rows.append([w, next((r.name for r in found if r), "-"), *(str(r) if r else "-" for r in found), *calls, ""])
    return aligned(rows, 2)


def bounds(run, place):
    lines = []
    for w in SEQUENTIAL:
        for n in by_role(run, "ours"):
            ratio = bound_ratio(run, place, w, n) if w in run["workloads"] else None
            if ratio:
                lines.append(f"{w} {n} / {ratio.name}: {ratio}")
    if lines:
        lines.insert(0, f"Bound: the slower of AES-256-GCM ({run['bounds']['gcm_1'] / 1e6:.0f} MB/s on one processor, "
                        f"{run['bounds']['gcm_all'] / 1e6:.0f} on all) and the fastest without encryption")
    return lines


def delays(run, place):
    rows = [["us: p50 / p99 / p99.9", *run["contenders"], ""]]
    for situation, by in run["places"][place]["latency"].items():
        rows.append([situation, *(" / ".join(f"{by[n][p]:.0f}" for p in ("p50", "p99", "p99.9")) if n in by else "-"
                                  for n in run["contenders"]), ""])
    return aligned(rows) if len(rows) > 1 else []


def processor_time(run, place):
    rows, results = [["", *run["contenders"], ""]], run["places"][place]["results"]
    for w in done_in(run, place):
        rows.append([w, *(f"{statistics.median(s['cpu'] for s in by):.2f}" if (by := results[w].get(n)) else "-"
                          for n in run["contenders"]), ""])
    return aligned(rows)


def breakage(run, place):
    return [f"{name} BROKE in {step}, {why}" for name, steps in run["places"][place]["broken"].items() for step, why in steps.items()]


def places(run):
    return sorted(run["places"], key=lambda p: ORDER.index(p) if p in ORDER else len(ORDER))


LEGEND = """MB/s: more is better; s and us/op: less is better. Medians; ~: the slowest round took over 1.3 times the fastest.
Ratios are speeds, above 1 byokfs is faster: median of the rounds (lowest..highest). ! marks those below the goal: 2 beside the fastest
encrypted peer, 1 beside bindfs for what is names and attributes (untar, find, ls-lR, stat-storm, git, rm), 0.8 of the bound.
*: its fsync does not reach the disk, so it is no rival there. KMS: calls to the key service while the work ran."""


def text(run, cpu=False):
    versions = ", ".join(f"{n} {c['version']}" for n, c in run["contenders"].items())
    out = [f"{versions}; {run['machine']}, Linux {run['kernel']}; scale {run['scale']:g}, {run['rounds']} rounds, load average "
           f"{run['load'][0]} to {run['load'][1]}, KMS answers {run['kms_latency_ms'] or 'at once'}{' ms later' * bool(run['kms_latency_ms'])}"]
    for place in places(run):
        at = run["places"][place]
        out += ["", f"== {place}: {at['directory']} ({at['kind']}), {sum(at['took'].values()):.0f} s", *values(run, place), "",
                *ratios(run, place), "", *bounds(run, place)]
        if at["latency"]:
            out += ["", *delays(run, place)]
        if cpu:
            out += ["", "processor seconds of the daemon, median", *processor_time(run, place)]
        out += breakage(run, place)
    return "\n".join([*out, "", *(f"{s}: {what}" for s, what in run["situations"].items()), LEGEND])


def bold(ratio):
    """In Markdown: what misses its goal stands out."""
    if ratio is None:
        return "–"
    return f"**{digits(ratio.value)}**" if ratio.missed else digits(ratio.value)


def markdown(run):
    """The table of the README."""
    ours, at = by_role(run, "ours"), places(run)
    head = ["work", *(f"{p}: fastest peer | {p}: {short(n)} / peer | {p}: {short(n)} / bindfs" for p in at for n in ours[:1]),
            *(f"{p}: {short(n)} / peer" for n in ours[1:] for p in at)]
    columns = sum(h.count("|") + 1 for h in head)
    lines = ["| " + " | ".join(head) + " |", "|---" * columns + "|"]
    for w, kind in run["workloads"].items():
        first = []
        for p in at:
            peer, bare = peer_ratio(run, p, w, ours[0]), bare_ratio(run, p, w, ours[0])
            first += [peer.name if peer else "–", bold(peer), bold(bare)]
        rest = [bold(peer_ratio(run, p, w, n)) for n in ours[1:] for p in at]
        lines.append("| " + " | ".join([f"{w}: {kind['what']}", *first, *rest]) + " |")
    return "\n".join([*lines, "", *markdown_notes(run)])


def markdown_notes(run):
    lines = []
    for p in places(run):
        for w in SEQUENTIAL:
            ratio = bound_ratio(run, p, w, by_role(run, "ours")[0]) if w in run["workloads"] else None
            if ratio:
                lines.append(f"- {w} on {p}: {bold(ratio)} of the bound ({ratio.name})")
        for situation, by in run["places"][p]["latency"].items():
            cells = [f"{n} {by[n]['p50']:.0f}/{by[n]['p99']:.0f}/{by[n]['p99.9']:.0f}" for n in run["contenders"] if n in by]
            lines.append(f"- 4 KiB read, {situation}, {p}, p50/p99/p99.9 in µs: {', '.join(cells)}")
    return lines


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", nargs="?", default=os.path.join(os.environ.get("BUILD", "build"), "bench.json"))
    p.add_argument("--markdown", action="store_true", help="the table of the README")
    p.add_argument("--cpu", action="store_true", help="also the processor time of the daemons")
    args = p.parse_args()
    with open(args.file) as f:
        run = json.load(f)
    if args.markdown and not by_role(run, "ours"):
        sys.exit(f"report: {args.file}: byokfs took no part")
    print(markdown(run) if args.markdown else text(run, args.cpu))


if __name__ == "__main__":
    main()
