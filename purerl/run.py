"""Whole runs from the host: ``run`` and ``resume``, and what a run's folder is good for later."""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.checkpoint import BEST, NEWEST, Checkpoints
from purerl.driver import Driver
from purerl.experiment import Experiment
from purerl.folder import PLOT, RunFolder, check_same
from purerl.plotting import plot_curves, save_plot
from purerl.resources import check_replay, format_bytes
from purerl.session import RunOptions, Session, Stopped
from purerl.statistics import iqm, iqm_interval
from purerl.train.evaluate import Evaluation
from purerl.train.loop import TrainState
from purerl.train.sharding import agreed, from_hosts, make_layout
from purerl.train.vectorize import use_all_cores, vectorize
from purerl.types import Box, Clock
from purerl.validation import check_choice, check_integer


class RunResult(NamedTuple):
    """What a run came to."""

    state: TrainState  # leaves [S, ...]
    steps: np.ndarray  # [E]
    returns: np.ndarray  # [S, E]
    failed: np.ndarray  # [S] bool
    seconds: dict[str, float]  # compiling, training, evaluating
    steps_per_second: float  # of training, over all seeds
    stopped: Stopped | None = None  # why the run ended before its last iteration
    trouble: str | None = None  # what could not be written

    def summary(self) -> str:
        """One line: IQM of the last evaluation, seconds, steps a second, failed seeds."""
        parts = []
        if len(self.steps):
            last = self.returns[:, -1]
            low, high = iqm_interval(last)
            parts.append(
                f"return {iqm(last):.1f} (IQM of {len(last)} seeds at {self.steps[-1]:,} steps, "
                f"95 % interval {low:.1f} to {high:.1f})"
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

    Ctrl-C and SIGTERM end the run after the chunk it is in, with a last checkpoint; a second Ctrl-C
    ends it at once. What was killed is resumed from its newest checkpoint. Wherever it was cut, the
    run is bitwise the one that never was, on the same versions and devices.

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
    """
    chosen = RunOptions.of(options)
    check_integer("run", "seeds", seeds, 1)
    if resume and (out is None or overwrite):
        raise ValueError("run: resume goes on with the run in out; give out, and no overwrite.")
    use_all_cores()
    train = experiment.build()
    needed = check_replay(train, seeds, 1 if out is None else 2)
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
    return RunResult(
        driver.state,
        outcome.steps,
        outcome.returns,
        outcome.failed,
        driver.seconds,
        driver.step * seeds / max(driver.seconds["training"], 1e-9),
        outcome.stopped,
        trouble,
    )


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
    config = _config(RunFolder(path))
    return run(
        Experiment.from_json(config),
        seeds=config["seeds"],
        seed=config["seed"],
        out=path,
        resume=True,
        **config.get("options", {}) | options,
    )


def load_policy(
    path: str | pathlib.Path,
    seed: int | str = "best",
    *,
    checkpoint: str = "newest",
    greedy: bool = True,
) -> Callable[..., jax.Array]:
    """A policy that a run learned, for use anywhere.

    Args:
        path: The run's folder.
        seed: Which of its seeds, or ``best``: the one with the highest return in the last
            evaluation before the checkpoint.
        checkpoint: ``newest``, or ``best``: the one that ``keep_best`` kept.
        greedy: Act by the policy's mode; else by samples, which need a key.

    Returns:
        ``policy(obs, key=None) -> action``, jitted, for one raw observation ``[*O]`` or many
        ``[N, *O]``; the run's normalization is applied to them, frozen. Actions are what the
        environment takes.

    Raises:
        FileNotFoundError: If the folder holds no run, or one without a checkpoint.
        ValueError: If there is no such seed, or the checkpoint is damaged or of another version.
    """
    check_choice("load_policy", "checkpoint", checkpoint, ("newest", "best"))
    experiment, state, host = _load(RunFolder(path), NEWEST if checkpoint == "newest" else BEST)
    if seed == "best":
        if not host["returns"]:
            raise ValueError(
                f"{path} was never evaluated, so no seed is the best; give a number, 0 to "
                f"{host['run']['seeds'] - 1}."
            )
        last = np.array(host["returns"][-1], float)
        seed = int(np.argmax(np.where(np.isnan(last), -np.inf, last)))
    count = host["run"]["seeds"]
    if not isinstance(seed, int | np.integer) or not 0 <= seed < count:
        raise ValueError(f"load_policy: got seed={seed!r}, wanted 'best' or 0 to {count - 1}.")
    normalizer, learner = jax.tree.map(lambda x: x[seed], (state.normalizer, state.learner))
    algorithm, env = experiment.parts()

    def policy(obs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        obs = jnp.asarray(obs, float)
        one = obs.shape == env.obs_shape
        if obs.shape[-len(env.obs_shape) or obs.ndim :] != env.obs_shape or (
            obs.ndim > len(env.obs_shape) + 1
        ):
            raise ValueError(
                f"policy: obs has shape {obs.shape}, wanted {env.obs_shape} or a batch "
                f"(N, {', '.join(map(str, env.obs_shape))})."
            )
        if key is None and not greedy:
            raise ValueError("policy: a sampled action needs a key: policy(obs, key).")
        key = jax.random.key(0) if key is None else key
        many = normalizer.observe(obs[None] if one else obs)
        action, _ = algorithm.act(learner, many, key, greedy=greedy, progress=1.0)
        if isinstance(env.action_space, Box):
            action = jnp.clip(action, env.action_space.low, env.action_space.high)
        return action[0] if one else action

    return jax.jit(policy)


def evaluate_run(
    path: str | pathlib.Path, *, episodes: int = 128, seed: int = 0, greedy: bool = True
) -> Evaluation:
    """Plays episodes with the policies of a run's newest checkpoint.

    Args:
        path: The run's folder.
        episodes: Of each seed.
        seed: Random seed of the episodes.
        greedy: Act by the policy's mode; else by samples.

    Returns:
        An evaluation with leaves ``[S]``.

    Raises:
        FileNotFoundError: If the folder holds no run, or one without a checkpoint.
        ValueError: If the run is of a version whose fields this one does not know.
    """
    use_all_cores()
    experiment, state, host = _load(RunFolder(path), NEWEST)
    loop = dataclasses.replace(
        experiment.loop, evaluation_episodes=episodes, greedy_evaluation=greedy
    )
    train = dataclasses.replace(experiment, loop=loop).build()
    keys = jax.random.split(jax.random.key(seed), host["run"]["seeds"])
    state = state._replace(clock=Clock(jnp.int32(0)), key=keys)
    return jax.device_get(jax.jit(vectorize(train.evaluate))(state))


def _load(folder: RunFolder, which: str) -> tuple[Experiment, TrainState, dict[str, Any]]:
    """A run's experiment, and the learners and normalizers of a checkpoint of it."""
    config = _config(folder)
    experiment = Experiment.from_json(config)
    if not (folder.path / which).is_dir():
        advice = "resume it" if which == NEWEST else "it was run without --keep-best"
        raise FileNotFoundError(f"{folder.path / which} is missing: no checkpoint; {advice}.")
    checkpoints = Checkpoints(folder.path / which, keep=None)
    try:
        iterations = checkpoints.iterations()
        if not iterations:
            raise FileNotFoundError(
                f"{folder.path / which} holds no checkpoint: the run was stopped before its "
                "first one; resume it."
            )
        host = checkpoints.read_host(iterations[-1])
        check_same(experiment.to_json(), host["run"], str(checkpoints.path))
        train = experiment.build()
        keys = jax.random.split(jax.random.key(0), config["seeds"])
        template = jax.jit(vectorize(lambda key: _policy_part(train.init(key)))).eval_shape(keys)
        state = checkpoints.restore_policy(iterations[-1], template)
    finally:
        checkpoints.close()
    return experiment, state, host


def _config(folder: RunFolder) -> dict[str, Any]:
    """What ``config.json`` of a run holds."""
    config = folder.read_config()
    if "points" in config:
        raise ValueError(
            f"{folder.path} is a sweep, or a part of one, wanted a run; go on with a sweep by the "
            "command that began it, with --resume, and train a point of it by itself for its "
            "policies."
        )
    return config


def _policy_part(state: TrainState) -> TrainState:
    """What of a state acting needs."""
    return TrainState(None, None, state.learner, None, state.normalizer, None)  # type: ignore
