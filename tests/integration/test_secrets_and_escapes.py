"""A whole run with secrets in its command line and variables, and terminal escapes in its code: neither comes out."""

from __future__ import annotations

import json
import re
import socket

import pytest

ARGUMENT, USER, PASSWORD, QUERY, HEADER = (
    "argum3nt-of-the-job", "us3r-of-the-collector", "passw0rd-of-the-collector", "qu3ry-of-the-collector",
    "head3r-of-the-collector",
)  # fmt: skip
SECRETS = (ARGUMENT, USER, PASSWORD, QUERY, HEADER)

SCRIPT = """\
import threading
import torch

x = torch.ones(3, device="cuda")
def train():
    with torch.profiler.record_function("lab\\x1b[31mel\\u202e"):
        x.nonzero()  # \x1b]0;owned\x07 \x9b31m \u202egnirts

threading.current_thread().name = "thre\\x1b[2Jad"
for _ in range(5):
    train()
print("done")
"""
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def train(python, tmp_path):
    """Run the script with one secret in its command line; the result is what it printed."""
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")

    def run(report, **variables):
        return python(
            "train.py", "--hub-token", ARGUMENT, f"wandb.api_key={ARGUMENT}", OMP_NUM_THREADS="1",
            SYNCAGENT="1", SYNCAGENT_SIMULATE="1", SYNCAGENT_POLICY="warn", SYNCAGENT_WARMUP_STEPS="0",
            SYNCAGENT_REPORT=report, **variables,
        )  # fmt: skip

    return run


@pytest.fixture
def syncagent(python):
    """What a command prints."""

    def run(*words):
        done = python("-m", "syncagent", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_neither_what_is_printed_nor_any_file_has_them(train, syncagent, tmp_path):
    """A collector that is not there, so that its exporters complain; and a journal, with a detector of the process."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        endpoint = f"http://{USER}:{PASSWORD}@{address}/v1?token={QUERY}"
        headers = f"authorization=Bearer%20{HEADER},x-key={HEADER}"
        sent = train(
            "sent.json",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_HEADERS=headers, OTEL_LOGS_EXPORTER="otlp",
            OTEL_BSP_SCHEDULE_DELAY="100", OTEL_EXPORTER_OTLP_TIMEOUT="1",
            OTEL_METRIC_EXPORT_INTERVAL="100", SYNCAGENT_LOG_LEVEL="debug",
        )  # fmt: skip
    kept = train("kept.html", OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="otel,process", SYNCAGENT_JOURNAL="j.jsonl")
    assert sent.returncode == kept.returncode == 0, sent.stderr + kept.stderr
    assert f"http://{address}/v1/v1/traces" in sent.stderr  # the address is reported
    assert "HostSyncWarning" in sent.stderr
    shown = [syncagent("report", str(tmp_path / "sent.json"), "--format", form) for form in ("text", "html", "sarif")]
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "train.py"]
    assert len(files) >= 3
    everything = [
        sent.stdout,
        sent.stderr,
        kept.stdout,
        kept.stderr,
        *shown,
        *(file.read_text("utf-8") for file in files),
    ]
    for text in everything:
        assert [secret for secret in SECRETS if secret in text] == []
        assert HARMFUL.findall(text) == []
    report = json.loads((tmp_path / "sent.json").read_text())
    assert report["run"]["argv"][1:] == ["--hub-token", "[redacted]", "wandb.api_key=[redacted]"]
    assert "process.command" in (tmp_path / "j.jsonl").read_text("utf-8")
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
