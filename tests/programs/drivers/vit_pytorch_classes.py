"""vit-pytorch: its ViT with dropout, and its SimpleViT, trained for classes and asked for the best one."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from torch import nn
from vit_pytorch import SimpleViT, ViT

torch.manual_seed(0)
size = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 64, "depth": 2, "heads": 4, "mlp_dim": 128}
losses = []
for model in (ViT(**size, dropout=0.1, emb_dropout=0.1).to(device()), SimpleViT(**size).to(device())):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(6):
        scores = model(torch.rand(8, 3, 32, 32).to(device()))
        loss = nn.functional.cross_entropy(scores, torch.randint(0, 5, (8,)).to(device()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 1:
            warm()
    model.eval()
    with torch.no_grad():
        losses += model(torch.rand(8, 3, 32, 32).to(device())).argmax(-1).tolist()
done(model=model, losses=losses)
