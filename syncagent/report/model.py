"""The model of a report: frozen rows with the keys of the report's JSON as fields, in that order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from syncagent.events import CallSite, Span
from syncagent.report.decode import decode, encode
from syncagent.sites import Home, LineKey, SiteKey, key_of

SCHEMA = 1
"""The version of the JSON; a reader refuses any other."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The watched run."""

    started: str
    """ISO 8601, UTC."""
    duration_s: float
    torch: str | None
    cuda: str | None
    device: str | None
    """The GPU's name."""
    host: str
    rank: int | None
    world_size: int | None
    steps: int
    """Training steps that ended while the run was watched; of several ranks, the most that any one made."""
    policy: str
    detail: str
    simulated: bool
    """Whether a simulated device stood in for CUDA: all times are then the CPU's, unless ``modelled``."""
    script: str = ""
    argv: tuple[str, ...] = ()
    cwd: str = ""
    """Working directory of the run; files below it are shown relative to it."""
    pid: int | None = None
    ranks: tuple[int, ...] = ()
    """The ranks that a merged report is made of; empty in a report of one process."""
    gate: str | None = None
    """``held`` if the gate that was asked for was in force for all of the run, ``failed`` if not, with the reasons in
    ``notes``; ``None`` where none was asked for."""
    folder: str = ""
    """The script's folder, from which sites are named."""
    project: str = ""
    """The folder of the project that the script is in, where it looks like one; see :mod:`syncagent.sites`."""
    run_id: str = ""
    """The same for all processes of one run, and different for every other run; empty where it is not known."""
    process: str = ""
    """A random name of the process."""
    part: int = 0
    """The number in the file's name, where another process of the run had taken the name without one; else 0."""
    processes: int = 0
    """How many processes a merged report is made of, if not exactly one per rank; else 0."""
    ended: bool = True
    """False where the process did not end by itself, and this is what its capture held."""
    settings_file: str | None = None
    """The pyproject.toml whose ``[tool.syncagent]`` was in force."""
    judge_kinds: tuple[str, ...] = ()
    """Kinds of sync that the policy, and a check of this report, judge although they do not by themselves."""
    modelled: str | None = None
    """The GPU that all times were modelled for, such as ``H100``: none was measured.  ``None`` where they were."""
    gpu_busy_s: float | None = None
    """How long that GPU would have been busy in ``duration_s``, and otherwise idle; ``None`` where ``modelled`` is."""

    @property
    def home(self) -> Home:
        """The folders by which its files are named."""
        return Home(self.project, self.folder, self.cwd)


@dataclass(frozen=True, slots=True)
class SensorStatus:
    """One sensor."""

    name: str
    live: bool
    cannot_see: str
    """What it misses by its nature; empty where it has no known blind spot."""
    detail: str = ""
    """Why it is not live, or what it watches."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """The overhead of the agent; ``None`` where it was not measured."""

    agent_ms_per_step: float | None
    share: float | None
    """Fraction of the run's duration, 0 to 1."""
    budget: float | None = None
    """The share that sampled steps were allowed to add; ``None`` where every step is watched alike."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all sites."""

    syncs: int
    stall_ms: float
    stall_share: float
    """Fraction of the run's duration for which the training thread was stalled; see ``syncagent.report.summary``."""
    step_ms: float | None = None
    """Total duration of the steps, the first excluded; ``None`` where no step was marked."""
    step_stall_ms: float | None = None
    """Stalls that began inside a step."""

    def shares(self) -> dict[str, float]:
        """The fractions for which it was stalled, by what they are fractions of."""
        shares = {"of the run": self.stall_share}
        if self.step_ms and self.step_stall_ms is not None:
            shares["of step time"] = self.step_stall_ms / self.step_ms
        return shares


@dataclass(frozen=True, slots=True)
class OpShare:
    """One op's part of a site."""

    op: str
    api: str | None
    count: int
    stall_ms: float


@dataclass(frozen=True, slots=True)
class PhaseShare:
    """One phase's part of a site: a model's line may run in training and in evaluation."""

    phase: str
    count: int
    stall_ms: float


@dataclass(frozen=True, slots=True)
class RankShare:
    """One rank's part of a merged site."""

    rank: int
    count: int
    stall_ms: float
    step_stall_ms: float | None = None
    """The part of it that began inside a step."""


@dataclass(frozen=True, slots=True)
class SiteRow:
    """All syncs of one kind at one line.

    ``file`` is empty and ``line`` 0 where the line is not known.  ``op``, ``api`` and ``phase`` are those with the
    largest stall.
    """

    op: str
    api: str | None
    kind: str
    file: str
    line: int
    function: str
    source: str
    phase: str
    """``forward``, ``backward``, ``optimizer``, ``evaluation``, or ``other`` where none of these is certain."""
    count: int
    per_step: float | None
    """In the ranks that have it; ``None`` where no step was marked."""
    stall_ms: float
    stall_ms_p50: float
    """Median of a bounded sample; after a merge the median of the ranks' medians, weighted by their counts."""
    stall_ms_max: float
    sampled: bool
    """Whether ``count``, and ``stall_ms`` where the driver's waits are not measured, were scaled up from a sample."""
    allowed: str | None
    """Reason, where every sync of this site was allowed."""
    idle_ms: float | None = None
    """GPU time without work per step, from the end of this site's waits to the next launch; ``None`` until measured."""
    gain_ms: float | None = None
    """How much faster a step would be if this site did not wait; ``None`` until measured, and where the line would have
    to be rewritten."""
    advice: str | None = None
    """What to do about it, with the gain where that was measured; "probably" where it is not certain."""
    id: int = 0
    """What ``EventRow.site`` refers to; unique within a report."""
    module: str | None = None
    """Path of the ``nn.Module``; a ``*`` stands for the parts in which several differ."""
    ranges: tuple[str, ...] = ()
    """Labels of ``record_function`` ranges that all its syncs share, outermost first."""
    forward: CallSite | None = None
    """In the backward pass: the line of the forward pass that made the autograd node."""
    library: CallSite | None = None
    """The line inside a library that made the call, where the user's line is further out."""
    threads: tuple[str, ...] = ()
    """Names of the threads it was seen in, the first four."""
    allowed_count: int = 0
    violations: int = 0
    """How many of them the policy warned about or stopped; a sync that was stopped before the wait has a stall of 0."""
    step_stall_ms: float | None = None
    """The part of ``stall_ms`` that began inside a step; ``None`` where no step was marked."""
    ranks: tuple[RankShare, ...] = ()
    """The parts of a merged site; empty in a report of one process.  Of more than 64 ranks, those of the 32 that waited
    longest and of the 32 that waited least."""
    statement: str = ""
    """The whole statement, or the head of a compound one, where it is more than ``source``."""
    ops: tuple[OpShare, ...] = ()
    """All ops that waited there, the longest stall first."""
    conditional: bool = False
    """Whether they waited only because of the driver's state, which may differ in another run; gates ignore them."""
    stack: tuple[CallSite, ...] = ()
    """The whole stack of its longest sync, innermost first, where stacks were asked for."""
    sensors: tuple[str, ...] = ()
    """The sensors that saw it."""
    estimated_ms: float = 0.0
    """The part of ``stall_ms`` that consists of waits too short to be looked at: their sum over all sites is exact, and
    each site has the share of it that it has in sampled steps."""
    count_error: float | None = None
    """Standard error of a ``count`` that was scaled up; ``None`` where it was not, or where the error is not known."""
    advice_kind: str | None = None
    """The kind of advice: one of :class:`syncagent.advice.what.What`."""
    span: Span | None = None
    """The expression at ``line`` that waits longest; ``None`` where Python does not know it (before 3.11)."""
    phases: tuple[PhaseShare, ...] = ()
    """All phases that it waited in, the longest stall first; empty in reports of earlier versions."""
    rank_count: int = 0
    """How many ranks have it, where ``ranks`` has only some of them; else 0."""

    @property
    def steady_ms(self) -> float:
        """The stall in steps, the first one excluded; all of it where no step was marked."""
        return self.stall_ms if self.step_stall_ms is None else self.step_stall_ms

    def key(self, named: Callable[[Any], LineKey]) -> SiteKey:
        """The key of the site, its lines named by one of :func:`syncagent.sites.naming`."""
        return key_of(self.kind, self, self.library, self.forward, named)


@dataclass(frozen=True, slots=True)
class OpRow:
    """Host time of one op at one line (``detail="ops"``)."""

    op: str
    file: str
    line: int
    function: str
    source: str
    phase: str
    count: int
    host_ms: float
    """Stalls included."""
    stall_ms: float = 0.0
    share: float | None = None
    """``host_ms`` minus ``stall_ms``, as a fraction of the run's duration; ``None`` where that is not known."""

    @property
    def busy_ms(self) -> float:
        """Host time that was work, not waiting."""
        return max(self.host_ms - self.stall_ms, 0.0)


@dataclass(frozen=True, slots=True)
class HostRow:
    """Host time of the training thread in steps, host syncs excluded, of a process that is one of several ranks.

    As in ``Totals.step_ms``, the first step is excluded.  A process has 50 rows at most, the largest first; those
    beyond are added up in a row with an empty ``file``.
    """

    cause: str
    """``line``, ``data loader`` or ``garbage collection``."""
    file: str
    """Empty for garbage collection, and where the line is not known."""
    line: int
    function: str
    source: str
    count: int
    """How often the thread was found there; of garbage collection, how many collections there were."""
    ms: float
    """Estimated, as the share of looks that found the thread there; of garbage collection measured."""
    rank: int | None = None
    """In a report of several ranks."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """One sync on the time line; ``site`` is the ``id`` of its row."""

    site: int
    start_ns: int
    stall_ns: int
    step: int
    thread: str
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step on the time line."""

    step: int
    start_ns: int
    end_ns: int
    rank: int | None = None
    collective_ms: float | None = None
    """How long the GPU's compute stream stood still for collectives: for other ranks, and for the transfer itself;
    ``None`` where that is not known."""


HOST_SYNC, UNKNOWN = "host sync", "unknown"
"""What else a late rank may have done, beside what :class:`syncagent.events.HostCause` has."""


@dataclass(frozen=True, slots=True)
class CauseRow:
    """What a late rank did more of than the others."""

    cause: str
    """``host sync``, ``line``, ``data loader``, ``garbage collection``, or ``unknown``."""
    held_ms: float
    """Its part of the rank's lateness, per step."""
    share: float
    """The same as a fraction of step time."""
    file: str = ""
    line: int = 0
    function: str = ""
    source: str = ""
    site: int | None = None
    """The ``id`` of the row of a host sync."""


@dataclass(frozen=True, slots=True)
class LateRank:
    """A rank that the others wait for."""

    rank: int
    held_ms: float
    """How much faster a step would be if it came with the second last."""
    share: float
    """The same as a fraction of step time."""
    last_in: int
    """In how many steps it came last."""
    causes: tuple[CauseRow, ...]
    host: str = ""
    """The machine that it ran on; empty where its report does not say."""


@dataclass(frozen=True, slots=True)
class Lateness:
    """How ranks wait for each other in collectives; see :mod:`syncagent.report.blame`."""

    steps: int
    """In how many steps the ranks could be compared."""
    step_ms: float
    ranks: tuple[LateRank, ...]
    """Those that hold the others up for certain, the worst first; often none."""


@dataclass(frozen=True, slots=True)
class CellRow:
    """A cell of a notebook: the number that IPython gave it, by the name of the file that its code claims to have."""

    file: str
    number: int


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Lines of a file around a site, as they were when the report was made."""

    file: str
    first: int
    """The number of the first of them, from 1."""
    lines: tuple[str, ...]
    """With their blanks on the left."""


@dataclass(frozen=True, slots=True)
class BusyRow:
    """A time in which a GPU worked."""

    start_ns: int
    end_ns: int
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class OrderRow:
    """One entry of the best order of fixes; ``site`` is the ``id`` of its row."""

    site: int
    gain_ms: float
    """Per step, of this fix and all before it together."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """What the syncs cost, from a window of a few steps; see :mod:`syncagent.cost`.  Times are ms per step."""

    steps: int
    step_ms: float | None
    """As replayed."""
    measured_step_ms: float | None
    """As measured without a profiler."""
    gain_all_ms: float | None
    """How much faster a step would be if nothing waited."""
    abstained: str | None
    """Why the cost is not known; ``None`` where it is."""
    order: tuple[OrderRow, ...] = ()
    notes: tuple[str, ...] = ()
    gpu_busy: tuple[BusyRow, ...] = ()
    """When the GPU worked in those steps; pauses of less than a microsecond are left out."""


def _worst_first(site: SiteRow) -> tuple[float, float, float, float, str, int, str]:
    costs = (-(site.gain_ms or 0.0), -(site.idle_ms or 0.0), -site.steady_ms, -site.stall_ms)
    return (*costs, site.file, site.line, site.op)


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen in one run, or in several processes of it.

    ``sites`` are sorted, worst first: by gain, then by the GPU idle time that they cause, where those are known, then
    by the stall in steps: set-up and the first step never come first.  ``events`` and ``step_times`` hold the newest
    few thousand only.
    """

    run: RunInfo
    sensors: tuple[SensorStatus, ...]
    overhead: Overhead
    dropped: int
    """Syncs that were noticed but not recorded."""
    totals: Totals
    sites: tuple[SiteRow, ...]
    ops: tuple[OpRow, ...] = ()
    notes: tuple[str, ...] = ()
    events: tuple[EventRow, ...] = ()
    step_times: tuple[StepRow, ...] = ()
    cost: CostRow | None = None
    """``None`` where it was not asked for."""
    problems: tuple[str, ...] = ()
    """Those of ``notes`` that say what did not work."""
    cells: tuple[CellRow, ...] = ()
    """The numbers of the notebook cells among its files, which are shown as ``In [3]``."""
    sources: tuple[SourceRow, ...] = ()
    """The source around the worst sites, where the files could be read; no two of them overlap."""
    host: tuple[HostRow, ...] = ()
    """What the training thread did in steps besides waiting; empty where the process is no rank of several."""
    lateness: Lateness | None = None
    """In a merged report: which rank the others wait for; ``None`` where that is not known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(sorted(self.sites, key=_worst_first)))

    def share(self, site: SiteRow) -> float | None:
        """Fraction of step time for which the site stalled; of the run's duration where no step was marked."""
        if self.totals.step_ms and site.step_stall_ms is not None:
            return site.step_stall_ms / self.totals.step_ms
        whole_ms = self.run.duration_s * 1e3 * max(len(self.run.ranks), self.run.processes, 1)
        return site.stall_ms / whole_ms if whole_ms > 0 else None

    def __repr__(self) -> str:
        totals = self.totals
        sites, syncs = (
            f"{number:,} {noun}{'s' * (number != 1)}"
            for number, noun in ((len(self.sites), "site"), (totals.syncs, "sync"))
        )
        return f"Report({sites}, {syncs}, {totals.stall_ms:,.3g} ms stalled)"

    def __str__(self) -> str:
        # To print a report must not fail where standard output is in ASCII.
        return self._text(encoding=getattr(sys.stdout, "encoding", None))

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline and a table of the worst sites."""
        return _files.rendered(self, "notebook")

    def to_text(self, *, width: int = 100, verbose: bool = False) -> str:
        """The report as text: an answer of at most 25 lines, or with ``verbose`` all of it.

        Its tables are at most ``width`` columns wide; no line is cut.
        """
        return self._text(width=width, verbose=verbose)

    def _text(self, **options: Any) -> str:
        options = {"verbose": False, "more": "report.to_text(verbose=True)", **options}
        return _files.rendered(self, "text", **options).strip("\n")

    def to_markdown(self) -> str:
        """The report as Markdown, for a pull request or an issue: the worst sites in a table, the rest folded."""
        return _files.rendered(self, "markdown")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; ``docs/schemas/report.schema.json`` describes them."""
        return {"schema": SCHEMA, **encode(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: str = "this") -> Report:
        """The report of what ``to_dict`` gave.

        Raises :class:`~syncagent.errors.SyncAgentError` with one sentence, which calls the report ``name``.
        """
        return decode(cls, values, schema=SCHEMA, name=name)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report's JSON file, or a capture.

        Raises :class:`~syncagent.errors.SyncAgentError` with one sentence where it cannot be read.
        """
        return _files.load(path)

    def save(self, path: str | Path) -> Path:
        """Write the report in the format that the suffix names and return where it went.

        The suffixes are ``.json``, ``.html``, ``.md``, ``.sarif`` and ``.trace.json``.  ``{rank}`` and ``{pid}`` are
        filled in; a directory gets ``rank{rank}.json``.  Where another process of this run has saved its own, the name
        gets a number: ``x.1.json``.  Raises :class:`~syncagent.errors.ConfigError` where the path cannot be written.
        """
        return _files.save(self, path)


class Files(Protocol):
    """What reads, writes and renders reports; the package gives it :mod:`syncagent.report.files`.

    Not imported here: the formats are built on the model.
    """

    def load(self, path: str | Path) -> Report: ...
    def save(self, report: Report, path: str | Path) -> Path: ...
    def rendered(self, report: Report, form: str, **options: Any) -> str: ...


_files: Files


def use_files(files: Files) -> None:
    """Have what a report does beyond holding values go there."""
    global _files
    _files = files
