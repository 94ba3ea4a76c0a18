"""MONAI: a 3D U-Net with Dice loss on generated volumes, sliding windows, its transforms and its metrics."""

from __future__ import annotations

import torch
from monai.data import CacheDataset, DataLoader, create_test_image_3d, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric, HausdorffDistanceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    Activations,
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    RandFlipd,
    RandSpatialCropd,
    ScaleIntensityd,
)  # fmt: skip
from monai.utils import set_determinism
from outcome import device, done, warm

set_determinism(0)
rows = []
for _ in range(4):
    image, label = create_test_image_3d(32, 32, 32, num_seg_classes=1, rad_max=8, rad_min=4)
    rows.append({"image": image, "label": label})
keys = ["image", "label"]
ready = Compose([EnsureChannelFirstd(keys, channel_dim="no_channel"), ScaleIntensityd("image")])
training = Compose([ready, RandSpatialCropd(keys, (16, 16, 16), random_size=False), RandFlipd(keys, 0.5, 0)])
data = DataLoader(CacheDataset(rows, training, progress=False), batch_size=2)
held = DataLoader(CacheDataset(rows[:2], ready, progress=False), batch_size=1)
model = UNet(3, 1, 1, channels=(8, 16, 32), strides=(2, 2), num_res_units=1).to(device())
optimizer, criterion = torch.optim.Adam(model.parameters(), 1e-3), DiceCELoss(sigmoid=True)
dice, far = DiceMetric(include_background=True), HausdorffDistanceMetric(include_background=True, percentile=95)
finished = Compose([Activations(sigmoid=True), AsDiscrete(threshold=0.5)])
losses = []
for _ in range(3):
    model.train()
    for batch in data:
        optimizer.zero_grad()
        loss = criterion(model(batch["image"].to(device())), batch["label"].to(device()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    warm()
model.eval()
with torch.no_grad():
    for batch in held:
        found = sliding_window_inference(batch["image"].to(device()), (16, 16, 16), 4, model, overlap=0.25)
        found = [finished(one) for one in decollate_batch(found)]
        dice(y_pred=found, y=batch["label"].to(device()))
done(model=model, losses=losses, dice=dice.aggregate().item())
