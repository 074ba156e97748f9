"""What users bring to a run: an algorithm, an environment, a network, by import path or as objects.

An import path ``package.module:object`` names what builds: for an algorithm a function
``(action_space, *, network=None, **options)`` that returns a record, for an environment a function
or class whose keyword arguments are ``env_params``, for a network a function of the action space.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable
from typing import Any

import jax

from purerl import config as configs
from purerl.algorithms import ALGORITHMS, Entry
from purerl.envs.make import Env, list_envs, make_env
from purerl.host.options import RunOptions
from purerl.records import ActionSpace, OffPolicyAlgorithm, OnPolicyAlgorithm
from purerl.training.sizes import OffPolicyLoopConfig, OnPolicyLoopConfig
from purerl.training.state import Train

Algorithm = OnPolicyAlgorithm | OffPolicyAlgorithm
SIGNATURE = "a function (action_space, *, network=None, **options with defaults)"
KINDS = (OnPolicyLoopConfig, OffPolicyLoopConfig, RunOptions)
# Names that mean something else where an algorithm's options are given.
RESERVED = {
    *(f.name for kind in KINDS for f in dataclasses.fields(kind)),
    *("seeds", "seed", "out", "overwrite", "resume", "env_params", "start_from", "on_row"),
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


def load(path: str) -> Any:
    """The object that an import path names; imports its module.

    Args:
        path: ``package.module:object``.

    Raises:
        ValueError: If there is no such module or object.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{path!r} cannot be imported: {error}; give package.module:object with the package's "
            "folder in PYTHONPATH (the command line also looks into the current directory)."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = configs.suggest(part, [x for x in dir(found) if not x.startswith("_")])
            raise ValueError(f"{path!r}: {module} has no {part!r}. {near}")
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
    if isinstance(algorithm, Algorithm):
        return Entry(configs.Config, lambda config, action_space, network=None: algorithm)
    if isinstance(algorithm, str) and ":" not in algorithm:
        configs.check_choice("purerl", "algorithm", algorithm, ALGORITHMS)
        return ALGORITHMS[algorithm]
    builder = load(algorithm) if isinstance(algorithm, str) else algorithm
    if isinstance(builder, Algorithm):
        return algorithm_entry(builder)
    if not callable(builder) or isinstance(builder, Train):
        advice = "; jax.jit(train.train)(key) runs a Train" if isinstance(builder, Train) else ""
        raise TypeError(
            f"algorithm is a {type(builder).__name__}, wanted a name out of purerl.ALGORITHMS, an "
            f"import path package.module:function, {SIGNATURE}, or an algorithm record{advice}."
        )
    config = _config_class(builder)

    def build(config: Any, action_space: ActionSpace, network: Any = None) -> Algorithm:
        options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        given = {} if network is None else {"network": network}
        record = builder(action_space, **given, **options)
        if not isinstance(record, Algorithm):
            raise TypeError(
                f"{_path(builder)} returned a {type(record).__name__}, wanted a "
                "purerl.OnPolicyAlgorithm or purerl.OffPolicyAlgorithm."
            )
        return record

    return Entry(config, build)


def environment(env: Any, params: dict[str, Any]) -> Env:
    """The environment that a user gave.

    Args:
        env: A name, an import path, a function or class that makes one, an object with gymnax's
            interface, or an Env.
        params: Keyword arguments of what makes it, or fields of its parameters.

    Raises:
        ValueError: If the name, the import path or a parameter is unknown.
        TypeError: If it is something else.
    """
    if isinstance(env, str) and ":" not in env:
        return make_env(env, **params)
    made = load(env) if isinstance(env, str) else env
    if inspect.isfunction(made) or inspect.isclass(made):
        accepted = inspect.signature(made).parameters
        own = {name: x for name, x in params.items() if name in accepted}
        made, params = made(**own), {name: x for name, x in params.items() if name not in own}
    if made is None or isinstance(made, dict | str | int | float):
        raise TypeError(
            f"env is {made!r}, wanted a name out of purerl.list_envs(), an import path "
            "package.module:object, an object with gymnax's interface, or a purerl.Env; for "
            f"example {list_envs()[0]!r}."
        )
    if isinstance(made, Env):
        if params:
            raise ValueError(f"{made.name} is an Env, so it takes no env_params; got {params}.")
        return made
    return make_env(made, **params)


def network(network: Any, action_space: ActionSpace) -> Any:
    """The network that a user gave, or None for the algorithm's default one.

    Args:
        network: An import path of a function of the action space, such a function, a network with
            ``init`` and ``apply``, or None.
        action_space: Of the environment.

    Raises:
        TypeError: If it is something else.
    """
    made = load(network) if isinstance(network, str) else network
    if made is None or (hasattr(made, "apply") and not inspect.isclass(made)):
        return made
    if callable(made):
        made = made(action_space)
    if not (hasattr(made, "init") and hasattr(made, "apply")):
        raise TypeError(
            f"network is {made!r}, wanted a purerl.NetworkConfig, a network with init(key, obs) "
            "and apply(params, obs), or a function of the action space that returns one."
        )
    return made


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
    leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(shapes))[0]
    return {
        "object": short_name(value),
        "class": _path(value if inspect.isfunction(value) else type(value)),
        "arrays": {
            jax.tree_util.keystr(path): f"{x.dtype}[{', '.join(map(str, x.shape))}]"
            for path, x in leaves
        },
    }


def given_again(what: str, recorded: Any, given: Any) -> Any:
    """The object that a run was begun with, or its name.

    Args:
        what: "algorithm", "env" or "network".
        recorded: What ``config.json`` holds.
        given: The object, if it was given again.

    Raises:
        ValueError: If it is needed and missing.
    """
    if given is not None:
        return named(given)
    if isinstance(recorded, dict):
        raise ValueError(
            f"this run was begun with {what}={recorded['object']}, an object that no import path "
            f"names; give it again ({what}=...)."
        )
    return recorded


def short_name(value: Any) -> str:
    """A name for titles and labels.

    Args:
        value: An algorithm, environment or network, or what ``config.json`` holds of it.
    """
    if isinstance(value, dict):
        return value["object"]
    if isinstance(value, str):
        return value.rpartition(":")[2]
    if isinstance(value, Algorithm):
        return value.update.__qualname__.split(".")[0].strip("_")
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    return name if isinstance(name, str) else type(value).__name__


def _path(value: Any) -> str:
    return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__name__)}"


@functools.cache
def _config_class(builder: Callable[..., Any]) -> type[configs.Config]:
    """A configuration whose fields are the options of a function."""
    try:
        (_, *options) = inspect.signature(builder).parameters.values()
    except (ValueError, TypeError):
        options = [inspect.Parameter("algorithm", inspect.Parameter.POSITIONAL_ONLY)]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    hints, fields = typing.get_type_hints(builder), []
    for option in options:
        where = f"{_path(builder)}: option {option.name}"
        if option.kind not in kinds or option.default is option.empty:
            raise ValueError(f"{where} has no default, wanted {SIGNATURE}.")
        if option.name in RESERVED:
            raise ValueError(f"{where} has the name of an option of the run; rename it.")
        if option.name != "network":
            kind = hints.get(option.name, type(option.default))
            fields.append((option.name, *_field(where, option.default, kind)))
    return dataclasses.make_dataclass(
        f"{short_name(builder)}_config",
        fields,
        bases=(configs.Config,),
        namespace={"__doc__": f"Options of {_path(builder)}."},
        frozen=True,
        kw_only=True,
    )


def _field(where: str, default: Any, kind: Any) -> tuple[Any, Any]:
    """Type and declaration of an option, from its default value and annotation."""
    meaning, members = "Of the algorithm.", typing.get_args(kind)
    optional = type(None) in members
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        members = tuple(x for x in members if x not in (type(None), jax.Array))
        kind = members[0] if len(members) == 1 else kind
    if typing.get_origin(kind) is typing.Literal:
        return kind, configs.choice(default, kind, meaning)
    if kind is bool:
        return bool, configs.switch(default, meaning)
    if kind is int:
        least = min(0, default or 0)
        declared = configs.count(default, meaning, least=least, optional=optional)
        return (int | None if optional else int), declared
    if kind is float:
        declared = configs.number(default, "(-inf, inf)", meaning, optional=optional)
        return (configs.Number | None if optional else configs.Number), declared
    if kind is str or typing.get_origin(kind) is tuple or kind is tuple:
        base = str if kind is str else tuple
        kind = tuple[type(default[0]), ...] if kind is tuple and default else kind  # type: ignore
        return kind, _plain_field(default, base, meaning)
    raise ValueError(
        f"{where} is a {getattr(kind, '__name__', kind)}, wanted float, int, bool, str, Literal or "
        "a tuple of these; bind other values in the function, or give the record itself."
    )


def _plain_field(default: Any, kind: type, meaning: str) -> Any:
    def check(where: str, name: str, value: Any) -> Any:
        value = tuple(value) if kind is tuple and isinstance(value, list) else value
        numbers = value if kind is tuple and isinstance(value, tuple) else ()
        finite = all(math.isfinite(x) for x in numbers if isinstance(x, float))
        if not isinstance(value, kind) or not finite:
            raise ValueError(f"{where}: {name}={value!r}, wanted a {kind.__name__}.")
        return value

    spec = configs.Spec(meaning, f"a {kind.__name__}", check)
    return dataclasses.field(default=default, metadata={"spec": spec})
