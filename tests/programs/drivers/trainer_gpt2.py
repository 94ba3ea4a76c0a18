"""transformers' Trainer on a small GPT-2: training, evaluation, a checkpoint, and a second trainer that resumes."""

from __future__ import annotations

from outcome import done
from tokens import Tokens
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
from warming import Warm


def trainer(steps):
    set_seed(0)
    config = GPT2Config(
        vocab_size=200, n_positions=64, n_embd=128, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir="out", per_device_train_batch_size=8, per_device_eval_batch_size=8, max_steps=steps, logging_steps=2,
        eval_strategy="steps", eval_steps=6, save_steps=6, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    rows = Tokens()
    return Trainer(GPT2LMHeadModel(config), arguments, train_dataset=rows, eval_dataset=rows, callbacks=[Warm()])


trainer(6).train()
resumed = trainer(12)
resumed.train(resume_from_checkpoint=True)
losses = [row.get("loss", row.get("eval_loss")) for row in resumed.state.log_history]
done(model=resumed.model, losses=losses, evaluation=resumed.evaluate()["eval_loss"])
