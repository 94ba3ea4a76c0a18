"""``syncagent doctor`` as it is called: sound, with everything wrong, on the simulated device, and without torch."""

from __future__ import annotations

import json
import os
import socket
import sys

import pytest

from syncagent import native
from tests import processes

needs_library = pytest.mark.skipif(bool(native.why_not()), reason=native.why_not())


def doctor(folder, *words, **variables):
    return processes.run("-m", "syncagent", "doctor", *words, cwd=folder, COLUMNS="100", **variables)


@needs_library
def test_where_everything_works_it_says_so_on_one_screen(tmp_path):
    """Versions, settings, files, collector, autostart, library and sensors; nothing is left behind."""
    done = doctor(tmp_path)
    assert (done.stderr, done.returncode) == ("", 0)
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 105
    assert lines[0].startswith("syncagent ")
    assert "torch " in lines[0]
    begun = [line.split()[0] for line in lines if line[:1].isalpha()]
    assert begun[1:9] == ["settings", "files", "autostart", "native", "collector", "device", "sensors", "Everything"]
    for sensor in ("driver", "kernels", "explicit", "monitored", "modes"):
        assert any(line.strip().removeprefix("sensors").strip().startswith(sensor) for line in lines)
    assert "syncagent selftest" in lines[-1]
    assert os.listdir(tmp_path) == []


def test_each_problem_is_a_sentence_and_the_exit_code_is_1(tmp_path):
    """Whatever else is wrong: all are told."""
    (tmp_path / "pyproject.toml").write_text("[tool.syncagent\n")
    done = doctor(
        tmp_path, "--format", "json", SYNCAGENT="1", SYNCAGENT_POLCY="warn", SYNCAGENT_DETAIL="all",
        SYNCAGENT_POLICY="raise", SYNCAGENT_CAPTURE="/proc/none/x.jsonl",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{processes.free_port()}",
    )  # fmt: skip
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["schema"], found["works"]) == (1, False)
    problems = "\n".join(found["problems"])
    for said in (
        "SYNCAGENT_DETAIL is 'all'", "it is not TOML", "did you mean SYNCAGENT_POLICY?", "/proc/none/x.jsonl",
        "cannot be reached (connection refused)",
    ):  # fmt: skip
        assert problems.count(said) == 1
    sensors = {row["name"]: row["found"] for section in found["sections"] for row in section["rows"]
               if section["name"] == "sensors"}  # fmt: skip
    assert sensors["kernels"] in {"live", "off"}


@needs_library
def test_with_the_simulated_device_a_gate_works_and_a_collector_is_sent_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = doctor(tmp_path, SYNCAGENT_SIMULATE="1", SYNCAGENT_POLICY="raise", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        connection, _ = server.accept()
        assert connection.recv(1) == b""
        connection.close()
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    assert "simulated CUDA device" in done.stdout
    assert "Everything that was asked for works." in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_torch_that_breaks_down_is_a_problem(tmp_path):
    """The process in which it is tried ends by a signal; the doctor does not."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n")
    done = doctor(tmp_path)
    assert done.returncode == 1
    assert "The agent cannot start here: signal 11 ended it" in done.stdout


def test_without_torch_it_says_so_and_looks_at_the_rest(tmp_path):
    """An environment that has all that syncagent needs, and no torch."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in filter(os.path.isdir, sys.path):
        for name in os.listdir(folder) if folder.endswith(("site-packages", "dist-packages")) else ():
            is_torch = name.startswith(("torch", "functorch"))
            if not (is_torch or name.endswith(".pth") or (packages / name).is_symlink()):
                (packages / name).symlink_to(os.path.join(folder, name))
    done = processes.run(
        "-S", "-c", "from syncagent.cli import main; raise SystemExit(main(['doctor']))",
        cwd=tmp_path, PYTHONPATH=f"{processes.ROOT}{os.pathsep}{packages}", COLUMNS="100",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "torch not installed" in done.stdout.splitlines()[0]
    assert "1. Torch is not installed in this environment" in done.stdout
    assert "capture" in done.stdout
