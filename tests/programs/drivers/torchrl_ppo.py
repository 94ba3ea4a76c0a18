"""TorchRL: PPO on CartPole with its collector, advantages, replay buffer and clipped loss."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import GymEnv, TransformedEnv
from torchrl.envs.transforms import Compose, DoubleToFloat, StepCounter
from torchrl.modules import OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

torch.manual_seed(0)
place = TransformedEnv(GymEnv("CartPole-v1", device=device()), Compose(DoubleToFloat(), StepCounter()))
place.set_seed(0)
policy = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2)).to(device())
actor = ProbabilisticActor(
    TensorDictModule(policy, in_keys=["observation"], out_keys=["logits"]), in_keys=["logits"],
    distribution_class=OneHotCategorical, return_log_prob=True,
)  # fmt: skip
critic = ValueOperator(
    nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)).to(device()), in_keys=["observation"]
)
collector = Collector(place, actor, frames_per_batch=64, total_frames=192, device=device())
buffer = ReplayBuffer(storage=LazyTensorStorage(64, device=device()), sampler=SamplerWithoutReplacement())
advantage, criterion = GAE(gamma=0.99, lmbda=0.95, value_network=critic), ClipPPOLoss(actor, critic)
optimizer = torch.optim.Adam(criterion.parameters(), 3e-4)
losses = []
for batch in collector:
    for _ in range(2):
        advantage(batch)
        buffer.extend(batch.reshape(-1))
        parts = criterion(buffer.sample(32))
        loss = parts["loss_objective"] + parts["loss_critic"] + parts["loss_entropy"]
        loss.backward()
        nn.utils.clip_grad_norm_(criterion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    warm()
collector.shutdown()
done(model=policy, losses=losses)
