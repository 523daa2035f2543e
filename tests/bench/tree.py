"""A source tree that never was: the same archive on every machine, shaped like /usr/include with its documentation."""
import io
import os
import random
import tarfile

FILES, MEDIAN, SIGMA, LARGEST = 8000, 2500, 1.32, 512 * 1024   # log-normal sizes, about 6 KiB on the average
LINKS_PER_FILE = 1 / 66
EMPTY = 0.01
WORDS = ("include static inline struct return const unsigned define ifdef endif extern void char int size buffer lock page "
         "inode file offset name key block count error the of and to a in is that it for be with as on by this").split()
STEMS = "aio btree cache crypt device entry ether group index link mount node option packet queue ring socket stat timer user".split()
ENDS = (".h", ".h", ".h", ".c", ".txt", ".md", ".html", ".3", ".py", "")


def _text(rng, size):
    words = []
    total = 0
    while total < size:
        line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 12))) + "\n"
        words.append(line)
        total += len(line)
    return "".join(words).encode()[:size]


def _directories(rng, count):
    """Nested up to six deep, half of them near the top, as in an installed system."""
    made = ["tree"]
    parents = ["tree"]
    while len(made) < count:
        parent = rng.choice(parents[:25] if rng.random() < 0.5 else parents)
        made.append(f"{parent}/{rng.choice(STEMS)}{len(made)}")
        if made[-1].count("/") < 6:
            parents.append(made[-1])
    return made


def _entries(rng, files):
    """(path, size or None for a directory or a string for a link), unsorted."""
    directories = _directories(rng, max(2, files // 12))
    entries = [(d, None) for d in directories]
    paths = []
    for i in range(files):
        where = directories[min(int(rng.expovariate(3) * len(directories)), len(directories) - 1)]
        size = 0 if rng.random() < EMPTY else min(int(rng.lognormvariate(0, SIGMA) * MEDIAN) + 1, LARGEST)
        paths.append(f"{where}/{rng.choice(STEMS)}-{rng.choice(WORDS)}{i}{rng.choice(ENDS)}")
        entries.append((paths[-1], size))
    for i in range(int(files * LINKS_PER_FILE)):
        target, where = rng.choice(paths), rng.choice(directories)
        entries.append((f"{where}/link{i}.so", os.path.relpath(target, where)))
    return entries


def write_archive(path, scale):
    """A ustar archive, parents before children. Every name fits into a header's 100 bytes."""
    rng = random.Random(20240229)
    text = _text(rng, 2 * LARGEST)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, what in sorted(_entries(rng, max(20, int(FILES * scale)))):
            assert len(name) < 99
            info = tarfile.TarInfo(name)
            info.mtime = 1500000000 + rng.randrange(200000000)
            info.mode = 0o644
            if what is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(what, str):
                info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, what
            else:
                info.size = what
            at = rng.randrange(LARGEST)
            tar.addfile(info, io.BytesIO(text[at:at + info.size]) if info.isreg() else None)
