"""The outbox accounts for every span, and ends in time."""

from __future__ import annotations

import logging
import os
import threading

import pytest
from opentelemetry.sdk._shared_internal import DuplicateFilter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from syncagent.telemetry.outbox import Outbox


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
    outbox = Outbox(lambda _: collector, on_trouble=told.append, **{"interval_s": 3600.0, **options})
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(outbox)
    tracer = provider.get_tracer("test")

    def end(*names):
        for name in names:
            tracer.start_span(name).end()

    return outbox, end, told


def test_two_that_complain_in_the_same_words_are_both_reported():
    """The SDK's exporters over gRPC let pass one of two complaints alike, be they of spans and of metrics."""
    complains = logging.getLogger("opentelemetry.exporter.test_two")
    complains.addFilter(DuplicateFilter())

    def refuses():
        complains.warning("Transient error %s", "UNAVAILABLE")
        return SpanExportResult.FAILURE

    for _ in range(2):
        outbox, end, told = outbox_to(Collector(refuses))
        end("a")
        outbox.close()
        assert told == ["Transient error UNAVAILABLE"]


def test_close_sends_what_is_left():
    collector = Collector()
    outbox, end, told = outbox_to(collector)
    end("a", "b", "c")
    outbox.close()
    assert collector.batches == [["a", "b", "c"]]
    assert collector.is_shut.is_set()
    assert outbox.stats() == {"exported": 3, "failed": 0, "dropped": 0}
    assert told == []
    outbox.close()
    end("late")
    assert outbox.stats()["dropped"] == 1


def test_a_full_batch_goes_at_once_and_none_is_larger():
    sent = threading.Event()
    collector = Collector(lambda: (sent.set(), SpanExportResult.SUCCESS)[1])
    outbox, end, _ = outbox_to(collector, max_batch=2)
    end("a", "b")
    assert sent.wait(30)
    end("c")
    outbox.close()
    assert [name for batch in collector.batches for name in batch] == ["a", "b", "c"]
    assert max(map(len, collector.batches)) == 2


def test_a_full_queue_is_a_full_batch():
    sent = threading.Event()
    outbox, end, _ = outbox_to(Collector(lambda: (sent.set(), SpanExportResult.SUCCESS)[1]), max_queue=2)
    end("a", "b")
    assert sent.wait(30)
    outbox.close()


def test_spans_go_when_they_have_waited_long_enough():
    sent = threading.Event()
    collector = Collector(lambda: (sent.set(), SpanExportResult.SUCCESS)[1])
    outbox, end, _ = outbox_to(collector, interval_s=0.01)
    end("a")
    assert sent.wait(30)
    outbox.close()


@pytest.mark.parametrize("way", ["reports", "raises"])
def test_failures_are_counted_and_reported_once(way):
    def answer():
        if way == "raises":
            raise OSError("disk full")
        return SpanExportResult.FAILURE

    outbox, end, told = outbox_to(Collector(answer), max_batch=1)
    end("a", "b", "c")
    outbox.close()
    assert outbox.stats() == {"exported": 0, "failed": 3, "dropped": 0}
    assert told == ["OSError: disk full" if way == "raises" else "the exporter reported a failure"]


def test_a_hanging_exporter_costs_spans_but_not_the_exit():
    hangs, go = threading.Event(), threading.Event()

    def answer():
        hangs.set()
        assert go.wait(60)
        return SpanExportResult.SUCCESS

    collector = Collector(answer)
    outbox, end, told = outbox_to(collector, max_queue=4, max_batch=2, interval_s=0.001)
    end("a", "b")
    assert hangs.wait(30)
    sending = len(collector.batches[0])
    end(*"cdefgh")
    outbox.close(0.05)
    stats = outbox.stats()
    assert stats == {"exported": 0, "failed": sending, "dropped": 8 - sending}
    assert told == ["no answer within 0.05 s"]
    go.set()
    assert collector.is_shut.wait(30)
    assert len(collector.batches) == 1
    assert outbox.stats() == stats


def test_a_full_queue_drops_the_oldest():
    hangs, go = threading.Event(), threading.Event()

    def answer():
        hangs.set()
        assert go.wait(60)
        return SpanExportResult.SUCCESS

    collector = Collector(answer)
    outbox, end, _ = outbox_to(collector, max_queue=3, max_batch=1)
    end("first")
    assert hangs.wait(30)
    end(*"abcde")
    go.set()
    outbox.close(60)
    assert collector.batches == [["first"], ["c"], ["d"], ["e"]]
    assert outbox.stats() == {"exported": 4, "failed": 0, "dropped": 2}


def test_what_the_exporter_logs_is_kept_to_ourselves(caplog):
    logger = logging.getLogger("opentelemetry.exporter.test")

    def answer():
        logger.debug("connecting")
        logger.warning("Transient error %s", 503)
        logger.error("gave up")
        return SpanExportResult.FAILURE

    outbox, end, told = outbox_to(Collector(answer), max_batch=1)
    end("a", "b")
    logger.warning("the program's own exporter")
    outbox.close()
    assert told == ["Transient error 503"]
    assert caplog.messages == ["the program's own exporter"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_sends_nothing():
    """What is queued is the parent's; an agent that a child starts has an outbox of its own."""
    collector = Collector()
    outbox, end, _ = outbox_to(collector)
    end("parent")
    child = os.fork()
    if child == 0:
        threads = threading.active_count()
        end("child")
        outbox.close()
        os._exit(0 if (collector.batches, threads) == ([], 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    outbox.close()
    assert collector.batches == [["parent"]]
