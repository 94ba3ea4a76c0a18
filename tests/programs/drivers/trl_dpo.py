"""trl's DPOTrainer: pairs of completions, with a reference model."""

from __future__ import annotations

import torch
from datasets import Dataset
from outcome import done
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from warming import Warm

words = ["<pad>", "<unk>", "<end>", *(f"w{number}" for number in range(100))]
plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", eos_token="<end>")


def small():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(words), n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=2, eos_token_id=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


rows = Dataset.from_dict(
    {
        "prompt": [f"w{row}" for row in range(32)],
        "chosen": [f"w{row + 1} w{row + 2}" for row in range(32)],
        "rejected": [f"w{2 * row} w5 w9" for row in range(32)],
    }
)
arguments = DPOConfig(
    output_dir="out", per_device_train_batch_size=4, max_steps=6, logging_steps=2, report_to="none", save_strategy="no",
    disable_tqdm=True, bf16=False, gradient_checkpointing=False,
)  # fmt: skip
trainer = DPOTrainer(
    small(), small(), args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
    callbacks=[Warm()],
)  # fmt: skip
trainer.train()
evaluation = trainer.evaluate()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
done(model=trainer.model, losses=losses, loss=evaluation["eval_loss"], margin=evaluation["eval_rewards/margins"])
