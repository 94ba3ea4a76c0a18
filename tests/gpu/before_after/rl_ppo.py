"""PPO with an environment on the host: the actor's action has to come to the host in every step of the rollout.

Named by the report, and done:

- ``host_action = action.cpu()``: nothing avoids it, the environment needs the action. It stays.
- ``kept.append((seen, host_action, log_prob.cpu(), value.cpu(), reward))``: collect and copy once. Log
  probabilities and values do not leave the GPU at all.
- ``losses.append((loss_actor.item(), loss_critic.item()))``: keep them on the GPU. They are read when they are
  printed.
- ``on_device = seen.to(run.device)``: pinned memory from a DataLoader; there is none, the environment makes it. It
  stays, but is no longer copied a second time for the update.

Little gain is expected: the waits for the action stay, and what followed them had nothing left to wait for.
"""

from __future__ import annotations

import torch
from stepclock import Clock, Run, main
from torch import nn
from torch.distributions import Categorical

NAMED = (
    "host_action = action.cpu()",
    "kept.append((seen, host_action, log_prob.cpu(), value.cpu(), reward))",
    "losses.append((loss_actor.item(), loss_critic.item()))",
    "on_device = seen.to(run.device)",
)
TOLERANCE = 1e-5
"""The same numbers, stacked on another device."""
HORIZON, EPOCHS, ACTIONS, SEEN = 32, 2, 4, 16


class Environment:
    """Some worlds of linear dynamics, which live on the host as simulators do."""

    def __init__(self, worlds: int) -> None:
        dice = torch.Generator().manual_seed(1)
        self.pull = torch.randn(ACTIONS, SEEN, generator=dice) * 0.1
        self.state = torch.randn(worlds, SEEN, generator=dice)

    def step(self, actions):
        self.state = self.state * 0.95 + self.pull[actions]
        return self.state.clone(), -self.state.square().mean(1)


class ActorCritic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(SEEN, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, ACTIONS), nn.Linear(width, 1)

    def forward(self, seen):
        found = self.body(seen)
        return Categorical(logits=self.actor(found), validate_args=False), self.critic(found).squeeze(-1)


def rollout(run: Run, net, env, seen):
    """``HORIZON`` steps of the environment: what was seen, done, thought and paid."""
    kept = []
    for _ in range(HORIZON):
        on_device = seen.to(run.device)
        with torch.no_grad():
            policy, value = net(on_device)
            action = policy.sample()
            log_prob = policy.log_prob(action)
        host_action = action.cpu()
        later, reward = env.step(host_action)
        if run.before:
            kept.append((seen, host_action, log_prob.cpu(), value.cpu(), reward))
        else:
            kept.append((on_device, action, log_prob, value, reward))
        seen = later
    *columns, rewards = (torch.stack(column) for column in zip(*kept, strict=True))
    return [column.to(run.device) for column in (*columns, rewards)], seen


def train(run: Run) -> tuple[float, float]:
    torch.manual_seed(0)
    env, net = Environment(run.sized(64, 4)), ActorCritic(run.sized(256, 16)).to(run.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
    clock, seen = Clock(run), env.state.clone()
    for step in range(run.steps):
        (states, actions, old_log_probs, values, rewards), seen = rollout(run, net, env, seen)
        returns = rewards.flip(0).cumsum(0).flip(0)
        advantages = returns - values
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        losses = []
        for _ in range(EPOCHS):
            policy, value = net(states)
            ratio = (policy.log_prob(actions) - old_log_probs).exp()
            clipped = ratio.clamp(0.8, 1.2) * advantages
            loss_actor = -torch.min(ratio * advantages, clipped).mean()
            loss_critic = (returns - value).square().mean()
            loss = loss_actor + 0.5 * loss_critic - 0.01 * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            if run.before:
                losses.append((loss_actor.item(), loss_critic.item()))
            else:
                losses.append((loss_actor.detach(), loss_critic.detach()))
        if step % 10 == 0:
            print(f"update {step}: actor {float(losses[-1][0]):.4f}, critic {float(losses[-1][1]):.4f}")
        clock.tick()
    return clock.step_ms, sum(p.double().abs().sum() for p in net.parameters()).item()


if __name__ == "__main__":
    main(train)
