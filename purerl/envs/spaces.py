"""What the adapters of families of environments share: actions, observations, dtypes, leniency."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records import Box, PyTree


def scaled_box(shape: tuple[int, ...], low: Any, high: Any) -> tuple[Callable[[Any], Any], Box]:
    """A function from a learner's actions to an environment's, and the learner's space.

    A component with two finite bounds is [-1, 1] to the learner; others are not scaled. What leaves
    the bounds is clipped to them.

    Args:
        shape: Of the environment's actions.
        low: Their lower bounds, a number or ``shape``.
        high: Their upper bounds.
    """
    low, high = (np.broadcast_to(np.asarray(b, float), shape) for b in (low, high))
    finite = np.isfinite(low) & np.isfinite(high)
    least, most = np.where(finite, low, -1), np.where(finite, high, 1)
    middle, half = (least + most) / 2, (most - least) / 2

    @lenient
    def to_env_action(action):
        real = jnp.result_type(float)
        offset, scale, lowest, highest = (jnp.asarray(x, real) for x in (middle, half, low, high))
        return jnp.clip(offset + scale * action, lowest, highest)

    return to_env_action, Box(shape, np.where(finite, -1, low), np.where(finite, 1, high))


def lenient(function: Callable[..., Any]) -> Callable[..., Any]:
    """A user's strictness about rank promotion is not for the code of environments."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapped


def fix_weak_types(state: PyTree) -> PyTree:
    """Weakly typed leaves (Python numbers in a reset) would make a scan's carry change its type."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)


def observation(raw: Any) -> PyTree:
    """An observation as a learner gets it: dictionaries of floating-point arrays.

    Named tuples and dataclasses become dictionaries by the names of their fields, scalars vectors
    of one. Booleans stay what they are in a leaf called ``action_mask``.

    Args:
        raw: What the environment gives.
    """
    if hasattr(raw, "_asdict"):
        raw = raw._asdict()
    elif hasattr(raw, "__dataclass_fields__"):
        raw = {name: getattr(raw, name) for name in raw.__dataclass_fields__}
    if isinstance(raw, Mapping):
        masks = {"action_mask"} & set(raw)
        converted = {name: observation(raw[name]) for name in raw if name not in masks}
        return converted | {name: jnp.asarray(raw[name], bool) for name in masks}
    return jnp.atleast_1d(jnp.asarray(raw, jnp.result_type(float)))


def shapes(obs: PyTree) -> Any:
    """The shape of an observation, or a dictionary of those of its leaves.

    Args:
        obs: An array or a (nested) dictionary of arrays.
    """
    return {name: shapes(x) for name, x in obs.items()} if isinstance(obs, dict) else obs.shape
