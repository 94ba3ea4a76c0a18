"""What sampled steps say of a line, for the waits of other steps that only the driver saw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from syncagent.delivery.known_lines import KnownLines
from syncagent.events import CallSite, Phase, SyncEvent, SyncKind

LINE = CallSite("train.py", 7, "train", "loss.item()")
FORWARD = CallSite("model.py", 3, "forward", "x[mask]")
NAMED = SyncEvent(
    "aten::_local_scalar_dense", "torch.Tensor.item", SyncKind.SCALAR_READ, 0, 5_000_000, LINE, Phase.OTHER, 3, None,
    "cuda:0", 0, "MainThread", "kernels",
)  # fmt: skip
SEEN = replace(
    NAMED, op="cudaStreamSynchronize", api=None, kind=SyncKind.OTHER, device="cuda", sensor="driver", step=9,
    stall_ns=7_000_000,
)  # fmt: skip
SHORT = replace(SEEN, site=None, repeats=100, stall_ns=1_000_001, longest_ns=0)


@pytest.fixture
def lines():
    return KnownLines(lambda event: event.step < 5)


def test_a_wait_takes_op_and_kind_of_its_line_and_is_not_counted_again(lines):
    lines.learn(NAMED)
    assert lines.known(SEEN) == replace(SEEN, op=NAMED.op, api=NAMED.api, kind=NAMED.kind, repeats=0)


def test_a_line_that_nothing_is_known_of_stays_as_it_is(lines):
    lines.learn(NAMED)
    elsewhere = replace(SEEN, site=replace(LINE, line=8))
    assert lines.known(elsewhere) == elsewhere


def test_an_ops_wait_whose_line_was_not_seen_is_not_counted_again(lines):
    """Its count is scaled to all steps from the sampled ones."""
    nowhere = replace(SEEN, site=None)
    assert lines.known(nowhere) == nowhere, "nothing has been sampled"
    lines.learn(NAMED)
    assert lines.known(nowhere) == replace(nowhere, repeats=0)
    explicit = replace(nowhere, op="cudaDeviceSynchronize", kind=SyncKind.EXPLICIT)
    assert lines.known(explicit) == explicit
    lines.known(replace(nowhere, step=3))  # an extension's own, in a step in which every op's was named
    assert lines.known(nowhere) == nowhere


@pytest.mark.parametrize("kind", [SyncKind.COLLECTIVE, SyncKind.ALLOCATOR])
def test_what_has_a_kind_of_its_own_keeps_it(lines, kind):
    lines.learn(NAMED)
    assert lines.known(replace(SEEN, kind=kind)).kind is kind


def test_what_waits_there_by_itself_in_sampled_steps_does_so_in_others(lines):
    """An extension's call on the line of an ``item()``."""
    lines.learn(NAMED)
    own = replace(SEEN, op="cudaDeviceSynchronize", kind=SyncKind.EXPLICIT)
    assert lines.known(replace(own, step=3)).op == own.op
    assert lines.known(own) == own
    assert lines.known(SEEN).op == NAMED.op


def test_a_wait_takes_the_phase_of_its_line_where_there_is_only_one(lines):
    """What the look has seen itself goes before it; a module may also be evaluated, which the look alone can tell."""
    lines.learn(replace(NAMED, phase=Phase.FORWARD))
    assert lines.known(SEEN).phase is Phase.FORWARD
    assert lines.known(SEEN, in_module=True).phase is Phase.OTHER
    assert lines.known(replace(SEEN, phase=Phase.EVALUATION), in_module=True).phase is Phase.EVALUATION
    lines.learn(replace(NAMED, phase=Phase.EVALUATION))
    assert lines.known(SEEN).phase is Phase.OTHER


def test_the_forward_line_is_given_where_there_is_only_one(lines):
    backward = replace(NAMED, phase=Phase.BACKWARD, forward_site=FORWARD)
    seen = replace(SEEN, phase=Phase.BACKWARD)
    lines.learn(backward)
    assert lines.known(seen).forward_site == FORWARD
    lines.learn(replace(backward, forward_site=replace(FORWARD, line=4)))
    assert lines.known(seen).forward_site is None


def test_short_waits_are_divided_as_in_the_sampled_steps_and_add_up(lines):
    other = replace(NAMED, site=replace(LINE, line=8))
    lines.learn(replace(NAMED, stall_ns=30_000))
    lines.learn(replace(other, stall_ns=10_000))
    lines.learn(replace(NAMED, op="torch.cuda.synchronize", site=replace(LINE, line=9), stall_ns=10_000))
    parts = list(lines.shares(SHORT))
    assert {part.site.line: part.stall_ns for part in parts} == {7: 750_000, 8: 250_001}
    assert all((part.repeats, part.estimated) == (0, True) for part in parts)


def test_short_waits_stay_together_where_no_line_has_any(lines):
    lines.learn(NAMED)
    assert list(lines.shares(SHORT)) == [SHORT]
