"""transformers' Trainer on a GPT-2 with random weights: as it comes, and with the options that the report names.

Named by the report, and done:

- ``result = trainer.train()``, for the line of Trainer that looks for NaN in each micro step:
  ``logging_nan_inf_filter=False``.
- for the attention mask that is read to find out whether it is all ones: no mask where nothing is padded.
- for the batch's copies: ``non_blocking=True``, which for a Trainer is in ``accelerator_config``.

Little gain is expected: the model keeps the GPU busy for longer than Python needs to launch it.
"""

from __future__ import annotations

import tempfile

import torch
from stepclock import Clock, Run, main
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

NAMED = ("result = trainer.train()",)
TOLERANCE = 0.0
"""The options leave the training as it is."""


class Tokens(torch.utils.data.Dataset):
    def __init__(self, count: int, length: int, vocabulary: int, masks: bool) -> None:
        self.rows = torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(0))
        self.masks = masks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        mask = {"attention_mask": torch.ones_like(row)} if self.masks else {}
        return {"input_ids": row, "labels": row, **mask}


class Ticks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_, **__) -> None:
        self.clock.tick()


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    words, length = run.sized(2048, 64), run.sized(256, 16)
    config = GPT2Config(vocab_size=words, n_positions=length, n_embd=run.sized(768, 16), n_layer=run.sized(8, 1),
                        n_head=4, bos_token_id=0, eos_token_id=0)  # fmt: skip
    options = {"logging_nan_inf_filter": False, "accelerator_config": {"non_blocking": True}}
    clock = Clock(run)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=run.sized(8, 2), gradient_accumulation_steps=2,
            max_steps=run.steps, logging_steps=25, report_to="none", save_strategy="no", disable_tqdm=True,
            use_cpu=run.device == "cpu", seed=0, **({} if run.before else options),
        )  # fmt: skip
        trainer = Trainer(
            model=GPT2LMHeadModel(config), args=arguments, train_dataset=Tokens(2048, length, words, run.before),
            callbacks=[Ticks(clock)],
        )  # fmt: skip
        result = trainer.train()
    print(f"loss {result.training_loss:.4f} after {result.global_step} steps")
    return clock.step_ms, result.training_loss


if __name__ == "__main__":
    main(train)
