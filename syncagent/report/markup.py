"""Text of a program in Markdown: nothing in it is markup, a mention or a line's end."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>&#|~!@$])")


def text(words: str) -> str:
    """Plain words."""
    return _SPECIAL.sub(r"\\\1", words).replace(r"\@", "@\N{ZERO WIDTH SPACE}")


def code(words: str) -> str:
    """Code between more backticks than it has in a row; a bar would end a table's cell even there.

    No escape between backticks tells a bar behind a backslash from an escaped bar.
    """
    if not words:
        return ""
    if r"\|" in words:
        return f"<code>{text(words)}</code>"
    fence = "`" * (max(map(len, re.findall("`+", words)), default=0) + 1)
    room = " " if words.startswith("`") or words.endswith("`") else ""
    return "".join((fence, room, words.replace("|", r"\|"), room, fence))


def folded(summary: str, content: str) -> str:
    """Something that is shown after a click."""
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def listed(sentences: list[str]) -> str:
    """A list of plain sentences."""
    return "\n".join(f"- {text(sentence)}" for sentence in sentences)
