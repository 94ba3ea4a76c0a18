"""What a sync site is known by, and what is only a little changed."""

from __future__ import annotations

import pytest

from syncagent.events import CallSite
from syncagent.sites import Home, is_a_little_changed, key_of, line_key, naming, normal, pair

HERE = Home("/home/ada/proj", "/home/ada/proj/jobs", "/home/ada")
CI = Home("/ci/build", "/ci/build/jobs", "/ci/build")


def site(text="loss.item()", file="/home/ada/proj/jobs/train.py", function="step", line=3):
    return CallSite(file, line, function, text)


def key(text="loss.item()", kind="scalar_read", library=None, forward=None, **changed):
    named, _ = naming(HERE, HERE)
    return key_of(kind, site(text, **changed), library, forward, named)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("log('loss', loss.item())", 'log(\n    "loss",\n    loss.item(),\n)'),
        ("return (loss.item())", "return loss.item()"),
        ("if (loss.item() > 0):", "if loss.item()>0:"),
        ("elif loss.item():", "elif  (loss.item()):"),
        ("total = \\\n    loss.item()", "total = loss.item()  # read"),
        ("loss.item(),", "loss.item(), "),
    ],
)
def test_formatting_is_no_difference(one, other):
    """Line breaks, quotes, brackets, trailing commas, comments."""
    assert normal(one) == normal(other)
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("/home/ada/proj/jobs/train.py", "jobs/train.py"),
        ("/home/ada/proj/model.py", "model.py"),
        ("/home/ada/shared/model.py", "../shared/model.py"),
        ("/opt/shared/model.py", "/opt/shared/model.py"),
        ("proj/jobs/train.py", "jobs/train.py"),
        ("/v/lib/python3.12/site-packages/transformers/trainer.py", "transformers/trainer.py"),
        ("/usr/lib/python3.11/functools.py", "functools.py"),
        ("<stdin>", "<cell>"),
        ("/tmp/ipykernel_17/1234.py", "<cell>"),
        ("<string>", "<string>"),
    ],
)
def test_files_are_named_from_the_project_or_their_package(file, named):
    """So that another checkout, machine or Python has the same names, and other folders have others."""
    assert line_key(site(file=file), HERE.project, cwd=HERE.cwd).file == named


def test_two_runs_are_named_from_what_both_have():
    """The projects, else the scripts' folders, else, with a report of an earlier version, the working directories."""

    def names(one, other, file, there):
        named, named_there = naming(one, other)
        return named(site(file=file)).file, named_there(site(file=there)).file

    file, there = "/home/ada/proj/jobs/train.py", "/ci/build/jobs/train.py"
    assert names(HERE, CI, file, there) == ("jobs/train.py", "jobs/train.py")
    assert names(HERE, CI._replace(project=""), file, there) == ("train.py", "train.py")
    assert names(HERE, Home(cwd="/ci/build/jobs"), file, there) == ("proj/jobs/train.py", "train.py")
    assert names(HERE, Home(), file, "train.py")[1] == "train.py"


def test_a_comprehension_is_part_of_its_function():
    """Python 3.12 no longer gives it a frame of its own."""
    assert key(function="step.<locals>.<listcomp>") == key()
    assert key(function="step.<locals>.<lambda>") != key()


def test_without_a_text_the_line_decides():
    """It is all that there is, and lines that differ are not a little changed."""
    assert key("", line=1) != key("", line=2)
    assert not is_a_little_changed(key("", line=11), key("", line=12))


@pytest.mark.parametrize(
    ("was", "now", "changed"),
    [
        ("log(loss.item())", "log(loss.item(), step=step)", True),
        ("total += loss.item()", "total = total + loss.item()", True),
        ("x = loss.item()", "x: float = loss.detach().item()", True),
        ("log(loss.item())", "grad_norm = clip(model.parameters(), 1.0).item()", False),
        ("print(loss.item())", "if torch.isnan(loss):", False),
    ],
)
def test_a_little_is_most_of_the_words(was, now, changed):
    """Adding a keyword is; another statement is not."""
    assert is_a_little_changed(key(was), key(now)) is changed


def test_what_differs_in_kind_place_or_lines_is_another_site():
    """However alike the texts are."""
    library = site("float(x)", "/v/lib/python3.12/site-packages/lib/a.py")
    for other in (key(kind="check"), key(function="other"), key(file="/x.py"), key(library=library)):
        assert other != key()
        assert not is_a_little_changed(key(), other)


def test_each_old_site_serves_once_and_the_likest_has_it():
    """A line that was added beside a changed one is new."""
    old, like, less = key("log(loss.item())"), key("log(loss.item(), 1)"), key("log(loss.item(), a, b, 2)")
    assert pair([old], [less, like]) == {like: old}
