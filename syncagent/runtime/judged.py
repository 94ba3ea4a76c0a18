"""``syncagent run --fail-on``: a script in a process of its own, and the verdict on what its processes reported."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from syncagent.errors import ConfigError, SyncAgentError
from syncagent.policy import checking
from syncagent.settings import parsing
from syncagent.settings.sources import JUDGED
from syncagent.support import stderr

if TYPE_CHECKING:
    from syncagent.report.model import Report, SiteRow
    from syncagent.settings.schema import Settings

FailOn = Literal["new", "any", "budget"]

_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")


def settings_for(fail_on: FailOn, settings: Settings) -> dict[str, str]:
    """Return the variables that a run needs so that it can be judged like this.

    Raises :class:`SyncAgentError` where it cannot be, before the script has started.
    """
    if fail_on == "new":
        if settings.baseline is None:
            raise ConfigError(
                "--fail-on new compares the run with a baseline: name one with --baseline "
                "(`syncagent check --update` writes it)"
            )
        return {}
    if fail_on == "budget" and not settings.counts_by_step:
        raise ConfigError(
            "--fail-on budget needs a budget: set --max-syncs-per-step, --max-stall-ms-per-step or --max-stall-share"
        )
    if fail_on == "any" and settings.counts_by_step:
        raise ConfigError(
            "--fail-on any judges each sync, but a budget is set, by which whole steps are judged: "
            "use --fail-on budget, or take the budget away"
        )
    if settings.detail == "auto":
        raise parsing.rejected("detail", "auto", f"syncs or ops with --fail-on {fail_on}, which has to see each sync")
    asked = {}
    if settings.policy == "observe":
        asked["SYNCAGENT_POLICY"] = "warn"
    if settings.copies is None:
        asked["SYNCAGENT_COPIES"] = "all"
    return asked


def run(command: Sequence[str], environment: Mapping[str, str], fail_on: FailOn, settings: Settings) -> int:
    """Run the command to its end and judge it; returns the script's exit code if that is not 0, else 0 or 1.

    Raises :class:`SyncAgentError` where the run proves nothing.
    """
    from syncagent.report.checked import job_summary, markdown

    with tempfile.TemporaryDirectory(prefix="syncagent-") as folder:
        code = _exit_code(command, {**environment, JUDGED: folder})
        if code:
            why = f"--fail-on {fail_on} was not judged: the script ended with exit code {code}"
            stderr.write(f"[syncagent] {why}\n")
            job_summary.append(markdown.refusal(why), "run")
            return code
        try:
            report = _report_in(folder, fail_on)
            judge = _against_baseline if fail_on == "new" else partial(_by_policy, fail_on)
            verdict = judge(report, settings)
        except SyncAgentError as error:
            job_summary.append(markdown.refusal(str(error)), "run")
            raise
    stderr.write(verdict.text)
    job_summary.append(verdict.markdown, "run")
    return 1 if verdict.has_findings else 0


# --- the script -------------------------------------------------------------------------------------------------------


def _exit_code(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the command; of one that a signal has ended, the code that a shell gives it."""
    early: list[int] = []
    with _signals_going_to(early.append):
        try:
            child = subprocess.Popen(command, env=environment)  # noqa: S603 - the user's command line
        except (OSError, ValueError) as error:  # the command line is too long or has a NUL in it
            raise SyncAgentError(f"{command[0]} cannot be started: {error}") from None
        with _signals_going_to(child.send_signal):
            for number in early:
                child.send_signal(number)
            code = child.wait()
    return 128 - code if code < 0 else code


@contextmanager
def _signals_going_to(send: Callable[[int], None]) -> Iterator[None]:
    """Pass on signals that were meant for the script.

    A terminal sends Ctrl-C to the script as well, which must not get it twice.
    """

    def forward(number: int, _frame: object) -> None:
        if number != signal.SIGINT or not any(map(os.isatty, (0, 1, 2))):
            send(number)

    numbers = [signal.SIGINT, *(getattr(signal, name) for name in _FORWARDED if hasattr(signal, name))]
    before = {}
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup, the script ignores it too
            before[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- the verdict ------------------------------------------------------------------------------------------------------


def _report_in(folder: str, fail_on: FailOn) -> Report:
    from syncagent.report import files

    if not any(name.endswith(".json") for name in os.listdir(folder)):
        raise SyncAgentError(
            f"--fail-on {fail_on} proves nothing: the script has left no report. "
            "It did not import torch, or a process ended without Python's own exit"
        )
    return files.load_merged([folder])


class _Verdict(NamedTuple):
    """What a run comes to, for its terminal and for the summary of a job."""

    has_findings: bool
    text: str
    markdown: str


def _against_baseline(report: Report, settings: Settings) -> _Verdict:
    from syncagent.report import files
    from syncagent.report.checked import markdown, text

    assert settings.baseline is not None
    known = files.load_merged([settings.baseline])
    comparison = checking.check(known, report, baseline=settings.baseline, name=_name(report))
    return _Verdict(bool(comparison.findings()), text.render(comparison), markdown.render(comparison))


def _by_policy(fail_on: FailOn, report: Report, settings: Settings) -> _Verdict:
    from syncagent.report import wording
    from syncagent.report.checked import markdown

    found = [site for site in report.sites if site.violations]
    checking.must_be_fit(report, _name(report))
    if not found:
        if report.run.policy == "observe":
            raise SyncAgentError(f"{_name(report)} cannot be checked: its policy was changed to observe meanwhile")
        if report.run.steps <= settings.warmup_steps:
            steps = wording.plural(report.run.steps, "step")
            raise SyncAgentError(
                f"{_name(report)} cannot be checked: it made {steps}, and the policy does not act in the first "
                f"{settings.warmup_steps:,} (--warmup-steps)"
            )
        said = "No sync that is not allowed." if fail_on == "any" else "No budget was exceeded."
    else:
        head = "that is not allowed" if fail_on == "any" else "beyond the budget of a step"
        said = f"{wording.plural(len(found), 'site')} with a sync {head}"
    lines = "".join(_described(site, report) for site in found)
    return _Verdict(bool(found), f"{said}\n{lines}", markdown.by_policy(said, found, report))


def _described(site: SiteRow, report: Report) -> str:
    from syncagent.report import wording

    name = wording.function(site.function)
    where = wording.place(site.file, site.line, report.run.cwd) + (f" in {name}" if name else "")
    lines = [
        f"  {wording.named(site.api, site.op)}  {where}",
        site.source and f"    {wording.clean(site.source)}",
        f"    {wording.plural(site.count, 'sync')}, {site.violations:,} of them a finding",
        site.advice and f"    → {wording.clean(site.advice)}",
    ]
    return "".join(f"{line}\n" for line in lines if line)


def _name(report: Report) -> str:
    from syncagent.report import wording

    return f"the run of {wording.clean(wording.short_path(report.run.script, report.run.cwd)) or 'the script'}"
