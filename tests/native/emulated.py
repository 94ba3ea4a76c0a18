"""Every scenario of harness.c, compiled by ``CC`` for another processor and run by an emulator.

    CC="zig cc -target aarch64-linux-gnu" python -m tests.native.emulated qemu-aarch64-static

``nox -s aarch64`` does this. The sanitizers do not run there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from syncagent.native import build
from tests.native import libraries

UNAVAILABLE = 77


def main(*emulator: str) -> int:
    """Return how many scenarios failed."""
    print(f"{build.machine(build.find_compiler())}, run by {emulator[0]}")
    with tempfile.TemporaryDirectory() as folder:
        harness = libraries.compile_into(Path(folder))
        command = [*emulator, str(harness), folder]
        scenarios = subprocess.run(command[:-1], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        found = {scenario: subprocess.run([*command, scenario], timeout=300, check=False) for scenario in scenarios}
    skipped = [scenario for scenario, done in found.items() if done.returncode == UNAVAILABLE]
    failed = [scenario for scenario, done in found.items() if done.returncode not in (0, UNAVAILABLE)]
    print(*(f"failed: {scenario}" for scenario in failed), *(f"cannot run here: {one}" for one in skipped), sep="\n")
    print(f"{len(found) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
