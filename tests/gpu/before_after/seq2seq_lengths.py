"""A speech-like encoder and decoder over sequences of different lengths, which are packed and masked by them.

Named by the report, and done:

- ``packed = pack_padded_sequence(self.source(source), lengths.cpu(), batch_first=True, enforce_sorted=False)``:
  keep the lengths on the host, where the collate function had them. Done. Inside of it torch copies the order to
  the GPU: no option is known (sorting in the collate function would be one). It stays.
- ``longest = lengths.max().item()``: a size that the host knows. Done.
- ``memory, _ = pad_packed_sequence(found, batch_first=True, total_length=longest)``: as above, it stays.
- ``not torch.isfinite(norm):``: decide on the GPU ("probably"). It is looked at when it is printed.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

NAMED = (
    "packed = pack_padded_sequence(self.source(source), lengths.cpu(), batch_first=True, enforce_sorted=False)",
    "longest = lengths.max().item()",
    "memory, _ = pad_packed_sequence(found, batch_first=True, total_length=longest)",
    "not torch.isfinite(norm):",
)
TOLERANCE = 0.0
"""The same lengths, known to the host from the start."""
LOG_EVERY = 20


class Seq2Seq(nn.Module):
    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.encoder = nn.GRU(width, width, num_layers=2, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.ask, self.head = nn.Linear(width, width), nn.Linear(2 * width, words)

    def forward(self, source, lengths, target, host_lengths=None):
        if host_lengths is None:
            packed = pack_padded_sequence(self.source(source), lengths.cpu(), batch_first=True, enforce_sorted=False)
            longest = lengths.max().item()
        else:
            packed = pack_padded_sequence(self.source(source), host_lengths, batch_first=True, enforce_sorted=False)
            longest = int(host_lengths.max())
        found, last = self.encoder(packed)
        memory, _ = pad_packed_sequence(found, batch_first=True, total_length=longest)
        mask = torch.arange(longest, device=lengths.device)[None] < lengths[:, None]
        state, _ = self.decoder(self.target(target), last[-1:].contiguous())
        weights = self.ask(state) @ memory.transpose(1, 2)
        weights = weights.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        return self.head(torch.cat((state, weights @ memory), -1))


def make(words: int, batch: int, longest: int):
    lengths = torch.randint(longest // 3, longest + 1, (batch,))
    source = torch.randint(1, words, (batch, int(lengths.max())))
    target = torch.randint(1, words, (batch, longest // 2 + 1))
    target_lengths = torch.randint(longest // 4, longest // 2 + 1, (batch,))
    return source, lengths, target, target_lengths


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    words, longest = run.sized(2000, 30), run.sized(80, 12)
    net = Seq2Seq(words, run.sized(256, 8)).to(run.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    made = [make(words, run.sized(32, 3), longest) for _ in range(4)]
    batches = [tuple(part.to(run.device) for part in batch) for batch in made]
    clock = Clock(run)
    for step in range(run.steps):
        source, lengths, target, target_lengths = batches[step % 4]
        scores = net(source, lengths, target[:, :-1], None if run.before else made[step % 4][1])
        mask = torch.arange(scores.shape[1], device=run.device)[None] < target_lengths[:, None]
        each = F.cross_entropy(scores.transpose(1, 2), target[:, 1:], reduction="none")
        loss = (each * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if run.before and not torch.isfinite(norm):
            print(f"step {step}: the gradient is not finite")
        if step % LOG_EVERY == 0:
            print(f"step {step}: loss {loss.item():.4f}, norm {norm.item():.3f}")
        clock.tick()
    return clock.step_ms, loss.item()


if __name__ == "__main__":
    main(train)
