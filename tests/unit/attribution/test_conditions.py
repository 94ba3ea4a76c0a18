"""What a statement tests, found from the position that Python gives the test: that of the whole statement."""

from __future__ import annotations

import linecache
import sys

import pytest

from syncagent.attribution.callsite import CallSites

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python knows the line alone")

SOURCE = """\
def branches(x, log):
    if x > 1:
        log(
            x)
    elif not x:
        log(x)
    while x.any():
        break
    assert x.all(), "message"
    y = 1 if x else 2
    é = [not x, (
        2 if x.max() else 3)]
    if (
        x
    ):
        log(y, é)
    if y and x.sum():
        log(x)
"""


class Value:
    """Remembers where it was tested, as a sync is: by code and instruction."""

    def __init__(self, answer=True, points=None):
        self.answer, self.points = answer, points if points is not None else []

    def __bool__(self):
        frame = sys._getframe(1)
        self.points.append((frame.f_code, frame.f_lasti))
        return self.answer

    def __gt__(self, _other):
        return Value(False, self.points)

    def _result(self):
        return Value(True, self.points)

    any = all = max = sum = _result


def test_it_is_the_condition_and_not_the_statement_with_its_body(tmp_path):
    """The instruction that tests a value has the position of the ``if``, up to the end of its body."""
    file = tmp_path / "branches.py"
    file.write_text(SOURCE, encoding="utf-8")
    linecache.checkcache(str(file))
    found = {}
    exec(compile(SOURCE, str(file), "exec"), found)
    value = Value()
    found["branches"](value, print)
    lines = SOURCE.splitlines()
    sites = [CallSites().resolve(point) for point in value.points]
    shown = [
        (site.line, lines[site.line - 1][site.span.column : site.span.end_column] if site.span else None)
        for site in sites
    ]
    assert shown[:4] == [(2, "x > 1"), (5, "x"), (7, "x.any()"), (9, "x.all()")]
    assert (10, "x") in shown
    assert (12, "x.max()") in shown
    assert (17, "y and x.sum()") in shown
    assert [text for line, text in shown if line == 13] == [None]  # it begins on another line
