"""Pyro: stochastic variational inference of a Bayesian regression with an automatic guide, then its predictions."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from outcome import device, done, warm
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(torch.zeros(1, device=device()), 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(torch.zeros(1, device=device()), 5.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(torch.zeros((), device=x.device), 5.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("rows", x.shape[0]):
            pyro.sample("seen", dist.Normal(mean, sigma), obs=y)
        return mean


pyro.set_rng_seed(0)
x = torch.rand(64, 3).to(device())
y = x @ torch.tensor([1.0, -2.0, 0.5]).to(device())
model = Regression().to(device())
guide = AutoDiagonalNormal(model)
inference = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03}), Trace_ELBO())
losses = []
for step in range(20):
    losses.append(inference.step(x, y) / 64)
    if step == 1:
        warm()
drawn = Predictive(model, guide=guide, num_samples=8, return_sites=("seen", "linear.weight"))(x)
done(losses=losses, seen=drawn["seen"].mean().item())
