"""Algorithms beside one another: the runs of each on each task, and what they say together."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from purerl.host.curves import Curve, Curves, read_curves
from purerl.host.report import aggregate, comparison_plots
from purerl.host.report.plotting import save_plot
from purerl.host.report.tables import aligned, interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATISTICS = {
    "IQM": aggregate.task_iqm,
    "median of tasks": aggregate.task_median,
    "mean": aggregate.task_mean,
    "optimality gap": aggregate.optimality_gap,
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Algorithms on the same tasks, as :func:`compare` gives them.

    Attributes:
        curves: By algorithm and task.
        ranges: By task the returns whose scores are 0 and 1.
        notes: What a reader of the numbers should know.
    """

    curves: Curves
    ranges: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.table()

    @property
    def tasks(self) -> list[str]:
        """Those of every algorithm."""
        return [*self.ranges]

    def scores(self, algorithm: str) -> list[np.ndarray]:
        """Scores ``[S]`` of each task: its returns, so that the ends of its range are 0 and 1.

        Args:
            algorithm: Its label.
        """
        of_task = self.curves[algorithm]
        found = []
        for task, (low, high) in self.ranges.items():
            results = of_task[task].results()
            found.append((results - low) / (high - low) if high > low else np.ones(len(results)))
        return found

    def improvements(self) -> np.ndarray:
        """Probability that a seed of one algorithm scores higher than one of another, and the ends
        of its 95 % interval: ``[A, A, 3]``, half on the diagonal.
        """
        of, scores = aggregate.probability_of_improvement, [*map(self.scores, self.curves)]
        found = np.full((len(scores), len(scores), 3), 0.5)
        for i, x in enumerate(scores):
            for j, y in enumerate(scores[:i]):
                value, (low, high) = of(x, y), aggregate.stratified_interval(of, x, y)
                found[i, j], found[j, i] = (value, low, high), (1 - value, 1 - high, 1 - low)
        return found

    def table(self) -> str:
        """The returns on each task, the scores over all of them, who is better than whom."""
        parts = [*map(self._task, self.tasks), self._scores(), self._pairs(), self._said()]
        return "\n\n".join(parts)

    def _task(self, task: str) -> str:
        rows = [[task, "steps", "seeds", "return (IQM) [95 %]", "mean", "min", "max"]]
        for name, of_task in self.curves.items():
            x, steps = of_task[task].results(), of_task[task].steps[-1]
            iqm = _with_interval(aggregate.task_iqm, [x], digits=None)
            ends = map(number, (x.mean(), x.min(), x.max()))
            rows.append([name, f"{steps:,}", str(len(x)), iqm, *ends])
        return aligned(rows)

    def _scores(self) -> str:
        rows = [["scores", *(f"{name} [95 %]" for name in STATISTICS)]]
        for name in self.curves:
            scores = self.scores(name)
            rows.append([name, *(_with_interval(x, scores) for x in STATISTICS.values())])
        return aligned(rows)

    def _pairs(self) -> str:
        # A line a pair: a matrix of intervals would be wider than a screen from four on.
        rows = [["better", "than", "probability [95 %]"]]
        names, found = [*self.curves], self.improvements()
        for i, j in itertools.combinations(range(len(names)), 2):
            better, other = (i, j) if found[i, j, 0] >= 0.5 else (j, i)
            probability, low, high = found[better, other]
            rows.append([names[better], names[other], interval(probability, low, high, 2)])
        return aligned(rows, left=2)

    def _said(self) -> str:
        ends = (f"{number(low)} to {number(high)} on {x}" for x, (low, high) in self.ranges.items())
        said = [f"scores 0 to 1 are returns of {', '.join(ends)}", *self.notes]
        counts = (len(x.results()) for of_task in self.curves.values() for x in of_task.values())
        if aggregate.coverage(min(counts)) == "range":
            said.append("of fewer than five seeds intervals cover less than 95 %")
        return "\n".join(said)

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes ``table.txt`` and the pictures ``steps``, ``seconds``, ``profiles`` and
        ``improvements.png``; what is there is replaced.

        Args:
            folder: Where to; it is made.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.txt").write_text(f"{self.table()}\n")
        for name in ("steps", "seconds", "profiles", "improvements"):
            save_plot(getattr(self, f"plot_{name}")(), folder / f"{name}.png")

    def plot_steps(self) -> "Figure":
        """Returns against environment steps: IQM and 95 % interval, a part for each task."""
        return comparison_plots.sample_efficiency(self.curves, self.tasks, "steps")

    def plot_seconds(self) -> "Figure":
        """The same against seconds of training, of those whose seconds are known."""
        return comparison_plots.sample_efficiency(self.curves, self.tasks, "seconds")

    def plot_profiles(self) -> "Figure":
        """Performance profiles: the fraction of runs above each score."""
        return comparison_plots.profiles({name: self.scores(name) for name in self.curves})

    def plot_improvements(self) -> "Figure":
        """Who is better than whom, and how probably."""
        return comparison_plots.improvements([*self.curves], self.improvements())


def compare(
    *sources: Any,
    steps: int | None = None,
    last: int | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    top: int = 3,
) -> Comparison:
    """Compares algorithms on the tasks that all of them were trained on.

    A return that is not finite counts as the lowest that any of them had on the task.

    Args:
        *sources: Folders of runs and sweeps, files of results that ``benchmarks/learning.py``
            wrote, results of :func:`purerl.run`; or from elsewhere, by algorithm and task, pairs of
            steps ``[E]`` and returns ``[S, E]``.
        steps: Compare after so many environment steps; by default each at its own end.
        last: How many of the last evaluations a seed's result is the mean of; by default what a
            file of results says, else 1.
        ranges: By task, the returns whose scores are 0 and 1; by default the lowest and the highest
            result of a seed on that task.
        top: Of a sweep: how many points, the best first.

    Returns:
        The curves on the tasks that all have, from which tables and pictures are made.

    Raises:
        ValueError: If there are not two algorithms, they have no task in common, or one of them has
            a single seed or nothing finite; if a range is empty.
        FileNotFoundError: If a folder holds no run.

    Example:
        >>> steps = [100, 200]
        >>> bad, good = [[0.0, 1.0], [0.0, 2.0]], [[0.0, 2.0], [1.0, 3.0]]
        >>> mine = {"a": {"Task": (steps, bad)}, "b": {"Task": (steps, good)}}
        >>> compared = compare(mine)  # or compare("runs/a", "runs/b")
        >>> compared.tasks, compared.improvements()[1, 0, 0].item()
        (['Task'], 0.875)
    """
    curves = read_curves(sources, top)
    tasks, notes = _common(curves)
    curves = {name: {task: of[task] for task in tasks} for name, of in curves.items()}
    for name, of in curves.items():
        for task, curve in of.items():
            of[task] = _cut(curve, steps, last, f"{name} on {task}")
    notes += [note for task in tasks for note in _mend(curves, task)]
    return Comparison(
        curves, {task: _range(curves, task, ranges or {}) for task in tasks}, (*notes,)
    )


def _common(curves: Curves) -> tuple[list[str], list[str]]:
    """The tasks of every algorithm, and what is left out."""
    if len(curves) < 2:
        raise ValueError(
            f"compare: got {' and '.join(curves) or 'nothing'}, wanted at least two algorithms: "
            "purerl compare RUN RUN [RUN ...]."
        )
    every = list(dict.fromkeys(task for of in curves.values() for task in of))
    tasks = [task for task in every if all(task in of for of in curves.values())]
    if not tasks:
        there = "; ".join(f"{name}: {', '.join(of)}" for name, of in curves.items())
        raise ValueError(
            f"compare: no task is common to all ({there}); give runs on the same tasks."
        )
    left = [task for task in every if task not in tasks]
    return tasks, [f"left out, for not all have them: {', '.join(left)}"] if left else []


def _cut(curve: Curve, steps: int | None, last: int | None, what: str) -> Curve:
    """A curve up to so many steps, of several seeds."""
    if len(curve.returns) < 2:
        raise ValueError(
            f"compare: {what} has {len(curve.returns)} seed(s), wanted at least 2: intervals are "
            "over seeds; train more of them (purerl train --seeds 16)."
        )
    if last is not None:
        curve = curve._replace(last=last)
    if not 1 <= curve.last <= len(curve.steps):
        raise ValueError(
            f"compare: {what} has {len(curve.steps)} evaluations, wanted the last {curve.last}."
        )
    if steps is None:
        return curve
    count = int((curve.steps <= steps).sum())
    if count < curve.last:
        raise ValueError(
            f"compare: {what} has {count} evaluations up to {steps:,} steps, wanted {curve.last}."
        )
    seconds = None if curve.seconds is None else curve.seconds[:count]
    return Curve(curve.steps[:count], curve.returns[:, :count], seconds, curve.last)


def _mend(curves: Curves, task: str) -> Iterator[str]:
    """Puts the lowest finite return where one is not finite; what was met on the way."""
    every = np.concatenate([of[task].returns.ravel() for of in curves.values()])
    if not np.isfinite(every).any():
        raise ValueError(f"compare: on {task} no return is finite, so there is nothing to compare.")
    worst = every[np.isfinite(every)].min()
    for name, of in curves.items():
        finite = np.isfinite(of[task].returns)
        if not finite.all():
            seeds = f"{(~finite.all(axis=1)).sum()} of {len(finite)} seeds"
            yield f"{name} on {task}: {seeds} not finite; they count as {number(worst)}, the lowest"
            of[task] = of[task]._replace(returns=np.where(finite, of[task].returns, worst))
    ends = {name: int(of[task].steps[-1]) for name, of in curves.items()}
    if len({*ends.values()}) > 1:
        low, high = min(ends.values()), max(ends.values())
        yield f"steps differ on {task}: {low:,} to {high:,}; steps={low} compares all after as many"


def _range(
    curves: Curves, task: str, given: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    """Returns whose scores are 0 and 1."""
    results = np.concatenate([of[task].results() for of in curves.values()])
    low, high = given.get(task, (results.min(), results.max()))
    if task in given and not low < high:
        raise ValueError(f"compare: got the range {low}:{high} for {task}, wanted LOW < HIGH.")
    return float(low), float(high)


def _with_interval(statistic: Any, scores: list[np.ndarray], digits: int | None = 3) -> str:
    low, high = aggregate.stratified_interval(statistic, scores)
    return interval(float(statistic(scores)), float(low), float(high), digits)
