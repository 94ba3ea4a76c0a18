"""Run a script or module, watched from before its first line, with its own arguments and exit code.

The same as ``SYNCAGENT=1 python script.py``: a fresh interpreter takes this one's place.
"""

from __future__ import annotations

import argparse
import os
import runpy
import site
import sys
import sysconfig
from dataclasses import fields
from pathlib import Path

from syncagent import config
from syncagent.errors import SyncAgentError

__all__ = ["add_arguments", "run"]

_PTH = "syncagent_autostart.pth"
_FLAGS = {"simulate", "stacks", "summary"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each setting, then the script."""
    parser.usage = "syncagent run [options] (script.py | -m module) [arguments ...]"
    for setting in fields(config.Settings):
        if "doc" not in setting.metadata:
            continue
        option = f"--{setting.name.replace('_', '-')}"
        if setting.name in _FLAGS:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=setting.metadata["doc"])
        else:
            parser.add_argument(option, metavar=setting.name.upper(), help=setting.metadata["doc"])
    parser.add_argument("-m", dest="module", action="store_true", help="what follows is a module, not a file")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="script", help="the script and its arguments")


def run(values: argparse.Namespace) -> int:
    """Replace this process by the watched one; returns only where that cannot be done."""
    command: list[str] = values.command[1:] if values.command[:1] == ["--"] else values.command
    if not command:
        raise SyncAgentError("syncagent run: say which script to run: syncagent run script.py [arguments ...]")
    if not values.module and not Path(command[0]).exists():
        raise SyncAgentError(f"syncagent run: there is no file {command[0]!r} (a module is run with -m)")
    environment = {"SYNCAGENT": "1"}
    for setting in fields(config.Settings):
        value = getattr(values, setting.name, None)
        if value is not None:
            environment[f"SYNCAGENT_{setting.name.upper()}"] = str(int(value)) if setting.name in _FLAGS else value
    os.environ.update(environment)
    config.load()  # a wrong setting is told before anything runs
    arguments = ["-m", *command] if values.module else command
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_installed() and hasattr(os, "fork"):
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - the user's own command line
    return _run_here(command, module=values.module)


def _is_installed() -> bool:
    """Will a fresh interpreter find the ``.pth`` that starts the agent?"""
    folders = [*site.getsitepackages(), sysconfig.get_path("purelib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return any(Path(folder, _PTH).exists() for folder in folders)


def _run_here(command: list[str], *, module: bool) -> int:
    """Without the ``.pth`` (a checkout on PYTHONPATH): the script runs in this very process."""
    from syncagent import autostart

    autostart.begin()
    sys.argv = command
    if module:
        sys.path[0] = os.getcwd()
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(command[0]).resolve().parent)
        runpy.run_path(command[0], run_name="__main__")
    return 0
