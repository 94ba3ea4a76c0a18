"""What the tests of the simulated device share."""

from __future__ import annotations

import time

import torch

SLEEP_S = 0.05
"""How long the stream is kept busy; a call that takes most of that has waited for it."""
SLOW_S = 0.04
FAST_S = 0.02


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


def seconds_behind_a_sleep(call):
    """Host time of a call while the stream is busy for SLEEP_S."""
    torch.cuda.synchronize()
    torch.cuda._sleep(int(SLEEP_S * 1.5e9))
    start = time.perf_counter()
    call()
    spent = time.perf_counter() - start
    torch.cuda.synchronize()
    return spent


def waits_behind_a_sleep(call, expected):
    """Whether a call waits for the stream; on a busy machine a fast call is given five chances to be fast."""
    call()  # the first call of an op pays for its shape
    for _ in range(5):
        spent = seconds_behind_a_sleep(call)
        waited = spent >= SLOW_S
        if waited == expected:
            return waited
    return waited
