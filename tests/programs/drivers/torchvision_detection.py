"""torchvision's Faster R-CNN on generated boxes: losses in training, boxes in evaluation."""

from __future__ import annotations

import torch
from outcome import device, done, fingerprint, warm
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator

torch.manual_seed(0)
backbone = mobilenet_v3_small().features[:9]
backbone.out_channels = 48
model = FasterRCNN(
    backbone, num_classes=3, min_size=96, max_size=128, rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
    box_detections_per_img=10,
)  # fmt: skip
model.roi_heads.box_roi_pool.featmap_names = ["0"]
model.to(device()).train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
losses = []
for step in range(5):
    images = [torch.rand(3, 96, 96).to(device()) for _ in range(2)]
    targets = [
        {
            "boxes": torch.tensor([[10.0, 10, 50, 60], [30, 20, 80, 90]]).to(device()),
            "labels": torch.tensor([1, 2]).to(device()),
        }
        for _ in images
    ]
    parts = model(images, targets)
    loss = sum(parts.values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step == 1:
        warm()
model.eval()
with torch.no_grad():
    found = model(images)
done(
    model=model,
    losses=losses,
    boxes=fingerprint(row["boxes"] for row in found),
    count=[len(r["scores"]) for r in found],
)
