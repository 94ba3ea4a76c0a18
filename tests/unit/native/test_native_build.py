"""How the native libraries are compiled: by which compiler, for which machine, and what is said where that fails."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys

import pytest

from syncagent.native import build

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
on_linux = pytest.mark.skipif(
    platform.machine() not in build.MACHINES or not platform.libc_ver()[0], reason="needs glibc on x86-64 or aarch64"
)

FIRST = build.Library("libfirst.so", ("deep/first.c",))
SECOND = build.Library("libsecond.so", ("second.c",), needs=("libfirst.so",))


@pytest.fixture
def sources(tmp_path):
    """Two libraries, of which one calls the other."""
    (tmp_path / "sources" / "deep").mkdir(parents=True)
    exported = '__attribute__((visibility("default"))) '
    (tmp_path / "sources" / "deep" / "first.c").write_text(f"{exported}int first(void) {{ return 41; }}\n")
    (tmp_path / "sources" / "second.c").write_text(
        f"int first(void); {exported}int second(void) {{ return first() + 1; }}\n"
    )
    return tmp_path / "sources"


@pytest.fixture
def into(tmp_path):
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def programs(folder, *names):
    """A folder for the PATH with programs of these names."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_cc_names_the_compiler_with_its_options_or_else_the_path_has_it(tmp_path):
    """cc before gcc before clang."""
    path = programs(tmp_path / "bin", "clang", "gcc")
    assert build.find_compiler({"CC": "ccache 'my gcc' -m64", "PATH": path}) == ("ccache", "my gcc", "-m64")
    assert build.find_compiler({"CC": "", "PATH": path}) == (os.path.join(path, "gcc"),)
    with pytest.raises(build.NotBuiltError, match="there is no C compiler: CC is not set, and cc, gcc and clang"):
        build.find_compiler({"PATH": str(tmp_path)})
    with pytest.raises(build.NotBuiltError, match='CC is "cc \'x", which is not a command'):
        build.find_compiler({"CC": "cc 'x"})


@needs_compiler
@on_linux
def test_the_compiler_is_asked_what_it_compiles_for():
    """Its options say otherwise here: no glibc's headers, another processor, another system."""
    assert build.machine([COMPILER]) == platform.machine()
    for options, why in (
        (["-nostdinc", "-I/"], "it needs glibc, and this C library is another one"),
        (["-nostdinc", "-I/", "-D__GLIBC__=2", "-U__LP64__"], "it knows x86-64 and aarch64 processors only"),
        (["-U__linux__"], "it needs Linux"),
    ):
        with pytest.raises(build.NotBuiltError, match=why):
            build.machine([COMPILER, *options])


def test_what_is_no_compiler_is_said_in_one_sentence(tmp_path):
    for command, why in (
        (["./nowhere"], r"the C compiler '\./nowhere' does not start \(No such file or directory\)"),
        ([sys.executable, "-c", "print(1)"], "does not work as a C compiler"),
        ([sys.executable, "-c", "raise SystemExit(3)"], r"failed \(exit code 3\)"),
    ):
        with pytest.raises(build.NotBuiltError, match=why) as caught:
            build.machine(command)
        assert "\n" not in str(caught.value)


@needs_compiler
@on_linux
def test_a_library_finds_what_it_needs_beside_itself(sources, into):
    made = build.compile_all([COMPILER], into, extra=build.WARNINGS, libraries=(FIRST, SECOND), sources=sources)
    assert made == [into / "libfirst.so", into / "libsecond.so"]
    assert sorted(into.iterdir()) == made  # nothing else is left
    assert ctypes.CDLL(str(made[1])).second() == 42


@needs_compiler
@on_linux
def test_a_compile_that_fails_leaves_the_older_libraries_and_keeps_what_the_compiler_said(sources, into):
    """A process that has mapped the older file keeps it: the new one is another file."""
    [older] = build.compile_all([COMPILER], into, libraries=(FIRST,), sources=sources)
    inode = older.stat().st_ino
    (sources / "second.c").write_text("int second(void) { return missing; }\n")
    with pytest.raises(build.NotBuiltError, match=r"failed \(second\.c:1:\d+: error: .*missing") as caught:
        build.compile_all([COMPILER], into, libraries=(FIRST, SECOND), sources=sources)
    assert "\n" not in str(caught.value)
    assert "-fvisibility=hidden" in caught.value.log
    assert "second.c" in caught.value.log
    assert [path.stat().st_ino for path in into.iterdir()] == [inode]
    build.compile_all([COMPILER], into, libraries=(FIRST,), sources=sources)
    assert older.stat().st_ino != inode


@needs_compiler
@on_linux
def test_no_library_needs_memory_in_a_thread_that_calls_it_for_the_first_time(into):
    """glibc allocates thread-local variables of the usual kind then, and ends the process where no memory is left."""
    made = build.compile_all([COMPILER], into)
    assert sorted(path.name for path in made) == sorted(library.file for library in build.LIBRARIES)
    assert [path.name for path in made if b"__tls_get_addr" in path.read_bytes()] == []
