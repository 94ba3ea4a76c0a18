"""peft's LoRA on a small GPT-2 with transformers' Trainer; the adapter is saved, loaded and merged."""

from __future__ import annotations

import torch
from outcome import device, done
from peft import LoraConfig, PeftModel, get_peft_model
from tokens import Tokens
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from warming import Warm


def base():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=200, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True))
arguments = TrainingArguments(
    output_dir="out", per_device_train_batch_size=8, max_steps=8, logging_steps=2, learning_rate=1e-2, report_to="none",
    disable_tqdm=True,
)  # fmt: skip
trainer = Trainer(model, arguments, train_dataset=Tokens(), callbacks=[Warm()])
trainer.train()
model.save_pretrained("adapter")
merged = PeftModel.from_pretrained(base().to(device()), "adapter").merge_and_unload().eval()
with torch.no_grad():
    best = merged(Tokens()[0]["input_ids"].unsqueeze(0).to(device())).logits.argmax(-1)
done(model=merged, losses=[row["loss"] for row in trainer.state.log_history if "loss" in row], best=best.tolist())
