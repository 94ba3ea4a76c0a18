"""The settings: the name, type, default and meaning of each, and what follows from several of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

from syncagent.settings import parsing
from syncagent.support.storage import DEFAULT_MODE

Names = str | list[str] | tuple[str, ...]
"""A list, or one string with commas."""

PolicyName = Literal["observe", "warn", "raise"]
Detail = Literal["auto", "ops", "syncs"]
Copies = Literal["all", "sampled", "off"]
JudgedThreads = Literal["training", "all"]
ModelledGPU = Literal["H100", "H200", "A100", "L4"]


def _setting(parser: parsing.Parser[Any], doc: str, default: Any = None, *, more: str = "", otherwise: str = "") -> Any:
    """Return the field of one setting.

    ``doc`` is what it means, as one clause: the help of ``syncagent run`` and docs/settings.md say it.  ``otherwise``
    says what is done without a value, where the default does not say it.  ``more`` are sentences for docs/settings.md
    alone.  All are Markdown, of which the help leaves out the backticks.
    """
    return field(default=default, metadata={"parse": parser, "doc": doc, "more": more, "otherwise": otherwise})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in force.

    Each is a keyword of :class:`syncagent.watch` and :func:`syncagent.start`, an environment variable (its name in
    capitals after ``SYNCAGENT_``), a key of ``[tool.syncagent]`` and an option of ``syncagent run``.
    """

    policy: PolicyName = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(PolicyName),
        "what happens at a sync that is not allowed",
        "observe",
        more="See [above](#the-two-that-matter-most) and [In production](production.md).",
    )
    detail: Detail | None = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(Detail),
        "wrap every op in some steps (`auto`), in all (`ops`), or only what may wait (`syncs`)",
        otherwise="`auto` under `observe` without `cost`, else `syncs`",
        more="See [above](#the-two-that-matter-most). It cannot be changed after the start. A gate (`raise`, or `warn` "
        "with a baseline) refuses `auto`.",
    )
    overhead: float = _setting(
        parsing.share,
        "the share of the time that the agent may add",
        0.01,
        more="Three quarters of it go into the sampled steps of `detail=auto`, measured against the steps beside them, "
        "and a quarter into looks at threads that wait. With 0 there are no sampled steps after the first ones, and no "
        "looks.",
    )
    copies: Copies | None = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(Copies),
        "which copies `detail=syncs` times: all, those of some steps (`sampled`), or none (`off`)",
        otherwise="`all` in a gate and with a budget, else `sampled`",
        more="Sampled are one step in 16, later in 64; their sums are scaled up and marked so. A gate is `raise`, or "
        "`warn` with a baseline. `detail=auto` watches all copies of the steps that it samples.",
    )
    allow: tuple[str, ...] = _setting(
        parsing.allowances,
        "code whose syncs are allowed",
        (),
        more="See [what may pass](production.md#what-may-pass).",
    )
    allow_kinds: tuple[str, ...] = _setting(parsing.kinds, "kinds of sync that are allowed everywhere", ())
    allow_packs: tuple[str, ...] = _setting(
        parsing.names,
        "libraries whose own syncs are allowed, such as `torch` or `lightning`",
        (),
        more="See [what may pass](production.md#what-may-pass).",
    )
    baseline: str | None = _setting(
        parsing.path, "a JSON report whose sites are known: the policy acts on new ones only"
    )
    warmup_steps: int = _setting(
        parsing.count(0),
        "how many first steps the policy does not act in",
        3,
        more="In a region it is 0, unless it is given there.",
    )
    min_stall_ms: float = _setting(
        parsing.milliseconds, "shorter stalls are counted, but get no span, no warning and no error", 0.0
    )
    max_syncs_per_step: tuple[tuple[str, int], ...] = _setting(
        parsing.per_phase(parsing.count(0)), "how many syncs a step, or each of its phases, may have", ()
    )
    max_stall_ms_per_step: tuple[tuple[str, float], ...] = _setting(
        parsing.per_phase(parsing.milliseconds), "how much stall a step, or each of its phases, may have", ()
    )
    max_stall_share: float | None = _setting(
        parsing.share, "which share of the time may be stall, over the last `stall_share_window` steps"
    )
    stall_share_window: int = _setting(parsing.count(1), "how many steps `max_stall_share` is measured over", 20)
    judge_threads: JudgedThreads = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(JudgedThreads),
        "whether the policy acts only in threads that train, or in all",
        "training",
    )
    judge_kinds: tuple[str, ...] = _setting(
        parsing.kinds,
        "kinds of sync that the policy judges although it does not by itself: `collective`, `allocator`",
        (),
        more="Unless they are named here, these two count in no budget and fail no gate.",
    )
    policy_file: str | None = _setting(
        parsing.path, "a file from which the policy is read each second while the job runs"
    )
    policy_signal: str | None = _setting(
        parsing.signal_name, "a signal that switches the policy from `observe` to `warn`, and back"
    )
    report: str | None = _setting(
        parsing.report_path,
        "where the report is saved at exit",
        more="The suffix decides the format. `{rank}` and `{pid}` are filled in, and a directory gets "
        "`rank{rank}.json`. If several processes of a run save under one name, the second becomes `report.1.json` and "
        "so on, and `syncagent report report.json` reads them all.",
    )
    summary: bool | None = _setting(
        parsing.flag,
        "print the summary at the end",
        otherwise="on for scripts, off for `watch()` and `start()`",
    )
    report_signal: str | None = _setting(
        parsing.signal_name,
        "a signal at which the report so far is written, while the job goes on",
        more="It is saved where `report` says, or else the summary is printed. See "
        "[a job that runs for days](production.md#a-job-that-runs-for-days).",
    )
    progress: float | None = _setting(
        parsing.seconds_or_off,
        "how many seconds apart the log gets a line about the run; `off` or 0 for none",
        otherwise="one line that is rewritten on a terminal, for scripts that run for more than a minute",
        more="Rank 0 alone writes it. See [a job that runs for days](production.md#a-job-that-runs-for-days).",
    )
    verbose: bool = _setting(
        parsing.flag, "print the whole report at the end, not only what matters most", default=False
    )
    journal: str | None = _setting(
        parsing.path,
        "the file or folder that spans go to where no endpoint is set; `off` for none",
        otherwise="`.syncagent/`",
        more="What ends in a slash is a folder; `{rank}` and `{pid}` are filled in.",
    )
    capture: str | None = _setting(
        parsing.path,
        "the file or folder where the sums are kept each second, so that `syncagent report` can show a killed process; "
        "`off` for none",
        otherwise="`.syncagent/` for scripts, `off` for `watch()` and `start()`",
        more="Its name is read like that of `journal`.",
    )
    file_mode: int = _setting(
        parsing.file_mode, "who may read the reports, journals and captures that are written", DEFAULT_MODE
    )
    max_events: int = _setting(parsing.count(1), "how many of the newest syncs are kept whole", 10_000)
    stacks: bool = _setting(parsing.flag, "keep the whole stack of each sync", False)
    user_code: tuple[str, ...] = _setting(parsing.names, "installed packages or paths that count as your own code", ())
    cost: bool = _setting(
        parsing.flag,
        "measure what each sync costs: a few steps are profiled and replayed without it",
        False,
        more="`detail` is then `syncs`. See [what each sync costs](cost.md).",
    )
    collectives: bool = _setting(
        parsing.flag,
        "measure how long the GPU of each rank waits for the others in NCCL's collectives",
        True,
        more="On the simulated device it is always measured. See [several "
        "ranks](ranks.md#which-rank-holds-the-others-up).",
    )
    cost_steps: int = _setting(parsing.count(1), "how many steps are profiled for `cost`", 5)
    simulate: bool = _setting(
        parsing.flag,
        "the simulated device stands in for CUDA",
        False,
        more="See [the simulated device](simulation.md).",
    )
    simulate_gpu: ModelledGPU | None = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(ModelledGPU),
        "the GPU whose times are modelled on the simulated device, by its datasheet",
        otherwise="the CPU's own times",
        more="See [modelled time](simulation.md#modelled-time). Every step is then watched alike: `detail=auto` does "
        "what `syncs` does.",
    )

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """For each setting that is not at its default: keyword, environment, or the path of the pyproject.toml."""
    file: str | None = field(default=None, compare=False)
    """The pyproject.toml whose table was read."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """A sentence for each thing that was meant as a setting and had no effect."""

    @property
    def detail_in_force(self) -> Detail:
        """``detail``, or what the policy makes of it where it is not given."""
        if self.modelled_gpu is not None and self.detail != "ops":
            return "syncs"  # a sampled step would be longer than the others, and the driver sees no modelled time
        return self.detail or ("auto" if self.policy == "observe" and not self.cost else "syncs")

    @property
    def modelled_gpu(self) -> ModelledGPU | None:
        """``simulate_gpu``, where the device is simulated."""
        return self.simulate_gpu if self.simulate else None

    @property
    def wraps_every_op(self) -> bool:
        """Whether both modes are around every op of every step."""
        return self.detail_in_force == "ops"

    @property
    def samples_steps(self) -> bool:
        """Whether ops are wrapped in some steps alone, and only those steps' syncs are named."""
        return self.detail_in_force == "auto"

    @property
    def is_gate(self) -> bool:
        """Whether a sync that is not allowed has consequences: under ``raise``, and ``warn`` with a baseline."""
        return is_gate(self.policy, self.baseline)

    @property
    def copies_timed(self) -> Copies:
        """Which copies are timed; where steps are sampled, the copies of those steps, whatever ``copies`` says."""
        if self.samples_steps:
            return "sampled"
        if self.copies is not None:
            return self.copies
        return "all" if self.wraps_every_op or self.is_gate or self.counts_by_step else "sampled"

    @property
    def counts_by_step(self) -> bool:
        """Whether a budget is set."""
        return bool(self.max_syncs_per_step or self.max_stall_ms_per_step) or self.max_stall_share is not None


PARSERS: dict[str, parsing.Parser[Any]] = {
    setting.name: setting.metadata["parse"] for setting in fields(Settings) if "parse" in setting.metadata
}
"""What checks each setting, by its name: all the names there are."""
DEFAULTS = {setting.name: setting.default for setting in fields(Settings)}


def parse(name: str, value: object) -> Any:
    """Return the value of one setting as it is used.  Raises :class:`~syncagent.ConfigError` if it is not allowed."""
    return PARSERS[name](name, value)


def is_gate(policy: PolicyName, baseline: str | None) -> bool:
    """Whether a sync that is not allowed has consequences: under ``raise``, and under ``warn`` with a baseline."""
    return policy == "raise" or (policy == "warn" and baseline is not None)


class Keywords(TypedDict, total=False):
    """The settings as keywords, for editors and type checkers; ``None`` leaves a setting as it is without."""

    policy: PolicyName | None
    detail: Detail | None
    overhead: float | None
    copies: Copies | None
    allow: Names | None
    allow_kinds: Names | None
    allow_packs: Names | None
    baseline: str | Path | None
    warmup_steps: int | None
    min_stall_ms: float | None
    max_syncs_per_step: int | str | Mapping[str, int] | None
    max_stall_ms_per_step: float | str | Mapping[str, float] | None
    max_stall_share: float | None
    stall_share_window: int | None
    judge_threads: JudgedThreads | None
    judge_kinds: Names | None
    policy_file: str | Path | None
    policy_signal: str | int | None
    report: str | Path | None
    summary: bool | None
    report_signal: str | int | None
    progress: float | str | None
    verbose: bool
    journal: str | Path | None
    capture: str | Path | None
    file_mode: int | str | None
    max_events: int | None
    stacks: bool | None
    user_code: Names | None
    cost: bool | None
    collectives: bool | None
    cost_steps: int | None
    simulate: bool | None
    simulate_gpu: ModelledGPU | None
