r"""Replay buffers: uniform and prioritized, over any pytree of items.

A buffer is a ring of ``capacity`` places. Adding N items writes N places and nothing else, sampling
reads B; nothing is ever copied as a whole, under ``jit``, ``scan`` and ``vmap``. For
transitions, see :mod:`purerl.replay.transitions`.

Prioritized replay (proportional) draws item i with probability

.. math::
    P(i) = \frac{p_i^\alpha}{\sum_k p_k^\alpha}, \qquad p_i = |\delta_i| + \epsilon

and weighs it with :math:`w_i = (C P(i))^{-\beta} / \max_j w_j`, the maximum being that over the
whole buffer, so :math:`w_i = (\min_j P(j) / P(i))^\beta`. A tree holds the sums and the minima of
:math:`p^\alpha`; drawing and updating touch one node a level.

References:
    Schaul et al. 2016, "Prioritized Experience Replay", section 3.3, algorithm 1.

Differs from:
    The paper and most implementations hold a binary tree; see :mod:`purerl.replay.tree`. Lecture
    notes in circulation raise the priority to the power of alpha twice, in :math:`p_i` and in
    :math:`P(i)`; here, as in the paper, once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.config import Number, check_integer, check_range
from purerl.records import Cursor, PyTree
from purerl.replay.tree import draw, empty_tree, set_leaves, stratified, take


class ReplayState(NamedTuple):
    """State of a :class:`Replay` buffer.

    Attributes:
        items: Leaves ``[C, ...]``.
        cursor: Where the next item goes; unbatched under ``purerl.vectorize``.
        tree: The :class:`purerl.replay.tree.Tree` of prioritized replay; None for uniform replay.
    """

    items: PyTree
    cursor: Cursor
    tree: Any


class Sample(NamedTuple):
    """Items drawn from a buffer.

    Attributes:
        indices: Their places, ``[B]`` int32.
        weight: Importance weights in (0, 1], ``[B]``.
    """

    indices: jax.Array
    weight: jax.Array


class Replay(NamedTuple):
    """A replay buffer as pure functions; :func:`uniform` and :func:`prioritized` make one.

    Attributes:
        init: ``(item) -> state``; shapes and dtypes of one item.
        add: ``(state, items [N, ...], valid=None) -> state``; N at most the capacity. An item that
            is not ``valid`` (bool ``[N]``) has a place but no priority: prioritized replay never
            draws it, uniform replay does.
        sample: ``(state, key, size, *, progress) -> Sample``.
        update_priorities: ``(state, indices [B], td_error [B]) -> state``.
        capacity: C, the number of places.
    """

    init: Callable[..., ReplayState]
    add: Callable[..., ReplayState]
    sample: Callable[..., Sample]
    update_priorities: Callable[..., ReplayState]
    capacity: int


def uniform(capacity: int) -> Replay:
    """Uniform replay: items are drawn with replacement and equal probability.

    Args:
        capacity: C, how many items are held; the oldest are overwritten.

    Returns:
        The buffer as functions; its priorities are not used.

    Raises:
        ValueError: If the capacity is no positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> replay = uniform(3)
        >>> state = replay.add(replay.init(jnp.float32(0)), jnp.array([1.0, 2.0]))
        >>> state = replay.add(state, jnp.array([3.0, 4.0]))
        >>> state.items.tolist()
        [4.0, 2.0, 3.0]
        >>> sample = replay.sample(state, jax.random.key(0), 5)
        >>> sample.weight.tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    check_integer("uniform", "capacity", capacity)

    def init(item: PyTree) -> ReplayState:
        return _empty(item, capacity, None)

    def add(state: ReplayState, items: PyTree, valid: jax.Array | None = None) -> ReplayState:
        return _add(state, items, capacity)[0]

    def sample(state: ReplayState, key: jax.Array, size: int, *, progress: Number = 0) -> Sample:
        # Of 2^32 numbers, so one of C items is drawn more often than another by C / 2^32 at most.
        index = jax.random.bits(key, (size,), jnp.uint32) % state.cursor.size.astype(jnp.uint32)
        return Sample(index.astype(jnp.int32), jnp.ones(size))

    return Replay(init, add, sample, lambda state, *_: state, capacity)


def prioritized(
    capacity: int, *, alpha: Number = 0.6, beta: Number = 0.4, eps: Number = 1e-6
) -> Replay:
    """Prioritized replay: items with a large TD error are drawn more often, and weighed less.

    A new item has the largest priority so far. An index that occurs several times in one update
    gets the largest of its new priorities. An item whose TD error is not finite gets the smallest
    priority in the buffer, so that it is seldom drawn again: its update is refused each time.

    Args:
        capacity: C, how many items are held; the oldest are overwritten.
        alpha: Exponent of the priorities; 0 is uniform replay.
        beta: Exponent of the importance weights at the start of the run; rises linearly to 1.
        eps: Added to the absolute TD error, so that every item keeps a chance; with 0, one
            whose error is exactly 0 is never drawn again.

    Returns:
        The buffer as functions.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> replay = prioritized(4, alpha=1.0, beta=1.0, eps=0.0)
        >>> state = replay.add(replay.init(jnp.float32(0)), jnp.arange(4.0))
        >>> state = replay.update_priorities(state, jnp.array([0, 1]), jnp.array([3.0, -2.0]))
        >>> state.tree.leaves.tolist()
        [3.0, 2.0, 1.0, 1.0]
        >>> sample = replay.sample(state, jax.random.key(0), 7)
        >>> sample.indices.tolist()  # one out of each seventh of the sum
        [0, 0, 0, 1, 1, 2, 3]
    """
    check_integer("prioritized", "capacity", capacity)
    check_range("prioritized", "alpha", alpha, "[0, 1]")
    check_range("prioritized", "beta", beta, "[0, 1]")
    check_range("prioritized", "eps", eps, "[0, inf)")

    def init(item: PyTree) -> ReplayState:
        return _empty(item, capacity, empty_tree(capacity))

    def add(state: ReplayState, items: PyTree, valid: jax.Array | None = None) -> ReplayState:
        state, index = _add(state, items, capacity)
        priority = jnp.broadcast_to(state.tree.largest, index.shape)
        priority = priority if valid is None else jnp.where(valid, priority, 0)
        return state._replace(tree=set_leaves(state.tree, index, priority))

    def sample(state: ReplayState, key: jax.Array, size: int, *, progress: Number = 0) -> Sample:
        tree = state.tree
        index = draw(tree, *stratified(key, size))
        exponent = beta + progress * (1 - beta)
        weight = (tree.least / take(tree.leaves, index)) ** exponent
        return Sample(index, weight)

    def update_priorities(state: ReplayState, index: jax.Array, td_error: jax.Array) -> ReplayState:
        tree = state.tree
        power = (jnp.abs(td_error) + eps) ** alpha
        # The minimum is `least`; without this read the one of `sample` would cost a copy, see Tree.
        least = jnp.minimum(tree.least, take(tree.leaves, index))
        power = jnp.where(jnp.isfinite(power), power, least).astype(tree.leaves.dtype)
        tree = tree._replace(largest=jnp.maximum(tree.largest, jnp.max(power)))
        return state._replace(tree=set_leaves(tree, index, power))

    return Replay(init, add, sample, update_priorities, capacity)


# The ring.


def _empty(item: PyTree, capacity: int, tree: Any) -> ReplayState:
    items = jax.tree.map(lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.result_type(x)), item)
    zero = jnp.zeros((), jnp.int32)
    return ReplayState(items, Cursor(zero, jnp.zeros_like(zero)), tree)


def _add(state: ReplayState, items: PyTree, capacity: int) -> tuple[ReplayState, jax.Array]:
    """Writes the items at the next places, in order; the state, and these places."""
    counts = {jnp.shape(x)[:1] for x in jax.tree.leaves(items)}
    if len(counts) != 1 or () in counts:
        raise ValueError(
            f"add got leading axes {sorted(counts)}, wanted [N, ...] on every leaf; give a single "
            "item an axis: x[None]."
        )
    ((count,),) = counts
    if count > capacity:
        raise ValueError(
            f"add got {count} items at once, wanted at most the capacity, {capacity}; enlarge it, "
            "or make num_envs * rollout_length smaller."
        )

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(old.dtype)
        return old.at[index].set(new, mode="promise_in_bounds", unique_indices=True)

    start, size = state.cursor
    index = (start + jnp.arange(count, dtype=jnp.int32)) % capacity
    cursor = Cursor((start + count) % capacity, jnp.minimum(size + count, capacity))
    items = jax.tree.map(write, state.items, items)
    return state._replace(items=items, cursor=cursor), index
