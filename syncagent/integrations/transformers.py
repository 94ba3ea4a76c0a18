"""transformers: ``Trainer(callbacks=[HostSyncCallback()])`` watches ``train`` and logs host syncs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from syncagent.integrations.base import Integration
from syncagent.runtime.training import WORST, Figures, TrainingRun, caller, tag_mlflow

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from syncagent.settings.schema import Keywords


class HostSyncCallback(Integration, TrainerCallback):  # type: ignore[misc]  # the library's types are not read
    """Watches ``train`` for host syncs and adds ``syncs/step`` and ``stall_ms/step`` to what the trainer logs.

    Takes every setting of ``syncagent.watch`` as a keyword.  A step is one of the trainer's ``global_step``, whatever
    the gradient accumulation; evaluations and checkpoints are in no step.  The worst site goes to TensorBoard, Weights
    & Biases and MLflow as text, and to the agent's log where there is none of them.
    """

    entry_point_group: ClassVar[str | None] = None

    def __init__(self, **settings: Unpack[Keywords]) -> None:
        self._run = TrainingRun(f"{__name__}.HostSyncCallback", settings)
        self._reporters: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - the interface
        self._run.begin(state.global_step)
        with self._run.guarded() as agent:
            handler = None if agent is None else caller(CallbackHandler)
            if handler is not None:
                # Callbacks are called in their order, and a user's come last: the others would log before this one has
                # added anything.  The first one says when there will be an evaluation.  In a list that is being
                # iterated over, this move skips none and repeats none.
                self._reporters = handler.callbacks
                self._reporters.remove(self)
                comes_second = any(isinstance(first, DefaultFlowCallback) for first in self._reporters[:1])
                self._reporters.insert(int(comes_second), self)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self._run.steps_follow(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self._run.steps_follow(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self._run.steps_follow(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self._run.step_ended(state.global_step)
        self._look_for_evaluation(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self._look_for_evaluation(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002 - as above
        if logs is not None and "loss" in logs and state.is_world_process_zero:  # not of an evaluation, nor the last
            self._run.log(lambda figures: self._write(figures, logs, state.global_step))
        if logs is None or not any(name.startswith("eval_") for name in logs):
            self._look_for_evaluation(control)  # what the trainer has read for its log is not of the evaluation
        elif state.is_world_process_zero:
            self._run.evaluation_ends(logs.update)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - as above
        self._run.end()
        self._reporters = []

    def _look_for_evaluation(self, control: Any) -> None:
        if control.should_evaluate:
            self._run.evaluation_begins()

    def _write(self, figures: Figures, logs: dict[str, Any], step: int) -> None:
        logs.update(figures.metrics)
        if figures.worst is None:
            return
        took = [_write_text(reporter, figures.worst, step) for reporter in self._reporters]
        if not any(took):
            self._run.say_worst(figures.worst)


def _write_text(reporter: Any, text: str, step: int) -> bool:
    """Log the worst site as text; return whether this callback's logger takes text."""
    kind = type(reporter).__name__
    if kind == "TensorBoardCallback" and reporter.tb_writer is not None:
        reporter.tb_writer.add_text(WORST, text, step)
    elif kind == "WandbCallback" and (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
        wandb.run.log({WORST: text, "train/global_step": step})
    elif kind == "MLflowCallback":
        tag_mlflow(text)
    else:
        return False
    return True
