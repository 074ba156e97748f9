"""Checks of what users pass in: messages say what was got, what was wanted and how to mend it.

Shapes and dtypes are known while tracing, so they are always checked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records import (
    ActionSpace,
    Box,
    Discrete,
    MultiDiscrete,
    PyTree,
    Rollout,
    Sequences,
)

AXES = {"T": "time", "N": "environments", "B": "samples", "*O": "observation", "*A": "action"}
KINDS = {"bool": jnp.bool_, "integer": jnp.integer, "floating": jnp.floating, "any": jnp.generic}
# The fields that have these axes and this kind; the first one with an axis says how long it is.
STEPS = {
    "T N floating": "reward log_prob",
    "T N bool": "terminated truncated",
    "T N integer": "episode_step",
    "T N *O any": "obs next_obs",
}
REPLAYED = {
    "B floating": "reward discount weight",
    "B integer": "action indices",
    "B *O any": "obs next_obs",
}
SAMPLES = {"B floating": "log_prob advantage", "B *A any": "action"}


def check_fields(where: str, record: Any, layout: dict[str, str], **sizes: Any) -> None:
    """Raises ValueError, naming the field, unless shapes and dtypes are those of a layout.

    Args:
        where: The record's name, for the message.
        record: Fields are arrays.
        layout: From axes and kind to the fields that have them: ``{"T N *A floating": "action"}``.
        **sizes: Lengths of axes that are known.
    """
    for text, name in ((text, name) for text, names in layout.items() for name in names.split()):
        *axes, kind = text.split()
        for path, x in by_path(getattr(record, name)).items():  # of observations, perhaps several
            known = {axis: sizes.get(_of_leaf(axis, path), axis) for axis in axes}
            got = _check_axes(f"{where}.{name}{path}", x, known)
            sizes |= {_of_leaf(axis, path): size for axis, size in got.items()}
            if not jnp.issubdtype(dtype := jnp.result_type(x), KINDS[kind]):
                raise ValueError(
                    f"{where}.{name}{path} has dtype {dtype}, wanted {kind}; convert it with "
                    "astype."
                )


def _of_leaf(axis: str, path: str) -> str:
    """Each leaf of an observation has a shape of its own; the other axes are the same for all."""
    return axis + path if axis == "*O" else axis


def _check_axes(where: str, x: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """The lengths of an array's axes; ``wanted`` has those that are known, or their names."""
    shape, axes = jnp.shape(x), list(wanted)
    single = [axis for axis in axes if axis[0] != "*"]  # the last may stand for several
    got = dict(zip(axes, (*shape[: len(single)], shape[len(single) :]), strict=False))
    fits = len(shape) >= len(single) if len(single) < len(axes) else len(shape) == len(axes)
    if not fits or any(x not in (axis, got[axis]) for axis, x in wanted.items()):
        lengths = filter(None, (str(x).strip("(,)") for x in wanted.values()))
        raise ValueError(
            f"{where} has shape {shape}, wanted [{', '.join(lengths)}], as [{', '.join(axes)}] "
            f"({', '.join(AXES[axis] for axis in axes)}); reshape it, or add the axes that it "
            "lacks: x[:, None]."
        )
    return got


def shape_of(tree: PyTree) -> Any:
    """The shape of an array, or those of a pytree's arrays.

    Args:
        tree: Arrays.
    """
    return jax.tree.map(jnp.shape, tree)


def check_samples(batch: Any) -> None:
    """Raises ValueError, naming the field, unless a policy's step can be made of a batch.

    Args:
        batch: :class:`purerl.OnPolicyBatch`.
    """
    if isinstance(batch.obs, Sequences):
        return check_fields("batch", batch, SAMPLES, B=batch.obs.start.size)
    return check_fields("batch", batch, {"B *O any": "obs"} | SAMPLES)


def check_rollout(rollout: Rollout, action_space: ActionSpace) -> None:
    """Raises ValueError, naming the field, unless shapes and dtypes are those of a Rollout.

    Args:
        rollout: As given to ``update``.
        action_space: What the algorithm was built for.
    """
    shape = getattr(action_space, "shape", ())
    kind = "floating" if isinstance(action_space, Box) else "integer"
    action = {f"T N *A {kind}": "action"} if shape else {"T N integer": "episode_step action"}
    valid = {} if rollout.valid is None else {"T N bool": f"{STEPS['T N bool']} valid"}
    check_fields("rollout", rollout, STEPS | valid | action, **{"*A": shape})


def by_path(tree: PyTree) -> dict[str, Any]:
    """All leaves by their paths.

    Args:
        tree: Arrays, or their shapes and dtypes, or their shardings.
    """
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves by their names: ``params/Dense_0/kernel``.

    Args:
        tree: Parameters.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def described(arrays: dict[str, Any]) -> dict[str, str]:
    """Dtype and shape of each array.

    Args:
        arrays: Arrays by name, or their shapes and dtypes.
    """
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


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
    """Raises TypeError unless it is a ``Discrete``, ``MultiDiscrete`` or a vector-valued ``Box``.

    Args:
        action_space: As given to an algorithm's builder.
    """
    if isinstance(action_space, Discrete | MultiDiscrete):
        return
    if not isinstance(action_space, Box):
        advice = "make_env(name).action_space is one"
        if hasattr(action_space, "nvec"):  # gymnasium's and gymnax's
            advice = f"write purerl.MultiDiscrete({tuple(map(int, np.ravel(action_space.nvec)))})"
        elif hasattr(action_space, "n"):
            advice = f"write purerl.Discrete({action_space.n})"
        elif hasattr(action_space, "low"):
            advice = f"write purerl.Box({tuple(action_space.shape)}, space.low, space.high)"
        kind = f"{type(action_space).__module__.split('.')[0]}.{type(action_space).__name__}"
        raise TypeError(
            f"action_space is a {kind}, wanted purerl.Discrete, MultiDiscrete or Box; {advice}."
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
