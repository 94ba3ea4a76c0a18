"""What the pages about tests, trainers, CI and long jobs promise, on a real GPU and with the code that stands there.

    python tests/gpu/gate.py --out FILE.json [--match TEXT] [--simulate]

Runs the pytest plugin, ``assert_no_syncs``, the callbacks of Lightning, transformers and accelerate, ``run --fail-on``,
``check`` and a long job, each in processes of its own and without the simulated device.  The programs are those of the
documents and of the tests of the same things.  syncagent needs not be installed: what an installation adds (its
commands, ``SYNCAGENT=1``, the plugin) is put in the processes' way.  The result is written after each check.

``--simulate`` rehearses all of it without a GPU.  ``--match`` runs the parts whose title has this text.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import processes
from tests.integration import test_ci_gate, test_documents, test_fail_on, test_pytest_plugin, test_trainers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Checks = Iterator[tuple[str, bool, Any]]

_AT_ONCE = 6
_LIMIT_S = 90
"""How long one process may take."""
_SHOWN = 240
"""How many characters of what was seen are kept."""
_FIRST = {"docs/testing.md: its two files", "docs/ci.md: its commands", "docs/testing.md: policies for every test"}
"""The parts with the most processes, one after the other."""
_LIBRARIES = (
    "torch", "pytest", "pytest-xdist", "pytest-asyncio", "lightning", "pytorch-lightning", "transformers", "accelerate",
    "tensorboard",
)  # fmt: skip
_PLUGINS = {"xdist": "xdist.plugin", "pytest_asyncio": "pytest_asyncio.plugin"}
"""What is loaded into pytest besides the plugin, where it is installed."""
_SIMULATED = re.compile(r" --(?:syncagent-)?simulate\b|\bSYNCAGENT_SIMULATE=1 ")


@dataclass
class Bench:
    """Where one part runs its processes."""

    folder: Path
    tools: Path
    simulate: bool
    left_out: Callable[[str, str], None]
    """Takes what cannot be tried here, and why."""

    def environment(self, **variables: str) -> dict[str, str]:
        """Return what all processes have besides the settings of a case."""
        plugins = [name for module, name in _PLUGINS.items() if find_spec(module)]
        found = {
            "PYTHONPATH": self.importable(), "PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "",
            "PYTEST_PLUGINS": ",".join(("syncagent.integrations.pytest_plugin", *plugins)),
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "SYNCAGENT_CAPTURE": "off", **variables,
        }  # fmt: skip
        return found if self.simulate else {name: v for name, v in found.items() if name != "SYNCAGENT_SIMULATE"}

    def importable(self, *first: str) -> str:
        """Return a PYTHONPATH with these folders, the package and what stands in for its installation."""
        there = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        return os.pathsep.join((*first, str(self.tools), str(processes.ROOT), *there))

    def python(self, *words: Any, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these words; the device is simulated for ``--simulate`` alone."""
        variables = self.environment(SYNCAGENT_SIMULATE="1", **variables)
        return self.ended([sys.executable, *map(str, words)], variables)

    def syncagent(self, *words: Any, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "syncagent", *words, **variables)

    def bash(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of a document, for a GPU without what asks for a simulated one."""
        if not self.simulate:
            command = _SIMULATED.sub("", command)
        if "pytest " not in command:
            variables = {"SYNCAGENT_SIMULATE": "1", **variables}
        variables = self.environment(**variables)
        return self.ended(["bash", "-c", command], variables)

    def ended(self, words: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a process to its end; one that takes too long has exit code 124, as with ``timeout``."""
        self.refuse_simulation(words, variables)
        try:
            return subprocess.run(
                words, cwd=self.folder, env=processes.environment(**variables), capture_output=True, text=True,
                timeout=_LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as slow:
            printed = (slow.stdout or b"").decode(errors="replace")
            complained = (slow.stderr or b"").decode(errors="replace")
            return subprocess.CompletedProcess(words, 124, printed, f"{complained}\nended after {_LIMIT_S} s\n")

    def refuse_simulation(self, words: list[str], variables: dict[str, str]) -> None:
        asked = [word for word in (*words, *variables) if "simulate" in word.lower()]
        if asked and not self.simulate:
            raise AssertionError(f"a simulated device was asked for: {asked}")

    def pytest(self, source: str, *options: str, more: dict[str, str] | None = None) -> Any:
        """Run pytest on a file with this source; its exit code, what it printed and each test's result."""
        (self.folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
        self.write({"test_it.py": source, **(more or {})})
        (self.folder / "junit.xml").unlink(missing_ok=True)
        options = (*options, *(["--syncagent-simulate"] if self.simulate else []))
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=junit.xml", *options]
        done = self.ended(words, self.environment())
        return test_pytest_plugin.Ran(done, self.folder)

    def write(self, files: dict[str, str]) -> None:
        for name, content in files.items():
            (self.folder / name).write_text(content, encoding="utf-8")

    def read(self, name: str) -> str:
        file = self.folder / name
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def report(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.read(name) or "{}"))


PARTS: dict[str, Callable[[Bench], Checks]] = {}
"""By title, which begins with a page.  Each yields what must hold, whether it does, and what was seen."""


def part(title: str) -> Callable[[Callable[[Bench], Checks]], Callable[[Bench], Checks]]:
    def add(check: Callable[[Bench], Checks]) -> Callable[[Bench], Checks]:
        PARTS[title] = check
        return check

    return add


def files_of(page: str) -> dict[str, str]:
    """The programs of a document, by the name of their file."""
    return {title: code for kind, title, code in test_documents.blocks(page) if kind == "python" and title}


def commands_of(page: str) -> list[str]:
    blocks = test_documents.blocks(page)
    return [command for kind, _, text in blocks if kind == "console" for command in test_documents.commands(kind, text)]


def command_of(page: str, *parts: str) -> str:
    """The one command of a document that has all of these parts."""
    [found] = {command for command in commands_of(page) if all(each in command for each in parts)}
    return found


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The exit code and the end of what a process printed."""
    return f"exit code {done.returncode}; {(done.stdout + done.stderr)[-_SHOWN:]}"


# --- the trainers -----------------------------------------------------------------------------------------------------

_POINTS = {"fit.py": 8, "finetune.py": 4, "loop.py": 8}
_STEPS = {"fit.py": 32, "finetune.py": 16, "loop.py": 32}
_LOGGED = ("syncs/step", "stall_ms/step")


def train(bench: Bench, library: str, *words: str, code: str | None = None, **variables: str) -> Any:
    """Run the program that the tests have for a library, or this one, in a folder of its own."""
    folder = bench.folder / ("_".join(words) or "bare")
    while folder.exists():
        folder = folder.with_name(f"{folder.name}_again")
    folder.mkdir()
    inner = Bench(folder, bench.tools, bench.simulate, bench.left_out)
    inner.write({"train.py": code or test_trainers.PROGRAMS[library], "run.py": test_trainers.RUN})
    done = inner.python("run.py", "train.py", library, *words, **variables)
    if done.returncode:
        raise RuntimeError(f"{library} ended with {said(done)}")
    return test_trainers.Done(done, folder)


def rows_of(folder: Path, pattern: str, column: str) -> list[dict[str, str]]:
    [file] = folder.glob(pattern)
    with file.open() as stream:
        return [row for row in csv.DictReader(stream) if row.get(column)]


def values_logged(library: str, done: Any, name: str) -> list[tuple[int, float]]:
    """The step and the value of each point of one name; transformers prints no steps."""
    if library == "accelerate":
        pairs = [(int(step), ast.literal_eval(values)) for step, _, values in (x.partition(" ") for x in done.logged)]
    elif library == "transformers":
        pairs = list(enumerate(ast.literal_eval(each) for each in done.logged))
    else:
        rows = rows_of(done.folder, "out/csv/version_0/metrics.csv", name)
        return [(int(row["step"]), float(row[name])) for row in rows]
    return [(step, values[name]) for step, values in pairs if name in values]


def a_trainer(library: str) -> Callable[[Bench], Checks]:
    def checks(bench: Bench) -> Checks:
        if missing := [name for name in (library, "accelerate") if name != "pytorch_lightning" and not find_spec(name)]:
            bench.left_out(f"{library}: the callback", f"not installed: {', '.join(missing)}")
            return
        watched = train(bench, library, "watched", "csv")
        steps = watched.report["run"]["steps"]
        expected = test_trainers.STEPS[library]
        yield f"{library}: the report has the {expected} steps of the optimizer", steps == expected, f"{steps} steps"
        found = values_logged(library, watched, "syncs/step")
        if library in test_trainers.PER_STEP:
            wanted = test_trainers.PER_STEP[library]
            same = [step for step, _ in found] == [step for step, _ in wanted] and all(
                abs(one - other) < 1e-3 for (_, one), (_, other) in zip(found, wanted, strict=True)
            )
            yield f"{library}: each point of syncs/step is 2, at the trainer's own steps", same, found
            evaluations = [value for _, value in values_logged(library, watched, "syncagent/eval/syncs")]
            yield f"{library}: each evaluation has its 120 syncs", evaluations == [120.0, 120.0], evaluations
        else:
            values = [value for _, value in found]
            small = len(values) == 4 and all(0 < value < 20 for value in values)
            yield f"{library}: syncs/step has nothing of the evaluations, whose reads would be 100 more", small, values
            evaluations = [value for _, value in values_logged(library, watched, "syncagent/eval/syncs")]
            whole = len(evaluations) == 4 and all(400 <= value < 500 for value in evaluations)
            yield f"{library}: each evaluation has its 400 syncs and few more", whole, evaluations
        yield f"{library}: the callback complains of nothing", not watched.complaints(), watched.complaints()
        yield f"{library}: the agent ends with the run", watched.is_watched is False, watched.is_watched
        bare = train(bench, library)
        if bare.trained != watched.trained and bare.trained != train(bench, library).trained:
            bench.left_out(f"{library}: weights with and without the callback", "they differ from run to run without")
        else:
            same = watched.trained == bare.trained
            seen = f"{bare.trained[-12:]}, {watched.trained[-12:]}"
            yield f"{library}: the weights are the same with and without the callback, to the last bit", same, seen

    return checks


for _library in test_trainers.PROGRAMS:
    part(f"docs/trainers.md: {_library}, watched and alone")(a_trainer(_library))


def a_documents_trainer(file: str, library: str) -> Callable[[Bench], Checks]:
    def checks(bench: Bench) -> Checks:
        for needed in (library, "accelerate"):
            if find_spec(needed) is None:
                bench.left_out(f"docs/trainers.md, {file}", f"{needed} is not installed")
                return
        bench.write({file: files_of("docs/trainers.md")[file]})
        done = bench.bash(command_of("docs/trainers.md", file), SYNCAGENT_REPORT="own.json")
        yield f"{file} of docs/trainers.md runs under syncagent run", done.returncode == 0, said(done)
        steps = bench.report("own.json").get("run", {}).get("steps")
        yield f"{file}: the report has its {_STEPS[file]} steps", steps == _STEPS[file], f"{steps} steps"
        points = {name: list(values) for name, values in zip(_LOGGED, points_of(bench, file, done), strict=True)}
        if not points[_LOGGED[0]] and file == "loop.py" and find_spec("tensorboard") is None:
            bench.left_out(f"{file}: what TensorBoard has", "tensorboard is not installed")
        else:
            right = all(len(values) == _POINTS[file] for values in points.values())
            yield f"{file}: syncs/step and stall_ms/step are logged {_POINTS[file]} times", right, points
            waits = bool(points[_LOGGED[0]]) and all(value >= 1 for value in points[_LOGGED[0]])
            yield f"{file}: each step waits at least once, as its code does", waits, points[_LOGGED[0]]
        log = done.stdout + done.stderr
        complaints = re.findall(r"(?m)^\[syncagent\] \S+ (?!info ).*$", done.stderr)
        yield f"{file}: no warning of the agent's", not complaints, complaints
        if file != "loop.py":
            worst = re.findall(r"worst_sync_site: .*", log)
            right = any(re.search(rf"{re.escape(file)}:\d+.* stalls a step for ", each) for each in worst)
            yield f"{file}: the log names the line that stalls the steps longest", right, worst or said(done)

    return checks


def points_of(bench: Bench, file: str, done: subprocess.CompletedProcess[str]) -> list[list[float]]:
    """The values of both numbers, from where the document's program logs."""
    if file == "fit.py":
        rows = [rows_of(bench.folder, "logs/fit/version_0/metrics.csv", name) for name in _LOGGED]
        return [[float(row[name]) for row in found] for name, found in zip(_LOGGED, rows, strict=True)]
    if file == "finetune.py":
        printed = [ast.literal_eval(each) for each in re.findall(r"(?m)^(\{.*syncs/step.*\})$", done.stdout)]
        return [[float(each[name]) for each in printed] for name in _LOGGED]
    if find_spec("tensorboard") is None:
        return [[], []]
    return [[value for _, value in test_trainers.scalars(bench.folder, name, under="logs")] for name in _LOGGED]


for _file, _of in (("fit.py", "lightning"), ("finetune.py", "transformers"), ("loop.py", "accelerate")):
    part(f"docs/trainers.md: {_file}")(a_documents_trainer(_file, _of))


# --- in CI ------------------------------------------------------------------------------------------------------------

_BASELINE = ("--baseline", "known.json")
_VERDICTS = {
    "new": (
        ("a run as it was passes", "pass", _BASELINE, 0, "No new or grown sites"),
        ("a line that is new fails", "READ", _BASELINE, 1, "1 site new"),
    ),
    "any": (
        ("set-up is no finding", "pass", (), 0, "No sync that is not allowed"),
        ("a sync that nothing allows fails", "READ", (), 1, "1 site with a sync that is not allowed"),
        ("a line in --allow passes", "READ", ("--allow", "train.py:9"), 0, "No sync that is not allowed"),
    ),
    "budget": (
        ("one that is kept passes", "READ", ("--max-syncs-per-step", "1"), 0, ""),
        ("one that is exceeded fails", "READ", ("--max-syncs-per-step", "0"), 1, "beyond the budget of a step"),
    ),
}  # fmt: skip
"""What is judged, the line at the end of each step, the options, the exit code and what is said."""
_QUIET = {name: value for name, value in test_fail_on.QUIET.items() if name != "SYNCAGENT_SIMULATE"}


def script(bench: Bench, line: str, *, steps: int = 6, code: int = 0) -> None:
    line = test_fail_on.READ if line == "READ" else line
    bench.write({"train.py": test_fail_on.TRAIN.format(line=line, steps=steps, code=code)})


def fail_on(kind: str) -> Callable[[Bench], Checks]:
    def checks(bench: Bench) -> Checks:
        if kind == "new":
            script(bench, "pass")
            good = bench.syncagent("run", "--report", "good.json", "train.py", **_QUIET)
            saved = bench.syncagent("check", "good.json", "--baseline", "known.json", "--update")
            yield "--update makes a baseline of a report", (good.returncode, saved.returncode) == (0, 0), said(saved)
        for name, line, words, code, sentence in _VERDICTS[kind]:
            script(bench, line)
            done = bench.syncagent("run", "--fail-on", kind, *words, "train.py", **_QUIET)
            right = done.returncode == code and sentence in done.stderr and done.stdout == "end\n"
            if code:
                right = right and "train.py:9" in done.stderr and "    seen = loss.item()\n" in done.stderr
            full = f"--fail-on {kind}: {name}, with exit code {code}, and the script runs to its end"
            yield full, right, said(done)

    return checks


for _kind in _VERDICTS:
    part(f"docs/ci.md: --fail-on {_kind}")(fail_on(_kind))


@part("docs/ci.md: --fail-on, scripts that cannot be judged")
def not_judged(bench: Bench) -> Checks:
    script(bench, "READ", code=7)
    done = bench.syncagent("run", "--fail-on", "any", "train.py", **_QUIET)
    yield "--fail-on: a script that fails keeps its exit code", done.returncode == 7, said(done)
    script(bench, "pass", steps=3)
    done = bench.syncagent("run", "--fail-on", "any", "train.py", **_QUIET)
    right = done.returncode == 2 and "it made 3 steps, and the policy does not act in the first 3" in done.stderr
    yield "--fail-on: a run that proves nothing has exit code 2", right, said(done)


@part("docs/ci.md: check in its forms")
def check_forms(bench: Bench) -> Checks:
    for name, line in (("good", "pass"), ("new", "READ")):
        script(bench, line)
        bench.syncagent("run", "--detail", "syncs", "--report", f"{name}.json", "train.py", **_QUIET)
    bench.syncagent("check", "good.json", "--baseline", "known.json", "--update")
    done = {
        form: bench.syncagent("check", "new.json", "--baseline", "known.json", "--format", form)
        for form in ("text", "markdown", "sarif", "junit")
    }
    codes = [each.returncode for each in done.values()]
    yield "check fails with exit code 1 in each of its four forms", codes == [1] * 4, codes
    text = done["text"].stdout
    right = all(each in text for each in ("train.py:9", "seen = loss.item()", "→"))
    yield "check: the text has the line, the expression and the advice", right, text[:_SHOWN]
    table = done["markdown"].stdout
    right = table.startswith("### Host syncs: the check has failed, 1 finding\n") and "| new | `train.py:9`" in table
    yield "check: the markdown has the verdict and the line", right, table[:_SHOWN]
    [one] = json.loads(done["sarif"].stdout)["runs"]
    places = [
        (place["physicalLocation"]["artifactLocation"]["uri"], place["physicalLocation"]["region"]["startLine"])
        for result in one["results"]
        for place in result["locations"]
    ]
    yield "check: the SARIF has one result, at the line that is new", places == [("train.py", 9)], places
    cases = list(ET.fromstring(done["junit"].stdout).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    right = len(failed) == 1 and "train.py" in ET.tostring(
        next(c for c in cases if c.find("failure") is not None), "unicode"
    )
    yield "check: JUnit's file has one failure, the line that is new", right, failed
    times = [site["stall_ms"] for site in bench.report("new.json").get("sites", ()) if site["line"] == 9]
    yield "a report of the GPU: the line waited for some time", len(times) == 1 and times[0] > 0, f"{times} ms"


@part("docs/ci.md: its commands")
def ci_page(bench: Bench) -> Checks:
    bench.write({"train.py": files_of("docs/quickstart.md")["train.py"], "pyproject.toml": ""})
    for command in commands_of("docs/ci.md"):
        done = bench.bash(command)
        shown = command.partition("  #")[0].strip()
        right = done.returncode == 0 and "Traceback" not in done.stderr
        yield f"docs/ci.md: `{_SIMULATED.sub('', shown)}` passes", right, said(done)


@part("docs/ci.md: examples/ci_gate")
def ci_example(bench: Bench) -> Checks:
    if shutil.which("git") is None:
        bench.left_out("examples/ci_gate: its README", "git is not installed")
        return
    folder = bench.folder / "job"
    shutil.copytree(test_ci_gate.EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", ".syncagent"))
    inner = Bench(folder, bench.tools, bench.simulate, bench.left_out)
    inner.bash("git init -q && git add . && git -c user.name=a -c user.email=a@example.com commit -qm all")
    variables: dict[str, str] = {}
    printed = []
    for command, _ in test_ci_gate.commands():
        if command.startswith("export PYTHONPATH="):
            variables["PYTHONPATH"] = bench.importable(command.partition("=")[2])
            continue
        done = inner.bash(command, **variables)
        printed += re.findall(r"exit code (\d)", done.stdout)
    sentence = "examples/ci_gate: an added sync and a library's upgrade fail, a formatter's change passes"
    yield f"{sentence}, by the committed baseline", printed == ["0", "1", "0", "1"], f"exit codes {printed}"


# --- a job that runs for days -----------------------------------------------------------------------------------------


@part("docs/production.md: a long job")
def long_job(bench: Bench) -> Checks:
    bench.write({"long.py": files_of("docs/production.md")["long.py"]})
    exported = command_of("docs/production.md", "export SYNCAGENT_PROGRESS=").partition("#")[0].removeprefix("export ")
    variables = dict(each.split("=", 1) for each in exported.split())
    done = bench.bash(command_of("docs/production.md", "long.py"), **variables)
    log = bench.read("log.txt")
    yield "the job of docs/production.md ends with exit code 0 after the signal", done.returncode == 0, said(done)
    lines = re.findall(r"(?m)^\[syncagent\] \S+ info +\S+ m?s · .*$", log)
    steps = [line for line in lines if re.search(r"\d+ steps?, \d+ in the last .* syncs?, .*per step", line)]
    yield "SYNCAGENT_PROGRESS: the log has lines with steps, syncs and syncs per step", len(steps) >= 2, lines[-1:]
    named = [line for line in steps if "most at long.py:" in line]
    yield "SYNCAGENT_PROGRESS: the lines name the line that stalls most", bool(named), named[-1:]
    saved = re.findall(r"the report so far is saved .*", log)
    yield "SYNCAGENT_REPORT_SIGNAL: the log says once that the report is saved", len(saved) == 1, saved
    early = int((re.findall(r"report=long\.json step=(\d+)", log) or [999])[0])
    last = bench.report("long.json").get("run", {}).get("steps")
    yield "the report so far is of an earlier step, and the one of the end has all", early < 120 == last, (early, last)
    shown = "long.py:" in done.stdout and "while the job went on" in done.stdout
    yield "syncagent report shows the report so far, and says that it is one", shown, done.stdout[-_SHOWN:]
    values = bench.read("out.txt").split()
    yield "the job prints what it prints without the agent, 120 values", len(values) == 120, f"{len(values)} values"
    dropped = re.findall(r"(?m)^\[syncagent\] \S+ (?:warning|error) .*$", log)
    yield "the log of the long job has no warning of the agent's", not dropped, dropped


# --- the pytest plugin ------------------------------------------------------------------------------------------------

_ASKED = {
    "a test without a sync passes under the marker, one with a sync fails": ("test_passes_quiet", "test_fails_one"),
    "max_syncs: as many may be, and one more fails": tuple(f"test_passes_up_to_two[{n}]" for n in (1, 2, 3)),
    "kinds: others do not count": ("test_passes_another_kind", "test_fails_its_kind"),
    "allow, as an argument and as a block, holds": ("test_passes_allowed", "test_passes_in_a_block"),
    "pytest.raises in a test hides no sync": ("test_fails_what_pytest_raises_sees",),
    "a class has the marker for its tests, and the closest one is in force": (
        "test_passes_in_a_class", "test_fails_in_a_class", "test_passes_by_the_closest_marker",
    ),
    "unittest's classes: what setUp does is not the test's": ("test_passes_in_a_case", "test_fails_in_a_case"),
    "asynchronous tests of unittest are watched in their loop": (
        "test_passes_in_its_loop", "test_fails_in_its_loop",
    ),
    "the fixture host_syncs counts, names lines and asserts": ("test_passes_counted", "test_fails_asserted"),
    "a marker that makes no sense fails its test in a sentence": (
        "test_fails_nonsense", "test_fails_number", "test_fails_kind", "test_fails_position",
    ),
}  # fmt: skip
_NEW = """
from loss import masked_mean
from test_loss import VALUES


def test_new():
    masked_mean(VALUES, VALUES > 3)
"""
_COROUTINES = ("test_fails_in_a_coroutine", "test_passes_a_coroutine_that_counts")


@part("docs/testing.md: its two files")
def testing_page(bench: Bench) -> Checks:
    bench.write(files_of("docs/testing.md"))
    shown = next(text for kind, _, text in test_documents.blocks("docs/testing.md") if kind == "text")
    failure = shown[shown.index("1 host sync") :]
    done = bench.bash("pytest -q --syncagent-simulate")
    yield (
        "docs/testing.md: exactly one of its two tests fails, with exit code 1",
        done.returncode == 1 and "1 failed, 1 passed" in done.stdout,
        said(done),
    )
    yield (
        "the failure has line 5 of loss.py, the expression and the advice, as the page",
        failure in done.stdout,
        (done.stdout[: 2 * _SHOWN]),
    )
    observe = command_of("docs/testing.md", "--syncagent=observe")
    done = bench.bash(observe)
    sites = [(Path(site["file"]).name, site["count"]) for site in bench.report("known.json").get("sites", ())]
    right = done.returncode == 0 and "1 host sync in 1 of 1 test\n" in done.stdout and sites == [("test_loss.py", 1)]
    yield "--syncagent=observe counts and saves the report", right, f"{sites}; {said(done)}"
    gate = command_of("docs/testing.md", "--syncagent-baseline")
    done = bench.bash(gate)
    yield "--syncagent=raise passes with the lines of the baseline", done.returncode == 0, said(done)
    bench.write({"test_new.py": _NEW})
    done = bench.bash(gate.replace("-k waits_once", "-k 'waits_once or new'"))
    (bench.folder / "test_new.py").unlink()
    stopped = "HostSyncError: aten::index" in done.stdout and "loss.py:5: HostSyncError" in done.stdout
    right = done.returncode == 1 and stopped and "1 failed, 1 passed" in done.stdout
    yield "--syncagent=raise stops a test at a line that is new, before it waits", right, said(done)
    if find_spec("xdist") is None:
        bench.left_out("docs/testing.md under pytest-xdist", "xdist is not installed")
        return
    done = bench.bash("pytest -q --syncagent-simulate -n 2")
    right = done.returncode == 1 and "1 failed, 1 passed" in done.stdout and failure in done.stdout
    yield "pytest-xdist: two workers have the same result", right, said(done)


@part("docs/testing.md: what tests ask for by marker and fixture")
def asked_for(bench: Bench) -> Checks:
    yield from judged(bench, bench.pytest(test_pytest_plugin.HEAD + test_pytest_plugin.ASKED_FOR), "")


@part("docs/testing.md: the same under pytest-xdist")
def asked_for_in_workers(bench: Bench) -> Checks:
    if find_spec("xdist") is None:
        bench.left_out("pytest-xdist: every way to ask", "xdist is not installed")
        return
    source = test_pytest_plugin.HEAD + test_pytest_plugin.ASKED_FOR
    run = bench.pytest(source, "-n", "2")
    test_pytest_plugin.check_what_was_asked_for(run)
    yield (
        "pytest-xdist: all 29 tests of the marker and the fixture end as without",
        len(run.cases) == 29,
        run.text[-60:],
    )
    source = test_pytest_plugin.HEAD + test_pytest_plugin.UNDER_A_POLICY
    run = bench.pytest(source, "--syncagent=observe", "--syncagent-report=all.json", "-n", "2")
    counts = [site["count"] for site in bench.report("all.json").get("sites", ())]
    right = "4 host syncs in 3 of 4 tests\n" in run.text and counts == [4]
    yield "pytest-xdist: there is one report of all workers", right, f"{counts}; {run.text[-_SHOWN:]}"


def judged(bench: Bench, run: Any, before: str) -> Checks:
    failed = run.names("failure", "error")
    for name, tests in _ASKED.items():
        wrong = [test for test in tests if (test in failed) != test.startswith("test_fails")]
        missing = set(tests) - {case.get("name") for case in run.cases}
        yield f"{before}{name}", not wrong and not missing, f"{len(tests)} tests, other than expected: {wrong}"
    if find_spec("pytest_asyncio"):
        right = _COROUTINES[0] in failed and _COROUTINES[1] not in failed
        yield f"{before}asynchronous tests of pytest-asyncio are watched in their loop", right, sorted(failed)
    else:
        bench.left_out("asynchronous tests of pytest-asyncio", "pytest-asyncio is not installed")
    test_pytest_plugin.check_what_was_asked_for(run)
    expected = run.said("test_fails_one")
    yield f"{before}each failure has the line, the expression and the advice", "torch.nonzero(x)" in expected, expected


@part("docs/testing.md: policies for every test")
def policies(bench: Bench) -> Checks:
    source = test_pytest_plugin.HEAD + test_pytest_plugin.UNDER_A_POLICY
    run = bench.pytest(source, "--syncagent=observe", "--syncagent-report=known.json")
    counts = {"test_quiet": 0, "test_waits": 2, "test_swallows": 1, "test_limit": 1}
    yield (
        "--syncagent=observe: each test has its number of syncs",
        run.code == 0 and run.counts() == counts,
        run.counts(),
    )
    run = bench.pytest(source, "--syncagent=raise")
    failed = run.names("failure", "error")
    yield (
        "--syncagent=raise fails the test that waits and the one that swallows the error, and no other",
        failed == {"test_waits", "test_swallows"},
        sorted(failed),
    )
    run = bench.pytest(source, "--syncagent=warn")
    warned = run.text.count("HostSyncWarning: aten::nonzero made the host wait")
    yield (
        "--syncagent=warn warns once of a line, and passes",
        (run.code, warned) == (0, 1),
        f"{run.code}, {warned} times",
    )
    gate = ("--syncagent=raise", "--syncagent-baseline=known.json")
    run = bench.pytest(source, *gate)
    yield "--syncagent-baseline: every line in it may wait", run.code == 0, run.text[-_SHOWN:]
    changed = source.replace("torch.arange(4.0, device=DEVICE) + 1", "torch.arange(4.0, device=DEVICE).sum().item()")
    failed = bench.pytest(changed, *gate).names("failure", "error")
    yield "--syncagent-baseline: a new line fails its test alone", failed == {"test_quiet"}, sorted(failed)


@part("docs/testing.md: unittest's expected failures, and tests that stop the agent")
def peculiar(bench: Bench) -> Checks:
    run = bench.pytest(test_pytest_plugin.HEAD + test_pytest_plugin.EXPECTED_FAILURES)
    failed = run.names("failure", "error")
    right = failed == {"test_waits", "test_neither"}
    yield "unittest's expectedFailure is about the test, not about the limit", right, sorted(failed)
    run = bench.pytest(test_pytest_plugin.HEAD + test_pytest_plugin.STOPPED)
    expected = {case.get("name") for case in run.cases if case.get("name").startswith("test_fails")}
    failed = run.names("failure", "error")
    yield "a test that stops the agent hides no sync", failed == expected != set(), sorted(failed)


@part("docs/testing.md: the plugin where nothing is asked for")
def unnoticed(bench: Bench) -> Checks:
    # The option that simulates a device would be a request.
    bench = Bench(bench.folder, bench.tools, False, bench.left_out)
    run = bench.pytest(test_pytest_plugin.UNNOTICED)
    yield (
        "where nothing is asked for, the plugin loads no module but itself, and not torch",
        run.code == 0,
        (run.text[-_SHOWN:]),
    )


# --- in code ----------------------------------------------------------------------------------------------------------

_IN_CODE = """
import json, torch, syncagent

x = torch.arange(8.0, device="cuda")
with syncagent.watch():  # what is done once is done
    x.sum().item()

def block(limit, action):
    with limit:
        action()

def called(limit, action):
    limit(action)()

def wait():
    x.sum().item()

def twice():
    wait()
    wait()

def own_error():
    wait()
    raise KeyError("of its own")

def tried(how, limit, action):
    try:
        how(limit, action)
    except Exception as error:
        return [type(error).__name__, isinstance(error, AssertionError), str(error)]
    return None

cases = {
    f"{how.__name__} {limit.__name__ if not most else most} {action.__name__}": tried(how, limit(*most), action)
    for how in (block, called)
    for limit, most in ((syncagent.assert_no_syncs, ()), (syncagent.assert_max_syncs, (1,)))
    for action in (x.neg, wait, twice, own_error)
}
print(json.dumps(cases))
"""


@part("docs/testing.md: assert_no_syncs and assert_max_syncs")
def in_code(bench: Bench) -> Checks:
    [code] = [code for kind, title, code in test_documents.blocks("docs/testing.md") if kind == "python" and not title]
    bench.write({"page.py": test_documents.SURROUNDINGS["docs/testing.md"] + code, "limits.py": _IN_CODE})
    done = bench.python("page.py")
    yield "the code of docs/testing.md runs", done.returncode == 0, said(done)
    done = bench.python("limits.py")
    cases = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    yield "the program with all limits runs", done.returncode == 0, said(done)
    for how, word in (("block", "as a block"), ("called", "as a decorator")):
        none = {action: cases.get(f"{how} assert_no_syncs {action}") for action in ("neg", "wait", "own_error")}
        most = {action: cases.get(f"{how} (1,) {action}") for action in ("neg", "wait", "twice")}
        right = f"{how} (1,) neg" in cases and none["neg"] is None and most["neg"] is None
        yield f"{word}, a call that does not wait passes", right, f"{none['neg']}, {most['neg']}"
        name, is_assertion, text = none["wait"] or ("none", False, "")
        right = name == "HostSyncAssertionError" and is_assertion and "limits.py:" in text and "x.sum().item()" in text
        yield f"{word}, assert_no_syncs fails with the line and the expression", right and "→" in text, text
        right = most["wait"] is None and bool(most["twice"]) and most["twice"][0] == "HostSyncAssertionError"
        yield f"{word}, assert_max_syncs(1) passes with one sync and fails with two", right, most
        error = none["own_error"]
        yield f"{word}, an error of the program's own goes first", bool(error) and error[0] == "KeyError", error


# --- all --------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was found so far, and the file that has it."""

    out: Path | None
    machine: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, page: str, name: str, ok: bool, seen: Any) -> None:
        text = re.sub(r"\s+", " ", str(seen)).strip()
        text = text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} … {text[-_SHOWN:]}"
        with self._lock:
            self.checks.append({"name": name, "ok": bool(ok), "seen": text, "page": page})
            print(f"{'holds ' if ok else 'FAILS '} {name}" + ("" if ok else f"\n         {text}"), flush=True)
            self._save()

    def leave_out(self, name: str, why: str) -> None:
        with self._lock:
            self.left_out.append({"name": name, "why": why})
            print(f"left out {name}: {why}", flush=True)
            self._save()

    def _save(self) -> None:
        if self.out is not None:
            whole = {**self.machine, "checks": self.checks, "left_out": self.left_out}
            draft = self.out.with_name(self.out.name + ".part")
            draft.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            draft.replace(self.out)


def machine(simulate: bool) -> dict[str, Any]:
    """What all is measured on; the GPU's name is asked for in a process of its own."""
    versions = {name: _version(name) for name in _LIBRARIES}
    found: dict[str, Any] = {
        "torch": versions["torch"], "gpu": None, "simulated": simulate, "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: version for name, version in versions.items() if version},
    }  # fmt: skip
    code = "import torch; print(torch.__version__); print(torch.cuda.get_device_name(0))"
    if not simulate:
        done = processes.run("-c", code, cwd=tempfile.gettempdir(), timeout=_LIMIT_S)
        if done.returncode:
            sys.exit(f"there is no GPU to be used here: {done.stderr[-400:]}")
        found["torch"], found["gpu"] = done.stdout.split("\n")[:2]
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def put_tools(folder: Path) -> None:
    """Write what an installation adds: the commands, and what Python runs as it starts."""
    folder.mkdir()
    commands = {"python": "", "syncagent": " -m syncagent", "pytest": " -m pytest"}
    for name, words in commands.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    shutil.copy(processes.ROOT / "syncagent_autostart.pth", folder / "sitecustomize.py")
    # Where MPI is installed but not set up, it ends the process of a Lightning that asks how many there are.
    (folder / "mpi4py.py").write_text('raise ImportError("one process needs no MPI")\n', encoding="utf-8")


def run_part(title: str, folder: Path, tools: Path, result: Result, simulate: bool) -> None:
    folder.mkdir(parents=True)
    page = title.partition(":")[0]
    try:
        for name, ok, seen in PARTS[title](Bench(folder, tools, simulate, result.leave_out)):
            result.add(page, name, ok, seen)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        result.add(page, f"{title}: it can be tried to its end", False, f"{error!r} at {where.name}:{where.lineno}")


def reports_below(folder: Path) -> list[bool]:
    """Of each report that was written, whether it is of a simulated device."""
    found = []
    for file in folder.rglob("*.json"):
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(saved, dict) and isinstance(saved.get("run"), dict) and saved["run"].get("steps") is not None:
            found.append(bool(saved["run"].get("simulated")))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result is written")
    parser.add_argument("--match", default="", metavar="TEXT", help="only the parts with this text in their title")
    parser.add_argument("--simulate", action="store_true", help="rehearse it on the simulated device")
    parser.add_argument(
        "--at-once", type=int, default=_AT_ONCE, metavar="N", help="how many processes run side by side"
    )
    options = parser.parse_args()
    began = time.monotonic()
    chosen = [title for title in PARTS if options.match.lower() in title.lower()]
    chosen.sort(key=lambda title: title not in _FIRST)
    result = Result(options.out and options.out.resolve(), machine(options.simulate))
    with tempfile.TemporaryDirectory(prefix="gate-", ignore_cleanup_errors=True) as name:
        work = Path(name).resolve()
        put_tools(work / "tools")
        with ThreadPoolExecutor(options.at_once) as pool:
            for number, title in enumerate(chosen):
                pool.submit(run_part, title, work / f"part{number}", work / "tools", result, options.simulate)
        if not options.simulate:
            simulated = reports_below(work)
            seen = f"{len(simulated)} reports, {sum(simulated)} of them of the simulated device"
            result.add("", "no report is of the simulated device", not any(simulated), seen)
    failed = sum(not check["ok"] for check in result.checks)
    held = len(result.checks) - failed
    print(f"{held} of {len(result.checks)} hold, {len(result.left_out)} left out; {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
