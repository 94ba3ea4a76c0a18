"""transformers' generate on a small GPT-2 and a small T5: greedy and by beams, with a prompt that is padded."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(
    GPT2Config(vocab_size=200, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
)
t5 = T5ForConditionalGeneration(
    T5Config(vocab_size=200, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0)
)
gpt2.to(device()).eval()
t5.to(device()).eval()
prompt = torch.randint(2, 200, (4, 8)).to(device())
mask = torch.ones_like(prompt)
mask[0, :3] = 0
written = []
for length in (8, 24):
    for model in (gpt2, t5):
        greedy = model.generate(prompt, attention_mask=mask, max_new_tokens=length, do_sample=False, pad_token_id=1)
        beams = model.generate(prompt, attention_mask=mask, max_new_tokens=length, num_beams=3, pad_token_id=1)
        written += [greedy.tolist(), beams.tolist()]
    warm()
done(tokens=written)
