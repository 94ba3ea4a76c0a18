"""lightly: SimCLR and BYOL with their projection heads, momentum updates and a memory bank, then its kNN."""

from __future__ import annotations

import copy

import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.benchmarking import knn_predict
from outcome import device, done, warm
from torch import nn
from torchvision.models import resnet18

torch.manual_seed(0)
backbone = nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten()).to(device())
head = SimCLRProjectionHead(512, 128, 32).to(device())
projected, predicted = BYOLProjectionHead(512, 64, 32).to(device()), BYOLPredictionHead(32, 64, 32).to(device())
slow, slow_projected = copy.deepcopy(backbone), copy.deepcopy(projected)
deactivate_requires_grad(slow)
deactivate_requires_grad(slow_projected)
contrast, alike = NTXentLoss(memory_bank_size=(64, 32)).to(device()), NegativeCosineSimilarity()
optimizer = torch.optim.SGD(
    [*backbone.parameters(), *head.parameters(), *projected.parameters(), *predicted.parameters()], lr=0.05
)
losses = []
for step in range(5):
    a = torch.rand(8, 3, 32, 32).to(device())
    b = a.flip(-1)
    update_momentum(backbone, slow, 0.99)
    update_momentum(projected, slow_projected, 0.99)
    with torch.no_grad():
        wanted = slow_projected(slow(b))
    features = backbone(a)
    loss = contrast(head(features), head(backbone(b))) + alike(predicted(projected(features)), wanted)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    if step == 1:
        warm()
bank = nn.functional.normalize(features.detach(), dim=1)
labels = knn_predict(bank, bank.T, torch.arange(8).to(device()) % 2, num_classes=2, knn_k=3)
done(model=backbone, losses=losses, labels=labels[:, 0].tolist())
