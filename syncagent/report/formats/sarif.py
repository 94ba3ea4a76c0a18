"""The report as SARIF 2.1.0, for code scanning: a rule for each kind of sync, a result for each site."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote

from syncagent._version import __version__
from syncagent.events import CallSite, SyncKind
from syncagent.report import origins, wording
from syncagent.report.model import Report, RunInfo, SiteRow
from syncagent.sites import line_key

_RULES = {
    SyncKind.DYNAMIC_SHAPE: ("DynamicShape", "The size of the result depends on values on the GPU."),
    SyncKind.SCALAR_READ: ("ScalarRead", "Python needs a value that is on the GPU."),
    SyncKind.COPY_D2H: ("CopyToHost", "The host waits for a copy from the GPU."),
    SyncKind.COPY_H2D: ("CopyToDevice", "The host waits for a copy to the GPU."),
    SyncKind.CHECK: ("Check", "An error flag or an argument check reads values from the GPU."),
    SyncKind.EXPLICIT: ("Explicit", "The program asks to wait for the GPU."),
    SyncKind.COLLECTIVE: ("Collective", "torch.distributed waits for the GPU, and so for the other ranks."),
    SyncKind.ALLOCATOR: ("Allocator", "The driver waits before it takes or gives memory."),
    SyncKind.OTHER: ("Other", "The host waits for the GPU for a reason that is not classified."),
}


def render(report: Report) -> str:
    """The log, indented."""
    return json.dumps(log(report), indent=1) + "\n"


def log(report: Report) -> dict[str, Any]:
    """The SARIF log as JSON values.

    Files below the run's working directory are relative to ``%SRCROOT%``, so that a service can match them to a
    checkout.  Allowed sites are suppressed results; a site whose line is not known has no location.
    """
    run = report.run
    roots = {"originalUriBaseIds": {"%SRCROOT%": {"uri": f"file://{quote(run.cwd.rstrip('/'))}/"}}} if run.cwd else {}
    driver = {"name": "syncagent", "version": __version__, "rules": [_rule(kind) for kind in SyncKind]}
    arguments = [wording.clean(value) for value in run.argv]
    facts = {"simulated": run.simulated, "modelled": run.modelled, "steps": run.steps, "dropped": report.dropped}
    whole: dict[str, Any] = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True, "startTimeUtc": run.started, "arguments": arguments}],
        **roots,
        "columnKind": "unicodeCodePoints",
        "results": [_result(report, site) for site in report.sites],
        "properties": {**facts, origins.KEY: origins.of_run(run).to_dict()},
    }
    return {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [whole]}


def _rule(kind: SyncKind) -> dict[str, Any]:
    name, text = _RULES[kind]
    return {
        "id": f"syncagent/{kind.value}",
        "name": name,
        "shortDescription": {"text": text},
        "defaultConfiguration": {"level": "warning"},
    }


def _result(report: Report, site: SiteRow) -> dict[str, Any]:
    kind = SyncKind(site.kind) if site.kind in set(SyncKind) else SyncKind.OTHER
    rate = "" if site.per_step is None else f", {wording.per_step(site.per_step)} per step"
    stalled, syncs = wording.duration(site.stall_ms), wording.plural(site.count, "sync")
    times = wording.times_are(report.run, "the CPU's")
    sentences = [
        f"{site.op} stalled the host for {stalled} in {syncs}{rate} ({wording.phases(site)}).",
        f"The device was simulated: times are {times}." if report.run.simulated else "",
        f"What to do: {site.advice}." if site.advice else "",
    ]
    result: dict[str, Any] = {
        "ruleId": f"syncagent/{kind.value}",
        "ruleIndex": list(SyncKind).index(kind),
        "level": "note" if site.allowed else "warning",
        "message": {"text": wording.clean(" ".join(filter(None, sentences)))},
        "locations": [_location(site, report.run.cwd)] if site.file else [],
        # Lines move; the text of the line in its function stays, so a service knows a site again.
        "partialFingerprints": {"syncagentSite/v2": _fingerprint(site, report.run)},
        "properties": {
            "count": site.count, "per_step": site.per_step, "stall_ms": site.stall_ms, "share": report.share(site),
            "gain_ms": site.gain_ms, "sampled": site.sampled, "advice": site.advice_kind,
        },
    }  # fmt: skip
    lines = {
        1: (site.forward, "the forward line that made this backward node"),
        2: (site.library, "the library's own line"),
    }
    related = [
        {"id": index, "message": {"text": text}, **_location(line, report.run.cwd)}
        for index, (line, text) in lines.items()
        if line and line.file
    ]
    frames = [{"location": _location(frame, report.run.cwd)} for frame in site.stack if frame.file]
    optional = {
        "relatedLocations": related,
        "stacks": site.stack and [{"message": {"text": "the stack of the longest sync"}, "frames": frames}],
        "suppressions": site.allowed and [{"kind": "external", "justification": wording.clean(site.allowed)}],
    }
    return result | {name: value for name, value in optional.items() if value}


def _location(line: CallSite | SiteRow, cwd: str) -> dict[str, Any]:
    file = line.file
    inside = bool(cwd) and file.startswith(cwd.rstrip("/") + "/")
    artifact = {"uri": quote(file.removeprefix(cwd.rstrip("/") + "/") if inside else file)}
    if inside:
        artifact["uriBaseId"] = "%SRCROOT%"
    elif file.startswith("/"):
        artifact["uri"] = f"file://{artifact['uri']}"
    place: dict[str, Any] = {"artifactLocation": artifact}
    if line.line:
        place["region"] = {"startLine": line.line}
        if (span := line.span) is not None:  # columns count from 1 there, and the last is the one after
            columns = {"startColumn": span.column + 1, "endLine": span.end_line, "endColumn": span.end_column + 1}
            place["region"] |= columns
        if line.source:
            place["region"]["snippet"] = {"text": wording.clean(line.source)}
    location: dict[str, Any] = {"physicalLocation": place}
    if line.function:
        location["logicalLocations"] = [{"name": line.function, "kind": "function"}]
    return location


def _fingerprint(site: SiteRow, run: RunInfo) -> str:
    """The site's key, as in :mod:`syncagent.sites`."""
    key = site.key(lambda line: line_key(line, run.project or run.folder or run.cwd, cwd=run.cwd))
    parts = (key.kind, *(part for line in (key.user, key.library, key.forward) for part in line or ("", "", "")))
    return hashlib.sha256("\0".join(parts).encode(errors="backslashreplace")).hexdigest()[:32]
