"""The host's loops over the steps of its environments: rollouts, and episodes to evaluate.

They act by a function ``(step's number, obs, *remembered) -> (action, log_prob, memory)`` of all
seeds, leaves ``[S, N, ...]``; arrays are NumPy's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl.host.players.actors import Actors
from purerl.host.players.player import Moved
from purerl.pieces.rollout import EpisodeStatistics
from purerl.records import PyTree, Rollout
from purerl.training.evaluation import Evaluation

Act = Callable[..., tuple[Any, Any, Any]]


class Step(NamedTuple):
    """One step of all environments, ``[S, N]``.

    Attributes:
        moved: What happened.
        obs: What was acted on.
        action: What was done.
        log_prob: Of the action; None if nobody asks for it.
        age: Steps of the episodes before this one.
        memory: Of the policies before this step; None if they have none.
    """

    moved: Moved
    obs: PyTree
    action: np.ndarray
    log_prob: Any
    age: np.ndarray
    memory: PyTree


def play_steps(
    actors: Actors, act: Act, length: int, *, whole_episodes: bool = False
) -> tuple[list[Step], EpisodeStatistics]:
    """Plays so many steps.

    Args:
        actors: Who play; they go on from where they are.
        act: See above.
        length: How many steps.
        whole_episodes: Each environment begins anew and plays one episode, then it is not stepped.

    Returns:
        ``(steps, statistics [S])``.
    """
    if whole_episodes:
        actors.reset()
    running = np.ones(actors.lengths.shape, bool)
    steps: list[Step] = []
    count, returns, lengths = (np.zeros(actors.seeds, kind) for kind in (np.int32, float, np.int32))
    for number in range(length):
        action, log_prob, after = act(number, actors.obs, *actors.remembered)
        before = actors.obs, np.asarray(action), log_prob, actors.lengths.copy(), actors.memory
        if running.any():
            moved = actors.step(before[1], running if whole_episodes else None)
        else:  # as the step before, of which nothing counts
            moved = steps[-1].moved._replace(valid=running)
        actors.remember(after, moved.valid)
        ended = actors.ended(moved)
        count += ended.sum(1, dtype=np.int32)
        returns += np.where(ended, actors.returns, 0).sum(1)
        lengths += np.where(ended, actors.lengths, 0).sum(1, dtype=np.int32)
        actors.begin_anew(ended)
        steps.append(Step(moved, *before))
        if whole_episodes:
            running = running & ~ended
    return steps, EpisodeStatistics(count, returns, lengths)  # type: ignore[arg-type]


def as_rollout(steps: list[Step], last: PyTree, *, masked: bool) -> Rollout:
    """Steps as a rollout ``[S, T, N]``.

    Args:
        steps: T of them.
        last: The memory after the last step; None if there is none.
        masked: Whether some of the rows may be no transitions.
    """
    together = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x], axis=1), *steps)
    moved, obs, action, log_prob, age, memory = together
    return Rollout(
        obs=obs,
        action=action,
        log_prob=log_prob,
        reward=moved.reward.astype(jax.dtypes.canonicalize_dtype(float)),
        terminated=moved.terminated & moved.valid,
        truncated=moved.truncated & moved.valid,
        next_obs=moved.next_obs,
        episode_step=age,
        valid=moved.valid if masked else None,
        memory=jax.tree.map(lambda x, y: np.concatenate([x, y[:, None]], axis=1), memory, last),
    )


def play_episodes(actors: Actors, act: Act, limit: int) -> Evaluation:
    """Plays one episode in each environment, stepping those that go on.

    Args:
        actors: At the starts of their episodes.
        act: See above.
        limit: Most steps of an episode.

    Returns:
        An evaluation with leaves ``[S]``.
    """
    running = np.ones(actors.lengths.shape, bool)
    returns, lengths = np.zeros(running.shape), np.zeros(running.shape)
    for number in range(limit):
        action, _, after = act(number, actors.obs, *actors.remembered)
        moved = actors.step(np.asarray(action), running)
        actors.remember(after, moved.valid)
        returns = np.where(running, actors.returns, returns)
        lengths = np.where(running, actors.lengths, lengths)
        running = running & ~actors.ended(moved)
        if not running.any():
            break
    counts = running.sum(1, dtype=np.int32)
    return Evaluation(returns.mean(1), lengths.mean(1), counts)
