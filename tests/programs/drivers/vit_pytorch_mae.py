"""vit-pytorch: a masked autoencoder over its ViT, then a classifier on it."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from torch import nn
from vit_pytorch import MAE, ViT

torch.manual_seed(0)
encoder = ViT(image_size=32, patch_size=8, num_classes=5, dim=64, depth=2, heads=4, mlp_dim=128).to(device())
masked = MAE(encoder=encoder, masking_ratio=0.75, decoder_dim=32, decoder_depth=1).to(device())
optimizer = torch.optim.Adam(masked.parameters(), lr=1e-3)
losses = []
for step in range(8):
    loss = masked(torch.rand(8, 3, 32, 32).to(device()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step == 1:
        warm()
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
for _ in range(4):
    scores = encoder(torch.rand(8, 3, 32, 32).to(device()))
    loss = nn.functional.cross_entropy(scores, torch.randint(0, 5, (8,)).to(device()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
done(model=encoder, losses=losses)
