"""The report for a terminal, a log or a file: an answer of at most 25 lines, or all there is."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from syncagent.events import CallSite, Phase
from syncagent.report import cells, findings, wording
from syncagent.report.formats.source import excerpt
from syncagent.report.lines import by_line
from syncagent.report.model import Report, SiteRow
from syncagent.report.wording import DASH as _DASH
from syncagent.support import stderr

_LINES = 25
_SMALL = 0.001
"""Sites below this share are counted, not shown, where there are larger ones."""
_WIDE = 110
_FRAMES = 4
_ASCII = str.maketrans({_DASH: "-", "·": "|", "…": "~", "µ": "u", "→": "->", "←": "<-"})


def emit(
    report: Report, stream: TextIO | None = None, *, where: Mapping[str, str] | None = None, verbose: bool = True,
    more: str = "--verbose",
) -> None:  # fmt: skip
    """Print the report on ``stream`` (stderr): as wide as the terminal, in colour only on a terminal without NO_COLOR.

    ``where`` says where things went, such as ``{"report": "x.json"}``.  Only a terminal gets lines that are cut.
    """
    is_stderr = stream is None
    stream = stderr.stream() if stream is None else stream
    if stream is None:
        return
    is_terminal = stream.isatty()
    color = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = Console(file=stream, force_jupyter=False).width
    encoding = getattr(stream, "encoding", None)
    text = render(
        report, width=width, color=color, where=where, verbose=verbose, cut=is_terminal, more=more, encoding=encoding
    )
    if is_stderr:
        stderr.write(text)
    else:
        stream.write(text)
        stream.flush()


def render(
    report: Report, *, width: int = 100, color: bool = False, where: Mapping[str, str] | None = None,
    verbose: bool = True, cut: bool = False, more: str = "--verbose", encoding: str | None = None,
) -> str:  # fmt: skip
    """The report as text: everything, or where not ``verbose`` an answer of at most 25 lines.

    With ``cut`` no line is longer than ``width``: source is cut around what waits.  ``more`` says how to get the rest
    where the report is in no file.  What ``encoding`` lacks is written in ASCII.
    """
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=max(width, 40),
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        legacy_windows=False,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    page = _Page(by_line(cells.shown(report)), console, cut=cut, more=more)
    where = where or {}
    blocks: Sequence[RenderableType] = page.whole(where, console.width) if verbose else page.answer(where)
    for block in blocks:
        if not isinstance(block, Text):
            console.print(block)
            continue
        lines = _wrapped(block, console) if cut else [block]
        if color:
            for line in lines:
                console.print(line, no_wrap=True, overflow="ignore", crop=False)
        else:  # a thousand lines would take the console a second
            buffer.writelines(f"{line.plain}\n" for line in lines)
    text = buffer.getvalue()
    # Rich pads cells to the column's width; logs and diffs do not want the blanks.
    text = text if color else "".join(f"{line.rstrip()}\n" for line in text.split("\n")[:-1])
    return _writable(text, encoding or "utf-8")


def _writable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:  # a stream of the program's own
        pass
    return text


class _Page:
    """One report on its way to becoming text."""

    def __init__(self, report: Report, console: Console, *, cut: bool, more: str) -> None:
        self._report = report
        self._more = more
        self._console = console
        self._room = console.width if cut else None
        self._mark = wording.mark(report)
        self._steady = findings.steady(report)
        self._set_up = findings.set_up(report)

    # --- the two forms

    def answer(self, where: Mapping[str, str]) -> Sequence[RenderableType]:
        """The headline, the worst sites, what went wrong, and where the rest is."""
        head: list[Text] = [Text(""), *self._head(), *map(Text, wording.cost(self._report)[:1])]
        end = [*self._set_up_line(), *(Text(f"! {text}", "yellow") for text in findings.problems(self._report))]
        blocks: list[Text] = []
        rest = self._rest(self._steady, where)
        for number, site in enumerate(self._steady, 1):
            more = [*blocks, Text(""), *self._block(site, brief=True)]
            rest_then = self._rest(self._steady[number:], where)
            small = (self._report.share(site) or 0.0) < _SMALL
            # The first is shown in any case: an answer without one would be none.
            if blocks and (small or self._height([*head, *more, Text(""), *end, *rest_then]) > _LINES):
                break
            blocks, rest = more, rest_then
        return [*head, *blocks, *([Text("")] if blocks or end else []), *end, *rest]

    def whole(self, where: Mapping[str, str], width: int) -> list[RenderableType]:
        """Everything, every site included."""
        report = self._report
        blocks: list[RenderableType] = [Text(""), *self._head()]
        for site in self._steady:
            blocks += [Text(""), *self._block(site, brief=False)]
        if self._set_up.sites:
            blocks += [Text(""), *self._set_up_line()]
            for site in self._set_up.sites:
                blocks += [Text(""), *self._block(site, brief=False)]
        if report.sites:
            blocks += [Text(""), Text(_share_meaning(report), "dim")]
            blocks += [Text(line, "dim" if number else "bold") for number, line in enumerate(wording.cost(report))]
        if report.ops:
            blocks += [Text(""), Text("Host time between syncs", "bold"), _op_table(report, width)]
        if report.sites or not any(sensor.live for sensor in report.sensors):
            blocks += [Text(""), *_sensors(report)]
        return [*blocks, *_closing(report, where)]

    # --- parts

    def _head(self) -> list[Text]:
        report = self._report
        lines = [_title(report)]
        if report.run.simulated:
            times = wording.times_are(report.run)
            lines.append(Text(f"* Simulated device: times and shares with a star are {times}.", "yellow"))
        lines += [Text(line) for line in [wording.busy(report.run)] if line]
        if not report.sites:
            return [*lines, *_nothing_seen(report)]
        totals, share = report.totals, findings.share_of_time(report)
        syncs = wording.plural(totals.syncs, "host sync")
        if totals.step_ms and totals.step_stall_ms is not None:
            stall_ms, whole = totals.step_stall_ms, f"step time ({self._ms(totals.step_ms)})"
        else:
            stall_ms, whole = totals.stall_ms, "the run"
        part = "" if share is None else f", {self._share(share)} of {whole}"
        lines.append(Text(f"{syncs}; the host waited {self._ms(stall_ms)} for the GPU{part}.", "bold"))
        lines.append(Text(findings.headline(report), "bold"))
        late = "bold" if report.lateness is not None and report.lateness.ranks else "dim"
        return [*lines, *(Text(line, late) for line in wording.lateness(report))]

    def _block(self, site: SiteRow, *, brief: bool) -> list[Text]:
        """A site: its share and place, the line with what waits underlined, numbers, and what to do."""
        report, cwd = self._report, self._report.run.cwd
        share = report.share(site)
        alone = site.step_stall_ms == 0 and site.stall_ms > 0
        first = _DASH if share is None or alone else self._share(share)
        here = CallSite(site.file, site.line, site.function, site.source, span=site.span)
        line = site.forward or here
        indent = " " * (max(len(first), 7) + 2)
        phases = wording.phases(site)
        phase = "" if phases == Phase.OTHER else f" · {phases}"
        phase = " · backward of this line" if site.forward else phase
        title = Text.assemble((f"{first:>7}  ", "bold"), *_place(line, cwd), (phase, "dim"))
        lines = [title, *self._source(line, indent)]
        if site.forward:
            lines.append(Text.assemble((f"{indent}called at ", "dim"), *_place(here, cwd), self._also(here.source)))
        if site.library:
            inner = site.library
            lines.append(Text.assemble((f"{indent}in ", "dim"), *_place(inner, cwd), self._also(inner.source)))
        lines.append(Text(f"{indent}{self._numbers(site)}"))
        facts = " · ".join(filter(None, self._facts(site, brief=brief)))
        if facts:
            lines.append(Text(f"{indent}{facts}", "dim"))
        if site.stack and not brief:
            lines.append(_stack(site.stack, cwd, indent))
        if site.advice:
            lines.append(Text(f"{indent}→ {wording.clean(site.advice)}", "green"))
        return lines

    def _source(self, line: CallSite, indent: str) -> list[Text]:
        if not line.source:
            return []
        room = None if self._room is None else self._room - len(indent) - 2
        shown = excerpt(line.source, line.line, line.span, room)
        lines = [Text(f"{indent}  {shown.text}", "italic")]
        return [*lines, Text(f"{indent}  {shown.underline}", "cyan")] if shown.underline else lines

    def _also(self, source: str) -> str:
        return f": {wording.clean(source)}" if source else ""

    def _numbers(self, site: SiteRow) -> str:
        others = len({share.op for share in site.ops}) - 1
        more = f" and {wording.plural(others, 'other op')}" if others > 0 else ""
        name = wording.named(site.api, site.op, more)
        about = "~" if site.sampled else ""
        if not site.count:
            rate = f"{self._ms(site.stall_ms)} in all, in syncs that are counted at their lines"
        elif site.per_step is None or (site.step_stall_ms == 0 and site.stall_ms > 0):
            rate = f"{about}{wording.plural(site.count, 'time')}, {self._ms(site.stall_ms)} in all"
        else:
            steps = max(site.count / site.per_step, 1.0) if site.per_step else 1.0
            per_step = self._ms(site.steady_ms / max(steps - 1, 1.0)) if site.step_stall_ms is not None else None
            rate = f"{about}{wording.per_step(site.per_step)} per step"
            rate += f", {per_step} per step" if per_step and site.steady_ms else f", {self._ms(site.stall_ms)} in all"
        if site.stall_ms_p50 and site.count > 1:
            rate += f", median {self._ms(site.stall_ms_p50)}"
        gain = f" · not waiting gains {self._ms(site.gain_ms)} per step" if site.gain_ms else ""
        idle = f" · {self._ms(site.idle_ms)} idle GPU per step" if site.idle_ms else ""
        return f"{name}: {rate}{gain}{idle}"

    def _facts(self, site: SiteRow, *, brief: bool) -> Iterator[str]:
        yield _ranks(self._report, site, self._ms)
        if site.allowed:
            yield f"allowed: {wording.clean(site.allowed)}"
        elif site.allowed_count:
            yield f"{wording.count(site.allowed_count)} of them allowed"
        if site.violations:
            yield f"{wording.count(site.violations)} against the policy"
        if site.conditional:
            yield "depends on the driver's state"
        if brief:
            return
        whole, longest = self._ms(site.stall_ms), self._ms(site.stall_ms_max)
        yield f"{wording.plural(site.count, 'sync')}, {whole} in all, longest {longest}"
        if site.module:
            yield f"module {wording.clean(site.module)}"
        counts: Counter[str] = Counter()
        for share in site.ops:
            counts[share.op] += share.count
        if len(counts) > 1:
            yield ", ".join(f"{wording.clean(op)} {wording.count(count)}" for op, count in counts.items())
        if site.ranges:
            yield f"range {' > '.join(map(wording.clean, site.ranges))}"
        if site.count_error is not None and site.sampled:
            error = wording.count(round(site.count_error))
            yield f"count scaled up from sampled steps, standard error {error}"

    def _set_up_line(self) -> list[Text]:
        found = self._set_up
        if not found.stall_ms > 0 or not self._report.totals.step_ms:
            return []
        worst = max(self._report.sites, key=lambda site: site.stall_ms - site.steady_ms)
        place = f", most of it at {wording.place(worst.file, worst.line, self._report.run.cwd)}" if worst.file else ""
        return [Text(f"Before the second step, and not counted above: {self._ms(found.stall_ms)}{place}.", "dim")]

    def _rest(self, sites: Sequence[SiteRow], where: Mapping[str, str]) -> list[Text]:
        kept = where.get("report") or where.get("capture")
        command = wording.to_read(kept) if kept else self._more
        if not self._report.sites:
            return [Text(f"more: {command}", "dim")] if kept else []
        what = "the rest"
        if sites:
            largest = max((self._report.share(site) or 0.0) for site in sites)
            each = ", each below" if len(sites) > 1 else " below"
            below = f"{each} {self._share(max(largest, _SMALL))}" if largest < _SMALL else ""
            what = f"{wording.plural(len(sites), 'more site')}{below}, and the rest"
        return [Text(f"{what[0].upper()}{what[1:]}: {command}", "dim")]

    def _height(self, lines: Sequence[Text]) -> int:
        if self._room is None:
            return len(lines)
        return sum(len(_wrapped(line, self._console)) for line in lines)

    def _ms(self, ms: float) -> str:
        return wording.duration(ms) + self._mark

    def _share(self, share: float) -> str:
        return wording.share(share) + self._mark


def _wrapped(line: Text, console: Console) -> list[Text]:
    """Return a line as several where it is too long; what goes on in the next is indented like the first."""
    if line.cell_len <= console.width:
        return [line]
    text = line.plain.lstrip()
    indent = len(line.plain) - len(text)
    inner = indent + (2 if text.startswith("→ ") else 0)
    if inner > console.width // 2:
        return list(line.wrap(console, console.width, overflow="fold"))
    parts = line[inner:].wrap(console, console.width - inner, overflow="fold")
    first, *rest = (
        Text.assemble(line[:inner] if not number else " " * inner, part) for number, part in enumerate(parts)
    )
    return [first, *rest]


def _title(report: Report) -> Text:
    run = report.run
    facts = [wording.clean(run.device or "no device"), wording.length(run), wording.processes(run, size=run.world_size)]
    script = wording.clean(wording.short_path(run.script, run.cwd)) or "syncagent"
    return Text.assemble((script, "bold"), *(f" · {fact}" for fact in facts if fact))


def _share_meaning(report: Report) -> str:
    mark = wording.mark(report)
    if report.totals.step_ms and report.totals.step_stall_ms is not None:
        whole = wording.duration(report.totals.step_ms) + mark
        return f"share: fraction of step time ({whole} in total, first step excluded)"
    return f"share: fraction of the run ({wording.duration(report.run.duration_s * 1e3)}{mark}); no steps were marked"


def _place(line: CallSite, cwd: str) -> list[tuple[str, str]]:
    place = (wording.place(line.file, line.line, cwd), "bold cyan")
    function = wording.function(line.function)
    return [place, (f" in {function}", "")] if function else [place]


def _ranks(report: Report, site: SiteRow, ms: object) -> str:
    """Which ranks have a site, and how much they differ."""
    ranks = report.run.ranks
    if len(ranks) < 2 or not callable(ms):
        return ""
    if not site.ranks:  # several sites of a line, each with the shares of other ranks
        every = "all" if site.rank_count == len(ranks) else f"{site.rank_count:,} of"
        return f"{every} {len(ranks):,} ranks" if site.rank_count else ""
    found = [part.rank for part in site.ranks]
    number = site.rank_count or len(found)
    if number == 1:
        return f"rank {found[0]} only"
    ends = sorted(part.stall_ms for part in site.ranks)
    least, most = ms(ends[0]), ms(ends[-1])
    spread = f"{least} to {most}" if least != most else f"{most} each"
    if number == len(ranks) and least == most:
        return f"all {len(ranks):,} ranks, {spread}"
    if number == len(ranks):
        worst = max(site.ranks, key=lambda part: part.stall_ms).rank
        return f"all {len(ranks):,} ranks, {spread}, most on rank {worst}"
    names = ", ".join(map(str, found[:-1])) if number <= _FRAMES else ""
    return f"ranks {names} and {found[-1]}, {spread}" if names else f"{number:,} of {len(ranks):,} ranks, {spread}"


def _stack(stack: Sequence[CallSite], cwd: str, indent: str) -> Text:
    """The innermost frames on one line; the other formats have all of them."""
    shown = [f"{wording.place(frame.file, frame.line, cwd)} {wording.clean(frame.function)}" for frame in stack]
    more = f" ← {wording.count(len(shown) - _FRAMES)} more" if len(shown) > _FRAMES else ""
    return Text(f"{indent}stack {' ← '.join(shown[:_FRAMES])}{more}", "dim")


def _table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=False, header_style="dim")


def _op_table(report: Report, width: int, limit: int = 10) -> RenderableType:
    table = _table()
    for name in ("host", "share", "count"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("op", overflow="fold", max_width=36 if width >= _WIDE else 28)
    table.add_column("where", overflow="fold", ratio=1)
    mark = wording.mark(report)
    for op in report.ops[:limit]:
        place = wording.place(op.file, op.line, report.run.cwd)
        if width < _WIDE or place.startswith("/"):  # the sites above give paths in full
            place = place.rsplit("/", 1)[-1]
        name = wording.function(op.function)
        function = f" in {name}" if name else ""
        backward = " · backward" if op.phase == "backward" else ""  # of the rest only that is known
        table.add_row(
            wording.duration(op.busy_ms) + mark,
            _DASH if op.share is None else wording.share(op.share) + mark,
            wording.count(op.count),
            Text(wording.clean(op.op.removeprefix("aten::")), "cyan"),
            f"{place}{function}{backward}",
        )
    return table


def _nothing_seen(report: Report) -> list[Text]:
    live = [sensor for sensor in report.sensors if sensor.live]
    if not live:
        return [Text("No host sync was seen, but no sensor was live: this says nothing about the run.", "yellow")]
    steps = f"in {wording.plural(report.run.steps, 'step')} " if report.run.steps else ""
    names = ", ".join(wording.clean(sensor.name) for sensor in live)
    blind = "".join(f"; {wording.clean(s.name)} cannot see {wording.clean(s.cannot_see)}" for s in live if s.cannot_see)
    return [
        Text(f"No host sync was seen: nothing {steps}made the host wait for the GPU.", "green"),
        Text(f"Live sensors: {names}{blind or '; they have no known blind spots'}."),
    ]


def _sensors(report: Report) -> list[RenderableType]:
    table = _table()
    for name in ("sensor", ""):
        table.add_column(name, no_wrap=True)
    table.add_column("cannot see", overflow="fold", ratio=1)
    for sensor in report.sensors:
        facts = [wording.clean(fact) for fact in (sensor.detail, sensor.cannot_see if sensor.live else "") if fact]
        table.add_row(
            wording.clean(sensor.name),
            Text("live", "green") if sensor.live else Text("off", "yellow"),
            Text(" · ".join(facts) or "no known blind spots"),
        )
    return [table] if report.sensors else [Text("The report lists no sensor.", "yellow")]


def _closing(report: Report, where: Mapping[str, str]) -> list[RenderableType]:
    cost = report.overhead
    mark = wording.mark(report)
    figures = [
        "" if cost.agent_ms_per_step is None else f"{wording.duration(cost.agent_ms_per_step)}{mark} per step",
        "" if cost.share is None else wording.share(cost.share) + mark,
    ]
    lines = {"agent": ", ".join(filter(None, figures)) or "overhead not measured"}
    if report.dropped:
        lines["dropped"] = f"{wording.plural(report.dropped, 'sync')} noticed but not recorded: the counts are too low"
    lines |= {wording.clean(name): wording.clean(value) for name, value in where.items()}
    blocks: list[RenderableType] = [
        Padding(Text.assemble((f"{name}: ", "dim"), value), 0) for name, value in lines.items()
    ]
    blocks += [Text(f"note: {wording.clean(note)}", "dim") for note in report.notes]
    return [Text(""), *blocks]
