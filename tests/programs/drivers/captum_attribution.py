"""Captum: integrated gradients, layers, occlusion and feature ablation of a trained classifier."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import (
    FeatureAblation,
    GradientShap,
    IntegratedGradients,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)  # fmt: skip
from outcome import device, done, warm
from torch import nn

torch.manual_seed(0)
np.random.seed(0)  # noqa: NPY002 - what GradientShap draws from
model = nn.Sequential(
    nn.Conv2d(1, 8, 3),
    nn.ReLU(),
    nn.Conv2d(8, 8, 3),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(4),
    nn.Flatten(),
    nn.Linear(128, 4),
).to(device())
x, y = torch.rand(4, 1, 16, 16).to(device()), torch.arange(4).to(device())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
warm()
first, delta = IntegratedGradients(model).attribute(x, target=y, n_steps=16, return_convergence_delta=True)
found = [
    first, delta, Saliency(model).attribute(x, target=y), LayerGradCam(model, model[2]).attribute(x, target=y),
    Occlusion(model).attribute(x, target=y, sliding_window_shapes=(1, 8, 8), strides=(1, 8, 8)),
    FeatureAblation(model).attribute(x[:, :, :4, :4].repeat(1, 1, 2, 2), target=1),
    NoiseTunnel(Saliency(model)).attribute(x, target=y, nt_samples=2, stdevs=0.0),
    GradientShap(model).attribute(x, baselines=torch.zeros_like(x), target=y, n_samples=2, stdevs=0.0),
]  # fmt: skip
done(model=model, sums=[one.abs().sum().item() for one in found])
