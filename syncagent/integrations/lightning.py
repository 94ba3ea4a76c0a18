"""Lightning: ``Trainer(callbacks=[HostSyncCallback()])`` watches ``fit`` and logs host syncs to the run's logger.

Works with ``lightning.pytorch`` and with ``pytorch_lightning``, with both in programs that have imported both.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from syncagent.integrations.base import Integration
from syncagent.runtime.training import WORST, Figures, TrainingRun

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from syncagent.settings.schema import Keywords

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _base() -> Any:
    """Return a class that is a callback for the trainers of each of the packages that the program has imported."""
    loaded = [name for name in _PACKAGES if name in sys.modules]
    if not loaded:
        try:
            import_module(_PACKAGES[0])
            loaded = [_PACKAGES[0]]
        except ModuleNotFoundError as error:
            if error.name not in {"lightning", _PACKAGES[0]}:
                raise
            import_module(_PACKAGES[1])
            loaded = [_PACKAGES[1]]
    bases = tuple(sys.modules[name].Callback for name in loaded)
    return bases[0] if len(bases) == 1 else type("_Callback", bases, {})


class HostSyncCallback(Integration, _base()):  # type: ignore[misc]  # the library's types are not read
    """Watches ``fit`` for host syncs and logs ``syncs/step``, ``stall_ms/step`` and the worst site.

    Takes every setting of ``syncagent.watch`` as a keyword.  A step is a batch after which an optimizer has stepped,
    numbered by the trainer's ``global_step``; the sanity check and validation are in no step.  It logs every
    ``log_every_n_steps`` steps, to all loggers of the trainer.
    """

    entry_point_group: ClassVar[str | None] = None

    def __init__(self, **settings: Unpack[Keywords]) -> None:
        super().__init__()
        self._run = TrainingRun(f"{__name__}.HostSyncCallback", settings)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - the interface
        if stage == "fit":
            self._run.begin()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - as above
        self._run.steps_follow(trainer.global_step)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - as above
        self._run.steps_follow(trainer.global_step)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - as above
        if not trainer.sanity_checking:
            self._run.evaluation_begins()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - as above
        if trainer.is_global_zero:
            self._run.evaluation_ends(lambda metrics: _write_numbers(trainer, metrics, _step_of(trainer)))
        self._run.steps_follow(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        if not self._run.step_ended(trainer.global_step):
            return
        with self._run.guarded():
            step = _step_of(trainer)
            every = trainer.log_every_n_steps
            if trainer.is_global_zero and every and (step + 1) % every == 0:
                self._run.log(lambda figures: self._write(trainer, figures, step))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002 - as above
        self._run.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - as above
        if stage == "fit":
            self._run.end()

    def _write(self, trainer: Any, figures: Figures, step: int) -> None:
        _write_numbers(trainer, figures.metrics, step)
        if figures.worst is None:
            return
        took = [_write_text(logger, figures.worst, step) for logger in trainer.loggers]
        if not any(took):
            self._run.say_worst(figures.worst)


def _step_of(trainer: Any) -> int:
    """Return the step at which Lightning logs: how many batches an optimizer has stepped after, but for the last."""
    step: int = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step - 1)
    return step


def _write_numbers(trainer: Any, metrics: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=step)


def _write_text(logger: Any, text: str, step: int) -> bool:
    """Log the worst site as text; return whether this logger takes text."""
    experiment: Any = getattr(logger, "experiment", None)  # not every logger has one
    kind = type(logger).__name__
    if kind == "WandbLogger":
        experiment.log({WORST: text, "trainer/global_step": step})
    elif kind == "MLFlowLogger":
        experiment.set_tag(logger.run_id, WORST, text)  # its metrics are numbers alone
    elif hasattr(experiment, "add_text"):  # TensorBoard's writer
        experiment.add_text(WORST, text, step)
    else:
        return False
    return True
