"""transformers' Trainer with bf16 on a small Llama, with gradient accumulation and activation checkpointing."""

from __future__ import annotations

import torch
from outcome import device, done
from tokens import Tokens
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from warming import Warm

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=200, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
arguments = TrainingArguments(
    output_dir="out", per_device_train_batch_size=4, gradient_accumulation_steps=2, gradient_checkpointing=True,
    max_steps=8, logging_steps=2, bf16=device() == "cuda", save_strategy="no", report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = Trainer(
    LlamaForCausalLM(config), arguments, train_dataset=Tokens(), eval_dataset=Tokens(16), callbacks=[Warm()]
)
trainer.train()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
done(model=trainer.model, losses=losses, evaluation=trainer.evaluate()["eval_loss"])
