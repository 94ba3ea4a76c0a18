"""pytorch-metric-learning: a miner, triplets and ArcFace, and its accuracy by nearest neighbours."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ArcFaceLoss, NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 16)).to(device())
arc = ArcFaceLoss(5, 16).to(device())
triplets, pairs = TripletMarginLoss(distance=CosineSimilarity()), NTXentLoss()
hard, similar = BatchHardMiner(), MultiSimilarityMiner()
optimizer = torch.optim.Adam([*model.parameters(), *arc.parameters()], lr=1e-3)
losses = []
for step in range(8):
    y = torch.arange(40).to(device()) % 5
    x = torch.rand(40, 32).to(device()) + y.unsqueeze(1) / 5
    out = model(x)
    loss = triplets(out, y, hard(out, y)) + arc(out, y) + pairs(out, y, similar(out, y))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step == 1:
        warm()
with torch.no_grad():
    out = nn.functional.normalize(model(x), dim=1)
    nearest = (out @ out.T).fill_diagonal_(-1).argmax(1)
    right = (y[nearest] == y).float().mean().item()
done(model=model, losses=losses, right=right)
