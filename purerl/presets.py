"""Default numbers of each algorithm on each environment.

Fields of the loop and of the algorithm's configuration together, by name. What is not named here has
its general default (``LoopConfig`` and the configuration's class). The figures start from published
settings (the zoo of Stable-Baselines3, SLM-Lab, gymnax-blines, PureJaxRL) and were then tuned with
``benchmarks/learning.py``, whose table is their justification.
"""

from typing import Any

_MINATAR = (
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
)

_PPO_MINATAR = dict(
    steps=1_000_000, num_envs=64, rollout_length=32, num_minibatches=8, num_epochs=4,
    learning_rate=1e-3, entropy_coef=0.01, evaluation_episodes=32, evaluations=10,
)  # fmt: skip

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ppo_clip": {
        "CartPole-v1": dict(
            steps=100_000, num_envs=8, rollout_length=25, num_epochs=8, num_minibatches=4,
            learning_rate=1e-3, gamma=0.98, gae_lambda=0.9, anneal_clip=True,
        ),
        **dict.fromkeys(_MINATAR, _PPO_MINATAR),
    },
}  # fmt: skip


def preset(algorithm: str, env: str) -> dict[str, Any]:
    """Default numbers that differ from the general ones.

    Args:
        algorithm: Its name.
        env: The environment's name.
    """
    return PRESETS.get(algorithm, {}).get(env, {})
