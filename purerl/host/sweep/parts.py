"""Sweeps: hyper-parameters x seeds in as few compilations as their shapes allow."""

import csv
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from purerl.config import check_integer, python_number
from purerl.host import resources
from purerl.host.chunks import OnRow, Session
from purerl.host.compilation import cached_programs
from purerl.host.devices import agreed, from_hosts, make_layout
from purerl.host.experiment import Experiment, make_experiment
from purerl.host.options import RunOptions, Stopped, Terminated
from purerl.host.players.driver import make_driver
from purerl.host.programs import Driver
from purerl.host.report import frame
from purerl.host.runs import finish, open_folder, split
from purerl.host.store.checkpoint import INEXACT, read_host
from purerl.host.store.folder import RunFolder, check_same, read_sweep
from purerl.host.store.provenance import circumstances
from purerl.host.sweep.points import Group, described, grid as combinations, make_groups
from purerl.host.sweep.result import SweepResult, collect
from purerl.training.seeds import use_all_cores

TABLE = "sweep.csv"
SPARE = 0.9  # of the memory: what else needs some


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
    memory_bytes: int | None = None,
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
        memory_bytes: What one part may take on all devices together; by default nine tenths of what
            they have.
        on_row: As in :func:`purerl.run`; rows are points x seeds, and have their hyper-parameters.
        **options: Fields of :class:`purerl.RunOptions`; with ``grid`` also what
            :func:`purerl.make_experiment` takes.

    Returns:
        The points with their returns ``[P, S, E]``; ``table()`` ranks them.

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
        options, numbers = split(options)
        experiment, values = functools.partial(make_experiment, experiment, values, **numbers), grid
    chosen = RunOptions.of(options)
    seeds = check_integer("sweep", "seeds", seeds)
    seed = check_integer("sweep", "seed", seed, "[0, inf)")
    if memory_bytes is not None:
        check_integer("sweep", "memory_bytes", memory_bytes)
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
    description: dict[str, Any] = {
        "points": described(points),
        "experiments": [experiment.to_json() for experiment in experiments],
        "seeds": seeds,
        "seed": seed,
    }
    groups = make_groups(experiments)
    folder, config = open_folder("sweep", out, resume, overwrite)
    if folder and config:
        _check_resumed(description, config, chosen, str(folder.path))
    else:
        _check_groups(groups, seeds, chosen)
    driven = _Sweep(description, folder, config is not None, chosen, memory_bytes, on_row)
    with cached_programs(chosen.cache):
        records = list(driven.train(groups))
    result = collect(description["points"], seeds, records, driven.compilations)
    result = result._replace(stopped=result.stopped or driven.stopped)
    return finish(result, folder, _write_table)


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

    Returns:
        The result of the whole sweep, as :func:`sweep` gives it.

    Raises:
        FileNotFoundError: If the folder holds no sweep.
        ValueError: If a checkpoint is damaged, or of another version.
    """
    use_all_cores()  # before anything computes: making the environment does
    config = read_sweep(RunFolder(path))
    drive, given = split(options)
    experiments = iter([Experiment.from_json(data, **given) for data in config["experiments"]])
    make = lambda **point: next(experiments)  # noqa: E731
    again = config.get("options", {}) | drive | {name: config[name] for name in ("seeds", "seed")}
    return sweep(make, config["points"], out=path, resume=True, on_row=on_row, **again)


def _check_resumed(
    description: dict[str, Any], config: dict[str, Any], options: RunOptions, where: str
) -> None:
    """Raises ValueError where the folder holds another sweep, or one of other versions."""
    for name in ("points", "seeds", "seed", "experiments"):  # what says most, first
        check_same({name: description[name]}, config, where)
    if not options.inexact:
        advice = INEXACT.replace("run", "sweep")
        check_same(circumstances(options.shard), config["circumstances"], where, advice)


def _check_groups(groups: list[Group], seeds: int, options: RunOptions) -> None:
    """Raises what a point's numbers are wrong with, before any time is spent on another."""
    for group in groups:
        rows = len(group.points) * seeds
        make_layout(options.shard, rows, group.experiment.loop.num_envs)
        train = group.experiment.build()
        state = jax.eval_shape(train.init, jax.random.key(0))
        jax.eval_shape(train.loop.iterate, state)


def _write_table(result: SweepResult, path: pathlib.Path) -> None:
    """Writes the ranking as ``sweep.csv``."""
    if rows := result.ranked():
        with (path / TABLE).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["rank", *rows[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"rank": i, **row} for i, row in enumerate(rows, 1))


@dataclasses.dataclass
class _Sweep:
    """Trains group after group, part after part: some rows (points x seeds) side by side."""

    description: dict[str, Any]
    folder: RunFolder | None
    begun: bool  # whether the folder holds this sweep
    options: RunOptions
    memory: int | None  # in bytes
    on_row: OnRow | None
    compilations: int = 0
    stopped: Stopped | None = None  # what ended it between two parts
    driver: Driver | None = None

    def __post_init__(self):
        self.points, self.seeds = self.description["points"], self.description["seeds"]
        self.keys = jax.random.split(jax.random.key(self.description["seed"]), self.seeds)

    def train(self, groups: list[Group]) -> Iterator[dict[str, Any]]:
        """Trains parts until one is stopped; yields what the last checkpoint of each says.

        A signal that comes while the program of a later part is compiled loses none before it.

        Args:
            groups: Of points. Each is trained in as few parts as fit into memory; parts of one size
                are trained by one program.
        """
        parts = self._parts(groups)
        yield next(parts)
        try:
            yield from parts
        except KeyboardInterrupt:
            self.stopped = "SIGINT"
        except Terminated:
            self.stopped = "SIGTERM"

    def _parts(self, groups: list[Group]) -> Iterator[dict[str, Any]]:
        for number, group in enumerate(groups):
            self.driver = None  # frees its memory, before another one takes some
            rows = len(group.points) * self.seeds
            where = self.folder.path / f"group-{number:03d}" if self.folder else None
            size = self._size(group, rows, where)
            for first in range(0, rows, size):
                last = min(first + size, rows)
                title = f"group {number + 1} of {len(groups)}, rows {first} to {last - 1}"
                record = self._train_part(group, first, last, where, title)
                yield record
                if record.get("stopped"):
                    return

    def _size(self, group: Group, rows: int, where: pathlib.Path | None) -> int:
        """How many rows are trained side by side, by the compiler's analysis of some."""
        size = 0
        if where and self.begun and (found := sorted(where.glob("rows-*"))):
            # As it was split before: the bits of a run depend on how many are side by side.
            size = int(found[0].name.split("-")[2])
        if size := int(from_hosts(np.array(size, np.int32))[0]):
            return size
        devices = jax.device_count() if self.options.shard == "seeds" else 1
        driver = self.driver = largest(lambda count: self._compiled(group, 0, count), rows, devices)
        memory = SPARE * resources.memory_bytes() if self.memory is None else self.memory
        devices = driver.layout.mesh.size if driver.layout.shard == "seeds" else 1
        needed = driver.program_bytes()
        if self.folder is not None:  # a checkpoint copies their state
            needed += resources.tree_bytes(driver.template()[0]) // devices
        size = resources.fitting(driver.seeds, rows, needed, memory / jax.device_count(), devices)
        return int(from_hosts(np.array(size, np.int32)).min())

    def _train_part(
        self, group: Group, first: int, last: int, where: pathlib.Path | None, title: str
    ) -> dict[str, Any]:
        """Trains rows of a group, unless that was done before."""
        description = {
            **group.experiment.to_json(),
            "values": group.values,
            "points": group.points,
            "rows": [first, last],
            "seeds": self.seeds,
            "seed": self.description["seed"],
        }
        folder = RunFolder(where / f"rows-{first:06d}-{last:06d}") if where else None
        begun = agreed(self.begun and folder is not None and folder.begun())
        if folder is not None and begun and (record := read_host(folder)) and record["finished"]:
            check_same(description, record["run"], str(folder.path))
            return record
        names, values, keys = self._rows(group, first, last)
        if self.driver is None or self.driver.seeds != last - first:
            self.driver = None  # frees its memory, before another one takes some
            self.driver = self._compiled(group, first, last)
        elif first:  # the first part's rows are those it was compiled with
            self.driver.use(values, keys)
        self._create()
        how = description, self.options, self.on_row
        session = Session(self.driver, folder, *how, names=names, title=title)
        return {"run": description, **session.run(begun)}

    def _rows(self, group: Group, first: int, last: int) -> Any:
        """Names, swept numbers, keys of some rows: point after point, their seeds in each."""
        point, seed = np.divmod(np.arange(first, last), self.seeds)
        values = {name: np.array(x, float)[point] for name, x in group.values.items()}
        columns = frame.point_columns(self.points, np.array(group.points)[point])
        return {**columns, "seed": seed}, values, self.keys[seed]

    def _compiled(self, group: Group, first: int, last: int) -> Driver:
        _, values, keys = self._rows(group, first, last)
        try:
            driver = make_driver(group.experiment, values, keys, self.options)
            driver.compile()
        except ASKED as error:
            if not values:
                raise
            raise TypeError(
                f"sweep: one program trains all values of {', '.join(values)}, and code of yours "
                "asks for one of them, as `if` and float() do; write jnp.where and jnp.asarray, or "
                "make it an int or a str, for each of which there is a program."
            ) from error
        self.compilations += 1
        return driver

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


# What JAX raises where Python asks for a number that is not known yet.
ASKED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


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
