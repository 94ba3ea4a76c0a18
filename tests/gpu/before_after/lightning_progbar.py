"""A LightningModule that shows its loss and accuracy in the progress bar, with metrics of torchmetrics.

Named by the report, and done:

- ``trainer.fit(module, loader)``, for the values of the progress bar, four reads a step: ``prog_bar=False``, with the
  lines that ask for it.
- for the batch's copy: pinned memory, which the loader has already. It stays.
"""

from __future__ import annotations

import logging
import warnings

import lightning as L
import torch
import torchmetrics
from stepclock import Clock, Run, main
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NAMED = ("trainer.fit(module, loader)",)
TOLERANCE = 0.0
"""Only what is shown has changed."""


class Classifier(L.LightningModule):
    def __init__(self, run: Run, clock: Clock) -> None:
        super().__init__()
        self.before, self.clock = run.before, clock
        width = run.sized(64, 4)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for _ in range(run.sized(8, 1)):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=10)

    def training_step(self, batch, _index):
        images, labels = batch
        scores = self.net(images)
        loss = nn.functional.cross_entropy(scores, labels)
        self.accuracy(scores, labels)
        if self.before:
            self.log("loss", loss, prog_bar=True)
            self.log("accuracy", self.accuracy, prog_bar=True)
        else:
            self.log("loss", loss)
            self.log("accuracy", self.accuracy)
        return loss

    def on_train_batch_end(self, *_) -> None:
        self.clock.tick()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(run: Run) -> tuple[float, float]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    clock, batch, size = Clock(run), run.sized(64, 4), run.sized(32, 8)
    data = TensorDataset(torch.rand(batch * 16, 3, size, size), torch.randint(0, 10, (batch * 16,)))
    loader = DataLoader(data, batch_size=batch, pin_memory=run.device == "cuda")
    module = Classifier(run, clock)
    trainer = L.Trainer(
        accelerator="gpu" if run.device == "cuda" else "cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, max_steps=run.steps, log_every_n_steps=50,
    )  # fmt: skip
    trainer.fit(module, loader)
    print(f"loss {trainer.callback_metrics['loss'].item():.4f} after {trainer.global_step} steps")
    return clock.step_ms, sum(p.double().abs().sum() for p in module.net.parameters()).item()


if __name__ == "__main__":
    main(train)
