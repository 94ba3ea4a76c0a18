"""transformers' SegFormer with an ignored label, and masks of the first size after its post-processing."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

torch.manual_seed(0)
config = SegformerConfig(
    depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 48], decoder_hidden_size=32, num_labels=4, drop_path_rate=0.0,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0,
)  # fmt: skip
model = SegformerForSemanticSegmentation(config).to(device())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
images, masks = torch.rand(4, 3, 64, 64), torch.randint(0, 4, (4, 64, 64))
masks[:, :5] = 255
losses = []
for step in range(6):
    out = model(pixel_values=images.to(device()), labels=masks.to(device()))
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    losses.append(out.loss.item())
    if step == 1:
        warm()
model.eval()
with torch.no_grad():
    out = model(pixel_values=images.to(device()))
found = SegformerImageProcessor().post_process_semantic_segmentation(out, target_sizes=[(32, 48)] * 4)
done(model=model, losses=losses, counts=[torch.bincount(one.flatten(), minlength=4).tolist() for one in found])
