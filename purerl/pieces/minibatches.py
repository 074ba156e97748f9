"""Shuffled minibatches."""

import jax
import jax.numpy as jnp

from purerl.config import check_integer
from purerl.pieces.rows import in_front
from purerl.pieces.sequences import take_sequences
from purerl.records import PyTree, Sequences


def permutation(key: jax.Array, n: int) -> jax.Array:
    """A pseudo-random permutation of ``0 ... n - 1``, without a sort.

    A keyed bijection of ``[0, 2^k)``, rounds of multiplication by odd numbers and xor-shifts, is
    applied again to what falls outside ``[0, n)`` until all is inside. ``jax.random.permutation``
    sorts, which takes a large part of a small PPO update; this is as even for shuffling data (each
    pair of positions is tested), but reaches at most 2^64 (JAX's keys) of the n! permutations.

    Args:
        key: PRNG key.
        n: Number of elements, at least 1.

    Returns:
        int32 ``[n]``.

    Example:
        >>> import jax
        >>> sorted(permutation(jax.random.key(0), 5).tolist())
        [0, 1, 2, 3, 4]
    """
    bits = max(1, (n - 1).bit_length())
    mask = jnp.uint32((1 << bits) - 1)
    # A round mixes less where a word has few bits; each pair of positions is tested to be even.
    rounds = 10 if bits < 8 else 6
    constants = jax.random.bits(key, (rounds, 2), jnp.uint32)

    def mix(x):
        for i in range(rounds):
            x = (x + constants[i, 0]) & mask
            x = (x * (constants[i, 1] | 1)) & mask
            x = x ^ (x >> ((bits + 1) // 2))
        return x

    x = mix(jnp.arange(n, dtype=jnp.uint32))
    if n < 1 << bits:
        x = jax.lax.while_loop(lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, mix(x), x), x)
    return x.astype(jnp.int32)


def minibatches(
    key: jax.Array,
    batch: PyTree,
    count: int,
    shuffle: bool = True,
    valid: jax.Array | None = None,
) -> PyTree:
    """Splits a batch into ``count`` minibatches of equal size; sequences stay whole.

    Args:
        key: PRNG key of the shuffle.
        batch: JAX's or NumPy's arrays ``[B, ...]``; its ``obs`` may be :class:`purerl.Sequences`.
        count: Number of minibatches; must divide B, or the number of sequences.
        shuffle: Whether to shuffle first.
        valid: Which samples count, bool ``[B]``: each minibatch gets its share of them. None: all.
            Sequences are shared out evenly, whatever counts in them.

    Returns:
        The same pytree with JAX's arrays ``[count, B / count, ...]``.

    Raises:
        ValueError: If ``count`` does not divide B, or the number of sequences.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> split = minibatches(jax.random.key(0), {"x": jnp.arange(6)}, 2, shuffle=False)
        >>> split["x"].tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    check_integer("minibatches", "count", count)
    batch = jax.tree.map(jnp.asarray, batch)
    if isinstance(getattr(batch, "obs", None), Sequences):
        return _of_sequences(key, batch, count, shuffle)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % count:
        raise ValueError(
            f"a batch of {size} samples cannot be split into {count} equal minibatches; choose "
            "a number of minibatches that divides num_envs * rollout_length."
        )
    if count > 1 and (shuffle or valid is not None):
        order = permutation(key, size) if shuffle else jnp.arange(size)
        order = order if valid is None else in_front(order, valid, count)
        batch = jax.tree.map(
            lambda x: x.at[order].get(mode="promise_in_bounds", unique_indices=True), batch
        )
    return jax.tree.map(lambda x: x.reshape(count, size // count, *x.shape[1:]), batch)


def _of_sequences(key: jax.Array, batch: PyTree, count: int, shuffle: bool) -> PyTree:
    size = batch.obs.start.shape[1]
    if size % count:
        raise ValueError(
            f"{size} sequences cannot be split into {count} equal minibatches; with a memory "
            "minibatches are sets of environments: choose a number that divides num_envs (times "
            "rollout_length / sequence_length, where that is given)."
        )
    order = permutation(key, size) if shuffle and count > 1 else jnp.arange(size)
    return take_sequences(batch, order.reshape(count, -1))
