"""IPython and a notebook's kernel, the real ones: ``%load_ext syncagent``, ``%%syncs``, and cells by their numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import re

import pytest

from tests import processes

SHELL = """
import io, json, os, sys
from contextlib import redirect_stdout, redirect_stderr
from IPython.testing.globalipapp import start_ipython
shell = start_ipython()
out = {}

def run(name, text):
    printed, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(complained):
        result = shell.run_cell(text, store_history=True)
    error = result.error_before_exec or result.error_in_exec
    out[name] = {"out": printed.getvalue() + complained.getvalue(), "error": error and type(error).__name__,
                 "result": repr(result.result), "number": shell.execution_count - 1}

for name, text in json.load(open("cells.json")).items():
    run(name, text)
out["magics"] = ["syncs" in shell.magics_manager.magics[kind] for kind in ("line", "cell")]
json.dump(out, open("out.json", "w"))
"""

CELLS = {
    "before": "%%syncs\n1",
    "load": "import sys, torch\n%load_ext syncagent",
    "function": "def read(x):\n    return x.item()",
    "cell": (
        "%%syncs --simulate --detail syncs\n\n# a comment\nx = torch.ones(3, device='cuda')\n"
        "for _ in range(3):\n    x.sum().item()\nread(x.sum())"
    ),
    "names": "x.shape",
    "quiet": "%%syncs --simulate\n5;",
    "line": "y = 1\nfor _ in range(2):\n    %syncs --simulate --detail=ops --verbose x.sum().item()",
    "raise": "%%syncs --simulate --policy raise\ndone = 0\nx.sum().item()\ndone = 1",
    "stopped": "done",
    "error": "%%syncs --simulate\nx = 1\n1 / 0",
    "syntax": "%%syncs\nx = = 1",
    "await": "%%syncs\nimport asyncio\nawait asyncio.sleep(0)",
    "option": "%%syncs --detial ops\n1",
    "value": "%%syncs --detail all\n1",
    "statement": "%%syncs x.item()\n1",
    "braces": "%syncs --simulate sorted({'a': 1, 'b': 2})",
    "magic": "%%syncs --simulate\n%env SYNCAGENT_TRY=1\n!echo $HOME\nlen('abc')",
    "idle": "%syncs",
    "started": (
        "import syncagent\nagent = syncagent.start(simulate=True, detail='syncs')\nx = torch.ones(2, device='cuda')"
    ),
    "so far": "x.sum().item()\n%syncs",
    "region": "%%syncs\nx.max().item()",
    "file": "syncagent.stop().sites[0].file",
    "comment": "%%syncs --simulate\n\n# nothing yet",
    "lines": "%%syncs --simulate --detail syncs --verbose\n\n# a comment\nx.sum().item()\nread(x.sum())",
    "left": "'IPython' in sys.modules, syncagent.current()",
    "unload": "%unload_ext syncagent",
}


def installed(*names):
    return all(importlib.util.find_spec(name) for name in names)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """What became of each cell, in one shell."""
    if not installed("IPython"):
        pytest.skip("IPython is not installed")
    folder = tmp_path_factory.mktemp("shell")
    (folder / "cells.json").write_text(json.dumps(CELLS))
    done = processes.run("-c", SHELL, cwd=folder, IPYTHONDIR=str(folder), HOME=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text())


class TestShell:
    def test_a_cell_is_watched_and_its_report_follows(self, cells):
        """The last expression is shown as ever, and the cell's names are the session's."""
        cell = cells["cell"]
        assert cell["error"] is None
        assert "4 host syncs; the host waited" in cell["out"]
        assert cell["out"].index("Out[4]: 3.0") < cell["out"].index("4 host syncs")
        assert cells["names"]["result"] == "torch.Size([3])"
        assert re.search(r"(?i)\bthe rest: %%syncs --verbose$", cell["out"], re.MULTILINE)

    def test_its_lines_are_those_of_the_cell_and_have_its_number(self, cells):
        """Also where the cell begins with an empty line, and where a function of another cell waits."""
        assert cells["lines"]["number"] == 24
        assert "In [24], line 4" in cells["lines"]["out"]
        assert "In [3], line 2" in cells["lines"]["out"]
        assert cells["line"]["number"] == 7
        assert cells["line"]["out"].count("In [7], line 3") >= 2

    def test_a_semicolon_keeps_the_value_from_being_shown(self, cells):
        assert "Out[" not in cells["quiet"]["out"]

    def test_a_cell_of_comments_is_watched_like_any_other(self, cells):
        assert cells["comment"]["error"] is None
        assert "No host sync was seen" in cells["comment"]["out"]

    def test_a_policy_acts_at_once_and_its_error_ends_the_cell(self, cells):
        """The report is shown all the same."""
        assert cells["raise"]["error"] == "HostSyncError"
        assert "1 against the policy" in cells["raise"]["out"]
        assert cells["stopped"]["result"] == "0"

    def test_an_error_of_the_cell_is_its_own(self, cells):
        """With its line in the cell, and none of our frames."""
        assert cells["error"]["error"] == "ZeroDivisionError"
        assert "1 / 0" in cells["error"]["out"]
        assert "integrations/ipython.py" not in cells["error"]["out"]
        assert cells["syntax"]["error"] == "SyntaxError"

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("await", "cannot run `await` at the top of a cell"),
            ("option", "does not know the option '--detial'"),
            ("value", "setting detail is 'all', but it must be one of auto, ops, syncs"),
            ("statement", "takes only options on its own line, not 'x.item()'"),
            ("idle", "nothing is being watched"),
        ],
    )
    def test_what_cannot_be_done_is_one_sentence(self, cells, name, said):
        assert cells[name]["error"] == "UsageError"
        assert said in cells[name]["out"]
        assert "Traceback" not in cells[name]["out"]

    def test_what_else_ipython_can_do_works_inside(self, cells):
        """Braces are no variables, and there may be magics and shell commands."""
        assert "Out[16]: ['a', 'b']" in cells["braces"]["out"]
        assert cells["magic"]["error"] is None
        assert "Out[17]: 3" in cells["magic"]["out"]

    def test_while_an_agent_runs_a_cell_is_a_region_of_it(self, cells):
        """And ``%syncs`` alone shows the report so far."""
        assert "1 host sync; the host waited" in cells["so far"]["out"]
        assert "1 host sync; the host waited" in cells["region"]["out"]
        assert "In [21], line 2" in cells["region"]["out"]
        assert "ipython-input-" in cells["file"]["result"]

    def test_the_magics_are_there_from_loading_to_unloading(self, cells):
        assert "syncs" in cells["before"]["out"]
        assert "not found" in cells["before"]["out"]
        assert cells["magics"] == [False, False]
        assert cells["left"]["result"] == "(True, None)"


NOTEBOOK = [
    "%load_ext syncagent\nimport torch",
    "def read(x):\n    return x.item()",
    "%%syncs --simulate --detail syncs\nx = torch.ones(3, device='cuda')\nread(x.sum())",
    (
        "import syncagent\nwith syncagent.watch(simulate=True, detail='syncs') as agent:\n"
        "    x = torch.ones(2, device='cuda')\n    x.max().item()\nagent.report()"
    ),
    "import json\nprint(json.dumps(agent.report().to_dict()))",
    "%%syncs --simulate\n1 / 0",
]

CLIENT = """
import json, nbformat, sys
from nbclient import NotebookClient
cells = [nbformat.v4.new_code_cell(source) for source in json.load(open("cells.json"))]
notebook = nbformat.v4.new_notebook(cells=cells)
NotebookClient(notebook, timeout=90, allow_errors=True, kernel_name="python3").execute()
json.dump([cell.outputs for cell in notebook.cells], open("out.json", "w"))
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of each cell of a notebook, by the kernel of this environment."""
    if not installed("nbclient", "ipykernel"):
        pytest.skip("nbclient and ipykernel are not installed")
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "cells.json").write_text(json.dumps(NOTEBOOK))
    done = processes.run("-c", CLIENT, cwd=folder, IPYTHONDIR=str(folder), JUPYTER_RUNTIME_DIR=str(folder / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text())


class TestKernel:
    def test_a_watched_cell_has_its_report_as_a_table(self, outputs):
        """And as text, for where there is no HTML; the value of the last line comes before it."""
        assert [output["output_type"] for output in outputs[2]] == ["execute_result", "display_data"]
        shown = outputs[2][1]["data"]
        assert set(shown) == {"text/html", "text/plain"}
        for text in map("".join, shown.values()):
            assert "In [2], line 2" in text
            assert "ipykernel" not in text
            assert "notebook · simulated" in text
        assert "<table>" in "".join(shown["text/html"])

    def test_a_report_is_shown_as_a_table_by_itself(self, outputs):
        [shown] = (output["data"] for output in outputs[3] if output["output_type"] == "execute_result")
        assert "In [4], line 4" in "".join(shown["text/html"])
        assert "".join(shown["text/plain"]).startswith("Report(1 site, 1 sync, ")

    def test_in_json_the_file_is_what_python_says(self, outputs):
        report = json.loads("".join(outputs[4][0]["text"]))
        [site] = report["sites"]
        assert re.fullmatch(r".*ipykernel_\d+.\d+\.py", site["file"])
        assert report["cells"] == [{"file": site["file"], "number": 4}]

    def test_an_error_fails_the_cell(self, outputs):
        assert [output["ename"] for output in outputs[5] if output["output_type"] == "error"] == ["ZeroDivisionError"]


def test_importing_the_package_imports_nothing_of_ipython(tmp_path):
    """Nor does watching; only the extension does."""
    code = (
        "import sys, syncagent\nwith syncagent.watch(simulate=True) as agent: pass\nprint(agent.report())\n"
        "print(agent.report()._repr_html_()[:4], agent.report().to_markdown()[:4])\n"
        "raise SystemExit(any(name.startswith('IPython') for name in sys.modules))"
    )
    done = processes.run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(tmp_path) == []
