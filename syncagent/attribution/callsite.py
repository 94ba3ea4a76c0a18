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
from syncagent.attribution.statements import statement_at
from syncagent.events import CallSite
from syncagent.support.compat import qualified_name
from syncagent.support.reading import source_lines
from syncagent.torchbridge.frames import is_stand_in

# What a frame's code is, as bits; found once for each code object.
_USER, _LIBRARY, _PLUMBING = 1, 2, 4
MODULE_CALL, OPTIMIZER, SET_UP = 8, 16, 32
_HANDLER = 64

Point = tuple["CodeType", int]


class Where(NamedTuple):
    """Where a call came from, as taken on the training thread."""

    user: Point | None
    """Innermost frame of the user's code."""
    library: Point | None
    """Innermost frame of a library, where the user's frame is further out or there is none."""
    marks: int = 0
    """Bits of all frames: is an ``nn.Module`` or an optimizer running?"""


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

_INSTALLED = ("/site-packages/", "/dist-packages/")
_MODULE_CALLS = frozenset({"_call_impl", "_slow_forward"})
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

    def capture(self, frame: FrameType | None) -> Where:
        """Walk outwards from ``frame`` to the user's line, and on to the outermost frame for the marks."""
        user, user_offset, library, library_offset, marks = self.walk(frame)
        return Where(
            (user, user_offset) if user is not None else None,
            (library, library_offset) if library is not None else None,
            marks,
        )

    def walk(self, frame: FrameType | None) -> tuple[CodeType | None, int, CodeType | None, int, int]:
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

    def inside_user(self, frame: FrameType | None) -> list[Point]:
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

    def _passes_on(self, frame: FrameType) -> bool:
        """Return whether this handler of a mode or a tensor subclass only passes on the call that it was given."""
        key = (id(frame.f_code), frame.f_lasti)
        known = self._passing.get(key)
        if known is None:
            if len(self._passing) >= _CACHE_LIMIT:
                self._passing = {}
            known = self._passing[key] = handlers.passes_on(frame.f_code, frame.f_lasti)
        return known

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
            if inside.startswith(("optim/", "amp/grad_scaler.py")):
                return _LIBRARY | OPTIMIZER
            if inside.startswith(_SETTING_UP):
                return _PLUMBING | SET_UP
            if inside == "nn/modules/module.py" and code.co_name in _MODULE_CALLS:
                return _PLUMBING | MODULE_CALL
            return _PLUMBING if inside.startswith(_TORCH_PLUMBING) else _LIBRARY
        if self._chosen and self._is_chosen(path):
            return _USER
        if path.startswith(self._installed) or "/torchinductor_" in path or "/dist-packages/" in path:
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
            line = _line(code, offset)
            lines = source_lines(code.co_filename)
            source = lines[line - 1].strip() if 0 < line <= len(lines) else ""
            whole = statement_at(code, line) if source else ""
            known = self._sites[id(code), offset] = (
                CallSite(code.co_filename, line, qualified_name(code), source, "" if whole == source else whole),
                code,
            )
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


def _line(code: CodeType, offset: int) -> int:
    """Return the line of the instruction at byte ``offset``; the first line where the code object has none for it."""
    lines = (line for start, end, line in code.co_lines() if start <= offset < end and line is not None)
    return next(lines, code.co_firstlineno)
