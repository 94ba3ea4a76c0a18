"""Recognizes processes that only start the ranks of a job, such as torchrun, however they were called."""

from __future__ import annotations

# Every interpreter under SYNCAGENT=1 imports this: nothing heavy here.
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["is_launcher"]

_MODULES = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "torch.distributed.elastic",
    "accelerate.commands",
    "deepspeed.launcher",
    "horovod.runner",
    "lightning.fabric.cli",
    "lightning_fabric.cli",
    "ray.scripts",
    "torchx.cli",
)
"""Modules, and packages with all that is in them, that start ranks and do not train themselves."""

_COMMANDS = frozenset({"accelerate", "accelerate-launch", "deepspeed", "ds", "horovodrun", "ray", "torchrun", "torchx"})
"""The commands that those packages install."""

_COMMANDS_WITH_RUN = frozenset({"fabric", "lightning"})
"""Commands that start ranks where their first argument is ``run``, and train in their own process where it is not."""

_OPTIONS_WITH_VALUE = "WX"


def is_launcher(words: Sequence[str] | None = None) -> bool:
    """Return whether this process only starts the ranks: it imports torch, but has no syncs of its own to report.

    ``words`` is the interpreter's command line, by default that of this process.
    """
    if words is None:
        words = getattr(sys, "orig_argv", ())
    module, script, first = _program(list(words[1:]))
    if module:
        name = module.removesuffix(".__main__")
        return _is_launching(name) or (name in _COMMANDS_WITH_RUN and first == "run")
    path = os.path.normpath(script).replace("\\", "/") if script else ""
    command = os.path.basename(path).removesuffix(".exe")
    if command in _COMMANDS or (command in _COMMANDS_WITH_RUN and first == "run"):
        return True
    if not path.endswith(".py"):
        return False
    parts = path.removesuffix(".py").split("/")
    return any(_is_launching(".".join(parts[start:])) for start in range(len(parts)))


def _is_launching(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _MODULES)


def _program(words: list[str]) -> tuple[str, str, str]:
    """Return the module or the script that an interpreter was asked to run, and its first argument; empty if missing.

    https://docs.python.org/3/using/cmdline.html: single letters may be combined (``-um``), and the value of the last
    one may follow without a space (``-mtorch.distributed.run``).
    """
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            if word == "--check-hash-based-pycs" and words:
                words.pop(0)
        elif word.startswith("-") and len(word) > 1:
            for index, letter in enumerate(word[1:], 2):
                if letter == "c":
                    return "", "", ""
                if letter == "m" or letter in _OPTIONS_WITH_VALUE:
                    value = word[index:] or (words.pop(0) if words else "")
                    if letter == "m":
                        return value, "", words[0] if words else ""
                    break
        else:
            return "", word, words[0] if words else ""
    return "", "", ""
