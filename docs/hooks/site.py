"""What MkDocs calls while it builds the site: pages from outside this folder, and links that lead to them.

The documents are read in the repository as well, where a link to a README or to a source file is a relative path.  On
the site the first is a page, and the second leads to the repository, or to nothing while that has no public address.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "otel/README.md": "project/otel.md",
    **{
        f"examples/{name}/README.md": f"project/examples/{name}.md"
        for name in ("masked_loss", "logging_item", "policy_gate", "ci_gate", "ddp_straggler")
    },
}
"""Files of the repository, and the pages of the site that they become."""
_SOURCES = {page: file for file, page in _PAGES.items() if page != "index.md"}
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
"""A link or, after an exclamation mark, an image."""
_ROLE = re.compile(r":\w+:<code>(~?)([\w.]+)</code>")
_FENCES = re.compile(r"(?ms)^(```.*?^```[^\n]*$)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside ``docs/``."""
    for page, file in _SOURCES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    llms = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    if files.get_file_from_path("llms.txt") is None:
        files.append(File.generated(config, "llms.txt", content=llms))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Let links lead to pages of the site."""
    uri = page.file.src_uri
    source = _SOURCES.get(uri, f"docs/{uri}")
    address = _repository()

    def link(found: re.Match[str]) -> str:
        label, target = found.groups()
        if re.match(r"[a-z]+:|#|/", target):
            return found[0]
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = file.removeprefix("docs/") if file.startswith("docs/") else _PAGES.get(file)
        if there is not None and files.get_file_from_path(there) is not None:
            relative = posixpath.relpath(there, posixpath.dirname(uri) or ".")
            if label == target:  # a file's name says something in the repository alone
                label = _title(there)
            return f"[{label}]({relative}{'#' + anchor if anchor else ''})"
        if not (ROOT / file).exists():
            return found[0]  # MkDocs says so
        return f"[{label}]({address}/blob/main/{file})" if address else label

    parts = _FENCES.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def on_page_content(html: str, **_: Any) -> str:
    """Show Sphinx's roles in docstrings as the names that they are."""
    return _ROLE.sub(lambda found: f"<code>{found[2].rpartition('.')[2] if found[1] else found[2]}</code>", html)


def _title(page: str) -> str:
    """A page's heading."""
    text = (ROOT / _SOURCES.get(page, f"docs/{page}")).read_text(encoding="utf-8")
    return next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))


def _repository() -> str:
    """The address in pyproject.toml; empty while there is none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address: str = project["urls"]["Source"]
    return "" if ".invalid" in address else address
