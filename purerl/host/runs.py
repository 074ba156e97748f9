"""Whole runs from the host: ``run`` and ``resume``."""

import dataclasses
import pathlib
import sys
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl.config import check_integer, plain, suggest
from purerl.host import brought
from purerl.host.chunks import OnRow, Session
from purerl.host.devices import agreed, from_hosts, make_layout
from purerl.host.experiment import Experiment, check_format, make_experiment
from purerl.host.options import RunOptions, Terminated
from purerl.host.pacing import Surroundings
from purerl.host.report.plotting import plot_curves, save_plot
from purerl.host.resources import check_replay, format_bytes
from purerl.host.result import RunResult
from purerl.host.store.folder import PLOT, RunFolder, check_run, check_same
from purerl.host.store.policy import read_run
from purerl.host.warm_start import learned_of
from purerl.training.seeds import use_all_cores

OPTIONS = [field.name for field in dataclasses.fields(RunOptions)]


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
    surroundings: Surroundings = Surroundings(),  # noqa: B008  (immutable)
    **options: Any,
) -> RunResult:
    """Trains ``seeds`` seeds at once and writes what comes of it to a folder.

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
        surroundings: Clock, signals and length of chunks; for tests.
        **options: Fields of :class:`purerl.RunOptions`, and numbers of the experiment.

    Returns:
        What came of it. What could not be written because a disk was full is in ``trouble``, and a
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
    chosen = RunOptions(**{k: x for k, x in options.items() if k in OPTIONS})
    changes = {k: x for k, x in options.items() if k not in OPTIONS}
    if network is not None:
        changes["network"] = network
    if env_params is not None:
        changes["env_params"] = env_params
    seeds, seed = check_integer("run", "seeds", seeds, 1), check_integer("run", "seed", seed, 0)
    if resume and (out is None or overwrite):
        raise ValueError("run: resume goes on with the run in out; give out, and no overwrite.")
    if not isinstance(experiment, Experiment):
        if env is None:
            brought.algorithm_entry(experiment)  # if it is none, that is what is wrong
            raise TypeError(
                "run got an algorithm and no env: purerl.run('ppo_clip', 'CartPole-v1')."
            )
        given = {k: changes.pop(k) for k in ("network", "env_params") if k in changes}
        experiment = make_experiment(experiment, env, **given)
    elif env is not None:
        raise TypeError("run got an Experiment and env; give experiment.replace(...) alone.")
    known = {"network", "env_params", *OPTIONS, *experiment.options()}
    for name in changes:
        if name not in known:
            raise TypeError(f"run has no option {name!r}. {suggest(name, sorted(known))}")
    experiment = experiment.replace(**changes)
    folder = None if out is None else RunFolder(out)
    begun = agreed(resume and folder is not None and folder.begun())
    return _Run(experiment, seeds, seed, folder, chosen, on_row, surroundings).train(
        begun, overwrite, start_from
    )


class _Run(NamedTuple):
    """A run that was checked, and what drives it."""

    experiment: Experiment
    seeds: int
    seed: int
    folder: RunFolder | None
    options: RunOptions
    on_row: OnRow | None
    surroundings: Surroundings

    def train(
        self, begun: bool, overwrite: bool, start_from: Any, extended: bool = False
    ) -> RunResult:
        """Everything.

        Args:
            begun: Whether the folder holds this run.
            overwrite: Whether it may hold another, to be deleted.
            start_from: What the run begins with.
            extended: Whether it may have more steps than before.
        """
        experiment, seeds, folder, options = self.experiment, self.seeds, self.folder, self.options
        train = experiment.build()
        replicas = jax.device_count() if options.shard == "environments" else 1
        needed = check_replay(train, seeds, checkpoints=folder is not None, replicas=replicas)
        layout = make_layout(options.shard, seeds, experiment.loop.num_envs)
        learned, recorded = None, None
        if start_from is not None:
            learned, recorded = learned_of(start_from, experiment, seeds)
        description = {
            **experiment.to_json(),
            "seeds": seeds,
            "seed": self.seed,
            "start_from": recorded,
        }
        if folder is not None and begun:
            there = folder.read_config()
            check_format(there)
            if start_from is None and folder.iterations():  # what it began with is behind it
                description["start_from"] = there["start_from"]
            (check_run if extended else check_same)(description, there, str(folder.path))
        elif folder is not None:
            folder.check(overwrite)
        if options.progress and jax.process_index() == 0:
            if needed:
                print(f"replay buffers: {format_bytes(needed)} for {seeds} seeds")
            if layout.mesh.size < min(seeds, jax.device_count()):
                used = f"{layout.mesh.size} of {jax.device_count()} devices"
                print(f"{seeds} seeds use {used}; a multiple of {jax.device_count()} uses all")
            if experiment.loop.evaluations:
                share = f"at most {train.evaluation_share:.2g} times the steps of training"
                each = f"{train.evaluation_episodes} episodes"
                print(f"{len(train.evaluate_at)} evaluations of {each} a seed: {share}")
        from_hosts(np.zeros(()))  # all hosts have looked at the folder before one writes to it
        keys = jax.random.split(jax.random.key(self.seed), seeds)
        driver = self.surroundings.driver(lambda values: train, {}, keys, layout)
        evaluated = experiment.loop.evaluations > 0
        outcome = Session(
            driver,
            experiment.label,
            evaluated,
            folder,
            description,
            options,
            on_row=self.on_row,
            learned=learned,
            surroundings=self.surroundings,
        ).run(begun)
        result = RunResult(
            driver.state,
            *outcome[:3],
            driver.seconds,
            driver.step * seeds / max(driver.seconds["training"], 1e-9),
            outcome.stopped,
            outcome.trouble or self._plot(outcome.steps, outcome.returns),
            experiment,
        )
        if result.trouble:
            what = f"not everything could be written: {result.trouble}"
            warnings.warn(what, RuntimeWarning, stacklevel=3)
        if outcome.stopped == "SIGTERM":
            raise Terminated(result)
        return result

    def _plot(self, steps: np.ndarray, returns: np.ndarray) -> str | None:
        """Draws the learning curve; why it could not be written."""
        if self.folder is None or not len(steps) or jax.process_index() != 0:
            return None
        names = (brought.short_name(x) for x in (self.experiment.algorithm, self.experiment.env))
        label, title = names
        try:
            save_plot(plot_curves({label: (steps, returns)}, title), self.folder.path / PLOT)
        except OSError as error:
            return str(error)
        return None


def resume(
    path: str | pathlib.Path,
    *,
    steps: int | None = None,
    start_from: Any = None,
    on_row: OnRow | None = None,
    surroundings: Surroundings = Surroundings(),  # noqa: B008  (immutable)
    **options: Any,
) -> RunResult:
    """Goes on with the run in a folder, as it was begun.

    Args:
        path: The run's folder. The code that its import paths name is imported.
        steps: More environment steps than it was begun with, of a run that is finished or not. What
            is annealed follows the new length from there on.
        start_from: Needed again if that was a result and there is no checkpoint yet.
        on_row: As in :func:`run`; give it again.
        surroundings: As in :func:`run`.
        **options: Fields of :class:`purerl.RunOptions` that are to be others than at its beginning
            (writers of your own are to be given again); ``algorithm``, ``env``, ``network``, where
            it was begun with objects; functions of progress.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its checkpoint is damaged, or of another version, or ``steps`` is less than
            before.
    """
    use_all_cores()  # before anything computes: making the environment does
    folder = RunFolder(path)
    config = read_run(folder)
    given = {k: x for k, x in options.items() if k not in OPTIONS}
    drive = {k: x for k, x in options.items() if k in OPTIONS}
    experiment = Experiment.from_json(config, **given)
    chosen = RunOptions.of(config.get("options", {}) | drive)
    if steps is not None:
        experiment = _extended(experiment, steps, chosen.progress)
    recorded = config["start_from"]
    if recorded and start_from is None and not folder.iterations():
        if recorded["path"] is None:
            raise ValueError(
                f"{folder.path} has no checkpoint yet and was begun with a result in memory; give "
                "it again (start_from=...)."
            )
        start_from = recorded["path"]
    job = _Run(experiment, config["seeds"], config["seed"], folder, chosen, on_row, surroundings)
    return job.train(True, False, start_from, extended=True)


def _extended(experiment: Experiment, steps: int, tell: bool) -> Experiment:
    before, longer = experiment.loop.steps, experiment.replace(steps=steps)
    if longer.loop.steps < before:
        raise ValueError(
            f"resume: steps={steps} is less than the run's {before}; a run can be extended, not "
            "shortened."
        )
    if tell and longer.loop.steps > before and jax.process_index() == 0:
        config = plain(experiment.config)
        names = [k for k, x in config.items() if x in ("linear", "cosine") or isinstance(x, dict)]
        follow = ", ".join(x for x in names if x != "network") or "progress"
        what = f"from {before:,} to {longer.loop.steps:,} steps; {follow} of the new length"
        print(f"the run is extended {what} from here on", file=sys.stderr)
    return longer
