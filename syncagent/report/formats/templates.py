"""The pages' templates, which lie in the folder ``page`` with their style, their scripts and the library that draws.

All that comes from a run is escaped, and is one printable line; nothing is loaded from anywhere.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from syncagent.report import wording

_IN_SCRIPT = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026"})


def page(template: str, **values: Any) -> str:
    """The text of a page."""
    return _environment().get_template(template).render(wording=wording, **values)


def data(values: Any) -> Markup:
    """JSON to stand between the tags of a script: nothing in it ends that."""
    text = json.dumps(values, separators=(",", ":"))
    return Markup(text.translate(_IN_SCRIPT))  # noqa: S704  (the translation is the escaping)


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True,
        finalize=lambda value: wording.clean(value) if type(value) is str else value,  # markup is a type of its own
        keep_trailing_newline=True,
        loader=PackageLoader(__package__, "page"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
