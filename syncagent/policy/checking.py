"""Whether a report passes a check against its baseline, and whether it proves anything at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent import sites
from syncagent.errors import SyncAgentError
from syncagent.policy import gate
from syncagent.report import wording
from syncagent.report.compare import Comparison, compare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncagent.report.model import Report


def check(known: Report, report: Report, *, tolerance: float = 0.1, baseline: str, name: str) -> Comparison:
    """Compare a report with its baseline; the names are for the sentences of errors.

    Raises :class:`SyncAgentError` where that would prove nothing.
    """
    must_be_fit(report, name)
    if (why := _of_another_program(known, report)) is not None:
        raise SyncAgentError(f"{baseline} is no baseline for {name}: {wording.clean(why)}")
    return compare(known, report, tolerance=tolerance)


def must_be_fit(report: Report, name: str) -> None:
    """Raise :class:`SyncAgentError` for a report that would prove nothing even without a finding."""
    for reason in _unfit(report):
        raise SyncAgentError(f"{name} cannot be checked: {wording.clean(reason)}")


def _unfit(report: Report) -> Iterator[str]:
    if not report.run.ended:
        yield "it is the capture of a process that did not end by itself; what it did not reach cannot be checked"
    if report.run.gate not in {None, gate.HELD}:
        whys = [note.removeprefix(gate.NOTE) for note in report.notes if note.startswith(gate.NOTE)]
        yield f"the gate of its run did not hold ({'; '.join(whys) or 'for a reason that is not known'})"
    if report.run.device is None:
        yield "its run saw no CUDA device, so there was no host sync to see"
    for sensor in report.sensors:
        if sensor.name in {"kernels", "simulated"} and not sensor.live:
            yield f"the sensor {sensor.name} was not live in its run"
    if report.dropped:
        yield f"{wording.plural(report.dropped, 'sync')} were dropped in its run, and their sites may be missing"


def _of_another_program(known: Report, report: Report) -> str | None:
    """Why the two are of different programs: another script, and no file of one has a site in the other.

    Either alone happens to one program: a script gets a new name, or the only known site is fixed and the new one is
    in another file.
    """
    scripts = [wording.short_path(each.run.script).rpartition("/")[2] for each in (known, report)]
    there, here = (
        {named(site).file for site in each.sites if site.file}
        for each, named in zip((known, report), sites.naming(known.run.home, report.run.home), strict=True)
    )
    if not all(scripts) or scripts[0] == scripts[1] or not there or not here or there & here:
        return None
    return (
        f"it is of {scripts[0]} and has no file in common with the report, which is of {scripts[1]}; "
        "if the files have new names, write a new baseline with --update"
    )
