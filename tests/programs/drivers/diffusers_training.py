"""diffusers: training of a small UNet2DModel with DDPMScheduler and EMA; the host draws the noise."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from outcome import device, done, warm
from torch.nn import functional as F

torch.manual_seed(0)
model = UNet2DModel(
    sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
).to(device())  # fmt: skip
ema = EMAModel(model.parameters(), decay=0.95)
ema.to(device())
scheduler = DDPMScheduler(num_train_timesteps=100)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = get_cosine_schedule_with_warmup(optimizer, 2, 8)
losses = []
for step in range(8):
    clean, noise = torch.rand(4, 3, 16, 16).to(device()), torch.randn(4, 3, 16, 16).to(device())
    times = torch.randint(0, 100, (4,)).to(device())
    predicted = model(scheduler.add_noise(clean, noise, times), times, return_dict=False)[0]
    loss = F.mse_loss(predicted, noise)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    ema.step(model.parameters())
    losses.append(loss.detach().item())
    if step == 1:
        warm()
model.save_pretrained("unet")
model = UNet2DModel.from_pretrained("unet").to(device())
done(model=model, losses=losses)
