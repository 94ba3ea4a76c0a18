"""Writes what docs/settings.md says of each setting from the schema of the settings.

python docs/settings.py
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from pathlib import Path
from typing import Any

from syncagent.settings import schema, sources

PAGE = Path(__file__).with_suffix(".md")
_MARKED = re.compile(r"(?ms)^(<!-- settings: (\w+) -->\n).*?(^<!-- /settings -->$)")
"""What is generated stands between two comments, of which the first names the part."""


def filled(text: str) -> str:
    """Return the page with these parts written anew."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n{found[3]}", text)


def _settings() -> str:
    paragraphs = []
    for setting in dataclasses.fields(schema.Settings):
        if "parse" in setting.metadata:
            variable = f"`SYNCAGENT_{setting.name.upper()}`"
            values = f"{variable}: {_accepts(setting)}. Default: {_default(setting)}."
            paragraphs += [f"### `{setting.name}`", _meaning(setting), values]
    return "\n".join(textwrap.fill(each, 125, break_on_hyphens=False) + "\n" for each in paragraphs)


def _variables() -> str:
    rows = [("variable", "meaning"), ("---", "---")]
    rows += [(f"`{name}`", said) for name, said in sources.OTHER_VARIABLES.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


PARTS = {"all": _settings, "variables": _variables}


def _accepts(setting: dataclasses.Field[Any]) -> str:
    """The words of a refusal, with those marked that are values."""
    parse = setting.metadata["parse"]
    words = sorted(parse.words, key=len, reverse=True)
    marked = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, words))})(?![\w:])") if words else None
    return marked.sub(lambda found: f"`{found[0]}`", parse.accepts) if marked else parse.accepts


def _default(setting: dataclasses.Field[Any]) -> str:
    value = setting.default
    if setting.metadata["otherwise"]:
        return str(setting.metadata["otherwise"])
    if setting.name == "file_mode":
        return f"`{value:04o}`"
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _meaning(setting: dataclasses.Field[Any]) -> str:
    doc, more = setting.metadata["doc"], setting.metadata["more"]
    return f"{doc[0].upper()}{doc[1:]}. {more}".rstrip()


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
