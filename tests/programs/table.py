"""The table of the programs' results, for docs/simulation.md."""

from __future__ import annotations

import statistics

from tests.programs.catalogue import EQUAL, PROGRAMS
from tests.programs.results import RESULTS, load


def programs() -> str:
    """A row for each program, and a sentence that sums them up."""
    results = load(RESULTS)
    rows = ["| program | of | what it does | numbers | times slower | sites |", "|---|---|---|---|---|---|"]
    tried = [program for program in PROGRAMS if program.name in results]
    for program in tried:
        result = results[program.name]
        numbers = "**failed**" if result.get("wrong") else "the CPU's" if program.numbers == EQUAL else program.numbers
        slow_down, sites = (result.get(key, "") for key in ("slow_down", "sites"))
        rows.append(f"| `{program.name}` | {program.package} | {program.does} | {numbers} | {slow_down} | {sites} |")
    found = [results[program.name] for program in tried]
    passed = sum(1 for result in found if not result.get("wrong"))
    equal = sum(1 for program in tried if program.numbers == EQUAL and not results[program.name].get("wrong"))
    middle = statistics.median(result["slow_down"] for result in found if "slow_down" in result)
    versions = {(result["torch"], result["python"], result["cpu"]) for result in found}
    where = "; ".join(sorted(f"torch {torch}, Python {python}, {cpu}" for torch, python, cpu in versions))
    dates = sorted({result["date"] for result in found})
    return "\n".join(rows) + (
        f"\n\n{passed} of {len(found)} pass; {equal} of them give the CPU's numbers bit for bit, and the others finite "
        f"ones that are the same in two runs. The median of the times is {middle:.1f}. {where}, one thread, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}. `nox -s programs`."
    )
