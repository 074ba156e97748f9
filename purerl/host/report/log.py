"""Rows of a run's log, and names of its seeds."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from purerl.host.programs import Report
from purerl.host.report.writers import Rows, Writer
from purerl.training.evaluation import Evaluation

EVALUATED = ("return", "length", "unfinished")  # columns: the fields of an Evaluation
TRAINED = ("train_return", "train_episodes", "refused", "failed", "seconds")


def check_info(info: Iterable[str], names: Iterable[str]) -> None:
    """Raises ValueError if an entry of an algorithm's info is called like another column.

    Args:
        info: Names of its entries.
        names: Columns that name a seed.
    """
    if taken := {"seed", "point", "step", *EVALUATED, *TRAINED, *names} & {*info}:
        raise ValueError(
            f"the info of the algorithm's update has {', '.join(sorted(taken))}, which the log has "
            "a column of already; give it another name."
        )


def named(names: dict[str, np.ndarray], which: np.ndarray) -> str:
    """Seeds in words, such as "seed 1, 4", or of a sweep "point/seed 0/1, 3/0".

    Args:
        names: Columns ``[S]``.
        which: ``[S]`` bool.

    Returns:
        The first five; nothing if there are none.
    """
    rows = np.flatnonzero(which)
    if not len(rows):
        return ""
    kinds = [name for name in ("point", "seed") if name in names]
    first = ", ".join("/".join(str(names[kind][i]) for kind in kinds) for i in rows[:5])
    return f"{'/'.join(kinds)} {first}{', ...' if len(rows) > 5 else ''}"


def train_return(report: Report) -> np.ndarray:
    """Mean return ``[S]`` of the training episodes since the last row; NaN where none ended.

    Args:
        report: How the run stands, leaves ``[S]``.
    """
    episodes = report.totals.episodes
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(episodes.return_sum / episodes.ended)


def make_rows(
    step: int, seconds: float, evaluation: Evaluation | None, report: Report, iterations: int
) -> dict[str, Any]:
    """The log's columns ``[S]``, after the names: one evaluation, and the training since the one
    before.

    Args:
        step: Environment steps of each seed so far.
        seconds: Of training so far.
        evaluation: Leaves ``[S]``; None where nothing is evaluated.
        report: How the run stands, sums since the row before.
        iterations: Since the row before.
    """
    return {
        "step": np.full(len(report.failed), step),
        **dict(zip(EVALUATED, evaluation or (), strict=False)),
        "train_return": train_return(report),
        "train_episodes": report.totals.episodes.ended,
        "refused": report.refused,
        "failed": report.failed.astype(int),
        "seconds": np.full(len(report.failed), round(seconds, 3)),
        **{
            k: np.asarray(x / iterations)
            for k, x in sorted(report.totals.info.items())
            if np.ndim(x) == 1  # columns are scalars of a seed
        },
    }


class Log:
    """Hands rows to all writers; what could not be written is kept, and tried again."""

    def __init__(self, writers: list[Writer]):
        """Stores the writers.

        Args:
            writers: Where rows go.
        """
        self._waiting: list[tuple[Writer, list[Rows]]] = [(writer, []) for writer in writers]

    def open(self, folder: pathlib.Path, config: dict[str, Any], step: int | None) -> None:
        """See :class:`Writer`."""
        for writer, _ in self._waiting:
            writer.open(folder, config, step)

    def write(self, rows: Rows) -> str | None:
        """Writes rows, and those that are waiting.

        Args:
            rows: Columns ``[S]``.

        Returns:
            Why some could not be written; None if all were.
        """
        for _, waiting in self._waiting:
            waiting.append(rows)
        return self.flush()

    def flush(self) -> str | None:
        """Writes the rows that are waiting; returns as :meth:`write` does."""

        def write(writer: Writer, waiting: list[Rows]) -> None:
            while waiting:
                writer.write(waiting[0])
                del waiting[0]

        return self._each(write)

    def close(self) -> str | None:
        """Closes all writers; returns as :meth:`write` does."""
        return self._each(lambda writer, _: writer.close())

    def _each(self, act: Callable[[Writer, list[Rows]], None]) -> str | None:
        trouble = None
        for writer, waiting in self._waiting:
            try:
                act(writer, waiting)
            except Exception as error:  # a writer's trouble, of whatever kind, must not end a run
                kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
                trouble = f"{type(writer).__name__}: {kind}{error}"
        return trouble
