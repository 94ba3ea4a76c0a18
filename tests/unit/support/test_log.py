"""The agent's messages."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
import structlog

from syncagent.support import log
from syncagent.support.log import get_logger, log_once


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("SYNCAGENT_LOG_LEVEL", raising=False)
    monkeypatch.delenv("SYNCAGENT_LOG_FORMAT", raising=False)
    monkeypatch.setattr(log, "_said", set())
    get_logger.cache_clear()
    yield
    get_logger.cache_clear()


def test_a_line_for_people(capsys):
    get_logger().warning("no GPU", device="cuda:0", path="/a b", empty="", text='say "hi"\n', n=3)
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"\[syncagent\] \d\d:\d\d:\d\d warning  no GPU device=cuda:0 "
        r'path="/a b" empty="" text="say \\"hi\\"\\n" n=3\n',
        line,
    )


def test_a_line_for_machines(capsys, monkeypatch):
    monkeypatch.setenv("SYNCAGENT_LOG_FORMAT", "json")
    get_logger().error("lost", spans=3, what=object)
    entry = json.loads(capsys.readouterr().err)
    assert (entry["logger"], entry["level"], entry["message"], entry["spans"]) == ("syncagent", "error", "lost", 3)
    assert entry["what"] == "<class 'object'>"


def test_the_level_can_be_set(capsys, monkeypatch):
    get_logger().debug("hidden")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("SYNCAGENT_LOG_LEVEL", "ERROR")
    get_logger.cache_clear()
    get_logger().warning("hidden")
    get_logger().error("seen")
    assert "seen" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["SYNCAGENT_LOG_LEVEL", "SYNCAGENT_LOG_FORMAT"])
def test_a_setting_that_is_not_allowed_is_reported_and_ignored(capsys, monkeypatch, variable):
    monkeypatch.setenv(variable, "loud")
    get_logger().info("hello")
    complaint, line = capsys.readouterr().err.splitlines()
    assert f"{variable}='loud' is not allowed" in complaint
    assert line.endswith("info     hello")


def test_an_exception_is_shown(capsys):
    try:
        1 / 0
    except ZeroDivisionError:
        get_logger().exception("a sink failed", sink="spans")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("error    a sink failed sink=spans")
    assert rest[-1] == "ZeroDivisionError: division by zero"


def test_once_is_once(capsys):
    assert log_once("key", "said", n=1)
    assert not log_once("key", "said", n=2)
    assert log_once("other", "also said", level="info")
    assert [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()] == [
        "warning  said n=1",
        "info     also said",
    ]


def test_the_programs_structlog_is_left_alone(capsys):
    before = structlog.get_config()
    heard = []
    structlog.configure(processors=[lambda *args: heard.append(args) or "theirs"])
    try:
        get_logger().warning("ours")
    finally:
        structlog.reset_defaults()
    assert heard == []
    assert "ours" in capsys.readouterr().err
    assert structlog.get_config() == before


def test_a_stderr_that_is_gone_does_no_harm(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stderr in (None, closed):
        monkeypatch.setattr(sys, "stderr", stderr)
        get_logger().error("unheard")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_has_neither_terminal_escapes_nor_secrets(capsys, monkeypatch, form):
    """Whether they are in the message, in a value or in an exception; the lines of an exception stay lines."""
    monkeypatch.setenv("SYNCAGENT_LOG_FORMAT", form)
    odd = "\x1b[31m \x9b \x7f \u202e http://me:s3cr3t@host/?token=s3cr3t"
    try:
        raise ValueError(odd)
    except ValueError:
        log.get_logger().error(f"message {odd}", value=odd, exc_info=True)
    printed = capsys.readouterr().err
    assert printed.replace("\n", "").isprintable()
    assert "s3cr3t" not in printed
    assert printed.count("http://host/?[redacted]") >= 3
    assert (printed.count("\n") > 3) == (form == "text")
