"""The command line: one file per verb, which imports what it works with only when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import click

from syncagent._version import __version__
from syncagent.cli import check, compare, cost, doctor, report, run, selftest
from syncagent.errors import SyncAgentError
from syncagent.support import stderr
from syncagent.support.printable import clean
from syncagent.support.reading import reason

__all__ = ["main"]

_WRONG_USAGE = 2
# What a shell shows for a program that the signal ended: SIGINT is 2, SIGPIPE is 13.
_INTERRUPTED, _BROKEN_PIPE = 128 + 2, 128 + 13


class _Verbs(click.Group):
    """Lists the verbs in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


@click.group(
    cls=_Verbs,
    invoke_without_command=True,
    subcommand_metavar="VERB [ARGUMENTS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: the script's own for run, unless --fail-on judges it; else 0, 1 for a finding, 2 for wrong "
    "usage or bad input.",
)
@click.version_option(__version__, prog_name="syncagent", message="%(prog)s %(version)s")
@click.pass_context
def verbs(context: click.Context) -> None:
    """See every host sync of a PyTorch program: which op, which line, how long."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(_WRONG_USAGE)


for _verb in (
    run.command,
    report.command,
    compare.command,
    check.command,
    cost.command,
    selftest.command,
    doctor.command,
):
    verbs.add_command(_verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``syncagent`` command; returns its exit code: 0, 1 for a finding, 2 for wrong usage or bad input."""
    outcome = _invoke(sys.argv[1:] if arguments is None else list(arguments))
    # A script that runs in this process does so out here, where neither click nor we catch its exceptions.
    return outcome if isinstance(outcome, int) else outcome()


def _invoke(words: list[str]) -> int | Callable[[], int]:
    """Run the command; whatever is wrong becomes one sentence on stderr.

    This takes the place of click's own ``main``, which prints an error in three lines and exits with 1, the code for a
    finding, when the reader of a pipe has gone.
    """
    context: click.Context | None = None
    try:
        with _escaping_output(), verbs.make_context("syncagent", words) as context:
            outcome: int | Callable[[], int] = verbs.invoke(context)
            if sys.stdout is not None:
                sys.stdout.flush()
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except click.UsageError as error:
        return _refuse(error.format_message(), context)
    except SyncAgentError as error:
        return _refuse(str(error), context)
    except BrokenPipeError:  # the reader has gone (`| head`)
        _discard_output()
        return _BROKEN_PIPE
    except OSError as error:
        _discard_output()
        return _refuse(f"the output cannot be written: {reason(error)}", context)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # Python's own exit code would be 1, which says that there is a finding
        kind = type(error).__name__
        return _refuse(f"an internal error of syncagent; please report it: {kind}: {error}", context)
    return outcome


@contextmanager
def _escaping_output() -> Iterator[None]:
    """Escape what standard output cannot encode, for as long as a verb runs; a script finds the output unchanged.

    A verb whose output is closed (``>&-``) writes it nowhere: its exit code still says what it found.
    """
    if sys.stdout is None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
        return
    output: Any = sys.stdout
    before = getattr(output, "errors", None)
    if before != "strict" or not hasattr(output, "reconfigure"):
        yield
        return
    output.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        output.reconfigure(errors=before)


def _discard_output() -> None:
    """Send buffered output nowhere, so that it does not raise again when the interpreter ends."""
    with suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(sentence: str, context: click.Context | None) -> int:
    verb = context.invoked_subcommand if context else None
    prefix = f"syncagent {verb}" if verb else "syncagent"
    sentence = clean(" ".join(sentence.splitlines()))
    stderr.write(f"{sentence if sentence.startswith('syncagent') else f'{prefix}: {sentence}'}\n")
    return _WRONG_USAGE
