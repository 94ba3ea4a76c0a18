"""A user's program: transformers' Trainer on a tiny GPT-2 with random weights and random tokens."""

from __future__ import annotations

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments


class Tokens(torch.utils.data.Dataset):
    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.rows = torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def main() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_positions=128, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=16,
            max_steps=60,
            logging_steps=10,
            report_to="none",
            save_strategy="no",
        )
        trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=Tokens(2048, 128, 512))
        result = trainer.train()
    print(f"loss {result.training_loss:.4f} after {result.global_step} steps")


if __name__ == "__main__":
    main()
