"""transactions.py write|verify FILE delete|wal COUNT: so many commits of one row each to an SQLite database; prints nanoseconds.
Every commit is on the disk before the next begins, in both kinds of journal."""
import sqlite3
import sys
import time

ROW = "insert into t values (?, ?)"


def write(path, mode, count):
    db = sqlite3.connect(path, isolation_level=None)
    if db.execute(f"pragma journal_mode = {mode}").fetchone()[0] != mode:
        sys.exit(f"{path}: no journal of kind {mode}")
    db.execute("pragma synchronous = full")
    db.execute("create table t (i integer primary key, s text)")
    for i in range(count):
        db.execute(ROW, (i, f"row {i} " * 20))
    db.close()


def verify(path, _mode, count):
    db = sqlite3.connect(path)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert db.execute("select i, s from t order by i").fetchall() == [(i, f"row {i} " * 20) for i in range(count)]
    db.close()


def main():
    what, path, mode, count = sys.argv[1:]
    start = time.monotonic_ns()
    {"write": write, "verify": verify}[what](path, mode, int(count))
    print(time.monotonic_ns() - start)


main()
