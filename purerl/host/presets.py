"""Default numbers of each algorithm on each environment.

Fields of the loop and of the algorithm's configuration together, by name. What is not named here
has its general default (row ``*``, else the classes of the two configurations). The figures
start from published settings (the zoo of Stable-Baselines3, SLM-Lab, gymnax-blines, PureJaxRL) and
were then tuned with ``benchmarks/learning.py``, whose table is their justification.
"""

from typing import Any

from purerl.policies.networks import NetworkConfig

_MINATAR = (
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
)

# An MLP on the flattened image: on a CPU ten times as fast as the convolution. A smaller learning
# rate stays in a local optimum (Breakout: 7 bricks) with most seeds.
_MLP = NetworkConfig(hidden_sizes=(64, 64), activation="relu", torso="mlp")

_PPO_MINATAR = dict(
    steps=1_000_000, num_envs=64, rollout_length=128, num_minibatches=8, learning_rate=5e-3,
    entropy_coef=0.01, evaluations=10, evaluation_episodes=32, network=_MLP,
)  # fmt: skip

_PPO_CARTPOLE = dict(
    num_envs=8, rollout_length=25, num_epochs=8, learning_rate=1e-3, gamma=0.98, gae_lambda=0.9,
)  # fmt: skip

_PPO_ACROBOT = dict(
    steps=300_000, num_envs=16, rollout_length=125, learning_rate=1e-3, normalize_obs=True,
)  # fmt: skip

_PPO_PENDULUM = dict(
    steps=300_000, num_envs=32, rollout_length=125, num_epochs=10, num_minibatches=32,
    learning_rate=1e-3, gamma=0.9, normalize_obs=True,
)  # fmt: skip

_A2C_MINATAR = dict(
    steps=1_000_000, num_envs=16, rollout_length=5, entropy_coef=0.01, evaluations=10,
    evaluation_episodes=32, network=_MLP,
)  # fmt: skip

# A wide trust region and much entropy: within a small one every seed stays at 7 bricks.
_ACKTR_MINATAR = dict(
    steps=1_000_000, num_envs=16, rollout_length=20, learning_rate=1.0, kl_clip=0.02,
    entropy_coef=0.03, evaluations=10, evaluation_episodes=32,
    network=NetworkConfig(hidden_sizes=(64,), activation="relu", shared=True),
)  # fmt: skip

_TRPO: dict[str, dict[str, Any]] = {
    "CartPole-v1": dict(steps=100_000),
    "Acrobot-v1": dict(
        steps=200_000, num_envs=16, rollout_length=125, normalize_obs=True, normalize_reward=True,
    ),
    "Pendulum-v1": dict(
        steps=300_000, num_envs=16, rollout_length=125, gamma=0.9, normalize_obs=True,
        normalize_reward=True,
    ),
    "MountainCar-v0": dict(
        steps=200_000, num_envs=4, rollout_length=512, critic_epochs=20, gae_lambda=0.98,
        normalize_obs=True, normalize_reward=True,
    ),
}  # fmt: skip

_RELU = NetworkConfig(hidden_sizes=(64, 64), activation="relu")

# Huber's loss pays too little attention to the few transitions that end an episode. With one-step
# returns, and four times the samples in updates, some seeds of CartPole end below 300.
_DQN_CONTROL = dict(
    steps=200_000, batch_size=64, n_step=3, learning_rate=4e-3, learning_rate_schedule="linear",
    loss="squared", target_every=1, target_tau=0.03, capacity=100_000, normalize_obs=True,
)  # fmt: skip

# An update every four steps, as published; the buffer holds pixels as bits.
_DQN_MINATAR = dict(
    steps=1_000_000, num_envs=8, updates=2, warmup=5000, batch_size=32, n_step=3,
    learning_rate_schedule="linear", target_every=250, capacity=100_000, epsilon_end=0.02,
    replay_obs="bool", evaluations=10, evaluation_episodes=32,
    network=NetworkConfig(hidden_sizes=(64,), activation="relu"),
)  # fmt: skip

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ppo_clip": {
        "CartPole-v1": _PPO_CARTPOLE | dict(steps=100_000, clip_schedule="linear"),
        "Acrobot-v1": _PPO_ACROBOT,
        "Pendulum-v1": _PPO_PENDULUM,
        **dict.fromkeys(_MINATAR, _PPO_MINATAR),
    },
    "ppo_penalty": {
        "CartPole-v1": _PPO_CARTPOLE | dict(steps=150_000),
        "Acrobot-v1": _PPO_ACROBOT,
        "Pendulum-v1": _PPO_PENDULUM,
        **dict.fromkeys(_MINATAR, _PPO_MINATAR),
    },
    "a2c": {
        "*": dict(rollout_length=5),
        "CartPole-v1": dict(steps=300_000),
        "Acrobot-v1": dict(
            steps=500_000, num_envs=16, normalize_obs=True, normalize_reward=True,
        ),
        "Pendulum-v1": dict(
            steps=500_000, gamma=0.9, gae_lambda=0.95, normalize_obs=True, normalize_reward=True,
        ),
        **dict.fromkeys(_MINATAR, _A2C_MINATAR),
    },
    "trpo": _TRPO,
    "npg": _TRPO | {"CartPole-v1": dict(steps=150_000)},
    "acktr": {
        "*": dict(rollout_length=20),
        "CartPole-v1": dict(steps=200_000),
        # Without normalized rewards half of the seeds never find the goal.
        "Acrobot-v1": dict(
            steps=500_000, num_envs=16, rollout_length=50, normalize_obs=True,
            normalize_reward=True,
        ),
        "Pendulum-v1": dict(
            steps=500_000, rollout_length=50, gamma=0.9, gae_lambda=0.95, normalize_obs=True,
        ),
        **dict.fromkeys(_MINATAR, _ACKTR_MINATAR),
    },
    "policy_gradient": {
        "CartPole-v1": dict(steps=300_000, num_envs=8, rollout_length=125),
    },
    "dqn": {
        "*": dict(network=_RELU),
        "CartPole-v1": _DQN_CONTROL | dict(steps=100_000),
        "Acrobot-v1": _DQN_CONTROL,
        # The goal is found by acting greedily soon: every reward is -1, so what was never tried
        # seems best. With one-step returns no seed in four finds it often enough to learn.
        "MountainCar-v0": dict(
            steps=200_000, num_envs=4, rollout_length=4, updates=8, batch_size=64, n_step=5,
            gamma=0.995, learning_rate=4e-3, learning_rate_schedule="linear", target_every=600,
            exploration=0.05, epsilon_end=0.07, normalize_obs=True,
        ),
        "Catch-bsuite": dict(
            steps=50_000, batch_size=64, learning_rate=1e-3, learning_rate_schedule="linear",
            target_every=50,
        ),
        **dict.fromkeys(_MINATAR, _DQN_MINATAR),
    },
}  # fmt: skip


def preset(algorithm: str, env: str) -> dict[str, Any]:
    """Default numbers that differ from the general ones.

    Args:
        algorithm: Its name.
        env: The environment's name.
    """
    rows = PRESETS.get(algorithm, {})
    # The tables of results were made with so many episodes an evaluation.
    episodes = {"evaluation_episodes": 128} if env in rows else {}
    return episodes | rows.get("*", {}) | rows.get(env, {})
