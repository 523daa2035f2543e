#!/usr/bin/python3
"""How long `byokfsctl rotate` takes against the least it can take: files x latency of the KMS / jobs. Rotates a store of
small files offline, then live and back. With root, and BUILD naming the build directory:

    BUILD=build /usr/bin/python3 -B tests/bench/rotate.py [--files N] [--latency MS] [--jobs N] [--where DIR]
"""
import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "mount"))
from conftest import Devkms, Mount  # noqa: E402
from rotation import new_key, slots_of, under  # noqa: E402

PER_DIRECTORY = 1000


def make_files(m, n):
    for i in range(n):
        if i % PER_DIRECTORY == 0:
            os.mkdir(m.path(f"d{i // PER_DIRECTORY}"))
        with open(m.path(f"d{i // PER_DIRECTORY}", f"f{i}"), "wb") as f:
            f.write(b"small")


def cpu_of(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(what, m, to, other, args):
    before, daemon = resource.getrusage(resource.RUSAGE_CHILDREN), m.process and cpu_of(m.process.pid)
    kms_cpu = cpu_of(m.kms.process.pid)
    begin = time.monotonic()
    r = m.ctl("rotate", "-c", m.ini, "--to", to, "--from", other, "--jobs", str(args.jobs), "--json", m.cipher, timeout=3600)
    seconds = time.monotonic() - begin
    assert r.returncode == 0, r.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = json.loads(r.stdout)
    least = args.files * args.latency / 1000 / args.jobs
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert slots_of(m) == [to]
    print(f"{what:8} {args.files} files, {args.latency} ms, {args.jobs} jobs: {seconds:6.2f} s, least {least:6.2f} s, ratio "
          f"{seconds / least:4.2f}; {answer['requests']} requests; CPU: byokfsctl {own:.2f} s, KMS "
          f"{cpu_of(m.kms.process.pid) - kms_cpu:.2f} s" + (f", daemon {cpu_of(m.process.pid) - daemon:.2f} s" if daemon else ""),
          flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--files", type=int, default=10000)
    p.add_argument("--latency", type=int, default=5, help="of each ReEncrypt, in ms")
    p.add_argument("--jobs", type=int, default=32)
    p.add_argument("--where", default=None, help="directory for the store")
    args = p.parse_args()
    base = tempfile.mkdtemp(prefix="byokfs-rotate-", dir=args.where)
    kms = Devkms(os.path.join(base, "devkms"))
    m = Mount(os.path.join(base, "m"), kms, probe="10s", lease="60s")
    k1, k2 = kms.key, new_key(kms)
    try:
        m.mount()
        make_files(m, args.files)
        m.umount()
        kms.fault(operations=["ReEncrypt"], latency_ms=args.latency)
        run("offline", m, k2, k1, args)
        assert under(m.cipher, k2)
        kms.clear()
        with open(m.ini) as f:
            text = f.read().replace(k1, k2)
        with open(m.ini, "w") as f:
            f.write(text)
        m.mount()
        kms.fault(operations=["ReEncrypt"], latency_ms=args.latency)
        run("live", m, k1, k2, args)
        assert under(m.cipher, k1)
    finally:
        kms.clear()
        m.close()
        kms.stop()
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
