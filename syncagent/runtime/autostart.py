"""``SYNCAGENT=1``: watch a whole process from before its script's first line, and report when it ends.

Reached from ``syncagent_autostart.pth``, which looks at the variables before it imports anything.  Nothing is turned on
until the process imports torch; children that only inherit the variable (DataLoader and compile workers) wait further,
until they use CUDA, which they never do.
"""

from __future__ import annotations

# Every interpreter that inherits the variable imports this: nothing heavy here, typing included.
import atexit
import os
import sys

from syncagent.attribution import processes
from syncagent.support import start_folder
from syncagent.support.import_hook import ImportHook

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_SAVE_TIMEOUT_S = 5.0
"""How long the end waits for a report that another thread is making."""
_EXIT_REGISTRATIONS = 3
"""How often the end is registered, though it runs once.  A Ctrl-C that arrives after the script's end and before the
first line of our exit handler is raised there; the next registration then still makes the report."""
_OFF = frozenset({"", "0", "false", "no", "off"})


_run: _Run | None = None
_awaits_torch = False


def begin() -> None:
    """Arrange for the agent to start as soon as torch is imported, once per process.  Never raises.

    ``SYNCAGENT_SIMULATE=1`` without ``SYNCAGENT=1`` installs the simulated device and no agent.
    """
    global _awaits_torch
    if _run is not None:
        return
    start_folder.note()
    if _is_on("SYNCAGENT"):
        _watch({})
    elif _is_on("SYNCAGENT_SIMULATE") and not _awaits_torch and not processes.is_launcher():
        _awaits_torch = True
        ImportHook("torch", _install_device).install()


def instrument(providers: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """Watch this process for a program that has set up OpenTelemetry: spans and metrics go to its own providers.

    ``SYNCAGENT=0`` turns this off.  A process that is watched already only adopts the providers.  Never raises.
    """
    if _is_on("SYNCAGENT", by_default="1"):
        _watch(settings, providers)


def is_turned_off() -> bool:
    """Whether ``SYNCAGENT=0`` keeps what would start the agent on the program's behalf from doing so."""
    return not _is_on("SYNCAGENT", by_default="1")


def uninstrument() -> None:
    """Undo :func:`instrument`."""
    global _run
    if _run is not None:
        _run.end()
        _run = None


def _is_on(variable: str, by_default: str = "") -> bool:
    return os.environ.get(variable, by_default).strip().lower() not in _OFF


def _watch(settings: Mapping[str, object], providers: Mapping[str, object] | None = None) -> None:
    global _run
    try:
        if _run is None:
            _run = _Run(providers)
            _run.begin(settings)
        elif providers is not None:
            _run.use(providers)
    except Exception as error:
        _could_not_start(repr(error), is_gate=_wants_gate(settings))


def _install_device() -> None:
    """Install the simulated device or end the process: it must not run on a device that was not asked for."""
    from syncagent import simulate
    from syncagent.errors import ConfigError
    from syncagent.settings import schema
    from syncagent.support.refusal import refuse_to_start

    try:
        schema.parse("simulate", os.environ.get("SYNCAGENT_SIMULATE"))
        gpu = os.environ.get("SYNCAGENT_SIMULATE_GPU") or None
        gpu = gpu and schema.parse("simulate_gpu", gpu)
    except ConfigError as error:
        refuse_to_start(str(error))
    simulate.install_or_end(gpu)


def _write_line(sentence: str) -> None:
    from syncagent.support import stderr

    stderr.write(f"{sentence}\n")


def _wants_gate(settings: Mapping[str, object]) -> bool:
    """Whether a policy with consequences was asked for: then no script may run without it."""
    try:
        from syncagent.settings import sources

        return sources.wants_gate(settings)
    except Exception:
        return os.environ.get("SYNCAGENT_POLICY", "").strip().lower() not in {"", "observe"}


def _could_not_start(error: object, *, is_gate: bool, at_once: bool = False) -> None:
    """Say so; where a gate was asked for, the process ends at its import of torch, or ``at_once``."""
    sentence = str(error) or repr(error)
    if not sentence.startswith("syncagent"):
        sentence = f"syncagent: could not start: {sentence}"
    if not is_gate:
        _write_line(f"{sentence.rstrip('.')}. The script runs unwatched.")
        return
    from syncagent.support.refusal import refuse_to_start

    def refuse(*_: object) -> None:
        refuse_to_start(sentence)

    if at_once:
        refuse()
    ImportHook("torch", before=refuse, cannot=refuse).install()


class _Run:
    """One run of a process that is watched from its start to its end."""

    def __init__(self, providers: Mapping[str, object] | None = None) -> None:
        self._pid = os.getpid()
        self._providers = providers
        self._agent: Any = None
        self._outputs: Any = None
        self._is_child = False
        self._finished = False
        self._shown: Any = None
        self._is_sent = False
        self._saving: Any = None
        self._settings: Any = None
        self._hook = ImportHook("torch", self._torch_imported, before=self._check_gate, cannot=self._refused)

    def begin(self, settings: Mapping[str, object]) -> None:
        if processes.is_launcher():
            processes.join_run()
            return
        from syncagent.errors import ConfigError
        from syncagent.settings import sources

        try:
            self._settings = sources.load(settings)
        except ConfigError as error:
            _could_not_start(error, is_gate=_wants_gate(settings))
            return
        self._hook.install()
        self._finish_at_exit()

    def use(self, providers: Mapping[str, object]) -> None:
        """Send to the program's own providers, if nothing has been sent elsewhere yet."""
        if self._agent is not None:
            _write_line(
                "[syncagent] watches already: its spans and metrics do not go through the program's own providers"
            )
            return
        self._providers = providers
        atexit.unregister(self.finish)  # the providers shut down at exit, too, and must come after
        self._finish_at_exit()

    def _finish_at_exit(self) -> None:
        for _ in range(_EXIT_REGISTRATIONS):
            atexit.register(self.finish)

    def end(self) -> None:
        self._hook.remove()
        self.finish()
        atexit.unregister(self.finish)

    def _torch_imported(self) -> None:
        """Start now, or, in a process that multiprocessing made, at the first use of CUDA."""
        if self._settings.simulate:
            from syncagent import simulate

            simulate.install_or_end(self._settings.modelled_gpu)
        processes.join_run()  # processes that this one starts from now on belong to the same run
        try:
            if not _is_multiprocessing_child():
                self._start(modes=True)
                os.register_at_fork(after_in_child=self._forked)
            elif self._settings.simulate:
                self._start(modes=False)  # the simulated device has no first use to wait for
            else:
                self._start_at_first_use()
        except Exception as error:
            self._refused(error)

    def _check_gate(self) -> None:
        """Find out what is wrong with a gate before torch, which takes seconds, is imported."""
        if self._settings.is_gate:
            try:
                from syncagent.policy import gate

                gate.check(self._settings)
            except Exception as error:
                self._refused(error)

    def _refused(self, error: Exception) -> None:
        _could_not_start(error, is_gate=self._settings.is_gate, at_once=True)

    def _start_at_first_use(self) -> None:
        from syncagent.torchbridge.internals import when_cuda_is_used

        when_cuda_is_used(self._start_late)

    def _start_late(self) -> None:
        try:
            from syncagent.torchbridge.modes import none_active

            # In the middle of a program modes can only be entered where the user has none open.
            self._start(modes=none_active())
        except Exception as error:
            self._refused(error)

    def _start(self, *, modes: bool) -> None:
        import threading

        from syncagent.runtime import process, signals, sinks

        self._outputs = sinks.build(self._settings, self._providers)
        self._agent = process.launch(self._settings, self._outputs.sinks, modes=modes)
        self._finished = False
        self._shown, self._is_sent = None, False
        self._saving = threading.Lock()
        if os.getpid() == self._pid:  # in a forked child the default stays: its parent may end it by this signal
            signals.catch_sigterm(self._save_before_death, self._save)
        if _is_multiprocessing_child() or os.getpid() != self._pid:
            self._is_child = True
            self._pid = os.getpid()
            from multiprocessing.util import Finalize

            # Such children may leave by os._exit, which skips atexit; multiprocessing runs its own finalizers first.
            Finalize(None, self.finish, exitpriority=100)

    def _forked(self) -> None:
        """In a forked child: do nothing, unless it turns out to use CUDA itself."""
        self._agent = self._outputs = None
        torch = sys.modules.get("torch")
        if torch is not None and not torch.cuda.is_initialized():
            self._start_at_first_use()

    def _save_before_death(self) -> None:
        """Save and show what was seen, since a signal is about to end the process; it may interrupt :meth:`finish`."""
        if os.getpid() != self._pid or self._agent is None or self._is_sent:
            return
        from syncagent.runtime import script

        self._finished = True
        if self._shown is None:
            self._shown = script.show(self._agent, self._agent.conclude(), self._outputs, quiet=self._is_child)
        script.send(self._agent, self._shown, self._outputs)
        self._outputs.flush_program()

    def _save(self) -> None:
        """Save the report as it is now, on any thread, and go on watching."""
        if os.getpid() != self._pid or self._finished or self._agent is None or self._settings.report is None:
            return
        with self._saving:  # all the while: an interpreter that ends while this calls torch would abort
            if not self._finished:
                self._agent.save(self._agent.report())

    def finish(self) -> None:
        """Stop the agent, save the report, show the table: once, and only in the process it began in.  Never raises."""
        if self._finished or os.getpid() != self._pid or self._agent is None:
            return
        from syncagent.runtime import process, script, signals

        try:
            with signals.holding_interrupts() as interrupts:
                self._finished = True
                if self._saving.acquire(timeout=_SAVE_TIMEOUT_S):  # an earlier report must not overwrite this one
                    self._saving.release()
                report = process.release(self._agent)
                self._shown = script.show(self._agent, report, self._outputs, quiet=self._is_child)
            script.send(self._agent, self._shown, self._outputs, is_interrupted=interrupts.count > 0)
        except KeyboardInterrupt:
            if not self._finished:
                return  # nothing has been done yet: the next registration of this function does it
        except Exception as error:
            _write_line(f"syncagent: the report could not be made: {error!r}")
        self._is_sent = True
        signals.release_sigterm()
        _keep_interrupt()


def _keep_interrupt() -> None:
    """Let a script that Ctrl-C has ended exit by that signal, as it would without the agent.

    CPython notes an uncaught interrupt, and forgets it when a string is executed afterwards, which imports of
    dataclasses and named tuples do.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt:
        try:
            exec("raise KeyboardInterrupt")  # noqa: S102 - CPython notes it again
        except KeyboardInterrupt:
            pass


def _is_multiprocessing_child() -> bool:
    """Whether multiprocessing, including its forkserver, has spawned this process."""
    line = " ".join(getattr(sys, "orig_argv", sys.argv))
    return "--multiprocessing-fork" in line or "multiprocessing.forkserver" in line or "resource_tracker" in line
