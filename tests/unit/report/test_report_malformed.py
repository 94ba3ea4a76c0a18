"""Whatever is in a file that is given as a report or baseline: it is read, or refused in one sentence with exit code 2.

Never a traceback, whose exit code 1 would say of ``check`` that there are new sites.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from training_run import whole_report

from syncagent.cli import main

quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WHOLE = whole_report().to_dict()


def places(value, path=()):
    """The path of every value in a report, the outermost first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = [path for path in places(WHOLE) if path]
ODD = st.sampled_from(
    [
        math.nan, math.inf, -math.inf, 1e308, -1e308, 10**400, -(10**400), 2**63, 2**64, -1, 0, 1, -0.0, 5e-324, 1e17,
        "", "\ud800", "\udcff.py", "\x1b[31m", "\x9b31m", "\u202e", "a" * 5000, "\x00", "x\ny\r", "nan", "2025-11-23",
        None, True, [], {}, [[]], [None], {"a": {}}, "\U0001f600",
    ]
)  # fmt: skip
GONE = object()


def changed(path, value):
    """A report with another value in one place, or without what was there."""
    report = copy.deepcopy(WHOLE)
    inner = report
    for key in path[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return report


def outcome(capsys, *words):
    """The exit code, and what was printed; checked for what may never come."""
    code = main(words)
    out, err = capsys.readouterr()
    assert code in {0, 2} or (code == 1 and words[0] == "check")
    assert "Traceback" not in err
    assert "error of syncagent's own" not in err
    if code == 2:
        assert len(err.splitlines()) == 1, err
        assert out == ""
    assert (out + err).replace("\n", "").isprintable()
    out.encode("utf-8")
    return code, out


def every_verb(capsys, file, good):
    codes = {
        outcome(capsys, *words)[0]
        for words in (
            ("report", file),
            ("report", file, "--format", "json"),
            ("report", file, "--format", "sarif"),
            ("compare", good, file),
            ("compare", file, good, "--format", "json"),
        )
    }
    for words in (("check", file, "--baseline", good), ("check", good, "--baseline", file)):
        outcome(capsys, *words)  # refuses a report that is whole and cannot tell, too
    outcome(capsys, "report", file, "--format", "trace")  # which a report without events cannot be
    codes.add(2 * (main(["report", file, "--format", "html", "--output", f"{file}.html"]) != 0))
    capsys.readouterr()
    return codes


@pytest.fixture
def good(tmp_path):
    return str(whole_report().save(tmp_path / "good.json"))


@quick
@given(path=st.sampled_from(PLACES), value=ODD | st.just(GONE))
@example(path=("totals", "stall_ms"), value=math.nan)
@example(path=("totals", "stall_ms"), value=10**400)
@example(path=("sites", 0, "stall_ms"), value=math.inf)
@example(path=("sites", 0, "count"), value=10**400)
@example(path=("sites", 0, "count"), value=-1)
@example(path=("sites", 0, "source"), value="\ud800")
@example(path=("run", "duration_s"), value=1e308)
@example(path=("schema",), value="\x1b" * 5000)
@example(path=("notes",), value=["\x1b[2J"])
def test_a_report_with_one_wrong_value_is_read_or_refused(path, value, capsys, tmp_path, good):
    """By every verb, alone and beside a good one, and all verbs agree whether it can be read."""
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(changed(path, value)))
    assert len(every_verb(capsys, str(file), good) - {1}) == 1


@quick
@given(
    content=st.binary(max_size=60)
    | st.just(b"x")
    | st.binary(max_size=30).map(json.dumps(WHOLE).encode()[:500].__add__)
)
@example(content=b"")
@example(content=b"\xef\xbb\xbf{}")
@example(content='{"schema": 1}'.encode("utf-16"))
@example(content=b'{"schema": 1, "schema": 2}')
@example(content=b"[" * 100_000)
@example(content=b'{"schema":' * 50_000)
@example(content=b'{"schema": ' + b"1" * 5000 + b"}")
@example(content=b"\x1f\x8b")
@example(content=b"\x00" * 50)
def test_a_file_of_anything_is_refused_in_one_sentence(content, capsys, tmp_path, good):
    (tmp_path / "bad.json").write_bytes(content)
    assert every_verb(capsys, str(tmp_path / "bad.json"), good) == {2}


@pytest.mark.parametrize("kind", ["pipe", "device", "huge", "directory", "unreadable name"])
def test_a_path_with_no_readable_file_is_refused_in_one_sentence(kind, capsys, tmp_path, good):
    """At once: nothing waits for the other end of a pipe."""
    path = tmp_path / "bad.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with path.open("wb") as stream:
            stream.truncate(2**31)
    elif kind == "directory":
        path.mkdir()
    else:
        path = tmp_path / ("n" * 300)
    assert every_verb(capsys, str(path), good) == {2}


def test_names_that_are_not_unicode_are_read_back_as_they_are_shown(tmp_path):
    from syncagent.report.model import Report

    path = whole_report(script="/tmp/\udcff.py").save(tmp_path / "x.json")
    assert Report.load(path).run.script == "/tmp/\\udcff.py"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_in_any_encoding_is_written(monkeypatch, good, encoding):
    """What it lacks is an escape."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    for form in ("text", "json", "html", "sarif", "trace"):
        assert main(["report", good, "--format", form]) == 0
    assert main(["compare", good, good]) == 0
    assert stream.errors == "strict"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_and_exit_code_two(monkeypatch, capsys, good):
    """And the interpreter's own last flush does not change that."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["report", good, "--format", "json"]) == 2
        assert "no space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["source", "file", "op"])
def test_a_lone_surrogate_is_no_text(tmp_path, capsys, key):
    """It cannot be printed; what the agent writes has an escape in its place."""
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(changed(("sites", 0, key), "\ud800")), encoding="utf-8")
    assert main(("check", str(path), "--baseline", str(path))) == 2
    assert f"sites[0].{key} has a lone surrogate" in capsys.readouterr().err


def test_names_of_files_that_are_not_utf_8_are_escaped_when_they_are_written(tmp_path):
    report = whole_report()
    odd = replace(report, run=replace(report.run, script="tr\udcffain.py"))
    assert type(report).load(odd.save(tmp_path / "odd.json")).run.script == "tr\\udcffain.py"
