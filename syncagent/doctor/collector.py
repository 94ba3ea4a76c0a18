"""Whether what the ``OTEL_*`` variables name can be reached: connections that are closed at once, and nothing sent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from syncagent.errors import ConfigError
from syncagent.support import reading
from syncagent.telemetry import otel_env

_PATIENCE_S = 2.0
_SIGNALS = {otel_env.TRACES: "spans", otel_env.METRICS: "metrics", otel_env.LOGS: "log records"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where something goes."""

    what: str
    address: str = ""
    variable: str = ""
    """The variable that says so."""
    wrong: str = ""
    """Why it cannot go anywhere: a sentence on a variable."""
    note: str = "answers"
    why_not: str = ""
    """Why nothing answers there."""


def takes_spans(environment: Mapping[str, str]) -> bool:
    """Whether the variables say where spans go, so that there is no journal."""
    return otel_env.is_disabled(environment) or otel_env.exporter(environment) is not None


def targets(environment: Mapping[str, str]) -> list[Target]:
    """Return where each signal goes that is to be sent, after a try to connect."""
    found: dict[tuple[str, int], str] = {}
    return [_tried(target, found) for target in _wanted(environment)]


def _wanted(environment: Mapping[str, str]) -> Iterator[Target]:
    try:
        otel_env.check(environment, otel_env.RESOURCE)
    except ConfigError as error:
        yield Target("spans, metrics or log records", wrong=str(error))
        return
    for signal, what in _SIGNALS.items():
        if signal == otel_env.LOGS and not environment.get("OTEL_LOGS_EXPORTER", "").strip():
            continue  # an endpoint alone does not ask for log records
        try:
            otel_env.check(environment, signal)
            exporter = otel_env.exporter(environment, signal)
            if exporter == otel_env.PROMETHEUS:
                yield _scraped(environment)
            if exporter != "otlp":
                continue
            address = otel_env.endpoint(environment, signal)
        except ConfigError as error:
            yield Target(what, wrong=str(error))
            continue
        own = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"
        yield Target(what, address, own if environment.get(own) else "OTEL_EXPORTER_OTLP_ENDPOINT")


def _scraped(environment: Mapping[str, str]) -> Target:
    if find_spec("prometheus_client") is None:
        return Target("metrics", wrong="prometheus_client is not installed (pip install 'syncagent[prometheus]')")
    host, port = (environment.get(f"OTEL_EXPORTER_PROMETHEUS_{name}", "").strip() for name in ("HOST", "PORT"))
    return Target("metrics", f"http://{host or 'localhost'}:{port or 9464}/metrics", note="while a run is watched")


def _tried(target: Target, found: dict[tuple[str, int], str]) -> Target:
    if not target.variable:
        return target
    place, by = _place(target.address)
    if place not in found:
        found[place] = _why_unreachable(*place)
    why_not = f"{found[place]}{by}" if found[place] else ""
    return replace(target, why_not=why_not)


def _place(address: str) -> tuple[tuple[str, int], str]:
    """Return host and port to connect to, which may be a proxy's, and a word on that."""
    url = urlsplit(address if "://" in address else f"http://{address}")
    host = url.hostname or "localhost"
    proxy = getproxies().get(url.scheme) if not proxy_bypass(host) else None
    if proxy:
        of_proxy = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return (of_proxy.hostname or "localhost", of_proxy.port or 80), ", by the proxy of this environment"
    return (host, url.port or (443 if url.scheme == "https" else 80)), ""


def _why_unreachable(host: str, port: int) -> str:
    """Return why no connection can be made, in words; empty where it can.

    Names are resolved by the system, for as long as it likes: on a thread that is not waited for any longer.
    """
    said = [f"no answer within {_PATIENCE_S:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_PATIENCE_S).close()
            said.append("")
        except OSError as error:
            said.append(said[0] if isinstance(error, TimeoutError) else reading.reason(error))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S * 1.5)
    return said[-1]
