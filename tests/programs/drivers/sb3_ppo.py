"""Stable-Baselines3: PPO and A2C on CartPole, with evaluation, saving and loading."""

from __future__ import annotations

from outcome import done, warm
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.evaluation import evaluate_policy

values = {}
for kind, options in ((PPO, {"n_steps": 64, "batch_size": 32, "n_epochs": 2}), (A2C, {"n_steps": 16})):
    model = kind("MlpPolicy", "CartPole-v1", seed=0, device="auto", **options)
    model.learn(64)
    warm()
    model.learn(192)
    model.save("agent")
    again = kind.load("agent")
    mean, _ = evaluate_policy(again, model.get_env(), n_eval_episodes=3)
    values[kind.__name__] = [float(mean), float(model.logger.name_to_value.get("train/loss", 0.0))]
done(model=again.policy, **values)
