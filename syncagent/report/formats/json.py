"""The report as JSON, the format that can be read back: ``docs/schemas/report.schema.json`` describes it."""

from __future__ import annotations

import json

from syncagent.report.model import Report


def render(report: Report) -> str:
    """A line for each row of each list: small, and fit for diff and grep."""
    parts = []
    for key, value in report.to_dict().items():
        if isinstance(value, list) and value:
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f' "{key}": [\n{rows}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
