"""``syncagent doctor``: would a run work here, and if not, what is to be done?"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from syncagent.doctor.section import Section


@click.command("doctor", short_help="Say what would not work here, and what to do.")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="What to write."
)
def command(form: str) -> int:
    """Look at what a run would find here: versions, settings and where they come from, files, collector, sensors.

    An agent is started with the settings in force, in a process of its own; nothing is written, sent or fired. The exit
    code is 1 where something that was asked for does not work, with a sentence on each.
    """
    from syncagent.doctor import text

    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    found, problems = [], []
    for section in _sections():
        found.append(asdict(section))
        problems += section.problems
        if form == "text":
            for line in text.lines(section, width):
                print(line)
            sys.stdout.flush()  # torch takes seconds to be imported
    if form == "json":
        print(json.dumps({"schema": 1, "works": not problems, "problems": problems, "sections": found}, indent=1))
    else:
        for line in text.verdict(problems, width):
            print(line)
    return 1 if problems else 0


def _sections() -> Iterator[Section]:
    """Look at everything, what takes longest last."""
    from syncagent.doctor import agent, checks
    from syncagent.settings import sources

    trial = agent.Trial(os.environ) if checks.has_torch() else None
    try:
        settings, wrong = sources.survey()
        yield checks.versions()
        yield checks.settings_in_force(settings, wrong)
        yield checks.the_gate(settings)
        yield checks.files(settings, os.environ)
        yield checks.autostart(os.environ)
        yield checks.native_library()
        yield checks.collectors(os.environ)
        if trial is not None:
            found = trial.outcome()
            yield agent.device(found, settings)
            yield agent.sensors(found, settings)
    finally:
        if trial is not None:
            trial.end()
