"""Which run this process belongs to, and which process of the run it is, so that each writes files of its own.

The first process of a run that imports torch puts a random id into the environment, and all processes that it starts
inherit it: ranks, spawned and forked children.  Ranks that another program has started recognize each other by their
job, and children that multiprocessing has started by their parent.
"""

from __future__ import annotations

# Every interpreter under SYNCAGENT=1 imports this: nothing heavy here.
import os
import sys

__all__ = ["VARIABLE", "join_run", "process_id", "run_id"]

VARIABLE = "SYNCAGENT_RUN"
"""Not a setting: how processes of one run recognize each other."""

JOB = "job-"
"""Prefix of ids that come from a job's name, which the next run of that job may share."""

_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")

_LONGEST = 80

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
    restarts = next((count for name in _RESTARTS if (count := os.environ.get(name, "0")) != "0"), "")
    return f"{inherited}.{restarts}" if restarts.isdecimal() and not inherited.startswith(JOB) else inherited


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
