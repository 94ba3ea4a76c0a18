"""trl's SFTTrainer on tokenized conversations, with a small Llama and assistant-only labels by a mask."""

from __future__ import annotations

import torch
from datasets import Dataset
from outcome import done
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from warming import Warm

words = ["<pad>", "<unk>", "<end>", *(f"w{number}" for number in range(100))]
plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", eos_token="<end>")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=2,
)  # fmt: skip
rows = Dataset.from_dict(
    {
        "prompt": [f"w{row} w{row + 1}" for row in range(48)],
        "completion": [" ".join(f"w{(row + step) % 100}" for step in range(2 + row % 6)) for row in range(48)],
    }
)
arguments = SFTConfig(
    output_dir="out", per_device_train_batch_size=8, max_steps=8, logging_steps=2, report_to="none", save_strategy="no",
    disable_tqdm=True, bf16=False, gradient_checkpointing=False, eval_strategy="steps", eval_steps=4,
)  # fmt: skip
trainer = SFTTrainer(
    LlamaForCausalLM(config), arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
    callbacks=[Warm()],
)  # fmt: skip
trainer.train()
history = [
    {k: v for k, v in row.items() if k in ("loss", "eval_loss", "mean_token_accuracy")}
    for row in trainer.state.log_history
]
done(model=trainer.model, history=history)
