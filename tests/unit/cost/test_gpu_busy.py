"""When the GPU worked in a window: what the page's time line draws."""

from __future__ import annotations

from syncagent.cost.trace import Op, Trace


def busy(*spans, most=3_000):
    """Times of kernels on two streams in µs, as nanoseconds since the Unix epoch."""
    ops = [Op(stream, start, end, "kernel") for stream, (start, end) in enumerate(spans)]
    return Trace("a trace", [], ops, base_ns=1_000_000).busy_ns(most)


def test_work_of_all_streams_is_joined_and_short_pauses_are_left_out():
    assert busy((0, 10), (5, 20), (20.5, 30), (40, 50)) == ((1_000_000, 1_030_000), (1_040_000, 1_050_000))


def test_a_kernel_inside_of_a_longer_one_does_not_end_it():
    assert busy((0, 100), (10, 20), (200, 201)) == ((1_000_000, 1_100_000), (1_200_000, 1_201_000))


def test_of_too_many_times_those_with_the_shortest_pauses_are_joined():
    kernels = [(10.0 * number, 10.0 * number + 8) for number in range(100)] + [(5_000.0, 5_001.0)]
    assert busy(*kernels, most=10) == ((1_000_000, 1_998_000), (6_000_000, 6_001_000))


def test_without_work_there_is_none():
    assert busy() == ()
