"""Draws what ``queries.answers`` returns, with Grafana's components in Chromium.

npm fetches them once, half a gigabyte into the user's cache, where they lie under a hash of ``package-lock.json``.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = """<!DOCTYPE html>
<title>panels</title>
<link rel="stylesheet" href="panels.css">
<body style="margin: 0">
<div id="styles"></div>
<div id="board"></div>
<script>window.__grafana_public_path__ = "public/"</script>
<script src="panels.js"></script>
"""
FONTS = {"Inter-Regular": "inter-latin-400-normal", "Inter-Medium": "inter-latin-500-normal"}
"""By the names that Grafana's style sheet has for them."""


def folder_of_packages() -> Path:
    """Where Grafana's packages are, or would be once they are fetched."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    lock = (HERE / "package-lock.json").read_bytes()
    return cache / "syncagent-docs" / f"dashboard-{hashlib.sha256(lock).hexdigest()[:12]}" / "node_modules"


def packages() -> Path:
    """The folder with Grafana's packages, which are fetched unless they are there."""
    modules = folder_of_packages()
    folder = modules.parent
    if not folder.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit("The picture of a dashboard needs npm, which comes with Node.js: install that.")
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        unfinished.mkdir(parents=True)
        try:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, unfinished)
            run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], unfinished)
            unfinished.replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return modules


def draw(shown: dict[str, Any], modules: Path, made: Path, browser: str) -> None:
    """Make the picture; what goes wrong in the page is an error."""
    with tempfile.TemporaryDirectory() as top:
        served = Path(top)
        bundle(modules, served)
        (served / "index.html").write_text(PAGE, encoding="utf-8")
        (served / "shown.json").write_text(json.dumps(shown), encoding="utf-8")
        icons = served / "public/build/img/icons"
        icons.parent.mkdir(parents=True)
        icons.symlink_to(modules / "@grafana/ui/dist/public/img/icons")
        fonts = served / "public/fonts/inter"
        fonts.mkdir(parents=True)
        for name, file in FONTS.items():
            (fonts / f"{name}.woff2").symlink_to(modules / f"@fontsource/inter/files/{file}.woff2")
        photograph(served, shown["width"], made, browser)


def bundle(modules: Path, into: Path) -> None:
    run(
        [
            str(modules / ".bin/esbuild"),
            str(HERE / "panels.tsx"),
            "--bundle",
            "--minify",
            "--jsx=automatic",
            "--loader:.ttf=empty",  # of a code editor that no panel has
            '--define:process.env.NODE_ENV="production"',
            f"--outfile={into / 'panels.js'}",
        ],
        HERE,
        NODE_PATH=str(modules),
    )


def run(command: list[str], folder: Path, **environ: str) -> None:
    done = subprocess.run(  # noqa: S603 - the commands above
        command, cwd=folder, env=os.environ | environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")


def photograph(served: Path, width: int, made: Path, browser: str) -> None:
    from playwright.sync_api import sync_playwright

    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        view = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = view.new_page(viewport={"width": width, "height": 800})
        page.route(lambda url: not url.startswith(here), lambda route: route.abort())
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(here, wait_until="networkidle")
        page.wait_for_timeout(1_000)  # until what was measured after the fonts came is drawn anew
        page.screenshot(path=made, full_page=True)
        view.close()
        server.shutdown()
    if errors:
        raise SystemExit("\n".join(errors))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a line for each file."""

    def log_message(self, *_args: object) -> None:
        pass
