"""A line's whole statement, read from the file of the code that runs."""

from __future__ import annotations

import linecache

import pytest

from syncagent.attribution.statements import statement_at, statements_of

SOURCE = '''\
import os


class Trainer:
    @staticmethod
    def step(loss, log):
        """Text with a ( in it."""
        if loss.item() > 0:  # a comment
            log(
                "loss",
                loss.item(),  # another
                f"{loss.item():.3f} # no comment",
            )
        elif loss.max():
            return [x.item()
                    for x in loss]
        text = """one
two"""; loss.item()
        total = \\
            loss.item()
        return max((loss, log), key=lambda x:
                   x.item())


def short(x): return x.item()


value = short(
    1
)
'''


LOG = """\
log(
                "loss",
                loss.item(),
                f"{loss.item():.3f} # no comment",
            )"""


@pytest.fixture
def codes(tmp_path):
    """The code objects of the file by name, the innermost of that name."""
    file = tmp_path / "train.py"
    file.write_text(SOURCE)
    linecache.checkcache()
    found = {}

    def visit(code):
        found[code.co_name] = code
        for inner in code.co_consts:
            if hasattr(inner, "co_name"):
                visit(inner)

    visit(compile(SOURCE, str(file), "exec"))
    return found


@pytest.mark.parametrize(
    ("name", "line", "text"),
    [
        ("step", 8, "if loss.item() > 0:"),
        ("step", 11, LOG),
        ("step", 14, "elif loss.max():"),
        ("step", 15, "return [x.item()\n                    for x in loss]"),
        ("step", 18, 'text = """one\ntwo"""; loss.item()'),
        ("step", 20, "total = \\\n            loss.item()"),
        ("<lambda>", 22, "return max((loss, log), key=lambda x:\n                   x.item())"),
        ("short", 25, "def short(x): return x.item()"),
        ("<module>", 29, "value = short(\n    1\n)"),
    ],
)  # fmt: skip
def test_the_statement_of_a_line_is_whole_and_has_no_comment_and_no_body(codes, name, line, text):
    """Simple statements, heads of compound ones, code in the middle of a statement, and the module's own."""
    assert statement_at(codes[name], line).text == text


def test_a_functions_statements_are_its_own(codes):
    """Not those before it, and not those that follow it."""
    texts = [found.text for found in statements_of(codes["step"])]
    assert texts[:2] == ["@staticmethod", "def step(loss, log):"]
    assert texts[-1].startswith("return max(")
    assert [found.text for found in statements_of(codes["short"])] == ["def short(x): return x.item()"]


def test_without_the_source_there_is_none():
    """Code made by ``exec``, and a file that is not Python any more."""
    assert statement_at(compile("x = 1", "<string>", "exec"), 1) is None
    assert statement_at(compile("x = 1", "/no/such/file.py", "exec"), 1) is None


def test_a_file_that_linecache_has_read_again_is_read_again(codes, tmp_path):
    """As notebooks and reloaders do it."""
    assert statement_at(codes["short"], 25)
    (tmp_path / "train.py").write_text("\n" * 24 + "def short(x): return x.max()\n")
    linecache.checkcache()
    assert statement_at(codes["short"], 25).text == "def short(x): return x.max()"
