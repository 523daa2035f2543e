"""A strict reader of the text exposition format 0.0.4: whatever the format does not allow is an AssertionError."""
import math
import re

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)\Z")
PARTS = ("_bucket", "_sum", "_count")


def labels_of(text):
    found, at = {}, 0
    while at < len(text):
        m = LABEL.match(text, at)
        assert m, text
        assert m[1] not in found, f"label twice: {text}"
        found[m[1]] = re.sub(r"\\(.)", lambda e: "\n" if e[1] == "n" else e[1], m[2])
        at = m.end()
        if at < len(text):
            assert text[at] == "," and at + 1 < len(text), text
            at += 1
    return found


def value_of(text):
    assert re.fullmatch(r"[+-]?(\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+|Inf|NaN)", text), text
    return float(text.replace("Inf", "inf"))


class Family:
    def __init__(self, name):
        self.name, self.help, self.type = name, None, None
        self.samples = {}  # (name, sorted labels) -> value


def read(text):
    """Families by name."""
    assert text.endswith("\n")
    families, now = {}, None
    for line in text.split("\n")[:-1]:
        assert line == line.strip() and line, repr(line)
        m = re.match(rf"# (HELP|TYPE) ({NAME}) (.+)\Z", line)
        if m:
            if not now or now.name != m[2]:
                assert m[2] not in families, f"{m[2]} does not stand together"
                now = families[m[2]] = Family(m[2])
            assert not now.samples, f"{line} behind samples"
            kind = m[1].lower()
            assert getattr(now, kind) is None, f"twice: {line}"
            setattr(now, kind, m[3])
            continue
        assert not line.startswith("#"), line
        m = SAMPLE.match(line)
        assert m, line
        base = m[1]
        if now.type == "histogram":
            base = next(base[:-len(p)] for p in PARTS if base.endswith(p))
        assert now and base == now.name, f"{line} is not of {now.name}"
        key = (m[1], tuple(sorted(labels_of(m[2] or "").items())))
        assert key not in now.samples, f"twice: {line}"
        now.samples[key] = value_of(m[3])
    for f in families.values():
        check(f)
    return families


def check(f):
    assert f.help and f.type in ("counter", "gauge", "histogram") and f.samples, f.name
    assert f.name.endswith("_total") == (f.type == "counter"), f.name
    if f.type == "counter":
        assert all(v >= 0 for v in f.samples.values()), f.name
    if f.type != "histogram":
        return
    series = {}
    for (name, labels), v in f.samples.items():
        rest = tuple(pair for pair in labels if pair[0] != "le")
        s = series.setdefault(rest, {"buckets": {}})
        if name.endswith("_bucket"):
            s["buckets"][value_of(dict(labels)["le"])] = v
        else:
            assert rest == labels
            s[name[len(f.name):]] = v
    for rest, s in series.items():
        bounds = sorted(s["buckets"])
        counts = [s["buckets"][b] for b in bounds]
        assert bounds[-1] == math.inf and len(bounds) > 1, rest
        assert counts == sorted(counts) and counts[-1] == s["_count"], (f.name, rest, counts)
        assert s["_sum"] >= 0 and (s["_count"] > 0 or s["_sum"] == 0), rest


def get(families, name, **labels):
    """The values of a metric's samples that carry these labels."""
    found = [v for (n, l), v in families[name.rsplit("_bucket", 1)[0] if name not in families else name].samples.items()
             if labels.items() <= dict(l).items() and (n == name or name in families)]
    return found
