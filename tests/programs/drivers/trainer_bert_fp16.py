"""transformers' Trainer with fp16 on a small BERT that classifies, with accuracy from compute_metrics."""

from __future__ import annotations

import torch
from outcome import device, done
from tokens import Tokens
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from warming import Warm


class Labelled(Tokens):
    def __getitem__(self, index):
        row = self.rows[index]
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2}


def accuracy(predicted):
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


torch.manual_seed(0)
config = BertConfig(
    vocab_size=200, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
    max_position_embeddings=64,
)  # fmt: skip
arguments = TrainingArguments(
    output_dir="out", per_device_train_batch_size=8, max_steps=10, logging_steps=2, fp16=device() == "cuda",
    save_strategy="no", report_to="none", disable_tqdm=True, label_smoothing_factor=0.1,
)  # fmt: skip
trainer = Trainer(
    BertForSequenceClassification(config), arguments, train_dataset=Labelled(), eval_dataset=Labelled(),
    compute_metrics=accuracy, callbacks=[Warm()],
)  # fmt: skip
trainer.train()
evaluation = trainer.evaluate()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
done(model=trainer.model, losses=losses, loss=evaluation["eval_loss"], accuracy=evaluation["eval_accuracy"])
