"""The key that identifies a sync site in reports, baselines and the policy.

It consists of kind, user's line, library line and forward line, each as file relative to the project, function and text
of the statement.  It has neither line numbers nor ops, so code may move and be formatted.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from functools import lru_cache, partial
from pathlib import PurePath
from typing import NamedTuple, Protocol

ALIKE = 0.6
"""The share of words that two statements must have in common for one to be a changed version of the other."""

_PACKAGES = frozenset({"site-packages", "dist-packages"})
_MARKS = (".git", ".hg", "pyproject.toml", "setup.py", "setup.cfg")
_CELL = re.compile(r"<ipython-input-.*>|.*[/\\]ipykernel_\d+[/\\]\d+\.py|<python-input-\d+>|<stdin(-\d+)?>")
_COMPREHENSION = re.compile(r"(\.<locals>)?\.?<(list|dict|set)comp>$")
_WORDS = re.compile(r"\w+|[^\w\s]")
_STDLIB = re.compile(r".*(?P<whole>/lib/python3\.\d+/(?P<inside>.+))")


class AnyLine(Protocol):
    """A line of an event or of a report."""

    @property
    def file(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def function(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def statement(self) -> str: ...


class LineKey(NamedTuple):
    """A line, identified without its number."""

    file: str
    function: str
    text: str


class Frame(NamedTuple):
    """A site without its texts; changed versions of a site have the same frame."""

    kind: str
    places: tuple[tuple[str, str] | None, ...]


class SiteKey(NamedTuple):
    """Identifies a site; ``None`` for a line that it does not have."""

    kind: str
    user: LineKey | None
    library: LineKey | None
    forward: LineKey | None

    @property
    def frame(self) -> Frame:
        """The same without the texts."""
        lines = (self.user, self.library, self.forward)
        return Frame(self.kind, tuple(line and (line.file, line.function) for line in lines))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of its lines: user, library, forward."""
        return tuple(line.text if line else "" for line in (self.user, self.library, self.forward))


class Home(NamedTuple):
    """The folders that the names of a run's files are relative to."""

    project: str = ""
    """The nearest folder at or above the script's that looks like a project; empty if there is none."""
    folder: str = ""
    """The script's folder; for a module, the one that holds its package; without a script, the working directory."""
    cwd: str = ""


def working_folder() -> str:
    """Return the working directory; empty where it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def home_of_process() -> Home:
    """Return the folders of this process; best called before the script changes its working directory."""
    cwd = working_folder()
    folder = _folder_of_script() or cwd
    return Home(_project(folder), folder, cwd)


def _folder_of_script() -> str:
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if not isinstance(file, str) or not os.path.isfile(file):
        return ""
    path = os.path.abspath(file)
    if package_path(path) is not None or _STDLIB.fullmatch(path) or path.startswith(_scripts()):
        return ""  # pytest, torchrun: files are named from where these were called
    name = getattr(getattr(main, "__spec__", None), "name", None)
    up = name.count(".") if isinstance(name, str) else 0
    return str(PurePath(path).parents[: up + 1][-1])


def _project(folder: str) -> str:
    try:
        home = os.path.expanduser("~")
        while folder and folder not in (home, os.path.dirname(folder)):
            if any(os.path.exists(os.path.join(folder, mark)) for mark in _MARKS):
                return folder
            folder = os.path.dirname(folder)
    except (OSError, ValueError):
        pass
    return ""


def naming(one: Home, other: Home) -> tuple[Callable[[AnyLine], LineKey], Callable[[AnyLine], LineKey]]:
    """Return how to name the lines of two runs so that the names can be compared.

    If both have a project, files are named from there, so that it does not matter where the script is or was called;
    otherwise from the script's folder.  Reports of earlier versions have neither, nor whole statements: then files are
    named from the working directory, and lines by their own text.
    """
    whole = bool(one.folder and other.folder)
    roots = (one.folder, other.folder) if whole else (one.cwd, other.cwd)
    if whole and one.project and other.project:
        roots = (one.project, other.project)
    return (
        partial(line_key, root=roots[0], cwd=one.cwd, whole=whole),
        partial(line_key, root=roots[1], cwd=other.cwd, whole=whole),
    )


def line_key(line: AnyLine, root: str, *, cwd: str = "", whole: bool = True) -> LineKey:
    """Return the key of a line; a line without text (code made by ``exec``) is identified by its number."""
    text = (line.statement if whole else "") or line.source
    return LineKey(
        _file(line.file, root, cwd),
        _COMPREHENSION.sub("", line.function),
        normal(text) if text else f"line {line.line}",
    )


def key_of(
    kind: str,
    user: AnyLine | None,
    library: AnyLine | None,
    forward: AnyLine | None,
    named: Callable[[AnyLine], LineKey],
) -> SiteKey:
    """Return the key of a site, its lines named by one of :func:`naming`."""
    return SiteKey(
        str(kind),
        named(user) if user is not None and user.file else None,
        named(library) if library is not None else None,
        named(forward) if forward is not None else None,
    )


def _file(file: str, root: str, cwd: str) -> str:
    """Name a file relative to its package, the standard library or the project; others keep their path."""
    if _CELL.fullmatch(file):
        return "<cell>"
    if file.startswith("<"):
        return file
    inside = package_path(file)
    if inside is not None:
        return inside
    if not os.path.isabs(file):
        file = os.path.normpath(os.path.join(cwd, file)) if cwd else file
    of_python = _STDLIB.fullmatch(file)
    if of_python is not None:
        return of_python["inside"]
    # A file beside the project is also named relative to it, as long as they share more than the root folder.
    if os.path.isabs(root) and os.path.isabs(file) and os.path.commonpath((root, file)) != os.path.sep:
        return os.path.relpath(file, root).replace(os.sep, "/")
    if root and not os.path.isabs(root) and not os.path.isabs(file):  # of a baseline
        return os.path.relpath(os.path.join(_SOMEWHERE, file), os.path.join(_SOMEWHERE, root)).replace(os.sep, "/")
    return file


_SOMEWHERE = "/-" * 32
"""Stands for the folder that a baseline's files are relative to, deep enough for names that go up from there."""


def short_name(file: str, root: str, cwd: str) -> str:
    """Return a name of a file without a folder of this machine, from which :func:`line_key` makes the same key.

    It is relative to ``root``; an installed file keeps ``site-packages`` before its package, and one of Python's own
    its version.
    """
    inside = package_path(file)
    if inside is not None:
        return f"site-packages/{inside}"
    of_python = _STDLIB.fullmatch(file)
    if of_python is not None:
        return of_python["whole"]
    return _file(file, root, cwd) if file else ""


def package_path(file: str) -> str | None:
    """Name an installed file from its package on; ``None`` for any other."""
    parts = PurePath(file).parts
    last = max((index for index, part in enumerate(parts) if part in _PACKAGES), default=None)
    return None if last is None else "/".join(parts[last + 1 :])


def _scripts() -> str:
    return (sysconfig.get_path("scripts") or "\0").rstrip("/") + "/"


@lru_cache(maxsize=4_096)
def normal(text: str) -> str:
    """Return a statement in the form that is compared: whatever its line breaks, quotes and brackets."""
    for candidate in (text, f"{text} pass", f"{text.removeprefix('el')} pass", f"{text}\n pass"):
        try:
            return ast.unparse(ast.parse(candidate))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return " ".join(text.split()).rstrip(",").rstrip()


def is_a_little_changed(one: SiteKey, other: SiteKey) -> bool:
    """Return whether two sites are in the same place and their texts differ only a little."""
    return one.frame == other.frame and likeness(one, other) >= ALIKE


def likeness(one: SiteKey, other: SiteKey) -> float:
    """Return how similar the texts of two sites are, from 0 to 1, by the line that differs most."""
    return min(_likeness(*texts) for texts in zip(one.texts, other.texts, strict=True))


@lru_cache(maxsize=4_096)
def _likeness(one: str, other: str) -> float:
    if one == other:
        return 1.0
    words, others = _WORDS.findall(one), _WORDS.findall(other)
    return SequenceMatcher(None, words[:500], others[:500], autojunk=False).ratio()


def pair(old: Iterable[SiteKey], new: Iterable[SiteKey]) -> dict[SiteKey, SiteKey]:
    """Match new sites with old ones that they are changed versions of, the most similar first; each is used once."""
    by_frame: dict[Frame, list[SiteKey]] = {}
    for key in old:
        by_frame.setdefault(key.frame, []).append(key)
    found = sorted(
        ((likeness(key, other), key, other) for key in new for other in by_frame.get(key.frame, ())),
        key=lambda match: -match[0],
    )
    pairs: dict[SiteKey, SiteKey] = {}
    used: set[SiteKey] = set()
    for alike, key, other in found:
        if alike >= ALIKE and key not in pairs and other not in used:
            pairs[key] = other
            used.add(other)
    return pairs
