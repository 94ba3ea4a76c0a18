"""The process in which an agent is tried: prints what it found as one line of JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from syncagent.errors import SyncAgentError
from syncagent.runtime import process
from syncagent.runtime.run import has_driver
from syncagent.settings import sources


def main() -> dict[str, Any]:
    """Start an agent with the settings in force and no sink, and ask it."""
    try:
        import torch
    except Exception as error:
        return {"unable": f"torch cannot be imported: {error!r}"}
    settings, _ = sources.survey()
    try:
        agent = process.launch(settings, ())
    except SyncAgentError as error:
        return {"unable": str(error).removeprefix("syncagent: "), **_device(torch)}
    try:
        found = {} if settings.simulate else _device(torch)
        report = agent.report()
        if settings.simulate:
            found = {"device": report.run.device}
        no_gpu = [] if found.get("device") else [note for note in report.problems if "so there is no host sync" in note]
        return {
            **found,
            "sensors": [asdict(sensor) for sensor in report.sensors],
            "problems": [problem for problem in report.problems if problem not in no_gpu],
        }
    finally:
        process.release(agent)


def _device(torch: Any) -> dict[str, Any]:
    """The GPU that torch would use, or why it has none."""
    if torch.version.cuda is None:
        return {"no_device": "this torch is built without CUDA"}
    if not has_driver() and sys.platform == "linux":
        return {"no_device": "there is no NVIDIA driver here; SYNCAGENT_SIMULATE=1 runs a script on a simulated device"}
    try:
        torch.cuda.init()
        return {"device": torch.cuda.get_device_name(), "devices": torch.cuda.device_count()}
    except Exception as error:
        return {"no_device": " ".join(str(error).split()) or repr(error)}


if __name__ == "__main__":
    # What torch prints is no part of the outcome.
    answer, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(main()), file=answer)
