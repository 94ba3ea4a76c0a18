"""Other people's training loops, unmodified, under ``SYNCAGENT=1``; and the driver's own word on the same programs.

    python tests/gpu/real_programs.py --out DIR [--only NAME]

Writes ``real_programs.json``, and for each program and detail the report and what was printed (the table).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAMS = _ROOT / "tests/gpu/programs"
_SCRIPTS = ("transformers_trainer", "lightning_loop")
_LIMIT_S = 180
_TOP = 12


def run(words: list[str], text: Path, **settings: str) -> dict[str, Any]:
    """Run a command with its output saved as text; settings are environment variables."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCAGENT")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "160", **settings}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        code, out, err = -1, _decode(error.stdout), _decode(error.stderr)
    took = time.perf_counter() - began
    # A progress bar writes one line over and over: the last state of each is what stays.
    lines = [line.rpartition("\r")[2] for line in f"{out}\n--- stderr ---\n{err}".splitlines()]
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result: dict[str, Any] = {"rc": code, "wall_s": round(took, 2)}
    if code:
        result["tail"] = lines[-15:]
    return result


def _decode(text: bytes | str | None) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text or ""


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {"unreadable": repr(error)}


def watched(script: Path, out: Path, detail: str) -> dict[str, Any]:
    """One run under the agent, as a user makes it."""
    report = out / f"{script.stem}_{detail}.report.json"
    result = run(
        ["-m", "syncagent", "run", str(script)], out / f"{script.stem}_{detail}.txt", SYNCAGENT="1",
        SYNCAGENT_DETAIL=detail, SYNCAGENT_REPORT=str(report), SYNCAGENT_COPIES="all", SYNCAGENT_JOURNAL="off",
    )  # fmt: skip
    content = read(report)
    for key in ("run", "sensors", "overhead", "totals", "dropped", "notes", "unreadable"):
        if key in content:
            result[key] = content[key]
    wanted = ("op", "kind", "file", "line", "source", "phase", "count", "stall_ms", "library", "forward")
    sites = sorted(content.get("sites", []), key=lambda site: -site["stall_ms"])
    result["sites"] = len(sites)
    result["top"] = [{key: site.get(key) for key in wanted} for site in sites[:_TOP]]
    return result


def held_against_cupti(script: Path, out: Path, *extra: str) -> dict[str, Any]:
    """One run under CUPTI, with the agent or without."""
    name = f"{script.stem}_cupti" + "".join(word.strip("-") for word in extra[:1])
    found = out / f"{name}.json"
    words = [str(_PROGRAMS / "under_cupti.py"), "--out", str(found), *extra, str(script)]
    result = run(words, out / f"{name}.txt", SYNCAGENT_JOURNAL="off")
    result.update(read(found))
    found.unlink(missing_ok=True)  # all of it is in the results
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="two real training programs under the agent and under CUPTI")
    parser.add_argument("--out", type=Path, required=True, help="an existing or new folder")
    parser.add_argument("--only", help="only programs whose name holds this text")
    parser.add_argument("--detail", choices=("ops", "syncs"), default="ops", help="of the run with both (default ops)")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    programs: dict[str, Any] = {}
    for name in _SCRIPTS:
        if options.only and options.only not in name:
            continue
        script = _PROGRAMS / f"{name}.py"
        found = programs[name] = {}
        parts = {
            "bare": lambda s=script: run([str(s)], out / f"{s.stem}_bare.txt"),
            "ops": lambda s=script: watched(s, out, "ops"),
            "syncs": lambda s=script: watched(s, out, "syncs"),
            "cupti": lambda s=script: held_against_cupti(s, out),
            "cupti_and_agent": lambda s=script: held_against_cupti(s, out, "--agent", "--detail", options.detail),
        }
        for part, make in parts.items():
            try:
                found[part] = make()
            except Exception as error:
                found[part] = {"error": repr(error)}
            (out / "real_programs.json").write_text(json.dumps(programs, indent=1) + "\n", encoding="utf-8")
            tell(name, part, found[part])
    return 0


def tell(name: str, part: str, result: dict[str, Any]) -> None:
    """Print what a person wants to know first."""
    print(f"== {name} {part}: rc {result.get('rc')}, {result.get('wall_s')} s {result.get('totals', '')}", flush=True)
    for line in result.get("tail", []):
        print("   ", line)
    if result.get("error"):
        print("   ", result["error"])
    for site in result.get("top", []):
        print(f"  {site['stall_ms']:10.3f} ms {site['count']:6d}x {site['op']} {site['file']}:{site['line']}")
    for call, row in result.get("waiting_calls", {}).items():
        print(f"  driver {call}: {row}")
    found = result.get("match")
    if found:
        print("  ", {key: value for key, value in found.items() if not isinstance(value, list)})
        for site in found["top_sites"]:
            print("  ", site)
        for wait in found["unmatched_list"][:10]:
            print("   unmatched", wait)


if __name__ == "__main__":
    sys.exit(main())
