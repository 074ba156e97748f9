"""Whole runs from the host: ``run`` and ``resume``."""

import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl.config import check_integer
from purerl.host.chunks import Session
from purerl.host.devices import agreed, from_hosts, make_layout
from purerl.host.experiment import Experiment
from purerl.host.options import RunOptions, Stopped, Terminated
from purerl.host.programs import Driver
from purerl.host.report.aggregate import iqm, iqm_interval
from purerl.host.report.plotting import plot_curves, save_plot
from purerl.host.resources import check_replay, format_bytes
from purerl.host.store.folder import PLOT, RunFolder, check_same
from purerl.host.store.policy import read_run
from purerl.training.seeds import use_all_cores
from purerl.training.state import TrainState


class RunResult(NamedTuple):
    """What a run came to."""

    state: TrainState  # leaves [S, ...]
    steps: np.ndarray  # [E]
    returns: np.ndarray  # [S, E]
    failed: np.ndarray  # [S] bool
    seconds: dict[str, float]  # compiling, training, evaluating
    steps_per_second: float  # of training, over all seeds
    stopped: Stopped | None = None  # what ended it: a signal, or a seed's failure; None: its end
    trouble: str | None = None  # what could not be written

    def summary(self) -> str:
        """One line: IQM of the last evaluation, seconds, steps a second, failed seeds."""
        parts = []
        if len(self.steps):
            last = self.returns[:, -1]
            low, high = iqm_interval(last)
            failed = f", {self.failed.sum()} of them failed," if self.failed.any() else ""
            parts.append(
                f"return {iqm(last):.1f} (IQM of {len(last)} seeds{failed} at {self.steps[-1]:,} "
                f"steps, 95 % interval {low:.1f} to {high:.1f})"
            )
        parts += [f"{value:.1f} s {what}" for what, value in self.seconds.items()]
        parts.append(f"{self.steps_per_second:,.0f} steps/s")
        if self.failed.any():
            names = ", ".join(map(str, np.flatnonzero(self.failed)))
            parts.append(f"{self.failed.sum()} failed seeds: {names}")
        return " | ".join(parts)


def run(
    experiment: Experiment,
    *,
    seeds: int = 16,
    seed: int = 0,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> RunResult:
    """Trains ``seeds`` seeds at once and writes what comes of it to a folder.

    Ctrl-C ends the run after the chunk that was begun last, with a last checkpoint, and makes this
    function return what there is; a second Ctrl-C ends it at once. SIGTERM ends the process, after
    a last checkpoint too. What was killed is resumed from its newest checkpoint. Wherever it was
    cut, the run is bitwise the one that never was, on the same versions and devices.

    Args:
        experiment: What to train; :func:`purerl.make_experiment` makes one.
        seeds: How many, S; a multiple of the number of CPU cores uses all of them.
        seed: Seed s of this run starts from ``split(key(seed), S)[s]``.
        out: Folder for config, evaluations, checkpoints and plot; None: nothing is written.
        overwrite: Whether a run in that folder may be deleted.
        resume: Go on with the run in that folder, if there is one; it must be this one.
        **options: Fields of :class:`purerl.RunOptions`.

    Returns:
        What came of it. What could not be written because a disk was full is in ``trouble``, and a
        warning; the result itself is whole.

    Raises:
        ValueError: If ``seeds`` is less than 1, the experiment's numbers do not fit together, the
            replay buffers do not fit into memory, the run to be resumed is another one, or its
            checkpoint is damaged.
        FileExistsError: If ``out`` exists and is neither to be overwritten nor resumed.
        OSError: If the folder cannot be made.
        Terminated: A ``SystemExit``, after SIGTERM; its ``result`` is what would be returned.
    """
    chosen = RunOptions.of(options)
    check_integer("run", "seeds", seeds, 1)
    if resume and (out is None or overwrite):
        raise ValueError("run: resume goes on with the run in out; give out, and no overwrite.")
    use_all_cores()
    train = experiment.build()
    replicas = jax.device_count() if chosen.shard == "environments" else 1
    needed = check_replay(train, seeds, checkpoints=out is not None, replicas=replicas)
    if needed and chosen.progress and jax.process_index() == 0:
        print(f"replay buffers: {format_bytes(needed)} for {seeds} seeds")
    layout = make_layout(chosen.shard, seeds, experiment.loop.num_envs)
    description = {**experiment.to_json(), "seeds": seeds, "seed": seed}
    folder = None if out is None else RunFolder(out)
    begun = agreed(resume and folder is not None and folder.begun())
    if folder is not None and begun:
        check_same(description, folder.read_config(), str(folder.path))
    elif folder is not None:
        folder.check(overwrite)
    from_hosts(np.zeros(()))  # all hosts have looked at the folder before one writes to it
    keys = jax.random.split(jax.random.key(seed), seeds)
    driver = Driver(lambda values: experiment.build(), {}, keys, layout)
    label = f"{experiment.algorithm} on {experiment.env}"
    evaluated = experiment.loop.evaluations > 0
    outcome = Session(driver, label, evaluated, folder, description, chosen).run(begun)
    trouble = outcome.trouble
    if folder is not None and evaluated and jax.process_index() == 0:
        curve = {experiment.algorithm: (outcome.steps, outcome.returns)}
        try:
            save_plot(plot_curves(curve, experiment.env), folder.path / PLOT)
        except OSError as error:
            trouble = trouble or str(error)
    if trouble:
        warnings.warn(f"not everything could be written: {trouble}", RuntimeWarning, stacklevel=2)
    result = RunResult(
        driver.state,
        outcome.steps,
        outcome.returns,
        outcome.failed,
        driver.seconds,
        driver.step * seeds / max(driver.seconds["training"], 1e-9),
        outcome.stopped,
        trouble,
    )
    if outcome.stopped == "SIGTERM":
        raise Terminated(result)
    return result


def resume(path: str | pathlib.Path, **options: Any) -> RunResult:
    """Goes on with the run in a folder, as it was begun.

    Args:
        path: The run's folder.
        **options: Fields of :class:`purerl.RunOptions` that are to be others than at its beginning
            (writers of your own are to be given again).

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its checkpoint is damaged, or of another version.
    """
    use_all_cores()  # before anything computes: making the environment does
    config = read_run(RunFolder(path))
    return run(
        Experiment.from_json(config),
        seeds=config["seeds"],
        seed=config["seed"],
        out=path,
        resume=True,
        **config.get("options", {}) | options,
    )
