from __future__ import annotations

import pytest
from training_run import run_info

from syncagent.report import wording


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (0, "0"),
        (0.00035, "350 ns"),
        (0.041, "41 µs"),
        (0.9994, "999 µs"),
        (0.9996, "1.0 ms"),
        (41.04, "41.0 ms"),
        (99.96, "100 ms"),
        (412.4, "412 ms"),
        (999.6, "1.00 s"),
        (59_990, "59.99 s"),
        (59_999, "1 min 0 s"),
        (123_000, "2 min 3 s"),
        (7_260_000, "2 h 1 min"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(ms, shown):
    assert wording.duration(ms) == shown


@pytest.mark.parametrize(("part", "shown"), [(0, "0.0 %"), (0.0001, "<0.1 %"), (0.1234, "12.3 %"), (1, "100.0 %")])
def test_a_share_never_seems_nothing_when_it_is_something(part, shown):
    assert wording.share(part) == shown


@pytest.mark.parametrize(
    ("rate", "shown"), [(None, wording.DASH), (0.001, "<0.01"), (0.25, "0.25"), (2, "2"), (1234.5, "1,234")]
)
def test_a_rate_has_no_needless_digits(rate, shown):
    assert wording.per_step(rate) == shown


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("/home/ada/proj/a/b.py", "a/b.py"),
        ("/home/ada/project/b.py", "/home/ada/project/b.py"),
        ("/home/ada/proj/.venv/lib/python3.12/site-packages/torch/optim/adam.py", "torch/optim/adam.py"),
        ("/usr/lib/python3/dist-packages/x.py", "x.py"),
        ("<stdin>", "<stdin>"),
        ("", ""),
    ],
)
def test_a_path_is_shown_as_people_know_it(file, shown):
    assert wording.short_path(file, "/home/ada/proj") == shown


def test_without_a_run_directory_the_present_one_counts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert wording.short_path(f"{tmp_path}/a.py") == "a.py"


def test_what_cannot_be_printed_is_escaped():
    assert wording.clean("a\x1b[0m\tb\n\u202e") == r"a\x1b[0m b\n\u202e"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Net.forward", "Net.forward"),
        ("<module>", ""),
        ("<listcomp>", ""),
        ("<cell line: 1>", ""),
        ("Net.forward.<locals>.<dictcomp>", "Net.forward"),
        ("main.<locals>.step.<locals>.<genexpr>.<listcomp>", "main.<locals>.step"),
        ("main.<locals>.<lambda>", "main.<locals>.<lambda>"),
    ],
)
def test_a_function_is_the_one_that_a_person_would_name(name, shown):
    """Comprehensions are functions of their own before 3.12, and the top level of a script is none."""
    assert wording.function(name) == shown


def test_a_start_is_a_date_and_a_time_that_people_read():
    assert wording.began(run_info(started="2025-11-23T02:50:00.123+01:00")) == "2025-11-23 01:50 UTC"
    assert wording.began(run_info(started="2025-11-23T02:50:00Z")) == "2025-11-23 02:50 UTC"
    for no_time in ("then", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-10:00"):
        assert wording.began(run_info(started=no_time)) == no_time
