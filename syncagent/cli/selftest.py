"""``syncagent selftest``: does the agent see what it should on this machine?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import click

from syncagent.errors import SyncAgentError

_PATIENCE_S = 300


@click.command("selftest", short_help="Fire known syncs and say which the agent saw.")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="What to write."
)
@click.option(
    "--simulate/--no-simulate",
    "simulate",
    default=None,
    help="Use the simulated device, or insist on a real one; by default it is used where there is no CUDA device.",
)
def command(form: str, *, simulate: bool | None) -> int:
    """Fire known syncs of each kind behind work of known length, and say which sensor saw them and how exactly.

    Also tested: that calls which do not wait are not reported, what the agent costs, that it stops what the policy
    forbids and nothing else, that it leaves nothing behind and that its spans are made. It runs in a process of its
    own, with none of the settings in force here. The exit code is 1 where a promise is broken.
    """
    if find_spec("torch") is None:
        raise SyncAgentError("torch is not installed in this environment; install it first.")
    outcome = _outcome({None: "auto", True: "simulate", False: "no-simulate"}[simulate])
    if "unable" in outcome:
        raise SyncAgentError(" ".join(outcome["unable"].split()))
    if form == "json":
        print(json.dumps(outcome, indent=1))
    elif "failed" in outcome:
        print(f"syncagent selftest: BROKEN: {outcome['failed']}", file=sys.stderr)
    else:
        from syncagent.selftest import text

        sys.stdout.write(text.render(outcome))
    return 0 if outcome.get("passed") else 1


def _outcome(word: str) -> dict[str, Any]:
    """Run the test in a process of its own."""
    # CUDA_LAUNCH_BLOCKING would make every call wait.
    ignored = ("SYNCAGENT", "OTEL_", "CUDA_LAUNCH_BLOCKING")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ignored)}
    sys.stdout.flush()
    try:
        done = subprocess.run(  # noqa: S603 - this very interpreter
            [sys.executable, "-m", "syncagent.selftest", word],
            env=environment,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"schema": 1, "passed": False, "failed": f"it did not end within {_PATIENCE_S} s"}
    if done.returncode:
        how = f"signal {-done.returncode} ended it" if done.returncode < 0 else f"it ended with {done.returncode}"
        return {"schema": 1, "passed": False, "failed": f"{how}; its output is above"}
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome
