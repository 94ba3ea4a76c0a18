"""Which run this process belongs to, which process of the run it is, and whether it only starts others (torchrun).

The first process of a run that imports torch puts a random id into the environment, and all processes that it starts
inherit it: ranks, spawned and forked children.  Ranks that another program has started recognize each other by their
job, and children that multiprocessing has started by their parent.
"""

from __future__ import annotations

# Every interpreter under SYNCAGENT=1 imports this: nothing heavy here.
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

VARIABLE = "SYNCAGENT_RUN"
"""Not a setting: how processes of one run recognize each other."""

JOB = "job-"
"""Prefix of ids that come from a job's name, which the next run of that job may share."""

_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")

_LONGEST = 80
_DIGITS = 10

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
"""The commands that installing those puts on the path."""

_COMMANDS_WITH_RUN = frozenset({"fabric", "lightning"})
"""Commands that start ranks where their first argument is ``run``, and train in their own process where it is not."""

_OPTIONS_WITH_VALUE = "WX"

_made_by: int | None = None
"""The process that chose the id in this environment; ``None`` in one that has inherited it or has not looked yet."""
_process: tuple[int, str] | None = None


def join_run() -> None:
    """Make all processes that this one starts from now on belong to the same run.  Never raises."""
    global _made_by
    if _inherited() is None:
        try:
            os.environ[VARIABLE] = _of_job() or _of_parent() or os.urandom(8).hex()
            _made_by = os.getpid()
        except Exception:  # an environment that cannot be changed
            pass


def run_id() -> str:
    """Return the id of the run that this process belongs to.

    A run that the launcher has restarted is another one.  The answer may change while the script runs: Ray Train and
    others say only then which job this is.
    """
    join_run()
    inherited = _inherited()
    if inherited is None:
        return process_id()
    if _made_by == os.getpid() or _spans_machines():
        found = _of_job()
        if found is not None:
            if _made_by == os.getpid():
                os.environ[VARIABLE] = found
            return found
    count = restarts()
    return f"{inherited}.{count}" if count and not inherited.startswith(JOB) else inherited


def restarts() -> int:
    """Return how often the launcher has started the ranks again."""
    count = next((count for name in _RESTARTS if (count := os.environ.get(name, "0")) != "0"), "0")
    return int(count) if count.isdecimal() and len(count) < _DIGITS else 0


def process_id() -> str:
    """Return a random name of this process; process numbers are reused, also on other machines and in containers."""
    global _process
    if _process is None or _process[0] != os.getpid():
        _process = (os.getpid(), os.urandom(8).hex())
    return _process[1]


def _inherited() -> str | None:
    value = os.environ.get(VARIABLE, "")
    plain = value.isascii() and value.replace("-", "").replace(".", "").isalnum()
    return value if plain and len(value) <= _LONGEST else None


def _spans_machines() -> bool:
    from syncagent.attribution import ranks

    world = ranks.read().world_size
    return world is not None and world > 1 and not ranks.is_on_one_machine()


def _of_job() -> str | None:
    """Return an id made from the launcher's name for the job, where there are several ranks.

    A single process in an allocation may be one of many that were started in it one after another.
    """
    world = any(name in os.environ for name in ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    if not world:  # saves every interpreter the import
        return None
    from syncagent.attribution import ranks

    size = ranks.read().world_size
    key = ranks.job().key if size is not None and size > 1 else None
    return None if key is None else JOB + _digest(key)


def _of_parent() -> str | None:
    """Return an id for the children of a process that is not watched itself."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    parent = multiprocessing.parent_process() if multiprocessing is not None else None
    if parent is None:
        return None
    from syncagent.attribution import ranks

    return _digest(ranks.parent() or f"{os.uname().nodename}/{os.getppid()}")


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


# --- launchers, however they were called


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
