"""timm's own parts: a ConvNeXt with LAMB and a schedule, ModelEmaV3, label smoothing, clipping, and validation."""

from __future__ import annotations

import timm
import torch
from outcome import device, done, warm
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, ModelEmaV3, accuracy, dispatch_clip_grad

torch.manual_seed(0)
model = timm.create_model("convnext_atto", num_classes=10, drop_path_rate=0.0).to(device())
# foreach is what it chooses on CUDA by itself; its other form, for the CPU, rounds otherwise.
optimizer = create_optimizer_v2(model, opt="lamb", lr=1e-3, weight_decay=0.05, foreach=True)
schedule = CosineLRScheduler(optimizer, t_initial=6, warmup_t=1, warmup_lr_init=1e-5)
ema, criterion, meter = ModelEmaV3(model, decay=0.9), LabelSmoothingCrossEntropy(0.1).to(device()), AverageMeter()
images, labels = torch.rand(24, 3, 64, 64), torch.randint(0, 10, (24,))
for step in range(6):
    pick = slice(4 * step, 4 * step + 4)
    x, y = images[pick].to(device(), non_blocking=True), labels[pick].to(device(), non_blocking=True)
    loss = criterion(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    dispatch_clip_grad(model.parameters(), 1.0, mode="agc")
    optimizer.step()
    schedule.step(step + 1)
    ema.update(model, step=step)
    meter.update(loss.item(), x.size(0))
    if step == 1:
        warm()
ema.module.eval()
with torch.no_grad():
    first, fifth = accuracy(ema.module(images.to(device())), labels.to(device()), topk=(1, 5))
done(model=ema.module, loss=meter.avg, first=first.item(), fifth=fifth.item())
