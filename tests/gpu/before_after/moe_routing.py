"""A transformer with a mixture of experts: each expert looks for its tokens by ``torch.where``.

Named by the report, and done:

- ``rows, which = torch.where(chosen == number)``, for each expert of each layer: keep the shape. That would have
  every expert compute every token; done instead is what is said of sizes, to read all of them in one copy: the
  tokens are sorted by expert, and one wait a layer is left of eight.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = ("rows, which = torch.where(chosen == number)",)
TOLERANCE = 1e-3
"""The tokens of an expert are the same; their sums are rounded in another order."""
LOG_EVERY, CHOSEN = 20, 2


class Experts(nn.Module):
    def __init__(self, width: int, experts: int, sorts: bool) -> None:
        super().__init__()
        self.router, self.sorts = nn.Linear(width, experts), sorts
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )

    def forward(self, x):
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(CHOSEN, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        found = self.by_sorting(flat, weights, chosen) if self.sorts else self.by_search(flat, weights, chosen)
        return x + found.view_as(x)

    def by_search(self, flat, weights, chosen):
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, which = torch.where(chosen == number)
            out.index_add_(0, rows, expert(flat[rows]) * weights[rows, which, None])
        return out

    def by_sorting(self, flat, weights, chosen):
        """Tokens in the order of their experts; the sizes of all are read at once."""
        order = chosen.flatten().argsort(stable=True)
        counts = F.one_hot(chosen.flatten(), len(self.experts)).sum(0)
        rows = order // CHOSEN
        parts = flat[rows].split(counts.tolist())
        found = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return torch.zeros_like(flat).index_add_(0, rows, found * weights.flatten()[order, None])


class Layer(nn.Module):
    def __init__(self, width: int, experts: int, sorts: bool) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.experts = Experts(width, experts, sorts)

    def forward(self, x):
        normed = self.norm(x)
        return self.experts(x + self.attention(normed, normed, normed, need_weights=False)[0])


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    words, width, length = run.sized(2048, 32), run.sized(256, 8), run.sized(128, 6)
    layers = [Layer(width, run.sized(8, 3), not run.before) for _ in range(run.sized(4, 1))]
    net = nn.Sequential(nn.Embedding(words, width), *layers, nn.Linear(width, words)).to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    rows = torch.randint(0, words, (4, run.sized(16, 2), length + 1)).to(run.device)
    clock = Clock(run)
    for step in range(run.steps):
        tokens = rows[step % 4]
        scores = net(tokens[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOG_EVERY == 0:
            print(f"step {step}: loss {loss.item():.4f}")
        clock.tick()
    return clock.step_ms, loss.item()


if __name__ == "__main__":
    main(train)
