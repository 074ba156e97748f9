"""The result of a sweep: its points ranked, and read again from its folder."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from purerl.host.options import Stopped
from purerl.host.report import frame
from purerl.host.report.aggregate import coverage, iqm, iqm_interval
from purerl.host.report.tables import aligned, interval
from purerl.host.store.checkpoint import read_host
from purerl.host.store.folder import RunFolder, read_sweep


class SweepResult(NamedTuple):
    """The result of a sweep; P points, S seeds, E evaluations of the point that has most.

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
        """A row a point, the best first; of points that vary the environment, task after task.

        Each row holds the point's number and values (``swept_low`` for one whose name is a column's
        here), IQM of the last evaluation, interval, worst seed, failed seeds; of a sweep that was
        stopped, also the step of that evaluation. Of equal IQMs the one with the higher interval
        comes first. Points that are not finished come after all that are, and in each part those
        with a seed without a finite return come last.
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
                    **{frame.column(name): self.points[number].get(name) for name in names},
                    **({} if self.finished.all() else {"step": int(steps[reached - 1])}),
                    "iqm": float(iqm(last)),
                    "low": float(low),
                    "high": float(high),
                    "min": float(last.min()),
                    "failed": int(self.failed[number].sum()),
                }
            )

        tasks = self._tasks()

        def order(row: dict[str, Any]) -> tuple[int, bool, bool, float, float]:
            late = not self.finished[row["point"]], not np.isfinite(row["iqm"])
            return tasks[row["point"]], *late, -row["iqm"], -row["low"]

        return sorted(rows, key=order)

    def _tasks(self) -> list[int]:
        """The number of each point's task; points of one environment share one."""
        named = [str([point.get(x) for x in ("env", "env_params")]) for point in self.points]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(named))}
        return [numbers[name] for name in named]

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
                ends = [interval(row["iqm"], row["low"], row["high"]) for row in rows]
                kind = coverage(self.returns.shape[1]).removesuffix(" interval")
                columns.append([f"return (IQM) [{kind}]", *ends])
            elif name not in ("low", "high"):
                columns.append([name, *(_short(row[name]) for row in rows)])
        lines = [aligned([*zip(*columns, strict=True)], left=0)]
        if several := max(self._tasks()):
            lines.append(
                f"{several + 1} tasks, ranked one after another: returns of two do not compare"
            )
        elif (alike := sum(row["high"] >= rows[0]["low"] for row in rows)) > 1:
            lines.append(
                f"{alike} of these rows are not told apart by their intervals (purerl compare)"
            )
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
        columns = frame.evaluations(self.points, self.steps, self.returns, self.failed)
        return frame.to_pandas(columns)


def collect(
    points: list[dict[str, Any]], seeds: int, records: list[dict[str, Any]], compilations: int
) -> SweepResult:
    """The result of a sweep out of those of its parts.

    Args:
        points: What was varied, P of them.
        seeds: S of each.
        records: What the checkpoint of each part, or its session, says; ``run`` names the points of
            its group and its rows in the group: point after point, their seeds in each.
        compilations: How many programs were compiled.
    """
    most = max((len(record["steps"]) for record in records), default=0)
    steps, returns = np.full((len(points), most), -1), np.full((len(points), seeds, most), np.nan)
    failed, finished = np.zeros((2, len(points), seeds), bool)
    seconds = {"compiling": 0.0, "training": 0.0, "evaluating": 0.0}
    for record in records:
        reached = len(record["steps"])
        rows = np.arange(*record["run"]["rows"])
        point, seed = np.array(record["run"]["points"])[rows // seeds], rows % seeds
        steps[point, :reached] = record["steps"]
        returns[point, seed, :reached] = np.reshape(record["returns"], (reached, len(rows))).T
        failed[point, seed], finished[point, seed] = record["failed"], record["finished"]
        for what in seconds:
            seconds[what] += record["seconds"][what]
    stopped = next((x for record in records if (x := record.get("stopped"))), None)
    trouble = next((x for record in records if (x := record.get("trouble"))), None)
    arrays = steps, returns, failed, np.all(finished, axis=1)
    return SweepResult(points, *arrays, seconds, compilations, stopped, trouble)


def load_sweep(path: str | pathlib.Path) -> SweepResult:
    """The result of the sweep in a folder, as far as its checkpoints tell.

    Args:
        path: The sweep's folder.

    Returns:
        Points, steps ``[P, E]``, returns ``[P, S, E]`` and what failed, ``[P, S]``.

    Raises:
        FileNotFoundError: If the folder holds no sweep.
        ValueError: If a checkpoint is damaged, or of another version.

    Example:
        >>> import tempfile, purerl
        >>> folder = f"{tempfile.mkdtemp()}/sweep"
        >>> grid, sizes = {"learning_rate": [1e-3, 1e-2]}, dict(steps=2000, evaluations=1, seeds=2)
        >>> sweep = purerl.sweep(
        ...     "a2c", "CartPole-v1", grid=grid, **sizes, out=folder, progress=False
        ... )
        >>> load_sweep(folder).returns.shape
        (2, 2, 1)
    """
    folder = RunFolder(path)
    config = read_sweep(folder)
    parts = sweep_parts(folder)
    records = [record for part in parts if (record := read_host(part)) is not None]
    return collect(config["points"], config["seeds"], records, len(parts))


def sweep_parts(folder: RunFolder) -> list[RunFolder]:
    """The runs that a sweep has begun.

    Args:
        folder: The sweep's.
    """
    found = [RunFolder(path) for path in sorted(folder.path.glob("group-*/rows-*"))]
    return [part for part in found if part.begun()]


def _short(x: Any) -> str:
    return "" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)
