"""Checks of what users pass in: messages say what was got, what was wanted and how to mend it.

Configurations may hold tracers (a sweep puts them there), so values are checked only where they
are Python numbers. Shapes and dtypes are known while tracing and are always checked.
"""

from typing import Any

import jax
import jax.numpy as jnp

from purerl.records import (
    ActionSpace,
    Box,
    Discrete,
    OffPolicyBatch,
    OnPolicyBatch,
    PyTree,
    Rollout,
)


def check_rollout(rollout: Rollout, action_space: ActionSpace) -> None:
    """Raises ValueError, naming the field, unless shapes and dtypes are those of a Rollout.

    Args:
        rollout: As given to ``update``.
        action_space: What the algorithm was built for.
    """
    if jnp.ndim(rollout.reward) != 2:
        raise ValueError(
            f"rollout.reward has shape {jnp.shape(rollout.reward)}, wanted [T, N] (time steps, "
            "environments); for a single environment add an axis: reward[:, None]."
        )
    lead = jnp.shape(rollout.reward)
    for name in ("log_prob", "terminated", "truncated", "episode_step"):
        _check_shape(f"rollout.{name}", getattr(rollout, name), lead, "as rollout.reward")
    for name in ("terminated", "truncated"):
        _check_kind(f"rollout.{name}", getattr(rollout, name), jnp.bool_, "bool")
    _check_kind("rollout.episode_step", rollout.episode_step, jnp.integer, "integer")
    for name in ("reward", "log_prob"):
        _check_kind(f"rollout.{name}", getattr(rollout, name), jnp.floating, "floating point")
    obs_shape = jnp.shape(rollout.obs)
    if obs_shape[:2] != lead:
        raise ValueError(
            f"rollout.obs has shape {obs_shape}, wanted {lead} + observation shape, since "
            f"rollout.reward has shape {lead}."
        )
    _check_shape("rollout.next_obs", rollout.next_obs, obs_shape, "as rollout.obs")
    if isinstance(action_space, Discrete):
        _check_shape("rollout.action", rollout.action, lead, "for discrete actions")
        _check_kind("rollout.action", rollout.action, jnp.integer, "integer (discrete actions)")
    else:
        wanted = lead + tuple(action_space.shape)
        _check_shape("rollout.action", rollout.action, wanted, f"for {action_space.shape} actions")
        _check_kind("rollout.action", rollout.action, jnp.floating, "floating point (Box actions)")


def check_batch(batch: OffPolicyBatch) -> None:
    """Raises ValueError, naming the field, unless shapes and dtypes are those of an OffPolicyBatch.

    Args:
        batch: As given to ``update``; with discrete actions.
    """
    if jnp.ndim(batch.reward) != 1:
        raise ValueError(
            f"batch.reward has shape {jnp.shape(batch.reward)}, wanted [B]; flatten time and "
            "environments: reward.reshape(-1)."
        )
    lead = jnp.shape(batch.reward)
    for name in ("action", "discount", "weight", "indices"):
        _check_shape(f"batch.{name}", getattr(batch, name), lead, "as batch.reward")
    for name in ("reward", "discount", "weight"):
        _check_kind(f"batch.{name}", getattr(batch, name), jnp.floating, "floating point")
    for name in ("action", "indices"):
        _check_kind(f"batch.{name}", getattr(batch, name), jnp.integer, "integer")
    obs_shape = jnp.shape(batch.obs)
    if obs_shape[:1] != lead:
        raise ValueError(
            f"batch.obs has shape {obs_shape}, wanted {lead} + observation shape, since "
            f"batch.reward has shape {lead}."
        )
    _check_shape("batch.next_obs", batch.next_obs, obs_shape, "as batch.obs")


def _check_shape(name: str, array: Any, wanted: tuple[int, ...], why: str) -> None:
    if jnp.shape(array) != wanted:
        raise ValueError(f"{name} has shape {jnp.shape(array)}, wanted {wanted} ({why}).")


def _check_kind(name: str, array: Any, kind: Any, wanted: str) -> None:
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, kind):
        raise ValueError(f"{name} has dtype {dtype}, wanted {wanted}; convert it with astype.")


def check_on_policy_batch(batch: OnPolicyBatch) -> None:
    """Raises ValueError, naming the field, unless a policy loss can read the batch.

    Args:
        batch: With ``obs``, ``action``, ``log_prob`` and ``advantage``.
    """
    size = jnp.shape(batch.obs)[:1]
    if not size:
        raise ValueError("batch.obs has no axes, wanted [B, *O], one row a sample.")
    for name in ("log_prob", "advantage"):
        _check_shape(f"batch.{name}", getattr(batch, name), size, "one number a row of batch.obs")
        _check_kind(f"batch.{name}", getattr(batch, name), jnp.floating, "floating point")
    if jnp.shape(batch.action)[:1] != size:
        raise ValueError(
            f"batch.action has shape {jnp.shape(batch.action)}, wanted {size} + action shape, one "
            f"row for each of batch.obs, which has shape {jnp.shape(batch.obs)}."
        )


def check_like(name: str, tree: PyTree, like: PyTree, like_name: str) -> None:
    """Raises ValueError, with both, unless the two trees have the same leaves' shapes.

    Args:
        name: Of ``tree``, for the message.
        tree: Arrays, or their ``ShapeDtypeStruct``.
        like: What it should look like.
        like_name: Of ``like``.
    """
    got, wanted = (jax.tree.map(jnp.shape, x) for x in (tree, like))
    if got != wanted:
        raise ValueError(f"{name} has shapes {got}, wanted those of {like_name}, {wanted}.")


def check_action_space(action_space: ActionSpace) -> None:
    """Raises TypeError unless it is a ``Discrete`` or a vector-valued ``Box``.

    Args:
        action_space: As given to an algorithm's builder.
    """
    if isinstance(action_space, Discrete):
        return
    if not isinstance(action_space, Box):
        raise TypeError(
            f"action_space is a {type(action_space).__name__}, wanted purerl.Discrete or "
            "purerl.Box; make_env(name).action_space is one."
        )
    if len(action_space.shape) != 1:
        raise TypeError(
            f"action_space has actions of shape {action_space.shape}, wanted vectors (D,); "
            "reshape the action inside the environment."
        )


def check_key(key: Any) -> None:
    """Raises TypeError unless ``key`` is one typed PRNG key.

    Args:
        key: What a user passed as a key.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        kind = getattr(key, "dtype", type(key).__name__)
        raise TypeError(f"key is a {kind}, wanted a typed PRNG key: jax.random.key(seed).")
    if key.shape != ():
        raise ValueError(
            f"key has shape {key.shape}, wanted one key; for many seeds map over them: "
            "jax.jit(purerl.vectorize(train))(keys)."
        )
