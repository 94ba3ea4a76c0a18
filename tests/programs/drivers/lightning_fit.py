"""Lightning's Trainer: fit with validation, early stopping and checkpoints, then test and predict from the best one."""

from __future__ import annotations

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from outcome import done, warm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class Warm(Callback):
    def on_train_epoch_end(self, trainer, module):
        warm()


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        self.accuracy = MulticlassAccuracy(4)

    def _step(self, batch, name):
        x, y = batch
        scores = self.layers(x)
        loss = nn.functional.cross_entropy(scores, y)
        self.accuracy(scores, y)
        self.log_dict({f"{name}_loss": loss, f"{name}_accuracy": self.accuracy}, prog_bar=True)
        return loss

    def training_step(self, batch, index):
        return self._step(batch, "train")

    def validation_step(self, batch, index):
        self._step(batch, "valid")

    def test_step(self, batch, index):
        self._step(batch, "test")

    def predict_step(self, batch, index):
        return self.layers(batch[0]).argmax(-1)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


lightning.seed_everything(0)
rows = TensorDataset(torch.rand(128, 1, 16, 16), torch.randint(0, 4, (128,)))
data = DataLoader(rows, batch_size=16, shuffle=True)
held = DataLoader(rows, batch_size=32)
model = Classifier()
model.layers(torch.rand(2, 1, 16, 16))
trainer = lightning.Trainer(
    max_epochs=3, devices=1, gradient_clip_val=1.0, log_every_n_steps=2, logger=CSVLogger("logs"),
    callbacks=[
        Warm(), ModelCheckpoint("kept", monitor="valid_loss", save_last=True), LearningRateMonitor(),
        EarlyStopping("valid_loss", patience=3),
    ],
)  # fmt: skip
trainer.fit(model, data, held)
tested = trainer.test(model, held, ckpt_path="best", weights_only=False)[0]
predicted = trainer.predict(model, held)
done(model=model.layers, **tested, predicted=[int(batch.sum()) for batch in predicted])
