"""Real programs. What each of them checks about itself is the assertion."""
import glob
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from conftest import wait_until
from posix_tools import BIG, BOTH, as_user, d, mounted, read, run, snapshot, variant_fixture, write

fs = variant_fixture(BOTH)
__all__ = ["d"]

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
NOBODY = 65534


def needs(*programs):
    missing = [p for p in programs if not shutil.which(p)]
    return pytest.mark.skipif(bool(missing), reason=f"no {missing}")


# ---- git ----

GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main", "-c", "gc.auto=0", "-c", "safe.directory=*",
       "-c", "protocol.file.allow=always"]


def git(*args, cwd):
    return run(*GIT, *args, cwd=cwd).stdout


@pytest.mark.sanitizer
@needs("git")
def test_git(fs, d):
    repo, clone, bare = (os.path.join(d, n) for n in ("repo", "clone", "bare.git"))
    shutil.copytree(os.path.join(SOURCE, "include"), repo)
    git("init", "-q", cwd=repo)
    git("add", ".", cwd=repo)
    git("commit", "-qm", "one", cwd=repo)
    for i in range(5):
        write(os.path.join(repo, "log.h"), os.urandom(4000 * i).hex().encode())
        write(os.path.join(repo, f"new{i}"), b"x" * i)
        git("add", ".", cwd=repo)
        git("commit", "-qm", f"change {i}", cwd=repo)
    git("clone", "-q", repo, clone, cwd=d)  # local: by hard links
    git("clone", "-q", "--bare", repo, bare, cwd=d)
    for r in (repo, clone, bare):
        git("fsck", "--full", "--strict", cwd=r)
    git("checkout", "-q", "-b", "side", "HEAD~3", cwd=clone)
    write(os.path.join(clone, "side"), b"side")
    git("add", "side", cwd=clone)
    git("commit", "-qm", "side", cwd=clone)
    git("push", "-q", bare, "side", cwd=clone)
    git("merge", "-q", "-m", "merge", "main", cwd=clone)
    git("gc", "-q", "--prune=now", cwd=repo)
    git("repack", "-adq", cwd=clone)
    assert git("status", "--porcelain", cwd=clone) == ""
    head = git("rev-parse", "HEAD", cwd=clone)
    fs.remount()
    for r in (repo, clone, bare):
        git("fsck", "--full", "--strict", cwd=r)
    assert git("rev-parse", "HEAD", cwd=clone) == head and git("status", "--porcelain", cwd=clone) == ""
    git("worktree", "add", "-q", os.path.join(d, "tree"), "HEAD~1", cwd=repo)
    assert git("status", "--porcelain", cwd=os.path.join(d, "tree")) == ""
    git("stash", "list", cwd=repo)


# ---- sqlite ----

@pytest.mark.sanitizer
@pytest.mark.parametrize("journal", ["delete", "wal", "truncate"])
def test_sqlite(fs, d, journal):
    path = os.path.join(d, "db")
    code = ("import sqlite3,sys\n"
            "c=sqlite3.connect(sys.argv[1],timeout=60,isolation_level=None)\n"
            "c.execute('pragma synchronous=normal')\n"
            "for i in range(40):\n"
            "  c.execute('begin immediate')\n"
            "  c.execute('update n set v=v+1')\n"
            "  c.execute('insert into t values(?,?)',(sys.argv[2],i))\n"
            "  c.execute('commit')\n")
    c = sqlite3.connect(path, isolation_level=None)
    assert c.execute(f"pragma journal_mode={journal}").fetchone()[0] == journal
    c.execute("create table n(v)")
    c.execute("create table t(who,i)")
    c.execute("insert into n values(0)")
    writers = [subprocess.Popen([sys.executable, "-c", code, path, str(w)]) for w in range(3)]
    while any(w.poll() is None for w in writers):
        try:
            v, n = c.execute("select (select v from n),(select count(*) from t)").fetchone()
            assert v == n
        except sqlite3.OperationalError as e:
            assert "locked" in str(e)
    assert [w.returncode for w in writers] == [0, 0, 0]
    c.close()
    fs.remount()
    c = sqlite3.connect(path)
    assert c.execute("select v from n").fetchone()[0] == 120 == c.execute("select count(*) from t").fetchone()[0]
    assert c.execute("pragma integrity_check").fetchone()[0] == "ok"
    c.close()


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_killed(d, journal):
    """SIGKILL of writers again and again; the next one recovers from journal or log."""
    path = os.path.join(d, "db")
    code = (f"import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=60,isolation_level=None)\nc.execute('pragma journal_mode={journal}')\n"
            "c.execute('create table if not exists t(i integer primary key, x)')\nprint('up',flush=True)\n"
            "while 1:\n  c.execute('begin')\n  n=c.execute('select coalesce(max(i),0) from t').fetchone()[0]\n"
            "  for k in range(10): c.execute('insert into t values(?,?)',(n+k+1,'x'*300))\n  c.execute('commit')\n")
    for i in range(5):
        child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.1)
        child.kill()
        child.wait()
        child.stdout.close()
        c = sqlite3.connect(path)
        n, top = c.execute("select count(*), coalesce(max(i),0) from t").fetchone()
        assert n == top and n % 10 == 0
        assert c.execute("pragma integrity_check").fetchone()[0] == "ok"
        c.close()


# ---- building ----

@needs("gcc", "make", "ar")
def test_gcc_and_make(fs, d):
    for name in ("include", "src"):
        shutil.copytree(os.path.join(SOURCE, name), os.path.join(d, name))
    parts = ["bytes", "layout", "jsonio", "acl", "log"]
    write(os.path.join(d, "Makefile"), ("O := " + " ".join(f"{p}.o" for p in parts) + "\nlib.a: $(O)\n\tar rcs $@ $^\n"
                                       "%.o: src/%.c\n\tgcc -c -MMD -Iinclude -D_GNU_SOURCE -DFUSE_USE_VERSION=312 -D_FILE_OFFSET_BITS=64 -O1 -o $@ $<\n"
                                       "-include $(O:.o=.d)\n").encode())
    run("make", "-j2", cwd=d)
    assert "up to date" in run("make", cwd=d).stdout
    fs.remount()
    assert "up to date" in run("make", cwd=d).stdout  # times came back to the nanosecond
    os.utime(os.path.join(d, "src", "acl.c"))
    out = run("make", cwd=d).stdout
    assert "acl.c" in out and "layout.c" not in out
    assert sorted(run("ar", "t", "lib.a", cwd=d).stdout.split()) == sorted(f"{p}.o" for p in parts)
    write(os.path.join(d, "hello.c"), b'#include <stdio.h>\nint main(void){return puts("hello")<0;}\n')
    run("gcc", "-g", "hello.c", "-o", "hello", cwd=d)
    assert run(os.path.join(d, "hello")).stdout == "hello\n"


# ---- copying ----

def make_tree(at):
    """Small, with one of everything."""
    rng = random.Random(5)
    os.makedirs(os.path.join(at, "sub", "n" * 255))
    for i, n in enumerate([0, 1, 1504, 1505, 4096, 5000, 70_000]):
        p = write(os.path.join(at, f"f{n}"), rng.randbytes(n))
        os.chmod(p, [0o644, 0o600, 0o755, 0o4755, 0o444, 0o2755, 0o000][i])
        os.utime(p, ns=(10 ** 18 + i, 10 ** 18 + 7 * i))
    os.link(os.path.join(at, "f5000"), os.path.join(at, "sub", "hard"))
    os.link(os.path.join(at, "f5000"), os.path.join(at, "hard2"))
    os.symlink("../f1", os.path.join(at, "sub", "link"))
    os.symlink("nowhere/" + "x" * 300, os.path.join(at, "dangling"))
    os.mkfifo(os.path.join(at, "fifo"))
    os.mknod(os.path.join(at, "null"), 0o20666, os.makedev(1, 3))
    os.chown(os.path.join(at, "f1"), 1001, 1002)
    os.lchown(os.path.join(at, "dangling"), 7, 8)
    with open(os.path.join(at, "sparse"), "wb") as f:
        f.truncate(3_000_000)
        f.seek(2_000_000)
        f.write(b"island")
    os.setxattr(os.path.join(at, "f4096"), "user.x", b"value")
    os.chmod(os.path.join(at, "sub"), 0o2750)
    age(at)


def age(at):
    """Old and odd times for all: rsync leaves alone what differs by less than a second."""
    n = 0
    for base, dirs, files in os.walk(at, topdown=False):
        for name in [*files, *dirs, "."]:
            n += 1
            os.utime(os.path.join(base, name), ns=(10 ** 18 + n, 10 ** 18 - 10 ** 12 * n + 7 * n), follow_symlinks=False)


@pytest.mark.sanitizer
@needs("rsync", "tar", "cpio" if shutil.which("cpio") else "tar")
def test_cp_rsync_tar(fs, d, tmp_path):
    src = tmp_path / "src"
    make_tree(src)
    want = snapshot(src)
    for name, how in {"cp": "cp -a {s} {t}", "rsync": "rsync -aHAX {s}/ {t}/",
                      "tar": "mkdir {t} && tar -C {s} --xattrs -cf - . | tar -C {t} --xattrs -xpf -",
                      "sparse": "mkdir {t} && tar -C {s} --xattrs -Scf - . | tar -C {t} --xattrs -xpf -"}.items():
        to = os.path.join(d, name)
        run("sh", "-ec", how.format(s=src, t=to))
        assert snapshot(to) == want, name
        assert run("rsync", "-aHAXn", "--delete", "--itemize-changes", "--checksum", f"{src}/", to + "/").stdout == "", name
    fs.remount()
    for name in ("cp", "rsync", "tar", "sparse"):
        to = os.path.join(d, name)
        assert snapshot(to) == want, name
        assert run("rsync", "-aHAXn", "--delete", "--itemize-changes", "--checksum", f"{src}/", to + "/").stdout == "", name
    assert os.stat(os.path.join(d, "cp", "sparse")).st_blocks * 512 < 100_000 or not fs.cipher
    run("rsync", "-aHAX", os.path.join(d, "cp") + "/", tmp_path / "back")  # and out again
    assert snapshot(tmp_path / "back") == want
    run("cp", "-a", os.path.join(d, "cp"), os.path.join(d, "inside"))
    assert snapshot(os.path.join(d, "inside")) == want


@needs("rsync")
def test_rsync_updates_in_place(d, tmp_path):
    """--inplace and --append rewrite what is there; a second run has nothing to do."""
    src, to = tmp_path / "src", os.path.join(d, "to")
    src.mkdir()
    rng = random.Random(1)
    for i in range(6):
        write(src / f"f{i}", rng.randbytes(40_000 * i))
    run("rsync", "-a", f"{src}/", to + "/")
    for i in range(6):
        data = bytearray(read(src / f"f{i}"))
        for _ in range(i):
            at = rng.randrange(len(data))
            data[at:at + 100] = rng.randbytes(150)
        write(src / f"f{i}", bytes(data))
    age(src)
    run("rsync", "-a", "--inplace", "--no-whole-file", "--checksum", f"{src}/", to + "/")
    assert snapshot(to) == snapshot(src)
    for i in range(6):
        write(src / f"f{i}", b"tail" * 1000, "ab")
    age(src)
    run("rsync", "-a", "--append-verify", f"{src}/", to + "/")
    assert snapshot(to) == snapshot(src)
    assert run("rsync", "-an", "--itemize-changes", f"{src}/", to + "/").stdout == ""


@pytest.mark.sanitizer
def test_cp_of_a_file_being_written(fs, d):
    """What the writer's kernel pages hold is copied too, though nobody synced: holes are looked for in what is really there."""
    f, data = os.path.join(d, "f"), os.urandom(200_000)
    with open(f, "wb", buffering=0) as o:
        o.truncate(4_000_000)
        o.seek(1_000_000)
        o.write(data)
        run("cp", f, f + "2")
        run("cp", "--sparse=auto", f, f + "3")
        o.seek(3_999_990)
        o.write(b"the very end of it")
        run("cp", f, f + "4")
    want = b"\0" * 1_000_000 + data
    assert read(f + "2") == read(f + "3") == want + b"\0" * (4_000_000 - len(want))
    assert read(f + "4") == read(f) == want + b"\0" * (3_999_990 - len(want)) + b"the very end of it"


# ---- editors and small tools ----

@pytest.mark.sanitizer
@needs("ex", "sed", "patch" if shutil.which("patch") else "sed")
def test_editors(d):
    f = write(os.path.join(d, "f"), b"".join(b"line %d\n" % i for i in range(2000)))
    os.chmod(f, 0o640)
    os.link(f, f + "-link")
    run("ex", "-s", "-u", "NONE", "-c", "set backup backupcopy=auto", "-c", "%s/line 7/LINE 7/", "-c", "wq", f)
    assert read(f).count(b"LINE 7") == 111 and os.stat(f).st_mode & 0o777 == 0o640
    run("ex", "-s", "-u", "NONE", "-c", "set nobackup backupcopy=no", "-c", "1d", "-c", "x", f)
    assert read(f).startswith(b"line 1\n")
    run("sed", "-i.orig", "s/LINE/line/", f)
    assert b"LINE" not in read(f) and b"LINE" in read(f + ".orig")
    run("sort", "-T", d, "-S", "100k", "-R", "-o", f, f)
    run("sort", "-T", d, "-k2,2n", "-o", f, f)
    assert read(f) == b"".join(b"line %d\n" % i for i in range(1, 2000))
    run("split", "-b", "1000", f, f + ".part.")
    assert b"".join(read(p) for p in sorted(glob.glob(f + ".part.*"))) == read(f)
    run("dd", f"if={f}", f"of={f}.dd", "bs=777", "conv=sync,fsync", "status=none")
    run("gzip", "-k", f)
    run("gunzip", "-c", f + ".gz")
    run("install", "-m", "755", "-o", "1001", f, f + ".inst")
    assert os.stat(f + ".inst").st_uid == 1001
    run("truncate", "-s", "+1M", f)
    run("shred", "-n", "1", "-u", f)
    assert not os.path.exists(f)


def test_maildir(d):
    """Several deliverers and one reader: write to tmp, fsync, rename into new; nothing is lost, nothing is seen in part."""
    for n in ("tmp", "new", "cur"):
        os.mkdir(os.path.join(d, n))
    code = ("import os,sys\nd,w=sys.argv[1:]\n"
            "for i in range(60):\n"
            "  t=f'{d}/tmp/{w}.{i}'\n"
            "  fd=os.open(t,os.O_CREAT|os.O_EXCL|os.O_WRONLY); os.write(fd,f'{w} {i} '.encode()+b'm'*3000); os.fsync(fd); os.close(fd)\n"
            "  os.link(t,f'{d}/new/{w}.{i}'); os.unlink(t)\n"
            "  fd=os.open(f'{d}/new',os.O_RDONLY); os.fsync(fd); os.close(fd)\n")
    writers = [subprocess.Popen([sys.executable, "-c", code, d, str(w)]) for w in range(4)]
    seen = set()

    def take():
        for n in os.listdir(os.path.join(d, "new")):
            os.rename(os.path.join(d, "new", n), os.path.join(d, "cur", n + ":2,S"))
            data = read(os.path.join(d, "cur", n + ":2,S"))
            assert data == " ".join(n.split(".")).encode() + b" " + b"m" * 3000
            seen.add(n)
    while any(w.poll() is None for w in writers):
        take()
    take()
    assert [w.returncode for w in writers] == [0] * 4 and len(seen) == 240 and os.listdir(os.path.join(d, "tmp")) == []


def test_a_loop_device_with_a_filesystem(d):
    """Another filesystem inside one of our files: random aligned writes, flushes, discards."""
    image, at = os.path.join(d, "image"), os.path.join(d, "at")
    if not shutil.which("mkfs.ext4"):
        pytest.skip("no mkfs.ext4")
    run("truncate", "-s", "64M", image)
    run("mkfs.ext4", "-q", image)
    os.mkdir(at)
    if run("mount", "-o", "loop,discard", image, at, check=False).returncode:
        pytest.skip("no loop devices here")
    try:
        shutil.copytree(os.path.join(SOURCE, "src"), os.path.join(at, "src"))
        want = snapshot(os.path.join(at, "src"))
        run("rm", "-r", os.path.join(at, "lost+found"))
    finally:
        run("umount", at)
    run("e2fsck", "-fn", image)
    run("mount", "-o", "loop", image, at)
    try:
        assert snapshot(os.path.join(at, "src")) == want
    finally:
        run("umount", at)


def test_python_venv_and_dpkg(d):
    run(sys.executable, "-m", "compileall", "-q", "-d", "x", shutil.copytree(os.path.dirname(os.__file__) + "/email", os.path.join(d, "email")))
    assert len(glob.glob(os.path.join(d, "email", "__pycache__", "*.pyc"))) > 10
    if shutil.which("dpkg-deb"):
        os.makedirs(os.path.join(d, "p", "DEBIAN"))
        write(os.path.join(d, "p", "DEBIAN", "control"), b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n")
        write(os.path.join(d, "p", "file"), b"x" * 9999)
        run("dpkg-deb", "-b", "p", "x.deb", cwd=d)
        run("dpkg-deb", "-x", "x.deb", "out", cwd=d)
        assert read(os.path.join(d, "out", "file")) == b"x" * 9999


# ---- PostgreSQL ----

def postgres_bin():
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    return os.path.dirname(found[-1]) if found else None


class Postgres:
    def __init__(self, data, bindir):
        self.data, self.bin, self.process = data, bindir, None

    def run(self, program, *args, **kw):
        return run(os.path.join(self.bin, program), *args, user=NOBODY, group=NOBODY, extra_groups=[], cwd=self.data, timeout=120,
                   env={"PATH": self.bin + ":/usr/bin:/bin", "PGHOST": self.data, "LC_ALL": "C.UTF-8", "HOME": self.data}, **kw)

    def start(self):
        with open(os.path.join(self.data, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [os.path.join(self.bin, "postgres"), "-D", self.data, "-k", self.data, "-c", "listen_addresses=", "-c", "shared_buffers=4MB",
                 "-c", "max_wal_size=64MB", "-c", "wal_init_zero=off", "-c", "autovacuum=off"], user=NOBODY, group=NOBODY, extra_groups=[], cwd=self.data,
                stdout=log, stderr=log, env={"PATH": self.bin, "LC_ALL": "C.UTF-8"})
        wait_until(lambda: self.process.poll() is not None or self.run("pg_isready", check=False).returncode == 0, 60, 0.1)
        assert self.process.poll() is None, read(os.path.join(self.data, "log")).decode()

    def stop(self, sig=signal.SIGINT):
        if self.process:
            self.process.send_signal(sig)
            self.process.wait(60)
            self.process = None

    def sql(self, text):
        return self.run("psql", "-XAtq", "-d", "postgres", "-c", text).stdout.strip()


@pytest.mark.skipif(not postgres_bin(), reason="no PostgreSQL")
def test_postgresql(shared_devkms):
    with mounted(kms=shared_devkms) as m:
        data = m.path("pg")
        os.mkdir(data, 0o700)
        os.chown(data, NOBODY, NOBODY)
        pg = Postgres(data, postgres_bin())
        inner = os.path.join(data, "data")
        pg.run("initdb", "-D", inner, "-A", "trust", "-U", "nobody", "--data-checksums", "--no-sync")
        pg.data = inner
        try:
            pg.start()
            pg.run("pgbench", "-i", "-q", "-s", "5" if BIG else "1", "-d", "postgres")
            pg.run("pgbench", "-c", "4", "-j", "2", "-t", "2000" if BIG else "100", "-d", "postgres")
            done = int(pg.sql("select count(*) from pgbench_history"))
            pg.sql("create table mark as select generate_series(1,1000) as i")
            pg.stop(signal.SIGQUIT)  # immediate: as a crash
            pg.start()
            assert int(pg.sql("select count(*) from pgbench_history")) == done and pg.sql("select sum(i) from mark") == "500500"
            bench = subprocess.Popen([os.path.join(pg.bin, "pgbench"), "-n", "-c", "4", "-T", "30", "-d", "postgres", "-h", inner, "-U", "nobody"], user=NOBODY,
                                     group=NOBODY, extra_groups=[], cwd=inner, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(lambda: int(pg.sql("select count(*) from pgbench_history")) > done + 20, 60, 0.2)
            pg.process.kill()
            pg.process.wait()
            bench.wait(60)
            pidfile = os.path.join(inner, "postmaster.pid")
            wait_until(lambda: not any("postgres: " in c and inner in w for c, w in processes()), 30, 0.1)
            if os.path.exists(pidfile):
                os.unlink(pidfile)
            pg.start()
            balance = pg.sql("select (select sum(abalance) from pgbench_accounts)=(select sum(delta) from pgbench_history), "
                             "(select sum(bbalance) from pgbench_branches)=(select sum(delta) from pgbench_history)")
            assert balance == "t|t"
            pg.stop()
            pg.run("pg_checksums", "--check", "-D", inner)
            m.remount()
            pg.start()
            assert pg.sql("select sum(i) from mark") == "500500"
            pg.stop()
        finally:
            if pg.process and pg.process.poll() is None:
                pg.process.send_signal(signal.SIGQUIT)
                pg.process.wait()


def processes():
    """(command line, working directory) of every process that may be looked at."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            out.append((read(f"/proc/{pid}/cmdline").decode(errors="replace"), os.readlink(f"/proc/{pid}/cwd")))
        except OSError:
            pass
    return out


def test_as_another_user(fs, d):
    """The same tools without root."""
    home = os.path.join(d, "home")
    os.mkdir(home)
    os.chown(home, 1001, 1001)

    def work():
        os.chdir(home)
        run("sh", "-ec", "mkdir a && cp -r /usr/include/linux/netfilter a/ && tar cf a.tar a && mkdir b && tar xf a.tar -C b && diff -r a b/a && rm -r a")
        run("sh", "-ec", "umask 077; echo x > secret; mkfifo p; ln -s secret l; ln secret h; chmod 400 h; cat l; mv l m; rm -f m p h secret")
    as_user(1001, work)
    assert sorted(os.listdir(home)) == ["a.tar", "b"]
    assert all(os.lstat(os.path.join(base, n)).st_uid == 1001 for base, ds, fl in os.walk(home) for n in ds + fl)
