"""What users bring to a run: an algorithm, an environment, a network, by import path or as objects.

An import path ``package.module:object`` names what builds: for an algorithm a function
``(action_space, *, network=None, **options)`` that returns a record, for an environment a function
or class whose keyword arguments are ``env_params``, for a network a function of the action space.
"""

import dataclasses
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import docstring_parser
import jax

from purerl import config as configs
from purerl.algorithms import ALGORITHMS, Entry
from purerl.checks import by_path, described
from purerl.envs import families
from purerl.host.options import RunOptions
from purerl.records import ActionSpace, OffPolicyAlgorithm, OnPolicyAlgorithm
from purerl.training.sizes import OffPolicyLoopConfig, OnPolicyLoopConfig
from purerl.training.state import Train

Algorithm = OnPolicyAlgorithm | OffPolicyAlgorithm
SIGNATURE = "a function (action_space, *, network=None, **options with defaults)"
# How networks of others, which are not functions of parameters, become that.
WRAPS = {
    "flax.nnx": "purerl.from_nnx(lambda rngs: ...)",
    "equinox": "purerl.from_equinox(lambda key: ...)",
}
# Names that mean something else where an algorithm's options are given.
RESERVED = {
    *OnPolicyLoopConfig.specs,
    *OffPolicyLoopConfig.specs,
    *RunOptions.specs,
    # Arguments of run, sweep and resume, and what else the command line takes.
    *("experiment", "algorithm", "env", "env_params", "values", "path", "driver", "help"),
    *("seeds", "seed", "out", "overwrite", "resume", "start_from", "on_row", "distributed"),
    *("grid", "sample", "samples", "top", "memory_bytes"),
    *(name for name in dir(configs.Config) if not name.startswith("_")),
}


def named(value: Any) -> Any:
    """The import path of a function or class that has one; everything else as it is.

    Args:
        value: What a user gave for an algorithm, environment or network.
    """
    if not (inspect.isfunction(value) or inspect.isclass(value)) or value.__module__ == "__main__":
        return value
    path = f"{value.__module__}:{value.__qualname__}"
    try:
        return path if load(path) is value else value
    except ValueError:
        return value


def load(value: Any) -> Any:
    """The object that an import path names, whose module is imported; everything else as it is.

    Args:
        value: What a user gave for an algorithm, environment or network.

    Raises:
        ValueError: If there is no such module or object.
    """
    if not isinstance(value, str) or ":" not in value or families.is_named(value):
        return value
    module, _, name = value.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{value!r} cannot be imported: {error}; give package.module:object with the package's "
            "folder in PYTHONPATH (the command line also looks into the current directory), or an "
            f"environment as family:name, where the families are {', '.join(families.FAMILIES)}. "
            f"{configs.see('own.md')}"
        ) from error
    except Exception as error:
        kind = f"{type(error).__name__}: {error}"
        raise ValueError(f"{value!r} cannot be imported: {kind}; mend {module}.") from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = configs.suggest(part, [x for x in dir(found) if not x.startswith("_")])
            raise ValueError(f"{value!r}: {module} has no {part!r}. {near}")
        found = getattr(found, part)
    return found


def algorithm_entry(algorithm: Any) -> Entry:
    """Configuration and builder of an algorithm.

    Args:
        algorithm: A name, an import path, a function that builds, or a record.

    Raises:
        ValueError: If the name or import path is unknown, or an option of the function is no
            number, word, switch or tuple.
        TypeError: If it is something else.
    """
    builder = load(algorithm)
    if isinstance(builder, Algorithm):
        return Entry(configs.Config, lambda config, action_space, network=None: builder)
    if isinstance(builder, str):
        configs.check_choice("unknown algorithm", builder, ALGORITHMS)
        return ALGORITHMS[builder]
    if not callable(builder):
        advice = "; jax.jit(train.train)(key) runs a Train" if isinstance(builder, Train) else ""
        raise TypeError(
            f"algorithm is a {type(builder).__name__}, wanted a name out of purerl.ALGORITHMS, an "
            f"import path package.module:function, {SIGNATURE}, or an algorithm record{advice}. "
            f"{configs.see('own.md#an-algorithm')}"
        )

    def build(config: Any, action_space: ActionSpace, network: Any = None) -> Algorithm:
        given = {} if network is None else {"network": network}
        record = builder(action_space, **given, **vars(config))
        if not isinstance(record, Algorithm):
            raise TypeError(
                f"{_path(builder)} returned a {type(record).__name__}, wanted a "
                "purerl.OnPolicyAlgorithm or purerl.OffPolicyAlgorithm."
            )
        return record

    return Entry(_config_class(builder), build)


def network(network: Any, action_space: ActionSpace) -> Any:
    """The network that a user gave, or None for the algorithm's default one.

    Args:
        network: An import path of a function of the action space, such a function, a network with
            ``init`` and ``apply``, or None.
        action_space: Of the environment.

    Raises:
        TypeError: If it is something else.
    """
    made = load(network)
    if made is None:
        return None
    _check_wrapped(made)
    if inspect.isclass(made) or (callable(made) and not hasattr(made, "apply")):
        made = made(action_space)
        _check_wrapped(made)
    if not (hasattr(made, "init") and hasattr(made, "apply")):
        raise TypeError(
            f"network is {made!r}, wanted a purerl.NetworkConfig, a network with init(key, obs) "
            "and apply(params, obs), or a function of the action space that returns one."
        )
    return made


def _check_wrapped(made: Any) -> None:
    """Raises TypeError for a module of flax.nnx or equinox, or a class of them."""
    kind = made if inspect.isclass(made) else type(made)
    if hasattr(kind, "init") and hasattr(kind, "apply"):
        return
    for family, wrap in WRAPS.items():
        if any(f"{cls.__module__}.".startswith(f"{family}.") for cls in kind.__mro__):
            raise TypeError(
                f"network is {kind.__name__} of {family}, wanted init(key, obs) and apply(params, "
                f"obs); wrap what makes it: {wrap}. {configs.see('own.md#a-network')}"
            )


def recorded(value: Any, shapes: Callable[[], Any]) -> Any:
    """What ``config.json`` holds of an algorithm, environment or network.

    Args:
        value: A name, an import path, None, or an object.
        shapes: A function of abstract values whose result tells one object from another.

    Returns:
        The name; of an object its class and the shapes, by which it is compared when it is given
        again.
    """
    if value is None or isinstance(value, str):
        return value
    return {
        "object": short_name(value),
        "class": _path(value if inspect.isfunction(value) else type(value)),
        "arrays": described(by_path(jax.eval_shape(shapes))),
    }


def short_name(value: Any) -> str:
    """A name for titles and labels.

    Args:
        value: An algorithm, environment or network, or what ``config.json`` holds of it.
    """
    if isinstance(value, dict):
        return value["object"]
    if isinstance(value, str):
        return value if families.is_named(value) else value.rpartition(":")[2]
    if isinstance(value, Algorithm):
        return _qualname(value.update).split(".")[0].strip("_")
    value = _whole(value)
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    return name if isinstance(name, str) else type(value).__name__


def _whole(value: Any) -> Any:
    """The function that a partial gives some arguments to; everything else as it is."""
    while isinstance(value, functools.partial):
        value = value.func
    return value


def _qualname(value: Any) -> str:
    value = _whole(value)
    return getattr(value, "__qualname__", type(value).__name__)


def _path(value: Any) -> str:
    return f"{_whole(value).__module__}.{_qualname(value)}"


def _hint(option: inspect.Parameter, names: dict[str, Any]) -> Any:
    """The type of an option: as it is annotated, or else its default's."""
    of_default = type(configs.python_number(option.default))
    if option.annotation is option.empty:
        return of_default
    holder = types.SimpleNamespace(__annotations__={"hint": option.annotation})
    try:
        return typing.get_type_hints(holder, names)["hint"]
    except NameError:  # a name that only type checkers import
        return of_default


@functools.cache
def _config_class(builder: Callable[..., Any]) -> type[configs.Config]:
    """A configuration whose fields are the options of a function, with its docstring's words."""
    options = [*inspect.signature(builder).parameters.values()][1:]  # the first: the action space
    code = inspect.unwrap(_whole(builder))
    code = code if inspect.isroutine(code) or inspect.isclass(code) else type(code).__call__
    names, fields = getattr(code, "__globals__", {}), []
    said = docstring_parser.parse(inspect.getdoc(code) or "").params
    meanings = {part.arg_name: " ".join((part.description or "").split()) for part in said}
    for option in options:
        where, default = f"{_path(builder)}: option {option.name}", option.default
        if default is option.empty:
            raise ValueError(f"{where} has no default, wanted {SIGNATURE}.")
        if option.name in RESERVED:
            raise ValueError(
                f"{where} is a name that configurations, runs or commands use; rename it."
            )
        if option.name != "network":
            hint = _hint(option, names)
            if hint is tuple:
                hint = tuple[type(default[0]) if default else str, ...]  # type: ignore[misc]
            if hint is float or float in typing.get_args(hint):
                hint = hint | jax.Array  # it may be swept
            meaning = meanings.get(option.name) or "Of the algorithm."
            declared = configs.field(default, meaning, "(-inf, inf)")
            fields.append((option.name, hint, declared))
    return dataclasses.make_dataclass(
        f"{short_name(builder)}_config",
        fields,
        bases=(configs.Config,),
        namespace={"__doc__": f"Options of {_path(builder)}."},
        frozen=True,
        kw_only=True,
    )
