"""BoTorch: a few rounds of Bayesian optimization in double precision, with a fitted model and expected improvement."""

from __future__ import annotations

import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from botorch.optim import optimize_acqf
from gpytorch.mlls import ExactMarginalLogLikelihood
from outcome import device, done, warm

torch.manual_seed(0)
x = torch.rand(6, 2, dtype=torch.double).to(device())
bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.double).to(device())


def wanted(x):
    return -((x - 0.3) ** 2).sum(-1, keepdim=True)


for _ in range(3):
    y = wanted(x)
    model = SingleTaskGP(x, y, input_transform=Normalize(2), outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": 20}})
    better = LogExpectedImprovement(model, best_f=y.max())
    point, _ = optimize_acqf(better, bounds=bounds, q=1, num_restarts=2, raw_samples=16, options={"maxiter": 10})
    x = torch.cat([x, point])
    warm()
done(best=wanted(x).max().item())
