"""Driving a training run from the host: chunks, progress, a folder of results."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from purerl.experiment import Experiment
from purerl.logging import PLOT, RunFolder
from purerl.plotting import plot_curves, save_plot
from purerl.statistics import iqm, iqm_interval
from purerl.train.evaluate import Evaluation
from purerl.train.loop import Metrics, Train, TrainState, evaluation_iterations
from purerl.train.vectorize import use_all_cores, vectorize
from purerl.types import PyTree
from purerl.validation import check_integer


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
        parts += [f"{value:.1f} s {what}" for what, value in self.seconds.items()]
        parts.append(f"{self.steps_per_second:,.0f} steps/s")
        if self.failed.any():
            parts.append(f"failed seeds: {', '.join(map(str, np.flatnonzero(self.failed)))}")
        return " | ".join(parts)


class _Driver:
    """Holds a run's state and its compiled programs, and keeps the time of each."""

    def __init__(self, train: Train, keys: jax.Array):
        self.train, self.seeds = train, len(keys)
        self.done = 0  # iterations
        self.seconds = {"compiling": 0.0, "training": 0.0, "evaluating": 0.0}
        with self._clock("compiling"):
            self.state = jax.block_until_ready(jax.jit(vectorize(train.init))(keys))
            self.chunk = _chunk(train.evaluate_every)
            # XLA compiles outside the interpreter's lock: two programs, two cores.
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                evaluate = jax.jit(vectorize(train.evaluate)).lower(_seen(self.state))
                advance = self._lower(self.chunk)
                jobs = pool.submit(evaluate.compile), pool.submit(advance.compile)
                self._evaluate, compiled = (job.result() for job in jobs)
        self._advance = {self.chunk: compiled}

    def advance(self, stop: int) -> Metrics:
        """Trains one chunk, or less if iteration ``stop`` comes first."""
        length = min(self.chunk, stop - self.done)
        if length not in self._advance:  # the rest after the last full interval
            with self._clock("compiling"):
                self._advance[length] = self._lower(length).compile()
        with self._clock("training"):
            self.state, metrics = self._advance[length](self.state)
            metrics = jax.device_get(metrics)
        self.done += length
        return metrics

    def evaluate(self) -> Evaluation:
        with self._clock("evaluating"):
            return jax.device_get(self._evaluate(_seen(self.state)))

    @property
    def step(self) -> int:
        """Environment steps of each seed so far."""
        return self.train.warmup_steps + self.done * self.train.steps_per_iteration

    def _lower(self, length: int) -> Any:
        advance = vectorize(functools.partial(self.train.advance, iterations=length))
        return jax.jit(advance, donate_argnums=0).lower(self.state)

    @contextlib.contextmanager
    def _clock(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - begin


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C puts something into; a second Ctrl-C interrupts at once.

    An exception in the middle of a chunk would lose the state that was given to it.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


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
        ValueError: If ``seeds`` is less than 1, the experiment's numbers do not fit together, or
            the replay buffers do not fit into memory.
        FileExistsError: If ``out`` exists and is not to be overwritten.
    """
    check_integer("run", "seeds", seeds, 1)
    use_all_cores()
    train = experiment.build()
    needed = _check_memory(train, seeds)
    if needed and progress:
        print(f"replay buffers: {_bytes(needed)} for {seeds} seeds")
    folder = None if out is None else RunFolder(out)
    if folder is not None:
        folder.check(overwrite)
    steps: list[int] = []
    returns: list[np.ndarray] = []
    with _interrupts() as interrupted:
        driver = _Driver(train, jax.random.split(jax.random.key(seed), seeds))
        if interrupted:
            raise KeyboardInterrupt
        if folder is not None:  # only now: what does not compile leaves no folder
            folder.create(experiment, seeds, seed)
        total = seeds * train.total_steps
        with tqdm.tqdm(total=total, unit="step", unit_scale=True, disable=not progress) as bar:
            for stop in evaluation_iterations(train.iterations, train.evaluate_every):
                collected = []
                while driver.done < stop and not interrupted:
                    before = driver.step
                    collected.append(driver.advance(stop))
                    bar.update(seeds * (driver.step - before))
                if experiment.loop.evaluations and not interrupted:
                    evaluation = driver.evaluate()
                    steps.append(driver.step)
                    returns.append(np.asarray(evaluation.mean_return))
                    bar.set_postfix_str(_postfix(evaluation, np.asarray(driver.state.refused)))
                    if folder is not None:
                        folder.write_rows(_rows(driver, evaluation, collected))
                if folder is not None:
                    folder.write_learner(_saved_part(jax.device_get(driver.state)))
                if interrupted:
                    break
    result = RunResult(
        driver.state,
        np.array(steps, int),
        np.stack(returns, axis=1) if returns else np.zeros((seeds, 0)),
        np.asarray(jax.jit(vectorize(train.failed))(_seen(driver.state))),
        driver.seconds,
        driver.step * seeds / max(driver.seconds["training"], 1e-9),
        bool(interrupted),
    )
    if folder is not None and returns:
        curve = {experiment.algorithm: (result.steps, result.returns)}
        save_plot(plot_curves(curve, experiment.env), folder.path / PLOT)
    return result


def evaluate_run(
    path: str | pathlib.Path, *, episodes: int = 128, seed: int = 0, greedy: bool = True
) -> Evaluation:
    """Plays episodes with the policies that a run saved.

    Args:
        path: The run's folder.
        episodes: Of each seed.
        seed: Random seed of the episodes.
        greedy: Act by the policy's mode; else by samples.

    Returns:
        An evaluation with leaves ``[S]``.

    Raises:
        FileNotFoundError: If the folder holds no run, or one without saved learners.
        ValueError: If the run is of a version whose fields this one does not know.
    """
    folder = RunFolder(path)
    data = folder.read_config()
    experiment = Experiment.from_json(data)
    loop = dataclasses.replace(
        experiment.loop, evaluation_episodes=episodes, greedy_evaluation=greedy
    )
    use_all_cores()
    train = dataclasses.replace(experiment, loop=loop).build()
    keys = jax.random.split(jax.random.key(seed), data["seeds"])
    state = jax.jit(vectorize(lambda key: _seen(train.init(key))))(keys)
    state = state._replace(**folder.read_learner(_saved_part(jax.device_get(state))))
    return jax.device_get(jax.jit(vectorize(train.evaluate))(state))


def _chunk(evaluate_every: int) -> int:
    """Iterations between two looks at the clock: about a fifth of an evaluation interval, and a
    divisor of it, so that one compiled program serves.
    """
    return next(
        n
        for n in range(1, evaluate_every + 1)
        if evaluate_every % n == 0 and 5 * n >= evaluate_every
    )


def _postfix(evaluation: Evaluation, refused: np.ndarray) -> str:
    failed = f", {np.sum(refused > 0)} failed" if np.any(refused) else ""
    return f"return {iqm(evaluation.mean_return):.1f}{failed}"


def _rows(
    driver: _Driver, evaluation: Evaluation, collected: list[Metrics]
) -> dict[str, np.ndarray]:
    """The CSV's columns: one evaluation, and the training since the one before."""
    metrics = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *collected)  # [S, iterations]
    count = metrics.episodes.ended.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        train_return = metrics.episodes.return_sum.sum(axis=1) / count
    return {
        "seed": np.arange(driver.seeds),
        "step": np.full(driver.seeds, driver.step),
        "return": evaluation.mean_return,
        "length": evaluation.mean_length,
        "unfinished": evaluation.unfinished,
        "train_return": train_return,
        "train_episodes": count,
        "refused": np.asarray(driver.state.refused),
        "seconds": np.full(driver.seeds, round(driver.seconds["training"], 3)),
        **{k: v.mean(axis=1) for k, v in sorted(metrics.info.items()) if k != "finite"},
    }


def _saved_part(state: TrainState) -> dict[str, Any]:
    """What of a state is saved: all that acting needs."""
    return {"learner": state.learner, "normalizer": state.normalizer}


def _seen(state: TrainState) -> TrainState:
    """What of a state an evaluation sees: all but the replay buffer."""
    return state._replace(replay=None)


def _check_memory(train: Train, seeds: int) -> int:
    """Bytes of all seeds' replay buffers.

    Raises:
        ValueError: If the memory is smaller.
    """
    replay = jax.eval_shape(train.init, jax.random.key(0)).replay
    if replay is None:
        return 0
    needed, memory = seeds * tree_bytes(replay), memory_bytes()
    if needed > memory:
        capacity = replay.replay.items.count
        raise ValueError(
            f"the replay buffers of {seeds} seeds need {_bytes(needed)}, but there are "
            f"{_bytes(memory)}; set capacity to {int(capacity * memory / needed):,} or less "
            "(--capacity), or train fewer seeds at a time, or hold observations as bytes "
            "(replay_obs)."
        )
    return needed


def tree_bytes(tree: PyTree) -> int:
    """Bytes that arrays take.

    Args:
        tree: Arrays, or their shapes and dtypes.
    """
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_bytes() -> int:
    """Memory of all devices; on a CPU the host's, as far as this process may use it."""
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    if all(limits):
        return sum(limits)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = pathlib.Path("/sys/fs/cgroup/memory.max")
    limit = container.read_text().strip() if container.exists() else "max"
    return memory if limit == "max" else min(memory, int(limit))


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"
