"""What of torch an agent changes while it runs, as it is now: so that one can see whether all is put back."""

from __future__ import annotations

import sys
import threading
from typing import Any

__all__ = ["changed", "state"]


def state() -> dict[str, Any]:
    """Everything that starting an agent touches in this process and on this thread, by name."""
    import torch
    from torch import _C
    from torch.optim import optimizer
    from torch.profiler import record_function

    from syncagent.rules.table import RULES
    from syncagent.sensors import explicit
    from syncagent.simulate import waits
    from syncagent.torchbridge.switch import Switch

    found: dict[str, Any] = {f"kernel of {rule.op}": _is_hooked(rule.op) for rule in RULES if rule.keys}
    for place, attribute, shown in (*explicit._TARGETS, *explicit._EMPTYING):
        holder: Any = torch
        for part in place.split("."):
            holder = getattr(holder, part, None)
        found[shown] = getattr(holder, attribute, None)
    found |= {
        "torch.profiler.record_function": (record_function.__enter__, record_function.__exit__),
        "torch.amp.GradScaler.update": torch.amp.GradScaler.update,
        "optimizers' hooks": len(getattr(optimizer, "_global_optimizer_post_hooks", ())),
        "torch.compile": torch.compile,
        "how torch.optim reads numbers": getattr(optimizer, "_get_value", None),
        "this thread's switch": Switch().is_on,
        "what torch.jit.trace records with": getattr(torch._C, "_create_graph_by_tracing", None),
        "function modes": _C._len_torch_function_stack(),
        "dispatch modes": _C._len_torch_dispatch_stack(),
        "the simulated device's observer": waits._observer,
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("syncagent")),
    }
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is not None:
        found["tools of sys.monitoring"] = [monitoring.get_tool(number) for number in range(6)]
    return found


def _is_hooked(op: str) -> bool:
    from torch import _C

    from syncagent.sensors import kernels

    try:
        return bool(_C._dispatch_has_kernel_for_dispatch_key(op, kernels._KEY))
    except RuntimeError:  # this torch has no such op
        return False


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs."""
    return [name for name in before if before[name] != after[name]]
