"""Learning curves of algorithms on tasks, from wherever they are written."""

import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from purerl.host import env_params
from purerl.host.brought import short_name
from purerl.host.result import RunResult
from purerl.host.store.folder import RunFolder
from purerl.host.sweep.result import SweepResult, load_sweep


class Curve(NamedTuple):
    """One algorithm on one task.

    Attributes:
        steps: Environment steps of the evaluations, ``[E]``.
        returns: ``[S, E]``.
        seconds: Of training all seeds until each evaluation, ``[E]``; None where nobody noted them.
        last: How many of the last evaluations a seed's result is the mean of.
    """

    steps: np.ndarray
    returns: np.ndarray
    seconds: np.ndarray | None = None
    last: int = 1

    def results(self) -> np.ndarray:
        """Of each seed, ``[S]``."""
        return self.returns[:, -self.last :].mean(axis=1)


Curves = dict[str, dict[str, Curve]]  # by algorithm and task


def read_curves(sources: tuple[Any, ...], top: int) -> Curves:
    """The curves of all sources; equal labels on a task are told apart.

    Args:
        sources: As :func:`purerl.compare` takes them.
        top: Of a sweep: how many points, the best first.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ValueError: If a file holds no result.
    """
    curves: Curves = {}
    for source in sources:
        for name, task, curve in _read(source, top):
            others = (f"{name} [{where}]" for where in _where(source))
            labels = itertools.chain([name], others)
            free = next(label for label in labels if task not in curves.get(label, {}))
            curves.setdefault(free, {})[task] = curve
    return curves


def _read(source: Any, top: int) -> Iterator[tuple[str, str, Curve]]:
    """Label, task and curve of each algorithm in a source."""
    if isinstance(source, Mapping):
        for name, of in source.items():
            for task, (steps, returns) in of.items():
                yield name, task, Curve(np.array(steps, int), np.array(returns, float))
        return
    if isinstance(source, RunResult):
        made = source.experiment
        seconds = source.steps * len(source.returns) / source.steps_per_second
        curve = Curve(source.steps, source.returns, seconds)
        asked = env_params.described(made.env_params)  # as a folder has them
        task = _named(made.env, asked, made.loop.max_episode_steps)
        yield short_name(made.algorithm), task, curve
        return
    if isinstance(source, SweepResult):
        raise TypeError(
            "a SweepResult does not say what was trained; give compare the sweep's folder (out=)."
        )
    path = pathlib.Path(source).expanduser()
    if path.suffix == ".json":
        yield _result_file(path)
        return
    folder = RunFolder(path)
    config = folder.read_config()
    if "experiments" in config:
        sweep = load_sweep(path)
        for row, (label, of_point) in zip(sweep.ranked(), sweep.curves(top).items(), strict=False):
            made = config["experiments"][row["point"]]  # each point may have a task of its own
            yield f"{short_name(made['algorithm'])} {label}", _task(made), Curve(*of_point)
    else:
        curve = Curve(*folder.read_curve(), folder.read_seconds())
        yield short_name(config["algorithm"]), _task(config), curve


def _task(made: Mapping[str, Any]) -> str:
    """An environment's name, with what was asked of it: CartPole-v1 of 50 steps is another task.

    Args:
        made: An experiment, as ``config.json`` holds it.
    """
    limit = made.get("loop", {}).get("max_episode_steps")  # older formats have them elsewhere
    return _named(made["env"], made.get("env_params", {}), limit)


def _named(env: Any, params: Mapping[str, Any], limit: int | None) -> str:
    asked = {**params} if limit is None else {**params, "max_episode_steps": limit}
    said = ", ".join(f"{name}={x}" for name, x in sorted(asked.items()))
    return short_name(env) + (f" ({said})" if said else "")


def _result_file(path: pathlib.Path) -> tuple[str, str, Curve]:
    """Of ``benchmarks/learning.py``."""
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}), wanted a file of results.") from None
    wanted = ("name", "experiment", "steps", "returns", "steps_per_second")
    if not isinstance(data, dict) or (missing := [name for name in wanted if name not in data]):
        lacks = f"it has no {', '.join(missing)}" if isinstance(data, dict) else "it is no object"
        raise ValueError(f"{path} is no result of benchmarks/learning.py: {lacks}.")
    env, task = short_name(data["experiment"]["env"]), _task(data["experiment"])
    steps, returns = np.array(data["steps"], int), np.array(data["returns"], float)
    seconds = steps * len(returns) / data["steps_per_second"]
    label = data["name"].removesuffix("-" + env.rpartition(":")[2])
    return label, task, Curve(steps, returns, seconds, data.get("last", 1))


def _where(source: Any) -> Iterator[str]:
    """Words that tell a source from others, the best first."""
    if not isinstance(source, RunResult | Mapping):
        yield str(source)
    yield from map(str, itertools.count(2))
