"""Kornia: augmentations on the device, its losses and metrics, and a registration by a homography."""

from __future__ import annotations

import kornia
import torch
from outcome import device, done, warm
from torch import nn

torch.manual_seed(0)
augmented = nn.Sequential(
    kornia.augmentation.RandomHorizontalFlip(p=0.5), kornia.augmentation.RandomAffine(20.0, p=1.0),
    kornia.augmentation.ColorJitter(0.2, 0.2, 0.2, 0.1, p=1.0), kornia.augmentation.RandomErasing(p=0.5),
    kornia.augmentation.Normalize(torch.tensor([0.5] * 3), torch.tensor([0.25] * 3)),
)  # fmt: skip
model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 4))
model.to(device())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
focal = kornia.losses.FocalLoss(alpha=0.5, reduction="mean")
images, labels = torch.rand(16, 3, 32, 32), torch.randint(0, 4, (16,))
losses = []
for step in range(6):
    scores = model(augmented(images.to(device())))
    loss = focal(scores, labels.to(device()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step == 1:
        warm()
moved = kornia.geometry.transform.translate(images[:1].to(device()), torch.tensor([[3.0, 1.0]]).to(device()))
registrator = kornia.geometry.ImageRegistrator("similarity", num_iterations=5, pyramid_levels=2).to(device())
homography = registrator.register(images[:1].to(device()), moved)
alike = kornia.metrics.ssim(moved, images[:1].to(device()), 5).mean().item()
losses += [alike, *homography.detach().cpu().flatten().tolist()]
done(model=model, losses=losses)
