"""The result of a check as JUnit XML, which CI services show as tests: one for each site that waits."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from syncagent.report import wording
from syncagent.report.compare import Change, Comparison
from syncagent.report.compared import text, words

_NAME = "syncagent check"


def render(comparison: Comparison) -> str:
    """A suite with a test for each site: findings fail, and sites that are not judged are skipped.

    The names hold no line numbers, so that a service knows a test again when code moves.  A run without a site has one
    test, since some services take a suite without any for a mistake.
    """
    findings = {id(change) for change in comparison.findings()}
    changes = [change for change in comparison.changes if change.new is not None]
    suite = ET.Element("testsuite", _legal({"name": _NAME}))
    names: dict[tuple[str, str], int] = {}
    for change in changes:
        case = _case(suite, change, names)
        if id(change) in findings:
            said = {"message": f"{_what(change)}: {words.before_and_after(change, comparison.simulated)}"}
            failure = ET.SubElement(case, "failure", _legal(said | {"type": change.verdict}))
            failure.text = _char_data(text.render_changes([change], comparison.simulated))
        elif change.verdict in {"new", "grown"} and change.new is not None and change.new.unjudged is not None:
            ET.SubElement(case, "skipped", _legal({"message": change.new.unjudged}))
    if not changes:
        ET.SubElement(suite, "testcase", _legal({"classname": _NAME, "name": "no host sync"}))
    counts = {
        "tests": max(len(changes), 1), "failures": len(findings), "errors": 0,
        "skipped": len(suite.findall("testcase/skipped")), "time": 0,
    }  # fmt: skip
    suite.attrib |= _legal(counts)
    suites = ET.Element("testsuites", _legal({"name": _NAME} | counts))
    suites.append(suite)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _case(suite: ET.Element, change: Change, names: dict[tuple[str, str], int]) -> ET.Element:
    """A test; of several with one name, the second gets a number."""
    file = wording.clean(change.file) or "(line unknown)"
    function = wording.function(change.function)
    waits = wording.clean(change.source) or wording.named(change.api, change.op)
    inside = f" (library {wording.clean(change.library.partition(': ')[2])})" if change.library else ""
    name = f"{waits}{f' in {function}' if function else ''}{inside}"
    names[file, name] = number = names.get((file, name), 0) + 1
    name = f"{name} [{number}]" if number > 1 else name
    attributes: dict[str, Any] = {"classname": file, "name": name}
    if change.file:
        attributes |= {"file": file, "line": change.latest.line}
    return ET.SubElement(suite, "testcase", _legal(attributes))


def _what(change: Change) -> str:
    return "not in the baseline" if change.old is None else "waits more often than in the baseline"


def _legal(values: dict[str, Any]) -> dict[str, str]:
    return {name: _char_data(str(value)) for name, value in values.items()}


def _char_data(words: str) -> str:
    """Characters that XML has no way to write, as escapes."""
    return "".join(char if _is_legal(ord(char)) else ascii(char)[1:-1] for char in words)


def _is_legal(code: int) -> bool:
    in_plane = 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or 0x10000 <= code <= 0x10FFFF
    return in_plane or code in {0x9, 0xA, 0xD}
