"""Unrolling environments, and statistics of the episodes they finish."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.envs import Env
from purerl.records import PyTree, Rollout


class Episodes(NamedTuple):
    """The running episode of each environment.

    Attributes:
        ret: ``[N]`` sum of its rewards so far, undiscounted.
        length: ``[N]`` int32, its steps so far.
    """

    ret: jax.Array
    length: jax.Array


class EpisodeStatistics(NamedTuple):
    """Sums over the episodes that ended during a rollout; their size never grows.

    Attributes:
        ended: ``[]`` int32, how many.
        return_sum: ``[]`` of their undiscounted returns.
        length_sum: ``[]`` int32, of their steps.
    """

    ended: jax.Array
    return_sum: jax.Array
    length_sum: jax.Array

    def mean_return(self) -> jax.Array:
        """Mean return of the episodes that ended; NaN if none did."""
        return self.return_sum / self.ended

    def mean_length(self) -> jax.Array:
        """Mean length of the episodes that ended; NaN if none did."""
        return self.length_sum / self.ended


class Actors(NamedTuple):
    """N environments in the middle of their episodes.

    Attributes:
        env_state: Their states, leaves ``[N, ...]``.
        obs: ``[N, *O]`` what to act on next, not normalized.
        episodes: The running episodes.
    """

    env_state: PyTree
    obs: jax.Array
    episodes: Episodes


def reset(env: Env, num_envs: int, key: jax.Array) -> Actors:
    """Starts an episode in each environment.

    Args:
        env: Environment.
        num_envs: N.
        key: PRNG key.
    """
    obs, env_state = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return Actors(env_state, obs, Episodes(jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32)))


def unroll(
    act: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]],
    env: Env,
    actors: Actors,
    key: jax.Array,
    length: int,
    first_only: bool = False,
) -> tuple[Actors, Rollout, EpisodeStatistics]:
    """Lets a policy act for ``length`` steps in every environment.

    Each new episode begins with a reset of its own, whose key is that of its environment and step:
    ``env.resets`` changes the cost and not the numbers.

    Args:
        act: ``(obs [N, *O], key) -> (action [N, *A], {"log_prob": [N]})``; without one the
            rollout's is None.
        env: Environment.
        actors: Where the environments are.
        key: PRNG key.
        length: T, the number of steps.
        first_only: Whether the statistics are of each environment's first episode only: among
            later ones, those that end within the rollout are the short ones.

    Returns:
        ``(actors, rollout [T, N], statistics)``.
    """
    num_envs = actors.obs.shape[0]
    # All of a rollout's keys and resets at once: one hash over a long array instead of T over
    # short ones. On a CPU the hashes were a third of the time of a rollout of CartPole.
    keys = jax.random.split(key, (length, 1 + 2 * num_envs))
    act_keys, env_keys = keys[:, 0], keys[:, 1::2]
    resets: PyTree = keys[:, 2::2]
    if env.resets == "ahead":
        resets = jax.vmap(jax.vmap(env.reset))(resets)

    def step(carry, inputs):
        actors, statistics, counted = carry
        act_key, env_keys, resets = inputs
        # Without resets ahead, anything of their shape: it is not looked at, or replaced below.
        fresh = resets if env.resets == "ahead" else (actors.obs, actors.env_state)
        action, extras = act(actors.obs, act_key)
        result, env_state = jax.vmap(env.step)(actors.env_state, action, env_keys, fresh)
        done = result.terminated | result.truncated
        obs = result.obs
        if env.resets == "due":
            obs, env_state = _reset_where(env, done, resets, (obs, env_state))
        episodes, statistics = _count(actors.episodes, statistics, result.reward, done, counted)
        counted = counted & ~done if first_only else counted
        seen = Rollout(
            obs=actors.obs,
            action=action,
            log_prob=extras.get("log_prob"),  # nothing off-policy reads it
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated,
            next_obs=result.next_obs,
            episode_step=actors.episodes.length,
        )
        return (Actors(env_state, obs, episodes), statistics, counted), seen

    zero = jnp.zeros((), jnp.int32)
    statistics = EpisodeStatistics(zero, jnp.zeros_like(actors.episodes.ret[0]), zero)
    start = (actors, statistics, jnp.ones(num_envs, bool))
    inputs = (act_keys, env_keys, resets)
    (actors, statistics, _), rollout = jax.lax.scan(step, start, inputs)
    return actors, rollout, statistics


def _reset_where(env: Env, done: jax.Array, keys: jax.Array, current: PyTree) -> PyTree:
    """``current`` with resets where an episode ended, a few environments at a time.

    A loop and not a ``cond``, which under ``vmap`` would draw resets at every step.
    """
    num_envs = len(keys)
    few = -(-num_envs // 16)

    def some(carry):
        left, current = carry
        (rows,) = jnp.nonzero(left, size=few, fill_value=num_envs)
        fresh = jax.vmap(env.reset)(keys[rows])
        current = jax.tree.map(lambda x, new: x.at[rows].set(new, mode="drop"), current, fresh)
        return left.at[rows].set(False, mode="drop"), current

    return jax.lax.while_loop(lambda carry: jnp.any(carry[0]), some, (done, current))[1]


def _count(
    episodes: Episodes,
    statistics: EpisodeStatistics,
    reward: jax.Array,
    done: jax.Array,
    counted: jax.Array,
) -> tuple[Episodes, EpisodeStatistics]:
    ret, length = episodes.ret + reward, episodes.length + 1
    ended = done & counted
    statistics = EpisodeStatistics(
        statistics.ended + jnp.sum(ended, dtype=jnp.int32),
        statistics.return_sum + jnp.sum(jnp.where(ended, ret, 0)),
        statistics.length_sum + jnp.sum(jnp.where(ended, length, 0), dtype=jnp.int32),
    )
    return Episodes(jnp.where(done, 0, ret), jnp.where(done, 0, length)), statistics
