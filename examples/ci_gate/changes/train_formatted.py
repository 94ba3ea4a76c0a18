"""Trains a small classifier, logs its loss every ten steps, and reads two numbers at the end."""

from __future__ import annotations

import steplog
import torch
from model import Classifier

STEPS, BATCH, FEATURES, CLASSES = 20, 32, 64, 10


def train(device: str) -> dict[str, float]:
    net = Classifier(FEATURES, CLASSES).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    log = steplog.Log(every=10)
    data = torch.randn(
        STEPS,
        BATCH,
        FEATURES,
        device=device,
    )
    labels = torch.randint(CLASSES, (STEPS, BATCH), device=device)
    for inputs, wanted in zip(data, labels, strict=True):
        optimizer.zero_grad()
        loss = net.loss(inputs, wanted)
        loss.backward()
        optimizer.step()
        log.add("loss", loss.detach())
    return summary(net, data[-1], labels[-1])


@torch.no_grad()
def summary(
    net: Classifier,
    inputs: torch.Tensor,
    wanted: torch.Tensor,
) -> dict[str, float]:
    hits = net(inputs).argmax(1) == wanted
    return {
        "loss": net.loss(inputs, wanted).item(),
        "accuracy": hits.float().mean().item(),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    print({name: round(value, 3) for name, value in train("cuda").items()})
