"""The outbox accounts for every span, and ends in time."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest
from opentelemetry.sdk._shared_internal import DuplicateFilter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from syncagent.telemetry.outbox import AgentTracerProvider, Outbox
from syncagent.telemetry.responses import CollectorResponses

FOREVER_MS = 30_000


class Collector(SpanExporter):
    """Does with each batch what the test asks for."""

    def __init__(self, answer=lambda: SpanExportResult.SUCCESS):
        self.answer = answer
        self.batches = []
        self.is_shut = threading.Event()

    def export(self, spans):
        self.batches.append([span.name for span in spans])
        return self.answer()

    def shutdown(self):
        self.is_shut.set()


def outbox_to(collector, **options):
    told = []
    options = {"responses": CollectorResponses(), **options}
    provider = AgentTracerProvider(Resource({}), Outbox(lambda: collector, on_trouble=told.append, **options))
    tracer = provider.get_tracer("test")

    def end(*names):
        for name in names:
            tracer.start_span(name).end()

    return provider, end, told


def test_two_that_complain_in_the_same_words_are_both_reported():
    """The SDK's exporters over gRPC let pass one of two complaints alike, be they of spans and of metrics."""
    complains = logging.getLogger("opentelemetry.exporter.test_two")
    complains.addFilter(DuplicateFilter())

    def refuses():
        complains.warning("Transient error %s", "UNAVAILABLE")
        return SpanExportResult.FAILURE

    for _ in range(2):
        provider, end, told = outbox_to(Collector(refuses))
        end("a")
        provider.close()
        assert told == ["Transient error UNAVAILABLE"]


def test_close_sends_what_is_left():
    collector = Collector()
    provider, end, told = outbox_to(collector)
    end("a", "b", "c")
    provider.close()
    assert collector.batches == [["a", "b", "c"]]
    assert collector.is_shut.is_set()
    assert provider.stats() == {"exported": 3, "failed": 0, "dropped": 0}
    assert told == []
    provider.close()
    end("late")
    assert provider.stats()["dropped"] == 1


def test_a_full_batch_goes_at_once_and_flush_sends_the_rest():
    collector = Collector()
    provider, end, _ = outbox_to(collector, max_batch=2, delay_s=3600)
    end("a", "b", "c")
    assert provider.force_flush(FOREVER_MS)
    assert [name for batch in collector.batches for name in batch] == ["a", "b", "c"]
    assert max(map(len, collector.batches)) == 2
    provider.close()


def test_a_full_queue_is_a_full_batch():
    sent = threading.Event()
    provider, end, _ = outbox_to(
        Collector(lambda: (sent.set(), SpanExportResult.SUCCESS)[1]), max_queue=2, delay_s=3600
    )
    end("a", "b")
    assert sent.wait(30)
    provider.close()


def test_spans_go_when_they_have_waited_long_enough():
    sent = threading.Event()
    collector = Collector(lambda: (sent.set(), SpanExportResult.SUCCESS)[1])
    provider, end, _ = outbox_to(collector, delay_s=0.01)
    end("a")
    assert sent.wait(30)
    provider.close()


@pytest.mark.parametrize("way", ["reports", "raises"])
def test_failures_are_counted_and_reported_once(way):
    def answer():
        if way == "raises":
            raise OSError("disk full")
        return SpanExportResult.FAILURE

    provider, end, told = outbox_to(Collector(answer), max_batch=1)
    end("a", "b", "c")
    provider.force_flush(FOREVER_MS)
    provider.close()
    assert provider.stats() == {"exported": 0, "failed": 3, "dropped": 0}
    assert told == ["OSError: disk full" if way == "raises" else "the exporter reported a failure"]


def test_a_hanging_exporter_costs_spans_but_not_the_exit():
    hangs, go = threading.Event(), threading.Event()

    def answer():
        hangs.set()
        assert go.wait(60)
        return SpanExportResult.SUCCESS

    collector = Collector(answer)
    provider, end, told = outbox_to(collector, max_queue=4, max_batch=2, delay_s=0.001)
    end("a", "b")
    assert hangs.wait(30)
    sending = len(collector.batches[0])
    end(*"cdefgh")
    assert not provider.force_flush(1)
    provider.close(0.05)
    stats = provider.stats()
    assert stats == {"exported": 0, "failed": sending, "dropped": 8 - sending}
    assert told == ["no answer within 0.05 s"]
    go.set()
    assert collector.is_shut.wait(30)
    assert len(collector.batches) == 1
    assert provider.stats() == stats


def test_a_full_queue_drops_the_oldest():
    hangs, go = threading.Event(), threading.Event()

    def answer():
        hangs.set()
        assert go.wait(60)
        return SpanExportResult.SUCCESS

    collector = Collector(answer)
    provider, end, _ = outbox_to(collector, max_queue=3, max_batch=1)
    end("first")
    assert hangs.wait(30)
    end(*"abcde")
    go.set()
    provider.close(60)
    assert collector.batches == [["first"], ["c"], ["d"], ["e"]]
    assert provider.stats() == {"exported": 4, "failed": 0, "dropped": 2}


def test_what_the_exporter_logs_is_kept_to_ourselves(caplog):
    logger = logging.getLogger("opentelemetry.exporter.test")

    def answer():
        logger.debug("connecting")
        logger.warning("Transient error %s", 503)
        logger.error("gave up")
        return SpanExportResult.FAILURE

    provider, end, told = outbox_to(Collector(answer), max_batch=1)
    end("a", "b")
    provider.force_flush(FOREVER_MS)
    logger.warning("the program's own exporter")
    provider.close()
    assert told == ["Transient error 503"]
    assert caplog.messages == ["the program's own exporter"]
    assert logger.filters == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_an_outbox_of_its_own():
    collector = Collector()
    provider, end, _ = outbox_to(collector, delay_s=3600)
    end("parent")
    child = os.fork()
    if child == 0:
        end("child")
        provider.close()
        os._exit(0 if collector.batches == [["child"]] and provider.stats()["exported"] == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    provider.close()
    assert collector.batches == [["parent"]]


class Throttling(CollectorResponses):
    """Responses of a collector that wants no requests until the test says otherwise."""

    def __init__(self):
        super().__init__()
        self.left = 0.0
        self.asked = threading.Semaphore(0)

    def retry_after_s(self):
        if self.left:
            self.asked.release()
        return self.left


class TestLeftAlone:
    """While a collector wants to be left alone."""

    def refusing(self, **options):
        """The first batch is refused, and the collector wants to be left alone from then on."""
        responses = Throttling()

        def answer():
            if len(collector.batches) > 1:
                return SpanExportResult.SUCCESS
            responses.left = 3600.0
            return SpanExportResult.FAILURE

        collector = Collector(answer)
        return collector, responses, *outbox_to(collector, responses=responses, delay_s=0.01, **options)

    def test_what_it_refused_is_sent_again_before_what_came_later(self):
        collector, responses, provider, end, told = self.refusing()
        end("a", "b")
        assert all(responses.asked.acquire(timeout=30) for _ in range(2))  # to take it back, and for the next batch
        end("c")
        assert provider.force_flush(200) is False
        responses.left = 0.0
        provider.close()
        later = collector.batches[1:]
        assert [name for batch in later for name in batch] == ["a", "b", "c"]
        assert provider.stats() == {"exported": 3, "failed": 0, "dropped": 0}
        assert told == []

    def test_what_has_no_room_any_more_is_lost_and_counted(self):
        collector, responses, provider, end, told = self.refusing(max_queue=2)
        gate = threading.Event()
        whole = collector.answer
        collector.answer = lambda: gate.wait(30) and whole()
        end("a", "b")
        while not collector.batches:
            time.sleep(0.01)
        end("c")
        gate.set()
        ending = time.monotonic() + 30
        while not told and time.monotonic() < ending:
            time.sleep(0.01)
        assert len(told) == 1
        responses.left = 0.0
        provider.close()
        stats = provider.stats()
        assert (stats["exported"], sum(stats.values())) == (2, 3)
