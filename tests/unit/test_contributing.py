"""CONTRIBUTING.md works as it says: its examples run, and the paths and commands that the documents name exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys

import pytest
import torch

import syncagent
from syncagent.errors import ConfigError
from syncagent.report import decode, model
from syncagent.rules import table
from syncagent.runtime import sinks
from syncagent.settings import schema, sources
from syncagent.support.compat import load_toml
from tests import contributing
from tests.processes import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md",
        "docs/*.md",
        "news/README.md",
        "otel/README.md",
        "examples/*/README.md",
        "tests/**/README.md",
    )
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it also names what is gone
)
TOP = ("syncagent", "tests", "docs", "examples", "otel", "news")
ROOMS = sorted(path.name for path in (ROOT / "syncagent").iterdir() if (path / "__init__.py").exists())
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
NOT_FILES = {
    "examples/policy_gate/new.json",  # made by the commands beside it
    "otel/opentelemetry-collector-contrib",  # a container image
    "syncagent/eval/stall_ms",  # names in a run's logger
    "syncagent/eval/syncs",
}
OLD_REPORTS = sorted((ROOT / "tests" / "fixtures" / "reports").glob("*.json"))


# --- how to add a part ------------------------------------------------------------------------------------------------

# The sensor is run by sensors/test_sensors.py, the format by report/test_formats.py, and the integration by
# tests/integration/test_integrations.py.


def test_a_new_rule_is_a_row_of_the_table(monkeypatch, request):
    rows = contributing.entries("rule", {**vars(table), "SyncKind": syncagent.SyncKind})
    monkeypatch.setattr(table, "RULES", (*table.RULES, *rows))
    agent = request.getfixturevalue("cpu_agent")(detail="syncs")
    torch.ones(3).cumsum(0)
    torch.ones(0).cumsum(0)
    assert [(event.op, event.kind) for event in agent.events()] == [("aten::cumsum", "other")]


def test_a_new_sink_is_a_class_and_a_line_of_the_registry(cpu_device, monkeypatch, tmp_path, capsys):
    lines = contributing.entries("sink", vars(contributing.module("sink", tmp_path)))
    for name, build in lines.items():
        monkeypatch.setitem(sinks.SINKS, name, build)
    with syncagent.watch() as agent:
        torch.ones(3).nonzero()
        torch.ones(3).unique()
        longest = max(agent.events(), key=lambda event: event.stall_ns)
    assert capsys.readouterr().err == f"longest wait: {longest.op}, {longest.stall_ns / 1e6:.1f} ms\n"


@pytest.fixture
def more_settings(monkeypatch, no_settings):
    """The settings with the example's field."""
    names = dict(vars(schema))
    exec(f"class Settings(Settings):\n    {contributing.example('setting')}", names)
    more = dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(names["Settings"])
    [added] = [field for field in dataclasses.fields(more) if field.name not in schema.DEFAULTS]
    monkeypatch.setitem(schema.PARSERS, added.name, added.metadata["parse"])
    monkeypatch.setitem(schema.DEFAULTS, added.name, added.default)
    monkeypatch.setattr(sources, "Settings", more)


def test_a_new_setting_is_a_field_and_a_typed_keyword(more_settings, tmp_path):
    """It comes from a keyword, the environment or pyproject.toml, and a wrong value is one sentence."""
    assert sources.load({}, {}).shown_sites == 50
    (tmp_path / "pyproject.toml").write_text("[tool.syncagent]\nshown-sites = 10\n")
    assert sources.load({}, {}).shown_sites == 10
    assert sources.load({}, {"SYNCAGENT_SHOWN_SITES": "20"}).shown_sites == 20
    assert sources.load({"shown_sites": 30}, {"SYNCAGENT_SHOWN_SITES": "20"}).shown_sites == 30
    with pytest.raises(ConfigError, match="shown_sites is 0, but it must be a whole number, 1 or more"):
        sources.load({"shown_sites": 0}, {})
    name, _, hint = contributing.example("setting line").strip().partition(": ")
    assert (name, eval(hint)) == ("shown_sites", int | None)


@pytest.fixture
def more_fields(tmp_path):
    """The row of a site with the example's field."""
    indented = contributing.example("field").replace("\n", "\n    ")
    path = tmp_path / "more_fields.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from syncagent.report.model import *\n"
        "from syncagent.report import model\n"
        f"@dataclass(frozen=True, slots=True)\nclass SiteRow(model.SiteRow):\n    {indented}\n"
    )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        vars(module).update({name: value for name, value in vars(model).items() if name not in vars(module)})
        yield module.SiteRow
    finally:
        del sys.modules[path.stem]


@pytest.mark.parametrize("path", OLD_REPORTS, ids=lambda path: path.name)
def test_old_reports_are_read_with_a_new_field(more_fields, path):
    """It has its default there; what is written now has it."""
    for site in json.loads(path.read_text(encoding="utf-8"))["sites"]:
        row = decode.decode(more_fields, {"schema": model.SCHEMA, **site}, schema=model.SCHEMA, name="a site")
        assert (row.op, row.longest_step) == (site["op"], None)
        assert decode.encode(dataclasses.replace(row, longest_step=7))["longest_step"] == 7


def test_the_schema_describes_a_new_field(more_fields, monkeypatch):
    spec = importlib.util.spec_from_file_location("generate_schemas", ROOT / "docs" / "schemas" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    monkeypatch.setattr(model, "SiteRow", more_fields)
    site = generate.report_schema()["$defs"]["SiteRow"]
    assert site["properties"]["longest_step"] == {
        "type": ["integer", "null"],
        "description": "The step of its longest sync; None where no step was marked.",
    }
    assert "longest_step" not in site["required"]


# --- what the documents name


def named_paths(text):
    """Every path that stands below a folder of the repository or a room of the package."""
    tops, rooms = "|".join(TOP), "|".join(ROOMS)
    found = re.findall(rf"(?<![\w./-])((?:{tops})/[\w./-]*\w/?|(?:{rooms})/(?:[\w./-]*\w)?/?)", text)
    found += re.findall(r"(?m)^ +→ ([\w./]+/)", text)  # diagrams
    return {path.rstrip("/") for path in found if not re.search(r"NAME|DIR|FILE", path)} - NOT_FILES


def exists(path, page):
    """From the top of the repository, from the page's own folder, or within the package."""
    places = [ROOT, (ROOT / page).parent, ROOT / "syncagent"]
    return any((place / path).exists() or any(place.glob(f"{path}.*")) for place in places)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)} - {""}
    assert [path for path in sorted(named_paths(text) | links) if not exists(path, page)] == []


def anchors(path):
    """Those that GitHub makes of a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_heading_that_a_page_links_to_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", text)
    here = ROOT / page
    assert [name for path, name in links if name not in anchors(here.parent / path if path else here)] == []


def test_a_path_that_does_not_exist_is_found():
    assert named_paths("see `sensors/gone.py`, tests/unit/gone.py::test_it, and `.syncagent/x`") == {
        "sensors/gone.py",
        "tests/unit/gone.py",
    }
    assert not exists("sensors/gone.py", "README.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_target_of_make_that_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^|\$ )make ((?:[A-Z]+=\S+ )*)([a-z-]+)", text, re.MULTILINE)
    assert {target for _, target in named} <= TARGETS


OTHER_VARIABLES = {
    *(name.partition("_")[2] for name in sources.OTHER_VARIABLES),
    "POLCY",  # unknown ones that docs/robustness.md shows
    "X",
}


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_that_a_page_names_is_a_setting(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\bSYNCAGENT_([A-Z_]*[A-Z])\b", text)) - OTHER_VARIABLES
    known = {name.upper() for name in schema.DEFAULTS} | {contributing.example("setting").partition(":")[0].upper()}
    assert named <= known


def test_every_target_is_explained():
    """Except ``setup`` and ``clean``, which explain themselves."""
    assert {
        target for target in TARGETS - {"help", "setup", "clean"} if f"make {target}" not in contributing.TEXT
    } == set()


def test_the_map_has_every_room_in_the_order_in_which_they_may_import():
    with (ROOT / "pyproject.toml").open("rb") as stream:
        rooms, *_ = load_toml(stream)["tool"]["importlinter"]["contracts"]
    layers = [set(layer.split(" : ")) for layer in reversed(rooms["layers"])]
    shown = re.findall(r"(?m)^\| (`[\w./]+`(?:, `[\w./]+`)*) \|", contributing.TEXT.partition("## How to work")[0])
    named = [set(re.findall(r"`(\w+)", row)) for row in shown]
    assert [layer - {"_version"} for layer in layers if layer != {"__main__"}] == named
