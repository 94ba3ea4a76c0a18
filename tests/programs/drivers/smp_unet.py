"""segmentation-models-pytorch: a U-Net with Dice and focal loss, and its metrics from counted pixels."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from outcome import device, done, warm

torch.manual_seed(0)
model = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=1, decoder_channels=(32, 16, 16, 8, 8))
model.to(device())
dice, focal = smp.losses.DiceLoss("binary"), smp.losses.FocalLoss("binary")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
images, masks = torch.rand(4, 3, 64, 64), (torch.rand(4, 1, 64, 64) > 0.5).long()
losses = []
for step in range(6):
    scores, wanted = model(images.to(device())), masks.to(device())
    loss = dice(scores, wanted) + focal(scores, wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step == 1:
        warm()
model.eval()
with torch.no_grad():
    counts = smp.metrics.get_stats(model(images.to(device())).sigmoid(), masks.to(device()), "binary", threshold=0.5)
    values = [
        smp.metrics.iou_score(*counts, reduction="micro"),
        smp.metrics.f1_score(*counts, reduction="macro-imagewise"),
    ]
done(model=model, losses=losses, scores=[value.item() for value in values])
