"""A DCGAN that reads three losses and two scores of the discriminator in every step, to print some of them.

Named by the report, and done:

- ``D_x, D_G_z = scores.sigmoid().mean().item(), again.sigmoid().mean().item()`` and
  ``history.append((errD_real.item(), errD_fake.item(), errG.item(), D_x, D_G_z))``: keep the values on the GPU.
  They are stacked there, and read with one copy when they are printed.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.nn import functional as F

NAMED = (
    "D_x, D_G_z = scores.sigmoid().mean().item(), again.sigmoid().mean().item()",
    "history.append((errD_real.item(), errD_fake.item(), errG.item(), D_x, D_G_z))",
)
TOLERANCE = 0.0
"""Only the log has changed."""
LOG_EVERY, NOISE = 20, 64


def generator(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.ConvTranspose2d(NOISE, width * 4, 4, bias=False)]
    for wide, narrow in ((4, 2), (2, 1)):
        layers += [nn.BatchNorm2d(width * wide), nn.ReLU(),
                   nn.ConvTranspose2d(width * wide, width * narrow, 4, stride=2, padding=1, bias=False)]  # fmt: skip
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(),
                         nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1), nn.Tanh())  # fmt: skip


def discriminator(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for narrow, wide in ((1, 2), (2, 4)):
        layers += [nn.Conv2d(width * narrow, width * wide, 4, stride=2, padding=1, bias=False),
                   nn.BatchNorm2d(width * wide), nn.LeakyReLU(0.2)]  # fmt: skip
    return nn.Sequential(*layers, nn.Conv2d(width * 4, 1, 4), nn.Flatten(0))


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    width, batch = run.sized(64, 4), run.sized(64, 4)
    netG, netD = generator(width).to(run.device), discriminator(width).to(run.device)
    optG, optD = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (netG, netD))
    photos = torch.rand(batch * 8, 3, 32, 32).to(run.device) * 2 - 1
    ones, zeros = torch.ones(batch, device=run.device), torch.zeros(batch, device=run.device)
    clock, history = Clock(run), []
    for step in range(run.steps):
        real = photos[step % 8 * batch :][:batch]
        noise = torch.randn(batch, NOISE, 1, 1, device=run.device)
        fake = netG(noise)

        scores = netD(real)
        errD_real = F.binary_cross_entropy_with_logits(scores, ones)
        errD_fake = F.binary_cross_entropy_with_logits(netD(fake.detach()), zeros)
        optD.zero_grad()
        (errD_real + errD_fake).backward()
        optD.step()

        again = netD(fake)
        errG = F.binary_cross_entropy_with_logits(again, ones)
        optG.zero_grad()
        errG.backward()
        optG.step()

        if run.before:
            D_x, D_G_z = scores.sigmoid().mean().item(), again.sigmoid().mean().item()
            history.append((errD_real.item(), errD_fake.item(), errG.item(), D_x, D_G_z))
            if step % LOG_EVERY == 0:
                print(
                    f"[{step}] Loss_D {history[-1][0] + history[-1][1]:.4f} Loss_G {history[-1][2]:.4f} D(x) {D_x:.3f}"
                )
        else:
            values = (errD_real, errD_fake, errG, scores.sigmoid().mean(), again.sigmoid().mean())
            history.append(torch.stack(values).detach())
            if step % LOG_EVERY == 0:
                real_loss, fake_loss, loss, D_x, _ = history[-1].tolist()
                print(f"[{step}] Loss_D {real_loss + fake_loss:.4f} Loss_G {loss:.4f} D(x) {D_x:.3f}")
        clock.tick()
    return clock.step_ms, sum(p.double().abs().sum() for p in netG.parameters()).item()


if __name__ == "__main__":
    main(train)
