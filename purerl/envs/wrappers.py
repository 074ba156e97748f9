"""Environments made of others: with less to see, or with what was done and earned last."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from purerl.envs.make import Env
from purerl.records import Discrete, PyTree


def observe_only(env: Env, indices: Sequence[int]) -> Env:
    """An environment of which only some numbers of the observation are seen.

    Args:
        env: With observations ``[D]``.
        indices: Which are seen, in this order.

    Raises:
        ValueError: If observations are no vectors, or have no such number.

    Example:
        >>> import jax, purerl
        >>> positions = observe_only(purerl.make_env("CartPole-v1"), (0, 2))
        >>> positions.reset(jax.random.key(0))[0].shape
        (2,)
    """
    _check_vector("observe_only", env)
    (size,), kept = env.obs_shape, tuple(int(i) for i in indices)
    if not kept or not all(0 <= i < size for i in kept):
        raise ValueError(
            f"observe_only: indices={kept} of observations [{size}]; give some of 0 to {size - 1}."
        )
    return _with_observations(env, (len(kept),), lambda obs, _: obs[jnp.array(kept)])


def observe_last_step(env: Env) -> Env:
    """An environment whose observation also holds the last action and reward.

    They follow the observation's own numbers: a discrete action as a one-hot vector, a real one as
    it is; then the reward. At an episode's first step they are zeros. Policies with a memory can
    learn from them what the rules are; ``make_env(env, last_step=True)`` does this, too.

    Args:
        env: With observations ``[D]``.

    Raises:
        ValueError: If observations are no vectors.

    Example:
        >>> import jax, purerl
        >>> env = observe_last_step(purerl.make_env("CartPole-v1"))
        >>> obs, state = env.reset(jax.random.key(0))
        >>> step, state = env.step(state, 1, jax.random.key(1))
        >>> step.obs[4:].tolist()
        [0.0, 1.0, 1.0]
    """
    _check_vector("observe_last_step", env)
    space = env.action_space
    width = space.num_actions if isinstance(space, Discrete) else space.shape[0]

    def with_last(obs: jax.Array, last: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        if last is None:
            return jnp.concatenate([obs, jnp.zeros(width + 1, obs.dtype)])
        action, reward = last
        if isinstance(space, Discrete):
            action = jax.nn.one_hot(action, width)
        return jnp.concatenate([obs, action.astype(obs.dtype), reward[None].astype(obs.dtype)])

    return _with_observations(env, (env.obs_shape[0] + width + 1,), with_last)


def _with_observations(env: Env, shape: tuple[int, ...], see: Callable[..., jax.Array]) -> Env:
    """The environment with observations ``see(obs, (action, reward) or None at a beginning)``.

    Its state holds the observation that the environment itself gave, for what begins anew.
    """

    def reset(key: jax.Array) -> tuple[jax.Array, PyTree]:
        obs, state = env.reset(key)
        return see(obs, None), (state, obs)

    def step(state: PyTree, action: jax.Array, key: jax.Array, fresh: PyTree = None) -> Any:
        inner = None if fresh is None else fresh[1][::-1]
        result, new = env.step(state[0], action, key, inner)
        done = result.terminated | result.truncated
        last = action, result.reward
        obs = jnp.where(done, see(result.obs, None), see(result.obs, last))
        return result._replace(obs=obs, next_obs=see(result.next_obs, last)), (new, result.obs)

    return env._replace(reset=reset, step=step, obs_shape=shape, obs_range=None)


def _check_vector(where: str, env: Env) -> None:
    if len(env.obs_shape) != 1:
        raise ValueError(
            f"{where}: {env.name} has observations of shape {env.obs_shape}, wanted vectors; "
            "flatten them in a wrapper of your own first."
        )
