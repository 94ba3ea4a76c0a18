"""``make telemetry-demo``, from its start to Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from places import ROOT

import services  # isort: skip


@pytest.fixture
def demo(environ):
    lacking = {
        "Prometheus": services.find_prometheus() is None,
        "Phoenix": not services.has_phoenix(),
        "the Collector": not services.has("collector"),
    }
    if any(lacking.values()):
        pytest.skip(f"the demo is of all of them; not here: {', '.join(filter(lacking.get, lacking))}")
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "examples" / "telemetry_demo.py")],
        env={**os.environ, "NO_PROXY": "*"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    yield process
    if process.poll() is None:  # it ends what it has started, which has sessions of its own
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    process.stdout.close()


@pytest.mark.timeout(300)
def test_it_prints_addresses_that_answer_and_leaves_nothing_behind(demo):
    said = ""
    for line in demo.stdout:
        said += line
        if "Ctrl-C" in line:
            break
    pages = re.findall(r"(?<!=)http://\S+", said)  # an address to send to is no page
    assert len(pages) == 7 + services.has("jaeger"), said
    for page in pages:
        with urllib.request.urlopen(page, timeout=30) as answer:
            assert answer.status == 200, page
    demo.send_signal(signal.SIGINT)
    assert demo.stdout.read().strip() == "stopped"
    assert demo.wait(60) == 0
    until = time.monotonic() + 30
    addresses = set(re.findall(r"http://([\d.]+):(\d+)", said))  # the Collector's, too
    while is_open(addresses) and time.monotonic() < until:
        time.sleep(0.2)
    assert not is_open(addresses)


def is_open(addresses):
    """Which of them take connections; whether there is a page at the root, as Jaeger has none, says nothing."""
    found = []
    for host, port in addresses:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            found.append(port)
        except OSError:
            pass
    return found
