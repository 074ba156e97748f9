"""Sweeps: hyper-parameters x seeds in as few compilations as their shapes allow."""

import csv
import dataclasses
import functools
import io
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl.config import check_integer, plain, python_number
from purerl.host.chunks import OnRow, Session
from purerl.host.devices import agreed, from_hosts, make_layout
from purerl.host.experiment import Experiment, make_experiment
from purerl.host.options import RunOptions, Stopped, Terminated
from purerl.host.programs import Driver
from purerl.host.report import frame
from purerl.host.resources import memory_bytes, tree_bytes
from purerl.host.runs import OPTIONS
from purerl.host.store.checkpoint import INEXACT, read_host
from purerl.host.store.folder import RunFolder, check_same
from purerl.host.store.provenance import circumstances
from purerl.host.sweep.points import Group, grid as combinations, make_groups
from purerl.host.sweep.result import Collected, SweepResult, read_sweep
from purerl.training.seeds import use_all_cores

TABLE = "sweep.csv"
SPARE = 0.9  # of the memory: what else needs some


class _Part(NamedTuple):
    """Rows (points x seeds) of a group that are trained side by side: a run of its own."""

    group: Group
    first: int
    last: int
    folder: RunFolder | None
    description: dict[str, Any]


def sweep(
    experiment: Any,
    values: Any = None,
    *,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | None = None,
    seeds: int = 4,
    seed: int = 0,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    memory: int | None = None,
    on_row: OnRow | None = None,
    **options: Any,
) -> SweepResult:
    """Trains every point of a grid, or of a list, with the same seeds.

    Points that differ in swept numbers only (learning rate, gamma, clip, coefficients) are one
    program, points x seeds side by side; sizes, counts and switches need one each. What does not
    fit into memory, by the compiler's own analysis, is trained in equal parts one after another.
    Each part is a run in a folder of its own, with checkpoints; so a sweep is resumed like a run.

    Args:
        experiment: A function that gives the experiment of one point from its values by name, such
            as ``functools.partial(purerl.make_experiment, "ppo_clip")`` where points name their
            ``env``; or an experiment, some of whose numbers the points replace; or, with ``grid``,
            an algorithm as :func:`purerl.make_experiment` takes it.
        values: A grid (values by name: all combinations are trained), or the points themselves;
            :func:`purerl.samples` draws some. With ``grid``: the environment.
        grid: The values, in ``sweep("ppo_clip", "CartPole-v1", grid={"clip": [0.1, 0.2]})``.
        seeds: S, of each point; the same keys for all points.
        seed: Seed s starts from ``split(key(seed), S)[s]``, as a run's does.
        out: Folder; None: nothing is written.
        overwrite: Whether a sweep in that folder may be deleted.
        resume: Go on with the sweep in that folder, if there is one; it must be this one.
        memory: Bytes that one part may take on all devices together; by default nine tenths of what
            they have.
        on_row: As in :func:`purerl.run`; rows are points x seeds, and have their hyper-parameters.
        **options: Fields of :class:`purerl.RunOptions`; with ``grid`` also what
            :func:`purerl.make_experiment` takes.

    Raises:
        ValueError: If there is no point, a number is out of range, not even one seed a device fits
            into memory, or the sweep to be resumed is another one.
        FileExistsError: If ``out`` exists and is neither to be overwritten nor resumed.
        Terminated: A ``SystemExit``, after SIGTERM; its ``result`` is what would be returned.

    Example:
        >>> import purerl
        >>> experiment = purerl.make_experiment("a2c", "CartPole-v1", steps=2000, evaluations=1)
        >>> rates = {"learning_rate": [1e-3, 1e-2]}
        >>> result = purerl.sweep(experiment, rates, seeds=2, progress=False)
        >>> len(result.ranked()), result.returns.shape, result.compilations
        (2, (2, 2, 1), 1)
    """
    if grid is not None:
        numbers = {name: options.pop(name) for name in [*options] if name not in OPTIONS}
        experiment, values = functools.partial(make_experiment, experiment, values, **numbers), grid
    chosen = RunOptions.of(options)
    seeds, seed = check_integer("sweep", "seeds", seeds, 1), check_integer("sweep", "seed", seed, 0)
    if resume and (out is None or overwrite):
        raise ValueError("sweep: resume goes on with the sweep in out; give out, and no overwrite.")
    make = experiment.replace if isinstance(experiment, Experiment) else experiment
    if not callable(make) or not isinstance(values, Mapping | Sequence) or isinstance(values, str):
        raise TypeError(
            f"sweep got {experiment!r} and {values!r}, wanted a function or an experiment, and "
            'values: sweep("ppo_clip", "CartPole-v1", grid={"clip": [0.1, 0.2]}).'
        )
    points = combinations(values) if isinstance(values, Mapping) else values
    points = [{name: python_number(x) for name, x in point.items()} for point in points]
    if not points:
        raise ValueError("sweep got no points; give names with values, or a list of points.")
    use_all_cores()
    experiments = [make(**point) for point in points]
    groups = make_groups(experiments)
    description = {
        "points": plain(points),
        "experiments": [experiment.to_json() for experiment in experiments],
        "seeds": seeds,
        "seed": seed,
    }
    folder = None if out is None else RunFolder(out)
    begun = agreed(folder is not None and resume and folder.begun())
    if folder is not None and begun:
        there = folder.read_config()
        for name in ("points", "seeds", "seed", "experiments"):  # what says most, first
            check_same({name: description[name]}, there, str(folder.path))
        if not chosen.inexact:
            advice = INEXACT.replace("run", "sweep")
            check_same(
                circumstances(chosen.shard), there["circumstances"], str(folder.path), advice
            )
    else:
        if folder is not None:
            folder.check(overwrite)
        _check(groups, seeds, chosen)
    result = _Sweep(description, groups, folder, begun, chosen, memory, on_row).run()
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


def resume_sweep(
    path: str | pathlib.Path, *, on_row: OnRow | None = None, **options: Any
) -> SweepResult:
    """Goes on with the sweep in a folder, as it was begun.

    Args:
        path: The sweep's folder.
        on_row: As in :func:`sweep`; give it again.
        **options: Fields of :class:`purerl.RunOptions` that are to be others than at its beginning
            (writers of your own are to be given again); ``algorithm``, ``env``, ``network``, where
            all points were begun with one object.

    Raises:
        FileNotFoundError: If the folder holds no sweep.
        ValueError: If a checkpoint is damaged, or of another version.
    """
    use_all_cores()  # before anything computes: making the environment does
    config = read_sweep(RunFolder(path))
    given = {name: options.pop(name) for name in [*options] if name not in OPTIONS}
    experiments = iter([Experiment.from_json(data, **given) for data in config["experiments"]])
    return sweep(
        lambda **point: next(experiments),
        config["points"],
        seeds=config["seeds"],
        seed=config["seed"],
        out=path,
        resume=True,
        on_row=on_row,
        **config.get("options", {}) | options,
    )


def _check(groups: list[Group], seeds: int, options: RunOptions) -> None:
    """Raises what a point's numbers are wrong with, before any time is spent on another."""
    for group in groups:
        rows = len(group.points) * seeds
        make_layout(options.shard, rows, group.experiment.loop.num_envs)
        train = group.experiment.build()
        jax.eval_shape(
            lambda key, train=train: train.advance(train.init(key), 1), jax.random.key(0)
        )


@dataclasses.dataclass
class _Sweep:
    """Trains group after group, part after part."""

    description: dict[str, Any]
    groups: list[Group]
    folder: RunFolder | None
    begun: bool  # whether the folder holds this sweep
    options: RunOptions
    memory: int | None
    on_row: OnRow | None
    compilations: int = 0
    stopped: Stopped | None = None
    trouble: str | None = None

    def __post_init__(self):
        self.seeds = self.description["seeds"]
        self.known = Collected(self.description["points"], self.seeds)
        self.keys = jax.random.split(jax.random.key(self.description["seed"]), self.seeds)

    def run(self) -> SweepResult:
        """Everything."""
        for number, group in enumerate(self.groups):
            self._train_group(number, group)
            if self.stopped:
                break
        return self.known.result(self.compilations, self.stopped, self.trouble)

    def _train_group(self, number: int, group: Group) -> None:
        """In as few parts as fit into memory; parts of one size are trained by one program."""
        rows, size = len(group.points) * self.seeds, 0
        driver: Driver | None = None
        where = self.folder.path / f"group-{number:03d}" if self.folder else None
        if where and self.begun and (found := sorted(where.glob("rows-*"))):
            # As it was split before: the bits of a run depend on how many are side by side.
            size = int(found[0].name.split("-")[2])
        size = int(from_hosts(np.array(size, np.int32))[0])
        if not size:
            devices = jax.device_count() if self.options.shard == "seeds" else 1
            driver = largest(lambda count: self._compiled(group, 0, count), rows, devices)
            size = self._size(driver, rows)
        for first in range(0, rows, size):
            part = self._part(group, first, min(first + size, rows), where)
            if self._is_finished(part):
                continue
            if driver is None or driver.seeds != part.last - part.first:
                driver = None  # frees its memory, before another one takes some
                driver = self._compiled(group, part.first, part.last)
            elif part.first:  # the first part's rows are those it was compiled with
                driver.use(*self._rows(group, part.first, part.last))
            title = f"group {number + 1} of {len(self.groups)}, rows {first} to {part.last - 1}"
            self._train(part, driver, title)
            if self.stopped:
                return

    def _part(self, group: Group, first: int, last: int, where: pathlib.Path | None) -> _Part:
        description = {
            **group.experiment.to_json(),
            "values": group.values,
            "points": group.points,
            "rows": [first, last],
            "seeds": self.seeds,
            "seed": self.description["seed"],
        }
        folder = None if where is None else RunFolder(where / f"rows-{first:06d}-{last:06d}")
        return _Part(group, first, last, folder, description)

    def _size(self, driver: Driver, rows: int) -> int:
        """How many rows are trained side by side, by the compiler's analysis of some."""
        memory = SPARE * memory_bytes() if self.memory is None else self.memory
        devices = driver.layout.mesh.size if driver.layout.shard == "seeds" else 1
        needed = driver.program_bytes()
        if self.folder is not None:  # a checkpoint copies their state
            needed += tree_bytes(driver.template().state) // devices
        size = fitting(driver.seeds, rows, needed, memory / jax.device_count(), devices)
        return int(from_hosts(np.array(size, np.int32)).min())

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
            return experiment.replace(**values).build()

        driver = Driver(build, *self._rows(group, first, last), layout)
        driver.compile()
        self.compilations += 1
        return driver

    def _is_finished(self, part: _Part) -> bool:
        """Whether a part was trained before; then what it came to is known from now on."""
        folder = part.folder if self.begun else None
        begun = agreed(folder is not None and folder.begun())
        if folder is None or not begun or not (host := read_host(folder)) or not host["finished"]:
            return False
        check_same(part.description, host["run"], str(folder.path))
        self.known.add_host(host)
        return True

    def _train(self, part: _Part, driver: Driver, title: str) -> None:
        self._create()
        experiment, points = part.group.experiment, part.group.points
        point, seed = (x[part.first : part.last] for x in self.known.names(points))
        session = Session(
            driver,
            experiment.label,
            experiment.loop.evaluations > 0,
            part.folder,
            part.description,
            self.options,
            {**frame.point_columns(self.known.points, point), "seed": seed},
            title,
            on_row=self.on_row,
        )
        outcome = session.run(agreed(part.folder is not None and part.folder.begun()))
        self.stopped, self.trouble = outcome.stopped, outcome.trouble or self.trouble
        finished = driver.done == driver.train.iterations
        curves = outcome.steps, outcome.returns, outcome.failed
        self.known.add(points, part.first, *curves, finished, driver.seconds)

    def _create(self) -> None:
        """Makes the sweep's folder, only now: what does not compile deletes nothing."""
        if self.folder is None or self.begun:
            return
        self.begun = True
        description = {**self.description, "circumstances": circumstances(self.options.shard)}
        from_hosts(np.zeros(()))  # all hosts have looked at the folder before one writes to it
        if jax.process_index() == 0:
            self.folder.create(description, self.options.to_json())
        from_hosts(np.zeros(()))


def largest(compiled: Callable[[int], Driver], rows: int, devices: int) -> Driver:
    """A program of as many rows as the compiler takes: TPUs' refuses what is larger than the
    memory, instead of saying how large it is.

    Args:
        compiled: The program of so many rows.
        rows: How many are wished.
        devices: Among which they are shared evenly.
    """
    while True:
        try:
            return compiled(rows)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or rows <= devices:
                raise
            rows = math.ceil(rows / 2 / devices) * devices


def fitting(rows: int, all_rows: int, needed: float, there: float, devices: int) -> int:
    """How many rows fit into memory side by side, in parts as equal as they can be.

    Args:
        rows: Of the program that was analysed.
        all_rows: That are to be trained.
        needed: Bytes that the program takes on each device.
        there: Bytes that each device has.
        devices: Among which rows are shared evenly.

    Raises:
        ValueError: If not even one row a device fits.

    Example:
        >>> fitting(10, 10, needed=1000, there=600, devices=2)
        6
    """
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
