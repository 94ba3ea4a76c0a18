"""Rows of random tokens for language models."""

from __future__ import annotations

import torch


class Tokens(torch.utils.data.Dataset):
    """Rows whose labels are their own tokens."""

    def __init__(self, rows: int = 64, length: int = 32, vocabulary: int = 200, **more: torch.Tensor) -> None:
        self.rows = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
        self.more = more

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}
