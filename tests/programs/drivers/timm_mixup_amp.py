"""timm's ViT with mixup and cutmix, its NativeScaler under autocast, and stochastic depth."""

from __future__ import annotations

import numpy as np
import timm
import torch
from outcome import device, done, warm
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import NativeScaler

torch.manual_seed(0)
np.random.seed(0)  # noqa: NPY002 - what Mixup draws from
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=64, num_classes=10, depth=4, drop_path_rate=0.1, proj_drop_rate=0.1
).to(device())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
mixed, criterion, scaler = Mixup(0.8, 1.0, num_classes=10), SoftTargetCrossEntropy(), NativeScaler(device=device())
losses = []
for step in range(8):
    x, y = torch.rand(8, 3, 64, 64).to(device()), torch.randint(0, 10, (8,)).to(device())
    x, y = mixed(x, y)
    with torch.autocast(device(), dtype=torch.float16, enabled=device() == "cuda"):
        loss = criterion(model(x), y)
    optimizer.zero_grad()
    scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
    losses.append(loss.item())
    if step == 1:
        warm()
torch.save({"model": model.state_dict(), "scaler": scaler.state_dict()}, "kept.pt")
kept = torch.load("kept.pt", map_location=device())
model.load_state_dict(kept["model"])
scaler.load_state_dict(kept["scaler"])
done(model=model, losses=losses)
