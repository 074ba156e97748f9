"""Running normalization of observations and rewards.

The moments are constant within a rollout and merged with the rollout's own once after it, so that
all values of a rollout are computed in one batch under one normalization.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """Number, mean and variance (population) of what was seen so far."""

    seen: jax.Array  # [] how many
    mean: jax.Array  # [...]
    var: jax.Array  # [...]


def init_moments(shape: tuple[int, ...] = (), dtype: jnp.dtype | None = None) -> Moments:
    """Moments of nothing: normalizing with them changes nothing.

    Args:
        shape: Of one sample.
        dtype: Floating point; JAX's default if None.
    """
    zero = jnp.zeros((), dtype)
    return Moments(zero, jnp.zeros(shape, dtype), jnp.ones(shape, dtype))


def merge_moments(moments: Moments, batch: jax.Array) -> Moments:
    """Moments of all samples seen and those of ``batch`` together.

    Args:
        moments: Of samples of shape ``[...]``.
        batch: New samples, any number of leading axes: ``[T, N, ...]``.

    References:
        Chan, Golub and LeVeque 1983, eq. 2.1.
    """
    axes = tuple(range(batch.ndim - moments.mean.ndim))
    batch = batch.astype(moments.mean.dtype)
    size = batch.size // max(1, moments.mean.size)
    mean, var = jnp.mean(batch, axes), jnp.var(batch, axes)
    count = moments.seen + size
    delta = mean - moments.mean
    between = jnp.square(delta) * (moments.seen * size / count)
    within = moments.var * moments.seen + var * size
    return Moments(count, moments.mean + delta * (size / count), (within + between) / count)


def normalize(
    x: jax.Array, moments: Moments, clip: float | None = 10.0, eps: float = 1e-8
) -> jax.Array:
    """``(x - mean) / std``, clipped.

    Args:
        x: ``[..., *shape]`` of the moments' shape.
        moments: Of such samples.
        clip: Bound on the absolute result, in standard deviations; None: no bound.
        eps: Added to the variance.
    """
    x = x.astype(moments.mean.dtype)
    mean, var = (jnp.broadcast_to(m, x.shape) for m in (moments.mean, moments.var))
    y = (x - mean) / jnp.sqrt(var + eps)
    return y if clip is None else jnp.clip(y, -clip, clip)


class RewardScaler(NamedTuple):
    """Divides rewards by the standard deviation of the running discounted return."""

    running: jax.Array  # [N] discounted sum of rewards so far, of each environment
    moments: Moments  # of that sum, []


def init_reward_scaler(num_envs: int, dtype: jnp.dtype | None = None) -> RewardScaler:
    """A scaler that has seen nothing.

    Args:
        num_envs: N.
        dtype: Floating point; JAX's default if None.
    """
    return RewardScaler(jnp.zeros(num_envs, dtype), init_moments((), dtype))


def scale_rewards(
    scaler: RewardScaler,
    reward: jax.Array,
    done: jax.Array,
    gamma: float | jax.Array,
    clip: float | None = 10.0,
    eps: float = 1e-8,
) -> tuple[jax.Array, RewardScaler]:
    """Rewards divided by the standard deviation known before them, and the scaler after them.

    Args:
        scaler: For N environments.
        reward: ``[T, N]``.
        done: Terminated or truncated, ``[T, N]``: the running sum starts anew.
        gamma: Discount of the running sum.
        clip: Bound on the absolute result; None: no bound.
        eps: Added to the variance.

    Returns:
        ``(scaled reward [T, N], scaler)``.

    References:
        Detail 7 of the continuous-action details of Huang et al. 2022, "The 37 Implementation
        Details of PPO".
    """

    def step(running, transition):
        r, d = transition
        total = running * gamma + r
        return jnp.where(d, 0, total), total

    running, totals = jax.lax.scan(step, scaler.running, (reward, done))
    scaled = reward / jnp.sqrt(scaler.moments.var + eps)
    if clip is not None:
        scaled = jnp.clip(scaled, -clip, clip)
    return scaled, RewardScaler(running, merge_moments(scaler.moments, totals))
