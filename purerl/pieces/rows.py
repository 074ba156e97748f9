"""Rows of a rollout that are no transitions: the step that a vectorized environment spends on its
own reset. They leave every mean, minibatch and return as if they were not there.

``valid`` says which rows are transitions; None, where all are, costs nothing.
"""

import jax
import jax.numpy as jnp

from purerl.records import Rollout


def mean(x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """The mean of the valid rows; 0 if there is none.

    Args:
        x: ``[B]``.
        valid: bool ``[B]``; None: all.

    Example:
        >>> import jax.numpy as jnp
        >>> float(mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
        2.0
    """
    if valid is None:
        return jnp.mean(x)
    return jnp.sum(jnp.where(valid, x, 0)) / jnp.maximum(jnp.sum(valid), 1)


def share(valid: jax.Array | None) -> float | jax.Array:
    """By what a mean over all rows, in which the others are zero, becomes that of the valid ones.

    Args:
        valid: bool ``[B]``; None: all.
    """
    return 1.0 if valid is None else valid.size / jnp.maximum(jnp.sum(valid), 1)


def filled(rollout: Rollout) -> Rollout:
    """A rollout whose invalid rows hold a valid one, so that nothing strange can be computed of
    them; what precedes such a row is at its end, as if the rollout ended there.

    Args:
        rollout: ``[T, N]``, as JAX's arrays.
    """
    valid = rollout.valid
    if valid is None:
        return rollout
    first = jnp.argmax(valid.reshape(-1))

    def fill(x: jax.Array) -> jax.Array:
        some = x.reshape(-1, *x.shape[2:])[first]
        return jnp.where(valid.reshape(*valid.shape, *[1] * some.ndim), x, some[None, None])

    gap = jnp.concatenate([~valid[1:], jnp.zeros_like(valid[:1])])
    full = jax.tree.map(fill, rollout._replace(valid=None))
    return full._replace(truncated=full.truncated | gap, valid=valid)


def in_front(order: jax.Array, valid: jax.Array, count: int) -> jax.Array:
    """A permutation in which each of ``count`` equal parts gets its share of the valid rows.

    Args:
        order: A permutation of the rows, ``[B]``.
        valid: bool ``[B]``.
        count: Divides B.

    Returns:
        ``[B]``: within the valid rows the order is kept, and so within the others.

    Example:
        >>> import jax.numpy as jnp
        >>> valid = jnp.array([True, False, True, True, False, True])
        >>> in_front(jnp.arange(6), valid, 2).tolist()
        [0, 3, 1, 2, 5, 4]
    """
    kept = valid[order]
    ahead = jnp.cumsum(kept) - 1
    behind = jnp.sum(kept) + jnp.cumsum(~kept) - 1
    place = jnp.where(kept, ahead, behind)
    first = jnp.zeros_like(order).at[place].set(order, unique_indices=True)
    return first.reshape(-1, count).T.reshape(-1)
