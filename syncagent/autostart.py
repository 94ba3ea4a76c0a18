"""``SYNCAGENT=1``: watch a whole process from before its script's first line, and report when it ends.

Reached from ``syncagent_autostart.pth``, which looks at the variables before it imports anything.  Nothing is turned on
until the process imports torch; children that only inherit the variable (DataLoader and compile workers) wait further,
until they use CUDA, which they never do.
"""

from __future__ import annotations

# Every interpreter that inherits the variable imports this: nothing heavy here, typing and importlib.abc included.
import atexit
import os
import sys

from syncagent.attribution import processes
from syncagent.attribution.launchers import is_launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    import importlib.machinery
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType
    from typing import Any

__all__ = ["begin", "instrument", "simulates_throughout", "uninstrument"]

_PATIENCE_S = 5.0
"""How long the end waits for a report that another thread is just making."""
_TIMES = 3
"""So often the end is registered; it runs once.  A Ctrl-C between the script's end and the first line of ours is raised
there, and would otherwise cost the report."""
_OFF = frozenset({"", "0", "false", "no", "off"})


_run: _Run | None = None
_awaits_torch = False


def begin() -> None:
    """Arrange for the agent to start as soon as torch is imported; once a process.  Never raises.

    Without ``SYNCAGENT=1``, ``SYNCAGENT_SIMULATE=1`` alone puts in the simulated device, and nobody watches.
    """
    global _run
    if _run is not None:
        return
    if not _is_on("SYNCAGENT"):
        _simulate_unwatched()
        return
    try:
        _run = _Run()
        _run.begin()
    except Exception as error:
        _unwatched(f"syncagent: could not start: {error!r}", is_gate=_wants_gate(None))


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() not in _OFF


def simulates_throughout() -> bool:
    """Whether this whole process was asked to run on the simulated device."""
    return _is_on("SYNCAGENT_SIMULATE")


def _simulate_unwatched() -> None:
    global _awaits_torch
    if _awaits_torch or not simulates_throughout() or is_launcher():
        return
    _awaits_torch = True
    if "torch" in sys.modules:
        _put_device_in()
    else:
        sys.meta_path.insert(0, _AfterImport("torch", _put_device_in))


def _put_device_in() -> None:
    """Put the simulated device in, or end the process: it must not go on with another device than it was asked for."""
    from syncagent import config, simulate
    from syncagent.errors import ConfigError
    from syncagent.refusal import refuse_to_start

    try:
        config.settle("simulate", os.environ.get("SYNCAGENT_SIMULATE"))
    except ConfigError as error:
        refuse_to_start(str(error))
    simulate.install_or_end()


def instrument(providers: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """Watch this process for a program that has set up OpenTelemetry: spans and metrics go to its own providers.

    ``SYNCAGENT=0`` says no.  Where the process is watched already, only the providers are taken over.  Never raises.
    """
    global _run
    if os.environ.get("SYNCAGENT", "1").strip().lower() in _OFF:
        return
    try:
        if _run is None:
            _run = _Run(providers)
            _run.begin(settings)
        else:
            _run.use(providers)
    except Exception as error:
        _unwatched(f"syncagent: could not start: {error!r}", is_gate=_wants_gate(settings))


def uninstrument() -> None:
    """Stop watching what :func:`instrument` began to watch."""
    global _run
    if _run is not None:
        _run.end()
        _run = None


def _say(sentence: str) -> None:
    from syncagent import stderr

    stderr.write(f"{sentence}\n")


def _wants_gate(settings: Mapping[str, object] | None) -> bool:
    """Was a policy asked for that stops something?  Then nothing may run that it does not stop."""
    try:
        from syncagent import config

        return config.wants_gate(settings)
    except Exception:
        return os.environ.get("SYNCAGENT_POLICY", "").strip().lower() not in {"", "observe"}


def _unwatched(sentence: str, *, is_gate: bool) -> None:
    """Say that the agent could not start; where a gate was asked for, torch is not for this process either."""
    if not is_gate:
        _say(f"{sentence.rstrip('.')}. The script runs unwatched.")
        return
    from syncagent.refusal import refuse_to_start

    if "torch" in sys.modules:
        refuse_to_start(sentence)

    def refuse(*_: object) -> None:
        refuse_to_start(sentence)

    sys.meta_path.insert(0, _AfterImport("torch", before=refuse, cannot=refuse))


class _Run:
    """The watch over one process."""

    def __init__(self, providers: Mapping[str, object] | None = None) -> None:
        self._pid = os.getpid()
        self._providers = providers
        self._agent: Any = None
        self._session: Any = None
        self._is_child = False
        self._finished = False
        self._shown: Any = None
        self._is_sent = False
        self._saving: Any = None
        self._settings: Any = None
        self._finder: Any = None

    def begin(self, settings: Mapping[str, object] | None = None) -> None:
        if is_launcher():
            processes.join_run()
            return
        from syncagent import config
        from syncagent.errors import ConfigError

        try:
            self._settings = config.load(settings)
        except ConfigError as error:
            _unwatched(str(error), is_gate=_wants_gate(settings))
            return
        if "torch" in sys.modules:
            self._torch_imported()
        else:
            self._finder = _AfterImport(
                "torch", self._torch_imported, before=self._look_at_gate, cannot=self._could_not_start
            )
            sys.meta_path.insert(0, self._finder)
        self._finish_at_exit()

    def use(self, providers: Mapping[str, object]) -> None:
        """Send to the program's own providers, if nothing has been sent elsewhere yet."""
        if self._agent is not None:
            _say("[syncagent] watches already: its spans and metrics do not go through the program's own providers")
            return
        self._providers = providers
        atexit.unregister(self.finish)  # the providers shut down at exit, too, and must come after
        self._finish_at_exit()

    def _finish_at_exit(self) -> None:
        for _ in range(_TIMES):
            atexit.register(self.finish)

    def end(self) -> None:
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self.finish()
        atexit.unregister(self.finish)

    def _torch_imported(self) -> None:
        """Start now, or at the first use of CUDA in a process that somebody's multiprocessing made."""
        if self._settings.simulate:
            from syncagent import simulate

            simulate.install_or_end()
        processes.join_run()  # and what it starts from now on belongs to the same run
        try:
            if _is_multiprocessing_child() and self._settings.simulate:
                self._start(modes=False)  # the simulated device has no first use to wait for
            elif _is_multiprocessing_child():
                _when_cuda_is_used(self._start_late)
            else:
                self._start(modes=True)
                os.register_at_fork(after_in_child=self._forked)
        except Exception as error:
            self._could_not_start(error)

    def _look_at_gate(self) -> None:
        """Before torch is imported: what is wrong with a gate is said at once."""
        if self._settings.is_gate:
            try:
                from syncagent.policy import gate

                gate.check(self._settings)
            except Exception as error:
                self._could_not_start(error)

    def _could_not_start(self, error: Exception) -> None:
        sentence = str(error) or repr(error)
        if not sentence.startswith("syncagent"):
            sentence = f"syncagent: could not start: {sentence}"
        is_gate = self._settings is not None and self._settings.is_gate
        if is_gate:
            from syncagent.refusal import refuse_to_start

            refuse_to_start(sentence)
        _unwatched(sentence, is_gate=False)

    def _start_late(self) -> None:
        try:
            self._start(modes=_no_mode_active())
        except Exception as error:
            self._could_not_start(error)

    def _start(self, *, modes: bool) -> None:
        import threading

        from syncagent import running, session, signals

        self._session = session.begin(self._settings, self._providers)
        self._agent = running.launch(self._settings, self._session.sinks, modes=modes)
        self._finished = False
        self._shown, self._is_sent = None, False
        self._saving = threading.Lock()
        if os.getpid() == self._pid:  # a forked child keeps what it has: its parent may end it by this signal
            signals.catch_sigterm(self._dying, self._save)
        if _is_multiprocessing_child() or os.getpid() != self._pid:
            self._is_child = True
            self._pid = os.getpid()
            from multiprocessing.util import Finalize

            # Such children may leave by os._exit, which skips atexit; multiprocessing runs its own finalizers first.
            Finalize(None, self.finish, exitpriority=100)

    def _forked(self) -> None:
        """In a forked child: silent, unless it turns out to train on CUDA itself."""
        self._agent = self._session = None
        self._finished = True
        torch = sys.modules.get("torch")
        if torch is not None and not torch.cuda.is_initialized():
            _when_cuda_is_used(self._start_late)

    def _dying(self) -> None:
        """The process is about to die of a signal: save and show what was seen, also in the middle of doing so."""
        if os.getpid() != self._pid or self._agent is None or self._is_sent:
            return
        from syncagent import session

        self._finished = True
        if self._shown is None:
            self._shown = session.show(self._agent, self._agent.conclude(), self._session, quiet=self._is_child)
        session.send(self._agent, self._shown, self._session)
        self._session.flush()

    def _save(self) -> None:
        """Save the report as it is now, on whichever thread; the watch goes on."""
        if os.getpid() != self._pid or self._finished or self._agent is None or self._settings.report is None:
            return
        with self._saving:  # all the while: an interpreter that ends while this calls torch would abort
            if not self._finished:
                self._agent.save(self._agent.report())

    def finish(self) -> None:
        """Stop the agent, save the report, show the table.  Runs once, in the process it began in, and never raises."""
        if self._finished or os.getpid() != self._pid or self._agent is None:
            return
        from syncagent import running, session, signals

        try:
            with signals.holding_interrupts() as interrupts:
                self._finished = True
                if self._saving.acquire(timeout=_PATIENCE_S):  # a report of before must not take this one's place
                    self._saving.release()
                report = running.release(self._agent)
                self._shown = session.show(self._agent, report, self._session, quiet=self._is_child)
            session.send(self._agent, self._shown, self._session, is_interrupted=interrupts.count > 0)
        except KeyboardInterrupt:
            if not self._finished:
                return  # it came before anything was done: the next registration of this function does it
        except Exception as error:
            _say(f"syncagent: the report could not be made: {error!r}")
        self._is_sent = True
        signals.release_sigterm()
        _keep_interrupt()


def _keep_interrupt() -> None:
    """Have a script that Ctrl-C ended still end by the signal.

    CPython notes an interrupt that nobody caught, and forgets it when a string is executed afterwards, as imports of
    dataclasses and named tuples do.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt:
        try:
            exec("raise KeyboardInterrupt")  # noqa: S102 - sets the note again
        except KeyboardInterrupt:
            pass


class _AfterImport:
    """A finder that runs callbacks right before and after one module is imported, and then is gone."""

    def __init__(
        self,
        name: str,
        then: Callable[[], None] = lambda: None,
        *,
        before: Callable[[], None] = lambda: None,
        cannot: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """``cannot`` is called where the module's loader has no place for a callback."""
        self._name = name
        self._then = then
        self._before = before
        self._cannot = cannot

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        # It stays until the module has run: libraries ask importlib.util.find_spec whether there is a torch.
        # Those before it have been asked; there may be two of its kind, which must not ask each other.
        place = sys.meta_path.index(self) + 1 if self in sys.meta_path else 0
        others = [finder for finder in sys.meta_path[place:] if hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        load = getattr(spec and spec.loader, "exec_module", None)
        if spec is None or load is None:
            return spec

        def exec_module(module: ModuleType) -> None:
            if self in sys.meta_path:
                self._before()
            load(module)
            if self in sys.meta_path:  # another thread may have imported it meanwhile
                sys.meta_path.remove(self)
                self._then()

        try:
            spec.loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
        except AttributeError:
            self._cannot(TypeError("torch's loader takes no attributes"))
        return spec


def _is_multiprocessing_child() -> bool:
    """Is this a process that multiprocessing spawned (its forkserver's included)?"""
    line = " ".join(getattr(sys, "orig_argv", sys.argv))
    return "--multiprocessing-fork" in line or "multiprocessing.forkserver" in line or "resource_tracker" in line


def _when_cuda_is_used(then: Callable[[], None]) -> None:
    from syncagent.sensors.internals import when_cuda_is_used

    when_cuda_is_used(then)


def _no_mode_active() -> bool:
    """Modes can only be entered in the middle of a program where the user has none open."""
    from syncagent.sensors.modes import none_active

    return none_active()
