"""What a program gets from ``with syncagent.watch() as agent``, ``syncagent.start()`` and ``syncagent.current()``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from syncagent.errors import ConfigError
from syncagent.support.log import get_logger

if TYPE_CHECKING:
    from syncagent.attribution.ranks import Rank
    from syncagent.events import SyncEvent
    from syncagent.report.model import Report
    from syncagent.settings.schema import PolicyName, Settings


class Agent(ABC):
    """Watches this process, or, as the region of a watch inside another, what runs in there.

    Made by :func:`syncagent.start` and :class:`syncagent.watch`.
    """

    settings: Settings
    """The settings in force."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it has not been stopped."""

    @property
    @abstractmethod
    def rank(self) -> Rank:
        """The rank of this process in its job."""

    @property
    @abstractmethod
    def policy(self) -> PolicyName:
        """What happens at a sync that is not allowed: ``observe``, ``warn`` or ``raise``.

        May be set while the job runs; a value that is not allowed raises :class:`~syncagent.ConfigError`.
        """

    @policy.setter
    @abstractmethod
    def policy(self, value: PolicyName) -> None: ...

    @abstractmethod
    def events(self) -> tuple[SyncEvent, ...]:
        """Return the newest syncs (``max_events`` of them, 10,000 by default), oldest first."""

    @abstractmethod
    def report(self) -> Report:
        """Return what was seen so far: the steps and their time, the sites, the sums."""

    def save(self, report: Report) -> str | None:
        """Save a report where the setting ``report`` says and return where; a path that cannot be written is logged."""
        return None if self.settings.report is None else self.save_at(report, self.settings.report)

    def save_at(self, report: Report, path: str) -> str | None:
        """Save a report and return where; a path that cannot be written is logged.

        A process without a rank that never used CUDA, such as one that only starts others, saves nothing where one of
        the others has saved its own.
        """
        from syncagent.report import files

        try:
            run = report.run
            used_cuda = run.device is not None and not run.simulated  # the simulated device has no first use
            is_empty = run.rank is None and not (used_cuda or run.steps or report.sites)
            saved = files.save_beside(report, path, mode=self.settings.file_mode, may_add=not is_empty)
            return None if saved is None else str(saved)
        except (ConfigError, OSError) as error:
            get_logger().error(str(error))
        except Exception as error:
            get_logger().error(f"syncagent: the report could not be saved at {path}: {error!r}")
        return None

    @abstractmethod
    def measure_cost(self, steps: int = 5) -> None:
        """Measure what the syncs cost: the report of the process then has ``idle_ms``, ``gain_ms`` and ``advice``.

        Ten to sixty of the steps that follow are timed, then ``steps`` and one more run under torch.profiler (CPU and
        CUDA activities).  The report has the costs of the window that was asked for last.

        Raises :class:`~syncagent.ConfigError` for a number of steps that is not allowed, and under ``detail="ops"``,
        which slows the very steps that are measured.
        """

    @abstractmethod
    def flush(self) -> None:
        """Deliver everything that was seen so far to every sink."""

    @abstractmethod
    def stop(self) -> Report:
        """Stop it, unless it has stopped, and return its report."""
