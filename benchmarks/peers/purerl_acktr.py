"""ACKTR of purerl, and A2C, which takes the same gradient without the curvature."""

from collections.abc import Callable
from typing import Any

import purerl_run
from measure import ACKTR

import purerl
from purerl.records import ActionSpace, OnPolicyAlgorithm

SHARED: dict[str, Any] = {
    "gamma": ACKTR.discount,
    "gae_lambda": ACKTR.gae_lambda,
    "network": purerl_run.network(ACKTR),
}


def acktr(**changes: Any) -> Callable[[ActionSpace], OnPolicyAlgorithm]:
    """ACKTR at its defaults, but for some changes."""
    config = purerl.ACKTRConfig(**SHARED, **changes)
    return lambda action_space: purerl.acktr(config, action_space)


def a2c(action_space: ActionSpace) -> OnPolicyAlgorithm:
    """A2C at its defaults."""
    config = purerl.A2CConfig(
        learning_rate=ACKTR.learning_rate, optimizer_eps=ACKTR.adam_epsilon, **SHARED
    )
    return purerl.a2c(config, action_space)


VARIANTS = {
    "default": acktr(),
    "full": acktr(stats_stride=1),
    "light": acktr(stats_every=10, inverse_every=50),
    "a2c": a2c,
}


if __name__ == "__main__":
    purerl_run.main(__doc__, VARIANTS, ACKTR)
