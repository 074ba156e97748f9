"""The result of a run, when it ends or read from its folder."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from purerl.host.acting import Policy
from purerl.host.experiment import Experiment
from purerl.host.options import Stopped
from purerl.host.report import frame
from purerl.host.report.aggregate import coverage, iqm, iqm_interval
from purerl.host.report.tables import number
from purerl.host.store.folder import RunFolder, read_run
from purerl.host.store.policy import best_seed, load_learned, make_policy
from purerl.training.seeds import use_all_cores
from purerl.training.state import TrainState


class RunResult(NamedTuple):
    """The result of a run.

    Attributes:
        state: Its last state, leaves ``[S, ...]``; after :func:`load_run` learner and normalizer.
        steps: Environment steps of the evaluations, ``[E]``.
        returns: Mean returns of the evaluations, ``[S, E]``.
        failed: Whether a seed failed, ``[S]`` bool.
        seconds: Wall time of compiling, training, evaluating.
        steps_per_second: Environment steps of all seeds a second of training.
        stopped: What ended it: a signal, a seed's failure, or a hook; None: its end.
        trouble: What could not be written.
        experiment: What was trained.
        config: What ``config.json`` holds of a run that was loaded.
    """

    state: TrainState
    steps: np.ndarray
    returns: np.ndarray
    failed: np.ndarray
    seconds: dict[str, float]
    steps_per_second: float
    stopped: Stopped | None = None
    trouble: str | None = None
    experiment: Any = None
    config: dict[str, Any] | None = None

    def __repr__(self) -> str:
        label = "" if self.experiment is None else f"{self.experiment.label} | "
        return f"RunResult({label}{self.summary()})"

    def policy(self, seed: int | str = "best", *, greedy: bool = True) -> Policy:
        """A policy, as :func:`purerl.load_policy` gives it.

        Args:
            seed: Which seed, or ``best``: the one with the highest return in the last evaluation.
            greedy: Act by the policy's mode; else by samples, which need a key.
        """
        last = dict(enumerate(self.returns[:, -1])) if len(self.steps) else {}
        number = best_seed("this run", seed, len(self.failed), last)
        return make_policy(self.experiment, self.state, number, greedy=greedy)

    def to_pandas(self) -> Any:
        """A pandas ``DataFrame``: a row a seed and evaluation, hyper-parameters among the columns.

        Raises:
            ImportError: If pandas is not installed.
        """
        arrays = (self.steps[None], self.returns[None], self.failed[None])
        columns = frame.evaluations([{}], *arrays)
        data = self.experiment.to_json()
        numbers = {k: data[k] for k in ("algorithm", "env")} | data["loop"] | data["config"]
        for name, x in numbers.items():
            if name not in columns and (x is None or isinstance(x, str | int | float)):
                columns[name] = np.full(len(columns["step"]), x)
        return frame.to_pandas(columns)

    def summary(self) -> str:
        """One line: IQM of the last evaluation, seconds, steps a second, failed seeds."""
        parts = []
        if len(self.steps):
            last, at = self.returns[:, -1], f"{self.steps[-1]:,} steps"
            mean, low, high = (number(float(x)) for x in (iqm(last), *iqm_interval(last)))
            if self.experiment is not None:
                count = self.experiment.loop.episodes(self.experiment.environment)
                at += f", {count} episode{'s' if count > 1 else ''} each"
            failed = f", {self.failed.sum()} of them failed," if self.failed.any() else ""
            of_seeds = f"{len(last)} seeds{failed} at {at}"
            parts.append(
                f"return {mean} (IQM of {of_seeds}, {coverage(len(last))} {low} to {high})"
            )
        parts += [f"{value:.1f} s {what}" for what, value in self.seconds.items()]
        parts.append(f"{self.steps_per_second:,.0f} steps/s of all seeds")
        if self.failed.any():
            names = ", ".join(map(str, np.flatnonzero(self.failed)))
            parts.append(f"{self.failed.sum()} failed seeds: {names}")
        return " | ".join(parts)


def load_run(path: str | pathlib.Path, **given: Any) -> RunResult:
    """The result of the run in a folder by its newest checkpoint, without training.

    Args:
        path: The run's folder. The code that its import paths name is imported.
        **given: ``algorithm``, ``env``, ``network``, where it was begun with objects.

    Returns:
        The run as far as its newest checkpoint: returns ``[S, E]``, steps ``[E]``, failed ``[S]``.

    Raises:
        FileNotFoundError: If the folder holds no run, or one without a checkpoint.
        ValueError: If its checkpoint is damaged, or of another version.

    Example:
        >>> import tempfile, purerl
        >>> folder = f"{tempfile.mkdtemp()}/run"
        >>> sizes = dict(steps=2000, evaluations=1, seeds=2)
        >>> _ = purerl.run("a2c", "CartPole-v1", **sizes, out=folder, progress=False)
        >>> loaded = load_run(folder)
        >>> loaded.returns.shape, loaded.config["algorithm"]
        ((2, 1), 'a2c')
    """
    use_all_cores()
    folder = RunFolder(path)
    config = read_run(folder)
    experiment, state, record = load_learned(folder, **given)
    return from_record(record, state, experiment)._replace(config=config)


def from_record(record: dict[str, Any], state: TrainState, experiment: Experiment) -> RunResult:
    """A result out of what a checkpoint, or a session at its end, says of a run.

    Args:
        record: What it says.
        state: The last state, or what of it is known.
        experiment: What was trained.
    """
    steps, failed = np.array(record["steps"], int), np.array(record["failed"])
    returns = np.array(record["returns"], float).reshape(len(steps), len(failed)).T
    seconds = record["seconds"]
    speed = record["step"] * len(failed) / max(seconds["training"], 1e-9)
    ended = record.get("stopped"), record.get("trouble")
    return RunResult(state, steps, returns, failed, seconds, speed, *ended, experiment)
