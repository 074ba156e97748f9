"""Spaces of gymnax, Gymnasium and their like, as learners take them.

Known by the names of their classes, since each package has its own. What is made of one works on
JAX's and on NumPy's arrays, of one environment or of many: leading axes are left alone.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.trial import check_array
from purerl.records import ACTION_MASK, ActionSpace, Box, Discrete, MultiDiscrete, PyTree

Range = tuple[float, float]


class Observations(NamedTuple):
    """How a learner sees the observations of a space.

    Attributes:
        convert: ``(where, obs) -> obs``; raises TypeError, which names ``where``, for another
            shape than the space's. NumPy's arrays are new ones: an environment may write to its own
            at the next step.
        shape: Of one that was converted; a dict or tuple of shapes where it is one of arrays.
        range: Of an array of integers that became floating point, its least and largest number.
    """

    convert: Callable[[str, Any], PyTree]
    shape: PyTree
    range: Range | None = None


def observations(name: str, space: Any, *, arrays: types.ModuleType = jnp) -> Observations:
    """How a learner sees a space.

    Numbers become floating point; a discrete observation (from its start on), and each of a
    MultiDiscrete, one-hot; images and other bytes stay uint8, which networks scale by 1/255; a Dict
    a dict, a Tuple a tuple, and what is called ``action_mask`` one vector of booleans, also where
    it is a Tuple, of a mask for each choice.

    Args:
        name: Of the environment, for messages.
        space: A Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple.
        arrays: ``jax.numpy``, or ``numpy``, whose arrays then come out.

    Raises:
        TypeError: If it is another space.
    """
    return _observations(name, "", space, arrays)


def reader(space: Any, *, arrays: types.ModuleType = jnp) -> Callable[[Any], PyTree]:
    """A function that makes arrays of an observation as an environment returned it.

    They are where the space has arrays, so that a list is no tuple of numbers, and are new ones: an
    environment may write to its own at the next step. What else an observation is, is left to
    :attr:`Observations.convert`, which says what does not fit.

    Args:
        space: As :func:`observations` takes it.
        arrays: ``jax.numpy``, or ``numpy``, whose arrays then come out.
    """
    kind = type(space).__name__
    if kind == "Dict":
        named = {k: reader(x, arrays=arrays) for k, x in space.spaces.items()}

        def read_dict(obs: Any) -> PyTree:
            if not isinstance(obs, Mapping):
                return obs
            return {k: read(obs[k]) for k, read in named.items() if k in obs}

        return read_dict
    if kind == "Tuple":
        several = [reader(x, arrays=arrays) for x in space.spaces]

        def read_tuple(obs: Any) -> PyTree:
            if not isinstance(obs, tuple | list) or len(obs) != len(several):
                return obs
            return tuple(read(x) for read, x in zip(several, obs, strict=True))

        return read_tuple
    return arrays.array


def observer(space: Any) -> Callable[..., PyTree] | None:
    """:attr:`purerl.Env.observe` of a space; None of a Box of arrays, which it leaves as they are.

    Args:
        space: As :func:`observations` takes it.
    """
    if type(space).__name__ == "Box" and space.shape:
        return None
    read = reader(space)
    convert = functools.partial(observations("obs", space).convert, "obs")

    def observe(raw: Any, many: bool = False) -> PyTree:
        return (jax.vmap(convert) if many else convert)(read(raw))

    return observe


def _observations(name: str, path: str, space: Any, xp: Any) -> Observations:
    kind, at = type(space).__name__, f"{name}{path}"
    if path.endswith(f".{ACTION_MASK}"):
        return _mask(at, space, xp)
    if kind == "Dict":
        parts = {k: _observations(name, f"{path}.{k}", x, xp) for k, x in space.spaces.items()}

        def convert(where: str, obs: Any) -> PyTree:
            got = obs if isinstance(obs, Mapping) else {k: getattr(obs, k, None) for k in parts}
            missing = [k for k in parts if got.get(k) is None]
            if missing:
                raise TypeError(
                    f"{where}: an observation is a {type(obs).__name__} without {missing[0]!r}, "
                    f"wanted a dict with {', '.join(parts)}."
                )
            return {k: part.convert(f"{where}.{k}", got[k]) for k, part in parts.items()}

        return Observations(convert, {k: part.shape for k, part in parts.items()})
    if kind == "Tuple":
        several = [_observations(name, f"{path}[{i}]", x, xp) for i, x in enumerate(space.spaces)]
        return Observations(_each(several), tuple(part.shape for part in several))
    if kind in ("Discrete", "MultiDiscrete"):
        return _one_hot(space, xp)
    if kind == "MultiBinary" or kind == "Box":
        return _numbers(at, space, xp)
    raise TypeError(
        f"{at} has observations of {kind}; Box, Discrete, MultiDiscrete, MultiBinary, Dict and "
        "Tuple fit, so convert them."
    )


def _each(parts: list[Observations]) -> Callable[[str, Any], tuple[Any, ...]]:
    """Converts the parts of a Tuple."""

    def convert(where: str, obs: Any) -> tuple[Any, ...]:
        if not isinstance(obs, tuple | list) or len(obs) != len(parts):
            raise TypeError(f"{where}: an observation is no tuple of {len(parts)}.")
        pairs = zip(parts, obs, strict=True)
        return tuple(x.convert(f"{where}[{i}]", y) for i, (x, y) in enumerate(pairs))

    return convert


def _mask(at: str, space: Any, xp: Any) -> Observations:
    """One vector of booleans; the masks of a Tuple one after the other."""
    if type(space).__name__ == "Tuple":
        parts = [_mask(f"{at}[{i}]", x, xp) for i, x in enumerate(space.spaces)]
        each = _each(parts)

        def joined(where: str, obs: Any) -> Any:
            return xp.concatenate(each(where, obs), axis=-1)

        return Observations(joined, (sum(part.shape[0] for part in parts),))
    if (kind := type(space).__name__) not in ("Box", "MultiBinary", "MultiDiscrete"):
        raise TypeError(f"{at} is a {kind}, wanted a MultiBinary or Box, or a Tuple of them.")
    size = _size_of(space)

    def convert(where: str, obs: Any) -> Any:
        _check_shape(where, obs, size)
        return _flat(xp.asarray(obs), size).astype(bool)

    return Observations(convert, (int(np.prod(size)),))


def _one_hot(space: Any, xp: Any) -> Observations:
    counts, starts = _counts(space)
    inner = np.shape(getattr(space, "nvec", 0))
    values = np.concatenate([start + np.arange(n) for n, start in zip(counts, starts, strict=True)])
    which = np.repeat(np.arange(len(counts)), counts)

    def convert(where: str, obs: Any) -> Any:
        _check_shape(where, obs, inner)
        flat = _flat(xp.asarray(obs), inner)[..., which]
        return (flat == xp.asarray(values)).astype(_real(xp))

    return Observations(convert, (len(values),), (0.0, 1.0))


def _numbers(name: str, space: Any, xp: Any) -> Observations:
    shape = _size_of(space)
    as_bytes = np.dtype(getattr(space, "dtype", np.int8)) == np.uint8
    floats = jnp.issubdtype(getattr(space, "dtype", np.int8), jnp.floating)

    def convert(where: str, obs: Any) -> Any:
        _check_shape(where, obs, shape)
        x = xp.asarray(obs)
        kept = as_bytes and x.dtype == np.uint8
        x = x.astype(x.dtype if kept else _real(xp))  # NumPy copies
        return x if shape else x[..., None]

    low, high = getattr(space, "low", 0), getattr(space, "high", 1)
    range_ = None if floats or as_bytes else (float(np.min(low)), float(np.max(high)))
    return Observations(convert, shape or (1,), range_)


def actions(name: str, space: Any, *, arrays: types.ModuleType = jnp) -> tuple[Any, ActionSpace]:
    """A function from a learner's actions to the environment's, and the learner's space.

    A Box becomes vectors, [-1, 1] where it is finite; Discrete and MultiDiscrete begin at 0; of
    MultiBinary each is a choice of two.

    Args:
        name: Of the environment, for messages.
        space: A Box, Discrete, MultiDiscrete or MultiBinary.
        arrays: ``jax.numpy``, or ``numpy``, whose arrays then come out.

    Raises:
        TypeError: If it is another space.
    """
    kind, xp = type(space).__name__, arrays
    if kind == "Discrete":
        (count,), (start,) = _counts(space)
        return (lambda action: action + start if start else action), Discrete(int(count))
    if kind in ("MultiDiscrete", "MultiBinary"):
        counts, starts = _counts(space)
        inner, first = _size_of(space), xp.asarray(starts)

        def to_env(action: Any) -> Any:
            action = action + first if any(starts) else action
            return action.reshape(*action.shape[:-1], *inner)

        return to_env, MultiDiscrete(tuple(int(n) for n in counts))
    if kind == "Box":
        return _box(space, xp)
    raise TypeError(
        f"{name} has actions of {kind}; Discrete, MultiDiscrete, MultiBinary and Box fit, so "
        "convert actions."
    )


def _box(space: Any, xp: Any) -> tuple[Any, ActionSpace]:
    inner = tuple(space.shape)
    shape = (int(np.prod(inner)),) if len(inner) > 1 else inner
    low, high = (np.broadcast_to(np.asarray(b, float), inner) for b in (space.low, space.high))
    low, high = low.reshape(shape), high.reshape(shape)
    finite = np.isfinite(low) & np.isfinite(high)
    least, most = np.where(finite, low, -1), np.where(finite, high, 1)
    middle, half = (least + most) / 2, (most - least) / 2

    def to_env(action: Any) -> Any:
        offset, scale, lowest, highest = (
            xp.asarray(x, _real(xp)) for x in (middle, half, low, high)
        )
        action = xp.clip(offset + scale * action, lowest, highest)
        return action.reshape(*action.shape[: action.ndim - len(shape)], *inner)

    return to_env, Box(shape, np.where(finite, -1, low), np.where(finite, 1, high))


def _counts(space: Any) -> tuple[list[int], list[int]]:
    """How many values each entry of a discrete space has, and the first of them."""
    kind = type(space).__name__
    if kind == "Discrete":
        return [int(space.n)], [int(getattr(space, "start", 0))]
    nvec = np.full(_size_of(space), 2) if kind == "MultiBinary" else np.asarray(space.nvec)
    start = getattr(space, "start", None)
    starts = np.zeros_like(nvec) if start is None else np.broadcast_to(start, nvec.shape)
    return [int(n) for n in nvec.flat], [int(x) for x in starts.flat]


def _size_of(space: Any) -> tuple[int, ...]:
    return _as_tuple(space.n if type(space).__name__ == "MultiBinary" else space.shape)


def _as_tuple(n: Any) -> tuple[int, ...]:
    return (int(n),) if np.ndim(n) == 0 else tuple(int(x) for x in n)


def _check_shape(where: str, obs: Any, shape: tuple[int, ...]) -> None:
    got = np.shape(obs)
    lead = 0 if isinstance(obs, jax.Array) else max(0, len(got) - len(shape))  # NumPy's: of many
    if got[lead:] != shape:
        check_array(f"{where}: an observation", obs, shape)


def _flat(x: Any, inner: tuple[int, ...]) -> Any:
    """With one last axis in place of those of a space."""
    return x.reshape(*x.shape[: x.ndim - len(inner)], -1)


def _real(xp: Any) -> Any:
    """The floating-point type of a learner's numbers."""
    return jnp.result_type(float) if xp is jnp else jax.dtypes.canonicalize_dtype(float)
