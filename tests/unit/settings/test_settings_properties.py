"""Whatever stands in a setting: settings or one sentence, and never anything else.

Text from the environment, from files and from keywords is data; nothing of it is ever run.
"""

from __future__ import annotations

import ast
import json
import os
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import syncagent
from syncagent import ConfigError
from syncagent.events import CallSite
from syncagent.settings import schema, sources

PACKAGE = Path(syncagent.__file__).parent
NAMES = [setting.name for setting in fields(schema.Settings) if "parse" in setting.metadata]

quick = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

pytestmark = pytest.mark.usefixtures("no_settings")

TEXT = st.text(max_size=40) | st.sampled_from(
    [
        "1", "0", "-1", "1e999", "nan", "inf", "-inf", "1_0", "٣", "²", "9" * 5000, "on", "OFF", " raise ", "a.py:1",
        "a:b", "a.py:0", "a.py:" + "9" * 5000, ",", "\n", "\x00", "x\ny", "report.json", "/", "{rank}", "{pid}/", "%s",
        "{0.__class__}", "\udcff", "__import__('os')", "!!python/object", "~nobody-here/x.json",
    ]
)  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, 2**64, 10**30])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT | st.binary(max_size=8)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)


def str_of(value):
    return str(value)[:6] if not isinstance(value, int) else f"int of {value.bit_length()} bits"


def settled(keywords=None, environment=None, *, named=()):
    """The settings, or ``None`` where they were refused as they should be."""
    refused = None
    try:
        found = sources.load(keywords or {}, environment or {})
    except ConfigError as error:
        refused = str(error)
    if refused is not None:
        assert len(refused.splitlines()) == 1, refused
        assert all(name in refused for name in named), refused
        return None
    assert isinstance(found, schema.Settings)
    assert isinstance(found.wraps_every_op, bool)
    assert found.copies_timed in {"all", "sampled", "off"}
    return found


# --- every setting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@quick
@given(value=ANYTHING)
def test_a_keyword_is_taken_or_refused_in_one_line(name, value):
    """The line names the setting and the value."""
    settled({name: value}, named=(name,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308, float("nan"), 10**30, "9" * 5000, "1e999"], ids=str_of)
def test_a_number_of_any_size_is_taken_or_refused_in_one_line(name, value):
    """Also what no float and no machine word can hold."""
    settled({name: value}, named=(name,))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(text=TEXT)
def test_a_variable_is_taken_or_refused_in_one_line(name, text):
    """The line names the variable."""
    variable = f"SYNCAGENT_{name.upper()}"
    settled(environment={variable: text}, named=(variable,))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(text=TEXT)
def test_what_is_taken_is_taken_again(name, text):
    """The value in force, given as a keyword, is the value in force."""
    found = settled(environment={f"SYNCAGENT_{name.upper()}": text})
    value = getattr(found, name) if found is not None else None
    if value is not None:
        again = settled({name: value})
        assert again is not None
        assert getattr(again, name) == value


@quick
@given(name=st.text(max_size=12).filter(lambda name: name not in NAMES), value=ANYTHING)
def test_a_setting_that_does_not_exist_is_refused_in_one_line(name, value):
    """As a keyword; a variable that does not exist belongs to something else."""
    if value is not None:
        assert settled({name: value}) is None
    assert settled(environment={f"SYNCAGENT_{name}": "x"}) == schema.Settings() or f"SYNCAGENT_{name}" in {
        f"SYNCAGENT_{known.upper()}" for known in NAMES
    }


@quick
@given(
    table=st.dictionaries(
        st.sampled_from(NAMES) | st.text(min_size=1, max_size=8),
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=12),
        max_size=3,
    )
)
def test_a_project_file_is_taken_or_refused_in_one_line(table, tmp_path):
    """The line names the file."""
    text = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in table.items())
    (tmp_path / "pyproject.toml").write_text(f"[tool.syncagent]\n{text}", encoding="utf-8", errors="replace")
    settled(named=("pyproject.toml",))


@quick
@given(content=st.binary(max_size=200) | st.just(b"[tool.syncagent]\na = " + b"[" * 3000))
def test_a_file_of_anything_is_no_obstacle(content, tmp_path):
    """It is another tool's file."""
    (tmp_path / "pyproject.toml").write_bytes(content)
    settled()


@quick
@given(keywords=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=5))
def test_settings_together_are_taken_or_refused_in_one_line(keywords):
    """As one by one."""
    settled(keywords)


class Unprintable:
    """A value that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no")

    __str__ = __repr__


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_cannot_be_shown_is_refused(name):
    """The sentence does without it."""
    assert settled({name: Unprintable()}, named=(name,)) is None


def test_a_working_directory_that_is_gone_has_no_project_file(tmp_path, monkeypatch):
    """The settings are those of the keywords and the environment."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert settled() == schema.Settings()


# --- what takes the settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@quick
@given(text=TEXT | st.integers(0, 10**30).map(str))
def test_settings_that_are_taken_can_be_used(name, text):
    """What a wrong one would break is built from each that is right: the summary and the policy."""
    from syncagent.policy import Policy
    from syncagent.report.summary import Summary

    found = settled(environment={f"SYNCAGENT_{name.upper()}": text})
    if found is None or found.baseline is not None:
        return
    Summary(newest=found.max_events).newest()
    refused = ""
    try:
        Policy(found, recorder().locator, lambda: 0)
    except ConfigError as error:  # a name that only a look at the packs or at the disk can tell
        refused = str(error)
    assert not refused or name in refused
    assert len(refused.splitlines()) <= 1


def recorder():
    from syncagent.recording.recorder import Recorder
    from syncagent.torchbridge.internals import look_up

    return Recorder(schema.Settings(), look_up(simulated=True), lambda: 0)


# --- the allow list ---------------------------------------------------------------------------------------------------

PART = st.from_regex(r"[^\W\d]\w{0,5}", fullmatch=True)
FILES = st.builds("{}.py".format, st.text(st.characters(exclude_characters=":,"), min_size=1, max_size=12))
ENTRIES = (
    st.lists(PART, min_size=1, max_size=3).map(".".join)
    | st.builds("{}:{}".format, PART, PART)
    | FILES
    | st.builds("{}:{}".format, FILES, st.integers(1, 10**6))
    | st.builds("{}:{}".format, FILES, st.sampled_from(["9" * 5000, "1٣"]))
    | TEXT
)
SITES = st.builds(
    CallSite,
    file=st.text(max_size=20) | FILES | FILES.map("/job/{}".format),
    line=st.integers(0, 10**6),
    function=st.text(max_size=8) | PART,
    source=st.text(max_size=8),
)


@quick
@given(entry=ENTRIES, sites=st.lists(SITES, max_size=3))
def test_an_allow_entry_that_is_taken_can_be_matched_against_any_line(entry, sites):
    """It covers it or not."""
    found = settled(environment={"SYNCAGENT_ALLOW": entry})
    if found is None:
        return
    parsed = parse_entries(found.allow)
    for one in parsed:
        for site in sites:
            assert one.covers(site) in (True, False)


@quick
@given(entry=ENTRIES)
def test_an_allow_entry_means_the_same_each_time(entry):
    """And keeps its own text, for the report."""
    found = settled({"allow": [entry]}) if entry.strip() else None
    if found is not None:
        assert parse_entries(found.allow) == parse_entries(found.allow)
        assert [one.reason for one in parse_entries(found.allow)] == list(found.allow)


@given(name=PART, line=st.integers(1, 10**6))
@quick
def test_an_allow_entry_covers_what_it_names(name, line):
    """A file, a line of it, a module, a function of it; and no other line."""
    site = CallSite(f"/job/{name}.py", line, "train")
    for entry in (f"{name}.py", f"{name}.py:{line}", name, f"{name}:train"):
        [one] = parse_entries((entry,))
        assert one.covers(site)
    for entry in (f"{name}.py:{line + 1}", f"{name}_.py", f"{name}_", f"{name}:other"):
        [one] = parse_entries((entry,))
        assert not one.covers(site)


def parse_entries(texts):
    from syncagent.policy import allowances

    return [allowances.Entry.parse(text, text) for text in texts]


@quick
@given(document=ANYTHING | st.fixed_dictionaries({"sites": ANYTHING}))
def test_a_baseline_of_anything_is_taken_or_refused_in_one_line(document, tmp_path):
    """The line names the setting and the file."""
    from syncagent.policy import Policy

    file = tmp_path / "base.json"
    file.write_text(json.dumps(document, default=repr), encoding="utf-8", errors="replace")
    found = settled({"baseline": str(file)})
    assert found is not None
    refused = ""
    try:
        Policy(found, recorder().locator, lambda: 0)
    except ConfigError as error:
        refused = str(error)
    assert not refused or "base.json" in refused
    assert len(refused.splitlines()) <= 1


# --- data is not code -------------------------------------------------------------------------------------------------

RUNS_TEXT = {"eval", "exec", "__import__", "compile"}
UNPICKLES = {("pickle", "load"), ("pickle", "loads"), ("marshal", "loads"), ("yaml", "load"), ("shelve", "open")}
KNOWN = {
    # what runs text, and why that is none from outside
    ("runtime/autostart.py", "exec"): "a constant, so that CPython notes an interrupt again",
    ("integrations/ipython.py", "exec"): "the cell of a notebook that is running, as IPython would run it",
    ("support/compat.py", "compile"): "the source of a loaded file is parsed for the names in it, and not run",
}


def calls_that_run_text(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in RUNS_TEXT:
                yield called.id, node
            names = ast.unparse(called).rpartition(".")
            if (names[0], names[2]) in UNPICKLES or names[0] == "builtins":
                yield ast.unparse(called), node
            if any(word.arg == "shell" for word in node.keywords):
                yield "shell", node


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_that_is_read_is_run(path):
    """No ``eval``, ``exec``, pickle or shell, but for what is listed; ``syncagent run`` runs the user's own script."""
    name = path.relative_to(PACKAGE).as_posix()
    found = list(calls_that_run_text(ast.parse(path.read_text(encoding="utf-8"))))
    if name.startswith("selftest/"):
        found = [(call, node) for call, node in found if call not in {"exec", "compile"}]
    assert [(name, call) for call, _ in found if (name, call) not in KNOWN] == []
    if name != "integrations/ipython.py":
        assert all(isinstance(node.args[0], ast.Constant) for call, node in found if call == "exec")


def test_the_selftest_runs_what_stands_in_its_own_table():
    """It alone runs text; it reads none of it from a file, the environment or the program."""
    for path in (PACKAGE / "selftest").glob("*.py"):
        called = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)}
        if called & {"exec", "compile"}:
            assert not called & {"open", "json.load", "json.loads", "input", "Path"}


def test_text_in_settings_is_never_formatted_from_inside(tmp_path):
    """``{rank}`` and ``{pid}`` are filled in; any other brace is a letter."""
    from syncagent.delivery.folder import file_path
    from syncagent.report.files import destination

    odd = f"{tmp_path}/{{0.__class__}}-{{rank}}.json"
    assert destination(odd, 3)[0].name == "{0.__class__}-3.json"
    assert file_path("journal", odd).name == f"{{0.__class__}}-{os.environ.get('RANK', '0')}.json"
