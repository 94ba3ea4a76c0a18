"""The Collector and Jaeger, built from their released Go modules where no container can be had.

``python programs.py`` builds both. A program lies in the user's cache under a hash of what it is built from, so every
checkout finds it, and builds anew only what has changed. With empty caches and on two cores the Collector takes four
minutes (4 min 12 s) and Jaeger eight (7 min 42 s); 2 GB of modules and objects stay in Go's caches.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = {"collector": ".", "jaeger": "github.com/jaegertracing/jaeger/cmd/jaeger"}
"""What is built in each folder beside this file, whose go.mod and go.sum pin the version of every module."""


def path(name: str) -> Path:
    """Where a program is, or would be once it is built."""
    made_of = hashlib.sha256(f"{sys.platform} {platform.machine()}".encode())
    for file in sorted((HERE / name).iterdir()):
        if file.name in {"go.mod", "go.sum"} or file.suffix == ".go":
            made_of.update(file.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "syncagent-otel" / f"{name}-{made_of.hexdigest()[:12]}"


def build(name: str) -> str | None:
    """Build it unless it is there; return why it cannot be built, or None."""
    program = path(name)
    if program.exists():
        return None
    go = shutil.which("go")
    if go is None:
        return f"{name.title()} cannot be built: Go is not installed (https://go.dev/dl)."
    print(f"Building {name} from its Go modules; this takes some minutes, once ...", file=sys.stderr, flush=True)
    program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_name(f"{program.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [go, "build", "-trimpath", "-ldflags=-s -w", "-o", str(unfinished), PACKAGES[name]],
            cwd=HERE / name, env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if not line.startswith("go: downloading")]
            return f"{name.title()} could not be built: {' '.join(said[-2:])}"
        unfinished.replace(program)
    finally:
        unfinished.unlink(missing_ok=True)
    return None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the compiler goes on without us
    lacking = [why for name in sys.argv[1:] or PACKAGES if (why := build(name))]
    print(*lacking, sep="\n", end="\n" * bool(lacking), file=sys.stderr)
    sys.exit(bool(lacking))
