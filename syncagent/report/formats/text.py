"""The report as a table for a terminal, a log or a file."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from syncagent.events import CallSite
from syncagent.report import wording
from syncagent.report.model import RankShare, Report, SiteRow
from syncagent.report.wording import DASH as _DASH
from syncagent.support import stderr

_WIDE = 110
_FRAMES = 4
_ASCII = str.maketrans({_DASH: "-", "·": "|", "…": "~", "µ": "u", "→": "->", "←": "<-"})


def emit(
    report: Report, stream: TextIO | None = None, *, where: Mapping[str, str] | None = None, limit: int = 20
) -> None:
    """Print the report on ``stream`` (stderr): as wide as the terminal, in colour only on a terminal without NO_COLOR.

    ``where`` says where things went, such as ``{"report": "x.json"}``; each is a line at the end.
    """
    is_stderr = stream is None
    stream = stderr.stream() if stream is None else stream
    if stream is None:
        return
    color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    text = render(report, width=Console(file=stream, force_jupyter=False).width, color=color, where=where, limit=limit)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    if is_stderr:
        stderr.write(text)
    else:
        stream.write(text)
        stream.flush()


def render(
    report: Report, *, width: int = 100, color: bool = False, where: Mapping[str, str] | None = None, limit: int = 20
) -> str:
    """The report as text of at most ``width`` columns, with its ``limit`` worst sites."""
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
    for block in _blocks(report, console.width, where or {}, limit):
        console.print(block)
    text = buffer.getvalue()
    # Rich pads cells to the column's width; logs and diffs do not want the blanks.
    return text if color else "".join(f"{line.rstrip()}\n" for line in text.split("\n")[:-1])


def _blocks(report: Report, width: int, where: Mapping[str, str], limit: int) -> list[RenderableType]:
    blocks: list[RenderableType] = [Text(""), _title(report)]
    if report.run.simulated:
        blocks.append(Text("Simulated device: every time below is this CPU's, not a GPU's.", "yellow"))
    if report.sites:
        blocks += [_stalled(report), Text(""), *_site_lines(report, width, limit)]
        if len(report.sites) > limit:
            blocks.append(Text(f"… and {wording.plural(len(report.sites) - limit, 'more site')}", "dim"))
        blocks.append(Text(_share_meaning(report), "dim"))
        blocks += [Text(line, "dim" if number else "bold") for number, line in enumerate(wording.cost(report))]
    else:
        blocks += _nothing_seen(report)
    if report.ops:
        blocks += [Text(""), Text("Host time between syncs", "bold"), _op_table(report, width)]
    if report.sites:
        blocks += [Text(""), *_sensors(report)]
    return [*blocks, *_closing(report, where)]


def _title(report: Report) -> Text:
    run = report.run
    facts = [wording.clean(run.device or "no device"), wording.length(run), wording.processes(run, size=run.world_size)]
    script = wording.clean(wording.short_path(run.script, run.cwd)) or "syncagent"
    return Text.assemble((script, "bold"), *(f" · {fact}" for fact in facts if fact))


def _stalled(report: Report) -> Text:
    totals = report.totals
    shares = [f"{wording.share(share)} {whole}" for whole, share in totals.shares().items()]
    text = f"{wording.plural(totals.syncs, 'host sync')}, stalled for {wording.duration(totals.stall_ms)}"
    return Text.assemble((text, "bold"), f" ({', '.join(shares)})")


def _share_meaning(report: Report) -> str:
    if report.totals.step_ms and report.totals.step_stall_ms is not None:
        whole = wording.duration(report.totals.step_ms)
        return f"share: fraction of step time ({whole} in total, first step excluded)"
    return f"share: fraction of the run ({wording.duration(report.run.duration_s * 1e3)}); no steps were marked"


def _table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=False, header_style="dim")


def _site_lines(report: Report, width: int, limit: int) -> list[RenderableType]:
    """A line of numbers for each site, and indented below it where it is; on wide screens they share the first line."""
    wide = width >= _WIDE
    sites = report.sites[:limit]
    rows = [_numbers(report, site) for site in sites]
    names = ["gain", "idle", "stall", "share", "count", "per step", "median"]
    if all(site.gain_ms is None and site.idle_ms is None for site in sites):
        names = names[2:]
        rows = [row[2:] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    indent = sum(widths) + 2 * len(widths) if wide else widths[0] + 2
    room = 32 if wide else max(width - sum(widths) - 2 * len(widths) - 11, 8)
    phase_width = max(len(site.phase) for site in sites)
    op_width = min(max(len(wording.clean(site.op)) for site in sites), room)
    blocks: list[RenderableType] = [Text(f"{_columns(names, widths)}  op", "dim")]
    for site, row in zip(sites, rows, strict=True):
        numbers, details = Text(_columns(row, widths)), _details(report, site, width - indent)
        what = Text.assemble((f"{wording.clean(site.op):<{op_width}}", "bold cyan"), f"  {wording.clean(site.phase)}")
        first = Text.assemble(numbers, "  ", what)
        if first.cell_len > width:
            first = numbers
            details.insert(0, what)
        elif wide:
            first.pad_right(max(phase_width - len(site.phase), 0))
            if first.cell_len + 2 + details[0].cell_len <= width:
                first = Text.assemble(first, "  ", details.pop(0))
        blocks.append(first)
        blocks.append(Padding(Text("\n").join(details), (0, 0, 0, indent)))
    return blocks


def _numbers(report: Report, site: SiteRow) -> list[str]:
    share = report.share(site)
    outside = site.step_stall_ms == 0 and site.stall_ms > 0
    return [
        wording.known_duration(site.gain_ms),
        wording.known_duration(site.idle_ms),
        wording.duration(site.stall_ms),
        _DASH if share is None or outside else wording.share(share),
        f"{'~' if site.sampled else ''}{wording.count(site.count)}",
        wording.per_step(site.per_step),
        wording.duration(site.stall_ms_p50),
    ]


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _details(report: Report, site: SiteRow, width: int) -> list[Text]:
    cwd = report.run.cwd
    here = CallSite(site.file, site.line, site.function, site.source)
    if site.forward:
        lines = [*_line("forward", site.forward, cwd, width), *_line("backward", here, cwd, width)]
    else:
        lines = _line("", here, cwd, width)
    if site.library:
        lines += _line("library", site.library, cwd, width)
    counts: Counter[str] = Counter()
    for share in site.ops:
        counts[share.op] += share.count
    allowed = f"allowed: {wording.clean(site.allowed)}" if site.allowed else ""
    if site.allowed_count and not site.allowed:
        allowed = f"{wording.count(site.allowed_count)} of them allowed"
    facts = [
        site.module and f"module {wording.clean(site.module)}",
        len(counts) > 1 and ", ".join(f"{wording.clean(op)} {wording.count(count)}" for op, count in counts.items()),
        site.ranges and f"range {' > '.join(map(wording.clean, site.ranges))}",
        len(site.ranks) > 1 and _ranks(site.ranks),
        allowed,
        site.conditional and "depends on the driver's state",
        site.violations and f"{wording.count(site.violations)} against the policy",
    ]
    context = " · ".join(fact for fact in facts if fact)
    if context:
        lines.append(Text(context, "dim"))
    if site.stack:
        lines.append(_stack(site.stack, cwd))
    if site.advice:
        lines.append(Text(f"→ {wording.clean(site.advice)}", "green"))
    return lines


def _ranks(ranks: Sequence[RankShare]) -> str:
    ends = [end(ranks, key=lambda part: part.stall_ms) for end in (min, max)]
    return " to ".join(f"{wording.duration(part.stall_ms)} on rank {part.rank}" for part in ends)


def _line(label: str, line: CallSite, cwd: str, width: int) -> list[Text]:
    place = Text.assemble((f"{label} " if label else "", "dim"), (wording.place(line.file, line.line, cwd), "bold"))
    if line.function:
        place.append(f" in {wording.clean(line.function)}")
    if not line.source:
        return [place]
    source = Text(f"  {wording.clean(line.source)}", "italic")
    source.truncate(width, overflow="ellipsis")
    return [place, source]


def _stack(stack: Sequence[CallSite], cwd: str) -> Text:
    """The innermost frames on one line; the other formats have all of them."""
    shown = [f"{wording.place(frame.file, frame.line, cwd)} {wording.clean(frame.function)}" for frame in stack]
    more = f" ← {wording.count(len(shown) - _FRAMES)} more" if len(shown) > _FRAMES else ""
    return Text(f"stack {' ← '.join(shown[:_FRAMES])}{more}", "dim")


def _op_table(report: Report, width: int, limit: int = 10) -> RenderableType:
    table = _table()
    for name in ("host", "share", "count"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("op", overflow="fold", max_width=36 if width >= _WIDE else 28)
    table.add_column("where", overflow="fold", ratio=1)
    for op in report.ops[:limit]:
        place = wording.place(op.file, op.line, report.run.cwd)
        if width < _WIDE or place.startswith("/"):  # the sites above give paths in full
            place = place.rsplit("/", 1)[-1]
        function = f" in {wording.clean(op.function)}" if op.function else ""
        backward = " · backward" if op.phase == "backward" else ""  # of the rest only that is known
        table.add_row(
            wording.duration(op.busy_ms),
            _DASH if op.share is None else wording.share(op.share),
            wording.count(op.count),
            Text(wording.clean(op.op.removeprefix("aten::")), "cyan"),
            f"{place}{function}{backward}",
        )
    return table


def _nothing_seen(report: Report) -> list[RenderableType]:
    live = [sensor for sensor in report.sensors if sensor.live]
    if not live:
        return [
            Text("No host sync was seen, but no sensor was live: this says nothing about the run.", "yellow"),
            *_sensors(report),
        ]
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
    figures = [
        "" if cost.agent_ms_per_step is None else f"{wording.duration(cost.agent_ms_per_step)} per step",
        "" if cost.share is None else wording.share(cost.share),
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
