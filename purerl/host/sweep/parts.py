"""Sweeps: hyper-parameters x seeds in as few compilations as their shapes allow."""

import csv
import dataclasses
import io
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl.config import check_integer
from purerl.host.chunks import Session
from purerl.host.devices import agreed, from_hosts, make_layout
from purerl.host.experiment import Experiment
from purerl.host.options import RunOptions, Stopped, Terminated
from purerl.host.programs import Driver
from purerl.host.resources import memory_bytes, tree_bytes
from purerl.host.store.folder import RunFolder, check_same
from purerl.host.store.retention import INEXACT, circumstances
from purerl.host.sweep.points import Group, grid, make_groups
from purerl.host.sweep.result import Collected, SweepResult, read_host, read_sweep
from purerl.training.seeds import use_all_cores

TABLE = "sweep.csv"
SPARE = 0.9  # of the memory: what else needs some


class _Part(NamedTuple):
    """Rows (points x seeds) of a group that are trained side by side."""

    number: int  # of the group
    group: Group
    first: int
    last: int


def sweep(
    make_experiment: Callable[..., Experiment],
    values: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    seeds: int = 4,
    seed: int = 0,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> SweepResult:
    """Trains every point of a grid, or of a list, with the same seeds.

    Points that differ in swept numbers only (learning rate, gamma, clip, coefficients) are one
    program, points x seeds side by side; sizes, counts and switches need one each. What does not
    fit into memory, by the compiler's own analysis, is trained in equal parts one after another.
    Each part is a run in a folder of its own, with checkpoints; so a sweep is resumed like a run.

    Args:
        make_experiment: The experiment of one point, from its values by name, such as
            ``functools.partial(purerl.make_experiment, "ppo_clip", "CartPole-v1")``.
        values: A grid (values by name: all combinations are trained), or the points themselves;
            :func:`purerl.samples` draws some.
        seeds: S, of each point; the same keys for all points.
        seed: Seed s starts from ``split(key(seed), S)[s]``, as a run's does.
        out: Folder; None: nothing is written.
        overwrite: Whether a sweep in that folder may be deleted.
        resume: Go on with the sweep in that folder, if there is one; it must be this one.
        **options: Fields of :class:`purerl.RunOptions`.

    Raises:
        ValueError: If there is no point, a number is out of range, not even one seed a device fits
            into memory, or the sweep to be resumed is another one.
        FileExistsError: If ``out`` exists and is neither to be overwritten nor resumed.
        Terminated: A ``SystemExit``, after SIGTERM; its ``result`` is what would be returned.

    Example:
        >>> import functools, purerl
        >>> make = functools.partial(
        ...     purerl.make_experiment, "a2c", "CartPole-v1", steps=2000, evaluations=1
        ... )
        >>> result = sweep(make, {"learning_rate": [1e-3, 1e-2]}, seeds=2, progress=False)
        >>> len(result.ranked()), result.failed.shape, result.compilations
        (2, (2, 2), 1)
    """
    chosen = RunOptions.of(options)
    check_integer("sweep", "seeds", seeds, 1)
    if resume and (out is None or overwrite):
        raise ValueError("sweep: resume goes on with the sweep in out; give out, and no overwrite.")
    points = grid(values) if isinstance(values, Mapping) else [dict(point) for point in values]
    if not points:
        raise ValueError("sweep got no points; give names with values, or a list of points.")
    use_all_cores()
    experiments = [make_experiment(**point) for point in points]
    description = {
        "points": _jsonable(points),
        "experiments": [experiment.to_json() for experiment in experiments],
        "seeds": seeds,
        "seed": seed,
    }
    folder = None if out is None else RunFolder(out)
    if folder is not None and agreed(resume and folder.begun()):
        there = folder.read_config()
        for name in ("points", "seeds", "seed", "experiments"):  # what says most, first
            check_same({name: description[name]}, there, str(folder.path))
        if not chosen.inexact:
            advice = INEXACT.replace("run", "sweep")
            check_same(circumstances(chosen.shard), there["environment"], str(folder.path), advice)
    else:
        if folder is not None:
            folder.check(overwrite)
        _check(experiments, seeds, chosen)
        if folder is not None:
            from_hosts(np.zeros(()))  # all hosts have looked at the folder before one writes to it
            where = {"environment": circumstances(chosen.shard)}
            if jax.process_index() == 0:
                folder.create(description | where, chosen.to_json())
            from_hosts(np.zeros(()))
    result = _Sweep(points, experiments, seeds, seed, folder, chosen).run()
    if folder is not None and jax.process_index() == 0 and (rows := result.ranked()):
        text = io.StringIO()
        writer = csv.DictWriter(text, ["rank", *rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"rank": i, **row} for i, row in enumerate(rows, 1))
        try:
            (folder.path / TABLE).write_text(text.getvalue())
        except OSError as error:
            result = result._replace(trouble=result.trouble or str(error))
    if result.trouble:
        what = f"not everything could be written: {result.trouble}"
        warnings.warn(what, RuntimeWarning, stacklevel=2)
    if result.stopped == "SIGTERM":
        raise Terminated(result)
    return result


def resume_sweep(path: str | pathlib.Path, **options: Any) -> SweepResult:
    """Goes on with the sweep in a folder, as it was begun.

    Args:
        path: The sweep's folder.
        **options: Fields of :class:`purerl.RunOptions` that are to be others than at its beginning
            (writers of your own are to be given again).

    Raises:
        FileNotFoundError: If the folder holds no sweep.
        ValueError: If a checkpoint is damaged, or of another version.
    """
    use_all_cores()  # before anything computes: making the environment does
    config = read_sweep(RunFolder(path))
    experiments = map(Experiment.from_json, config["experiments"])
    return sweep(
        lambda **point: next(experiments),
        config["points"],
        seeds=config["seeds"],
        seed=config["seed"],
        out=path,
        resume=True,
        **config.get("options", {}) | options,
    )


def _check(experiments: list[Experiment], seeds: int, options: RunOptions) -> None:
    """Raises what a point's numbers are wrong with, before any time is spent on another."""
    for group in make_groups(experiments):
        rows = len(group.points) * seeds
        make_layout(options.shard, rows, group.experiment.loop.num_envs)
        train = group.experiment.build()
        jax.eval_shape(
            lambda key, train=train: train.advance(train.init(key), 1), jax.random.key(0)
        )


class _Sweep:
    """Trains group after group, part after part."""

    def __init__(
        self,
        points: list[dict[str, Any]],
        experiments: list[Experiment],
        seeds: int,
        seed: int,
        folder: RunFolder | None,
        options: RunOptions,
    ):
        self.seeds, self.folder, self.options = seeds, folder, options
        self.groups = make_groups(experiments)
        self.keys = jax.random.split(jax.random.key(seed), seeds)
        self.seed = seed
        self.known = Collected(points, seeds)
        self.seconds = {"compiling": 0.0, "training": 0.0, "evaluating": 0.0}
        self.compilations = 0
        self.stopped: Stopped | None = None
        self.trouble: str | None = None

    def run(self) -> SweepResult:
        """Everything."""
        for number, group in enumerate(self.groups):
            self._train_group(number, group)
            if self.stopped:
                break
        return SweepResult(
            self.known.points,
            self.known.steps,
            self.known.returns,
            self.known.failed,
            np.all(self.known.finished, axis=1),
            self.seconds,
            self.compilations,
            self.stopped,
            self.trouble,
        )

    def _train_group(self, number: int, group: Group) -> None:
        """In as few parts as fit into memory; parts of one size are trained by one program."""
        rows, size = len(group.points) * self.seeds, 0
        driver: Driver | None = None
        if self.folder is not None and (found := sorted(self._folder(number).glob("rows-*"))):
            # As it was split before: the bits of a run depend on how many are side by side.
            size = int(found[0].name.split("-")[2])
        size = int(from_hosts(np.array(size, np.int32))[0])
        if not size:
            driver = self._largest(group, rows)
            fitting = _fitting(driver, rows, copied=self.folder is not None)
            size = int(from_hosts(np.array(fitting, np.int32)).min())
        for first in range(0, rows, size):
            part = _Part(number, group, first, min(first + size, rows))
            if self._is_finished(part):
                continue
            if driver is None or driver.seeds != part.last - part.first:
                driver = None  # frees its memory, before another one takes some
                driver = self._compiled(group, part.first, part.last)
            elif part.first:  # the first part's rows are those it was compiled with
                driver.use(*self._rows(group, part.first, part.last))
            self._train(part, driver)
            if self.stopped:
                return

    def _largest(self, group: Group, rows: int) -> Driver:
        """A group's program, of as many rows as the compiler takes: TPUs' refuses what is larger
        than the memory, instead of saying how large it is.
        """
        while True:
            try:
                return self._compiled(group, 0, rows)
            except jax.errors.JaxRuntimeError as error:
                devices = jax.device_count() if self.options.shard == "seeds" else 1
                if "RESOURCE_EXHAUSTED" not in str(error) or rows <= devices:
                    raise
                rows = math.ceil(rows / 2 / devices) * devices

    def _rows(self, group: Group, first: int, last: int) -> tuple[dict[str, np.ndarray], Any]:
        """Hyper-parameters and keys of a part."""
        values = {
            name: np.repeat(np.array(x, float), self.seeds)[first:last]
            for name, x in group.values.items()
        }
        return values, self.keys[np.arange(first, last) % self.seeds]

    def _compiled(self, group: Group, first: int, last: int) -> Driver:
        experiment = group.experiment
        layout = make_layout(self.options.shard, last - first, experiment.loop.num_envs)

        def build(values: dict[str, Any]) -> Any:
            config = dataclasses.replace(experiment.config, **values)
            return dataclasses.replace(experiment, config=config).build()

        driver = Driver(build, *self._rows(group, first, last), layout)
        driver.compile()
        self.compilations += 1
        return driver

    def _is_finished(self, part: _Part) -> bool:
        """Whether a part was trained before; then what it came to is known from now on."""
        folder = self._part_folder(part)
        begun = agreed(folder is not None and folder.begun())
        if folder is None or not begun or not (host := read_host(folder)) or not host["finished"]:
            return False
        check_same(self._description(part), host["run"], str(folder.path))
        self.known.add_host(host)
        for what in self.seconds:
            self.seconds[what] += host["seconds"][what]
        return True

    def _train(self, part: _Part, driver: Driver) -> None:
        experiment, folder = part.group.experiment, self._part_folder(part)
        names = dict(zip(("point", "seed"), self.known.names(part.group.points), strict=True))
        session = Session(
            driver,
            f"{experiment.algorithm} on {experiment.env}",
            experiment.loop.evaluations > 0,
            folder,
            self._description(part),
            self.options,
            {name: x[part.first : part.last] for name, x in names.items()},
            f"group {part.number + 1} of {len(self.groups)}, rows {part.first} to {part.last - 1}",
        )
        outcome = session.run(agreed(folder is not None and folder.begun()))
        self.stopped, self.trouble = outcome.stopped, outcome.trouble or self.trouble
        for what, seconds in driver.seconds.items():
            self.seconds[what] += seconds
        finished = driver.done == driver.train.iterations
        self.known.add(
            part.group.points, part.first, outcome.steps, outcome.returns, outcome.failed, finished
        )

    def _description(self, part: _Part) -> dict[str, Any]:
        return {
            **part.group.experiment.to_json(),
            "values": part.group.values,
            "points": part.group.points,
            "rows": [part.first, part.last],
            "seeds": self.seeds,
            "seed": self.seed,
        }

    def _part_folder(self, part: _Part) -> RunFolder | None:
        if self.folder is None:
            return None
        return RunFolder(self._folder(part.number) / f"rows-{part.first:06d}-{part.last:06d}")

    def _folder(self, number: int) -> pathlib.Path:
        assert self.folder is not None
        return self.folder.path / f"group-{number:03d}"


def _fitting(driver: Driver, all_rows: int, copied: bool) -> int:
    """How many rows fit into memory side by side, by the compiler's analysis of the driver's; a
    checkpoint copies their state.
    """
    rows = driver.seeds
    needed, there = driver.program_bytes(), SPARE * memory_bytes() / jax.device_count()
    devices = driver.layout.mesh.size if driver.layout.shard == "seeds" else 1
    if copied:
        needed += tree_bytes(driver.template().state) // devices
    if needed <= there:
        return rows
    most = int(rows * there / needed) // devices * devices
    if most < 1:
        raise ValueError(
            f"sweep: one seed a device needs about {needed * devices / rows:.3g} bytes, but a "
            f"device has {there:.3g}; make num_envs, rollout_length, the network or the replay "
            "buffer smaller."
        )
    even = math.ceil(all_rows / math.ceil(all_rows / most))
    return min(most, math.ceil(even / devices) * devices)


def _jsonable(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def plain(x: Any) -> Any:
        return dataclasses.asdict(x) if dataclasses.is_dataclass(x) else x  # type: ignore

    return [{name: plain(x) for name, x in point.items()} for point in points]
