"""The settings: the name, type, default and meaning of each, and what follows from several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _setting(parser: Callable[[str, object], Any], doc: str, default: Any = None) -> Any:
    return field(default=default, metadata={"parse": parser, "doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in force.

    Each is a keyword of :class:`syncagent.watch` and :func:`syncagent.start`, an environment variable (its name in
    capitals after ``SYNCAGENT_``), a key of ``[tool.syncagent]`` and an option of ``syncagent run``.
    """

    policy: PolicyName = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(PolicyName), "what happens at a sync that is not allowed", "observe"
    )
    detail: Detail | None = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(Detail),
        "wrap every op in some steps (auto), in all (ops), or only what may wait (syncs); by default auto under "
        "observe without cost, else syncs",
    )
    overhead: float = _setting(
        parsing.share,
        "share of the time that detail=auto may add in sampled steps, from 0 (none after the first) to 1",
        0.01,
    )
    report: str | None = _setting(parsing.report_path, "where the report is saved at exit")
    min_stall_ms: float = _setting(
        parsing.milliseconds, "shorter stalls are counted, but get no span and no warning", 0.0
    )
    warmup_steps: int = _setting(parsing.count(0), "number of first steps in which the policy does not act", 3)
    allow: tuple[str, ...] = _setting(parsing.allowances, "code whose syncs are allowed", ())
    allow_kinds: tuple[str, ...] = _setting(parsing.kinds, "kinds of sync that are allowed everywhere", ())
    allow_packs: tuple[str, ...] = _setting(
        parsing.names, "libraries whose own syncs are allowed: torch, lightning, ...", ()
    )
    max_syncs_per_step: tuple[tuple[str, int], ...] = _setting(
        parsing.per_phase(parsing.count(0), "a whole number, 0 or more"),
        "number of syncs that a step, or each of its phases, may have",
        (),
    )
    max_stall_ms_per_step: tuple[tuple[str, float], ...] = _setting(
        parsing.per_phase(parsing.milliseconds, "a number of milliseconds"),
        "stall that a step, or each of its phases, may have",
        (),
    )
    max_stall_share: float | None = _setting(parsing.share, "share of the time that may be stall, over the window")
    stall_share_window: int = _setting(parsing.count(1), "number of steps in the window of max_stall_share", 20)
    judge_threads: JudgedThreads = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(JudgedThreads), "whether the policy also acts in threads that do not train", "training"
    )
    judge_kinds: tuple[str, ...] = _setting(
        parsing.kinds, "kinds of sync that the policy judges although it does not by itself: collective, allocator", ()
    )
    policy_file: str | None = _setting(
        parsing.path, "a file from which the policy is read each second while the job runs"
    )
    policy_signal: str | None = _setting(
        parsing.signal_name, "a signal that switches the policy between observe and warn"
    )
    baseline: str | None = _setting(parsing.path, "a report whose sites are known; the policy acts on new ones only")
    simulate: bool = _setting(parsing.flag, "the simulated device stands in for CUDA", False)
    simulate_gpu: ModelledGPU | None = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(ModelledGPU),
        "the GPU whose times are modelled on the simulated device; by default times are those of the CPU",
    )
    stacks: bool = _setting(parsing.flag, "keep the whole stack of each sync", False)
    user_code: tuple[str, ...] = _setting(
        parsing.names, "installed packages or paths that count as the user's code", ()
    )
    copies: Copies | None = _setting(  # noqa: RUF009 - it returns a field
        parsing.Choice(Copies),
        "which copies detail=syncs times; by default all in a gate, else one step in 16, later in 64",
    )
    cost: bool = _setting(
        parsing.flag, "measure what each sync costs: a few steps are profiled and replayed without it", False
    )
    cost_steps: int = _setting(parsing.count(1), "number of steps that cost profiles", 5)
    max_events: int = _setting(parsing.count(1), "how many of the newest syncs are kept whole", 10_000)
    journal: str | None = _setting(parsing.path, "where spans go if no endpoint is set; off for nowhere")
    capture: str | None = _setting(
        parsing.path,
        "file that is updated each second, so that `syncagent report` can show a killed process; off for none",
    )
    file_mode: int = _setting(
        parsing.file_mode,
        "mode of the reports, journals and captures that are written, in octal",
        DEFAULT_MODE,
    )
    summary: bool | None = _setting(
        parsing.flag, "print the summary at the end; by default for scripts, not for watch() and start()"
    )
    verbose: bool = _setting(parsing.flag, "print the whole report there, not only what matters most", default=False)

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


PARSERS: dict[str, Callable[[str, object], Any]] = {
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
    report: str | Path | None
    min_stall_ms: float | None
    warmup_steps: int | None
    allow: Names | None
    allow_kinds: Names | None
    allow_packs: Names | None
    max_syncs_per_step: int | str | Mapping[str, int] | None
    max_stall_ms_per_step: float | str | Mapping[str, float] | None
    max_stall_share: float | None
    stall_share_window: int | None
    judge_threads: JudgedThreads | None
    judge_kinds: Names | None
    policy_file: str | Path | None
    policy_signal: str | None
    baseline: str | Path | None
    simulate: bool | None
    simulate_gpu: ModelledGPU | None
    stacks: bool | None
    user_code: Names | None
    copies: Copies | None
    cost: bool | None
    cost_steps: int | None
    max_events: int | None
    journal: str | Path | None
    capture: str | Path | None
    file_mode: int | str | None
    summary: bool | None
    verbose: bool
