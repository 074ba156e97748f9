"""The tree of priorities that prioritized replay draws from.

Four branches a node: half as many levels as a binary tree, and about three times as fast on a CPU.
Drawing and updating touch one node a level, and no level is ever copied.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

BRANCHES = 4  # of each node of the tree of priorities


class Tree(NamedTuple):
    """The priorities, and above every four nodes one that holds their sum and their minimum.

    Each level is an array of its own, and what is read of one before it is written always has a
    part in what is written: otherwise XLA, not knowing which comes first, would copy the level.

    Attributes:
        leaves: p^alpha, zero where no item is, ``[>= C]``.
        nodes: Of level 1, 2, ...: ``[>= C / 4, 2]``, ``[>= C / 16, 2]``, ..., ``[4, 2]``: the sum,
            and the minimum of the leaves above zero (infinite where none is).
        largest: The largest p^alpha so far, that of a new item, ``[]``.
    """

    leaves: jax.Array
    nodes: tuple[jax.Array, ...]
    largest: jax.Array

    @property
    def total(self) -> jax.Array:
        """The sum of all leaves."""
        return jnp.sum(self.nodes[-1][:, 0])

    @property
    def least(self) -> jax.Array:
        """The smallest leaf above zero."""
        return jnp.min(self.nodes[-1][:, 1])


def empty_tree(capacity: int) -> Tree:
    """A tree of no items.

    Args:
        capacity: C.
    """
    round_up = lambda size: -(-size // BRANCHES) * BRANCHES  # noqa: E731
    sizes = [round_up(capacity)]
    while sizes[-1] > BRANCHES or len(sizes) == 1:
        sizes.append(round_up(sizes[-1] // BRANCHES))
    nothing = jnp.array([0, jnp.inf])
    nodes = tuple(jnp.broadcast_to(nothing, (size, 2)) for size in sizes[1:])
    return Tree(jnp.zeros(sizes[0]), nodes, jnp.ones(()))


def _children(level: jax.Array, node: jax.Array) -> jax.Array:
    """``[B, 4, ...]`` of the level below."""
    return take(level.reshape(-1, BRANCHES, *level.shape[1:]), node)


def set_leaves(tree: Tree, index: jax.Array, power: jax.Array) -> Tree:
    """Writes leaves, and recomputes the nodes above them from the level below.

    Nothing is added to a sum that is there, so rounding errors do not pile up.

    Args:
        tree: The priorities.
        index: ``[B]``, which items; one that occurs several times gets the largest power.
        power: ``[B]``, their p^alpha; above zero.
    """
    node = index.astype(jnp.uint32)  # unsigned: the division is a shift
    # Something below them first, then the maxima: the order of duplicates does not matter.
    leaves = put(tree.leaves, node, -power)
    leaves = leaves.at[node].max(power, mode="promise_in_bounds", wrap_negative_indices=False)
    node = node // BRANCHES
    power = _children(leaves, node)
    below = jnp.stack([power, jnp.where(power > 0, power, jnp.inf)], axis=-1)
    nodes: list[jax.Array] = []
    for level in tree.nodes:
        pair = jnp.stack([jnp.sum(below[..., 0], axis=1), jnp.min(below[..., 1], axis=1)], axis=1)
        nodes.append(put(level, node, pair))
        node = node // BRANCHES
        below = _children(nodes[-1], node)
    return Tree(leaves, tuple(nodes), tree.largest)


def stratified(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """One uniform number out of each of ``size`` equal parts of [0, 1), and one of all of it.

    Args:
        key: PRNG key.
        size: B.

    Returns:
        ``(fraction [B], fine [B])``, both in [0, 1].
    """
    within, fine = jax.random.uniform(key, (2, size))
    return (jnp.arange(size) + within) / size, fine


def draw(tree: Tree, fraction: jax.Array, fine: jax.Array) -> jax.Array:
    """The items at these fractions of the sum of all leaves, in their order.

    One number in float32 cannot tell a million items apart evenly: it knows sixteen points in each.
    So where the tree has more than six levels, ``fraction`` decides on the upper half of them, or
    six if that is more, and ``fine`` on the lower: given the node that both numbers have in common,
    the leaves below it are drawn with their probabilities, to a thousandth and independent of how
    a compiler rounds.

    A leaf that is zero is never drawn, whatever the rounding errors of the sums: among four
    children, the first whose running sum exceeds what is left is taken, or else the last, and only
    those that are not zero count.

    Args:
        tree: The priorities, at least one of them above zero.
        fraction: ``[B]`` in [0, 1].
        fine: ``[B]`` in [0, 1], independent of ``fraction``.

    Returns:
        ``[B]`` int32.
    """
    node = jnp.zeros(fraction.shape, jnp.uint32)
    rest = fraction * tree.total
    levels = (*reversed(tree.nodes), tree.leaves)
    for i, level in enumerate(levels):
        mass = _children(level, node)
        mass = mass if level is tree.leaves else mass[..., 0]
        if i == max(6, len(levels) // 2):
            rest = fine * jnp.sum(mass, axis=1)
        child, before = _choose(mass, rest)
        node, rest = BRANCHES * node + child, jnp.maximum(rest - before, 0)
    return node.astype(jnp.int32)


def _choose(mass: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which of four siblings ``[B, 4]`` holds the point ``rest`` ``[B]``, and the sum before it.

    In reductions, since XLA on a CPU computes what only consists of selections again wherever it is
    used, with the levels above it.
    """
    running = [mass[:, 0]]
    for i in range(1, BRANCHES):
        running.append(running[-1] + mass[:, i])
    place = jnp.arange(BRANCHES)[None]
    beyond = jnp.stack(running, axis=1) > rest[:, None]
    rank = jnp.where(beyond, 2 * BRANCHES - place, place)  # the first beyond, or else the last
    rank = jnp.max(jnp.where(mass > 0, rank, 0), axis=1)
    chosen = jnp.where(rank > BRANCHES, 2 * BRANCHES - rank, rank)
    before = jnp.sum(jnp.where(place < chosen[:, None], mass, 0), axis=1)
    return chosen.astype(jnp.uint32), before


def take(x: jax.Array, *index: jax.Array | slice) -> jax.Array:
    """``x[index]``, for indices that are known to be within.

    Args:
        x: ``[C, ...]``.
        index: ``[B]``, not negative; for the next axes more such, or slices.
    """
    return x.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def put(x: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """``x`` with ``value`` at ``index``, for indices that are known to be within.

    Args:
        x: ``[C, ...]``.
        index: ``[B]``, not negative.
        value: ``[B, ...]``.
    """
    return x.at[index].set(value, mode="promise_in_bounds", wrap_negative_indices=False)
