"""Threefry-2x32, JAX's own random numbers, in a form that a CPU compiles sooner.

On a CPU JAX compiles each hash as a loop over its rounds: ten kernels, and thrice the time where
what is drawn has several short axes. A dozen hashes were half of what an iteration of PPO took to
compile. Here the rounds are written out, as JAX does on accelerators, and along one axis: it is one
kernel, compiled in a fourth of the time, and no slower to run. Not a bit of what is drawn differs.
It can go when a CPU compiles JAX's own as fast.
"""

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo as hlo
from jax.extend.random import define_prng_impl
from jax.interpreters import batching, mlir

from purerl.records import PyTree

NAME = "threefry2x32"  # JAX's
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # bits, of each round of even and odd groups
PARITY = 0x1BD11BDA


def unrolled(tree: PyTree) -> PyTree:
    """The same keys, with which a CPU draws the same numbers by this module.

    Args:
        tree: Arrays. Keys that are not of JAX's default kind stay as they are, and all do where
            the backend is no CPU.

    Example:
        >>> import jax
        >>> key = jax.random.key(0)
        >>> bool(jax.random.normal(unrolled(key)) == jax.random.normal(key))
        True
    """
    return _replaced(tree, NAME, UNROLLED) if pays() else tree


def pays() -> bool:
    """Whether it compiles sooner here, and draws what JAX draws: on CPUs, as JAX is configured."""
    as_here = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    return bool(as_here) and jax.default_backend() == "cpu"


def rolled(tree: PyTree) -> PyTree:
    """The inverse of :func:`unrolled`: keys as JAX has them.

    Args:
        tree: Arrays.
    """
    return _replaced(tree, UNROLLED, NAME)


def as_others_draw(whose: Any, key: jax.Array) -> jax.Array:
    """A key for an object: JAX's own unless the object is of this package.

    Code of others may compare a key's kind, put one beside its own, or draw what JAX draws by its
    own kind alone (Poisson's numbers).

    Args:
        whose: What draws with it, such as a network or a distribution.
        key: Of either kind.
    """
    module = type(whose).__module__
    ours = module.startswith("purerl.") and module != "purerl.policies.adapters"
    return key if ours else rolled(key)


_of_either: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def takes_either(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, marked as one that is known to draw with keys of either kind.

    Args:
        function: Such as a step of an environment whose source is known.
    """
    _of_either.add(function)
    return function


def as_others_take(
    function: Callable[..., Any], drawing: Callable[[PyTree], PyTree]
) -> Callable[..., Any]:
    """A function of an environment as a run calls it: JAX's own keys go in, unless it takes either.

    Args:
        function: Of arrays.
        drawing: Makes what comes out, such as a state that holds a key, of the run's kind.
    """
    return function if function in _of_either else lambda *args: drawing(function(*rolled(args)))


def _replaced(tree: PyTree, old: Any, new: Any) -> PyTree:
    """Keys of a kind as keys of another, of the same words."""

    def of(x: Any) -> Any:
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        if not is_key or jax.random.key_impl(x) != old:
            return x
        return jax.random.wrap_key_data(jax.random.key_data(x), impl=new)

    return jax.tree.map(of, tree)


def threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The block cipher: 20 rounds, with a part of the key added after every fourth.

    Args:
        key: Words of the key, uint32 ``[2]``.
        high: Upper words of what is enciphered, uint32 ``[n]`` or ``[]``.
        low: Lower words, of the same shape.

    Returns:
        Upper and lower words, of the same shape.

    References:
        Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3;
        section 4.2. The rotations are those of Random123.
    """
    words = [lax.broadcast(lax.index_in_dim(key, i, keepdims=False), low.shape) for i in range(2)]
    high, low = CIPHER.bind(*words, lax.add(high, words[0]), lax.add(low, words[1]))
    return high, low


def _rounds(_: Any, first: Any, second: Any, high: Any, low: Any) -> list[Any]:
    """The rounds as operations of XLA's, of values of one type; the key is in them once."""

    def number(x: int) -> Any:
        scalar = ir.IntegerAttr.get(ir.RankedTensorType(low.type).element_type, x)
        return hlo.constant(ir.DenseElementsAttr.get_splat(low.type, scalar))

    parts = first, second, hlo.xor(hlo.xor(first, second), number(PARITY))
    for group in range(5):
        for left in ROTATIONS[group % 2]:
            high = hlo.add(high, low)
            upper = hlo.shift_left(low, number(left))
            lower = hlo.shift_right_logical(low, number(32 - left))
            low = hlo.xor(high, hlo.or_(upper, lower))
        high = hlo.add(high, parts[(group + 1) % 3])
        low = hlo.add(low, hlo.add(parts[(group + 2) % 3], number(group + 1)))
    return [high, low]


def _batched(args: Sequence[jax.Array], axes: Sequence[int | None]) -> tuple[Any, list[int]]:
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    args = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(args, axes, strict=True)
    ]
    return CIPHER.bind(*args), [0, 0]


def _at_once(*args: jax.Array) -> Any:
    with jax.disable_jit(False):
        return jax.jit(CIPHER.bind)(*args)


# One operation of JAX's: written out as those of jax.lax, hashes were half of the operations of a
# run of PPO, and a third of the time to trace and lower it. All else has been added to the lower
# words, so the results are of their type.
CIPHER = Primitive(f"{NAME}_unrolled")
CIPHER.multiple_results = True
CIPHER.def_impl(_at_once)
CIPHER.def_abstract_eval(lambda *args: [args[-1]] * 2)
batching.primitive_batchers[CIPHER] = _batched
mlir.register_lowering(CIPHER, _rounds)


@functools.partial(jax.jit, static_argnums=1)
def _words(key: jax.Array, count: int) -> jax.Array:
    """The hashes of 0 to ``count - 1``, upper and lower words ``[count, 2]``."""
    return lax.concatenate([x[:, None] for x in _hashes(key, count)], 1)


@functools.partial(jax.jit, static_argnums=1)
def _bits(key: jax.Array, count: int) -> jax.Array:
    """32 bits of each hash of 0 to ``count - 1``, uint32 ``[count]``."""
    high, low = _hashes(key, count)
    return lax.bitwise_xor(high, low)


def _hashes(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    if count >= 2**32:
        raise ValueError(f"one key draws {count:,} numbers at once, wanted fewer than 2**32.")
    return threefry(key, jnp.zeros(count, jnp.uint32), lax.iota(jnp.uint32, count))


@jax.jit
def _folded(key: jax.Array, data: jax.Array) -> jax.Array:
    """The hash of a number, upper and lower word ``[2]``."""
    return jnp.stack(threefry(key, jnp.uint32(0), data))


def _seed(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl=NAME))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    with _apart():
        return _words(key, math.prod(shape)).reshape(*shape, 2)


def _fold_in(key: jax.Array, data: Any) -> jax.Array:
    with _apart():
        return _folded(key, data.astype(jnp.uint32))


def _random_bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    count = math.prod(shape)
    if width == 64:
        with _apart():
            high, low = jnp.moveaxis(_words(key, count).astype(jnp.uint64), 1, 0)
        return (lax.shift_left(high, jnp.uint64(32)) | low).reshape(shape)
    with _apart():
        bits = _bits(key, count)
    return bits.astype(f"uint{width}").reshape(shape)


def _apart() -> Any:
    """Context manager in which XLA does not inline calls: else it would repeat a hash in each of
    the kernels that use a part of it.
    """
    return set_xla_metadata(inlineable="false")


UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name=f"{NAME} unrolled",
    tag="fryu",
)
