"""Parameters of an environment in a run's description: to JSON, and back as they were."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.config import python_number
from purerl.host import brought

ARRAYS = (jnp.bool_, jnp.integer, jnp.floating)
WANTED = "a number, a text, an array, a function, or a tuple or dict of these"


def settled(value: Any, where: str = "env_params") -> Any:
    """A parameter as the environment gets it, now and when the run is resumed.

    Lists become tuples, JAX's arrays NumPy's, and scalars Python's: what :func:`restored` gives.

    Args:
        value: All parameters by name, or one.
        where: Which one, for the message.

    Raises:
        ValueError: If a run's description cannot hold it.
    """
    if isinstance(value, dict):
        if names := [name for name in value if not isinstance(name, str)]:
            raise ValueError(f"{where} has the name {names[0]!r}, wanted texts; make it one.")
        return {name: settled(x, f"{where}[{name!r}]") for name, x in value.items()}
    if isinstance(value, list | tuple):
        return tuple(settled(x, f"{where}[{i}]") for i, x in enumerate(value))
    value = python_number(value)
    if value is None or isinstance(value, bool | int | float | str) or callable(value):
        return value
    dtype = value.dtype if isinstance(value, np.ndarray | jax.Array) else None
    if dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in ARRAYS):
        return np.asarray(value)
    raise ValueError(
        f"{where} is a {type(value).__name__}, wanted {WANTED}; make the environment with it "
        "yourself, and give that as env."
    )


def described(value: Any) -> Any:
    """JSON-ready; functions by their import paths, if they have one.

    Args:
        value: What :func:`settled` gives.
    """
    if isinstance(value, dict):
        return {name: described(x) for name, x in value.items()}
    if isinstance(value, tuple):
        return [described(x) for x in value]
    if isinstance(value, np.ndarray):
        return {"$array": value.tolist(), "$dtype": str(value.dtype)}
    if not callable(value):
        return value
    path = brought.named(value)
    kind = "$function" if isinstance(path, str) else "$object"
    return {kind: brought.short_name(path) if kind == "$object" else path}


def restored(data: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Parameters from :func:`described`'s values; imports the functions that it names.

    Args:
        data: By name.
        given: Those that hold functions without an import path; they are taken out of it.

    Raises:
        ValueError: If one is not given.
    """
    values = {}
    for name, value in data.items():
        if name in given and "$object" in str(value):
            values[name] = settled(given.pop(name))
        else:
            values[name] = _restored(name, value)
    return values


def _restored(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(name, x) for x in value)
    if not isinstance(value, dict):
        return value
    if "$array" in value:
        return np.array(value["$array"], value["$dtype"])
    if "$function" in value:
        return brought.load(value["$function"])
    if "$object" in value:
        raise ValueError(
            f"this run was begun with {value['$object']}, a function that no import path names, in "
            f"env_params[{name!r}]; give it again (env_params={{{name!r}: ...}})."
        )
    return {key: _restored(name, x) for key, x in value.items()}
