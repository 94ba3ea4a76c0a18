"""PyTorch Ignite: its supervised trainer and evaluator with metrics, a schedule, a checkpoint and early stopping."""

from __future__ import annotations

import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping, PiecewiseLinear, TerminateOnNan
from ignite.metrics import Accuracy, ConfusionMatrix, Loss, Precision, RunningAverage
from outcome import device, done, warm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 4)).to(device())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = DataLoader(TensorDataset(torch.rand(256, 32), torch.randint(0, 4, (256,))), batch_size=32, shuffle=True)
trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy, device=device())
metrics = {
    "loss": Loss(nn.functional.cross_entropy), "accuracy": Accuracy(), "table": ConfusionMatrix(4),
    "precision": Precision(average=True),
}  # fmt: skip
evaluator = create_supervised_evaluator(model, metrics, device=device())
RunningAverage(output_transform=lambda loss: loss).attach(trainer, "running")
trainer.add_event_handler(
    Events.ITERATION_STARTED, PiecewiseLinear(optimizer, "lr", [(0, 0.01), (16, 0.1), (32, 0.01)])
)
trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
evaluator.add_event_handler(Events.COMPLETED, EarlyStopping(3, lambda engine: -engine.state.metrics["loss"], trainer))
saver = Checkpoint({"model": model, "optimizer": optimizer}, DiskSaver("kept", create_dir=True), n_saved=1)
losses = []


@trainer.on(Events.EPOCH_COMPLETED)
def evaluate(engine):
    warm()
    evaluator.run(data)
    losses.append(
        [engine.state.metrics["running"], evaluator.state.metrics["loss"], evaluator.state.metrics["precision"]]
    )


trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
trainer.run(data, max_epochs=4)
done(model=model, losses=losses, table=evaluator.state.metrics["table"].tolist())
