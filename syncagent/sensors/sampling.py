"""Which steps are watched for copies under ``copies="sampled"``, and how many copies one that was seen stands for.

A Python kernel on ``copy_`` in every step costs an ordinary training step several percent, in one step of 64 nothing
that can be told from noise.
"""

from __future__ import annotations

__all__ = ["CopySampling"]

_FIRST = 4
_EARLY = 256
_OFTEN, _SELDOM = 16, 64


class CopySampling:
    """The first four steps, one in 16 up to step 256, one in 64 from there on.

    In each stretch of 16 or 64 steps the one that is watched is drawn by a hash: a program that copies
    every tenth step is neither missed nor met each time.
    """

    words = f"copies: in the first {_FIRST} steps and one in {_OFTEN}, after {_EARLY} steps one in {_SELDOM}, scaled up"

    def __init__(self, *, on: bool) -> None:
        self._since = [(0, on)]
        self.has_work = on
        """Whether anything is ever turned on or off: not where all copies are watched, or none, from the start."""
        self._stretch = (0, 0, -1)
        """Begin, end and chosen step of the stretch last asked about; replaced whole, since several threads ask."""

    def change(self, step: int, *, on: bool) -> None:
        """From ``step`` on copies are sampled, or all of them watched."""
        self._since.append((step, on))
        self.has_work = True

    def watches(self, step: int) -> bool:
        """Is this step one of those?"""
        begin, end, chosen = self._stretch
        if not begin <= step < end:
            begin, length = _stretch(step)
            chosen = begin + (begin * 0x9E3779B1 >> 9) % length
            self._stretch = (begin, begin + length, chosen)
        return step == chosen or not self._since[-1][1] or step < _FIRST

    def weight(self, step: int) -> float:
        """Return how many copies one seen in that step stands for."""
        sampled = next((on for since, on in reversed(self._since) if step >= since), False)
        return float(_stretch(step)[1]) if sampled and step >= _FIRST else 1.0


def _stretch(step: int) -> tuple[int, int]:
    """Return where the stretch of a step begins and how long it is: one of its steps is watched, for all of them."""
    if step < _OFTEN:
        return _FIRST, _OFTEN - _FIRST
    length = _OFTEN if step < _EARLY else _SELDOM
    return step - step % length, length
