"""The tables of what the driver's own waits see, how exact they are, and what the default costs; see tables.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["MAKERS"]

RESULTS = Path(__file__).with_name("results")


def result_of(script: str) -> dict[str, Any] | str:
    """Return a script's result; the sentence to show where there is none."""
    file = RESULTS / f"{script}.json"
    if not file.exists():
        return f"Not measured yet: `python tests/gpu/{script}.py --out FILE`."
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def signed(script: str, found: dict[str, Any]) -> str:
    """Say what a result was made with, and how."""
    made = f"{found['gpu']}, torch {found['torch']}, Python {found['python']}, {found['date'][:10]}"
    return f"\n\n{made}. `python tests/gpu/{script}.py --out FILE`."


def blocking() -> str:
    found = result_of("blocking_functions")
    if isinstance(found, str):
        return found
    rows = [
        "| function of the CUDA runtime | calls | longer than 1 ms | waited | for example |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["functions"].items():
        if row["over_1ms"]:
            example = (row["for"] or row["slow_in"])[0].replace("|", "\\|")
            rows.append(f"| `{name}` | {row['count']:,} | {row['over_1ms']} | {row['waited']} | `{example}` |")
    groups = found["groups"].values()
    tried, waited = sum(group["cases"] for group in groups), sum(group["waited"] for group in groups)
    return "\n".join(rows) + (
        f"\n\n{tried:,} calls, each behind a sleeping GPU; {waited} waited for it, "
        f"{len(found['waited_unexplained']) or 'none'} of them without a function that did."
        f"{signed('blocking_functions', found)}"
    )


def stalls() -> str:
    found = result_of("driver_accuracy")
    if isinstance(found, str):
        return found
    if "stalls" not in found:
        return "Not measured yet: `python tests/gpu/driver_accuracy.py --parts stalls --out FILE`."
    part = found["stalls"]
    rows = ["| stall against CUPTI | calls | median | p90 | p99 | largest |", "|---|---|---|---|---|---|"]
    for title, key in (("calls that wait", "error_us"), ("inside cuSOLVER", "error_us_cusolver")):
        row = part[key]
        if row["cases"]:
            times = " | ".join(f"{row[name]:,.1f} µs" for name in ("median", "p90", "p99", "max"))
            rows.append(f"| {title} | {row['cases']} | {times} |")
            each = row.get("per_sync")
            if each:
                times = " | ".join(f"{each[name]:,.1f} µs" for name in ("p50", "p90", "p99", "p100"))
                rows.append(f"| {title}: for each sync | {each['count']} | {times} |")
    return "\n".join(rows) + (
        f"\n\n{len(part['seen_as_waiting']) or 'None'} of {part['quiet_calls']:,} calls that do not wait were reported."
        f"{signed('driver_accuracy', found)}"
    )


def lines() -> str:
    found = result_of("driver_accuracy")
    if isinstance(found, str):
        return found
    if "lines" not in found:
        return "Not measured yet: `python tests/gpu/driver_accuracy.py --parts lines --out FILE`."
    rows = ["| program | wait time looked at | right line | wrong line | no line |", "|---|---|---|---|---|"]
    for name, row in found["lines"].items():
        part = row.get("auto", {}).get("driver")
        if part is None:
            why = "failed" if "error" in row else "no wait that had to be looked at"
            rows.append(f"| {name} | {why} | | | |")
        else:
            shares = " | ".join(f"{part.get(key, 0.0):.2%}" for key in ("right", "wrong", "no line"))
            rows.append(f"| {name} | {part['wait_ms']:,.0f} ms | {shares} |")
    for title, part in found["line_shares"].items():
        shares = " | ".join(f"**{part.get(key, 0.0):.2%}**" for key in ("right", "wrong", "no line"))
        rows.append(f"| **all that are {title}** | {part['wait_ms']:,.0f} ms | {shares} |")
    return "\n".join(rows) + (
        "\n\nShares of time. The truth is `sys.monitoring`'s account of the line that each thread stood on."
        f"{signed('driver_accuracy', found)}"
    )


def beyond() -> str:
    found = result_of("beyond_aten")
    if isinstance(found, str):
        return found
    families: dict[str, list[dict[str, Any]]] = {}
    for row in found["cases"].values():
        if row["blocks"]:
            families.setdefault(row["family"], []).append(row)
    rows = ["| calls that wait | | seen by default | with the line | seen under `syncs` |", "|---|---|---|---|---|"]
    for family, cases in families.items():
        auto, syncs = ([row.get(which, {}) for row in cases] for which in ("auto", "syncs"))
        seen = [part for part in auto if part.get("seen")]
        placed, named = sum(part["line"] for part in seen), sum(bool(part.get("seen")) for part in syncs)
        rows.append(f"| {family} | {len(cases)} | {len(seen)} | {placed} | {named} |")
    unseen = found["totals"]["auto"]["unseen"]
    listed = "\n".join(f"- `{name}`: {why or 'the reason is not known'}" for name, why in unseen.items())
    return (
        "\n".join(rows) + (f"\n\nUnseen by default:\n\n{listed}" if listed else "") + signed("beyond_aten", found)
    )  # fmt: skip


PROGRAMS = {
    "trainer": "transformers Trainer, GPT-2, 6 layers of 512, bf16",
    "resnet": "timm resnet50, fp16 AMP, DataLoader",
    "bert": "BERT, 6 layers of 256, own loop",
    "compiled": "the same under torch.compile", "fsdp2": "the same under FSDP2",
    "ddp": "the same under DDP", "host-bound": "a step of many small ops, host-bound",
}  # fmt: skip


def default() -> str:
    found = result_of("overhead_default")
    if isinstance(found, str):
        return found
    rows = [
        "| program | without | by default | CPU time of the training thread | without, against itself |",
        "|---|---|---|---|---|",
    ]
    for name, title in PROGRAMS.items():
        row = found["programs"].get(name, {})
        if "default against bare" not in row:
            continue
        watched, itself = row["default against bare"], row["bare again against bare"]
        rows.append(
            f"| {title} | {row['ms_a_step']['bare']:.2f} ms | {spanned(watched['wall_ms'])} | "
            f"{spanned(watched['cpu_ms'])} | {spanned(itself['wall_ms'])} |"
        )
    steps = [found["programs"][name]["steps"] for name in PROGRAMS if found["programs"].get(name, {}).get("steps")]
    counts = " to ".join(str(count) for count in sorted({min(steps), max(steps)}))
    text = "\n".join(rows) + (
        f"\n\nTime of {counts} steps after the first 20, times that of the program without the agent, with 95 % "
        "interval over processes that ran in turn."
    )
    ddp = found["programs"].get("ddp", {})
    if "without collectives against bare" in ddp:
        said = spanned(ddp["without collectives against bare"]["wall_ms"])
        text += (
            f" DDP on two GPUs, where [the waits for collectives](ranks.md#which-rank-holds-the-others-up) are "
            f"measured as well; without that, {said}. Its row is of {ddp['date'][:10]}."
        )
    again = {name: row["dynamo"] for name, row in found["programs"].items() if row.get("dynamo")}
    if again:
        text += f" Recompiles: {sum(after != before for pairs in again.values() for before, after in pairs.values())}."
    return text + signed("overhead_default", found)


def added() -> str:
    """What a read costs that has nothing to wait for, and what is added to a thousand reads a second."""
    text = ""
    ready = result_of("ready")
    if not isinstance(ready, str):
        more = {
            way: f"{row['median']:.0f} ns ({row['low']:.0f} to {row['high']:.0f})"
            for way, row in ready["more_ns"].items()
        }
        text = (
            f"`.item()` of a value that is there already takes {more['default']} more by default, "
            f"{more['driver alone']} with the driver's waits alone, and {more['without, again']} where nothing "
            f"watches: medians, with 95 % intervals, in one process, against {ready['bare_ns'] / 1e3:.1f} µs."
        ) + signed("ready", ready).replace("\n\n", " ")
    found = result_of("overhead_default")
    paced = {} if isinstance(found, str) else found["programs"].get("paced", {})
    if "added_us" in paced:
        times, bare = (
            ", ".join(f"{key} {paced['added_us'][way][key]:,.0f} µs" for key in ("p50", "p99", "p99.9"))
            for way in ("default", "bare again")
        )
        text += f"\n\nAt a thousand reads a second {times} are added; without the agent {bare}."
        text += signed("overhead_default", found).replace("\n\n", " ")
    return text


def spanned(row: dict[str, Any]) -> str:
    low, high = row.get("interval", (row["ratio"], row["ratio"]))
    return f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"


MAKERS = {
    "driverblocking": blocking, "driverstalls": stalls, "driverlines": lines, "beyondaten": beyond,
    "defaultcost": default, "defaultadded": added,
}  # fmt: skip
