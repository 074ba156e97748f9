"""One paper a file; none imports another."""

from collections.abc import Callable
from typing import Any, NamedTuple

from purerl.algorithms import a2c, acktr, dqn, policy_gradient, ppo, trpo


class Entry(NamedTuple):
    """An algorithm by name: its configuration and its builder."""

    config: type
    build: Callable[..., Any]  # (config, action_space, network=None) -> algorithm
    off_policy: bool = False  # which of the two loops trains it


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
