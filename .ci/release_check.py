"""Can this checkout be released under a tag?  ``release_check.py v1.2.0`` exits with 1 and says what is missing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def missing(tag: str) -> list[str]:
    """What has to be done first, one sentence each."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "syncagent/_version.py").read_text(encoding="utf-8"))[1]
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag!r}, but syncagent/_version.py says {version}: the tag has to be 'v{version}'")
    if ".invalid" in (ROOT / "pyproject.toml").read_text(encoding="utf-8"):
        found.append("[project.urls] in pyproject.toml has no public address yet")
    if not re.search(
        rf"^## {re.escape(version)} \(\d", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    ):
        found.append(f"CHANGELOG.md has no section '## {version} (date)': run make changelog VERSION={version}")
    left = sorted(path.name for path in (ROOT / "news").glob("*.md") if path.name != "README.md")
    if left:
        found.append(f"news/ still holds {', '.join(left)}: run make changelog VERSION={version}")
    return found


if __name__ == "__main__":
    problems = missing(sys.argv[1])
    print(*problems, sep="\n")
    sys.exit(bool(problems))
