"""Draws docs/stall_and_idle.svg from two traces that are committed as test data.

python docs/timeline.py
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from syncagent.cost import trace
from syncagent.cost.program import build

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT / "tests/unit/cost/traces"
WIDTH, LEFT, LANE, GAP = 1000, 120, 26, 10
INK, WORK, WAIT, BUSY, IDLE = "#222222", "#4a78b5", "#f2b84b", "#4f9d69", "#d1495b"

Span = tuple[float, float]


class Panel(NamedTuple):
    title: str
    subtitle: str
    start: float
    end: float
    waits: list[Span]
    busy: list[Span]
    calls: list[Span]


def read(name: str) -> tuple[list[Span], list[Span], list[Span], list[float]]:
    """Waits of the host, busy times of the GPU (gaps under 4 µs closed), calls of the host, and step bounds (µs)."""
    whole = trace.read(TRACES / f"{name}.trace.json.gz")
    waits = []
    for wait in build(whole, whole.bounds).waits:
        start = wait.copy.start if wait.copy is not None else wait.call.start
        waits.append((start, wait.call.end))
    busy: list[Span] = []
    for op in sorted(whole.ops, key=lambda op: op.start):
        if busy and op.start - busy[-1][1] < 4.0:
            busy[-1] = (busy[-1][0], max(busy[-1][1], op.end))
        else:
            busy.append((op.start, op.end))
    return waits, busy, [(call.start, call.end) for call in whole.calls], whole.bounds


def rectangle(x: float, y: float, width: float, color: str, height: float = LANE) -> str:
    return f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0.35):.2f}" height="{height}" fill="{color}"/>'


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{INK}">{words}</text>'
    )


def draw(panel: Panel, top: float) -> tuple[list[str], float]:
    span = panel.end - panel.start

    def x(moment: float) -> float:
        return LEFT + (min(max(moment, panel.start), panel.end) - panel.start) / span * (WIDTH - LEFT - 20)

    parts = [text(12, top + 16, panel.title, 15, weight="bold"), text(12, top + 35, panel.subtitle)]
    host, gpu = top + 48, top + 48 + LANE + GAP
    parts += [text(LEFT - 10, host + 18, "host", anchor="end"), text(LEFT - 10, gpu + 18, "GPU", anchor="end")]
    parts.append(rectangle(LEFT, host, WIDTH - LEFT - 20, WORK))
    parts += [rectangle(x(a), host, x(b) - x(a), WAIT) for a, b in panel.waits if b > panel.start and a < panel.end]
    parts.append(rectangle(LEFT, gpu, WIDTH - LEFT - 20, IDLE))
    parts += [rectangle(x(a), gpu, x(b) - x(a), BUSY) for a, b in panel.busy if b > panel.start and a < panel.end]
    ruler = gpu + LANE + 4
    unit = next(u for u in (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000) if span / u <= 12)
    tick = 0.0
    while tick <= span:
        at = x(panel.start + tick)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{ruler}" y2="{ruler + 5}" stroke="{INK}"/>')
        shown = f"{tick / 1e3:g} ms"
        parts.append(text(at, ruler + 18, shown, 11, "middle"))
        tick += unit
    return parts, ruler + 40


def covered(spans: list[Span], start: float, end: float) -> float:
    return sum(max(min(b, end) - max(a, start), 0.0) for a, b in spans)


def share(waited: float, worked: float, whole: float) -> str:
    return f"one step: the host waits {waited / whole:.0%} of it, the GPU is busy {worked / whole:.1%}"


def panels() -> list[Panel]:
    found = []
    waits, busy, calls, bounds = read("article_batch_256")
    start, end = bounds[2], bounds[3]
    waited, worked = covered(waits, start, end), covered(busy, start, end)
    found.append(
        Panel(
            "examples/masked_loss, batch 256: much stall, no idle",
            share(waited, worked, end - start),
            start, end, waits, busy, calls,
        )
    )  # fmt: skip
    waits, busy, calls, bounds = read("example_logging_item")
    start, end = bounds[2], bounds[3]
    waited, worked = covered(waits, start, end), covered(busy, start, end)
    found.append(
        Panel(
            "examples/logging_item, as written: less stall, much idle",
            share(waited, worked, end - start),
            start, end, waits, busy, calls,
        )
    )  # fmt: skip
    inside = [wait for wait in waits if start < wait[0] < end]
    first = inside[2]
    found.append(
        Panel(
            "the same, around one item() of a layer",
            "the wait ends when the GPU is done; until Python has launched the next kernels, it has nothing to do",
            first[0] - 300.0, first[1] + 900.0, waits, busy, calls,
        )
    )  # fmt: skip
    return found


def main() -> None:
    parts, top = [], 14.0
    for panel in panels():
        drawn, top = draw(panel, top)
        parts += drawn
    legend = ((WORK, "host works"), (WAIT, "host waits: stall"), (BUSY, "GPU works"), (IDLE, "GPU without work: idle"))
    at = LEFT
    for color, words in legend:
        parts += [rectangle(at, top, 16, color, 16), text(at + 22, top + 13, words)]
        at += 40 + 8 * len(words)
    height = top + 34
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="white"/>'
    )
    (ROOT / "docs/stall_and_idle.svg").write_text(svg + "\n".join(parts) + "</svg>\n", encoding="utf-8")


if __name__ == "__main__":
    main()
