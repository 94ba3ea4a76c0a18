"""Every setting: where it may stand, what it may be, and the one sentence for what it may not."""

from __future__ import annotations

import os
from dataclasses import fields
from functools import partial

import pytest

from syncagent import ConfigError, SyncAgentError
from syncagent.settings.schema import PARSERS, Settings, parse
from syncagent.settings.sources import load

NAMES = [setting.name for setting in fields(Settings) if "parse" in setting.metadata]


@pytest.fixture(autouse=True)
def _nothing_set(no_settings):
    """A folder without pyproject.toml, an environment without settings."""


def project(folder, text):
    (folder / "pyproject.toml").write_text(text)
    return folder / "pyproject.toml"


# --- where values come from -------------------------------------------------------------------------------------------


def test_without_anything_set_the_defaults_hold():
    """Those that the design gives."""
    settings = load()
    assert settings == Settings()
    assert (settings.policy, settings.detail_in_force, settings.warmup_steps) == ("observe", "auto", 3)
    assert settings.overhead == 0.01
    assert (settings.min_stall_ms, settings.max_events, settings.allow) == (0.0, 10_000, ())
    assert settings.sources == {}


def test_a_keyword_beats_the_environment_which_beats_the_project_which_beats_the_default(tmp_path, monkeypatch):
    """And each value says where it came from."""
    file = project(tmp_path, "[tool.syncagent]\nmax-events = 1\nwarmup_steps = 1\npolicy = 'warn'\n")
    monkeypatch.setenv("SYNCAGENT_WARMUP_STEPS", "2")
    monkeypatch.setenv("SYNCAGENT_POLICY", "observe")
    settings = load({"policy": "raise"})
    assert (settings.max_events, settings.warmup_steps, settings.policy) == (1, 2, "raise")
    assert settings.sources == {"max_events": str(file), "warmup_steps": "environment", "policy": "keyword"}


def test_the_nearest_project_file_counts(tmp_path, monkeypatch):
    """That of the working directory or of the folders above it, even if it says nothing of syncagent."""
    project(tmp_path, "[tool.syncagent]\npolicy = 'warn'\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert load().policy == "warn"
    project(tmp_path / "a", "[project]\nname = 'x'\n")
    assert load().policy == "observe"


@pytest.mark.parametrize(
    "text",
    ["this is not TOML", "tool = 3", "[tool]\nsyncagent = 'on'", "\xff"],
    ids=["broken", "tool", "table", "bytes"],
)
def test_a_project_file_that_cannot_be_understood_is_no_obstacle(tmp_path, text):
    """No training stops because of another tool's file."""
    (tmp_path / "pyproject.toml").write_bytes(text.encode("latin-1"))
    assert load() == Settings()


def test_a_keyword_of_none_is_not_set(monkeypatch):
    """``watch(detail=None)`` leaves the environment its say."""
    monkeypatch.setenv("SYNCAGENT_DETAIL", "syncs")
    assert load({"detail": None}).detail == "syncs"


def test_an_empty_variable_is_not_set(monkeypatch):
    """As shells that export an unset value leave it."""
    for name in NAMES:
        monkeypatch.setenv(f"SYNCAGENT_{name.upper()}", "")
    assert load() == Settings()


IN_FILE = {
    "policy": '"warn"', "min_stall_ms": "2.0", "warmup_steps": "5", "stall_share_window": "7", "judge_threads": '"all"',
    "simulate": "true", "stacks": "true", "cost": "true", "cost_steps": "3", "max_events": "9", "file_mode": '"0640"',
    "overhead": "0.1", "verbose": "true", "collectives": "false",
}  # fmt: skip
CLEARED = {
    "detail": '"ops"', "report": '"a.json"', "allow": '"a.b"', "allow_kinds": '"explicit"', "allow_packs": '"torch"',
    "max_syncs_per_step": "3", "max_stall_ms_per_step": "3.0", "max_stall_share": "0.5", "policy_file": '"p"',
    "policy_signal": '"usr1"', "baseline": '"b.json"', "user_code": '"mine"', "copies": '"off"', "journal": '"j"',
    "summary": "true", "capture": '"c"', "judge_kinds": '"collective"', "simulate_gpu": '"A100"',
    "report_signal": '"usr2"', "progress": "60",
}  # fmt: skip


def test_each_setting_says_what_an_empty_variable_means():
    """A list, a budget or what may be missing is empty then; what always has a value stays as it is."""
    assert {name for name in NAMES if getattr(Settings(), name) in ((), None)} == set(CLEARED)
    assert {*IN_FILE, *CLEARED} == set(NAMES)


@pytest.mark.parametrize("name", [*IN_FILE, *CLEARED])
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_clears_what_the_project_file_says_or_leaves_it(tmp_path, monkeypatch, name, empty):
    """As shells that export an unset value leave it: a gate that the file asks for is not lost by that."""
    file = project(tmp_path, f"[tool.syncagent]\n{name} = {(IN_FILE | CLEARED)[name]}\n")
    assert getattr(load(), name) != getattr(Settings(), name)
    monkeypatch.setenv(f"SYNCAGENT_{name.upper()}", empty)
    settings = load()
    if name in CLEARED:
        assert getattr(settings, name) == getattr(Settings(), name)
        assert settings.sources == {name: "environment"}
    else:
        assert getattr(settings, name) != getattr(Settings(), name)
        assert settings.sources == {name: str(file)}


def test_every_setting_can_be_given_in_every_place(tmp_path, monkeypatch):
    """Keyword, environment and project file take the same values."""
    texts = {
        "policy": "raise", "detail": "ops", "report": "out.json", "min_stall_ms": "1.5", "warmup_steps": "7",
        "allow": "pkg.module,train.py:12", "baseline": "base.json", "simulate": "1", "stacks": "true",
        "user_code": "mylib,other", "copies": "sampled", "max_events": "5", "journal": "spans.jsonl", "summary": "no",
        "allow_kinds": "explicit,check", "allow_packs": "torch,mine", "max_syncs_per_step": "forward=2,total=5",
        "max_stall_ms_per_step": "1.5", "max_stall_share": "0.05", "stall_share_window": "10", "judge_threads": "all",
        "policy_file": "policy.txt", "policy_signal": "usr1", "cost": "1", "cost_steps": "8",
        "file_mode": "0640", "capture": "seen.jsonl", "judge_kinds": "allocator", "overhead": "0.02",
        "verbose": "yes", "simulate_gpu": "h100", "report_signal": "SIGUSR2", "progress": "0.5",
        "collectives": "0",
    }  # fmt: skip
    assert set(texts) == set(NAMES)
    here = partial(os.path.join, os.getcwd())
    by_keyword = load(texts)
    by_environment = load(environment={f"SYNCAGENT_{name.upper()}": text for name, text in texts.items()})
    project(tmp_path, "[tool.syncagent]\n" + "".join(f"{name} = '{text}'\n" for name, text in texts.items()))
    assert by_keyword == by_environment == load()
    assert by_keyword == Settings(
        policy="raise", detail="ops", report=here("out.json"), min_stall_ms=1.5, warmup_steps=7,
        allow=("pkg.module", "train.py:12"), baseline=here("base.json"), simulate=True, stacks=True,
        user_code=("mylib", "other"), copies="sampled", max_events=5, journal="spans.jsonl", summary=False,
        verbose=True,
        allow_kinds=("explicit", "check"), allow_packs=("torch", "mine"),
        max_syncs_per_step=(("forward", 2), ("total", 5)), max_stall_ms_per_step=(("total", 1.5),),
        max_stall_share=0.05, stall_share_window=10, judge_threads="all", policy_file=here("policy.txt"),
        policy_signal="SIGUSR1", cost=True, cost_steps=8, file_mode=0o640, capture="seen.jsonl", overhead=0.02,
        judge_kinds=("allocator",), simulate_gpu="H100", report_signal="SIGUSR2", progress=0.5,
        collectives=False,
    )  # fmt: skip


def test_values_may_have_the_types_of_the_language(tmp_path):
    """Numbers, booleans, lists and paths, in Python and in TOML."""
    settings = load(
        {"max_events": 3, "stacks": True, "allow": ["a.b"], "min_stall_ms": 2, "report": tmp_path / "x.json"}
    )
    assert (settings.max_events, settings.stacks, settings.allow, settings.min_stall_ms) == (3, True, ("a.b",), 2.0)
    assert settings.report == str(tmp_path / "x.json")
    project(tmp_path, "[tool.syncagent]\nmax-events = 3\nstacks = true\nallow = ['a.b']\nmin-stall-ms = 2\n")
    assert (load().max_events, load().stacks, load().allow, load().min_stall_ms) == (3, True, ("a.b",), 2.0)


@pytest.mark.parametrize("text", ["RAISE", " raise ", "Raise"])
def test_choices_forgive_capitals_and_spaces(text):
    """An environment is written by hand."""
    assert load(environment={"SYNCAGENT_POLICY": text}).policy == "raise"


# --- what follows from them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "detail", "in_force", "copies"),
    [
        ("observe", None, "auto", "sampled"),
        ("observe", "auto", "auto", "sampled"),
        ("observe", "ops", "ops", "all"),
        ("observe", "syncs", "syncs", "sampled"),
        ("warn", None, "syncs", "sampled"),
        ("warn", "auto", "auto", "sampled"),
        ("warn", "ops", "ops", "all"),
        ("raise", None, "syncs", "all"),
        ("raise", "ops", "ops", "all"),
    ],
)
def test_the_policy_decides_detail_and_copies_unless_they_are_given(policy, detail, in_force, copies):
    """Under ``raise`` no copy may slip through unseen; ``copies`` has no say where whole steps are sampled."""
    settings = load({"policy": policy, "detail": detail})
    assert (settings.detail_in_force, settings.copies_timed) == (in_force, copies)
    assert (settings.wraps_every_op, settings.samples_steps) == (in_force == "ops", in_force == "auto")
    off = load({"policy": policy, "detail": detail, "copies": "off"}).copies_timed
    assert off == ("sampled" if in_force == "auto" else "off")


def test_where_cost_is_measured_no_step_is_slowed_unless_that_is_asked_for():
    assert load({"cost": True}).detail_in_force == "syncs"
    assert load({"cost": True, "detail": "auto"}).detail_in_force == "auto"


@pytest.mark.parametrize("value", ["640", "0640", "0o640", " 0640 ", 0o640])
def test_a_file_mode_is_octal_as_for_chmod(value):
    """A number is the mode itself, as in ``os.open``."""
    assert load({"file_mode": value}).file_mode == 0o640


# --- what is not allowed ----------------------------------------------------------------------------------------------

WRONG = {
    # setting: (values that are not allowed, what the sentence says is)
    "policy": (["loud", "on", 3], "one of observe, warn, raise"),
    "detail": (["everything", 1], "one of auto, ops, syncs"),
    "overhead": (["much", "-0.1", -1, 1.5, "2", float("nan"), True], "a share of the time from 0 to 1"),
    "copies": (["some"], "one of all, sampled, off"),
    "report": ([3, "   "], "a path"),
    "min_stall_ms": (["fast", "-1", -0.5, float("nan"), float("inf"), True], "a number of milliseconds, 0 or more"),
    "warmup_steps": (["-1", 1.5, "two", True], "a whole number, 0 or more"),
    "max_events": (["0", 0, "many"], "a whole number, 1 or more"),
    "simulate": (["maybe", 2, 1.0], "a yes or no"),
    "stacks": (["maybe", None.__class__], "a yes or no"),
    "summary": (["maybe"], "a yes or no"),
    "file_mode": (
        ["0400", "0o1600", "0700", "rw", "0x1ff", "-1", "0888", 0o777, 0, True, 6.0],
        "a file's mode in octal from 0600 to 0666, such as 0640",
    ),
    "user_code": ([3, [3], [""]], "a list of names"),
    "baseline": ([3, " "], "a path"),
    "allow": (
        ["my-module", "pkg.module:1function", "pkg..module", ":function", "train.py:twelve", "train.py:", "a b"],
        "package.module, package.module:function, path/file.py or path/file.py:LINE",
    ),
}
CASES = [(name, value) for name, (values, _) in WRONG.items() for value in values]


def sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("syncagent: setting ")
    assert text.endswith(".")
    return text


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_wrong_keyword_is_one_sentence_with_setting_value_and_what_is_allowed(name, value):
    """It is a ConfigError, which is both a SyncAgentError and a ValueError."""
    with pytest.raises(ConfigError) as error:
        load({name: value})
    text = sentence(error)
    assert f"setting {name} is {value!r}" in text
    assert WRONG[name][1] in text
    assert isinstance(error.value, SyncAgentError)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, v in CASES if isinstance(v, str) and v.strip()])
def test_a_wrong_variable_is_named_as_the_user_wrote_it(name, value):
    """``SYNCAGENT_POLICY``, not ``policy``."""
    variable = f"SYNCAGENT_{name.upper()}"
    with pytest.raises(ConfigError) as error:
        load(environment={variable: value})
    text = sentence(error)
    assert f"setting {variable} is {value!r}" in text
    assert WRONG[name][1] in text


@pytest.mark.parametrize(("name", "value"), [("policy", "loud"), ("max-events", "0"), ("allow", "my-module")])
def test_a_wrong_value_in_the_project_file_names_the_file(tmp_path, name, value):
    """And the table and key in it."""
    file = project(tmp_path, f"[tool.syncagent]\n{name} = '{value}'\n")
    with pytest.raises(ConfigError) as error:
        load()
    assert f"setting [tool.syncagent] {name} in {file} is {value!r}" in sentence(error)


@pytest.mark.parametrize("path", ["report.txt", "report", "out/report.JSON5", ".json"])
def test_a_report_whose_suffix_means_no_format_is_reported_before_the_run(path):
    """Not at its end, when what was seen could no longer be saved."""
    with pytest.raises(ConfigError) as error:
        load({"report": path})
    text = sentence(error)
    assert repr(path) in text
    assert ".json, .html, .md, .sarif or .trace.json" in text


@pytest.mark.parametrize(
    "path", ["r.json", "r.html", "r.sarif", "r.trace.json", "reports/", "r-{rank}-{pid}.json", "."]
)
def test_a_report_may_be_any_of_the_formats_or_a_directory(path):
    """One that exists, or whose name ends in a slash."""
    found = load({"report": path}).report
    assert found == os.path.join(os.getcwd(), "" if path == "." else path)


@pytest.mark.parametrize("name", ["report", "baseline", "policy_file"])
def test_a_path_leads_from_the_folder_in_which_it_was_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("known.json", "./known.json"):
        assert getattr(load({name: text}), name) == str(tmp_path / "known.json")
        assert getattr(load(environment={f"SYNCAGENT_{name.upper()}": text}), name) == str(tmp_path / "known.json")
    for text in ("~/known.json", "/a/known.json"):
        assert getattr(load({name: text}), name) == text


def test_an_allowance_that_is_no_text_is_reported_too():
    """A list of names is wanted."""
    with pytest.raises(ConfigError, match="setting allow is 7, but it must be a list of names"):
        load({"allow": 7})


def test_a_setting_that_does_not_exist_is_reported_with_those_that_do(tmp_path):
    """As a keyword and in the project file."""
    with pytest.raises(ConfigError) as error:
        load({"polcy": "warn"})
    assert "polcy" in sentence(error)
    assert "policy" in str(error.value)
    project(tmp_path, "[tool.syncagent]\npolcy = 'warn'\n")
    with pytest.raises(ConfigError) as error:
        load()
    assert f"polcy in {tmp_path / 'pyproject.toml'}" in sentence(error)


def test_one_wrong_entry_of_a_list_is_named_by_itself():
    """Not the whole list."""
    with pytest.raises(ConfigError) as error:
        load({"allow": "pkg.fine, not-fine, also.fine"})
    assert "setting allow is 'not-fine'" in sentence(error)


@pytest.mark.parametrize(
    "entry",
    [
        "module", "pkg.module", "pkg.module:function", "pkg.module:Class.method", "train.py", "a/b.py", "./a/b.py",
        "/abs/a.py", "/abs/a.py:12", "train.py:12", "pkg:outer.<locals>.inner", "pkg:f.<locals>.<lambda>",
        "pkg:f.<locals>.<listcomp>", "pkg:<module>", "my-scripts/train.py:3", "with space/train.py",
    ],
)  # fmt: skip
def test_an_allowance_may_be_a_module_a_function_a_file_or_a_line(entry):
    """Every function's name that a report shows can be allowed."""
    assert load({"allow": entry}).allow == (entry,)


class TestModelledTimes:
    def test_the_gpu_has_its_own_spelling(self):
        assert load({"simulate": True, "simulate_gpu": "l4"}).modelled_gpu == "L4"

    def test_another_gpu_is_refused_with_those_that_there_are(self):
        with pytest.raises(
            ConfigError, match="setting simulate_gpu is 'V100', but it must be one of H100, H200, A100, L4"
        ):
            load({"simulate": True, "simulate_gpu": "V100"})

    @pytest.mark.parametrize("by", ["keyword", "environment"])
    def test_without_the_simulated_device_there_is_nothing_to_model(self, monkeypatch, by):
        if by == "environment":
            monkeypatch.setenv("SYNCAGENT_SIMULATE_GPU", "H100")
        with pytest.raises(
            ConfigError, match=r"simulate_gpu is 'H100', but it must be left out where the device is not"
        ):
            load({"simulate_gpu": "H100"} if by == "keyword" else {})

    def test_the_project_may_name_it_for_when_the_device_is_simulated(self, tmp_path):
        project(tmp_path, "[tool.syncagent]\nsimulate_gpu = 'A100'\n")
        assert load().modelled_gpu is None
        assert load({"simulate": True}).modelled_gpu == "A100"

    def test_every_step_is_watched_alike(self):
        """A sampled step would take longer, and the driver sees no modelled time."""
        modelled = {"simulate": True, "simulate_gpu": "H100"}
        assert load(modelled).detail_in_force == "syncs"
        assert load({**modelled, "detail": "auto"}).detail_in_force == "syncs"
        assert load({**modelled, "detail": "ops"}).detail_in_force == "ops"


@pytest.mark.parametrize("name", PARSERS)
def test_a_refusal_says_what_the_documents_say_is_accepted(name):
    said = []
    for wrong in (object(), "?", ["?"], "report.exe"):
        try:
            parse(name, wrong)
        except ConfigError as error:
            said.append(str(error))
    assert any(f"but it must be {PARSERS[name].accepts}" in sentence for sentence in said)
