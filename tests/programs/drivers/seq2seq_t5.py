"""transformers' Seq2SeqTrainer on a small T5: training with Adafactor, then evaluation and prediction by generate."""

from __future__ import annotations

import numpy as np
import torch
from outcome import done
from tokens import Tokens
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration
from warming import Warm


def right(predicted):
    tokens, labels = predicted
    width = min(tokens.shape[1], labels.shape[1])
    return {"right": float(np.mean(tokens[:, :width] == labels[:, :width]))}


torch.manual_seed(0)
config = T5Config(
    vocab_size=200, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0
)
arguments = Seq2SeqTrainingArguments(
    output_dir="out", per_device_train_batch_size=8, per_device_eval_batch_size=8, max_steps=8, logging_steps=2,
    optim="adafactor", predict_with_generate=True, generation_max_length=12, save_strategy="no", report_to="none",
    disable_tqdm=True,
)  # fmt: skip
rows = Tokens(32, 16)
trainer = Seq2SeqTrainer(
    T5ForConditionalGeneration(config), arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=right,
    callbacks=[Warm()],
)  # fmt: skip
trainer.train()
evaluation, predicted = trainer.evaluate(), trainer.predict(rows)
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
done(model=trainer.model, losses=losses, loss=evaluation["eval_loss"], tokens=predicted.predictions.tolist())
