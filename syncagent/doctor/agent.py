"""The agent as it would start here: begun in a process of its own, asked what it can see, and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from syncagent.doctor.section import Section
from syncagent.runtime import run
from syncagent.settings.schema import Settings

_PATIENCE_S = 120.0


class Trial:
    """The process, which imports torch while others look elsewhere."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # SYNCAGENT=1 would watch it from its start, and an exporter's variable has no business there.
        given = {name: value for name, value in environment.items() if name != "SYNCAGENT" and "OTEL_" not in name}
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        given["PYTHONPATH"] = os.pathsep.join(filter(None, (root, given.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "syncagent.doctor.probe"],
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )

    def outcome(self) -> dict[str, Any]:
        """Wait for what it found; ``failed`` says why there is nothing."""
        try:
            out, err = self._process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.end()
            return {"failed": f"it did not end within {_PATIENCE_S:g} s"}
        code = self._process.returncode
        if code == 0 and out.startswith("{"):
            found: dict[str, Any] = json.loads(out)
            return found
        last = err.strip().rpartition("\n")[2] or "it said nothing"
        return {"failed": f"signal {-code} ended it" if code < 0 else last}

    def end(self) -> None:
        """End it, if it is still there."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def device(found: Mapping[str, Any], settings: Settings) -> Section:
    """The GPU."""
    section = Section("device")
    name, why = found.get("device"), found.get("no_device", "")
    if name:
        count = found.get("devices", 1)
        section.add("GPU", name, f"{count} of them" if count > 1 else "")
        return section
    has_driver = run.has_driver()
    section.add("GPU", "none", why or "not known")
    if has_driver and why:
        section.problems.append(
            f"there is an NVIDIA driver here, but torch cannot use it ({why}); install a torch that fits the driver."
        )
    elif settings.is_gate and not found.get("failed"):
        section.problems.append(
            f"the policy is {settings.policy!r}, but there is no GPU here, so the report of a run would prove nothing; "
            "use SYNCAGENT_SIMULATE=1 for a run on the simulated device."
        )
    return section


def sensors(found: Mapping[str, Any], settings: Settings) -> Section:
    """What is live, and what each could not see here."""
    section = Section("sensors")
    for why in filter(None, (found.get("failed"), found.get("unable"))):
        section.add("all", "off", why)
        section.problems.append(f"the agent cannot start here: {why}")
    for sensor in found.get("sensors", ()):
        cannot_see = sensor["cannot_see"] and f"cannot see {sensor['cannot_see']}"
        note = cannot_see if sensor["live"] else sensor["detail"].removeprefix("off: ") or cannot_see
        section.add(sensor["name"], "live" if sensor["live"] else "off", note)
    told = [problem for problem in found.get("problems", ()) if problem not in settings.warnings]
    section.problems += [f"{problem.rstrip('.')}." for problem in told]
    return section
