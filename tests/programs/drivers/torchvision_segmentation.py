"""torchvision's LR-ASPP for segmentation with an ignored class, and its mean intersection over union."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

torch.manual_seed(0)
model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).to(device())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 6, power=0.9)
images, masks = torch.rand(4, 3, 64, 64), torch.randint(0, 4, (4, 64, 64))
masks[:, :4] = 255
losses = []
for step in range(6):
    scores = model(images.to(device()))["out"]
    loss = nn.functional.cross_entropy(scores, masks.to(device()), ignore_index=255)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    if step == 1:
        warm()
model.eval()
with torch.inference_mode():
    found, wanted = model(images.to(device()))["out"].argmax(1).flatten(), masks.to(device()).flatten()
    known = wanted < 4
    table = torch.bincount(4 * wanted[known] + found[known], minlength=16).reshape(4, 4).float()
    over = table.diag() / (table.sum(0) + table.sum(1) - table.diag())
done(model=model, losses=losses, iou=over.nanmean().item())
