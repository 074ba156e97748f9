"""One paper a file; none imports another."""

from collections.abc import Callable
from typing import Any, NamedTuple

from purerl.algorithms.a2c import A2CConfig, a2c
from purerl.algorithms.policy_gradient import PolicyGradientConfig, policy_gradient
from purerl.algorithms.ppo import PPOClipConfig, PPOPenaltyConfig, ppo_clip, ppo_penalty


class Entry(NamedTuple):
    """An algorithm by name: its configuration and its builder."""

    config: type
    build: Callable[..., Any]  # (config, action_space, network=None) -> algorithm


ALGORITHMS = {
    "policy_gradient": Entry(PolicyGradientConfig, policy_gradient),
    "a2c": Entry(A2CConfig, a2c),
    "ppo_clip": Entry(PPOClipConfig, ppo_clip),
    "ppo_penalty": Entry(PPOPenaltyConfig, ppo_penalty),
}
