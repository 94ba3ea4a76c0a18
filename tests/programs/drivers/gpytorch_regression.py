"""GPyTorch: an exact Gaussian process by its marginal likelihood, then a variational one, and predictions."""

from __future__ import annotations

import gpytorch
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from outcome import device, done, warm


class Exact(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), ScaleKernel(RBFKernel())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Variational(gpytorch.models.ApproximateGP):
    def __init__(self, points):
        # No random numbers in the first means, which it would draw on the device.
        chosen = gpytorch.variational.CholeskyVariationalDistribution(points.size(0), mean_init_std=0.0)
        super().__init__(gpytorch.variational.VariationalStrategy(self, points, chosen, learn_inducing_locations=True))
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), ScaleKernel(RBFKernel())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


torch.manual_seed(0)
x = torch.linspace(0, 1, 60).to(device())
y = torch.sin(6.28 * x) + 0.1 * torch.randn(60).to(device())
losses = []
likelihood = gpytorch.likelihoods.GaussianLikelihood().to(device())
models = Exact(x, y, likelihood).to(device()), Variational(x[::4].unsqueeze(1)).to(device())
for model in models:
    model.train()
    likelihood.train()
    # Each once: an exact model has the likelihood's, too, and Adam on CUDA moves one that it is given twice otherwise.
    optimizer = torch.optim.Adam(dict.fromkeys([*model.parameters(), *likelihood.parameters()]), lr=0.1)
    if isinstance(model, Exact):
        bound = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    else:
        bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=60)
    for step in range(8):
        optimizer.zero_grad()
        loss = -bound(model(x if isinstance(model, Exact) else x.unsqueeze(1)), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 1:
            warm()
    model.eval()
    likelihood.eval()
    with torch.no_grad(), gpytorch.settings.fast_pred_var():
        there = torch.linspace(0, 1, 7).to(device())
        predicted = likelihood(model(there if isinstance(model, Exact) else there.unsqueeze(1)))
        losses += predicted.mean.tolist()
done(losses=losses)
