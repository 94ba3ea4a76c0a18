"""``syncagent run``: watches a script or module in a fresh interpreter, which replaces this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from syncagent.errors import SyncAgentError
from syncagent.policy import gate
from syncagent.runtime import judged, pth
from syncagent.settings import schema, sources
from syncagent.settings.parsing import Parser

_ROOT = str(Path(sources.__file__).resolve().parents[2])


def _option(setting: Field[Any]) -> click.Option:
    """Return the option of one setting; its value is the text for the environment variable, ``None`` if not given."""
    flag = f"--{setting.name.replace('_', '-')}"
    kind = str(setting.type).partition(" |")[0]
    parse: Parser[object] = setting.metadata["parse"]

    def checked(_context: click.Context, _option: click.Parameter, value: Any) -> str | None:
        if value is None or value == ():
            return None
        text = ",".join(value) if kind.startswith("tuple") else str(int(value)) if kind == "bool" else value
        parse(flag, text)
        return text

    doc = setting.metadata["doc"]
    shown = setting.metadata["otherwise"] or (
        f"{setting.default:04o}" if setting.name == "file_mode" else setting.default
    )
    default = "" if shown in (None, False, ()) else f"  [default: {shown}]"
    help_ = f"{doc[0].upper()}{doc[1:]}.{default}".replace("`", "")
    if kind == "bool":
        off = f"--no-{flag[2:]}"
        return click.Option([f"{flag}/{off}", setting.name], default=None, callback=checked, help=help_)
    return click.Option(
        [flag, setting.name],
        multiple=kind.startswith("tuple"),
        metavar=parse.metavar,
        callback=checked,
        help=help_,
    )


@click.command(
    "run",
    short_help="Run a script or module under watch.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("-m", "module", is_flag=True, help="What follows is a module, not a file.")
@click.option(
    "--fail-on",
    type=click.Choice(("new", "any", "budget")),
    help="Judge the run at its end: the exit code is 1 if it has a site that --baseline does not have or that waits "
    "more often there (new), a sync that is not allowed after the warm-up (any), or more than a budget allows "
    "(budget). It is 2 if the run proves nothing.",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="(SCRIPT | -m MODULE) [ARGUMENTS]...")
def command(
    words: tuple[str, ...], *, module: bool, fail_on: judged.FailOn | None, **settings: str | None
) -> int | Callable[[], int]:
    """Run a script or module under watch, with its own arguments and exit code.

    The same as SYNCAGENT=1 python SCRIPT: it is watched from before its first line, and the report follows at its end.
    Options stand before the script; all that follows it is the script's own. Each option but --fail-on is also an
    environment variable (--min-stall-ms is SYNCAGENT_MIN_STALL_MS) and a key of [tool.syncagent] in pyproject.toml.

    With --fail-on the exit code is still the script's own if that is not 0. --fail-on any and budget have the policy
    warn, where it would only observe.
    """
    if not words:
        raise SyncAgentError("say which script to run: syncagent run script.py [arguments ...]")
    if not module and not Path(words[0]).exists():
        raise SyncAgentError(f"there is no file {words[0]!r} (a module is run with -m)")
    asked = {f"SYNCAGENT_{name.upper()}": value for name, value in settings.items() if value is not None}
    environment = {**os.environ, **asked, "SYNCAGENT": "1"}
    # A wrong setting, wherever it comes from, is reported before anything runs.
    settled = sources.load(environment=environment, script=None if module else words[0])
    if fail_on is not None:
        environment |= judged.settings_for(fail_on, settled)
        settled = sources.load(environment=environment, script=None if module else words[0])
    gate.check(settled)
    if settled.simulate:
        _try_the_simulated_device()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # either may be closed
        stream.flush()
    arguments = ["-m", *words] if module else words
    is_started_by_python = pth.find() is not None and hasattr(os, "fork")
    if fail_on is not None:
        verb = [] if is_started_by_python else ["-m", "syncagent", "run"]
        return judged.run([sys.executable, *verb, *arguments], environment, fail_on, settled)
    if is_started_by_python:
        try:
            os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606 - the user's command line
        except (OSError, ValueError) as error:  # the command line is too long or has a NUL in it
            raise SyncAgentError(f"{sys.executable} cannot be started: {error}") from None
    return lambda: _run_here(list(words), environment, module=module)


command.params += [_option(setting) for setting in fields(schema.Settings) if "parse" in setting.metadata]


def _try_the_simulated_device() -> None:
    """Find out in another process whether the device works with this torch: the script must not begin without it."""
    program = "from syncagent import simulate; simulate.install_or_end()"
    environment = {name: value for name, value in os.environ.items() if name != "SYNCAGENT"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (_ROOT, environment.get("PYTHONPATH"))))
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"the try ended with {done.returncode}"
        raise SyncAgentError(said.partition(" The process ends here")[0].removeprefix("syncagent: "))


def _run_here(words: list[str], environment: dict[str, str], *, module: bool) -> int:
    """Run the script in this very process, since there is no ``.pth`` (a checkout on PYTHONPATH)."""
    import runpy

    from syncagent.runtime import autostart

    os.environ.update(environment)
    autostart.begin()
    sys.argv = words
    if module:
        sys.path[0] = os.getcwd()
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
    return 0
