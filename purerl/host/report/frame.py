"""Results as tables: a row a seed and evaluation, hyper-parameters among the columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Columns of a sweep's table, of its rows, and of the log.
COLUMNS = {
    *("rank", "point", "seed", "step", "return", "iqm", "low", "high", "min", "failed"),
    *("length", "unfinished", "train_return", "train_episodes", "refused", "seconds"),
}


def column(name: str) -> str:
    """The column of a hyper-parameter: its name, but ``swept_NAME`` where that is another column's.

    Args:
        name: Of the hyper-parameter.
    """
    return f"swept_{name}" if name in COLUMNS else name


def evaluations(
    points: Sequence[dict[str, Any]], steps: np.ndarray, returns: np.ndarray, failed: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of all evaluations, for :func:`to_pandas`.

    Args:
        points: Hyper-parameters by name, P of them; ``[{}]`` of a single run.
        steps: ``[P, E]`` environment steps; negative where an evaluation was not reached.
        returns: ``[P, S, E]``.
        failed: ``[P, S]`` bool.

    Example:
        >>> columns = evaluations(
        ...     [{"clip": 0.1}, {"clip": 0.2}],
        ...     np.array([[10, 20], [10, -1]]),
        ...     np.array([[[1.0, 2.0]], [[3.0, np.nan]]]),
        ...     np.zeros((2, 1), bool),
        ... )
        >>> [columns[name].tolist() for name in ("clip", "step", "return")]
        [[0.1, 0.1, 0.2], [10, 20, 10], [1.0, 2.0, 3.0]]
    """
    point, seed, at = np.nonzero(np.broadcast_to(steps[:, None] >= 0, returns.shape))
    return {
        **(point_columns(points, point) if any(points) else {}),
        "seed": seed,
        "step": steps[point, at],
        "return": returns[point, seed, at],
        "failed": failed[point, seed],
    }


def point_columns(points: Sequence[dict[str, Any]], which: np.ndarray) -> dict[str, np.ndarray]:
    """Number and hyper-parameters of the point of each row; None where a point has no such value.

    Args:
        points: Hyper-parameters by name.
        which: ``[R]``, the number of each row's point.
    """
    columns = {"point": which}
    for name in dict.fromkeys(name for point in points for name in point):
        values = [points[i].get(name) for i in which]
        numbers = all(isinstance(x, int | float) for x in values)
        made = np.array(values) if numbers else np.fromiter(values, object, len(values))
        columns[column(name)] = made
    return columns


def to_pandas(columns: dict[str, np.ndarray]) -> Any:
    """A pandas ``DataFrame``.

    Args:
        columns: ``[R]`` by name.

    Raises:
        ImportError: If pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "to_pandas needs pandas, which is not installed: pip install pandas."
        ) from error
    return pandas.DataFrame(columns)
