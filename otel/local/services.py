"""Collector, Jaeger, Phoenix and Prometheus on loopback: what ``make telemetry-demo`` and ``make test-stack`` start."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import programs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


class NotHereError(Exception):
    """A service that cannot be started on this machine; the message says how to get it."""


class Service:
    """A process that answers HTTP.  Leaving the ``with`` block ends it."""

    def __init__(self, command: list[str], url: str, ready: str, log: Path, environ: dict[str, str]) -> None:
        self.url = url
        self.grpc = ""
        """Where it takes OTLP over gRPC."""
        self.otlp = url
        """Where it takes OTLP over HTTP."""
        self.log = log
        with log.open("wb") as file:
            # In a session of its own: Ctrl-C is for whoever started it, who then ends it.
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environ, start_new_session=True
            )
        try:
            self._wait(ready)
        except BaseException:
            self.stop()
            raise

    def _wait(self, ready: str, timeout_s: float = 120) -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(self.url + ready, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        said = "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])
        raise RuntimeError(f"{self.url} does not answer (exit code {self.process.poll()}):\n{said}")

    def get(self, path: str) -> object:
        """The JSON at that path."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def __enter__(self) -> Service:  # noqa: PYI034 - Self is of 3.11
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def port(wanted: int = 0) -> int:
    """That port if it is free, else any free one."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended leave it free
        try:
            one.bind(("127.0.0.1", wanted))
        except OSError:
            one.bind(("127.0.0.1", 0))
        number: int = one.getsockname()[1]
        return number


def free_ports(count: int, wanted: int = 0) -> int:
    """The first of that many free ports in a row."""
    while True:
        first = port(wanted)
        if first + count <= 65536 and all(port(first + n) == first + n for n in range(count)):
            return first
        wanted = 0


def _phoenix_venv() -> Path:
    return Path(os.environ.get("SYNCAGENT_PHOENIX", ROOT / ".venv-phoenix"))


def has_phoenix() -> bool:
    return (_phoenix_venv() / ".ready").exists()


def has(name: str) -> bool:
    """Whether ``collector`` or ``jaeger`` is built."""
    return programs.path(name).exists()


def find_prometheus() -> str | None:
    return shutil.which("prometheus")


def phoenix(folder: Path, *, http: int = 0, grpc: int = 0) -> Service:
    """Arize Phoenix with an empty store in ``folder``; its OTLP endpoint is its own address, gRPC at ``.grpc``.

    ``SYNCAGENT_PHOENIX`` names the virtual environment, ``.venv-phoenix`` unless set.
    """
    venv = _phoenix_venv()
    if not has_phoenix():
        raise NotHereError(f"Phoenix is not installed in {venv}: `make telemetry-demo` and `make test-stack` do that.")
    http, grpc = port(http), port(grpc)
    folder.mkdir(parents=True, exist_ok=True)
    service = Service(
        [str(venv / "bin" / "python"), str(HERE / "phoenix_on_loopback.py"), "serve"],
        f"http://127.0.0.1:{http}",
        "/healthz",
        folder / "phoenix.log",
        _clean()
        | {
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(http),
            "PHOENIX_GRPC_PORT": str(grpc),
            "PHOENIX_WORKING_DIR": str(folder),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
            "PHOENIX_AGENTS_DISABLE_BASH": "true",
            "PHOENIX_ENABLE_MCP_SERVER": "false",
        },
    )
    service.grpc = f"http://127.0.0.1:{grpc}"
    return service


def jaeger(folder: Path, *, http: int = 0, grpc: int = 0) -> Service:
    """Jaeger with an empty store in memory; its API is at ``.url``, and it takes OTLP over gRPC at ``.grpc``."""
    http, grpc, own = port(http), port(grpc), port()
    storage = {"backends": {"memory": {"memory": {"max_traces": 100_000}}}}
    config = {
        "extensions": {
            "jaeger_storage": storage,
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": f"127.0.0.1:{http}"},
                "grpc": {"endpoint": f"127.0.0.1:{port()}"},
            },
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{grpc}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": _own_metrics(own)},
        },
    }
    service = _go_program("jaeger", [config], folder, f"http://127.0.0.1:{http}", "/api/services", {})
    service.grpc = f"http://127.0.0.1:{grpc}"
    return service


class Ports:
    """Where a Collector listens on loopback: wanted ports that are free, else any."""

    def __init__(self, *, grpc: int = 0, http: int = 0, metrics: int = 0) -> None:
        self.grpc, self.http, self.metrics, self.own, self.health = map(port, (grpc, http, metrics, 0, 0))


def collector(
    folder: Path,
    config: Path,
    ports: Ports,
    environ: dict[str, str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> Service:
    """The Collector with a configuration of ``otel/collector``, as it is but for where it listens, and ``overrides``.

    It takes OTLP over HTTP at ``.otlp`` and over gRPC at ``.grpc``.
    """
    listening = {
        "extensions": {"health_check": {"endpoint": f"127.0.0.1:{ports.health}"}},
        "receivers": {
            "otlp": {
                "protocols": {
                    "grpc": {"endpoint": f"127.0.0.1:{ports.grpc}"},
                    "http": {"endpoint": f"127.0.0.1:{ports.http}"},
                }
            }
        },
        "exporters": {"prometheus": {"endpoint": f"127.0.0.1:{ports.metrics}"}},
        "service": {"telemetry": {"metrics": _own_metrics(ports.own)}},
    }
    layers = [config, listening, *([overrides] if overrides else [])]
    service = _go_program("collector", layers, folder, f"http://127.0.0.1:{ports.health}", "/", environ or {})
    service.grpc = f"http://127.0.0.1:{ports.grpc}"
    service.otlp = f"http://127.0.0.1:{ports.http}"
    return service


def _own_metrics(port: int) -> dict[str, Any]:
    return {"readers": [{"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": port}}}}]}


def _go_program(
    name: str, layers: list[Path | dict[str, Any]], folder: Path, url: str, ready: str, environ: dict[str, str]
) -> Service:
    """Start it with its layers of configuration, each of which adds to the one before."""
    if not has(name):
        raise NotHereError(f"{name.title()} is not built: `make telemetry-demo` and `make test-stack` do that with Go.")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, layer in enumerate(layers):
        file = layer if isinstance(layer, Path) else folder / f"layer{number}.yaml"
        if isinstance(layer, dict):
            file.write_text(json.dumps(layer, indent=2))  # YAML takes JSON
        files.append(f"--config={file}")
    return Service([str(programs.path(name)), *files], url, ready, folder / f"{name}.log", _clean() | environ)


def prometheus(
    folder: Path, targets: dict[str, list[str]], *, http: int = 0, interval_s: int = 1, rules: Path | None = None
) -> Service:
    """Prometheus with an empty store in ``folder``, which scrapes ``targets``: addresses by the name of their job."""
    program = find_prometheus()
    if program is None:
        raise NotHereError(
            "Prometheus is not installed: `apt-get install prometheus` as root, or https://prometheus.io/download."
        )
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.yaml"  # YAML takes JSON
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"},
                "rule_files": [str(rules)] if rules else [],
                "scrape_configs": [
                    {"job_name": job, "honor_labels": True, "static_configs": [{"targets": addresses}]}
                    for job, addresses in targets.items()
                ],
            },
            indent=2,
        )
    )
    http = port(http)
    return Service(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'store'}",
            f"--web.listen-address=127.0.0.1:{http}",
            "--enable-feature=exemplar-storage",
        ],
        f"http://127.0.0.1:{http}",
        "/-/ready",
        folder / "prometheus.log",
        _clean(),
    )


def _clean() -> dict[str, str]:
    """No setting that is meant for the training job."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SYNCAGENT", "PHOENIX_"))
    }
