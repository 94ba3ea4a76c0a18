"""The pytest plugin: the fixture ``host_syncs``, the marker ``no_host_sync`` and the options ``--syncagent...``.

pytest loads it wherever syncagent is installed.  So it imports nothing but pytest until a test or an option asks for
it; :mod:`syncagent.runtime.testing` does the work.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from syncagent.runtime.testing import HostSyncs

_PACKAGE = __name__.partition(".")[0] + "."
_SESSION = "syncagent-session"
_MARKER = "no_host_sync"
_FIXTURE = "host_syncs"
_TOO_LATE = f"{_MARKER} was added while the test ran, which is too late; add it in a fixture, or above the test"
_FINDER: pytest.StashKey[_Finder] = pytest.StashKey()


class _Finder:
    """Finds this package's modules for Python's own import, ahead of pytest's.

    pytest rewrites the asserts in every module of a distribution that has a plugin.  It reads the source of each, loads
    its compiled form bit by bit, and compiles all of them anew in each session where it cannot write beside them.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path, target) if name.startswith(_PACKAGE) else None

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)


def _leave_imports_to_python(config: pytest.Config) -> None:
    """Have this package's modules found as :class:`_Finder` does, for as long as the session lasts."""
    if _FINDER not in config.stash:
        finder = config.stash[_FINDER] = _Finder()
        sys.meta_path.insert(0, finder)
        config.add_cleanup(finder.leave)


def _work(config: pytest.Config) -> Any:
    """Return the module that does the work of a session."""
    _leave_imports_to_python(config)
    from syncagent.runtime import testing

    return testing


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("syncagent", "host syncs of PyTorch (syncagent)")
    group.addoption(
        "--syncagent",
        choices=("observe", "warn", "raise"),
        help="Watch the body of each test: count its host syncs, warn of each line, or fail the test at the first.",
    )
    group.addoption("--syncagent-baseline", metavar="FILE", help="A report whose lines may wait, under warn and raise.")
    group.addoption("--syncagent-report", metavar="FILE", help="Where to save the report of the session.")
    group.addoption("--syncagent-simulate", action="store_true", help="Simulate a CUDA device where there is none.")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Put the simulated device in before any file of the tests asks torch what there is."""
    options = early_config.known_args_namespace
    if options.syncagent_simulate and not _only_distributes(options):
        _leave_imports_to_python(early_config)
        from syncagent import simulate
        from syncagent.errors import SyncAgentError

        try:
            simulate.install()
        except SyncAgentError as error:
            raise pytest.UsageError(f"--syncagent-simulate: {error}") from None


def _only_distributes(options: Any) -> bool:
    """Is this the process of pytest-xdist that hands tests to workers?"""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    return not is_worker and bool(getattr(options, "numprocesses", None) or getattr(options, "tx", None))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(allow=(), max_syncs=0, kinds=None): fail the test if its body makes the host wait for the GPU more"
        " often than max_syncs; lines that match allow do not count, nor do other kinds of sync than kinds.",
    )
    options = ("syncagent", "syncagent_baseline", "syncagent_report")  # a simulated device watches nothing by itself
    if any(config.getoption(option) for option in options):
        _session(config)


def _session(config: pytest.Config) -> Any:
    """Return what watches the tests of this process, from the first time on that something asks for it."""
    found = config.pluginmanager.get_plugin(_SESSION)
    if found is None:
        found = _work(config).Session(config)
        config.pluginmanager.register(found, _SESSION)
    return found


def _marker_of(item: pytest.Item) -> pytest.Mark | None:
    """Return the marker that is in force, the closest one.

    pytest has that of a function before those of its parameters, and that of a class before those of its heirs.
    """
    of_parameters: Sequence[pytest.Mark] = getattr(getattr(item, "callspec", None), "marks", ())
    for mark in of_parameters:
        if mark.name == _MARKER:
            return mark
    for node, closest in item.iter_markers_with_node(_MARKER):
        return (_marker_of_class(node.obj) if isinstance(node, pytest.Class) else None) or closest
    return None


def _marker_of_class(inner: type) -> pytest.Mark | None:
    for owner in inner.__mro__:
        given: Any = vars(owner).get("pytestmark", ())
        marks: list[Any] = [
            getattr(one, "mark", one) for one in (given if isinstance(given, (list, tuple)) else (given,))
        ]
        found: pytest.Mark | None = next((mark for mark in marks if mark.name == _MARKER), None)
        if found is not None:
            return found
    return None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """Watch the body of a test; what its fixtures do before and after is not the test's."""
    marker = _marker_of(item)
    counts = _FIXTURE in getattr(item, "fixturenames", ())
    session = item.config.pluginmanager.get_plugin(_SESSION)
    if session is None and (marker is not None or counts):
        try:
            session = _session(item.config)
        except pytest.UsageError as error:  # a setting: options were looked at before
            raise pytest.fail.Exception(str(error), pytrace=False) from None
    failure: BaseException | None = None
    if session is None:
        outcome = yield
    else:
        with session.watching(item, marker, counts=counts) as judged:
            outcome = yield
            judged.passed = outcome.excinfo is None
        failure = judged.failure
    if failure is None and outcome.excinfo is None and _marker_of(item) is not marker:
        failure = pytest.fail.Exception(_TOO_LATE, pytrace=False)
    if failure is not None:
        outcome.force_exception(failure)


@pytest.fixture
def host_syncs(request: pytest.FixtureRequest) -> HostSyncs:
    """The host syncs of this test's body: ``count``, ``sites``, ``report()``, ``assert_none()`` and more."""
    found: HostSyncs = _work(request.config).HostSyncs(request.node)
    return found
