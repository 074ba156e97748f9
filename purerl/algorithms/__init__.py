"""The algorithms, one paper a file; none imports another."""

from collections.abc import Callable
from typing import Any, NamedTuple

from purerl.algorithms import a2c, acktr, dqn, policy_gradient, ppo, trpo


class Entry(NamedTuple):
    """An algorithm by name.

    Attributes:
        config: The class of its configurations.
        build: ``(config, action_space, network=None) -> algorithm``.
        off_policy: Whether it learns from a replay buffer.
    """

    config: type
    build: Callable[..., Any]
    off_policy: bool = False


ALGORITHMS = {
    "policy_gradient": Entry(policy_gradient.PolicyGradientConfig, policy_gradient.policy_gradient),
    "a2c": Entry(a2c.A2CConfig, a2c.a2c),
    "acktr": Entry(acktr.ACKTRConfig, acktr.acktr),
    "ppo_clip": Entry(ppo.PPOClipConfig, ppo.ppo_clip),
    "ppo_penalty": Entry(ppo.PPOPenaltyConfig, ppo.ppo_penalty),
    "trpo": Entry(trpo.TRPOConfig, trpo.trpo),
    "npg": Entry(trpo.NPGConfig, trpo.npg),
    "dqn": Entry(dqn.DQNConfig, dqn.dqn, off_policy=True),
}
