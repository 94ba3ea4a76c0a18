"""What the pytest plugin does once something asks for it: an agent for the process, a region for the body of each test.

A region covers the test's function alone, as :func:`syncagent.watch` does: its thread or task, and its backward passes.
For that it is put around the function, which an event loop may run in a context of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from syncagent.errors import ConfigError, HostSyncAssertionError, SyncAgentError
from syncagent.policy.scopes import allow, open_scopes
from syncagent.report.summary import Summary
from syncagent.runtime import process
from syncagent.runtime.asserting import SEES_ALL, SyncAssertion, a_number, check
from syncagent.runtime.regions import Region
from syncagent.runtime.run import no_run
from syncagent.runtime.watching import Watch
from syncagent.settings import sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncagent.report.model import Report, SiteRow
    from syncagent.runtime.agent import ProcessAgent
    from syncagent.runtime.handle import Agent

_TAKES = ("allow", "max_syncs", "kinds")
_OUTPUT = "syncagent"
"""Under which name a worker of pytest-xdist hands its report on."""
_PROPERTY = _FIXTURE = "host_syncs"
"""Under which name a test's number of syncs is in its report, and in JUnit's; and that of the fixture."""


class Entered:
    """A watch around something that is no function, with what a watched function has."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.report = agent.report


class Judged:
    """One test while it runs, and what becomes of it."""

    def __init__(self) -> None:
        self.passed = True
        self.failure: BaseException | None = None


_REGION: pytest.StashKey[Any] = pytest.StashKey()
"""The watched function of a test that runs."""
_WITHOUT: pytest.StashKey[bool] = pytest.StashKey()
"""Set where there is no device that a test could wait for."""


class HostSyncs:
    """The host syncs of one test's body, as far as they are not allowed."""

    def __init__(self, item: Any) -> None:
        self._item = item

    def __repr__(self) -> str:
        """Name the lines, since pytest shows this where a test finds another count than it expects."""
        from syncagent.report import wording
        from syncagent.report.findings import counted

        try:
            report = self.report()
        except SyncAgentError:
            return f"<{_FIXTURE}, before the body of the test>"
        lines = [
            f"{wording.place(site.file, site.line, report.run.cwd)} ({number:,})" for site, number in counted(report)
        ]
        return f"<{_FIXTURE}: {', '.join(lines) or 'none'}>"

    def report(self) -> Report:
        """Return the report of the test's body so far.

        Raises :class:`~syncagent.SyncAgentError` in fixtures that run before it.
        """
        if _WITHOUT in self._item.stash:
            return Summary().snapshot(no_run("observe"))
        watched = self._item.stash.get(_REGION, None)
        if watched is None or watched.agent is None:
            raise SyncAgentError(
                "host_syncs counts the body of a test, which has not begun or does not take the fixture as an argument"
            )
        report: Report = watched.report()
        return report

    @property
    def count(self) -> int:
        """How many there were so far."""
        from syncagent.report.findings import counted

        return sum(one.number for one in counted(self.report()))

    @property
    def sites(self) -> tuple[SiteRow, ...]:
        """The lines that made them, the longest stall first."""
        from syncagent.report.findings import counted

        return tuple(one.site for one in counted(self.report()))

    def assert_none(self) -> None:
        """Raise :class:`~syncagent.HostSyncAssertionError` if there was one."""
        __tracebackhide__ = True
        self.assert_at_most(0)

    def assert_at_most(self, n: int) -> None:
        """Raise :class:`~syncagent.HostSyncAssertionError` if there were more than ``n``."""
        __tracebackhide__ = True
        check(self.report(), a_number(n))


class Session:
    """The agent of a process of pytest's, and what becomes of its report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._mode: str | None = config.getoption("syncagent")
        self._baseline: str | None = config.getoption("syncagent_baseline")
        self._path: str | None = config.getoption("syncagent_report")
        self._simulates: bool = config.getoption("syncagent_simulate")
        self._own: ProcessAgent | None = None
        self._agent: ProcessAgent | None = None
        """What has watched the last test: this session's own, or the program's."""
        self._watched: Any = None
        """The watched function of the test whose body runs."""
        self._reports: list[Report] = []
        self._saved: str | None = None
        """The file that the report is in."""
        self._where = ""
        """The sentence that says so, or why it could not be saved; empty where there is no report."""
        self._lost_workers: list[str] = []
        self._tests = self._with_syncs = self._syncs = 0
        self._check_options()
        self._around: Watch | None = None
        """What is around a test that asks for nothing."""
        if self._mode in {"warn", "raise"}:
            policy = {"policy": self._mode, "baseline": self._baseline}
            if "warmup_steps" in (found := sources.load()).sources:
                policy |= {"warmup_steps": found.warmup_steps}
            self._around = Watch(sources.load(policy))
        elif self._mode is not None or self._path is not None:  # it counts, and leaves policies of the program in force
            self._around = Watch(sources.load({"copies": "all"}))

    def _check_options(self) -> None:
        """Refuse what cannot be done, before any test runs."""
        from syncagent.report import files

        try:
            sources.load()
            if self._baseline is not None:
                if self._mode not in {"warn", "raise"}:
                    raise ConfigError("--syncagent-baseline needs --syncagent=warn or --syncagent=raise")
                self._check_baseline(files.load(self._baseline))
            if self._path is not None:
                files.destination(self._path)
        except SyncAgentError as error:
            raise pytest.UsageError(str(error)) from None

    def _check_baseline(self, known: Report) -> None:
        """A baseline without a file of this project is of another program."""
        from syncagent.sites import package_path

        roots = (self._config.rootpath, self._config.invocation_params.dir)
        named = {site.file for site in known.sites if site.file}
        if named and not any(
            package_path(file) or os.path.exists(file) or any((root / file).exists() for root in roots)
            for file in named
        ):
            raise ConfigError(
                f"--syncagent-baseline {self._baseline}: it is of another program, none of its files is in "
                f"{self._config.rootpath}"
            )

    # --- one test

    @contextmanager
    def watching(self, item: pytest.Item, marker: pytest.Mark | None, *, counts: bool) -> Iterator[Judged]:
        """Watch the body of a test; a test that breaks a limit has a ``failure`` afterwards.

        ``counts`` says that the test judges by itself, with the fixture.
        """
        judged, wrong = Judged(), ""
        try:
            watch, most = self._watch_of(marker, counts=counts)
            has_device = watch is not None and self._begin()
        except SyncAgentError as error:
            wrong = str(error)
        if wrong:
            pytest.fail(wrong, pytrace=False)
        if watch is None:
            yield judged
            return
        if not has_device:
            item.stash[_WITHOUT] = True
            item.user_properties.append((_PROPERTY, 0))
            yield judged
            return
        with self._put_around(item, watch) as watched:
            self._watched = watched
            try:
                yield judged
            finally:
                self._watched = None
        if watched.agent is not None:
            self._judge(item, watch, most, watched.report(), judged)

    def _watch_of(self, marker: pytest.Mark | None, *, counts: bool) -> tuple[Watch | None, int | None]:
        if marker is not None:
            return _of_marker(marker)
        return SyncAssertion(None, {}) if counts else self._around, None

    @contextmanager
    def _put_around(self, item: pytest.Item, watch: Watch) -> Iterator[Any]:
        """Have the function of a test watched; of another kind of item, what it runs."""
        if not isinstance(item, pytest.Function):
            with watch as agent:
                item.stash[_REGION] = Entered(agent)
                yield item.stash[_REGION]
            return
        function: Any = item.obj
        watched = watch(function)
        item.stash[_REGION] = watched
        item.obj = watched
        case = item.instance
        is_case = isinstance(case, getattr(sys.modules.get("unittest"), "TestCase", ()))
        if is_case:  # which calls an asynchronous method by its name
            setattr(case, item.name, watched)
        try:
            yield watched
        finally:
            item.obj = function
            if is_case:
                vars(case).pop(item.name, None)

    def _judge(self, item: pytest.Item, watch: Watch, most: int | None, report: Report, judged: Judged) -> None:
        from syncagent.report.findings import counted

        kinds = watch.kinds if isinstance(watch, SyncAssertion) else None
        number = sum(one.number for one in counted(report, kinds))
        item.user_properties.append((_PROPERTY, number))
        if not judged.passed:
            return
        if most is not None:
            try:
                check(report, most, kinds)
            except HostSyncAssertionError as error:
                judged.failure = _failed(str(error))
        elif self._mode == "raise" and any(site.violations for site in report.sites):
            judged.failure = _failed("the test caught the error of a host sync that --syncagent=raise had stopped")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self) -> Iterator[None]:
        """Leave out what a fixture does that the body of a test asks for."""
        region = self._watched.agent if self._watched is not None else None
        with region.suspended() if isinstance(region, Region) and region in open_scopes() else nullcontext():
            yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        """Allow pytest to show the values of a test that failed."""
        with allow("pytest shows the values of a test that failed"):
            yield

    # --- the agent

    def _begin(self) -> bool:
        """Start the agent with the first test that is watched, unless the process has one.

        Returns whether there is a device that a test could wait for; without one, nothing is started.
        """
        agent = process.running()
        if agent is None:
            if not (self._simulates or _has_device()):
                return False
            settings = SEES_ALL | ({"simulate": True} if self._simulates else {})
            agent = self._own = process.launch(sources.load(settings))
            agent.is_kept = True
        if agent is not self._agent:
            self._take_report_of(self._agent)
            self._agent = agent
        return True

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End the agent and save its report, if it is read; a worker hands it to the process that has started it.

        A report that cannot be saved fails the session.
        """
        self._take_report_of(self._agent or process.running())
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            if self._reports:
                output[_OUTPUT] = json.dumps(_together(self._reports).to_dict())
            return
        if self._reports and self._path is not None and not self._save() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def _take_report_of(self, agent: ProcessAgent | None) -> None:
        """End the agent, unless it is the program's, which may have ended it before; keep its report, if it is read."""
        if agent is None:
            return
        ends = agent is self._own
        if ends:
            agent.is_kept = False
        if self._mode is not None or self._path is not None:
            self._reports.append(process.release(agent) if ends else agent.report())
        elif ends:  # nothing is shown: see pytest_terminal_summary
            process.close(agent)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take the report of a worker of pytest-xdist."""
        from syncagent.report.model import Report

        handed = getattr(node, "workeroutput", {}).get(_OUTPUT)
        if handed is not None:
            name = str(getattr(getattr(node, "gateway", None), "id", "a worker"))
            self._reports.append(Report.from_dict(json.loads(handed), name=f"the report of {name}"))
        elif error is not None:
            self._lost_workers.append(str(getattr(getattr(node, "gateway", None), "id", "a worker")))

    # --- what is said at the end

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the tests, those of the workers too."""
        if report.when == "call":
            numbers = [value for name, value in report.user_properties if name == _PROPERTY]
            self._tests += bool(numbers)
            self._with_syncs += any(numbers)
            self._syncs += sum(int(str(number)) for number in numbers)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._mode is None and self._path is None:
            return
        report = _together(self._reports) if self._reports else None
        terminalreporter.section("host syncs")
        for line in self._said(report):
            terminalreporter.line(line)
        if self._path is not None:
            terminalreporter.line(self._where or f"no report is saved in {self._path}", red=self._saved is None)

    def _said(self, report: Report | None) -> Iterator[str]:
        from syncagent.report import files, wording

        syncs, tests = wording.plural(self._syncs, "host sync"), wording.plural(self._tests, "test")
        outside = (
            sum(site.count - site.allowed_count for site in report.sites) - self._syncs if report is not None else 0
        )
        more = f", and {outside:,} outside of their bodies" if outside > 0 else ""
        yield f"{syncs} in {self._with_syncs:,} of {tests}{more}"
        if self._lost_workers:
            died = " and ".join(sorted(self._lost_workers))
            yield f"{died} died, and what was seen there is not in the report"
        if report is None and self._tests and not self._lost_workers:
            yield "There is no CUDA device here, so nothing could wait for one; --syncagent-simulate simulates one."
        if report is not None and self._syncs:
            more = "--syncagent-report=FILE" if self._saved is None else wording.to_read(self._saved)
            width = shutil.get_terminal_size((100, 24)).columns
            yield from files.rendered(report, "text", verbose=False, more=more, width=width).strip("\n").splitlines()

    def _save(self) -> bool:
        """Save the report, and keep the sentence that says where it is or why it could not be saved."""
        from syncagent.report import files

        try:
            self._saved = str(files.save(_together(self._reports), str(self._path)))
        except SyncAgentError as error:
            self._where = str(error)
            return False
        self._where = f"the report is in {self._saved}"
        return True


def _together(reports: list[Report]) -> Report:
    """Make one report of those of all workers, which are no ranks."""
    from syncagent.report.merge import merge

    report = merge([replace(part, run=replace(part.run, script="pytest")) for part in reports])
    return replace(report, sites=tuple(replace(site, ranks=()) for site in report.sites))


def _has_device() -> bool:
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return torch.cuda.is_available()


# mypy does not see what class pytest.fail raises; the name is what pytest shows.
class Failed(pytest.fail.Exception, HostSyncAssertionError):  # type: ignore[name-defined, misc]  # noqa: N818
    """A test has broken its limit: shown as pytest shows ``pytest.fail``, and what ``xfail(raises=...)`` may name."""

    __module__ = "builtins"  # pytest shows its own in the same way


def _failed(message: str) -> BaseException:
    return Failed(message, pytrace=False)  # type: ignore[call-arg]  # as above


def _of_marker(marker: pytest.Mark) -> tuple[SyncAssertion, int]:
    """Return what a marker asks for: what counts, and how many may.

    Raises :class:`~syncagent.ConfigError` with one sentence for what it cannot mean.
    """
    unknown = [f"{name}=" for name in marker.kwargs if name not in _TAKES] + [repr(value) for value in marker.args]
    if unknown:
        raise ConfigError(
            f"no_host_sync takes {', '.join(f'{name}=' for name in _TAKES)}, but not {', '.join(unknown)}"
        )
    kinds = marker.kwargs.get("kinds")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds is not None and not (isinstance(kinds, (list, tuple, set, frozenset)) and kinds):
        raise ConfigError(f"no_host_sync: kinds is {kinds!r}; it must be a list of one kind of host sync or more")
    allowed = marker.kwargs.get("allow")
    allows_none = allowed is None or (isinstance(allowed, (str, list, tuple)) and not allowed)
    settings = {} if allows_none else {"allow": allowed}
    try:
        most = a_number(marker.kwargs.get("max_syncs", 0))
        return SyncAssertion(None, settings, kinds=kinds), most
    except ConfigError as error:
        raise ConfigError(f"no_host_sync: {str(error).removeprefix('syncagent: ')}") from None
