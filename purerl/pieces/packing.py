"""Small arrays packed into few, so that a loop carries and writes two arrays instead of a dozen.

A small program on an accelerator is bound by the number of its kernels, and each array that a scan
carries or writes takes one of its own. A CPU gains nothing by it (measured: 0 to 2 % of PPO's speed
lost), so there every leaf stays by itself.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records import PyTree, is_clock

SMALL = 64  # elements of a leaf, at most; larger ones are left as they are
SHORT = 2**16  # elements of an array that joins others for a reduction, at most


class Packing(NamedTuple):
    """How trees of one structure are packed; no bit of them changes.

    Attributes:
        pack: ``(tree) -> arrays [..., W]``: all small leaves of each floating-point type in one,
            through which gradients pass; all small integers and booleans as words of 32
            bits; and each other leaf, by itself, as those of clocks are, which are never batched.
        unpack: The inverse.
    """

    pack: Callable[[PyTree], list[jax.Array]]
    unpack: Callable[[Sequence[jax.Array]], PyTree]


def pays() -> bool:
    """Whether programs gain by packed arrays: on accelerators."""
    return jax.default_backend() != "cpu"


def make_packing(tree: PyTree, axes: int, packed: bool | None = None) -> Packing:
    """A packing of trees like this one, with any leading axes.

    Args:
        tree: Arrays, or their shapes and dtypes.
        axes: How many leading axes these have, which are no part of what is packed.
        packed: Whether to pack; None: where it :func:`pays`.

    Example:
        >>> import jax.numpy as jnp
        >>> tree = {"x": jnp.ones((2, 3)), "on": jnp.array([True, False]), "t": jnp.zeros(2, int)}
        >>> packing = make_packing(tree, 1, packed=True)
        >>> [x.shape for x in packing.pack(tree)]
        [(2, 2), (2, 3)]
        >>> packing.unpack(packing.pack(tree))["on"].tolist()
        [True, False]
    """
    kinds = [jax.ShapeDtypeStruct(x.shape[axes:], x.dtype) for x in jax.tree.leaves(tree)]
    structure = jax.tree.structure(tree)
    nodes = jax.tree.leaves(tree, is_leaf=is_clock)
    of_clock = [is_clock(node) for node in nodes for _ in jax.tree.leaves(node)]
    alone: list[int] = []  # leaves that are not packed
    together: dict[Any, list[int]] = {}  # and those that are, by the type that they get
    packed = pays() if packed is None else packed
    for i, kind in enumerate(kinds):
        small = packed and 0 < math.prod(kind.shape) <= SMALL and not of_clock[i]
        as_type = _packed_type(kind.dtype) if small else None
        (alone if as_type is None else together.setdefault(as_type, [])).append(i)

    def pack(tree: PyTree) -> list[jax.Array]:
        leaves = jax.tree.leaves(tree)
        flat = [[_flatten(leaves[i], kinds[i].ndim) for i in group] for group in together.values()]
        return [jnp.concatenate(x, axis=-1) for x in flat] + [leaves[i] for i in alone]

    def unpack(packed: Sequence[jax.Array]) -> PyTree:
        leaves = dict(zip(alone, packed[len(together) :], strict=True))
        for x, group in zip(packed, together.values(), strict=False):
            ends = np.cumsum([_width(kinds[i]) for i in group])
            parts = jnp.split(x, ends[:-1], axis=-1)
            leaves |= {i: _restore(part, kinds[i]) for i, part in zip(group, parts, strict=True)}
        return jax.tree.unflatten(structure, [leaves[i] for i in range(len(kinds))])

    return Packing(pack, unpack)


def packed_scan(
    step: Callable[[Any, Any], tuple[Any, PyTree]],
    start: Any,
    inputs: PyTree,
    length: int | None = None,
    *,
    axes: int = 0,
    unroll: int = 1,
) -> tuple[Any, PyTree]:
    """``jax.lax.scan`` whose carry is packed, and whose results are written so.

    Args:
        step: ``(carry, row of the inputs) -> (carry, results)``.
        start: The first carry.
        inputs: Leaves ``[T, ...]``.
        length: T, if there are none.
        axes: Leading axes of each result that are no part of what is packed.
        unroll: Steps in one turn of the loop, where packing :func:`pays`: then a turn's counter
            and copies are those of several steps.

    Returns:
        ``(carry, results [T, ...])``.
    """
    carried = make_packing(start, 0)
    written: list[Packing] = []  # known when the step is traced

    def packed(carry, row):
        carry, results = step(carried.unpack(carry), row)
        results = jax.tree.map(jnp.asarray, results)
        written.append(make_packing(results, axes))
        return carried.pack(carry), written[-1].pack(results)

    turn = unroll if pays() else 1
    carry, rows = jax.lax.scan(packed, carried.pack(start), inputs, length, unroll=turn)
    return carried.unpack(carry), written[-1].unpack(rows)


def joined(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays for a reduction over all of their elements: short ones of one dtype as one vector, so
    that these are one reduction, to compile and to run.

    Args:
        arrays: Of any shapes.
    """
    short: dict[Any, list[jax.Array]] = {}
    for x in arrays:
        if x.size <= SHORT:
            short.setdefault(x.dtype, []).append(jnp.ravel(x))
    return [jnp.concatenate(x) for x in short.values()] + [x for x in arrays if x.size > SHORT]


def total(arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of all elements of all arrays.

    Args:
        arrays: At least one, of any shapes.
    """
    return functools.reduce(jnp.add, [jnp.sum(x) for x in joined(arrays)])


def _packed_type(dtype: Any) -> Any:
    """What leaves of a type are packed as; None: they are not."""
    if jnp.issubdtype(dtype, jnp.floating):
        return dtype
    whole = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    return jnp.uint32 if whole else None


def _flatten(x: jax.Array, ndim: int) -> jax.Array:
    """``[..., *shape] -> [..., W]``, of the packed type; ``ndim`` axes are packed."""
    lead, dtype = x.shape[: x.ndim - ndim], x.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        x = x if dtype.itemsize >= 4 else x.astype(jnp.int32)
        x = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return x.reshape(*lead, -1)


def _width(kind: jax.ShapeDtypeStruct) -> int:
    return jax.eval_shape(lambda x: _flatten(x, x.ndim), kind).size


def _restore(x: jax.Array, kind: jax.ShapeDtypeStruct) -> jax.Array:
    """The inverse of :func:`_flatten`."""
    lead, dtype = x.shape[:-1], kind.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return x.reshape(*lead, *kind.shape)
    if dtype.itemsize > 4:
        return jax.lax.bitcast_convert_type(x.reshape(*lead, *kind.shape, -1), dtype)
    words = jnp.int32 if dtype.itemsize < 4 else dtype
    return jax.lax.bitcast_convert_type(x, words).astype(dtype).reshape(*lead, *kind.shape)
