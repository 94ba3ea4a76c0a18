"""transformers' DETR with a random ResNet: its matching loss in training, and its post-processing."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

torch.manual_seed(0)
backbone = ResNetConfig(
    embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"], layer_type="basic"
)
config = DetrConfig(
    use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, num_queries=8,
    d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=2,
    decoder_attention_heads=2, dropout=0.0, num_labels=3, auxiliary_loss=True,
)  # fmt: skip
model = DetrForObjectDetection(config).to(device()).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
losses = []
for step in range(6):
    images = torch.rand(2, 3, 64, 64).to(device())
    labels = [
        {"class_labels": torch.tensor([0, 2]).to(device()), "boxes": (torch.rand(2, 4) / 2 + 0.2).to(device())}
        for _ in images
    ]
    out = model(pixel_values=images, labels=labels)
    optimizer.zero_grad()
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    losses.append({name: value.item() for name, value in out.loss_dict.items()})
    if step == 1:
        warm()
model.eval()
with torch.no_grad():
    out = model(pixel_values=images)
found = DetrImageProcessor().post_process_object_detection(out, threshold=0.0, target_sizes=[(64, 64)] * 2)
done(model=model, losses=losses, labels=[row["labels"].tolist() for row in found])
