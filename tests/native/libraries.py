"""Compiles what the tests need into a folder: the library, runtimes for it, objects that use them, the harness."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from syncagent.native import build

HERE = Path(__file__).parent
RUNTIMES = "abcde"

OBJECTS = {
    "runtime.o": ("standin_runtime.c", []),
    "events.o": ("standin_events.c", []),
    "old_events.o": ("standin_events.c", ["-DWITHOUT_CAPTURES"]),
    "driver.o": ("standin_driver.c", []),
    "nccl.o": ("standin_nccl.c", []),
    "training.o": ("training.c", ["-fno-plt"]),
    "caller.o": ("caller.c", []),
    "got.o": ("caller.c", ["-fno-plt"]),  # calls through entries that are bound when it is loaded
    "table.o": ("caller.c", ["-DTABLE"]),
    "hidden.o": ("caller.c", ["-DHIDDEN"]),
}
CALLERS = {
    **{f"libcaller-{runtime}.so": (runtime, "got.o", []) for runtime in RUNTIMES},
    "libcaller-later.so": ("a", "caller.o", ["-Wl,-z,now,-z,norelro"]),
    "libcaller-open.so": ("a", "caller.o", ["-Wl,-z,now,-z,norelro"]),
    "libcaller-lazy.so": ("a", "caller.o", ["-Wl,-z,lazy"]),
    "libcaller-now.so": ("a", "caller.o", ["-Wl,-z,now,-z,relro"]),
    "libcaller-hidden.so": ("a", "hidden.o", ["-Wl,-z,now"]),
    "libcaller-table.so": ("a", "table.o", ["-Wl,-z,now,-z,relro"]),
}
"""The objects by their names: the runtime that each is linked with, what it is made of, options."""
TRAININGS = {"libtraining.so": ("a", "libnccl.so.2"), "libtraining-old.so": ("old", "libnccl.so.1")}
"""Objects that call a runtime and NCCL, by their names; each has an NCCL of its own."""


class Caller:
    """libcaller-a.so: an object that calls a runtime."""

    def __init__(self, folder: Path) -> None:
        # torch, which other tests may have imported, makes a real runtime's functions everybody's.
        library = ctypes.CDLL(str(folder / "libcaller-a.so"), mode=os.RTLD_LOCAL | os.RTLD_DEEPBIND)
        library.caller.restype = ctypes.POINTER(ctypes.c_void_p * 14)
        addresses = library.caller().contents
        self.stream = ctypes.CFUNCTYPE(ctypes.c_int)(addresses[0])
        self.stream_with_gil = ctypes.PYFUNCTYPE(ctypes.c_int)(addresses[0])
        self.copy = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_int)(addresses[4])
        self.copy_and_wait_with_gil = ctypes.PYFUNCTYPE(ctypes.c_int)(addresses[12])
        self._sleep_ns = ctypes.c_uint64.from_address(addresses[13])

    def sleep(self, ns: int) -> None:
        """Have each call sleep that long."""
        self._sleep_ns.value = ns


def compile_into(folder: Path, extra: Sequence[str] = ()) -> Path:
    """Return the harness."""
    compiler = build.find_compiler()
    flags = ["-g", *build.WARNINGS, *extra]
    if extra:  # the sanitizers' own functions are in the program
        flags.append("-Wl,-z,undefs")
    build.compile_all(compiler, folder, extra=flags)
    common = [*compiler, "-std=c11", "-O1", "-fPIC", "-fexceptions", "-pthread", *flags]
    for made, (source, options) in OBJECTS.items():
        _run([*common, *options, "-c", "-o", made, str(HERE / source)], folder)

    def link(made: str, *parts: str) -> None:
        _run([*common, "-shared", "-o", made, f"-Wl,-soname,{made},-rpath,$ORIGIN", *parts], folder)

    link("libcuda.so.1", "driver.o")
    for runtime in RUNTIMES:
        link(f"libcudart-{runtime}.so", "runtime.o", "events.o", "libcuda.so.1")
    link("libcudart-old.so", "runtime.o", "old_events.o", "libcuda.so.1")
    for made, (runtime, source, options) in CALLERS.items():
        link(made, *options, source, f"libcudart-{runtime}.so")
    for made, (runtime, nccl) in TRAININGS.items():
        link(nccl, "nccl.o", f"libcudart-{runtime}.so")
        link(made, "training.o", f"libcudart-{runtime}.so", nccl)
    _run([*common, f"-I{build.SOURCES}", "-o", "harness", str(HERE / "harness.c"), "-ldl"], folder)
    return folder / "harness"


def _run(words: list[str], folder: Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
