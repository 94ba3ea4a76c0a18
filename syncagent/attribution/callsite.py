"""Finds the line of the user's code that made a call: cheaply on the training thread, in full later.

On the training thread only code objects and instruction offsets are taken (:class:`Where`); line numbers, names and
source text are looked up on the agent's own thread.
"""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import NamedTuple

from syncagent.attribution import handlers
from syncagent.attribution.conditions import condition_at
from syncagent.attribution.statements import Statement, shown, statement_at
from syncagent.events import CallSite, Span
from syncagent.support.compat import Position, Standing, expression_at, qualified_name
from syncagent.support.reading import source_lines
from syncagent.torchbridge.frames import is_stand_in

# What a frame's code is, as bits; found once for each code object.
_USER, _LIBRARY, _PLUMBING = 1, 2, 4
MODULE_CALL, OPTIMIZER, SET_UP = 8, 16, 32
_HANDLER = 64
COLLECTIVE = 128
_TORCH, _OF_OPTIMIZERS = 256, 512
DATA_LOADER = 1024

Point = tuple["CodeType", int]
AnyFrame = FrameType | Standing
"""A frame of this thread's, or where another thread stood."""


class Where(NamedTuple):
    """Where a call came from, as taken on the training thread."""

    user: Point | None
    """Innermost frame of the user's code."""
    library: Point | None
    """Innermost frame of a library, where the user's frame is further out or there is none."""
    marks: int = 0
    """Bits of all frames: is an ``nn.Module`` running, or the step of an optimizer?"""

    def within(self, outer: Where) -> Where:
        """Return the same for the user's line of ``outer``: that of another thread, for which this one works."""
        return Where(outer.user, self.library or outer.library, self.marks | outer.marks)


NOWHERE = Where(None, None)

_TORCH_PLUMBING = (
    "_tensor.py", "functional.py", "_ops.py", "_jit_internal.py", "overrides.py", "_compile.py", "_tensor_str.py",
    "utils/_contextlib.py", "utils/_device.py", "utils/_python_dispatch.py", "nn/modules/module.py", "nn/functional.py",
    "autograd/", "_dynamo/", "cuda/", "_library/", "_higher_order_ops/", "serialization.py", "storage.py",
)  # fmt: skip
"""Files of torch that only pass a call on: their names would not help the reader."""

_SETTING_UP = (
    "_dynamo/convert_frame.py", "_dynamo/output_graph.py", "_inductor/compile_fx.py", "_inductor/select_algorithm.py",
    "_inductor/autotune_process.py", "_inductor/runtime/triton_heuristics.py", "_inductor/runtime/benchmarking.py",
    "_inductor/cudagraph_trees.py", "_inductor/cudagraph_utils.py", "cuda/graphs.py",
)  # fmt: skip
"""Files of torch that compile, tune or capture: waits below them are torch's own, and happen once."""

_DATA_LOADER = "utils/data/dataloader.py"
_INSTALLED = ("/site-packages/", "/dist-packages/")
_MODULE_CALLS = frozenset({"_wrapped_call_impl", "_call_impl", "_slow_forward"})
_STEPS_OF = {
    # The functions of a step, by file of torch.  What else is in these files (state_dict, get_scale) is no step, nor
    # are learning rate schedulers and averages of weights, though torch keeps them beside its optimizers.
    "optim/": frozenset({"step", "wrapper"}),
    "amp/grad_scaler.py": frozenset({"step", "unscale_", "update"}),
    "distributed/fsdp/sharded_grad_scaler.py": frozenset({"step", "unscale_", "update"}),
}
_HOOKED_STEP = "wrapper"
"""What torch puts around the ``step`` of every optimizer, whoever wrote it."""
_AROUND_STEP = frozenset({"_use_grad", "maybe_fallback"})
"""Decorators of torch's that may be around it as well."""
_NOT_OPTIMIZERS = ("optim/lr_scheduler.py", "optim/swa_utils.py")
_CACHE_LIMIT = 50_000


class CallSites:
    """Tells user code from library code, and turns instruction offsets into :class:`CallSite`.

    ``user_code`` holds packages and paths that count as the user's although they are installed.
    """

    def __init__(self, user_code: Iterable[str] = ()) -> None:
        # Keyed by identity: code objects are equal when their text is, whatever the file.  The list keeps them alive.
        self._bits: dict[int, int] = {}
        self._alive: list[CodeType] = []
        self._passing: dict[tuple[int, int], bool] = {}
        self._sites: dict[tuple[int, int], tuple[CallSite, CodeType]] = {}
        self._agent = os.path.dirname(os.path.dirname(_absolute(__file__))) + os.sep
        self._hooks = tuple(os.path.join(self._agent, room) + os.sep for room in ("sensors", "torchbridge"))
        self._installed = _folders(
            *site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib"),
            sysconfig.get_path("platlib"),
        )  # fmt: skip
        self._stdlib = _folders(sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
        torch = sys.modules.get("torch")
        self._torch = _folders(os.path.dirname(torch.__file__)) if torch and torch.__file__ else ()
        self._chosen = tuple(user_code)

    # --- on the training thread

    def capture(self, frame: AnyFrame | None) -> Where:
        """Walk outwards from ``frame`` to the user's line, and on to the outermost frame for the marks."""
        user, user_offset, library, library_offset, marks = self.walk(frame)
        return Where(
            (user, user_offset) if user is not None else None,
            (library, library_offset) if library is not None else None,
            marks,
        )

    def walk(self, frame: AnyFrame | None) -> tuple[CodeType | None, int, CodeType | None, int, int]:
        """Do as :meth:`capture`, and return one tuple: user's code and offset, library's code and offset, marks."""
        bits_of = self._bits
        library: CodeType | None = None
        library_offset = marks = 0
        while frame is not None:
            code = frame.f_code
            try:
                bits = bits_of[id(code)]
            except KeyError:
                bits = self._classify(code)
            marks |= bits
            if bits & _USER:
                if bits & _HANDLER and self._passes_on(frame):
                    frame = frame.f_back
                    continue
                offset = frame.f_lasti
                frame = frame.f_back
                while frame is not None:
                    try:
                        marks |= bits_of[id(frame.f_code)]
                    except KeyError:
                        marks |= self._classify(frame.f_code)
                    frame = frame.f_back
                return code, offset, library, library_offset, marks
            if library is None and bits & _LIBRARY:
                library, library_offset = code, frame.f_lasti
            frame = frame.f_back
        return None, 0, library, library_offset, marks

    def running(self, frame: AnyFrame | None) -> int:
        """Return which runs further in, ``MODULE_CALL`` or ``OPTIMIZER``; 0 where it cannot be told.

        A step may call the program: a closure, a hook, or a ``step`` that is not torch's own.  Of these only the last
        one belongs to the optimizer, as long as it does not call a closure in turn.
        """
        foreign: AnyFrame | None = None
        inside_foreign = False
        while frame is not None:
            bits = self._classify(frame.f_code)
            if bits & MODULE_CALL:
                return MODULE_CALL
            if bits & _OF_OPTIMIZERS:
                if foreign is not None:
                    is_step = frame.f_code.co_name == _HOOKED_STEP and foreign.f_code.co_name == "step"
                    return OPTIMIZER if is_step and not (inside_foreign and self._calls_closure(foreign)) else 0
                if bits & OPTIMIZER:
                    return OPTIMIZER
            elif not bits & _HANDLER and (bits & _USER or bits & (_LIBRARY | _TORCH) == _LIBRARY):
                foreign, inside_foreign = frame, foreign is not None
            frame = frame.f_back
        return 0

    def innermost(self, frame: FrameType | None) -> Point | None:
        """Return the user's frame alone; cheaper than :meth:`capture`, for ops that are only counted."""
        bits_of = self._bits
        while frame is not None:
            code = frame.f_code
            try:
                bits = bits_of[id(code)]
            except KeyError:
                bits = self._classify(code)
            if bits & _USER and not (bits & _HANDLER and self._passes_on(frame)):
                return (code, frame.f_lasti)
            frame = frame.f_back
        return None

    def inside_user(self, frame: AnyFrame | None) -> list[Point]:
        """Return the frames of libraries between the call and the user's line, innermost first."""
        points: list[Point] = []
        while frame is not None:
            bits = self._classify(frame.f_code)
            if bits & _USER and not (bits & _HANDLER and self._passes_on(frame)):
                break
            if not frame.f_code.co_filename.startswith(self._agent) and not is_stand_in(frame.f_code):
                points.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        return points

    def stack(self, frame: FrameType | None) -> tuple[Point, ...]:
        """Return every frame but the agent's own, innermost first, beginning where the program made the call."""
        points: list[Point] = []
        while frame is not None:
            file = frame.f_code.co_filename
            if is_stand_in(frame.f_code):
                pass
            elif file.startswith(self._hooks):
                while points and self._classify(points[-1][0]) & _PLUMBING:
                    points.pop()  # how a mode passed the call on
            elif not file.startswith(self._agent):
                points.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        return tuple(points)

    def outermost_module(self, frame: AnyFrame | None) -> AnyFrame | None:
        """Return the frame of torch's in which the outermost ``nn.Module`` is called, of those that are running."""
        bits_of, found = self._bits, None
        while frame is not None:
            try:
                bits = bits_of[id(frame.f_code)]
            except KeyError:
                bits = self._classify(frame.f_code)
            if bits & MODULE_CALL:
                found = frame
            frame = frame.f_back
        return found

    def _calls_closure(self, frame: AnyFrame) -> bool:
        """Return whether this ``step(self, closure)`` stands where it calls its closure, or passes it on."""
        code = frame.f_code
        return code.co_argcount + code.co_kwonlyargcount >= 2 and self._passes_on(frame)

    def _passes_on(self, frame: AnyFrame) -> bool:
        """Return whether this function calls its second argument there, or passes it on.

        Where a handler of a mode or a tensor subclass does that, it only passes on the call that it was given.
        """
        key = (id(frame.f_code), frame.f_lasti)
        known = self._passing.get(key)
        if known is None:
            if len(self._passing) >= _CACHE_LIMIT:
                self._passing = {}
            known = self._passing[key] = handlers.passes_on(frame.f_code, frame.f_lasti)
        return known

    def is_users(self, file: str) -> bool:
        """Return whether a file is the user's, not one of a library or of Python."""
        path = _absolute(file)
        installed = path.startswith((*self._installed, *self._stdlib, *self._torch, self._agent)) or any(
            mark in path for mark in _INSTALLED
        )
        return self._is_chosen(path) or not installed

    def bits(self, code: CodeType) -> int:
        """Return what the code of a frame is: ``MODULE_CALL``, ``OPTIMIZER``, ``SET_UP``, ``COLLECTIVE``, ..."""
        return self._classify(code)

    def _classify(self, code: CodeType) -> int:
        known = self._bits.get(id(code))
        if known is not None:
            return known
        if len(self._bits) >= _CACHE_LIMIT:  # a program that keeps generating code
            self._bits = {}  # replaced: another thread may be reading the old one
            self._alive = []
        bits = self._bits_of(code)
        if bits & _USER and handlers.is_handler(code):
            bits |= _HANDLER
        self._alive.append(code)
        self._bits[id(code)] = bits
        return bits

    def _bits_of(self, code: CodeType) -> int:
        file = code.co_filename
        if is_stand_in(code):
            return _PLUMBING
        if file.startswith("<"):
            # Generated code belongs to no one: frozen modules, torch.fx graphs, what dataclasses and attrs write.
            # <string>, <stdin> and notebook cells are the user's.
            generated = file.startswith(("<frozen", "<eval_with_key>", "<__array_function__", "<attrs generated"))
            is_dunder = code.co_name.startswith("__") and code.co_name.endswith("__")
            return _PLUMBING if generated or (file == "<string>" and is_dunder) else _USER
        if file.startswith(self._agent):
            return _PLUMBING
        path = _absolute(file)
        if path.startswith(self._torch):
            inside = path[len(self._torch[0]) :].replace(os.sep, "/")
            steps = next((names for place, names in _STEPS_OF.items() if inside.startswith(place)), None)
            if steps is not None and not inside.startswith(_NOT_OPTIMIZERS):
                if code.co_name in _AROUND_STEP:
                    return _PLUMBING | _TORCH
                is_step = code.co_name in steps
                return _LIBRARY | _TORCH | _OF_OPTIMIZERS | (OPTIMIZER if is_step else 0)
            if inside.startswith("distributed/"):
                return _LIBRARY | _TORCH | COLLECTIVE
            if inside == _DATA_LOADER:
                return _LIBRARY | _TORCH | DATA_LOADER
            if inside.startswith(_SETTING_UP):
                return _PLUMBING | SET_UP
            if inside == "nn/modules/module.py" and code.co_name in _MODULE_CALLS:
                return _PLUMBING | MODULE_CALL
            return _PLUMBING if inside.startswith(_TORCH_PLUMBING) else _LIBRARY | _TORCH
        if self._chosen and self._is_chosen(path):
            return _USER
        if path.startswith(self._installed) or "/torchinductor_" in path or any(mark in path for mark in _INSTALLED):
            return _LIBRARY
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        if cache and path.startswith(_absolute(cache) + os.sep):
            return _LIBRARY  # generated by torch.compile
        return _PLUMBING if path.startswith(self._stdlib) else _USER

    def _is_chosen(self, path: str) -> bool:
        for entry in self._chosen:
            if os.sep in entry or entry.endswith(".py"):
                chosen = _absolute(entry)
                if path == chosen or path.startswith(chosen + os.sep):
                    return True
            elif belongs_to(path, entry):
                return True
        return False

    # --- on the agent's thread

    def resolve(self, point: Point | None) -> CallSite | None:
        """Look up file, line, function and source text."""
        if point is None:
            return None
        code, offset = point
        known = self._sites.get((id(code), offset))
        if known is None:
            if len(self._sites) >= _CACHE_LIMIT:
                self._sites.clear()
            position = expression_at(code, offset)
            line = position.line if position is not None else _line(code, offset)
            lines = source_lines(code.co_filename)
            source = shown(lines[line - 1]) if 0 < line <= len(lines) else ""
            statement = statement_at(code, line) if source else None
            whole = statement.text if statement is not None else ""
            known = self._sites[id(code), offset] = (
                CallSite(
                    code.co_filename, line, qualified_name(code), source, "" if whole == source else whole,
                    _span(position, lines, statement) if source and position is not None else None,
                ),
                code,
            )  # fmt: skip
        return known[0]


def belongs_to(path: str, module: str) -> bool:
    """Return whether the file is ``package.module`` itself, or below it.

    The names of the folders above are not enough: a checkout that is named like its package also holds scripts, tests
    and often a ``.venv`` with every library, which do not belong to the package.
    """
    inside = module.replace(".", "/")
    path = path.replace(os.sep, "/")
    names = _below_roots(path, tuple(sys.path))
    if names:
        return any(name in {f"{inside}.py", inside} or name.startswith(f"{inside}/") for name in names)
    # Imported from elsewhere (an editable installation), or seen on another machine.
    return path.endswith(f"/{inside}.py") or f"/{inside}/" in path


@functools.lru_cache(maxsize=4096)
def _below_roots(path: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    """Return the file's path below each folder that modules are imported from."""
    for mark in _INSTALLED:
        before, found, name = path.rpartition(mark)
        if found and before:
            return (name,)
    names = []
    for root in roots:
        folder = os.path.abspath(root).replace(os.sep, "/").rstrip("/") + "/"
        if path.startswith(folder):
            names.append(path[len(folder) :])
    return tuple(names)


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # it is relative, and the working directory has been deleted
        return path


def _folders(*paths: str | None) -> tuple[str, ...]:
    return tuple({_absolute(path) + os.sep for path in paths if path})


def _span(position: Position, lines: list[str], statement: Statement | None) -> Span | None:
    """Return where an expression stands in its file."""
    line = position.line
    if statement is not None:
        head = lines[statement.first - 1]
        position = condition_at(position, statement, len(head) - len(head.lstrip()))
    if position.line != line or position.end_line > len(lines):
        return None
    text = lines[position.line - 1]
    return Span(
        _characters(text, position.column), position.end_line,
        _characters(lines[position.end_line - 1], position.end_column), len(text) - len(text.lstrip()),
    )  # fmt: skip


def _characters(line: str, count: int) -> int:
    """Turn a number of bytes, in which Python counts, into one of characters."""
    return count if line.isascii() else len(line.encode()[:count].decode(errors="replace"))


def _line(code: CodeType, offset: int) -> int:
    """Return the line of the instruction at byte ``offset``; the first line where the code object has none for it."""
    lines = (line for start, end, line in code.co_lines() if start <= offset < end and line is not None)
    return next(lines, code.co_firstlineno)
