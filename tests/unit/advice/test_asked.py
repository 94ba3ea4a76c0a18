"""Where a program asks a framework for what waits, that line is named."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from syncagent.events import CallSite
from syncagent.report.advising import advised, for_line
from syncagent.report.model import Overhead, Report, RunInfo, SiteRow, Totals

FIT = "trainer.fit(model)"
RESULT = "/v/lib/python3.12/site-packages/lightning/pytorch/trainer/connectors/logger_connector/result.py"
READ = CallSite(RESULT, 500, "_ResultCollection.metrics", 'metrics["pbar"][name] = convert_tensors_to_scalars(value)')


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's that has been imported."""

    def load(text):
        file = tmp_path / "lit_model.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location("lit_model", file)
        monkeypatch.setitem(sys.modules, "lit_model", importlib.util.module_from_spec(spec))
        return file

    return load


def test_the_line_that_asks_is_named(module):
    asks = f"prog_bar={True}"  # not as it is written in a program: this is a module of the user's, too
    file = module(f"def training_step(self, batch):\n    # {asks}\n    self.log('loss', 1.0, {asks})\n")
    advice = for_line("aten::_local_scalar_dense", "Trainer.fit", "scalar_read", CallSite("t.py", 1, "m", FIT), READ)
    assert str(advice).startswith("self.log(..., prog_bar=False): what the progress bar shows is read")
    assert str(advice).endswith(f"(it is asked for at {file}:3)")


def test_where_nobody_is_found_the_advice_stands_alone(module):
    module("def training_step(self, batch):\n    self.log('loss', 1.0)\n")
    advice = for_line("aten::_local_scalar_dense", "Trainer.fit", "scalar_read", CallSite("t.py", 1, "m", FIT), READ)
    assert "asked for" not in str(advice)


def test_a_script_that_has_ended_is_searched_as_well(tmp_path):
    """It is no module any more when the report is made."""
    script = tmp_path / "train.py"
    script.write_text(f"clip_grad_norm_(parameters, 1.0, error_if_nonfinite={True})\n")
    line = CallSite(str(script), 1, "<module>", script.read_text().rstrip())
    clip = CallSite(
        "/v/lib/python3.12/site-packages/torch/nn/utils/clip_grad.py", 9, "clip_grad_norm_", "if x.isnan():"
    )
    row = SiteRow(
        "aten::is_nonzero", None, "scalar_read", line.file, 1, "<module>", line.source, "other", 9, 1.0, 9.0, 1.0, 1.0,
        sampled=False, allowed=None, step_stall_ms=8.0, library=clip,
    )  # fmt: skip
    run = RunInfo("", 1.0, None, None, "GPU", "", None, None, 9, "observe", "auto", simulated=False)
    [site] = advised(Report(run, (), Overhead(None, None), 0, Totals(9, 9.0, 0.1), (row,))).sites
    assert site.advice.endswith(f"(it is asked for at {script}:1)")


@pytest.mark.usefixtures("lazy")
def test_a_module_that_the_program_has_not_used_yet_is_not_imported(module):
    module("def training_step(self, batch):\n    pass\n")
    assert for_line("aten::_local_scalar_dense", None, "scalar_read", CallSite("t.py", 1, "m", FIT), READ)
