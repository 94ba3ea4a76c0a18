"""transformers in fp16: a static cache, assisted generation, and a pipeline that streams its answer."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)


def small(layers):
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device()).eval()
    return model.half() if device() == "cuda" else model


model, helper = small(2), small(1)
prompt = torch.randint(3, 200, (1, 6)).to(device())
written = []
for length in (4, 16):
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": length, "do_sample": False}
    written += [
        model.generate(prompt, **options, assistant_model=helper).tolist(),
        model.generate(prompt, **options, repetition_penalty=1.3, no_repeat_ngram_size=2).tolist(),
        model.generate(prompt, **options, output_scores=True, return_dict_in_generate=True).sequences.tolist(),
    ]
    warm()
done(tokens=written)
