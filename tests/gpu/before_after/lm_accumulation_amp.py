"""A language model in float16 with gradient accumulation, GradScaler and clipping, which logs every micro step.

Named by the report, and done:

- ``running += loss.item()``, in each micro step: keep the value on the GPU. It is summed there.
- ``scaler.step(optimizer)``: an optimizer with ``fused=True``, which takes the scaler's flag on the GPU.
- ``history = {"norm": norm.item(), "scale": scaler.get_scale(), "loss": running}``: read every N steps. All three
  are read when they are printed.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = (
    "running += loss.item()",
    "scaler.step(optimizer)",
    'history = {"norm": norm.item(), "scale": scaler.get_scale(), "loss": running}',
)
TOLERANCE = 2e-3
"""The fused optimizer rounds in another order."""
ACCUMULATE, LOG_EVERY = 4, 10


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    def __init__(self, words: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.head = nn.Linear(width, words)

    def forward(self, tokens):
        return self.head(self.blocks(self.words(tokens) + self.places))


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    words, length = run.sized(4096, 64), run.sized(256, 8)
    model = LanguageModel(words, length, run.sized(384, 16), run.sized(6, 1)).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=not run.before)
    scaler = torch.amp.GradScaler(run.device, init_scale=1024.0)
    rows = torch.randint(0, words, (run.sized(256, 16), length + 1)).to(run.device)
    clock, logged = Clock(run), torch.zeros((), device=run.device)
    for step in range(run.steps):
        running = 0.0
        for micro in range(ACCUMULATE):
            batch = rows[(step * ACCUMULATE + micro) * 8 % len(rows) :][:8]
            with torch.autocast(run.device, torch.float16):
                scores = model(batch[:, :-1])
                loss = F.cross_entropy(scores.flatten(0, 1).float(), batch[:, 1:].flatten()) / ACCUMULATE
            scaler.scale(loss).backward()
            if run.before:
                running += loss.item()
            else:
                running += loss.detach()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        logged = running
        if run.before:
            history = {"norm": norm.item(), "scale": scaler.get_scale(), "loss": running}
            if step % LOG_EVERY == 0:
                print(f"step {step}: {history}")
        elif step % LOG_EVERY == 0:
            print(f"step {step}: loss {float(running):.4f}, norm {float(norm):.3f}, scale {scaler.get_scale():g}")
        clock.tick()
    return clock.step_ms, float(logged)


if __name__ == "__main__":
    main(train)
