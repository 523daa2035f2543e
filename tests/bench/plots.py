#!/usr/bin/python3
"""Pictures of what the bench measured, as SVG written by hand: small, the same for the same numbers, and nothing to install.

    plots.py [--out DIR] [FILE...]      the last run in build/bench.json, into docs/bench/

A file is a run of bench.py ("kind": "bench"): speed-PLACE.svg beside the fastest encrypted neighbour and latency-PLACE.svg; or a curve
("kind": "scale", "points": [{"files": N, "op": "walk", "us": ..., "rss": ...}], us an operation or null, rss in bytes):
scale.svg."""
import argparse
import json
import math
import os
import sys

import report
from svg import Picture, log_ticks, plain_number

OURS = {"byokfs-domain": "#1b6ca8", "byokfs-file": "#7fb2dc", "byokfs-uring": "#2a9d4a"}
OTHERS = ["#8d99a6", "#c9812f", "#b04a5a", "#7a5ba6", "#4f8f8b", "#a0a030", "#666666", "#333333"]
ROW, BAR, LEFT, WIDTH = 30, 8, 118, 760
LOWEST, HIGHEST = 0.1, 64


def bar_rows(run, place):
    """[(work, fastest peer, {name: speed over that peer})] of those that have a rival."""
    rows = []
    names = [n for n in run["contenders"] if n in OURS] + ["bindfs"]
    for work in report.done_in(run, place):
        ratios = {n: report.peer_ratio(run, place, work, n) for n in names}
        known = {n: r for n, r in ratios.items() if r}
        if known:
            rows.append((work, next(iter(known.values())).name, {n: r.value for n, r in known.items()}))
    return rows


def speed(run, place):
    """Groups of horizontal bars from 1 to the ratio, on a logarithmic axis: right of 1 is faster than the fastest peer."""
    rows = bar_rows(run, place)
    names = [n for n in [*OURS, "bindfs"] if any(n in r for _, _, r in rows)]
    colours = {**OURS, "bindfs": "#d9d9d9"}
    height = max(ROW, BAR * len(names) + 8)
    picture = Picture(WIDTH, 74 + height * len(rows) + 26)
    picture.title(f"Speed beside the fastest encrypted neighbour, {place}", "right of 1: faster than all of them; dashed: twice as fast (log scale)")
    picture.legend(16, 58, [(n if n != "bindfs" else "bindfs, no encryption", colours[n]) for n in names])
    top, right = 70, WIDTH - 120
    at = log_scale(LOWEST, HIGHEST, LEFT, right)
    bottom = top + height * len(rows)
    for tick in log_ticks(LOWEST, HIGHEST, 2):
        picture.line(at(tick), top, at(tick), bottom, "#333" if tick == 1 else "#e4e4e4", 1.2 if tick == 1 else 0.7)
        picture.text(at(tick), bottom + 16, plain_number(tick), anchor="middle", size=11)
    picture.line(at(report.GOAL_PEER), top, at(report.GOAL_PEER), bottom, "#2a9d4a", 1, dashed=True)
    for i, (work, rival, ratios) in enumerate(rows):
        y = top + i * height
        if i % 2:
            picture.box(0, y, WIDTH, height, "#000", opacity=0.025)
        picture.text(LEFT - 8, y + height / 2 + 4, work, anchor="end")
        picture.text(right + 10, y + height / 2 + 4, rival, size=11, colour="#666")
        first = y + (height - BAR * len(ratios)) / 2
        for j, (name, value) in enumerate(ratios.items()):
            a, b = sorted((at(1), at(value)))
            picture.box(a, first + j * BAR, max(b - a, 1), BAR - 1, colours[name], tip=f"{work} {name}: {report.digits(value)}")
    picture.text(right + 10, 58, "fastest peer", size=11, colour="#666")
    return picture.svg()


def log_scale(low, high, left, right):
    """A function from a value to a coordinate; what lies outside is at the edge."""
    span = math.log(high / low)
    return lambda v: round(left + (right - left) * math.log(min(max(v, low), high) / low) / span, 1)


def colour_of(names):
    others = [n for n in names if n not in OURS]
    return {**OURS, **{n: OTHERS[i % len(OTHERS)] for i, n in enumerate(others)}}


def latency(run, place):
    """For each situation and contender a line from the median to p99.9, with p99 marked."""
    found = run["places"][place]["latency"]
    names = [n for n in run["contenders"] if run["contenders"][n]["role"] != "plain" and any(n in by for by in found.values())]
    values = [by[n][p] for by in found.values() for n in names if n in by for p in ("p50", "p99.9")]
    low, high = 10 ** math.floor(math.log10(max(1, min(values)))), 10 ** math.ceil(math.log10(max(values)))
    step, head = 16, 26
    picture = Picture(WIDTH, 70 + len(found) * (head + step * len(names)) + 40)
    picture.title(f"Time of a 4 KiB read, {place}", "median (bar), p99 (dot), p99.9 (end of the line); microseconds, log scale")
    at, y = log_scale(low, high * 1.0001, LEFT, WIDTH - 40), 66
    bottom, colours = picture.height - 34, colour_of(names)
    for tick in log_ticks(low, high, 10):
        picture.line(at(tick), y, at(tick), bottom, "#e4e4e4", 0.7)
        picture.text(at(tick), bottom + 16, plain_number(tick), anchor="middle", size=11)
    for situation, by in found.items():
        y += head
        picture.text(16, y - 8, f"{situation}: {run['situations'][situation]}", bold=True, size=12)
        for name in (n for n in names if n in by):
            p50, p99, most = (by[name][p] for p in ("p50", "p99", "p99.9"))
            middle = y + step / 2
            picture.text(LEFT - 8, middle + 4, name, anchor="end", size=11)
            picture.line(at(low), middle, at(most), middle, colours[name], 1.5)
            picture.box(at(low), middle - 4, max(at(p50) - at(low), 1), 8, colours[name],
                        tip=f"{name}: p50 {p50:.0f}, p99 {p99:.0f}, p99.9 {most:.0f} us")
            picture.dot(at(p99), middle, 3.5, colours[name])
            y += step
    return picture.svg()


def scale(run):
    """One line per operation over the number of files; beside it the daemon's memory, if known."""
    points = sorted((p for p in run["points"] if p["us"]), key=lambda p: (p["op"], p["files"]))
    ops = sorted({p["op"] for p in points})
    has_rss = any(p.get("rss") for p in points)
    picture = Picture(WIDTH, 340)
    picture.title("Cost of an operation by size of the tree", "microseconds (log scale) over the number of files"
                  + ("; dashed: memory of the daemon" * has_rss))
    colours = dict(zip(ops, ["#1b6ca8", "#c9812f", "#2a9d4a", "#b04a5a", "#7a5ba6", "#4f8f8b", "#666666"] * 3))
    picture.legend(16, 58, [(op, colours[op]) for op in ops])
    files = sorted({p["files"] for p in points})
    x = log_scale(files[0], max(files[-1], files[0] * 10), 60, WIDTH - 90)
    y = axis(picture, [p["us"] for p in points], 60, WIDTH - 90, "us")
    for n in files:
        picture.text(x(n), 326, f"{n:,}", anchor="middle", size=11)
    for op in ops:
        line = [(x(p["files"]), y(p["us"])) for p in points if p["op"] == op]
        picture.path(line, colours[op], 2)
        for px, py in line:
            picture.dot(px, py, 3, colours[op])
    if has_rss:
        memory(picture, points, files, x)
    return picture.svg()


def memory(picture, points, files, x):
    """The most the daemon used at each size, on an axis of its own at the right."""
    most = [(n, max(p.get("rss") or 0 for p in points if p["files"] == n) / 2**20) for n in files]
    top = max(v for _, v in most) * 1.1
    y = [(x(n), round(300 - 226 * v / top, 1)) for n, v in most]
    picture.path(y, "#999999", 1.5, dashed=True)
    for (px, py), (_, v) in zip(y, most):
        picture.text(px + 6, py - 5, f"{v:.0f} MiB", size=10, colour="#777")


def axis(picture, us, left, right, unit):
    low, high = 10 ** math.floor(math.log10(min(us))), 10 ** math.ceil(math.log10(max(us) * 1.01))
    y = log_scale(low, high, 300, 74)
    for tick in log_ticks(low, high, 10):
        picture.line(left, y(tick), right, y(tick), "#e4e4e4", 0.7)
        picture.text(left - 8, y(tick) + 4, f"{plain_number(tick)} {unit}", anchor="end", size=11)
    return y


def pictures(run):
    """file name -> SVG."""
    if run.get("kind") == "scale":
        return {"scale.svg": scale(run)}
    made = {}
    for place in report.places(run):
        if bar_rows(run, place):
            made[f"speed-{place}.svg"] = speed(run, place)
        if run["places"][place]["latency"]:
            made[f"latency-{place}.svg"] = latency(run, place)
    return made


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="*", default=[os.path.join(os.environ.get("BUILD", "build"), "bench.json")], metavar="FILE")
    p.add_argument("--out", default="docs/bench", metavar="DIR")
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    for name in args.files:
        try:
            with open(name) as f:
                made = pictures(json.load(f))
        except (OSError, ValueError, KeyError) as e:
            sys.exit(f"plots: {name}: {e!r}: not a run of the bench; `make bench` makes one")
        for picture, text in made.items():
            path = os.path.join(args.out, picture)
            with open(path, "w") as f:
                f.write(text)
            print(path)


if __name__ == "__main__":
    main()
