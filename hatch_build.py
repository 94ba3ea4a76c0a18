"""Builds the native library into wheels and editable installs; where it cannot be had, they do without it."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = "syncagent/native"


class NativeBuildHook(BuildHookInterface[Any]):
    """Compiles ``syncagent/native/src`` and gives the wheel the tag of the platform that it was compiled for.

    ``SYNCAGENT_NATIVE=0`` leaves the library out; ``SYNCAGENT_NATIVE=1`` fails the build where it cannot be had.
    """

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get("SYNCAGENT_NATIVE", "").strip()
        if wanted not in ("", "0", "1"):
            self.app.abort(f"SYNCAGENT_NATIVE is {wanted!r}, but it must be 0 (leave it out) or 1 (fail without it).")
        package = Path(self.root, _PACKAGE)
        build = _load(package / "build.py")
        editable = version == "editable"
        if editable:
            into = package
        else:
            self._folder = tempfile.TemporaryDirectory()
            into = Path(self._folder.name)
        try:
            platform, made = _compile(build, into, wanted)
        except build.NotBuiltError as error:
            if wanted == "1":
                self.app.abort(f"{error.log}The native library cannot be built: {error}.")
            if error.log:
                self.app.display(error.log)
            self.app.display_warning(f"syncagent is built without its native library: {error}.")
            for library in build.LIBRARIES if editable else ():  # an older one is not what these sources say
                (package / library.file).unlink(missing_ok=True)
            return
        if not editable:
            build_data["tag"] = f"py3-none-{platform}"
            build_data["pure_python"] = False
            build_data["force_include"].update({str(path): f"{_PACKAGE}/{path.name}" for path in made})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if self._folder is not None:
            self._folder.cleanup()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("syncagent_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(build: ModuleType, into: Path, wanted: str) -> tuple[str, list[Path]]:
    """Return the tag of the platform, which this Python and the compiler have to agree on, and the libraries."""
    if wanted == "0":
        raise build.NotBuiltError("SYNCAGENT_NATIVE is 0")
    # What is built for another machine says so in _PYTHON_HOST_PLATFORM, which this function goes by.
    platform = sysconfig.get_platform()
    if not platform.startswith("linux-"):  # without a look for a compiler, which on macOS may ask to install one
        raise build.NotBuiltError("it needs Linux")
    if sys.maxsize < 2**32 or "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE")):
        raise build.NotBuiltError("it needs a 64-bit Python on glibc")
    compiler = build.find_compiler()
    machine = build.machine(compiler)
    if platform != f"linux-{machine}":
        raise build.NotBuiltError(f"this Python is for {platform}, and the C compiler compiles for linux-{machine}")
    return platform.replace("-", "_"), build.compile_all(compiler, into)
