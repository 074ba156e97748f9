"""What a sweep came to: its points ranked, and read again from its folder."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from purerl.host.options import Stopped
from purerl.host.report.aggregate import iqm, iqm_interval
from purerl.host.store.checkpoint import NEWEST, Checkpoints
from purerl.host.store.folder import RunFolder


class SweepResult(NamedTuple):
    """What a sweep came to; P points, S seeds."""

    points: list[dict[str, Any]]  # [P] what was varied
    steps: list[np.ndarray]  # [P] environment steps [E] of the evaluations
    returns: list[np.ndarray]  # [P] of [S, E]
    failed: np.ndarray  # [P, S] bool
    finished: np.ndarray  # [P] bool: trained to its last iteration
    seconds: dict[str, float]  # compiling, training, evaluating
    compilations: int  # groups of points that one program trains, and parts that fit into memory
    stopped: Stopped | None = None  # what ended it: a signal, or a seed's failure; None: its end
    trouble: str | None = None  # what could not be written

    def ranked(self) -> list[dict[str, Any]]:
        """A row a point, the best first: its number and values, IQM of the last evaluation,
        interval, worst seed, failed seeds; of a sweep that was stopped, also the step of that
        evaluation. Of equal IQMs the one with the higher interval comes first. Points that are not
        finished come after all that are, and in each part those with a seed without a finite return
        come last.
        """
        rows = []
        names = list(dict.fromkeys(name for point in self.points for name in point))
        each = zip(self.points, self.returns, self.failed, strict=True)
        for number, (point, returns, failed) in enumerate(each):
            if not returns.shape[1]:  # the sweep was stopped before
                continue
            last = returns[:, -1]
            low, high = iqm_interval(last)
            rows.append(
                {
                    "point": number,
                    **{name: point.get(name) for name in names},
                    **({} if self.finished.all() else {"step": int(self.steps[number][-1])}),
                    "iqm": float(iqm(last)),
                    "low": float(low),
                    "high": float(high),
                    "min": float(last.min()),
                    "failed": int(failed.sum()),
                }
            )

        def order(row: dict[str, Any]) -> tuple[bool, bool, float, float, float]:
            late = not self.finished[row["point"]], not np.isfinite(row["iqm"])
            return *late, -row["iqm"], -row["low"], -row["min"]

        return sorted(rows, key=order)

    def table(self, top: int | None = None) -> str:
        """The ranking as text.

        Args:
            top: How many points; all by default.
        """
        rows = self.ranked()[:top]
        missing = sum(not x.shape[1] for x in self.returns)
        if not rows:
            return "nothing was evaluated yet"
        columns = [name for name in rows[0] if name not in ("low", "high")]
        head = ["rank", *("return (IQM) [95 %]" if x == "iqm" else x for x in columns)]
        lines = [head]
        for i, row in enumerate(rows, 1):
            cells = [
                f"{row['iqm']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
                if name == "iqm"
                else _short(row[name])
                for name in columns
            ]
            lines.append([str(i), *cells])
        after = (
            [f"{missing} of {len(self.points)} points were not evaluated yet"] if missing else []
        )
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            [
                *(
                    "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                    for line in lines
                ),
                *after,
            ]
        )


class Collected:
    """What is known of each point, as the parts of a sweep are finished."""

    def __init__(self, points: list[dict[str, Any]], seeds: int):
        """Nothing is known.

        Args:
            points: What was varied, P of them.
            seeds: S of each.
        """
        self.points, self.seeds = points, seeds
        self.steps = [np.zeros(0, int) for _ in points]
        self.returns = [np.zeros((seeds, 0)) for _ in points]
        self.failed = np.zeros((len(points), seeds), bool)
        self.finished = np.zeros((len(points), seeds), bool)

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
        run = host["run"]
        returns = np.array(host["returns"]).reshape(len(host["steps"]), -1).T
        if not len(host["steps"]):
            returns = np.zeros((len(host["failed"]), 0))
        about = host["steps"], returns, host["failed"], host["finished"]
        self.add(run["points"], run["rows"][0], *about)

    def add(
        self,
        group: Sequence[int],
        first: int,
        steps: np.ndarray,
        returns: np.ndarray,
        failed: np.ndarray,
        finished: bool,
    ) -> None:
        """What one part came to, or has come to until it was stopped.

        Args:
            group: Points whose seeds are the rows of its group, point after point.
            first: Its first row in them.
            steps: ``[E]``, of the evaluations.
            returns: ``[R, E]`` of its rows.
            failed: ``[R]`` bool.
            finished: Whether they were trained to the last iteration.
        """
        points, seeds = (x[first:] for x in self.names(group))
        for i in range(len(failed)):
            point, seed = points[i], seeds[i]
            if len(steps) > len(self.steps[point]):  # the first of its seeds, or it came further
                more = len(steps) - len(self.steps[point])
                self.steps[point] = np.array(steps, int)
                self.returns[point] = np.pad(
                    self.returns[point], ((0, 0), (0, more)), constant_values=np.nan
                )
            self.returns[point][seed, : len(steps)] = returns[i]
            self.failed[point, seed] = failed[i]
            self.finished[point, seed] = finished


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
    seconds = {"compiling": 0.0, "training": 0.0, "evaluating": 0.0}
    parts = sweep_parts(folder)
    for part in parts:
        host = read_host(part)
        if host is None:
            continue
        known.add_host(host)
        for what in seconds:
            seconds[what] += host["seconds"][what]
    finished = np.all(known.finished, axis=1)
    return SweepResult(
        known.points, known.steps, known.returns, known.failed, finished, seconds, len(parts)
    )


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


def read_host(folder: RunFolder, which: str = NEWEST) -> dict[str, Any] | None:
    """What the newest checkpoint of a run says of itself; None if there is none.

    Args:
        folder: The run's.
        which: The folder in it, ``checkpoints`` or ``best``.
    """
    if not (folder.path / which).is_dir():
        return None
    checkpoints = Checkpoints(folder.path / which, keep=None)
    try:
        iterations = checkpoints.iterations()
        return checkpoints.read_host(iterations[-1]) if iterations else None
    finally:
        checkpoints.close()


def _short(x: Any) -> str:
    return "" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)
