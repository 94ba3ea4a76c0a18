"""Spans, metrics and log records on their way to a real Collector: HTTP and gRPC, TLS, headers, compression."""

from __future__ import annotations

import json

import pytest
from certificates import Authority
from keeping import Kept, start, total

import services  # isort: skip

SCRIPT = """\
import torch
from torch import nn

torch.manual_seed(0)
net = nn.Linear(16, 4).to("cuda")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(12):
    y = net(torch.rand(32, 16, device="cuda"))
    loss = y[y > 0].sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print("loss", loss.item())
raise SystemExit(0)
"""
LOSS: dict[str, str] = {}
"""What the script printed, which no way of sending may change."""

SEES_HEADERS = {
    "transform/headers": {
        "error_mode": "propagate",
        **{
            f"{signal}_statements": [
                f'set(resource.attributes["{name}"], otelcol.client.metadata["{name}"][0])'
                f' where otelcol.client.metadata["{name}"] != nil'
                for name in ("x-team", "authorization", "content-encoding")
            ]
            for signal in ("trace", "metric", "log")
        },
    }
}
"""Makes attributes of the headers of a request, where its receiver has ``include_metadata``."""

PROTOCOLS = {"http": "http/protobuf", "grpc": "grpc"}


class Collector:
    def __init__(self, folder, authority):
        self.kept = Kept(folder)
        server = dict(zip(("cert_file", "key_file"), map(str, authority.sign("server")), strict=True))
        tls = {
            "plain": None,
            "tls": server,
            "mutual": server | {"client_ca_file": str(authority.certificate)},
        }
        self._ports, receivers = {}, {}
        for name, settings in tls.items():
            listens = {}
            for protocol in PROTOCOLS:
                port = self._ports[name, protocol] = services.port()
                listens[protocol] = {"endpoint": f"127.0.0.1:{port}", "include_metadata": True}
                if settings:
                    listens[protocol]["tls"] = settings
            receivers[f"otlp/{name}"] = {"protocols": listens}
        self._service = start(folder, receivers=receivers, processors=SEES_HEADERS)
        self.stop = self._service.stop

    def endpoint(self, name, protocol):
        return f"http{'' if name == 'plain' else 's'}://127.0.0.1:{self._ports[name, protocol]}"

    def of(self, service):
        """Spans, points and records that came from a job with that name."""
        return [
            [one for one in all_of_them if one["resource"]["service.name"] == service]
            for all_of_them in (self.kept.spans(), self.kept.points(), self.kept.records())
        ]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def collector(authority, tmp_path_factory):
    one = Collector(tmp_path_factory.mktemp("collector"), authority)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("another"), "another")


@pytest.fixture(scope="module")
def client(authority, another):
    """The variables of a job that has a certificate, and knows the Collector's authority."""
    certificate, key = authority.sign("client")
    elsewhere = {"REQUESTS_CA_BUNDLE": str(another.certificate)}  # for the job's own downloads
    return {
        "plain": {},
        "tls": elsewhere | {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority.certificate)},
        "mutual": elsewhere
        | {
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority.certificate),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificate),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(key),
        },
    }


class Ran:
    def __init__(self, done, report):
        self.report = json.loads(report.read_text())
        lines = done.stderr.splitlines()
        self.faults = [line for line in lines if line.startswith("[syncagent]") and "against the policy" not in line]
        (self.spans_line,) = [line for line in lines if line.startswith("spans: ")]
        assert done.returncode == 0, done.stderr
        assert done.stdout == LOSS.setdefault("printed", done.stdout)
        assert "Traceback" not in done.stderr


@pytest.fixture
def train(forked, tmp_path):
    def run(service, endpoint, protocol, **variables):
        (tmp_path / "train.py").write_text(SCRIPT)
        own = {
            "SYNCAGENT_POLICY": "warn",
            "SYNCAGENT_WARMUP_STEPS": "0",
            "SYNCAGENT_REPORT": str(tmp_path / "report.json"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": PROTOCOLS[protocol],
            "OTEL_LOGS_EXPORTER": "otlp",
            "OTEL_SERVICE_NAME": service,
        }
        return Ran(forked("train.py", **own | variables), tmp_path / "report.json")

    return run


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("security", ["plain", "tls", "mutual"])
def test_all_signals_arrive(collector, client, train, security, protocol):
    """Each sync as a span and in the counts, each violation's record in its span; headers and compression with them."""
    service = f"{security}-{protocol}"
    ran = train(
        service,
        collector.endpoint(security, protocol),
        protocol,
        OTEL_EXPORTER_OTLP_HEADERS="x-team=ml%20research,authorization=Bearer%20secret",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        **client[security],
    )
    assert ran.faults == []
    syncs = ran.report["totals"]["syncs"]
    spans, points, records = collector.of(service)
    steps = [span for span in spans if span["name"] == "train.step"]
    assert len({span["id"] for span in spans}) == len(spans) == syncs + len(steps)
    assert len(steps) >= 12
    assert {span["parent"] for span in spans} == {"", *(step["id"] for step in steps)}
    assert total(points, "syncagent.syncs") == syncs > 24
    assert total(points, "syncagent.spans.dropped") == 0
    in_violation = {(span["trace"], span["id"]) for span in spans if span["attributes"].get("syncagent.violation")}
    assert len(records) >= 4
    assert {(record["trace"], record["span"]) for record in records} <= in_violation
    for one in (*spans, *points, *records):
        assert one["resource"]["x-team"] == "ml research"
        assert one["resource"]["authorization"] == "Bearer secret"
        # Over gRPC the Collector does not show how a message came.
        assert one["resource"].get("content-encoding") == ("gzip" if protocol == "http" else None)


@pytest.fixture
def refused(collector, train):
    """Train where nothing can be sent: one sentence says so, which is returned, and each span is counted as lost."""

    def run(security, protocol, endpoint=None, **variables):
        ran = train("refused", endpoint or collector.endpoint(security, protocol), protocol, **variables)
        (line,) = ran.faults
        assert "spans are being lost; training goes on, reported once" in line
        (note,) = [note for note in ran.report["notes"] if "spans were lost" in note]
        lost = int(note.split()[0].replace(",", ""))
        assert (
            lost == ran.report["totals"]["syncs"] + ran.report["run"]["steps"] + 1
        )  # the last read is after all steps
        assert f"(0 sent, {lost:,} lost)" in ran.spans_line
        assert collector.of("refused") == [[], [], []]
        return line.partition("reason=")[2].strip('"')

    return run


UNTRUSTED = "its certificate is not trusted; OTEL_EXPORTER_OTLP_CERTIFICATE may name the authority's"
BRIEFLY = {"OTEL_EXPORTER_OTLP_TIMEOUT": "2", "OTEL_LOGS_EXPORTER": "none"}
"""For as long as one retry takes."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_certificate_of_another_authority(refused, another, protocol):
    variables = BRIEFLY | {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(another.certificate)}
    assert refused("tls", protocol, **variables) == UNTRUSTED


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_certificate_of_no_authority_that_the_system_trusts(refused, protocol):
    assert refused("tls", protocol, **BRIEFLY) == UNTRUSTED


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_job_without_a_certificate_where_one_is_asked_for(refused, client, protocol):
    said = refused("mutual", protocol, **BRIEFLY, **client["tls"])
    # With TLS 1.3 the request is on its way when the refusal comes, which may be lost with the connection.
    assert said.startswith(("it wants a client certificate: OTEL_EXPORTER_OTLP_CLIENT", "it closes the connection"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_text_where_tls_is_asked_for(collector, refused, protocol):
    """The Collector only closes the connection."""
    assert refused("tls", protocol, collector.endpoint("tls", protocol).replace("https:", "http:"), **BRIEFLY)
