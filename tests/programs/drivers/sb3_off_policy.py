"""Stable-Baselines3 off policy: DQN on CartPole, SAC and TD3 on Pendulum, each with its replay buffer."""

from __future__ import annotations

from outcome import done, warm
from stable_baselines3 import DQN, SAC, TD3

values = {}
for kind, place in ((DQN, "CartPole-v1"), (SAC, "Pendulum-v1"), (TD3, "Pendulum-v1")):
    model = kind("MlpPolicy", place, seed=0, learning_starts=20, batch_size=32, buffer_size=1000)
    model.learn(40)
    warm()
    model.learn(60)
    model.save_replay_buffer("buffer")
    model.load_replay_buffer("buffer")
    action, _ = model.predict(model.get_env().reset(), deterministic=True)
    values[kind.__name__] = action.tolist()
done(model=model.policy, **values)
