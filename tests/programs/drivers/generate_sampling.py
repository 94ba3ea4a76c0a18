"""transformers' generate on a small Llama: sampling with temperature, top-k, top-p and a penalty for repetitions."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
model = LlamaForCausalLM(config).to(device()).eval()
prompt = torch.randint(3, 200, (2, 6)).to(device())
written = []
for length in (4, 24):
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=length, do_sample=True, temperature=0.8,
        top_k=50, top_p=0.9, repetition_penalty=1.2, pad_token_id=0,
    )  # fmt: skip
    written.append(tokens.tolist())
    warm()
done(tokens=written)
