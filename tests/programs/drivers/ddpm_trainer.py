"""denoising-diffusion-pytorch: its Trainer on a folder of generated pictures, its samples and its milestones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
from outcome import done, warm
from PIL import Image

torch.manual_seed(0)
Path("pictures").mkdir()
drawn = np.random.default_rng(0)
for index in range(110):
    Image.fromarray(drawn.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(f"pictures/{index}.png")
model = Unet(dim=16, dim_mults=(1, 2), flash_attn=False)
diffusion = GaussianDiffusion(model, image_size=16, timesteps=20, sampling_timesteps=4)
trainer = Trainer(
    diffusion, "pictures", train_batch_size=4, train_num_steps=2, save_and_sample_every=4, num_samples=4,
    gradient_accumulate_every=4, calculate_fid=False, results_folder="results", ema_update_every=2,
)  # fmt: skip
trainer.train()
warm()
trainer.train_num_steps = 8
trainer.train()
trainer.load(2)
made = trainer.ema.ema_model.sample(batch_size=2)
done(model=model, step=trainer.step, mean=made.mean().item())
