"""A variational autoencoder with a mixture as its prior, written with torch.distributions, which check their
arguments.

Named by the report, and done:

- ``weights = Categorical(logits=self.weights, validate_args=self.validate)``, ``parts = Normal(self.means,
  self.spreads.exp(), validate_args=self.validate)``, ``posterior = Normal(mean, spread.exp(),
  validate_args=self.validate)``, ``likelihood = Bernoulli(logits=self.decoder(z), validate_args=self.validate)``,
  ``fit = likelihood.log_prob(images).sum(1)``, ``divergence = posterior.log_prob(z) - self.prior().log_prob(z)``:
  ``validate_args=False``. Done for all of them.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

NAMED = (
    "weights = Categorical(logits=self.weights, validate_args=self.validate)",
    "parts = Normal(self.means, self.spreads.exp(), validate_args=self.validate)",
    "posterior = Normal(mean, spread.exp(), validate_args=self.validate)",
    "likelihood = Bernoulli(logits=self.decoder(z), validate_args=self.validate)",
    "fit = likelihood.log_prob(images).sum(1)",
    "divergence = posterior.log_prob(z) - self.prior().log_prob(z)",
)
TOLERANCE = 0.0
"""The checks are gone and the arithmetic is the same."""
LOG_EVERY = 20


class MixtureVAE(nn.Module):
    def __init__(self, pixels: int, width: int, latent: int, parts: int, validate: bool | None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
                                     nn.Linear(width, 2 * latent))  # fmt: skip
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
                                     nn.Linear(width, pixels))  # fmt: skip
        self.weights = nn.Parameter(torch.zeros(parts))
        self.means, self.spreads = nn.Parameter(torch.randn(parts, latent)), nn.Parameter(torch.zeros(parts, latent))
        self.validate = validate

    def prior(self):
        weights = Categorical(logits=self.weights, validate_args=self.validate)
        parts = Normal(self.means, self.spreads.exp(), validate_args=self.validate)
        parts = Independent(parts, 1, validate_args=self.validate)
        return MixtureSameFamily(weights, parts, validate_args=self.validate)

    def forward(self, images):
        mean, spread = self.encoder(images).chunk(2, 1)
        posterior = Normal(mean, spread.exp(), validate_args=self.validate)
        posterior = Independent(posterior, 1, validate_args=self.validate)
        z = posterior.rsample()
        likelihood = Bernoulli(logits=self.decoder(z), validate_args=self.validate)
        fit = likelihood.log_prob(images).sum(1)
        divergence = posterior.log_prob(z) - self.prior().log_prob(z)
        return -fit.mean(), divergence.mean()


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    pixels, batch = run.sized(784, 16), run.sized(256, 4)
    net = MixtureVAE(pixels, run.sized(512, 16), run.sized(32, 4), run.sized(10, 3), None if run.before else False)
    net.to(run.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    images = torch.rand(8, batch, pixels).round().to(run.device)
    clock, history = Clock(run), []
    for step in range(run.steps):
        misfit, divergence = net(images[step % 8])
        loss = misfit + divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.detach())
        if step % LOG_EVERY == 0:
            print(f"step {step}: ELBO {-torch.stack(history[-LOG_EVERY:]).mean().item():.3f}")
        clock.tick()
    return clock.step_ms, sum(p.double().abs().sum() for p in net.parameters()).item()


if __name__ == "__main__":
    main(train)
