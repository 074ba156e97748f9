"""Evaluation: whole episodes, one an environment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.envs.make import Env


class Evaluation(NamedTuple):
    """Result of evaluating one policy."""

    mean_return: jax.Array  # [] undiscounted, of raw rewards
    mean_length: jax.Array  # [] steps
    unfinished: jax.Array  # [] int32, episodes that max_steps cut off (their return so far counts)


def evaluate(
    policy: Callable[[jax.Array, jax.Array], jax.Array],
    env: Env,
    key: jax.Array,
    *,
    episodes: int = 128,
    max_steps: int | None = None,
) -> Evaluation:
    """Plays ``episodes`` episodes to their end, each in an environment of its own.

    One episode an environment: were the first ones to end counted, short episodes would be
    over-represented.

    Args:
        policy: ``(obs [E, *O], key) -> action [E, *A]``.
        env: Environment.
        key: PRNG key.
        episodes: E, how many.
        max_steps: Steps after which unfinished episodes are cut off; the environment's time limit
            by default, and required where it has none.

    Raises:
        ValueError: If ``episodes`` is less than 1, or ``max_steps`` is missing.
    """
    if episodes < 1:
        raise ValueError(f"evaluate got episodes={episodes}, wanted at least 1.")
    limit = env.max_episode_steps if max_steps is None else max_steps
    if limit is None:
        raise ValueError(f"{env.name} has no known time limit: give evaluate max_steps.")
    reset_key, run_key = jax.random.split(key)
    obs, env_state = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))

    start = (obs, env_state, jnp.ones(episodes, bool), jnp.zeros(episodes), jnp.zeros(episodes), 0)

    def unfinished(carry: Any):
        _, _, running, _, _, t = carry
        return jnp.any(running) & (t < limit)

    def step(carry: Any):
        obs, env_state, running, ret, length, t = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, t))
        action = policy(obs, act_key)
        env_keys = jax.random.split(env_key, episodes)
        # What follows an episode is not looked at, so any reset will do.
        result, env_state = jax.vmap(env.step)(env_state, action, env_keys, start[:2])
        ret = ret + jnp.where(running, result.reward, 0)
        length = length + running
        running = running & ~(result.terminated | result.truncated)
        return result.obs, env_state, running, ret, length, t + 1

    _, _, running, ret, length, _ = jax.lax.while_loop(unfinished, step, start)
    return Evaluation(jnp.mean(ret), jnp.mean(length), jnp.sum(running, dtype=jnp.int32))
