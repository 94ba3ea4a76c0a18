"""The library as Python has it."""

from __future__ import annotations

import pathlib
import platform
import re
import struct
import subprocess
import sys
import sysconfig
import threading
import time

import pytest

from syncagent import native
from syncagent.native import build
from tests.native import libraries


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        build.machine(build.find_compiler())
    except build.NotBuiltError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("native")
    libraries.compile_into(folder)
    return folder


@pytest.fixture(scope="module")
def library(folder):
    path = str(folder / "libsyncagent_native.so")
    assert native.why_not(path) == ""
    return native.load(path)


@pytest.fixture(scope="module")
def caller(folder):
    return libraries.Caller(folder)


@pytest.fixture
def started(library, caller):
    """The library, with everything of at least a millisecond kept, and calls that take two."""
    library.take()
    assert library.start(1_000_000) > 0
    caller.sleep(2_000_000)
    yield library
    library.stop()


def function(library, name):
    return library.functions.index(name)


def test_a_wait_is_what_the_slot_and_the_list_say(started, caller):
    view = started.slot_view()
    number, ns, waits = view[native.NUMBER], view[native.UNNAMED_NS], view[native.UNNAMED_WAITS]
    before = time.perf_counter_ns()
    caller.copy(99, 2)
    after = time.perf_counter_ns()
    (wait,) = started.take()
    assert before <= wait.start_ns < wait.end_ns <= after
    assert (wait.number, wait.bytes, wait.direction, wait.flags) == (number + 1, 99, 2, 0)
    assert wait.function == function(started, "cudaMemcpy")
    assert wait.tid == threading.get_native_id() == view[native.TID]
    assert view[native.IDENT] == threading.get_ident()
    assert view[native.UNNAMED_NS] - ns == wait.end_ns - wait.start_ns
    assert view[native.UNNAMED_WAITS] - waits == 1
    all_slots = started.slots_view()
    assert len(all_slots) == started.slot_count * native.WORDS
    assert all_slots[wait.slot * native.WORDS + native.NUMBER] == wait.number
    assert started.take() == []


def test_what_is_named_counts_for_whoever_names_it(started, caller):
    view = started.slot_view()
    before = started.sums()[function(started, "cudaStreamSynchronize")]
    ns, waits = view[native.NAMED_NS], view[native.NAMED_WAITS]
    view[native.NAMED] += 1
    caller.stream()
    view[native.NAMED] -= 1
    assert view[native.NAMED_NS] - ns >= 2_000_000
    assert view[native.NAMED_WAITS] - waits == 1
    assert started.take() == []
    assert started.sums()[function(started, "cudaStreamSynchronize")] == before
    caller.stream()
    after = started.sums()[function(started, "cudaStreamSynchronize")]
    assert after.calls == before.calls + 1
    assert after.ns - before.ns >= 2_000_000
    assert len(started.take()) == 1


def test_another_thread_is_told_of_a_wait_while_it_is_open(started, caller):
    caller.sleep(300_000_000)
    started.set_looks(True, 1_000_000)
    thread = threading.Thread(target=caller.stream)
    thread.start()
    told = started.next_looks(60_000)
    assert told is not None
    ((slot, number),) = told
    words = started.slots_view()[slot * native.WORDS : (slot + 1) * native.WORDS]
    assert words[native.IDENT] == thread.ident
    assert words[native.NUMBER] == number
    thread.join()
    assert started.status().looks_told >= 1
    started.stop()
    assert started.next_looks(60_000) is None


def test_a_wait_with_the_gil_held_is_told_of_on_the_main_thread(started, caller):
    caller.sleep(50_000_000)
    told = []
    started.on_pending(lambda number, _frame: told.append((number, threading.get_ident())), threading.get_ident())
    started.set_looks(True, 1_000_000)
    view = started.slot_view()
    looker = threading.Thread(target=lambda: started.next_looks(60_000))
    looker.start()
    caller.stream_with_gil()
    for _ in range(10_000):  # Python calls it between two instructions
        if told:
            break
    assert told == [(view[native.NUMBER], threading.get_ident())]
    looker.join()


def test_the_watcher_rests_where_no_look_is_wanted(started):
    """It wakes every 5 ms then; every 0.2 ms would be thousands of times."""
    started.set_looks(True)
    tasks = pathlib.Path("/proc/self/task")
    [watcher] = [task for task in tasks.iterdir() if (task / "comm").read_text() == "syncagent-watch\n"]

    def wakes():
        status = (watcher / "status").read_text()
        return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)$", status, re.MULTILINE)[1])

    started.set_looks(False)
    time.sleep(0.1)
    before, began = wakes(), time.monotonic()
    time.sleep(0.5)
    assert wakes() - before <= 1.5 * (time.monotonic() - began) / 0.005


def test_status_says_what_is_patched(started):
    status = started.status()
    assert (status.live, status.foreign, status.read_only, status.threads_without_slot) == (1, 0, 0, 0)
    assert status.runtimes >= 1
    assert status.objects >= 1
    assert status.entries >= 10
    assert started.walk() == started.walk(force=True) == 0
    started.stop()
    assert started.status().entries == 0
    assert started.status().live == 0
    assert started.walk() == -1


_TRAINS = """
import ctypes, sys, time
from syncagent import native

class Training(ctypes.Structure):
    _fields_ = [(name, ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)) for name in (
        "create destroy record record_with_flags wait reset peek get_error all_reduce all_gather send receive "
        "group_start group_end works busy_until wait_address reduce_address").split()]
    _fields_ += [("device", ctypes.POINTER(ctypes.c_uint64))]

object = ctypes.CDLL(sys.argv[1] + "/libtraining.so")
object.training.restype = ctypes.POINTER(Training)
training = object.training().contents
library = native.load(sys.argv[1] + "/libsyncagent_native.so")
assert library.measure_joins(True) == -1
assert library.start(1_000_000) > 0
assert library.measure_joins(True) == library.status().hooks > 0
before = time.perf_counter_ns()
assert training.all_reduce(None) == 0
after = time.perf_counter_ns()
[join] = library.take_joins()
assert before <= join.moment_ns <= after
assert (join.waited_ns, join.device, join.flags) == (0, 0, native.DIRECT | native.CAUGHT_UP)
assert library.take_joins() == []
library.compute_stream(32)
assert training.all_reduce(None) == 0
assert library.take_joins() == []
status = library.status()
assert (status.joins, status.joins_measured, status.joins_dropped) == (native.JOINS_ON, 1, 0)
assert (native.FAILED_AT[status.failed_at], status.failed_with) == ("", 0)
assert library.measure_joins(False) == library.status().hooks == 0
"""


def test_waits_for_collectives_are_taken(folder):
    """In a process of its own: torch may have brought a real NCCL into this one."""
    words = [sys.executable, "-c", _TRAINS, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_functions_have_names_of_the_runtime(library):
    assert len(set(library.functions)) == len(library.functions)
    assert all(name.startswith("cuda") for name in library.functions)


def test_a_file_that_is_not_there_is_said(tmp_path):
    path = str(tmp_path / "libsyncagent_native.so")
    assert native.load(path) is None
    assert native.why_not(path) == f"The native library was not built: there is no {path}."


def test_a_file_that_is_no_library_is_said(tmp_path):
    path = tmp_path / "libsyncagent_native.so"
    path.write_text("no library")
    assert native.load(str(path)) is None
    why = native.why_not(str(path))
    assert why.startswith("The native library cannot be loaded: ")
    assert str(path) in why
    assert "\n" not in why


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("int syncagent_abi(void) { return 999; }", f"its interface is 999, expected {native.ABI}"),
        ("int something(void) { return 0; }", "cannot be loaded"),
        (f"int syncagent_abi(void) {{ return {native.ABI}; }}", "cannot be loaded"),
    ],
    ids=["another ABI", "another library", "half of it"],
)
def test_a_library_of_another_kind_is_said(folder, tmp_path, source, why):
    path = tmp_path / "libsyncagent_native.so"
    words = [*build.find_compiler(), "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(words, input=source, text=True, check=True)
    assert native.load(str(path)) is None
    assert why in native.why_not(str(path))


def test_machines_that_it_is_not_made_for_are_said(monkeypatch):
    bits = struct.calcsize("P") * 8
    with monkeypatch.context() as on:
        on.setattr(platform, "machine", lambda: "riscv64")
        expected = f"The native library exists for 64-bit x86_64 and aarch64, and this is {bits}-bit riscv64."
        assert native.why_not() == expected
    with monkeypatch.context() as on:
        on.setattr(sysconfig, "get_config_var", {"HOST_GNU_TYPE": "x86_64-pc-linux-musl"}.get)
        assert native.why_not() == "The native library needs glibc, and this Python uses musl."
    with monkeypatch.context() as on:
        on.setattr(sys, "platform", "darwin")
        assert native.why_not() == "The native library needs Linux, and this is darwin."


_WAITS_AT_THE_VERY_END = """
import ctypes, pathlib, sys, threading
from syncagent import native
from tests.native.libraries import Caller

caller = Caller(pathlib.Path(sys.argv[1]))
library = native.load(sys.argv[1] + "/libsyncagent_native.so")
assert library.start(1_000_000) > 0
library.set_looks(True, 1_000_000)
library.on_pending(print, threading.get_ident())
caller.sleep(50_000_000)
ctypes.CDLL(None).__cxa_atexit(ctypes.cast(caller.stream, ctypes.c_void_p), None, None)
"""


def test_nothing_is_asked_of_python_once_it_has_ended(folder):
    words = [sys.executable, "-c", _WAITS_AT_THE_VERY_END, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
