"""Evaluation: whole episodes, one an environment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.envs.record import Env
from purerl.pieces.rollout import any_of_all
from purerl.records import PyTree

CHUNK = 16  # steps, after which an evaluation looks whether episodes are left


class Evaluation(NamedTuple):
    """Result of evaluating one policy; ``[E]`` each of E evaluations in a learning curve.

    Attributes:
        mean_return: Mean over the episodes of the undiscounted sum of raw rewards, ``[]``.
        mean_length: Mean length in steps, ``[]``.
        unfinished: Episodes that ``max_steps`` cut off, ``[]`` int32; their return so far counts.
    """

    mean_return: jax.Array
    mean_length: jax.Array
    unfinished: jax.Array


def evaluate(
    policy: Callable[..., Any],
    env: Env,
    key: jax.Array,
    *,
    episodes: int = 128,
    max_steps: int | None = None,
    init_memory: Callable[[PyTree], PyTree] | None = None,
) -> Evaluation:
    """Plays ``episodes`` episodes to their end, each in an environment of its own.

    One episode an environment: were the first ones to end counted, short episodes would be
    over-represented.

    Args:
        policy: ``(obs [E, *O], key) -> action [E, *A]``; with a memory ``(obs, key, memory, start)
            -> (action, memory)``, where ``start`` is bool ``[E]``.
        env: Environment.
        key: PRNG key.
        episodes: E, how many.
        max_steps: Steps after which unfinished episodes are cut off; the environment's time limit
            by default, and required where it has none.
        init_memory: ``(obs [E, *O]) -> memory`` of a policy that has one.

    Returns:
        Means over the episodes, ``[]`` each.

    Raises:
        ValueError: If ``episodes`` is less than 1, or ``max_steps`` is missing.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> always = lambda obs, key: jax.numpy.ones(len(obs), jax.numpy.int32)  # to the right
        >>> result = evaluate(always, env, jax.random.key(0), episodes=8)
        >>> 5 < float(result.mean_return) < 15
        True
    """
    if episodes < 1:
        raise ValueError(f"evaluate got episodes={episodes}, wanted at least 1.")
    limit = env.max_episode_steps if max_steps is None else max_steps
    if limit is None:
        raise ValueError(f"{env.name} has no known time limit: give evaluate max_steps.")
    reset_key, run_key = jax.random.split(key)
    obs, env_state = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))

    memory = None if init_memory is None else init_memory(obs)
    start = (obs, env_state, jnp.ones(episodes, bool), jnp.zeros(episodes), jnp.zeros(episodes))

    def step(carry: Any, t: jax.Array):
        (obs, env_state, running, ret, length), memory = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, t))
        if memory is None:
            action = policy(obs, act_key)
        else:
            action, memory = policy(obs, act_key, memory, jnp.full(episodes, t == 0))
        env_keys = jax.random.split(env_key, episodes)
        # What follows an episode is not looked at, so any reset will do.
        result, env_state = jax.vmap(env.step)(env_state, action, env_keys, start[:2])
        counted = running & (t < limit)
        ret = ret + jnp.where(counted, result.reward, 0)
        length = length + counted
        running = running & ~(counted & (result.terminated | result.truncated))
        return ((result.obs, env_state, running, ret, length), memory), None

    def chunk(carry: Any, times: jax.Array):
        play = lambda carry: jax.lax.scan(step, carry, times)[0]  # noqa: E731
        return jax.lax.cond(any_of_all(carry[0][2]), play, lambda carry: carry, carry), None

    # Loops of known length: XLA crashes where a while_loop is around some environments' step.
    size = min(CHUNK, limit)
    times = jnp.arange(-(-limit // size) * size).reshape(-1, size)
    ((_, _, running, ret, length), _), _ = jax.lax.scan(chunk, (start, memory), times)
    return Evaluation(jnp.mean(ret), jnp.mean(length), jnp.sum(running, dtype=jnp.int32))
