"""What the doctor looks at without torch, each by itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from syncagent.doctor import checks, collector, text
from syncagent.doctor.section import Row, Section
from syncagent.settings import sources
from tests import processes

pytestmark = pytest.mark.usefixtures("no_settings")


def rows(section):
    return {row.name: (row.found, row.note) for row in section.rows}


@pytest.fixture
def listening():
    """A server on loopback that accepts connections; its port, and what it was sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port(server):
    return server.getsockname()[1]


class TestSettings:
    def section(self, **environment):
        return checks.settings_in_force(*sources.survey(environment))

    def test_each_has_its_value_and_its_source(self, tmp_path):
        (tmp_path / "pyproject.toml").write_text("[tool.syncagent]\noverhead = 0.02\nstacks = true\n")
        section = self.section(
            SYNCAGENT_MAX_SYNCS_PER_STEP="forward=2,backward=0", SYNCAGENT_ALLOW_KINDS="check,explicit"
        )
        assert rows(section) == {
            "overhead": ("0.02", str(tmp_path / "pyproject.toml")),
            "stacks": ("true", str(tmp_path / "pyproject.toml")),
            "allow_kinds": ("check,explicit", "SYNCAGENT_ALLOW_KINDS"),
            "max_syncs_per_step": ("forward=2,backward=0", "SYNCAGENT_MAX_SYNCS_PER_STEP"),
            "all others": ("default", "keywords of watch() and options of run come on top"),
        }
        assert section.problems == []

    def test_what_has_no_effect_is_a_problem_with_a_remedy(self, tmp_path):
        """A value that is not allowed does not hide the others."""
        (tmp_path / "pyproject.toml").write_text("[tool.syncagent]\npolcy = 'warn'\ndetail = 'all'\ncost = true\n")
        section = self.section(SYNCAGENT_POLCY="raise", SYNCAGENT_ENTIRELY_UNHEARD_OF="1", SYNCAGENT_COST_STEPS="none")
        assert rows(section)["cost"] == ("true", str(tmp_path / "pyproject.toml"))
        unknown, detail, steps, nothing, meant = section.problems
        assert unknown.startswith(f"setting [tool.syncagent] polcy in {tmp_path}/pyproject.toml is 'warn'")
        assert detail.endswith("is 'all', but it must be one of auto, ops, syncs.")
        assert steps.startswith("setting SYNCAGENT_COST_STEPS is 'none', but it must be a whole number")
        assert meant.endswith("SYNCAGENT_POLCY is not a setting of syncagent; did you mean SYNCAGENT_POLICY?")
        assert (
            nothing == "the variable SYNCAGENT_ENTIRELY_UNHEARD_OF is not a setting of syncagent; correct or unset it."
        )

    def test_a_broken_project_file_is_a_problem(self, tmp_path):
        (tmp_path / "pyproject.toml").write_text("[tool.syncagent\n")
        [problem] = self.section().problems
        assert "was not read for settings: it is not TOML" in problem
        assert problem.endswith("none of its settings is in force until that is corrected.")

    def test_secrets_are_not_shown(self):
        section = self.section(SYNCAGENT_JOURNAL="https://ada:hunter22@host/x")
        assert "hunter22" not in rows(section)["journal"][0]


class TestFiles:
    def section(self, **environment):
        return checks.files(sources.load(environment=environment), environment)

    def test_where_they_would_go_and_that_they_can_be_written(self, tmp_path):
        """Nothing is left behind, not even a folder."""
        section = self.section(SYNCAGENT_REPORT="out/deep/r.json", SYNCAGENT_CAPTURE="c.jsonl")
        assert rows(section) == {
            "report": (f"{tmp_path}/out/deep/r.json", "can be written"),
            "journal": (f"{tmp_path}/.syncagent/journal-….jsonl", "can be written"),
            "capture": (f"{tmp_path}/c.jsonl", "can be written"),
        }
        assert section.problems == []
        assert list(tmp_path.iterdir()) == []

    def test_a_path_that_cannot_be_written_is_a_problem(self, tmp_path):
        (tmp_path / "file").write_text("")
        (tmp_path / ".syncagent").mkdir()
        (tmp_path / ".syncagent").chmod(0o777)  # where anyone may put a link
        section = self.section(SYNCAGENT_REPORT="file/r.json")
        assert [row.note for row in section.rows] == ["cannot be written"] * 3
        report, journal, capture = section.problems
        assert report == (
            f"the report cannot be written to {tmp_path}/file/r.json: '{tmp_path}/file' is no folder; set another path."
        )
        assert "anyone may write to it; set another path, or turn it off with SYNCAGENT_JOURNAL=off." in journal
        assert "turn it off with SYNCAGENT_CAPTURE=off" in capture

    def test_what_is_off_is_not_looked_at(self):
        section = self.section(
            SYNCAGENT_CAPTURE="off", SYNCAGENT_JOURNAL="/proc/no/j", OTEL_EXPORTER_OTLP_ENDPOINT="http://localhost:1"
        )
        assert rows(section) == {
            "report": ("not saved", "SYNCAGENT_REPORT is not set"),
            "journal": ("not written", "spans go to the collector, or nowhere"),
            "capture": ("not written", "setting capture is off"),
        }

    def test_a_folder_without_permission(self, tmp_path):
        """Nor can its pyproject.toml be looked for."""
        folder = tmp_path / "locked"
        folder.mkdir()
        code = (
            "import json, os; from syncagent.doctor import checks; from syncagent.settings import sources\n"
            "settings, wrong = sources.survey()\n"
            "print(json.dumps(checks.files(settings, os.environ).problems"
            " + checks.settings_in_force(settings, wrong).problems))"
        )
        words = [sys.executable, "-c", code]
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                pytest.skip("root may read anything, and setpriv is not there to give that up")
            words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *words]
        environment = processes.environment(PYTHONPATH=str(processes.ROOT))
        folder.chmod(0)
        try:
            done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        finally:
            folder.chmod(0o700)
        journal, capture, project = json.loads(done.stdout)
        assert "permission denied; set another path, or turn it off" in journal
        assert "permission denied" in capture
        assert f"'{folder}/pyproject.toml' was not read for settings: permission denied; none of its" in project


class TestCollector:
    def test_one_that_listens_answers_and_is_sent_nothing(self, listening):
        section = checks.collectors({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port(listening)}"})
        address = f"http://127.0.0.1:{port(listening)}/v1"
        assert rows(section) == {
            "spans": (f"{address}/traces", "answers"), "metrics": (f"{address}/metrics", "answers"),
        }  # fmt: skip
        assert section.problems == []
        listening.settimeout(5)
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(1) == b""
        listening.settimeout(0.05)
        with pytest.raises(TimeoutError):  # both signals go to one place, which is asked once
            listening.accept()

    def test_one_that_does_not_answer_is_one_problem(self):
        section = checks.collectors({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{processes.free_port()}"})
        [problem] = section.problems
        assert "cannot be reached (connection refused), so spans and metrics would be lost" in problem
        assert problem.endswith("start it, or correct OTEL_EXPORTER_OTLP_ENDPOINT.")

    def test_each_signal_may_have_its_own(self, listening):
        section = checks.collectors({
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{port(listening)}/x",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://u:hunter22@127.0.0.1:{processes.free_port()}",
            "OTEL_LOGS_EXPORTER": "otlp",
        })  # fmt: skip
        assert {name: note for name, (_, note) in rows(section).items()} == {
            "spans": "answers", "metrics": "connection refused", "log records": "connection refused",
        }  # fmt: skip
        assert "hunter22" not in str(section)

    def test_a_proxy_is_asked_in_its_place(self, listening, monkeypatch):
        for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port(listening)}")
        [target, _] = collector.targets({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:4318"})
        assert target.why_not == ""
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{processes.free_port()}")
        [target, _] = collector.targets({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:4318"})
        assert target.why_not == "connection refused, by the proxy of this environment"

    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "is not allowed; allowed: a URL such as"),
            (
                {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_BSP_SCHEDULE_DELAY": "-"},
                "OTEL_BSP_SCHEDULE_DELAY='-'",
            ),
            ({"OTEL_RESOURCE_ATTRIBUTES": "=,"}, "No spans, metrics or log records would be sent."),
        ],
    )
    def test_a_malformed_variable_is_a_problem(self, variables, said):
        assert any(said in problem for problem in checks.collectors(variables).problems)

    def test_none_is_no_problem(self):
        assert rows(checks.collectors({})) == {"all": ("none", "no OTEL_EXPORTER_OTLP_ENDPOINT is set")}
        section = checks.collectors({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x.invalid"})
        assert rows(section) == {"all": ("off", "OTEL_SDK_DISABLED is set")}
        assert section.problems == []


def test_a_gate_that_no_script_could_start_with_is_a_problem(tmp_path):
    settings = sources.load({"policy": "warn", "baseline": str(tmp_path / "none.json")})
    [problem] = checks.the_gate(settings).problems
    assert "none.json" in problem
    assert problem.endswith("No script would start.")
    assert checks.the_gate(sources.load({"policy": "raise"})).problems == []
    assert checks.the_gate(sources.load({"policy": "warn"})).rows == []


def test_long_lines_are_wrapped_below_where_they_began():
    section = Section("sensors", [Row("a", "live", "one two three " * 9), Row("longer", "off\x1b[31m")])
    lines = list(text.lines(section, 60))
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("sensors    a       live  one two")
    assert lines[1].startswith(" " * 19)
    assert lines[1][19] != " "
    assert lines[-1] == "           longer  off\\x1b[31m"
