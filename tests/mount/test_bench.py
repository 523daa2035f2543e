"""The benchmark works and says what it measured; how fast anything was decides nothing here."""
import copy
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from conftest import BUILD

BENCH = os.path.join(os.path.dirname(__file__), "..", "bench")
sys.path.insert(0, BENCH)
import latency  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
del sys.path[0]


def sample(seconds, amount=1000, kms=0):
    return {"seconds": seconds, "amount": amount, "cpu": 0.1, "kms": kms}


def recorded():
    """A run as bench.py writes it: two rounds, four contenders, one of which does not sync and one of which is no rival."""
    def contender(role, durable=True):
        return {"role": role, "version": "1", "durable": durable}

    def work(unit, metadata=False, sync=False):
        return {"unit": unit, "metadata": metadata, "sync": sync, "what": "some of it"}
    delay = {"p50": 30.0, "p99": 200.0, "p99.9": 4000.0, "max": 5000.0, "reads": 4000}
    return {"kind": "bench", "scale": 1, "rounds": 2, "kms_latency_ms": 0, "machine": "2 x m", "kernel": "6", "load": [0.1, 0.2],
            "contenders": {"byokfs-domain": contender("ours"), "gocryptfs": contender("peer"), "cryfs": contender("peer", False),
                           "bindfs": contender("bare")},
            "workloads": {"seq-write": work("MB/s", sync=True), "find": work("s", metadata=True)},
            "situations": {"alone": "nobody else"}, "bounds": {"gcm_1": 2e9, "gcm_all": 4e9},
            "places": {"tmpfs": {"directory": "/dev/shm", "kind": "tmpfs", "broken": {"cryfs": {"mail": "round 1: <lost> & gone"}},
                                 "took": {"gocryptfs": 1.5}, "latency": {"alone": {"byokfs-domain": delay, "gocryptfs": delay}},
                                 "results": {"seq-write": {"byokfs-domain": [sample(1, 10**9, 3), sample(2, 10**9, 5)],
                                                           "gocryptfs": [sample(4, 10**9), sample(4, 10**9)],
                                                           "cryfs": [sample(0.5, 10**9)], "bindfs": [sample(0.9, 10**9), sample(0.9, 10**9)]},
                                             "find": {"byokfs-domain": [sample(1), sample(1)], "gocryptfs": [sample(3), sample(1)],
                                                      "cryfs": [sample(1.5)], "bindfs": [sample(0.5), sample(0.9)]}}}}}


def test_ratios_are_taken_round_by_round():
    run = recorded()
    ratio = report.peer_ratio(run, "tmpfs", "seq-write", "byokfs-domain")
    assert (ratio.name, ratio.value, ratio.low, ratio.high, ratio.missed) == ("gocryptfs", 3, 2, 4, False)
    ratio = report.bound_ratio(run, "tmpfs", "seq-write", "byokfs-domain")
    assert (ratio.name, round(ratio.value, 3), ratio.missed) == ("bindfs", 0.675, True)
    run["bounds"]["gcm_all"] = 1e9
    assert report.bound_ratio(run, "tmpfs", "seq-write", "byokfs-domain").name == "AES-GCM"


def test_who_does_not_sync_is_no_rival_where_it_counts():
    run = recorded()
    assert report.fastest(run, "tmpfs", "seq-write", ["gocryptfs", "cryfs"]) == "gocryptfs"
    assert report.fastest(run, "tmpfs", "find", ["gocryptfs", "cryfs"]) == "cryfs"
    assert report.peer_ratio(run, "tmpfs", "find", "byokfs-domain").missed


def test_what_misses_the_goal_is_marked_and_who_broke_is_named():
    text = report.text(recorded(), cpu=True)
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith(("seq-write  gocryptfs", "find       cryfs"))}
    assert "3.00  (2.00..4.00)" in lines["seq-write"]
    assert "1.50! (1.50..1.50)" in lines["find"] and "0.70! (0.50..0.90)" in lines["find"]
    assert "cryfs BROKE in mail, round 1: <lost> & gone" in text
    table = report.markdown(recorded()).splitlines()
    assert table[0].count("|") == table[1].count("|") == table[2].count("|")
    assert "| gocryptfs | 3.00 | 0.68 |" in table[2] and "| cryfs | **1.50** | **0.70** |" in table[3]


def test_percentiles():
    found = latency.summary([n * 1000 for n in range(1000, 0, -1)])
    assert found == {"p50": 500.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0, "reads": 1000}
    assert latency.summary([7000])["p99.9"] == 7.0


CURVE = {"kind": "scale", "points": [{"files": n, "op": op, "us": us, "rss": n} for n in (1000, 10**6) for op, us in (("walk", 6.5), ("rm", 40), ("forgotten", None))]}


def test_pictures_are_wellformed_and_the_same_each_time(tmp_path):
    run, curve = tmp_path / "run.json", tmp_path / "curve.json"
    run.write_text(json.dumps(recorded()))
    curve.write_text(json.dumps(CURVE))
    for out in ("a", "b"):
        done = subprocess.run([sys.executable, "-B", os.path.join(BENCH, "plots.py"), "--out", tmp_path / out, run, curve],
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "a")) == ["latency-tmpfs.svg", "scale.svg", "speed-tmpfs.svg"]
    for name in os.listdir(tmp_path / "a"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes() and len(first) < 50000
        assert ET.fromstring(first).tag.endswith("svg")


def test_a_longer_bar_is_a_faster_one():
    slow, fast = recorded(), recorded()
    for s in fast["places"]["tmpfs"]["results"]["find"]["byokfs-domain"]:
        s["seconds"] /= 4

    def width(run):
        root = ET.fromstring(plots.pictures(run)["speed-tmpfs.svg"])
        bars = [r for r in root.iter() if r.tag.endswith("rect") and any("find byokfs-domain" in (t.text or "") for t in r)]
        return float(bars[0].get("width"))
    assert width(fast) > width(slow)


def test_plots_says_what_is_wrong(tmp_path):
    wrong = copy.deepcopy(recorded())
    del wrong["places"]
    (tmp_path / "x.json").write_text(json.dumps(wrong))
    done = subprocess.run([sys.executable, "-B", os.path.join(BENCH, "plots.py"), "--out", tmp_path, tmp_path / "x.json"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "not a run of the bench" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts as root")
def test_a_small_run_measures_everything(tmp_path):
    """Every kind of work, checked, on byokfs, one neighbour and the bare directory; then its report and its pictures."""
    out = tmp_path / "bench.json"
    done = subprocess.run([sys.executable, "-B", os.path.join(BENCH, "bench.py"), "--rounds", "1", "--scale", "0.01", "--keep-caches", "--dir", tmp_path, "--json", out,
                           "--contenders", "byokfs-domain,gocryptfs,plain"], capture_output=True, text=True, check=False,
                          env={**os.environ, "BUILD": BUILD})
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(out.read_text())
    at = run["places"]["dir"]
    assert at["broken"] == {} and set(at["results"]) == set(run["workloads"]) and len(run["workloads"]) == 24
    for work, by in at["results"].items():
        assert set(by) == {"byokfs-domain", "gocryptfs", "plain"}, work
        assert all(s["seconds"] > 0 and s["amount"] > 0 for samples in by.values() for s in samples), work
    assert set(at["latency"]) == {"alone", "streaming", "opening"}
    assert all(d["reads"] > 0 and d["p50"] <= d["p99"] <= d["p99.9"] for by in at["latency"].values() for d in by.values())
    assert "byokfs-domain" in done.stdout and "BROKE" not in done.stdout
    assert set(plots.pictures(run)) == {"speed-dir.svg", "latency-dir.svg"}
    assert [f for f in os.listdir(tmp_path) if f.startswith("byokfs-bench")] == []


def test_other_data_than_was_written_is_a_failure(tmp_path):
    """The load generator notices one changed byte in what it reads."""
    sys.path.insert(0, BENCH)
    import runner
    del sys.path[0]
    load, file = runner.build_load(str(tmp_path)), tmp_path / "file"
    subprocess.run([load, "seq-write", file, "1", "0"], check=True, capture_output=True)
    data = bytearray(file.read_bytes())
    data[700000] ^= 1
    file.write_bytes(data)
    for what in ("seq-read", "mmap-read"):
        done = subprocess.run([load, what, file, "1", "0"], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "wrong data" in done.stderr and done.stdout == ""
