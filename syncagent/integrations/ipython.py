"""IPython and notebooks: ``%load_ext syncagent`` brings ``%%syncs``, which watches a cell and shows its report."""

from __future__ import annotations

import ast
import inspect
import sys
from contextlib import ExitStack
from types import CodeType
from typing import Any, ClassVar

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.display import display

import syncagent
from syncagent.attribution import cells
from syncagent.errors import ConfigError
from syncagent.integrations.base import Integration
from syncagent.report import formats
from syncagent.report.model import Report
from syncagent.settings import sources

_WITH_VALUE = ("detail", "policy")
_FLAGS = ("simulate", "verbose")
_NO_AWAIT = (
    "%%syncs cannot run `await` at the top of a cell; watch it in an ordinary one, with "
    "`with syncagent.watch(summary=True):`"
)


@magics_class
class SyncMagics(Integration, Magics):  # type: ignore[misc]  # IPython's types are not read: it may not be installed
    """``%syncs`` and ``%%syncs``; IPython has no entry points, and asks the package for them."""

    entry_point_group: ClassVar[str | None] = None

    @no_var_expand  # type: ignore[untyped-decorator]  # as above
    @line_cell_magic  # type: ignore[untyped-decorator]  # as above
    def syncs(self, line: str, cell: str | None = None) -> None:
        """Watch a cell, or a statement, for host syncs, and show what was seen.

        ``%%syncs [--detail auto|ops|syncs] [--policy observe|warn|raise] [--simulate] [--verbose]`` stands on the first
        line of a cell, ``%syncs [options] train(model)`` before a statement.  ``%syncs`` alone shows the report so far
        of what is being watched, as by ``syncagent.start()``.

        The options are settings of ``syncagent.watch``, and the others come from the environment and pyproject.toml.
        A policy acts from the first step on.  ``--verbose`` shows the whole report.
        """
        __tracebackhide__ = True  # IPython shows the cell's own frames, not these
        options, statement = _parse(line)
        verbose = options.pop("verbose", False) is True
        if cell is not None and statement:
            raise UsageError(f"%%syncs takes only options on its own line, not {statement!r}")
        codes = self._compiled(cell) if cell is not None else self._compiled_line(statement)
        if cell is None and not codes:
            self._show_running(verbose=verbose)
            return
        stack = ExitStack()
        try:
            agent = stack.enter_context(syncagent.watch(**_settings(options)))
        except ConfigError as error:
            raise UsageError(str(error)) from None
        try:
            with stack:
                for code in codes:
                    exec(code, self.shell.user_global_ns, self.shell.user_ns)  # noqa: S102 - the user's cell
        finally:
            _show(agent.report(), verbose=verbose)

    def _show_running(self, *, verbose: bool) -> None:
        agent = syncagent.current()
        if agent is None:
            raise UsageError("nothing is being watched: write %%syncs above a cell, or call syncagent.start()")
        _show(agent.report(), verbose=verbose)

    def _compiled(self, cell: str) -> list[CodeType]:
        """Compile the lines below ``%%syncs``: they keep the numbers that they have in the cell."""
        lines = cell.splitlines()
        blank = next((number for number, text in enumerate(lines) if text.strip()), len(lines))
        return self._compiled_from(self.shell.transform_cell(cell), 2 + blank)

    def _compiled_line(self, statement: str) -> list[CodeType]:
        """Compile a statement that stands behind ``%syncs``, on whichever line of a cell."""
        return self._compiled_from(statement, self._caller()[1])

    def _caller(self) -> tuple[int, int]:
        """Return the number of the cell that is running, and the line on which it called this."""
        frame = inspect.currentframe()
        while frame is not None:
            number = cells.number_of(frame.f_code.co_filename)
            if number is not None:
                return number, frame.f_lineno
            frame = frame.f_back
        return self.shell.execution_count, 1  # called in another way than by a cell

    def _compiled_from(self, source: str, first: int) -> list[CodeType]:
        """Compile code that begins on the line ``first`` of the cell that is running, for IPython to find its text."""
        shell = self.shell
        source = "\n" * (first - 1) + source
        name = shell.compile.cache(source, self._caller()[0])
        nodes = shell.transform_ast(shell.compile.ast_parse(source, filename=name)).body
        shows_last = shell.ast_node_interactivity.startswith("last") and not source.rstrip().endswith(";")
        codes = []
        for node in nodes:
            is_shown = isinstance(node, ast.Expr) and (
                shell.ast_node_interactivity == "all" or (shows_last and node is nodes[-1])
            )
            with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
                tree, mode = (ast.Interactive([node]), "single") if is_shown else (ast.Module([node], []), "exec")
                code = shell.compile(tree, name, mode)
            if code.co_flags & inspect.CO_COROUTINE:
                raise UsageError(_NO_AWAIT)
            codes.append(code)
        return codes


def _parse(line: str) -> tuple[dict[str, Any], str]:
    """Return the options at the start of a line, and what follows them."""
    options: dict[str, Any] = {}
    rest = line.strip()
    while rest.startswith("--"):
        word, _, rest = rest.replace("\t", " ").partition(" ")
        name, has_value, value = word[2:].partition("=")
        rest = rest.lstrip()
        if name in _FLAGS and not has_value:
            options[name] = True
        elif name in _WITH_VALUE:
            if not has_value:
                value, _, rest = rest.partition(" ")
            options[name] = value
        else:
            known = ", ".join([*(f"--{each} VALUE" for each in _WITH_VALUE), *(f"--{each}" for each in _FLAGS)])
            raise UsageError(f"%%syncs does not know the option {word!r}; there are {known}")
        rest = rest.lstrip()
    return options, rest


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the watch: a cell is short, so a policy acts at once unless the project says when."""
    if "policy" in options and "warmup_steps" not in sources.load().sources:
        options["warmup_steps"] = 0
    return {**options, "summary": False}  # it is shown here


def _show(report: Report, *, verbose: bool) -> None:
    """Display the report: a table in a notebook, text in a terminal.  It must not hide an error of the cell."""
    try:
        text = formats.load("text").render(report, verbose=verbose, more="%%syncs --verbose")
        table = formats.load("notebook").render(report, verbose=verbose)
        display({"text/plain": text, "text/html": table}, raw=True)
    except Exception as error:
        print(f"syncagent: the report could not be shown: {error!r}", file=sys.stderr)


def load_ipython_extension(shell: Any) -> None:
    """Register the magics: ``%load_ext syncagent``."""
    shell.register_magics(SyncMagics)


def unload_ipython_extension(shell: Any) -> None:
    """Take them out again: ``%unload_ext syncagent``."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("syncs", None)
