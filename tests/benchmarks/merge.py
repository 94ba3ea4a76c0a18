"""How long `syncagent report DIR` takes for the reports or captures of many ranks, and how much memory.

python tests/benchmarks/merge.py [--ranks 16 64 256 1024] [--kinds reports captures] [--data DIR] [--result FILE.json]

Each rank has 300 sites, 10,000 syncs and 1,000 steps on its time line (``tests/many_ranks.py``).  The command runs in a
process of its own that may use two cores, with DuckDB and, up to 64 ranks, without.  Where other programs use these
cores as well, the seconds that it has computed say more than those that have passed: both are given, and the load of
the machine.  The files of 1,024 ranks take 2 GB in DIR, which stays; by default it is a temporary folder.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import many_ranks

_CORES = 2
_MOST_ALONE = 64
_COMMAND = """
import sys
if sys.argv.pop(1) == "alone":
    sys.modules["duckdb"] = None
from syncagent.cli import main
sys.exit(main(sys.argv[1:]))
"""


def measured(*words: str, engine: bool = True) -> dict[str, float]:
    """Run the command; its seconds, passed and computed, and the most memory that it had."""
    began = time.perf_counter()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", _COMMAND, "engine" if engine else "alone", *words],
        {**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"the command failed: syncagent {' '.join(words)}")
    return {
        "passed_s": round(time.perf_counter() - began, 1),
        "computed_s": round(usage.ru_utime + usage.ru_stime, 1),
        "most_mb": round(usage.ru_maxrss / 1024),
        "load": round(os.getloadavg()[0], 1),
    }


def rows_of(kind: str, sizes: list[int], data: Path) -> list[dict[str, Any]]:
    folder = data / kind
    folder.mkdir(exist_ok=True)
    suffix = "jsonl" if kind == "captures" else "json"
    most = max(sizes)
    if len(list(folder.glob(f"*.{suffix}"))) < most:
        many_ranks.write(folder, most, captures=kind == "captures")
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=data) as part:
            for rank in range(size):
                os.link(folder / f"rank{rank}.{suffix}", Path(part, f"rank{rank}.{suffix}"))
            merged = Path(part, "merged")
            merged.mkdir()
            for engine in (True, False) if size <= _MOST_ALONE else (True,):
                row = {"kind": kind, "ranks": size, "engine": "DuckDB" if engine else None}
                row |= measured("report", part, "--output", f"{merged}/x.json", engine=engine)
                row["merged_mb"] = round((merged / "x.json").stat().st_size / 1e6, 1)
                rows.append(row)
                print(json.dumps(row), flush=True)
            measured("report", f"{merged}/x.json", "--output", f"{merged}/x.html")
            rows[-1]["page_mb"] = round((merged / "x.html").stat().st_size / 1e6, 2)
            print(f"its page has {rows[-1]['page_mb']} MB", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--kinds", nargs="+", default=["reports", "captures"], choices=["reports", "captures"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind in options.kinds:
            rows += rows_of(kind, options.ranks, options.data or Path(temporary))
    if options.result:
        known = json.loads(options.result.read_text()) if options.result.exists() else {"rows": []}
        others = [row for row in known["rows"] if row["kind"] not in options.kinds]
        result = {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "duckdb": importlib.metadata.version("duckdb"),
            "cores": _CORES,
            "rows": [*others, *rows],
        }
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
