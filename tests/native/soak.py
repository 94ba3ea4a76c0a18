"""The native library for an hour: 10 million waits, 500 threads that end, walks and looks all the while.

    python -m tests.native.soak --seconds 3600

Prints what came of it as JSON, and fails where a wait or a slot was lost or memory grew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.native import libraries

_WAITS_AN_HOUR = 10_000_000
_GROWTH_KB = 512
"""Stacks of threads that have ended are kept by glibc for the next ones."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--threads", type=int, default=500, help="that wait once and end")
    parser.add_argument("--waits", type=int, help="default: 10 million an hour, and no less than 200,000")
    options = parser.parse_args()
    waits = options.waits or max(_WAITS_AN_HOUR * options.seconds // 3600, 200_000)
    with tempfile.TemporaryDirectory() as folder:
        harness = libraries.compile_into(Path(folder))
        words = [str(word) for word in (harness, folder, "soak", options.seconds, waits, options.threads)]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    print(json.dumps(result, indent=2))
    faults = [
        text
        for text, is_wrong in (
            ("waits were lost", not result["waits"] == result["taken"] + result["dropped"] == result["summed"]),
            ("waits were dropped", result["dropped"]),
            ("slots were lost", result["slots_still_taken"] or result["without_slot"]),
            ("threads were left out", result["short_threads"] < options.threads),
            ("memory grew", not result["warm_kb"] or result["most_kb"] > result["warm_kb"] + _GROWTH_KB),
        )
        if is_wrong
    ]
    print("; ".join(faults) or "nothing was lost", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
