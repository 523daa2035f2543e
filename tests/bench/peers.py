"""The neighbours, each with the options somebody who knows it would choose for one machine and speed: the kernel may keep
what it has read, and large writes come as such. None is asked for less durability than the others; only the cost of the
password, which no workload sees, is low where it can be."""
import os
import platform
import shutil
import subprocess

from contenders import COMPILER, OURS, Contender

PASSWORD = "benchmark"
# libfuse 2 writes 4 KiB at a time, forgets pages at each open and names after a second unless told otherwise.
LIBFUSE2 = "big_writes,kernel_cache,entry_timeout=60,negative_timeout=60,attr_timeout=60"


class Gocryptfs(Contender):
    """AES-256-GCM by Go's own assembler code, chosen by itself. -noprealloc: no fallocate before each write."""
    kind, program = "fuse.gocryptfs", "gocryptfs"

    def make_store(self):
        self.password = os.path.join(self.base, "password")
        with open(self.password, "w") as f:
            f.write(f"{PASSWORD}\n")
        self.run("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", self.password, self.cipher)

    def command(self):
        return ["gocryptfs", "-q", "-fg", "-kernel_cache", "-noprealloc", "-passfile", self.password, self.cipher, self.plain]


class Securefs(Contender):
    """Format 4 is securefs lite: a file of ciphertext per file, names by AES-SIV. Attributes are kept 30 s by itself. Through
    libfuse 2 a request to set the one time and leave the other is lost without an error, and tar makes such requests."""
    kind, program, form = "fuse.securefs", "securefs", "4"
    keeps_times = False

    def make_store(self):
        self.run("securefs", "create", "--format", self.form, "--pbkdf", "pkcs5-pbkdf2-hmac-sha256", "-r", "1000", "--pass", PASSWORD,
                 self.cipher)

    def command(self):
        """noforget: without it a directory gets another inode number when the kernel forgets it, and tar gives up."""
        options = "noforget,big_writes,kernel_cache,entry_timeout=60,negative_timeout=60"
        return ["securefs", "mount", *(a for o in options.split(",") for a in ("-o", o)), "--pass", PASSWORD,
                "--log", os.path.join(self.base, "securefs.log"), self.cipher, self.plain]


class SecurefsFull(Securefs):
    """Format 2: the tree is hidden too, in encrypted B-trees under random names, two files for each file."""
    form = "2"
    rounds = 1


class Encfs(Contender):
    """Not its standard (AES-192 by 1 KiB, nothing authenticated) but what its expert mode offers that is nearest to the others:
    AES-256, blocks of 4 KiB, a 64-bit MAC on each. Names depend on their path; hard links work."""
    kind, program, answers = "fuse.encfs", "encfs", f"{PASSWORD}\n"
    keeps_times = False
    # expert; AES; 256 bits; 4096 bytes; block names; chained names; IV per file; not chained to names; MAC; no random bytes; holes
    EXPERT = f"x\n1\n256\n4096\n1\n\n\n\ny\n0\n\n{PASSWORD}\n"

    def make_store(self):
        """encfs configures a store when it first mounts it."""
        self.answers = self.EXPERT
        self.mount()
        self.umount()
        self.answers = f"{PASSWORD}\n"

    def command(self):
        return ["encfs", "-f", "-S", self.cipher, self.plain, "--", "-o", LIBFUSE2]


class Cryfs(Contender):
    """AES-256-GCM, for its standard, XChaCha20, is slower here. It hides everything in blocks of 16 KiB. Its password takes ten seconds
    at each mount and cannot be made cheaper, so it does one round of some groups."""
    kind, program, answers = "fuse.cryfs", "cryfs", f"{PASSWORD}\n"
    rounds, groups, patience = 1, ("sequential", "small_files", "source_tree"), 300
    keeps_times = False
    durable = False   # it answers fsync without calling it

    def environment(self):
        return {**os.environ, "CRYFS_FRONTEND": "noninteractive", "CRYFS_NO_UPDATE_CHECK": "true",
                "CRYFS_LOCAL_STATE_DIR": os.path.join(self.base, "state")}

    def make_store(self):
        """cryfs makes a store when it first mounts it."""

    def command(self):
        return ["cryfs", "-f", "--cipher", "aes-256-gcm", self.cipher, self.plain, "-o", LIBFUSE2]


class Bindfs(Contender):
    """No encryption: every request goes to the backing file."""
    kind, program = "fuse", "bindfs"
    role = "bare"
    keeps_times = False

    def make_store(self):
        """Any directory will do."""

    def command(self):
        return ["bindfs", "-f", "--multithreaded", "-o", LIBFUSE2, self.cipher, self.plain]


class Passthrough(Contender):
    """libfuse's own example passthrough_ll with the kernel's write-back cache, built from Debian's copy of the source: what FUSE allows
    for large files. It searches a list at each lookup, so it shows nothing about many files and sits those out."""
    kind, role, program = "fuse.passthrough_ll", "bare", None
    groups = ("sequential", "parallel")
    SOURCE = "/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c"

    @classmethod
    def missing(cls):
        if not os.path.exists(cls.SOURCE):
            return f"{cls.SOURCE} is not there"
        return None

    @classmethod
    def version(cls):
        return subprocess.check_output(["pkg-config", "--modversion", "fuse3"], text=True).strip()

    def make_store(self):
        self.program = os.path.join(self.base, "passthrough_ll")
        flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "fuse3"], text=True).split()
        self.run(*COMPILER, "-O2", "-w", "-o", self.program, self.SOURCE, *flags)

    def command(self):
        return [self.program, "-f", "-o", f"source={self.cipher},writeback,cache=always,timeout=60", self.plain]


class Plain(Contender):
    """The directory the others keep their ciphertext in, without any of them."""
    role = "plain"

    @classmethod
    def missing(cls):
        return None

    @classmethod
    def version(cls):
        return platform.release()

    def make_store(self):
        self.plain = self.cipher

    def mount(self):
        pass

    def umount(self):
        pass

    def alive(self):
        return True

    def abort(self):
        pass

    def close(self):
        shutil.rmtree(self.base, ignore_errors=True)

    def cpu(self):
        return 0


ALL = {**OURS, "gocryptfs": Gocryptfs, "securefs": Securefs, "securefs-full": SecurefsFull, "encfs": Encfs, "cryfs": Cryfs,
       "bindfs": Bindfs, "passthrough_ll": Passthrough, "plain": Plain}
