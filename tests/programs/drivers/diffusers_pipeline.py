"""diffusers' pipelines with random weights: DDPM and DDIM make images, with a generator of the host."""

from __future__ import annotations

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from outcome import device, done, warm

torch.manual_seed(0)
model = UNet2DModel(
    sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
images = []
for steps in (2, 8):
    for kind, scheduler in ((DDPMPipeline, DDPMScheduler()), (DDIMPipeline, DDIMScheduler())):
        pipeline = kind(unet=model, scheduler=scheduler).to(device())
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(batch_size=2, num_inference_steps=steps, generator=torch.Generator().manual_seed(1))
        images.append(sum(sum(image.convert("L").tobytes()) for image in made.images))
    warm()
done(images=images)
