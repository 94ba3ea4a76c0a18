"""x-transformers: an autoregressive decoder with rotary positions, trained and then asked to generate."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

torch.manual_seed(0)
model = AutoregressiveWrapper(
    TransformerWrapper(
        num_tokens=64, max_seq_len=48,
        attn_layers=Decoder(dim=64, depth=2, heads=4, rotary_pos_emb=True, use_rmsnorm=True, ff_glu=True),
    )
).to(device())  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
losses = []
for step in range(8):
    loss = model(torch.randint(0, 64, (8, 48)).to(device()))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    if step == 1:
        warm()
model.eval()
tokens = model.generate(torch.randint(0, 64, (2, 4)).to(device()), 16, temperature=0.0, cache_kv=True)
done(model=model, losses=losses, tokens=tokens.tolist())
