"""Environments made of others: with less to see, or with what was done and earned last."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.record import Env, Outside, is_shape
from purerl.records import Box, Discrete, PyTree, num_choices


def observe_only(env: Env, indices: Sequence[int]) -> Env:
    """An environment of which only some numbers of the observation are seen.

    Args:
        env: With observations ``[D]``.
        indices: Which are seen, in this order.

    Returns:
        The environment, with other observations.

    Raises:
        ValueError: If observations are no vectors, or have no such number.

    Example:
        >>> import jax, purerl
        >>> positions = observe_only(purerl.make_env("CartPole-v1"), (0, 2))
        >>> positions.reset(jax.random.key(0))[0].shape
        (2,)
    """
    if not (is_shape(env.obs_shape) and len(env.obs_shape) == 1):
        raise ValueError(
            f"observe_only: {env.name} has observations of shape {env.obs_shape}, wanted vectors."
        )
    (size,), kept = env.obs_shape, tuple(int(i) for i in indices)
    if not kept or not all(0 <= i < size for i in kept):
        raise ValueError(
            f"observe_only: indices={kept} of observations [{size}]; give some of 0 to {size - 1}."
        )
    return _with_observations(env, (len(kept),), lambda obs, *_: obs[..., np.array(kept)])


def observe_last_step(env: Env) -> Env:
    """An environment whose observation also holds the last action and reward.

    A policy with a memory can learn from them what the rules are. Observations are a dict: what the
    environment gives (an array as ``"obs"``, a dict as it is), ``"last_action"`` (a discrete choice
    as a one-hot vector, a real action as it is) and ``"last_reward"`` ``[1]``; at an episode's
    first step both are zeros. ``make_env(env, last_step=True)`` does this, too.

    Args:
        env: Environment.

    Returns:
        The environment, with other observations.

    Example:
        >>> import jax, purerl
        >>> env = observe_last_step(purerl.make_env("CartPole-v1"))
        >>> obs, state = env.reset(jax.random.key(0))
        >>> step, state = env.step(state, 1, jax.random.key(1))
        >>> step.obs["last_action"].tolist(), step.obs["last_reward"].tolist()
        ([0.0, 1.0], [1.0])
    """
    space, real = env.action_space, jnp.result_type(float)
    width = space.shape[0] if isinstance(space, Box) else num_choices(space)
    axes = len(jax.tree.leaves(env.obs_shape, is_leaf=is_shape)[0])

    def encoded(action: Any, xp: Any) -> Any:
        if isinstance(space, Box):
            return xp.asarray(action, real)
        counts = [space.num_actions] if isinstance(space, Discrete) else space.counts
        choices = xp.asarray(action)
        choices = choices[..., None] if isinstance(space, Discrete) else choices
        hot = [choices[..., i : i + 1] == xp.arange(n) for i, n in enumerate(counts)]
        return xp.concatenate(hot, axis=-1).astype(real)

    def see(obs: PyTree, last: tuple[Any, Any] | None, xp: Any) -> PyTree:
        x = jax.tree.leaves(obs)[0]
        lead = x.shape[: x.ndim - axes]
        action, reward = xp.zeros((*lead, width), real), xp.zeros((*lead, 1), real)
        if last is not None:
            action, reward = encoded(last[0], xp), xp.asarray(last[1], real)[..., None]
        seen = obs if isinstance(obs, dict) else {"obs": obs}
        return seen | {"last_action": action, "last_reward": reward}

    shape = env.obs_shape if isinstance(env.obs_shape, dict) else {"obs": env.obs_shape}
    return _with_observations(env, shape | {"last_action": (width,), "last_reward": (1,)}, see)


def _with_observations(env: Env, shape: PyTree, see: Callable[..., PyTree]) -> Env:
    """The environment with observations ``see(obs, (action, reward) or None at a beginning, xp)``.

    Leading axes are left alone, and the arrays are those of ``xp``: ``jax.numpy``, or ``numpy``
    where the host plays. The state holds the observation that the environment itself gave, for what
    begins anew.
    """

    def reset(key: jax.Array) -> tuple[PyTree, PyTree]:
        obs, state = env.reset(key)
        return see(obs, None, jnp), (state, obs)

    def step(state: PyTree, action: jax.Array, key: jax.Array, fresh: PyTree = None) -> Any:
        inner = None if fresh is None else fresh[1][::-1]
        result, new = env.step(state[0], action, key, inner)
        done = result.terminated | result.truncated
        last = action, result.reward
        fresh_obs, next_obs = see(result.obs, None, jnp), see(result.obs, last, jnp)
        obs = jax.tree.map(lambda x, y: jnp.where(done, x, y), fresh_obs, next_obs)
        after = see(result.next_obs, last, jnp)
        return result._replace(obs=obs, next_obs=after), (new, result.obs)

    outside = env.outside and _seen_outside(env.outside, see)
    about: Any = dict(obs_shape=shape, obs_range=None, observe=None, outside=outside)
    return env._replace(reset=reset, step=step, **about)


def _seen_outside(outside: Outside, see: Callable[..., PyTree]) -> Outside:
    def make(count: int, seeds: np.ndarray) -> _Seen:
        return _Seen(outside.make(count, seeds), see)

    def filmed(seed: int) -> Any:
        assert outside.filmed is not None
        player, frame, seconds = outside.filmed(seed)
        return _Seen(player, see), frame, seconds

    return outside._replace(make=make, filmed=outside.filmed and filmed)


class _Seen:
    """A :class:`purerl.host.players.player.Player` of which ``see`` makes the observations."""

    def __init__(self, player: Any, see: Callable[..., PyTree]):
        self.player, self.see, self.close = player, see, player.close

    def reset(self) -> PyTree:
        return self.see(self.player.reset(), None, np)

    def step(self, action: np.ndarray, rows: np.ndarray | None = None) -> Any:
        moved, see = self.player.step(action, rows), self.see
        # A step that is not valid was spent on a reset.
        begins = moved.terminated | moved.truncated | ~moved.valid
        last = action, moved.reward

        def first(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.where(begins.reshape(-1, *[1] * (x.ndim - 1)), x, y)

        obs = jax.tree.map(first, see(moved.obs, None, np), see(moved.obs, last, np))
        return moved._replace(obs=obs, next_obs=see(moved.next_obs, last, np))
