"""accelerate: ``Accelerator(log_with=["tensorboard", HostSyncTracker()])`` logs host syncs to the other trackers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from syncagent.integrations.base import Integration
from syncagent.runtime.training import WORST, Figures, TrainingRun, caller, tag_mlflow

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from syncagent.runtime.handle import Agent
    from syncagent.settings.schema import Keywords

_TAKE_TEXT = ("tensorboard", "wandb")


class HostSyncTracker(Integration, GeneralTracker):  # type: ignore[misc]  # the library's types are not read
    """Watches from its construction to ``accelerator.end_training()``.

    Takes every setting of ``syncagent.watch`` as a keyword.  At each ``accelerator.log`` the other trackers also get
    ``syncs/step``, ``stall_ms/step`` and the worst site of the steps since the last one.  A step is one of the
    optimizer, whatever the gradient accumulation.
    """

    entry_point_group: ClassVar[str | None] = None
    name = "syncagent"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, **settings: Unpack[Keywords]) -> None:
        super().__init__()
        self._run = TrainingRun(f"{__name__}.HostSyncTracker", settings)
        self._accelerator: Any = None
        self._step: int | None = None
        self._run.begin()

    @property
    def tracker(self) -> Agent | None:
        """The agent, while it watches."""
        return self._run.agent

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:  # noqa: ARG002 - the interface
        with self._run.guarded() as agent:
            accelerator = None if agent is None else caller(Accelerator)
            if accelerator is not None and accelerator.is_main_process:
                self._accelerator, self._step = accelerator, step
                self._run.log(lambda figures: self._write(accelerator.trackers, figures, step))

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Have what runs inside be in no step: ``with host_syncs.evaluation():`` around an evaluation.

        Its syncs are logged at the step of the last ``accelerator.log``.
        """
        self._run.evaluation_begins()
        try:
            yield
        finally:
            if self._accelerator is not None:
                self._run.evaluation_ends(self._write_numbers)
            self._run.steps_follow()

    def finish(self) -> None:
        self._run.end()

    def _write_numbers(self, metrics: dict[str, float]) -> None:
        for tracker in self._accelerator.trackers:
            if tracker is not self:
                tracker.log(metrics, step=self._step)

    def _write(self, trackers: list[Any], figures: Figures, step: int | None) -> None:
        others = [tracker for tracker in trackers if tracker is not self]
        text = {} if figures.worst is None else {WORST: figures.worst}
        for tracker in others:
            tracker.log({**figures.metrics, **(text if tracker.name in _TAKE_TEXT else {})}, step=step)
        if figures.worst is None:
            return
        if any(tracker.name == "mlflow" for tracker in others):
            tag_mlflow(figures.worst)
        elif not any(tracker.name in _TAKE_TEXT for tracker in others):
            self._run.say_worst(figures.worst)
