"""A rollout as samples with advantages and targets."""

from typing import Any

import jax
import jax.numpy as jnp

from purerl.config import Number
from purerl.pieces import returns, rows
from purerl.policies.acting import apply_network
from purerl.records import OnPolicyBatch, PyTree, Rollout


def flatten_time(tree: PyTree) -> PyTree:
    """``[T, N, ...]`` to ``[T * N, ...]``, for every leaf.

    Args:
        tree: Arrays ``[T, N, ...]``.
    """
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def values(network: Any, params: PyTree, rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """V(s_t) and V(s_{t+1}) of a rollout, the latter before any reset.

    Args:
        network: A flax module ``obs [B, *O] -> (distribution, value [B])``.
        params: Its parameters.
        rollout: ``[T, N]``.

    Returns:
        ``(value [T, N], next_value [T, N])``.
    """
    lead = rollout.reward.shape
    obs, next_obs = flatten_time((rollout.obs, rollout.next_obs))
    value = apply_network(network, params, obs)[1]
    next_value = apply_network(network, params, next_obs)[1]
    dtype = jnp.result_type(value, rollout.reward)  # a network's precision may be another one
    return value.reshape(lead).astype(dtype), next_value.reshape(lead).astype(dtype)


def on_policy_batch(
    network: Any,
    params: PyTree,
    rollout: Rollout,
    gamma: Number,
    gae_lambda: Number,
    normalize: bool = False,
    n_step: int | None = None,
) -> OnPolicyBatch:
    """A rollout as samples with advantages, and the returns that are the critic's targets.

    Args:
        network: ``obs [B, *O] -> (distribution, value [B])``.
        params: The parameters that collected the rollout.
        rollout: ``[T, N]``, of JAX's or NumPy's arrays.
        gamma: Discount factor.
        gae_lambda: GAE's lambda; the targets are lambda-returns.
        normalize: Whether to :func:`standardize` the advantages; the targets are not changed.
        n_step: Instead of GAE: returns of so many rewards; the advantages are these minus V.

    Returns:
        Samples ``[T * N]``, of JAX's arrays.
    """
    rollout = rows.filled(jax.tree.map(jnp.asarray, rollout))
    value, next_value = values(network, params, rollout)
    flags = rollout.terminated, rollout.truncated
    advantage = returns.gae(rollout.reward, value, next_value, *flags, gamma, gae_lambda)
    played = rollout.obs, rollout.action, rollout.log_prob
    valid = None if rollout.valid is None else rollout.valid.reshape(-1)
    batch = OnPolicyBatch(*flatten_time((*played, value, advantage, advantage + value)))
    batch = batch._replace(valid=valid)
    if n_step is not None:
        target = returns.n_step_return(rollout.reward, next_value, *flags, gamma, n_step)
        target = target.reshape(-1)
        batch = batch._replace(target=target, advantage=target - batch.value)
    if normalize:
        batch = batch._replace(advantage=standardize(batch.advantage, valid))
    return batch


def standardize(x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Mean 0 and (population) standard deviation 1; exactly 0 where all are equal.

    Args:
        x: ``[B]``, or of any shape.
        weights: How much each counts in mean and deviation, shaped like ``x``; 0 or False: not at
            all, and the result is that of the least one. None: all the same.

    Example:
        >>> import jax.numpy as jnp
        >>> standardize(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0])).tolist()[:2]
        [-1.0, 1.0]
    """
    if weights is not None:
        x = jnp.where(weights > 0, x, jnp.min(x, initial=jnp.inf, where=weights > 0))
    # The mean of equal numbers is rounded, and the deviations from it would be all that is left;
    # but a mean is never below the least number or above the greatest one.
    x = x - jnp.clip(jnp.average(x, weights=weights), jnp.min(x), jnp.max(x))
    x = x - jnp.average(x, weights=weights)
    variance = jnp.var(x) if weights is None else jnp.average(jnp.square(x), weights=weights)
    return x / (jnp.sqrt(variance) + 1e-8)


def explained_variance(
    value: jax.Array, target: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """1 - var(target - value) / var(target): 1 for a perfect critic, 0 for a constant one.

    Of targets that are all equal nothing can be explained: 0.

    Args:
        value: ``[B]``.
        target: ``[B]``.
        valid: Which of them count, bool ``[B]``; None: all.
    """
    least, most = jnp.min(target), jnp.max(target)
    if valid is not None:
        least = jnp.min(target, initial=jnp.inf, where=valid)
        most = jnp.max(target, initial=-jnp.inf, where=valid)
    spread = jnp.where(least == most, 1, jnp.var(target, where=valid))
    return jnp.where(least == most, 0, 1 - jnp.var(target - value, where=valid) / spread)
