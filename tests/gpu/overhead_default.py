"""What the default costs a training program: watched and bare copies of it, in turn on one GPU.

    python tests/gpu/overhead_default.py --out FILE.json [--only trainer,bert] [--copies 4] [--seconds 500]

Each copy is a process of its own, as a user starts it (``SYNCAGENT=1 python train.py``).  All of a program's copies are
prepared at the same time and stopped (SIGSTOP); then one after another runs, with nothing beside it: the first 20
steps, which the agent watches whole and which are reported apart, and then the 200 that count, in eight slices.  A
slice of each way to start it runs within seconds of the others, in an order that changes, so that what the machine does
meanwhile meets all of them.  Two of the ways are bare; the one against the other is what the machine does by itself.

Reported for each program: wall time, CPU time of the training thread and of the whole process, as ratios to bare with a
95 % interval over the slices; graphs that torch.compile made, and recompiles.  ``paced`` gives the latency that is
added to each of a thousand reads a second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_CHILD = _ROOT / "tests/gpu/programs/by_turns.py"
_FIRST = 20
_READY_S = 240.0
"""How long a program may take to be ready; torch.compile comes later, in the first steps."""
_TURN_S = 240.0
_LIKELY = 0.975
_TIMES = ("wall_ms", "cpu_ms", "process_ms")

DEFAULT = {"SYNCAGENT": "1"}
ALONE = {"SYNCAGENT": "1", "SYNCAGENT_OVERHEAD": "0"}
LOOKS = {"SYNCAGENT": "1", "SYNCAGENT_OVERHEAD": "0.0001"}
"""Lines are looked up, and in the steps that count none is sampled."""
BARE: dict[str, dict[str, str]] = {"bare": {}, "bare again": {}}
WATCHED: dict[str, dict[str, dict[str, str]]] = {
    "trainer": {"default": DEFAULT},
    "resnet": {"driver alone": ALONE, "looks": LOOKS, "default": DEFAULT},
    "bert": {"default": DEFAULT},
    "host-bound": {"driver alone": ALONE, "default": DEFAULT},
    "paced": {"default": DEFAULT},
    "compiled": {"default": DEFAULT},
    "fsdp2": {"default": DEFAULT},
    "ddp": {"without collectives": {**DEFAULT, "SYNCAGENT_COLLECTIVES": "0"}, "default": DEFAULT},
}
"""For each program, how the copies that are watched are started; the most important programs come first."""
_FEW = frozenset({"compiled", "paced"})
"""Programs of which two copies of each way are enough, or take too long."""


class Copy:
    """One process that runs a program when it is its turn."""

    def __init__(
        self, way: str, number: int, program: str, settings: dict[str, str], folder: Path, options: Any
    ) -> None:
        self.way = way
        self.number = number
        self.name = f"{way} {number}"
        self.head: dict[str, Any] = {}
        self.first: dict[str, Any] = {}
        self.slices: list[dict[str, Any]] = []
        """What it told: as it was ready, of the first steps, and of those that count; empty where it failed."""
        self.failure = ""
        self.folder = folder / self.name.replace(" ", "_")
        self.folder.mkdir()
        theirs_in, self._go = os.pipe()
        self._done, theirs_out = os.pipe()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCAGENT", "OTEL_"))}
        path = [str(folder / "site"), str(_ROOT), environment.get("PYTHONPATH", "")]
        environment |= {
            "TURNS": f"{theirs_in},{theirs_out}", "TURNS_WATCHED": str(self.folder / "watched.json"),
            "PYTHONPATH": os.pathsep.join(filter(None, path)), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            **settings,
        }  # fmt: skip
        if program == "compiled":
            environment["TORCH_LOGS"] = "recompiles"
        if settings:
            environment["SYNCAGENT_REPORT"] = str(self.folder / "report.json")
        if options.simulate:
            environment["SYNCAGENT_SIMULATE"] = "1"
        words = [sys.executable, str(_CHILD), program, "--first", str(_FIRST), "--steps", str(options.steps)]
        words += ["--slices", str(options.slices)]
        words += ["--small"] if options.simulate else []
        self._log = (self.folder / "output.txt").open("wb")
        self._process = subprocess.Popen(
            words, cwd=self.folder, env=environment, pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL,
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._text = b""

    def read(self, seconds: float) -> dict[str, Any]:
        """Return what it says next; raises ``RuntimeError`` where it has ended or takes too long."""
        ends = time.monotonic() + seconds
        while b"\n" not in self._text:
            if not select.select([self._done], [], [], max(ends - time.monotonic(), 0.0))[0]:
                raise RuntimeError(f"{self.name}: no word within {seconds:.0f} s; {self.tail()}")
            read = os.read(self._done, 1 << 20)
            if not read:
                raise RuntimeError(f"{self.name}: ended with exit code {self._process.wait(10)}; {self.tail()}")
            self._text += read
        line, _, self._text = self._text.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def prepare(self) -> None:
        """Wait until it is ready, and stop it."""
        self.head = self.read(_READY_S)
        self._process.send_signal(signal.SIGSTOP)

    def turn(self) -> None:
        """Let it run its first steps, or the next slice of the others, and stop it again."""
        self._process.send_signal(signal.SIGCONT)
        try:
            os.write(self._go, b"g")
        except BrokenPipeError:
            raise RuntimeError(f"{self.name}: has ended; {self.tail()}") from None
        told = self.read(_TURN_S)
        if self.first:
            self.slices.append(told)
        else:
            self.first = told
        self._process.send_signal(signal.SIGSTOP)

    @property
    def steps(self) -> dict[str, Any]:
        """The sums over its slices."""
        if not self.slices:
            return {}
        sums = {key: sum(part[key] for part in self.slices) for key in ("steps", *_TIMES)}
        return sums | {
            "dynamo": self.slices[-1]["dynamo"], "extra": [value for part in self.slices for value in part["extra"]]
        }  # fmt: skip

    def release(self) -> None:
        """Let it come to its end; without having had a turn, it ends at once."""
        self._process.send_signal(signal.SIGCONT)
        os.close(self._go)

    def tail(self) -> list[str]:
        self._log.flush()
        text = (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        return text.strip().splitlines()[-6:]

    def end(self) -> None:
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._done)
        self._log.close()

    def told(self) -> dict[str, Any]:
        """Return what it left behind: whether it was watched, its report, how often torch.compile began anew."""
        result: dict[str, Any] = {"exit": self._process.returncode}
        watched = self.folder / "watched.json"
        result["watched"] = json.loads(watched.read_text(encoding="utf-8")) if watched.exists() else None
        text = (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        result["recompiles"] = text.count("Recompiling function")
        report = self.folder / "report.json"
        if report.exists():
            found = json.loads(report.read_text(encoding="utf-8"))
            result |= {key: found.get(key) for key in ("overhead", "totals", "dropped", "notes")}
            result["sensors"] = [[one["name"], one["live"], one.get("detail", "")] for one in found.get("sensors", [])]
            result["sites"] = [
                [site["op"], site["file"], site["line"], site["count"], round(site["stall_ms"], 1)]
                for site in sorted(found.get("sites", []), key=lambda site: -site["stall_ms"])[:8]
            ]
        return result


def run_program(program: str, options: Any, seconds: float) -> dict[str, Any]:
    """Run the copies of a program in turn, and sum up."""
    began = time.monotonic()
    result: dict[str, Any] = {"program": program}
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        site = folder / "site"
        site.mkdir()
        # As if the package were installed: the interpreter reads its .pth.
        (site / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(_ROOT)!r})\n", encoding="utf-8")
        ways = {way: more for way, more in {**BARE, **WATCHED[program]}.items() if way not in options.without}
        count = min(options.copies, 2) if program in _FEW else options.copies
        copies = [
            Copy(way, number, program, settings, folder, options)
            for number in range(count)
            for way, settings in ways.items()
        ]
        try:
            take_turns(copies, count, options.slices, began + seconds, result)
        finally:
            for copy in copies:
                copy.release()
            for copy in copies:
                copy.end()
        result["copies"] = {copy.name: copy.told() for copy in copies if copy.steps or copy.failure}
        result["watched_as_meant"] = all(
            copy.told()["watched"] is (copy.way not in BARE) for copy in copies if copy.steps
        )
    result["took_s"] = round(time.monotonic() - began, 1)
    return result | figures(program, copies, list(ways))


def take_turns(copies: Sequence[Copy], rounds: int, slices: int, ends: float, result: dict[str, Any]) -> None:
    """Run round after round while there is time; a copy that fails is left out."""

    def guarded(copy: Copy, do: Callable[[], None]) -> None:
        try:
            do()
        except RuntimeError as error:
            copy.failure = str(error)
            result.setdefault("error", str(error))

    for copy in copies:
        guarded(copy, copy.prepare)
    order = random.Random(0)
    width = len(copies) // rounds
    for number in range(rounds):
        if number and time.monotonic() > ends:
            result["stopped"] = f"{number} of {rounds} rounds in the time that was allowed"
            return
        mine = copies[number * width :][:width]
        for _ in range(1 + slices):
            for copy in order.sample(mine, width):
                if not copy.failure:
                    guarded(copy, copy.turn)


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(program: str, copies: Sequence[Copy], ways: Sequence[str]) -> dict[str, Any]:
    groups = {way: [copy for copy in copies if copy.way == way and copy.steps] for way in ways}
    if not all(groups.values()):
        return {"failed": [copy.failure for copy in copies if copy.failure]}
    bare = [copy for way in BARE for copy in groups.get(way, ())]
    result: dict[str, Any] = {
        "gpu": bare[0].head.get("gpu") if bare else None, "steps": copies[0].steps.get("steps"),
        "ms_a_step": {way: means(group, "wall_ms") for way, group in groups.items()},
        "cpu_ms_a_step": {way: means(group, "cpu_ms") for way, group in groups.items()},
        "first_20_steps_ms": {way: [round(one.first["wall_ms"], 1) for one in group] for way, group in groups.items()},
        "slices_ms": {way: [[round(part["wall_ms"] / part["steps"], 3) for part in copy.slices] for copy in group]
                      for way, group in groups.items()},
        "each_ms": {way: [per_step(copy, "wall_ms") for copy in group] for way, group in groups.items()},
        "dynamo": {
            copy.name: [copy.first["dynamo"], copy.steps["dynamo"]]
            for copy in copies
            if any(copy.steps.get("dynamo", {}).values())
        },
    }  # fmt: skip
    for way, group in groups.items():
        against = groups.get("bare", []) if way == "bare again" else bare
        if way != "bare" and against:
            result[f"{way} against bare"] = {key: ratio(group, against, key) for key in _TIMES}
    if program == "paced" and bare:
        middle = statistics.median(ns for copy in bare for ns in copy.steps["extra"])
        result["bare_us"] = round(middle / 1e3, 2)
        result["added_us"] = {
            way: added(sorted(ns - middle for copy in group for ns in copy.steps["extra"]))
            for way, group in groups.items()
        }
    return result


def added(ordered: Sequence[float]) -> dict[str, Any]:
    """Sum up what was added to each read."""

    def at(share: float) -> float:
        return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1e3, 1)

    return {
        "p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0), "n": len(ordered),
        "over_100_us": sum(ns > 100_000 for ns in ordered),
    }  # fmt: skip


def per_step(copy: Copy, key: str) -> float:
    return round(copy.steps[key] / copy.steps["steps"], 4)


def means(group: Sequence[Copy], key: str) -> float:
    return round(statistics.mean(per_step(copy, key) for copy in group), 3)


def ratio(group: Sequence[Copy], bare: Sequence[Copy], key: str) -> dict[str, Any]:
    """Return the ratio of the sums, with the 95 % interval that the differences of single slices give (Student's t).

    Each slice is held against the mean of the bare slices that ran beside it.
    """
    pairs = []
    for copy in group:
        beside = [other.slices for other in bare if other.number == copy.number]
        for slices in zip(copy.slices, *beside, strict=False):
            one, *others = (part[key] / part["steps"] for part in slices)
            if others:
                pairs.append((one, statistics.mean(others)))
    if not pairs:
        return {"ratio": None, "slices": 0}
    middle = statistics.mean(without for _, without in pairs)
    added = [one - without for one, without in pairs]
    result: dict[str, Any] = {"ratio": round(1 + statistics.mean(added) / middle, 4), "slices": len(pairs)}
    if len(pairs) >= 3:
        wide = student(len(pairs) - 1) * statistics.stdev(added) / math.sqrt(len(pairs)) / middle
        result["interval"] = [round(result["ratio"] - wide, 4), round(result["ratio"] + wide, 4)]
    return result


def student(freedom: float) -> float:
    """Return the quantile of Student's t that leaves 2.5 % on each side (Hill's series; within 2 % from 2 on)."""
    z = statistics.NormalDist().inv_cdf(_LIKELY)
    v = max(freedom, 1.0)
    return (
        z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )  # fmt: skip


_SHOWN = (
    "ms_a_step", "cpu_ms_a_step", "first_20_steps_ms", "dynamo", "bare_us",
    "added_us", "failed",
)  # fmt: skip


def tell(result: dict[str, Any]) -> None:
    print(f"\n== {result['program']}: {result['took_s']} s {result.get('stopped', '')} {result.get('error', '')}")
    if not result["watched_as_meant"]:
        print("  WRONG: a copy was watched that should not have been, or the other way round")
    for key in _SHOWN:
        if result.get(key):
            print(f"  {key}: {result[key]}")
    for key, row in result.items():
        if key.endswith("against bare"):
            print(f"  {key}: { {name: [part['ratio'], part.get('interval')] for name, part in row.items()} }")
    for name, row in result["copies"].items():
        if row.get("notes") or row["recompiles"] or row["exit"]:
            print(f"  {name}: exit {row['exit']}, recompiles {row['recompiles']}, {row.get('notes', '')}")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="measure what the default costs training programs")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "."), "overhead_default.json"))
    parser.add_argument("--only", default=",".join(WATCHED), help=f"of {', '.join(WATCHED)}; all by default")
    parser.add_argument("--without", default="", help="copies to leave out: bare again, driver alone, ...")
    parser.add_argument("--steps", type=int, default=200, help="of each copy, after the first 20 (default 200)")
    parser.add_argument("--slices", type=int, default=8, help="turns in which those are made (default 8)")
    parser.add_argument("--copies", type=int, default=4, help="processes of each way to start it (default 4)")
    parser.add_argument("--seconds", type=float, default=500.0, help="for everything (default 500)")
    parser.add_argument("--simulate", action="store_true", help="on the simulated device, with small sizes")
    options = parser.parse_args()
    options.without = options.without.split(",")
    programs = options.only.split(",")
    if unknown := [name for name in programs if name not in WATCHED]:
        parser.error(f"--only: no program {unknown[0]!r}; there are {', '.join(WATCHED)}")
    ends = time.monotonic() + options.seconds
    from tests.gpu.explore import environment

    content: dict[str, Any] = {
        **environment(), "simulated": options.simulate, "cpus": os.cpu_count(), "first": _FIRST, "programs": {}
    }  # fmt: skip
    out = options.out.resolve()
    failed = 0
    for index, program in enumerate(programs):
        left = ends - time.monotonic()
        if left < 15:
            content["programs"][program] = {"error": "not reached in the time that was allowed"}
            continue
        try:
            result = run_program(program, options, left / max(len(programs) - index, 1) * 1.3)
        except Exception as error:  # the other programs' figures do not depend on it
            failed += 1
            content["programs"][program] = {"error": repr(error)}
            print(f"{program}: {error!r}", flush=True)
            continue
        failed += "error" in result
        content["programs"][program] = result
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        tell(result)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
