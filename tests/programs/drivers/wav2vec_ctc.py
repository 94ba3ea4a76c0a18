"""transformers' Wav2Vec2 with CTC on noise of different lengths, and Whisper's generate."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, WhisperConfig, WhisperForConditionalGeneration

torch.manual_seed(0)
config = Wav2Vec2Config(
    vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=[16] * 3,
    conv_kernel=[10, 3, 3], conv_stride=[5, 2, 2], num_feat_extract_layers=3, num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4, apply_spec_augment=False, hidden_dropout=0.0, attention_dropout=0.0,
    activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0, ctc_zero_infinity=True,
)  # fmt: skip
model = Wav2Vec2ForCTC(config).to(device()).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for step in range(6):
    sound, mask = torch.randn(2, 1600).to(device()), torch.ones(2, 1600, dtype=torch.long)
    mask[1, 1000:] = 0
    labels = torch.tensor([[3, 4, 5, 6], [7, 8, -100, -100]]).to(device())
    out = model(sound, attention_mask=mask.to(device()), labels=labels)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    losses.append(out.loss.item())
    if step == 1:
        warm()
whisper = WhisperForConditionalGeneration(
    WhisperConfig(
        vocab_size=100, num_mel_bins=20, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
        max_target_positions=40, decoder_start_token_id=1, eos_token_id=2, pad_token_id=0, bos_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )
)  # fmt: skip
whisper = whisper.to(device()).eval()
tokens = whisper.generate(torch.randn(2, 20, 100).to(device()), max_new_tokens=10, do_sample=False)
done(model=model, losses=losses, tokens=tokens.tolist())
