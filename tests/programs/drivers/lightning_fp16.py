"""Lightning's Trainer in 16-mixed with accumulation, resumed from its own checkpoint; dropout draws on the device."""

from __future__ import annotations

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from outcome import device, done, warm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Warm(Callback):
    def on_train_epoch_end(self, trainer, module):
        warm()


class Regression(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 256), nn.Dropout(0.1), nn.ReLU(), nn.Linear(256, 1))

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def trainer(epochs):
    return lightning.Trainer(
        max_epochs=epochs, devices=1, precision="16-mixed" if device() == "cuda" else 32, accumulate_grad_batches=2,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Warm()],
    )  # fmt: skip


lightning.seed_everything(0)
data = DataLoader(TensorDataset(torch.rand(128, 32), torch.rand(128, 1)), batch_size=8)
model, first = Regression(), trainer(2)
first.fit(model, data)
first.save_checkpoint("kept.ckpt")
again = trainer(4)
again.fit(model, data, ckpt_path="kept.ckpt")
done(model=model.layers, loss=float(again.callback_metrics["loss_epoch"]))
