"""How smooth the report's page is with 2,000 lines and 1,000 steps, in headless Chromium.

python tests/benchmarks/page.py [--runs N] [--result FILE.json]

Prints the page's size and, in ms, the median and the worst of N runs (default 5): until the page is loaded and both
charts are drawn; from a key in the search field, a choice of order or of groups to the next frame; and each frame of
the time line while it is moved and zoomed by keys.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit" / "report")]

from playwright.sync_api import Page, sync_playwright
from training_run import CWD, report_of, sync

from syncagent.events import CallSite
from syncagent.report.formats import html
from syncagent.report.model import Report, SourceRow

LINES, STEPS, WAITS = 2_000, 1_000, 10_000
FRAME = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))"


def large_report() -> Report:
    """As many lines, steps and waits as a report holds, with names and texts as long as real ones."""
    name = f"{CWD}/package/subpackage/a_module_with_a_name"
    library = CallSite("/v/lib/python3.12/site-packages/transformers/trainer.py", 2_345, "Trainer._inner", "x.item()")
    lines = [
        CallSite(f"{name}_{number % 40}.py", number, "Trainer.training_step", f"total += self.loss_{number}(x).item()")
        for number in range(1, LINES + 1)
    ]
    waits = [
        sync(
            lines[number * 7 % LINES],
            ms=0.1 + number % 13,
            at_ms=10.0 * number,
            step=number // 10,
            library_site=library,
        )
        for number in range(WAITS)
    ]
    report = report_of(*waits, steps=STEPS)
    advice = "keep the value on the GPU (x.detach(), and sums as tensors) and read it every N steps"
    return replace(
        report,
        sites=tuple(replace(site, advice=advice) for site in report.sites),
        sources=tuple(SourceRow(line.file, line.line, ("    " + line.source,) * 7) for line in lines[:100]),
    )


def timed(page: Page, action: str) -> float:
    """Milliseconds from an action in the page to the end of the frame that shows what it has done."""
    until_shown = f"const start = performance.now(); {action}; await ({FRAME})(); return performance.now() - start;"
    took: float = page.evaluate(f"async () => {{ {until_shown} }}")
    return took


def chosen(name: str, value: str) -> str:
    return (
        f"const field = document.getElementById('{name}'); field.value = '{value}'; "
        "field.dispatchEvent(new Event('input', {bubbles: true}))"
    )


def pressed(key: str) -> str:
    return (
        "document.getElementById('chart-time').dispatchEvent("
        f"new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))"
    )


def measured(file: Path, runs: int) -> tuple[dict[str, list[float]], str]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    found: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(runs):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(file.as_uri())
            page.wait_for_selector("#chart-time canvas")
            loaded = "() => performance.getEntriesByType('navigation')[0].loadEventEnd"
            found.setdefault("until it is loaded and drawn", []).append(page.evaluate(loaded))
            actions = {
                "the first search": chosen("search", "module_7"), "a search": chosen("search", "loss_19"),
                "all lines again": chosen("search", ""), "another order": chosen("sort", "count"),
                "groups by file": chosen("group", "file"), "no groups": chosen("group", ""),
                "the whole time line": pressed("0"),
            }  # fmt: skip
            for name, action in actions.items():
                found.setdefault(name, []).append(timed(page, action))
            for key in ("+", "+", "ArrowRight", "ArrowRight", "ArrowLeft", "-", "-") * 3:
                found.setdefault("a frame of the time line", []).append(timed(page, pressed(key)))
            page.close()
        version = browser.version
        browser.close()
    return found, version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.html")
        file.write_text(html.render(large_report()), encoding="utf-8")
        size = file.stat().st_size
        found, version = measured(file, options.runs)
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "chromium": version,
        "machine": platform.machine(),
        "runs": options.runs,
        "bytes": size,
        "ms": {name: {"median": round(statistics.median(all_of), 1), "worst": round(max(all_of), 1)}
               for name, all_of in found.items()},
    }  # fmt: skip
    print(f"{size / 1e6:.2f} MB with {LINES:,} lines, {STEPS:,} steps and {WAITS:,} waits; Chromium {version}")
    for name, figures in result["ms"].items():
        print(f"{name:30} median {figures['median']:7.1f} ms, worst {figures['worst']:7.1f} ms")
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
