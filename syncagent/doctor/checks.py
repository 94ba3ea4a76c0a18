"""What can be looked at without torch, a function each."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from syncagent import native
from syncagent._version import __version__
from syncagent.delivery import folder
from syncagent.doctor import collector
from syncagent.doctor.section import Section
from syncagent.errors import ConfigError, SyncAgentError
from syncagent.policy import gate
from syncagent.runtime import pth
from syncagent.settings.schema import Settings
from syncagent.support import reading, redaction
from syncagent.telemetry import otel_env

_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_MOST_SHOWN = 60


def versions() -> Section:
    """What is installed."""
    section = Section("versions")
    section.add("syncagent", __version__)
    section.add("Python", platform.python_version())
    torch = _torch_version()
    section.add("torch", torch or "not installed", f"CUDA {cuda}" if (cuda := _cuda_of_torch()) else "")
    section.add("driver", _driver() or "none")
    if not torch:
        section.problems.append("torch is not installed in this environment, so there is nothing to watch; install it.")
    return section


def has_torch() -> bool:
    """Whether torch is installed, whether it works or not."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):
        return False


def _torch_version() -> str:
    try:
        return metadata.version("torch") if has_torch() else ""
    except metadata.PackageNotFoundError:
        return "of an unknown version"


def _cuda_of_torch() -> str:
    """The CUDA that torch is built for, from its file: importing it takes seconds."""
    try:
        spec = find_spec("torch")
        text = reading.read(Path(spec.origin).with_name("version.py"), reading.MIB) if spec and spec.origin else b""
    except (OSError, ValueError, ImportError):
        return ""
    found = re.search(rb"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1].decode() if found else ""


def _driver() -> str:
    try:
        text = _DRIVER_VERSION.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\b(\d{3,}\.\d+(\.\d+)?)\b", text)
    return found[1] if found else "of an unknown version"


def settings_in_force(settings: Settings, wrong: list[str]) -> Section:
    """Every setting that is not at its default, and where it comes from; what was meant as one and has no effect."""
    section = Section("settings")
    for name, source in settings.sources.items():
        shown = redaction.text(_as_written(getattr(settings, name)))
        shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
        section.add(name, shown, f"SYNCAGENT_{name.upper()}" if source == "environment" else source)
    section.add(
        "all others" if section.rows else "all", "default", "keywords of watch() and options of run come on top"
    )
    section.problems += [sentence.removeprefix("syncagent: ") for sentence in wrong]
    section.problems += [_with_remedy(warning) for warning in settings.warnings]
    return section


def _as_written(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join("=".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value) or "none"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _with_remedy(warning: str) -> str:
    if warning.endswith("?"):  # it names the variable that was probably meant
        return warning
    is_file = "was not read for settings" in warning
    remedy = "none of its settings is in force until that is corrected" if is_file else "correct or unset it"
    return f"{warning.rstrip('.')}; {remedy}."


def the_gate(settings: Settings) -> Section:
    """The policy, where it has consequences: a run that cannot honour it does not start."""
    section = Section("gate")
    if not settings.is_gate:
        return section
    section.add("policy", settings.policy, f"baseline {settings.baseline}" if settings.baseline else "")
    try:
        gate.check(settings)
    except (ConfigError, SyncAgentError) as error:
        section.problems.append(f"{str(error).removeprefix('syncagent: ').rstrip('.')}. No script would start.")
    return section


def files(settings: Settings, environment: Mapping[str, str]) -> Section:
    """Where a run would write, and whether it can."""
    section = Section("files")
    if settings.report is None:
        section.add("report", "not saved", "SYNCAGENT_REPORT is not set")
    else:
        _file(section, "report", _absolute(settings.report), Path(settings.report))
    if collector.takes_spans(environment):
        section.add("journal", "not written", "spans go to the collector, or nowhere")
    else:
        _kept(section, "journal", settings.journal)
    _kept(section, "capture", settings.capture)
    return section


def _kept(section: Section, kind: str, setting: str | None) -> None:
    if folder.is_off(setting):
        section.add(kind, "not written", f"setting {kind} is off")
        return
    path = folder.file_path(kind, setting)
    is_named = bool(setting) and path.name == Path(setting or "").name
    _file(section, kind, str(path) if is_named else f"{path.parent}{os.sep}{kind}-….jsonl", path)


def _file(section: Section, kind: str, shown: str, path: Path) -> None:
    why = _why_unwritable(path)
    section.add(kind, shown, "can be written" if not why else "cannot be written")
    if why:
        off = "" if kind == "report" else ", or turn it off with SYNCAGENT_" + kind.upper() + "=off"
        section.problems.append(f"the {kind} cannot be written to {shown}: {why}; set another path{off}.")


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working folder is gone
        return path


def _why_unwritable(path: Path) -> str:
    """Try to write in the folder, or in the nearest one above that exists; nothing is left there."""
    try:
        path = path.absolute()
        parent = path if os.path.isdir(path) else path.parent
        if os.path.isdir(parent):
            folder.make_directory(parent)  # refuses one that others can replace
        while not os.path.lexists(parent) and parent != parent.parent:
            parent = parent.parent
        if not os.path.isdir(parent):
            return f"{os.fspath(parent)!r} is no folder"
        with tempfile.TemporaryFile(dir=parent) as stream:
            stream.write(b"\0")
            stream.flush()
    except OSError as error:
        return reading.reason(error)
    except ValueError as error:
        return str(error)
    return ""


def collectors(environment: Mapping[str, str]) -> Section:
    """Whether the OTLP endpoints answer: a TCP connection that is closed at once."""
    section = Section("collector")
    if otel_env.is_disabled(environment):
        section.add("all", "off", "OTEL_SDK_DISABLED is set")
        return section
    silent: dict[tuple[str, str], list[collector.Target]] = {}
    for target in collector.targets(environment):
        if target.wrong:
            section.add(target.what, "not sent")
            section.problems.append(f"{target.wrong.rstrip('.')}. No {target.what} would be sent.")
            continue
        section.add(target.what, target.address, target.why_not or target.note)
        if target.why_not:
            silent.setdefault((target.why_not, target.variable), []).append(target)
    for (why_not, variable), those in silent.items():
        what = " and ".join(target.what for target in those)
        section.problems.append(
            f"the collector at {those[0].address} cannot be reached ({why_not}), so {what} would be lost; start it, or "
            f"correct {variable}."
        )
    if not section.rows:
        section.add("all", "none", "no OTEL_EXPORTER_OTLP_ENDPOINT is set")
    return section


def autostart(environment: Mapping[str, str]) -> Section:
    """Whether an interpreter that is started with ``SYNCAGENT=1`` would find the agent."""
    section = Section("autostart")
    found = pth.find()
    section.add("SYNCAGENT=1", str(found) if found else "has no effect", "" if found else f"there is no {pth.NAME}")
    if found is None and environment.get("SYNCAGENT", "").strip() not in {"", "0"}:
        section.problems.append(
            f"SYNCAGENT is set, but {pth.NAME} is in none of this Python's site-packages, so nothing is watched; "
            "install syncagent with pip, or use `syncagent run`."
        )
    return section


def native_library() -> Section:
    """The library that times every wait."""
    section = Section("native")
    why_not = native.why_not()
    section.add("library", "not there" if why_not else "there", why_not)
    if why_not and not native.why_never():
        section.problems.append(
            f"{why_not.rstrip('.')}. Without it only named syncs are seen, and stalls are scaled up from samples; "
            "install a wheel of syncagent, or install it again where there is a C compiler."
        )
    return section
