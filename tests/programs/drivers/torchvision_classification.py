"""torchvision's ResNet-18 with its v2 transforms on the device, and a checkpoint; then evaluation."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import v2

torch.manual_seed(0)
model = resnet18(num_classes=10).to(device())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
normalized = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Resize(64), v2.Normalize([0.5] * 3, [0.25] * 3)])
images, labels = torch.randint(0, 256, (32, 3, 72, 72), dtype=torch.uint8), torch.randint(0, 10, (32,))
losses = []
for step in range(6):
    pick = torch.arange(8 * step, 8 * step + 8) % 32
    x, y = normalized(images[pick].to(device())), labels[pick].to(device())
    loss = nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step == 1:
        warm()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "kept.pt")
kept = torch.load("kept.pt", map_location="cpu", weights_only=True)
model.load_state_dict(kept["model"])
optimizer.load_state_dict(kept["optimizer"])
model.eval()
with torch.inference_mode():
    right = (model(normalized(images.to(device()))).argmax(1) == labels.to(device())).sum()
done(model=model, losses=losses, right=int(right))
