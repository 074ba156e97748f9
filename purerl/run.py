"""Driving a training run from the host: chunks, progress, a folder of results."""

import concurrent.futures
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from purerl.experiment import Experiment
from purerl.logging import PLOT, RunFolder
from purerl.plotting import plot_curves, save_plot
from purerl.statistics import iqm, iqm_interval
from purerl.train.on_policy import Metrics, Train, TrainState, evaluation_iterations
from purerl.train.vectorize import use_all_cores, vectorize


class RunResult(NamedTuple):
    """What a run came to."""

    state: TrainState  # leaves [S, ...]
    steps: np.ndarray  # [E]
    returns: np.ndarray  # [S, E]
    failed: np.ndarray  # [S] bool
    seconds: dict[str, float]  # compiling, training, evaluating
    steps_per_second: float  # of training, over all seeds
    interrupted: bool

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
        parts += [
            f"{self.seconds['compiling']:.1f} s compiling",
            f"{self.seconds['training']:.1f} s training",
            f"{self.seconds['evaluating']:.1f} s evaluating",
            f"{self.steps_per_second:,.0f} steps/s",
        ]
        if self.failed.any():
            parts.append(f"failed seeds: {', '.join(map(str, np.flatnonzero(self.failed)))}")
        return " | ".join(parts)


class _Programs:
    """The compiled programs of a run, made when first needed, and the time it took."""

    def __init__(self, train: Train):
        self.train = train
        self.seconds = 0.0
        self._advance: dict[int, Any] = {}
        self._evaluate: Any = None

    def start(self, keys: jax.Array, length: int) -> TrainState:
        """Compiles everything and starts the environments."""
        begin = time.perf_counter()
        state = jax.block_until_ready(jax.jit(vectorize(self.train.init))(keys))
        # XLA compiles outside the interpreter's lock: two programs, two cores.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            jobs = (
                pool.submit(self._compile_advance, state, length),
                pool.submit(jax.jit(vectorize(self.train.evaluate)).lower(state).compile),
            )
            self._advance[length], self._evaluate = (job.result() for job in jobs)
        self.seconds += time.perf_counter() - begin
        return state

    def _compile_advance(self, state: TrainState, length: int) -> Any:
        advance = vectorize(functools.partial(self.train.advance, iterations=length))
        return jax.jit(advance, donate_argnums=0).lower(state).compile()

    def advance(self, state: TrainState, length: int) -> tuple[TrainState, Metrics]:
        if length not in self._advance:
            begin = time.perf_counter()
            self._advance[length] = self._compile_advance(state, length)
            self.seconds += time.perf_counter() - begin
        return self._advance[length](state)

    def evaluate(self, state: TrainState) -> Any:
        return self._evaluate(state)


def run(
    experiment: Experiment,
    *,
    seeds: int = 16,
    seed: int = 0,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> RunResult:
    """Trains ``seeds`` seeds at once and writes what comes of it to a folder.

    Ctrl-C ends the run after the chunk it is in; what was done until then stays readable, and the
    result says ``interrupted``.

    Args:
        experiment: What to train; :func:`purerl.make_experiment` makes one.
        seeds: How many, S; a multiple of the number of CPU cores uses all of them.
        seed: Seed s of this run starts from ``split(key(seed), S)[s]``.
        out: Folder for config, evaluations, learners and plot; None: nothing is written.
        overwrite: Whether a run in that folder may be deleted.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If ``seeds`` is less than 1, or the experiment's numbers do not fit together.
        FileExistsError: If ``out`` exists and is not to be overwritten.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}, wanted at least 1.")
    use_all_cores()
    train = experiment.build()
    folder = None if out is None else RunFolder(out)
    if folder is not None:
        folder.create(experiment, seeds, seed, overwrite)
    keys = jax.random.split(jax.random.key(seed), seeds)
    programs = _Programs(train)
    chunk = _chunk(train.evaluate_every)
    state = programs.start(keys, chunk)

    evaluations = experiment.loop.evaluations > 0
    stops = evaluation_iterations(train.iterations, train.evaluate_every)
    seconds = {"compiling": 0.0, "training": 0.0, "evaluating": 0.0}
    steps: list[int] = []
    returns: list[np.ndarray] = []
    interrupted = False
    done = 0
    bar = tqdm.tqdm(
        total=seeds * train.total_steps, unit="step", unit_scale=True, disable=not progress
    )
    with bar:
        try:
            for stop in stops:
                collected = []
                while done < stop:
                    length = min(chunk, stop - done)
                    compiled = programs.seconds
                    begin = time.perf_counter()
                    state, metrics = programs.advance(state, length)
                    collected.append(jax.device_get(metrics))
                    compiled = programs.seconds - compiled
                    seconds["training"] += time.perf_counter() - begin - compiled
                    done += length
                    bar.update(length * seeds * train.steps_per_iteration)
                if not evaluations:
                    continue
                begin = time.perf_counter()
                evaluation = jax.device_get(programs.evaluate(state))
                seconds["evaluating"] += time.perf_counter() - begin
                steps.append(done * train.steps_per_iteration)
                returns.append(evaluation.mean_return)
                bar.set_postfix_str(f"return {iqm(evaluation.mean_return):.1f}")
                if folder is not None:
                    _write(folder, train, state, steps[-1], evaluation, collected, seconds)
        except KeyboardInterrupt:
            interrupted = True
    seconds["compiling"] = programs.seconds
    trained = done * train.steps_per_iteration * seeds
    result = RunResult(
        state,
        np.array(steps),
        np.stack(returns, axis=1) if returns else np.zeros((seeds, 0)),
        np.asarray(jax.jit(vectorize(train.failed))(state)),
        seconds,
        trained / max(seconds["training"], 1e-9),
        interrupted,
    )
    if folder is not None and returns:
        label, title = experiment.algorithm, experiment.env
        figure = plot_curves({label: (result.steps, result.returns)}, title)
        save_plot(figure, folder.path / PLOT)
    return result


def _chunk(evaluate_every: int) -> int:
    """Iterations between two looks at the clock: about a fifth of an evaluation interval, and a
    divisor of it, so that one compiled program serves."""
    return next(
        n
        for n in range(1, evaluate_every + 1)
        if evaluate_every % n == 0 and 5 * n >= evaluate_every
    )


def _write(folder, train, state, step, evaluation, collected, seconds):
    """One row a seed, and the learners."""
    metrics = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *collected)  # [S, iterations]
    seeds = len(evaluation.mean_return)
    count = metrics.episodes.count.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        train_return = metrics.episodes.return_sum.sum(axis=1) / count
    folder.write_rows(
        {
            "seed": np.arange(seeds),
            "step": np.full(seeds, step),
            "return": evaluation.mean_return,
            "length": evaluation.mean_length,
            "unfinished": evaluation.unfinished,
            "train_return": train_return,
            "train_episodes": count,
            "refused": np.asarray(state.refused),
            "seconds": np.full(seeds, round(seconds["training"], 3)),
            **{k: v.mean(axis=1) for k, v in sorted(metrics.info.items()) if k != "finite"},
        }
    )
    folder.write_learner(saved_part(jax.device_get(state)))


def saved_part(state: TrainState) -> dict[str, Any]:
    """What of a state is saved: all that acting needs.

    Args:
        state: Of one or many seeds.
    """
    return {"learner": state.learner, "normalizer": state.normalizer}
