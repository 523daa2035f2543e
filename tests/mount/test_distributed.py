"""mount.shared over a real distributed file system: one GlusterFS brick, two clients, a byokfs on each. All of it are
processes of this test, on a free port of 127.0.0.1."""
import os
import shutil
import socket
import subprocess

import pytest
from conftest import wait_until
from shared import pair
from test_shared import (actor, test_append_whole_records, test_attributes, test_close_to_open,  # noqa: F401
                         test_fcntl_between_hosts, test_flock_between_hosts,
                         test_killed_waiter_goes_and_dead_owner_lets_go, test_many_waiters_all_get_their_turn, test_names,
                         test_one_winner, test_pages_are_never_mixed, test_rename_over_is_seen_at_once, test_sizes_and_holes,
                         test_sqlite_from_both)

SERVER = """
volume posix
  type storage/posix
  option directory {brick}
  option volume-id {id}
  option gfid2path off
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume brick
  type performance/io-threads
  subvolumes locks
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.bind-address 127.0.0.1
  option transport.socket.listen-port {port}
  option auth.addr.brick.allow 127.0.0.1
  subvolumes brick
end-volume
"""
CLIENT = """
volume client
  type protocol/client
  option transport-type tcp
  option remote-host 127.0.0.1
  option remote-port {port}
  option remote-subvolume brick
end-volume
"""
VOLUME = "0b8d5a9c-6f0e-4a44-9c10-000000000001"
# What byokfs.8 asks for: nothing cached in the client that another host may change.
OPTIONS = ["--direct-io-mode=enable", "--entry-timeout=0", "--attribute-timeout=0", "--negative-timeout=0"]


class Gluster:
    def __init__(self, base):
        self.base, self.processes, self.mounts = base, [], []
        brick = self.path("brick")
        os.mkdir(brick)
        os.setxattr(brick, "trusted.glusterfs.volume-id", bytes.fromhex(VOLUME.replace("-", "")))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        for name, text in (("server", SERVER), ("client", CLIENT)):
            with open(self.path(f"{name}.vol"), "w") as f:
                f.write(text.format(brick=brick, id=VOLUME, port=self.port))

    def path(self, *names):
        return os.path.join(self.base, *names)

    def run(self, program, name, *args):
        self.processes.append(subprocess.Popen([program, "-N", "-l", self.path(f"{name}.log"), "-p", self.path(f"{name}.pid"),
                                                *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def start(self):
        self.run("glusterfsd", "server", "-f", self.path("server.vol"))
        wait_until(self.answers)
        for n in range(2):
            where = self.path(f"client{n}")
            os.mkdir(where)
            self.run("glusterfs", f"client{n}", "-f", self.path("client.vol"), *OPTIONS, where)
            wait_until(lambda: os.path.ismount(where))
            self.mounts.append(where)
        with open(os.path.join(self.mounts[0], "ready"), "w") as f:
            f.write("1")
        wait_until(lambda: os.path.exists(os.path.join(self.mounts[1], "ready")))

    def stop(self):
        for where in self.mounts:
            subprocess.run(["umount", "-l", where], check=False, capture_output=True, timeout=30)
        for p in reversed(self.processes):
            p.terminate()
        for p in reversed(self.processes):
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()


@pytest.fixture(scope="module")
def gluster(tmp_path_factory):
    if os.geteuid() != 0 or not shutil.which("glusterfsd", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("needs root and glusterfs-server")
    g = Gluster(str(tmp_path_factory.mktemp("gluster")))
    try:
        g.start()
        yield g
    finally:
        g.stop()


@pytest.fixture(scope="module")
def two(tmp_path_factory, gluster, shared_devkms):
    hosts = pair(str(tmp_path_factory.mktemp("two")), shared_devkms, probe="10s", lease="30s",
                 ways=[os.path.join(m, "store") for m in gluster.mounts])
    yield hosts
    for host in hosts:
        host.close()


def test_hosts_end_cleanly(two):
    """The last: what each leaves is a store without markers, and nothing in it is damaged."""
    for host in two:
        host.umount()
    assert os.listdir(os.path.join(two[0].cipher, ".byokfs", "mounts")) == []
    r = two[0].ctl("check", two[0].cipher)
    assert r.returncode == 0, r.stderr
