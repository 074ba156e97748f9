"""Running normalization of observations and rewards.

The moments are constant within a rollout and merged with the rollout's own once after it, so that
all values of a rollout are computed in one batch under one normalization. Before anything was seen
nothing is changed. A sample that is not finite is left out of the moments, whole: one broken sensor
reading must not end all learning, and the rest of its row may be broken too. It is not repaired
either: the learner gets it, and refuses its update.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purerl.records import PyTree


class Moments(NamedTuple):
    """Number, mean and variance (population) of what was seen so far.

    Attributes:
        seen: ``[]``, how many samples.
        mean: ``[...]``, of the shape of one sample.
        var: ``[...]``.
    """

    seen: jax.Array
    mean: jax.Array
    var: jax.Array


def init_moments(shape: tuple[int, ...] = (), dtype: jnp.dtype | None = None) -> Moments:
    """Moments of no samples; normalizing with them is the identity.

    Args:
        shape: Of one sample.
        dtype: Floating point; JAX's default if None.
    """
    zero = jnp.zeros((), dtype)
    return Moments(zero, jnp.zeros(shape, dtype), jnp.ones(shape, dtype))


def merge_moments(moments: Moments, batch: jax.Array, valid: jax.Array | None = None) -> Moments:
    """Moments of all samples seen and those of ``batch`` together.

    Args:
        moments: Of samples of shape ``[...]``.
        batch: New samples, any number of leading axes: ``[T, N, ...]``. One with an element that is
            not finite does not count.
        valid: Which of them count at all, bool ``[T, N]``; None: all.

    References:
        Chan, Golub and LeVeque 1983, eq. 2.1.
    """
    batch = jnp.asarray(batch, moments.mean.dtype)
    lead = batch.ndim - moments.mean.ndim
    finite = jnp.all(jnp.isfinite(batch), range(lead, batch.ndim), keepdims=True)
    if valid is not None:
        finite &= valid.reshape(finite.shape)
    size = jnp.sum(finite, dtype=batch.dtype)
    counted = jnp.broadcast_to(finite, batch.shape)
    mean, var = (f(batch, range(lead), where=counted) for f in (jnp.mean, jnp.var))
    count = moments.seen + size
    delta = mean - moments.mean
    between = jnp.square(delta) * (moments.seen * size / count)
    within = moments.var * moments.seen + var * size
    merged = Moments(count, moments.mean + delta * (size / count), (within + between) / count)
    return jax.tree.map(lambda new, old: jnp.where(size > 0, new, old), merged, moments)


def normalize(x: jax.Array, moments: Moments, clip: float | None = 10.0) -> jax.Array:
    """``(x - mean) / std``, clipped; ``x`` as it is before anything was seen.

    Args:
        x: ``[..., *shape]`` of the moments' shape.
        moments: Of such samples.
        clip: Bound on the absolute result, in standard deviations; None: no bound.
    """
    x = jnp.asarray(x, moments.mean.dtype)
    mean, var = (jnp.broadcast_to(m, x.shape) for m in (moments.mean, moments.var))
    y = (x - mean) / jnp.sqrt(var + 1e-8)
    y = y if clip is None else jnp.clip(y, -clip, clip)
    return jnp.where(moments.seen > 0, y, x)


def init_obs_moments(obs: PyTree) -> PyTree:
    """Moments of no observations: of each array of numbers; bytes and masks have none.

    Args:
        obs: ``[N, *O]``.
    """

    def init(x: jax.Array) -> Moments | None:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return None
        # Sums of many: in float16 they are infinite soon.
        return init_moments(x.shape[1:], jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(init, obs)


def normalize_obs(obs: PyTree, moments: PyTree, clip: float | None = 10.0) -> PyTree:
    """:func:`normalize`, of each array that has moments; the others as they are.

    Args:
        obs: ``[..., *O]``.
        moments: As :func:`init_obs_moments` makes them.
        clip: As in :func:`normalize`.
    """
    return jax.tree.map(lambda x, m: x if m is None else normalize(x, m, clip), obs, moments)


def merge_obs_moments(moments: PyTree, obs: PyTree, valid: jax.Array | None = None) -> PyTree:
    """:func:`merge_moments`, of each array that has moments.

    Args:
        moments: As :func:`init_obs_moments` makes them.
        obs: ``[..., *O]``.
        valid: As in :func:`merge_moments`.
    """

    def merge(x: jax.Array, m: Moments | None) -> Moments | None:
        return None if m is None else merge_moments(m, x, valid)

    return jax.tree.map(merge, obs, moments)


class RewardScaler(NamedTuple):
    """Divides rewards by the standard deviation of the running discounted return.

    Attributes:
        running: ``[N]``, discounted sum of the episode's rewards so far, of each environment.
        moments: ``[]``, of that sum at all steps.
    """

    running: jax.Array
    moments: Moments


def init_reward_scaler(num_envs: int, dtype: jnp.dtype | None = None) -> RewardScaler:
    """A scaler of no rewards.

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
    valid: jax.Array | None = None,
) -> tuple[jax.Array, RewardScaler]:
    """Rewards divided by the standard deviation known before them, and the scaler after them.

    A running sum that is not finite is left out of the moments and starts anew.

    Args:
        scaler: For N environments.
        reward: ``[T, N]``.
        done: Terminated or truncated, ``[T, N]``: the running sum starts anew.
        gamma: Discount of the running sum.
        clip: Bound on the absolute result; None: no bound.
        valid: Which rewards count, bool ``[T, N]``: the running sum passes over the others. None:
            all.

    Returns:
        ``(scaled reward [T, N], scaler)``.

    References:
        Detail 7 of the continuous-action details of Huang et al. 2022, "The 37 Implementation
        Details of PPO".
    """
    real = scaler.running.dtype

    def step(running, transition):
        r, d, counts = transition
        total = (running * gamma + r).astype(real)
        after = jnp.where(d | ~jnp.isfinite(total), 0, total)
        return (after if counts is None else jnp.where(counts, after, running)), total

    transitions = jnp.asarray(reward, real), done, valid
    running, totals = jax.lax.scan(step, scaler.running, transitions)
    mean = jnp.zeros((), real)  # rewards are divided and not centred, so that they keep their sign
    scaled = normalize(reward, scaler.moments._replace(mean=mean), clip)
    return scaled, RewardScaler(running, merge_moments(scaler.moments, totals, valid))
