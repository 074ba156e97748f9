"""The points of a sweep, and which of them share a program."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from purerl.config import check_integer, plain
from purerl.host import brought, env_params
from purerl.host.experiment import PARTS, Experiment
from purerl.policies.networks import NetworkConfig


class Group(NamedTuple):
    """Points that one program trains: they differ in numbers that may be traced only."""

    experiment: Experiment  # of the first of them
    points: list[int]
    values: dict[str, list[float]]  # what differs, for each of them


def grid(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations.

    Args:
        values: By name.

    Raises:
        TypeError: If those of a name are a text, or not several.
    """
    for name, several in values.items():
        if isinstance(several, str | Mapping) or not np.iterable(several):
            raise TypeError(
                f"sweep: the values of {name} are {several!r}, wanted a list; of one value give "
                f"[{several!r}]."
            )
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def samples(
    count: int, seed: int = 0, **ranges: tuple[float, float] | tuple[float, float, str]
) -> list[dict[str, float]]:
    """Random points.

    Args:
        count: How many.
        seed: Of the draws.
        **ranges: By name ``(low, high)``, uniform, or ``(low, high, "log")``, uniform in the
            logarithm.

    Returns:
        Points: dictionaries of numbers by name.

    Raises:
        ValueError: If a range is no range.

    Example:
        >>> [point] = samples(1, learning_rate=(1e-4, 1e-2, "log"), clip=(0.1, 0.3))
        >>> 1e-4 <= point["learning_rate"] <= 1e-2 and 0.1 <= point["clip"] <= 0.3
        True
    """
    check_integer("samples", "count", count)
    random = np.random.default_rng(seed)
    columns = {}
    for name, (low, high, *kind) in ranges.items():
        log = kind == ["log"]
        if not low <= high or (log and low <= 0) or (kind and not log):
            raise ValueError(
                f"samples: {name}={ranges[name]!r} is no range; give (low, high), or (low, high, "
                "'log') with low above zero."
            )
        ends = np.log([low, high]) if log else np.array([low, high], float)
        drawn = random.uniform(ends[0], ends[1], count)
        columns[name] = np.clip(np.exp(drawn) if log else drawn, low, high)
    return [{name: float(x[i]) for name, x in columns.items()} for i in range(count)]


def described(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points as folders and tables have them, JSON-ready.

    Environments, networks and algorithms go by their import paths; objects that have none by a
    short name, numbered in the order in which they first come.

    Args:
        points: Values by name.
    """
    numbers: dict[int, int] = {}  # of objects, by their identities

    def one(name: str, value: Any) -> Any:
        if name == "env_params":
            return env_params.described(env_params.settled(value))
        value = brought.named(value) if name in PARTS else value
        if name not in PARTS or value is None or isinstance(value, str | dict | NetworkConfig):
            return plain(value)
        return f"{brought.short_name(value)} {numbers.setdefault(id(value), len(numbers))}"

    return [{name: one(name, value) for name, value in point.items()} for point in points]


def make_groups(experiments: list[Experiment]) -> list[Group]:
    """Points that can share a program: all their differences are in swept numbers.

    Args:
        experiments: Of all points.
    """
    groups: dict[str, Group] = {}
    for i, experiment in enumerate(experiments):
        swept = _swept(experiment)
        data = experiment.to_json()
        rest = {k: x for k, x in plain(experiment.config).items() if k not in swept}
        # What JSON tells of objects and functions does not say whether two are the same.
        brought = (experiment.algorithm, experiment.env, experiment.network)
        functions = [x for x in vars(experiment.config).values() if callable(x)]
        objects = [id(x) for x in (*brought, *functions) if not isinstance(x, str)]
        key = json.dumps([{**data, "config": rest}, sorted(swept), objects])
        group = groups.setdefault(key, Group(experiment, [], {name: [] for name in swept}))
        group.points.append(i)
        for name, x in swept.items():
            group.values[name].append(x)
    return [
        group._replace(values={k: x for k, x in group.values.items() if len(set(x)) > 1})
        for group in groups.values()
    ]


def _swept(experiment: Experiment) -> dict[str, float]:
    """The fields of a configuration that may be tracers, and are numbers."""
    config = experiment.config
    numbers = {name: getattr(config, name) for name, spec in config.specs.items() if spec.swept}
    return {k: float(x) for k, x in numbers.items() if isinstance(x, int | float)}
