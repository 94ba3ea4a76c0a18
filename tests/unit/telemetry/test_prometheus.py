"""The endpoint that Prometheus scrapes: names, labels and numbers, and who gets which port."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext
from sink_records import step, sync

from syncagent.errors import ConfigError
from syncagent.events import CallSite
from syncagent.telemetry.metrics import Instrument, MetricSink, Number
from syncagent.telemetry.prometheus import ScrapeEndpoint, build_endpoint, families
from syncagent.telemetry.series import Series
from tests import processes

pytest.importorskip("prometheus_client")

RESOURCE = Resource({"service.name": "toy", "host.name": "a", "process.pid": 7, "syncagent.rank": 1, "team": "x"})
HOST, PORT = "OTEL_EXPORTER_PROMETHEUS_HOST", "OTEL_EXPORTER_PROMETHEUS_PORT"


def samples(found):
    """Each sample by its name and its labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample
        for family in families(found, RESOURCE)
        for sample in family.samples
    }


def values(found, name, *labels):
    """The values of a name by those labels."""
    return {
        tuple(dict(of).get(label) for label in labels): sample.value
        for (other, of), sample in samples(found).items()
        if other == name
    }


class TestNames:
    def test_they_are_those_that_the_collectors_exporter_gives(self):
        """As ``otel/README.md`` has them, "Names in Prometheus"."""
        sink = MetricSink()
        sink.events([sync()])
        sink.step(step(0, 10))
        sink.step(step(10, 20, 1))
        found = {name for name, _ in samples(sink.snapshot())}
        assert found >= {
            "syncagent_stall_duration_seconds_bucket",
            "syncagent_stall_duration_seconds_sum",
            "syncagent_stall_duration_seconds_count",
            "syncagent_syncs_total",
            "syncagent_step_duration_seconds_bucket",
            "syncagent_step_stall_ratio",
            "syncagent_events_dropped_total",
            "syncagent_series_folded_total",
            "target_info",
        }

    @pytest.mark.parametrize(
        ("name", "unit", "expected"), [("a.b-c", "1", "a_b_c_ratio"), ("a.ratio", "1", "a_ratio"), ("a", "{sync}", "a")]
    )
    def test_a_gauge_without_a_unit_is_a_ratio(self, name, unit, expected):
        found = {Instrument(name, unit, "", "gauge"): [Number({}, 0.5, 0)]}
        assert {name for name, _ in samples(found)} == {"target_info", expected}


class TestLabels:
    def test_a_series_says_which_process_and_which_line(self):
        sink = MetricSink()
        sink.events([sync(allowed="logging")])
        ((_, labels),) = [key for key in samples(sink.snapshot()) if key[0] == "syncagent_syncs_total"]
        assert dict(labels) == {
            "service_name": "toy",
            "host_name": "a",
            "process_pid": "7",
            "syncagent_rank": "1",
            "syncagent_op": "aten::nonzero",
            "syncagent_kind": "dynamic_shape",
            "syncagent_phase": "forward",
            "syncagent_allowed": "true",
            "syncagent_violation": "false",
            "code_file_path": "/app/train.py",
            "code_line_number": "12",
            "code_function_name": "loss",
        }

    def test_the_rest_of_the_resource_is_sent_once(self):
        ((_, labels),) = samples({})
        assert dict(labels)["team"] == "x"

    def test_any_text_can_be_written(self):
        from prometheus_client import generate_latest

        odd = 'a"b\\c\n\udce9'  # as os.fsdecode gives a Latin-1 é
        sink = MetricSink()
        sink.events([sync(op=odd)])
        resource = Resource({"service.name": odd})

        class Collector:
            def collect(self):
                return families(sink.snapshot(), resource)

        text = generate_latest(Collector()).decode()
        assert r'service_name="a\"b\\c\n\\udce9"' in text
        assert "syncagent_syncs_total{" in text

    def test_many_series_are_one_family(self):
        sink = MetricSink(max_series=60)
        sink.events([sync(site=CallSite("a.py", line, "f", "")) for line in range(1, 100)])
        found = [family.name for family in families(sink.snapshot(), RESOURCE)]
        assert len(found) == len(set(found))
        counts = values(sink.snapshot(), "syncagent_syncs_total", "syncagent_op", "code_line_number")
        assert len(counts) == 61
        assert counts["other", None] == 39
        assert sum(counts.values()) == 99


class TestHistograms:
    def test_buckets_are_cumulative(self):
        sink = MetricSink()
        sink.events([sync(stall=2), sync(stall=4), sync(stall=30), sync(stall=60_000)])
        found = sink.snapshot()
        buckets = values(found, "syncagent_stall_duration_seconds_bucket", "le")
        assert [buckets[le,] for le in ("0.001", "0.0025", "0.005", "0.05", "5.0", "+Inf")] == [0, 1, 2, 3, 3, 4]
        assert values(found, "syncagent_stall_duration_seconds_count") == {(): 4}
        assert values(found, "syncagent_stall_duration_seconds_sum") == {(): pytest.approx(60.036)}

    def test_an_exemplar_is_the_newest_of_its_bucket(self):
        series = Series({}, [1.0], 0)
        for value_s, span_id in ((0.5, 1), (0.4, 2), (3.0, 3)):
            series.add(value_s, 1, span=(span_id * 1_000_000_000, SpanContext(0xAB, span_id, is_remote=False)))
        series.add(0.3, 1)
        found = samples({Instrument("a", "s", "", "histogram"): [series]})
        exemplars = {dict(of)["le"]: one.exemplar for (name, of), one in found.items() if name == "a_seconds_bucket"}
        assert exemplars["1.0"] == ({"trace_id": f"{0xAB:032x}", "span_id": f"{2:016x}"}, 0.4, 2.0)
        assert exemplars["+Inf"].labels["span_id"] == f"{3:016x}"


class TestAddress:
    def test_each_rank_of_a_host_has_its_own_port(self, monkeypatch):
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        shown = [build_endpoint(RESOURCE, dict, rank).url for rank in (None, 0, 7)]
        assert shown == [f"http://localhost:{port}/metrics" for port in (9464, 9464, 9471)]
        monkeypatch.setenv(PORT, "9000")
        monkeypatch.setenv(HOST, "::")
        assert build_endpoint(RESOURCE, dict, 3).url == "http://[::]:9003/metrics"

    @pytest.mark.parametrize(("variable", "value"), [(PORT, "http"), (PORT, "70000"), (PORT, "0"), (HOST, "a:b/c")])
    def test_a_malformed_value_is_one_sentence(self, monkeypatch, variable, value):
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        monkeypatch.setenv(variable, value)
        with pytest.raises(ConfigError, match=f"{variable}={value!r} is not allowed; allowed: a"):
            build_endpoint(RESOURCE, list, None)

    def test_a_rank_beyond_the_last_port_is_reported(self, monkeypatch):
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        monkeypatch.setenv(PORT, "65535")
        with pytest.raises(ConfigError, match="OTEL_EXPORTER_PROMETHEUS_PORT=65535 is not allowed: for local rank 1"):
            build_endpoint(RESOURCE, list, 1)

    def test_without_the_package_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
        with pytest.raises(ConfigError, match=r"syncagent\[prometheus\]"):
            build_endpoint(RESOURCE, list, None)

    @pytest.mark.parametrize("exporter", ["otlp", "none", ""])
    def test_only_one_who_asks_for_it_has_it(self, monkeypatch, exporter):
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", exporter)
        assert build_endpoint(RESOURCE, list, None) is None

    def test_a_disabled_sdk_has_none(self, monkeypatch):
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        assert build_endpoint(RESOURCE, list, None) is None


@pytest.fixture
def free_port():
    return processes.free_port()


@pytest.fixture
def endpoint(free_port):
    sink = MetricSink()
    one = ScrapeEndpoint(sink.snapshot, RESOURCE, "localhost", free_port)
    one.sink, one.port = sink, free_port
    yield one
    one.close()


def scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def is_open(port, address="127.0.0.1"):
    with socket.socket() as one:
        return one.connect_ex((address, port)) == 0


class TestEndpoint:
    def test_a_process_that_never_trains_takes_no_port(self, endpoint):
        endpoint.events([])
        assert not is_open(endpoint.port)

    @pytest.mark.parametrize(("host", "is_reached"), [("localhost", False), ("0.0.0.0", True)])
    def test_no_other_machine_reaches_it_unless_it_is_opened(self, free_port, host, is_reached):
        one = ScrapeEndpoint(MetricSink().snapshot, RESOURCE, host, free_port)
        one.step(step())
        assert is_open(free_port)
        assert is_open(free_port, "127.0.0.2") == is_reached
        one.close()

    @pytest.mark.parametrize("first", [lambda one: one.events([sync()]), lambda one: one.step(step())])
    def test_it_is_there_from_the_first_sync_or_step_on(self, endpoint, capsys, first):
        first(endpoint)
        endpoint.sink.events([sync(), sync()])
        assert 'syncagent_op="aten::nonzero"' in scraped(endpoint.port)
        assert f"http://localhost:{endpoint.port}/metrics" in capsys.readouterr().err

    def test_a_scrape_has_what_was_counted_by_then(self, endpoint):
        endpoint.step(step())
        for count in (1, 2):
            endpoint.sink.events([sync()])
            (line,) = [line for line in scraped(endpoint.port).splitlines() if line.startswith("syncagent_syncs_total")]
            assert float(line.rpartition(" ")[2]) == count

    def test_closed_it_lets_go_of_the_port_and_stays_closed(self, endpoint):
        endpoint.step(step())
        endpoint.close()
        endpoint.close()
        endpoint.step(step())
        assert not is_open(endpoint.port)

    def test_a_port_that_is_taken_is_one_sentence_and_no_more(self, free_port, capsys):
        with socket.socket() as other:
            other.bind(("127.0.0.1", free_port))
            other.listen()
            one = ScrapeEndpoint(MetricSink().snapshot, RESOURCE, "localhost", free_port)
            for number in range(3):
                one.step(step(number=number))
            one.close()
        (sentence,) = capsys.readouterr().err.splitlines()
        assert f"OTEL_EXPORTER_PROMETHEUS_PORT={free_port} cannot be opened" in sentence
        assert "training goes on" in sentence

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_does_not_keep_the_port(self, endpoint):
        endpoint.step(step())
        leave, left = os.pipe()
        begun, began = os.pipe()
        child = os.fork()
        if not child:
            os.write(began, b".")
            os.read(leave, 1)
            os._exit(0)
        try:
            os.read(begun, 1)
            endpoint.close()
            assert not is_open(endpoint.port)
        finally:
            os.write(left, b".")
            os.waitpid(child, 0)
            for one in (leave, left, begun, began):
                os.close(one)
