"""What a sweep came to: its points ranked, and read again from its folder."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from purerl.host.options import Stopped
from purerl.host.report import frame
from purerl.host.report.aggregate import iqm, iqm_interval
from purerl.host.store.checkpoint import read_host
from purerl.host.store.folder import RunFolder


class SweepResult(NamedTuple):
    """What a sweep came to; P points, S seeds, E evaluations of the point that has most.

    Attributes:
        points: What was varied, P times values by name.
        steps: Environment steps of each evaluation, ``[P, E]``; -1 where it was not reached.
        returns: ``[P, S, E]``; NaN where it was not reached.
        failed: ``[P, S]`` bool.
        finished: ``[P]`` bool: trained to its last iteration.
        seconds: Wall time by what it was spent on: compiling, training, evaluating.
        compilations: How many programs were compiled.
        stopped: What ended the sweep early: a signal, or a seed's failure.
        trouble: What could not be written.
    """

    points: list[dict[str, Any]]
    steps: np.ndarray
    returns: np.ndarray
    failed: np.ndarray
    finished: np.ndarray
    seconds: dict[str, float]
    compilations: int
    stopped: Stopped | None = None
    trouble: str | None = None

    def __repr__(self) -> str:
        return self.table(top=10)

    def ranked(self) -> list[dict[str, Any]]:
        """A row a point, the best first.

        Each row holds the point's number and values, IQM of the last evaluation, interval, worst
        seed, failed seeds; of a sweep that was stopped, also the step of that evaluation. Of equal
        IQMs the one with the higher interval comes first. Points that are not finished come after
        all that are, and in each part those with a seed without a finite return come last.
        """
        rows = []
        names = dict.fromkeys(name for point in self.points for name in point)
        for number, steps in enumerate(self.steps):
            reached = int((steps >= 0).sum())
            if not reached:  # the sweep was stopped before
                continue
            last = self.returns[number, :, reached - 1]
            low, high = iqm_interval(last)
            rows.append(
                {
                    "point": number,
                    **{name: self.points[number].get(name) for name in names},
                    **({} if self.finished.all() else {"step": int(steps[reached - 1])}),
                    "iqm": float(iqm(last)),
                    "low": float(low),
                    "high": float(high),
                    "min": float(last.min()),
                    "failed": int(self.failed[number].sum()),
                }
            )

        def order(row: dict[str, Any]) -> tuple[bool, bool, float, float]:
            late = not self.finished[row["point"]], not np.isfinite(row["iqm"])
            return *late, -row["iqm"], -row["low"]

        return sorted(rows, key=order)

    def table(self, top: int | None = None) -> str:
        """The ranking as text.

        Args:
            top: How many points; all by default.
        """
        rows = self.ranked()[:top]
        if not rows:
            return "nothing was evaluated yet"
        columns = [["rank", *(str(i + 1) for i in range(len(rows)))]]
        for name in rows[0]:
            if name == "iqm":
                ends = [f"{row['iqm']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" for row in rows]
                columns.append(["return (IQM) [95 %]", *ends])
            elif name not in ("low", "high"):
                columns.append([name, *(_short(row[name]) for row in rows)])
        padded = [[x.rjust(max(map(len, column))) for x in column] for column in columns]
        lines = ["  ".join(line) for line in zip(*padded, strict=True)]
        if missing := int((self.steps < 0).all(axis=1).sum()):
            lines.append(f"{missing} of {len(self.points)} points were not evaluated yet")
        return "\n".join(lines)

    def curves(self, top: int | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Steps ``[E]`` and returns ``[S, E]`` by label, the best first, for ``plot_curves``.

        Args:
            top: How many points; all by default.
        """
        curves = {}
        for row in self.ranked()[:top]:
            number = row["point"]
            values = ", ".join(f"{k}={_short(x)}" for k, x in self.points[number].items())
            reached = self.steps[number] >= 0
            label = f"{number}: {values}" if values else f"point {number}"
            curves[label] = self.steps[number, reached], self.returns[number][:, reached]
        return curves

    def to_pandas(self) -> Any:
        """A ``DataFrame`` with a row a seed and evaluation, hyper-parameters among the columns.

        Raises:
            ImportError: If pandas is not installed.
        """
        return frame.to_pandas(
            frame.evaluations(self.points, self.steps, self.returns, self.failed)
        )


class Collected:
    """What is known of each point, as the parts of a sweep are finished."""

    def __init__(self, points: list[dict[str, Any]], seeds: int):
        """Stores the shape of the sweep.

        Args:
            points: What was varied, P of them.
            seeds: S of each.
        """
        self.points, self.seeds = points, seeds
        self.curves: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self.failed = np.zeros((len(points), seeds), bool)
        self.finished = np.zeros((len(points), seeds), bool)
        self.seconds = {"compiling": 0.0, "training": 0.0, "evaluating": 0.0}

    def names(self, group: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Point and seed of each row of a group: point after point, their seeds in each.

        Args:
            group: Its points.
        """
        return np.repeat(np.array(group), self.seeds), np.tile(np.arange(self.seeds), len(group))

    def add_host(self, host: dict[str, Any]) -> None:
        """What the checkpoint of a part says.

        Args:
            host: What it says.
        """
        run, failed = host["run"], np.array(host["failed"])
        returns = np.array(host["returns"]).reshape(len(host["steps"]), len(failed)).T
        steps = np.array(host["steps"], int)
        about = steps, returns, failed, host["finished"], host["seconds"]
        self.add(run["points"], run["rows"][0], *about)

    def add(
        self,
        group: Sequence[int],
        first: int,
        steps: np.ndarray,
        returns: np.ndarray,
        failed: np.ndarray,
        finished: bool,
        seconds: dict[str, float],
    ) -> None:
        """What one part came to, or has come to until it was stopped.

        Args:
            group: Points whose seeds are the rows of its group, point after point.
            first: Its first row in them.
            steps: ``[E]``, of the evaluations.
            returns: ``[R, E]`` of its rows.
            failed: ``[R]`` bool.
            finished: Whether they were trained to the last iteration.
            seconds: Wall time by what it was spent on.
        """
        for what in self.seconds:
            self.seconds[what] += seconds[what]
        points, seeds = (x[first : first + len(failed)] for x in self.names(group))
        self.failed[points, seeds] = failed
        self.finished[points, seeds] = finished
        for point, seed, row in zip(points, seeds, returns, strict=True):
            self.curves[point, seed] = steps, row

    def result(
        self, compilations: int, stopped: Stopped | None = None, trouble: str | None = None
    ) -> SweepResult:
        """All of it.

        Args:
            compilations: See :class:`SweepResult`, as for the others.
            stopped: What ended the sweep early.
            trouble: What could not be written.
        """
        most = max((len(steps) for steps, _ in self.curves.values()), default=0)
        all_steps = np.full((len(self.points), most), -1)
        all_returns = np.full((*self.failed.shape, most), np.nan)
        for (point, seed), (steps, returns) in self.curves.items():
            all_steps[point, : len(steps)] = steps
            all_returns[point, seed, : len(steps)] = returns
        about = all_steps, all_returns, self.failed, np.all(self.finished, axis=1)
        return SweepResult(self.points, *about, self.seconds, compilations, stopped, trouble)


def load_sweep(path: str | pathlib.Path) -> SweepResult:
    """What the sweep in a folder has come to, as far as its checkpoints tell.

    Args:
        path: The sweep's folder.

    Raises:
        FileNotFoundError: If the folder holds no sweep.
        ValueError: If a checkpoint is damaged, or of another version.
    """
    folder = RunFolder(path)
    config = read_sweep(folder)
    known = Collected(config["points"], config["seeds"])
    parts = sweep_parts(folder)
    for part in parts:
        if (host := read_host(part)) is not None:
            known.add_host(host)
    return known.result(len(parts))


def read_sweep(folder: RunFolder) -> dict[str, Any]:
    """What the ``config.json`` of a sweep holds.

    Args:
        folder: The sweep's.

    Raises:
        FileNotFoundError: If it holds no sweep.
    """
    config = folder.read_config()
    if "experiments" not in config:
        raise FileNotFoundError(f"{folder.path} is no sweep, wanted the folder of one.")
    return config


def sweep_parts(folder: RunFolder) -> list[RunFolder]:
    """The runs that a sweep has begun.

    Args:
        folder: The sweep's.
    """
    found = [RunFolder(path) for path in sorted(folder.path.glob("group-*/rows-*"))]
    return [part for part in found if part.begun()]


def _short(x: Any) -> str:
    return "" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)
