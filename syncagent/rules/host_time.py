"""What an op takes of the host by itself, which is no stall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncagent.rules.rule import Rule

__all__ = ["own_time_taken_off"]

_COLD_NS = 1_000_000
_HEAVY_NS = 200_000
_SHAPES = 256


def own_time_taken_off(rule: Rule) -> Callable[[int, Sequence[Any]], int]:
    """Build what makes a stall (ns) of a call's duration: the op's own time on the host is none.

    That is the shortest call so far, but no more than the rule allows for, and all of that after a long wait, in which
    the caches have gone cold.  Where it is much it depends on the size, and is kept by shape.
    """
    host_ns = int(rule.host_us * 1e3)
    if host_ns <= _HEAVY_NS:
        shortest_ns = host_ns

        def waited_ns(whole_ns: int, _args: Sequence[Any]) -> int:
            nonlocal shortest_ns
            shortest_ns = min(shortest_ns, whole_ns)
            return whole_ns - (shortest_ns if whole_ns <= _COLD_NS else host_ns)

        return waited_ns

    by_shape: dict[Any, int] = {}

    def waited_ns_by_shape(whole_ns: int, args: Sequence[Any]) -> int:
        size = getattr(args[0], "shape", None) if args else None
        least_ns = by_shape.get(size, whole_ns)
        if whole_ns <= least_ns and len(by_shape) < _SHAPES:
            by_shape[size] = least_ns = whole_ns
        return whole_ns - min(least_ns, host_ns)

    return waited_ns_by_shape
