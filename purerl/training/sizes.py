"""The sizes of a run, declared once for both loops."""

import dataclasses
from typing import Literal

from purerl.config import Config, choice, count, switch

ObsDtype = Literal["float", "uint8", "bool"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """Sizes of a run; all static."""

    steps: int = count(100_000, "Environment steps of each seed; rounded up to whole iterations.")
    num_envs: int = count(8, "Environments side by side.")
    rollout_length: int = count(128, "Steps of each environment in one iteration.")
    evaluations: int = count(20, "How many evaluations.", least=0)
    evaluation_episodes: int = count(128, "Episodes of one evaluation.")
    greedy_evaluation: bool = switch(True, "Evaluate the policy's mode instead of samples.")
    max_episode_steps: int | None = count(
        None, "Steps after which an evaluation's episode is cut off.", optional=True
    )
    normalize_obs: bool = switch(False, "Observations to running mean 0 and deviation 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyLoopConfig(LoopConfig):
    """Sizes of an on-policy run; all static."""

    normalize_reward: bool = switch(
        False, "Rewards divided by the running standard deviation of the discounted return."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffPolicyLoopConfig(LoopConfig):
    """Sizes of an off-policy run; all static."""

    rollout_length: int = count(1, "Steps of each environment in one iteration.")
    updates: int = count(1, "Updates in one iteration.")
    warmup: int = count(1000, "Environment steps before the first iteration.", least=0)
    replay_obs: ObsDtype = choice("float", ObsDtype, "How the buffer holds observations.")
