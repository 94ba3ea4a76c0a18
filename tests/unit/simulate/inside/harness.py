"""What the tests of the simulated device share."""

from __future__ import annotations

import torch

SLEEP_S = 0.4
"""How long the stream is kept busy: what happens meanwhile takes a fraction of that, also on a busy machine."""


class Observed:
    """An observer that keeps what is reported to it."""

    def __init__(self):
        self.waits = []
        self.spans = []

    def before(self, op, kind, args):
        self.waits.append((op, str(kind)))
        return len(self.waits) - 1

    def after(self, token, start_ns, end_ns):
        self.spans.append((token, end_ns - start_ns))

    def clear(self):
        self.waits.clear()
        self.spans.clear()

    @property
    def ops(self):
        return [op for op, _ in self.waits]


def asleep(seconds=SLEEP_S):
    """Keep the current stream busy for that long; ``asleep().query()``: is it over?"""
    torch.cuda._sleep(int(seconds * 1.5e9))
    over = torch.cuda.Event()
    over.record()
    return over


def waits_behind_a_sleep(call, expected):
    """Whether a call returns after what the stream was busy with before.

    On a busy machine a call that does not wait may take long as well: it is given ever more time.
    """
    call()  # the first call of an op pays for its shape
    for seconds in (0.03, 0.06, 0.12, 0.25, 0.5):
        torch.cuda.synchronize()
        over = asleep(seconds)
        call()
        waited = over.query()
        torch.cuda.synchronize()
        if waited == expected:
            break
    return waited
