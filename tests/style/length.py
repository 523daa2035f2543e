#!/usr/bin/python3
"""Lengths: functions 60 lines, files 500, headers 200, lines 120 columns (a tab is 8). Names the exceptions."""
import glob
import sys

LINE, FUNCTION, FILE, HEADER = 120, 60, 500, 200
PLACES = ["src/*.[ch]", "include/*.h", "tools/*.[ch]", "tests/unit/*.[ch]"]
# Tests are lists of cases; their files may be longer, their functions may not.
TEST_FILE = 900
EXCEPTIONS = {
    "tools/devkms.h": "one header for the whole stand-in, which is not part of the product",
    "src/file_internal.h": "the essay on a file's state in memory stands here once, for nine files",
}


def functions(lines):
    """(line, name, length of the body) of every function: '{' and '}' alone in column 0."""
    start = None
    for i, text in enumerate(lines):
        if text == "{":
            start = i
        elif text == "}" and start is not None:
            head = next((lines[j] for j in range(start - 1, -1, -1) if lines[j][:1] not in ("\t", " ")), "?")
            yield start, head.split("(")[0].split()[-1].lstrip("*"), i - start - 1
            start = None


def check(path):
    with open(path, encoding="utf-8") as f:
        lines = f.read().split("\n")
    most = TEST_FILE if path.startswith("tests/") else HEADER if path.endswith(".h") else FILE
    if len(lines) - 1 > most and path not in EXCEPTIONS:
        yield f"{path}:{most + 1}: {len(lines) - 1} lines, at most {most}"
    for i, text in enumerate(lines):
        width = len(text.expandtabs(8))
        if width > LINE:
            yield f"{path}:{i + 1}: {width} columns, at most {LINE}"
    for start, name, body in functions(lines):
        if body > FUNCTION:
            yield f"{path}:{start + 1}: {name}() has {body} lines, at most {FUNCTION}"


def main():
    paths = sorted(p for place in PLACES for p in glob.glob(place))
    if not paths:
        sys.exit("length.py: run me in the top directory")
    found = [line for path in paths for line in check(path)]
    print("\n".join(found) if found else f"length: {len(paths)} files within limits")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
