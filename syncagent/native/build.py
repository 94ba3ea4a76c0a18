"""Compiles the native libraries: what they are made of and how.

``python syncagent/native/build.py`` puts them beside this file, which is what ``make native`` does. The build hook
(``hatch_build.py``) loads this file by its path, where the package is not installed: it imports nothing of syncagent.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"


class Library(NamedTuple):
    """A shared library of the package."""

    file: str
    sources: tuple[str, ...]
    """C files below ``src/``; headers are found by themselves."""
    needs: tuple[str, ...] = ()
    """Files of earlier libraries that it is linked with; it finds them in its own folder."""
    flags: tuple[str, ...] = ()
    """Further options of its own."""


LIBRARIES: tuple[Library, ...] = (
    Library(
        "libsyncagent_native.so",
        ("hooks.c", "joins.c", "library.c", "marks.c", "patch.c", "runtimes.c", "slots.c", "watcher.c", "wrappers.c"),
        # Never unloaded, since addresses of its wrappers may be anywhere; nothing is bound lazily inside of a wrapper.
        flags=("-Wl,-z,nodelete", "-Wl,-z,now"),
    ),
    Library("libcudart_standin.so", ("standin/cudart.c",)),
    Library("libsyncagent_standin.so", ("standin/standin.c",), needs=("libcudart_standin.so",)),
)
"""All of them; one stands behind those that it needs."""

FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-fexceptions", "-shared", "-pthread", "-Wl,-z,defs")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
"""For us, not for whoever installs the sdist: a newer compiler's new warning must not cost them the library."""

MACHINES = ("x86_64", "aarch64")
"""Whose relocations the library knows."""

# `#error` would read as a mistake of ours; an answer can be distinguished from a compiler that does not work.
_QUESTION = """
#if defined(__has_include)
#if __has_include(<features.h>)
#include <features.h>
#endif
#endif
#ifndef __linux__
answer: other_system
#elif !defined(__GLIBC__)
answer: other_libc
#elif defined(__x86_64__) && defined(__LP64__)
answer: x86_64
#elif defined(__aarch64__) && defined(__LP64__) && defined(__AARCH64EL__)
answer: aarch64
#else
answer: other_machine
#endif
"""
_UNAVAILABLE = {
    "other_system": "it needs Linux",
    "other_libc": "it needs glibc, and this C library is another one (musl, for instance)",
    "other_machine": "it knows x86-64 and aarch64 processors only",
}


class NotBuiltError(Exception):
    """The libraries cannot be had, in one sentence; ``log`` is what the compiler said."""

    def __init__(self, sentence: str, log: str = "") -> None:
        super().__init__(sentence)
        self.log = log


def find_compiler(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the command of the C compiler: what ``CC`` says, which may have options, or else what is on the PATH."""
    told = environment.get("CC", "")
    try:
        words = tuple(shlex.split(told))
    except ValueError as error:
        raise NotBuiltError(f"CC is {told!r}, which is not a command ({error})") from None
    if words:
        return words
    for name in ("cc", "gcc", "clang"):
        if (found := shutil.which(name, path=environment.get("PATH", os.defpath))) is not None:
            return (found,)
    raise NotBuiltError("there is no C compiler: CC is not set, and cc, gcc and clang are not on the PATH")


def machine(compiler: Sequence[str]) -> str:
    """Return the one of `MACHINES` that the compiler compiles for."""
    answer = _run([*compiler, "-E", "-P", "-x", "c", "-"], _QUESTION).rpartition("answer:")[2].strip()
    if answer in MACHINES:
        return answer
    if answer in _UNAVAILABLE:
        raise NotBuiltError(_UNAVAILABLE[answer])
    raise NotBuiltError(f"{shlex.join(compiler)} does not work as a C compiler", answer)


def compile_all(
    compiler: Sequence[str],
    into: str | os.PathLike[str],
    *,
    extra: Iterable[str] = (),
    libraries: Iterable[Library] = LIBRARIES,
    sources: str | os.PathLike[str] = SOURCES,
) -> list[Path]:
    """Compile the libraries into that folder and return their paths; ``extra`` are further options.

    They take the place of older ones when all of them have been compiled: each at once, since processes may have the
    older ones mapped. Raises `NotBuiltError`.
    """
    into, sources, extra = Path(into), Path(sources).resolve(), tuple(extra)
    libraries = tuple(libraries)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=into) as folder:
        for library in libraries:
            made = Path(folder).resolve() / library.file
            _run(
                [
                    *compiler, *FLAGS, *library.flags, *extra, "-o", str(made), *library.sources,
                    *(str(made.with_name(needed)) for needed in library.needs),
                    f"-Wl,-soname,{library.file}", *(["-Wl,-rpath,$ORIGIN"] if library.needs else []), "-ldl",
                ],
                folder=sources,
            )  # fmt: skip
        for library in libraries:
            os.replace(Path(folder) / library.file, into / library.file)
    return [into / library.file for library in libraries]


def _run(words: list[str], given: str = "", *, folder: Path = HERE) -> str:
    """Run the compiler and return what it printed."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - the compiler
            words, input=given, capture_output=True, encoding="utf-8", errors="replace",
            cwd=folder, env=environment, check=False,
        )  # fmt: skip
    except OSError as error:
        raise NotBuiltError(f"the C compiler {words[0]!r} does not start ({error.strerror or error})") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        why = next((line for line in lines if "error" in line), lines[0] if lines else f"exit code {done.returncode}")
        raise NotBuiltError(
            f"the C compiler {words[0]!r} failed ({why.strip()})", f"{shlex.join(words)}\n{done.stderr}{done.stdout}"
        )
    return done.stdout


def main() -> int:
    """Rebuild them in the source tree, where editable installs load them from."""
    try:
        compiler = find_compiler()
        machine(compiler)
    except NotBuiltError as error:  # the tests run without
        print(f"the native library is left out: {error}", file=sys.stderr)
        return 0
    try:
        made = compile_all(compiler, HERE, extra=WARNINGS)
    except NotBuiltError as error:
        print(f"{error.log}the native library was not built: {error}", file=sys.stderr)
        return 1
    print(*(path.name for path in made), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
