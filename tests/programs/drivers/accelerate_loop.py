"""A loop with accelerate: gradient accumulation, clipping, metrics gathered, and a state that is saved and loaded."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from outcome import done, warm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
rows = DataLoader(TensorDataset(torch.rand(512, 64), torch.randint(0, 10, (512,))), batch_size=32, shuffle=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 32)
model, optimizer, rows, schedule = accelerator.prepare(model, optimizer, rows, schedule)
losses = []


def epoch():
    total = 0.0
    for x, y in rows:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        total += accelerator.gather(loss.detach().unsqueeze(0)).mean().item()
    losses.append(total / len(rows))


epoch()
warm()
epoch()
accelerator.save_state("state")
epoch()
accelerator.load_state("state")
epoch()
with torch.no_grad():
    right = sum(accelerator.gather_for_metrics(model(x).argmax(-1) == y).sum().item() for x, y in rows)
done(model=accelerator.unwrap_model(model), losses=losses, right=right)
