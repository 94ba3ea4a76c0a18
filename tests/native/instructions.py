"""What a wrapper adds to one call: instructions, counted by callgrind, and nanoseconds of this machine.

    python -m tests.native.instructions tests/native/instructions.json

Valgrind has no vDSO, so that the two readings of the clock count as far as the system call; the nanoseconds have all.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import tempfile
from pathlib import Path

from tests.native import libraries

_KINDS = {
    "without the library": 0,
    "a wait, not long enough to be kept": 1,
    "a wait that a sensor names": 2,
    "a copy below the threshold": 3,
    "a wait that is kept": 4,
    "after stop": 5,
}
_FEW, _MANY = 1_000, 11_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("into", type=Path, nargs="?", help="the file to write; else it is printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        harness = libraries.compile_into(Path(folder))
        bare = _measure(harness, 0)
        added = {
            name: {key: round(value - bare[key], 1) for key, value in _measure(harness, kind).items()}
            for name, kind in _KINDS.items()
            if kind
        }
    text = json.dumps({"machine": platform.machine(), "bare call": bare, "added to it": added}, indent=2) + "\n"
    if options.into is None:
        print(text, end="")
    else:
        options.into.write_text(text)


def _measure(harness: Path, kind: int) -> dict[str, float]:
    few, many = (_count(harness, kind, calls) for calls in (_FEW, _MANY))
    words = [str(word) for word in (harness, harness.parent, "calls", kind, 1_000_000)]
    fastest = min(float(subprocess.run(words, capture_output=True, text=True, check=True).stdout) for _ in range(5))
    return {"instructions": (many - few) / (_MANY - _FEW), "nanoseconds": fastest}


def _count(harness: Path, kind: int, calls: int) -> int:
    words = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={harness.parent}/counts", "--", str(harness)]
    words += [str(harness.parent), "calls", str(kind), str(calls)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


if __name__ == "__main__":
    main()
