"""Sizes of a run, declared once for both regimes."""

import dataclasses
from typing import Any, Literal

from purerl.config import Config, field
from purerl.envs.record import Env

ObsDtype = Literal["float", "uint8", "bool"]

EPISODES = 128  # of an evaluation, at most, where their number is not given
SHARE = 0.1  # of a run's steps that evaluations may cost, where their episodes are not given
_DEFAULT = (
    f"None: up to {EPISODES}, so that all evaluations take at most {SHARE:.0%} of the run's "
    "steps (episodes counted as long as their limit), but at least 1."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """Sizes of a run; all static."""

    steps: int = field(100_000, "Environment steps of a seed, rounded up to whole iterations.")
    num_envs: int = field(8, "Environments side by side, N.")
    rollout_length: int = field(128, "Steps of each environment in one iteration, T.")
    evaluations: int = field(20, "Evenly spaced, the last at the end; 0: none.", "[0, inf)")
    evaluation_episodes: int | None = field(None, f"Of each. {_DEFAULT}")
    greedy_evaluation: bool = field(True, "Evaluate the most probable actions, else samples.")
    max_episode_steps: int | None = field(None, "Limit in evaluations; None: the environment's.")
    normalize_obs: bool = field(False, "Observations to running mean 0, standard deviation 1.")
    clip_obs: float | None = field(
        10.0,
        "Bound on normalized observations, in standard deviations; None: no bound.",
        "(0, inf)",
    )
    reward_scale: float = field(1.0, "What a learner's rewards are multiplied by.", "(0, inf)")

    def check(self) -> None:
        """Raises ValueError where sizes do not fit each other."""
        where, each = type(self).__name__, self.steps_per_iteration
        if self.steps + each >= 2**31:
            raise ValueError(f"{where}: steps={self.steps} is more than an int32; ask for fewer.")
        if self.steps < self.warmup_steps + each:
            warm = f"a warm-up of {self.warmup_steps} and " if self.warmup_steps else ""
            raise ValueError(
                f"{where}: steps={self.steps} is less than {warm}one iteration, num_envs * "
                f"rollout_length = {self.num_envs} * {self.rollout_length} = {each} steps."
            )

    @property
    def warmup_steps(self) -> int:
        """Environment steps before the first iteration."""
        return 0

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of all environments together."""
        return self.num_envs * self.rollout_length

    @property
    def iterations(self) -> int:
        """Iterations of the whole run; the number of steps is rounded up."""
        return -(-(self.steps - self.warmup_steps) // self.steps_per_iteration)

    @property
    def evaluate_at(self) -> tuple[int, ...]:
        """The iterations after which the run is evaluated."""
        return spread(self.iterations, self.evaluations)

    def step(self, iteration: Any) -> Any:
        """Environment steps after so many iterations.

        Args:
            iteration: Iterations finished.
        """
        return self.warmup_steps + iteration * self.steps_per_iteration

    def episode_limit(self, env: Env) -> int:
        """Steps after which an evaluation's episode is cut off.

        Args:
            env: Environment.

        Raises:
            ValueError: If there is no such number.
        """
        if (limit := self.max_episode_steps or env.max_episode_steps) is None:
            raise ValueError(
                f"{env.name} has no known time limit to end an evaluation with; give "
                "max_episode_steps, or evaluations=0."
            )
        return limit

    def episodes(self, env: Env) -> int:
        """Episodes of one evaluation.

        Args:
            env: Environment.
        """
        if self.evaluation_episodes is not None or not self.evaluations:
            return self.evaluation_episodes or EPISODES
        one = len(self.evaluate_at) * self.episode_limit(env)
        return min(max(1, int(SHARE * self.steps) // one), EPISODES)

    def evaluation_share(self, env: Env) -> float:
        """Environment steps of all evaluations, at most, as a fraction of the run's steps.

        Args:
            env: Environment.
        """
        each = self.episodes(env) * self.episode_limit(env) if self.evaluations else 0
        return len(self.evaluate_at) * each / self.step(self.iterations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyLoopConfig(LoopConfig):
    """Sizes of an on-policy run; all static."""

    normalize_reward: bool = field(
        False, "Rewards divided by the running standard deviation of the discounted return."
    )
    clip_reward: float | None = field(
        10.0, "Bound on normalized rewards; None: no bound.", "(0, inf)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffPolicyLoopConfig(LoopConfig):
    """Sizes of an off-policy run; all static."""

    rollout_length: int = field(1, "Steps of each environment in one iteration, T.")
    updates: int = field(1, "Updates in one iteration, each with a batch of its own.")
    warmup: int = field(1000, "Environment steps before learning, to fill the buffer.", "[0, inf)")
    replay_obs: ObsDtype = field(
        "float", "How observations are held; uint8 and bool take a quarter of the memory."
    )

    @property
    def warmup_steps(self) -> int:
        """Environment steps before the first iteration."""
        return -(-self.warmup // self.num_envs) * self.num_envs


def spread(iterations: int, points: int) -> tuple[int, ...]:
    """Iterations that lie evenly in a run, the last of all included; all if there are fewer.

    Args:
        iterations: Of the whole run.
        points: How many.
    """
    points = min(points, iterations)
    return tuple(k * iterations // points for k in range(1, points + 1))
