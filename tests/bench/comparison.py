"""All rounds of one place: who takes part in what, whose turn it is, who broke where."""
import os
import subprocess
import sys
import time
from dataclasses import asdict

import contenders
import latency
import peers
import runner
import workloads

BREAKS = (contenders.Broken, AssertionError, OSError, ValueError, subprocess.SubprocessError)


class Comparison:
    """Who breaks in a group is out of it for the rest of the run, and the run is a failure."""

    def __init__(self, bench, directory, names, with_latency):
        self.bench, self.directory, self.names = bench, directory, list(names)
        self.broken, self.results, self.reads = {}, {}, {}
        self.steps = [g for g, group_names in workloads.GROUPS.items() if set(group_names) & set(bench.only)]
        if with_latency:
            self.steps.append(latency.single_reads)
        self.took = dict.fromkeys(names, 0.0)

    def round(self, number):
        """Contenders take turns step by step, so that a slow minute of the machine meets all of them."""
        stores = {}
        order = self.names[number % len(self.names):] + self.names[:number % len(self.names)]
        try:
            for step in self.steps:
                for name in order:
                    if self.takes_part(step, name, number):
                        start = time.monotonic()
                        self.turn(step, name, number, stores)
                        self.took[name] += time.monotonic() - start
        finally:
            for store in stores.values():
                store.close()

    def takes_part(self, step, name, number):
        kind = peers.ALL[name]
        return number < kind.rounds and (kind.groups is None or step.__name__ in kind.groups) and \
            step.__name__ not in self.broken.get(name, {})

    def turn(self, step, name, number, stores):
        try:
            if name not in stores:
                stores[name] = peers.ALL[name](os.path.join(self.directory, f"{name}.{number}"))
                stores[name].create()
            self.do(step, name, stores[name])
        except BREAKS as e:
            said = getattr(e, "stderr", None) or ""
            why = f"round {number + 1}: {e if isinstance(e, contenders.Broken) else repr(e)} {said}".strip()
            self.broken.setdefault(name, {})[step.__name__] = why.replace(self.directory, "...")
            print(f"\n{name} BROKE in {step.__name__}, {why}\n{stores[name].log_tail()}", file=sys.stderr, flush=True)
            stores.pop(name).close()

    def do(self, step, name, store):
        if step is latency.single_reads:
            for situation, nanoseconds in latency.single_reads(runner.Run(self.bench, store)).items():
                self.reads.setdefault(situation, {}).setdefault(name, []).extend(nanoseconds)
        else:
            for workload, sample in runner.run_group(step, self.bench, store).items():
                self.results.setdefault(workload, {}).setdefault(name, []).append(sample)

    def as_json(self):
        return {"broken": self.broken, "took": {n: round(s, 1) for n, s in self.took.items()},
                "results": {w: {n: [asdict(s) for s in samples] for n, samples in by.items()} for w, by in self.results.items()},
                "latency": {s: {n: latency.summary(ns) for n, ns in by.items() if ns} for s, by in self.reads.items()}}
