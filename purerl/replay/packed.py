r"""Items whose fields lie side by side in memory, so that drawing one touches one place.

The fields of a record in arrays of their own, ``obs [C, *O]``, ``reward [C]``, ..., lie C numbers
apart: in a large buffer each field of an item that is drawn at random costs a cache miss. Here all
fields whose numbers have the same width, such as float32 and int32, are the columns of one array of
unsigned words, and bytes and truth values those of another. Bits are kept as they are, and no more
memory is taken than by the fields apart.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from purerl.records import PyTree
from purerl.replay.tree import take


@dataclasses.dataclass(frozen=True)
class Field:
    """Place of one leaf of an item within the packed words.

    Attributes:
        array: Which array of words.
        start: Its first column.
        shape: Of the leaf.
        dtype: Of the leaf.
    """

    array: int
    start: int
    shape: tuple[int, ...]
    dtype: Any

    @property
    def stop(self) -> int:
        """The column after its last."""
        return self.start + math.prod(self.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Packed items.

    Attributes:
        words: Arrays ``[..., W]``, each of words of one width.
        layout: The item's tree structure, and a :class:`Field` for each leaf; static.
    """

    words: tuple[jax.Array, ...]
    layout: tuple[Any, tuple[Field, ...]] = dataclasses.field(metadata={"static": True})

    @property
    def fields(self) -> PyTree:
        """A pytree like an item, whose leaves say where that leaf lies."""
        return jax.tree.unflatten(*self.layout)

    @property
    def count(self) -> int:
        """The size of the last axis of items."""
        return self.words[0].shape[-2]


def empty(item: PyTree) -> Packed:
    """Shapes and dtypes of one packed item.

    Args:
        item: Arrays, or their shapes and dtypes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> empty({"a": jnp.zeros((2, 2)), "b": jnp.array(True), "c": jnp.int32(0)}).words
        (ShapeDtypeStruct(shape=(5,), dtype=uint32), ShapeDtypeStruct(shape=(1,), dtype=uint8))
    """
    leaves, treedef = jax.tree.flatten(item)
    widths: dict[Any, int] = {}  # of each array of words so far
    fields = []
    for leaf in leaves:
        dtype = jnp.result_type(leaf)
        word = _word(dtype)
        start = widths.setdefault(word, 0)
        fields.append(Field([*widths].index(word), start, jnp.shape(leaf), dtype))
        widths[word] = fields[-1].stop
    words: Any = tuple(jax.ShapeDtypeStruct((width,), word) for word, width in widths.items())
    return Packed(words, (treedef, tuple(fields)))


def pack(items: PyTree, like: Packed) -> Packed:
    """Packs items.

    Args:
        items: Leaves ``[*S, ...]``; cast to the dtypes of ``like``.
        like: Of the same fields: what :func:`empty` gave, or items packed earlier.

    Returns:
        Words ``[*S, W]``.

    Example:
        >>> import jax.numpy as jnp
        >>> items = {"a": jnp.ones((3, 2)), "b": jnp.array([True, False, True])}
        >>> packed = pack(items, empty({"a": jnp.zeros(2), "b": jnp.array(False)}))
        >>> unpack(packed)["a"].shape, unpack(packed)["b"].tolist()
        ((3, 2), [True, False, True])
    """
    treedef, fields = like.layout
    parts: list[list[jax.Array]] = [[] for _ in like.words]
    for x, field in zip(treedef.flatten_up_to(items), fields, strict=True):
        x = jnp.asarray(x).astype(field.dtype)
        lead = x.shape[: x.ndim - len(field.shape)]
        parts[field.array].append(_to_words(x).reshape(*lead, field.stop - field.start))
    return Packed(tuple(jnp.concatenate(part, axis=-1) for part in parts), like.layout)


def unpack(packed: Packed) -> PyTree:
    """The items that were packed, bit for bit.

    Args:
        packed: Words ``[*S, W]``.

    Returns:
        Leaves ``[*S, ...]``.
    """
    treedef, fields = packed.layout
    leaves = [_from_words(packed.words[f.array][..., f.start : f.stop], f) for f in fields]
    return jax.tree.unflatten(treedef, leaves)


def take_fields(packed: Packed, index: jax.Array, fields: PyTree) -> PyTree:
    """Fields of some items, reading of each array of words only the columns from the first to the
    last of them.

    Args:
        packed: Words ``[C, W]``.
        index: ``[B]``, which items; known to be within, not negative.
        fields: Any pytree out of ``packed.fields``.

    Returns:
        The same pytree of arrays ``[B, ...]``.

    Example:
        >>> import jax.numpy as jnp
        >>> items = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
        >>> packed = pack(items, empty({"a": jnp.float32(0), "b": jnp.float32(0)}))
        >>> take_fields(packed, jnp.array([1, 1, 0]), packed.fields["b"]).tolist()
        [4.0, 4.0, 3.0]
    """
    wanted: list[Field] = jax.tree.leaves(fields)
    rows = {}
    for i in {field.array for field in wanted}:
        start = min(field.start for field in wanted if field.array == i)
        stop = max(field.stop for field in wanted if field.array == i)
        rows[i] = start, take(packed.words[i], index, slice(start, stop))

    def get(field: Field) -> jax.Array:
        start, words = rows[field.array]
        return _from_words(words[:, field.start - start : field.stop - start], field)

    return jax.tree.map(get, fields)


def _word(dtype: Any) -> Any:
    """The unsigned integer of the same width; the dtype itself where there is none."""
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return jnp.dtype(f"uint{8 * dtype.itemsize}") if real or dtype == jnp.bool_ else dtype


def _to_words(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(x, _word(x.dtype))


def _from_words(words: jax.Array, field: Field) -> jax.Array:
    words = words.reshape(*words.shape[:-1], *field.shape)
    if field.dtype == jnp.bool_:
        return words.astype(bool)
    return jax.lax.bitcast_convert_type(words, field.dtype)
