"""Whole runs from the host: ``run`` and ``resume``."""

import dataclasses
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from purerl.config import check_integer, plain, suggest
from purerl.host import brought
from purerl.host.chunks import OnRow, Session
from purerl.host.compilation import cached_programs
from purerl.host.devices import agreed, from_hosts
from purerl.host.experiment import Experiment, check_format, make_experiment
from purerl.host.options import RunOptions, Terminated
from purerl.host.players.driver import make_driver
from purerl.host.programs import Driver
from purerl.host.report.plotting import plot_curves, save_plot
from purerl.host.resources import check_replay, format_bytes
from purerl.host.result import RunResult, from_record
from purerl.host.store.folder import PLOT, RunFolder, check_same, read_run
from purerl.host.warm_start import learned_of
from purerl.training.seeds import use_all_cores

NAMES = [field.name for field in dataclasses.fields(RunOptions)]


def run(
    experiment: Any,
    env: Any = None,
    *,
    network: Any = None,
    env_params: dict[str, Any] | None = None,
    seeds: int = 16,
    seed: int = 0,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    start_from: Any = None,
    on_row: OnRow | None = None,
    driver: Callable[..., Driver] = make_driver,
    **options: Any,
) -> RunResult:
    """Trains ``seeds`` seeds at once and writes the results to a folder.

    Ctrl-C ends the run after the chunk that was begun last, with a last checkpoint, and makes this
    function return what there is; a second Ctrl-C ends it at once. SIGTERM ends the process, after
    a last checkpoint too. What was killed is resumed from its newest checkpoint. Wherever it was
    cut, the run is bitwise the one that never was, on the same versions and devices.

    Args:
        experiment: What to train, as :func:`purerl.make_experiment` makes it; or an algorithm that
            it takes, with ``env``.
        env: An environment that :func:`purerl.make_experiment` takes.
        network: As there.
        env_params: As there.
        seeds: How many, S; a multiple of the number of CPU cores uses all of them.
        seed: Seed s of this run starts from ``split(key(seed), S)[s]``.
        out: Folder for config, evaluations, checkpoints and plot; None: nothing is written.
        overwrite: Whether a run in that folder may be deleted; it is when the new one has begun.
        resume: Go on with the run in that folder, if there is one; it must be this one.
        start_from: The folder or result of another run, whose learners and normalizers this one
            begins with; of as many seeds, or of one for all.
        on_row: Called with the columns ``[S]`` of each row of the log, by name. It may return more
            columns, always the same ones, or ``purerl.STOP``, which ends the run with a checkpoint.
            What it raises ends the run too. Each of several hosts calls it with the same columns.
        driver: Makes what holds the programs, and the length of chunks; for tests.
        **options: Fields of :class:`purerl.RunOptions`, and numbers of the experiment.

    Returns:
        The result. What could not be written because a disk was full is in ``trouble``, and a
        warning; the result itself is whole.

    Raises:
        ValueError: If ``seeds`` is less than 1, the experiment's numbers do not fit together, the
            replay buffers do not fit into memory, the run to be resumed is another one, or its
            checkpoint is damaged.
        TypeError: If an option is unknown, or ``experiment`` is something else.
        FileExistsError: If ``out`` exists and is neither to be overwritten nor resumed.
        OSError: If the folder cannot be made.
        Terminated: A ``SystemExit``, after SIGTERM; its ``result`` is what would be returned.

    Example:
        >>> result = run("a2c", "CartPole-v1", steps=2000, evaluations=1, seeds=2, progress=False)
        >>> result.returns.shape, result.policy()([0.0, 0.1, 0.0, 0.1]) in (0, 1)
        ((2, 1), True)
    """
    use_all_cores()  # before anything computes: making the environment does
    drive, numbers = split(options)
    chosen = RunOptions.of(drive)
    seeds = check_integer("run", "seeds", seeds)
    seed = check_integer("run", "seed", seed, "[0, inf)")
    experiment = _experiment(experiment, env, network, env_params, numbers)
    folder, config = open_folder("run", out, resume, overwrite)
    if config is not None:
        check_format(config)
    result = _train(experiment, seeds, seed, folder, config, chosen, start_from, on_row, driver)
    return finish(result, folder, _plot)


def resume(
    path: str | pathlib.Path,
    *,
    steps: int | None = None,
    start_from: Any = None,
    on_row: OnRow | None = None,
    driver: Callable[..., Driver] = make_driver,
    **options: Any,
) -> RunResult:
    """Goes on with the run in a folder, as it was begun.

    Args:
        path: The run's folder. The code that its import paths name is imported.
        steps: More environment steps than it was begun with, of a run that is finished or not. What
            is annealed follows the new length from there on.
        start_from: Needed again if that was a result and there is no checkpoint yet.
        on_row: As in :func:`run`; give it again.
        driver: As in :func:`run`.
        **options: Fields of :class:`purerl.RunOptions` that are to be others than at its beginning
            (writers of your own are to be given again); ``algorithm``, ``env``, ``network``, where
            it was begun with objects; functions of progress, and ``env_params`` with functions that
            no import path names.

    Returns:
        The result of the whole run, as :func:`run` gives it.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its checkpoint is damaged, or of another version, or ``steps`` is less than
            before.

    Example:
        >>> import tempfile
        >>> folder = f"{tempfile.mkdtemp()}/run"
        >>> sizes = dict(steps=2000, evaluations=1, seeds=2)
        >>> _ = run("a2c", "CartPole-v1", **sizes, out=folder, progress=False)
        >>> resume(folder, steps=3000, progress=False).steps.tolist()
        [2000, 3000]
    """
    use_all_cores()  # before anything computes: making the environment does
    folder = RunFolder(path)
    config = read_run(folder)
    drive, given = split(options)
    experiment = Experiment.from_json(config, **given)
    chosen = RunOptions.of(config.get("options", {}) | drive)
    if steps is not None:
        experiment = _extended(experiment, steps, chosen.progress)
        config["loop"]["steps"] = experiment.loop.steps
    of_seeds = config["seeds"], config["seed"]
    result = _train(experiment, *of_seeds, folder, config, chosen, start_from, on_row, driver)
    return finish(result, folder, _plot)


def split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of RunOptions, and the others.

    Args:
        options: Keyword arguments of a function.
    """
    drive = {name: x for name, x in options.items() if name in NAMES}
    return drive, {name: x for name, x in options.items() if name not in NAMES}


def open_folder(
    what: str, out: str | pathlib.Path | None, resume: bool, overwrite: bool
) -> tuple[RunFolder | None, dict[str, Any] | None]:
    """The folder of a run or sweep; and what its ``config.json`` holds, if that is gone on with.

    All hosts call it. See :func:`run` for what it raises.

    Args:
        what: ``run`` or ``sweep``.
        out: The folder; None: nothing is written.
        resume: Go on with what is in it.
        overwrite: Whether what is in it may be deleted.
    """
    if resume and (out is None or overwrite):
        wanted = "give out, and no overwrite"
        raise ValueError(f"{what}: resume goes on with the {what} in out; {wanted}.")
    if out is None:
        return None, None
    folder = RunFolder(out)
    if agreed(resume and folder.begun()):
        return folder, folder.read_config()
    folder.check(overwrite)
    return folder, None


def finish(
    result: Any, folder: RunFolder | None, write: Callable[[Any, pathlib.Path], None]
) -> Any:
    """The result of a run or sweep, after its plot or table is written.

    Args:
        result: Of the run or sweep.
        folder: Its folder.
        write: Of the result and the folder's path.

    Raises:
        Terminated: After SIGTERM.
    """
    if folder is not None and jax.process_index() == 0:
        try:
            write(result, folder.path)
        except OSError as error:
            result = result._replace(trouble=result.trouble or str(error))
    if result.trouble:
        what = f"not everything could be written: {result.trouble}"
        warnings.warn(what, RuntimeWarning, stacklevel=3)
    if result.stopped == "SIGTERM":
        raise Terminated(result)
    return result


def _experiment(
    experiment: Any, env: Any, network: Any, env_params: Any, numbers: dict[str, Any]
) -> Experiment:
    """What :func:`run` is to train."""
    given = {"network": network, "env_params": env_params}
    changes = {name: x for name, x in given.items() if x is not None}
    if isinstance(experiment, Experiment):
        if env is not None:
            raise TypeError("run got an Experiment and env; give experiment.replace(...) alone.")
    elif env is None:
        brought.algorithm_entry(experiment)  # if it is none, that is what is wrong
        raise TypeError("run got an algorithm and no env: purerl.run('ppo_clip', 'CartPole-v1').")
    else:
        experiment, changes = make_experiment(experiment, env, **changes), {}
    known = {*given, *NAMES, *experiment.options()}
    for name in numbers:
        if name not in known:
            raise TypeError(f"run has no option {name!r}. {suggest(name, sorted(known))}")
    return experiment.replace(**changes, **numbers)


def _train(
    experiment: Experiment,
    seeds: int,
    seed: int,
    folder: RunFolder | None,
    config: dict[str, Any] | None,
    options: RunOptions,
    start_from: Any,
    on_row: OnRow | None,
    make: Callable[..., Driver],
) -> RunResult:
    """Trains a run; ``config`` is that of the folder, if it holds this run already."""
    keys = jax.random.split(jax.random.key(seed), seeds)
    driver = make(experiment, {}, keys, options)
    replicas = jax.device_count() if options.shard == "environments" else 1
    replay = driver.template()[0].replay
    needed = check_replay(replay, seeds, checkpoints=folder is not None, replicas=replicas)
    learned, recorded = learned_of(start_from, experiment, seeds, folder, config)
    description = experiment.to_json() | {"seeds": seeds, "seed": seed, "start_from": recorded}
    if folder and config:
        check_same(description, config, str(folder.path))
    if options.progress and jax.process_index() == 0:
        _tell(driver, needed)
    from_hosts(np.zeros(()))  # all hosts have looked at the folder before one writes to it
    with cached_programs(options.cache):
        session = Session(driver, folder, description, options, on_row, learned)
        return from_record(session.run(config is not None), driver.state, experiment)


def _tell(driver: Driver, replay_bytes: int) -> None:
    """Prints what a run will take."""
    if (outside := driver.experiment.environment.outside) is not None:
        print(*outside.notes, sep="\n")
    train, seeds, used = driver.train, driver.seeds, driver.layout.mesh.size
    if replay_bytes:
        print(f"replay buffers: {format_bytes(replay_bytes)} for {seeds} seeds")
    if used < min(seeds, devices := jax.device_count()):
        print(f"{seeds} seeds use {used} of {devices} devices; a multiple of {devices} uses all")
    if train.evaluate_at:
        share = f"at most {train.evaluation_share:.2g} times the steps of training"
        if train.evaluation_share > 1:
            share += " (evaluation_episodes and evaluations set how many)"
        each = f"{train.evaluation_episodes} episodes"
        print(f"{len(train.evaluate_at)} evaluations of {each} a seed: {share}")


def _plot(result: RunResult, path: pathlib.Path) -> None:
    """Draws the learning curve."""
    if len(result.steps):
        label, title = map(brought.short_name, (result.experiment.algorithm, result.experiment.env))
        curves = {label: (result.steps, result.returns)}
        save_plot(plot_curves(curves, title), path / PLOT)


def _extended(experiment: Experiment, steps: int, tell: bool) -> Experiment:
    before, longer = experiment.loop.steps, experiment.replace(steps=steps)
    if longer.loop.steps < before:
        what = f"steps={steps} is less than the run's {before}"
        raise ValueError(f"resume: {what}; a run can be extended, not shortened.")
    if tell and longer.loop.steps > before and jax.process_index() == 0:
        config = plain(experiment.config)
        names = [k for k, x in config.items() if x in ("linear", "cosine") or isinstance(x, dict)]
        follow = ", ".join(x for x in names if x != "network") or "progress"
        what = f"from {before:,} to {longer.loop.steps:,} steps; {follow} of the new length"
        print(f"the run is extended {what} from here on", file=sys.stderr)
    return longer
