"""A user's program: the parent trains, and so does a child that it spawns; its DataLoader has forked workers."""

from __future__ import annotations

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, TensorDataset


def child(rank: int) -> None:
    weights = torch.rand(64, 64, device="cuda")
    for _ in range(5):
        weights = weights @ weights / weights.norm().item()
    print(f"child {rank}: {weights.sum().item():.3f}")


def main() -> None:
    torch.multiprocessing.spawn(child, nprocs=1)
    data = TensorDataset(torch.arange(64.0))
    total = sum(batch[0].cuda().sum().item() for batch in DataLoader(data, 8, num_workers=2))
    print(f"parent: {total}")


if __name__ == "__main__":
    main()
