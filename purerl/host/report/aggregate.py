"""Statistics over seeds and tasks, on the host, in NumPy.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". What is
over tasks takes their scores one after another, ``[S, ...]`` each, where tasks may have different
numbers of seeds; scores of different tasks must be of one scale.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Tasks = Sequence[ArrayLike]


def iqm(x: ArrayLike) -> np.ndarray:
    """Interquartile mean over the first axis: a quarter of the seeds, rounded down, is trimmed from
    each end.

    Of 4 to 7 seeds that is one seed at each end; of fewer than 4 seeds none, and the result is the
    plain mean.

    Args:
        x: One row a seed, ``[S, ...]``.

    Returns:
        ``[...]``; NaN where a seed is NaN.

    Example:
        >>> float(iqm(np.array([-1000.0, 1.0, 3.0, 5.0]))), float(iqm(np.array([0.0, 1.0, 8.0])))
        (2.0, 3.0)

    References:
        Agarwal et al. 2021, section 4.3.
    """
    x = np.asarray(x, float)
    cut = len(x) // 4
    ends = cut, len(x) - cut - 1
    trimmed = np.partition(np.where(np.isnan(x), 0, x), ends, axis=0)[cut : len(x) - cut]
    return np.where(np.isnan(x).any(axis=0), np.nan, trimmed.mean(axis=0))


def coverage(seeds: int) -> str:
    """What :func:`iqm_interval` gives: a "95 % interval", or of fewer than five seeds the "range".

    Of four, a resample of twenty has the least of them three times, and so as its interquartile
    mean: the interval is from the least to the greatest, and covers less than it says.

    Args:
        seeds: How many.

    Example:
        >>> coverage(4), coverage(5)
        ('range', '95 % interval')
    """
    return "95 % interval" if seeds >= 5 else "range"


def iqm_interval(
    x: ArrayLike, confidence: float = 0.95, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile-bootstrap interval of the interquartile mean, resampling seeds.

    Always with the same resamples, so that the same data give the same interval.

    Args:
        x: One row a seed, ``[S, ...]``.
        confidence: Of the interval.
        resamples: Bootstrap samples.

    Returns:
        ``(low [...], high [...])``; with one seed both are that seed.

    Example:
        >>> low, high = iqm_interval(np.array([1.0, 2.0, 3.0, 4.0]))
        >>> bool(low < iqm(np.array([1.0, 2.0, 3.0, 4.0])) < high)
        True
    """
    x = np.asarray(x, float)
    # One column after another: all resamples of all columns at once can be gigabytes.
    ends = [
        stratified_interval(task_iqm, [column], confidence=confidence, resamples=resamples)
        for column in x.reshape(len(x), -1).T
    ]
    low, high = np.array(ends).reshape(-1, 2).T
    return low.reshape(x.shape[1:])[()], high.reshape(x.shape[1:])[()]


def task_iqm(tasks: Tasks) -> np.ndarray:
    """Interquartile mean of all runs of all tasks, ``[...]``.

    Each run counts once, so a task with more seeds counts more.

    Args:
        tasks: Scores of each task, ``[S, ...]``.

    Returns:
        The IQM, ``[...]``.

    Example:
        >>> float(task_iqm([[0.0, 1.0], [3.0, 9.0]]))
        2.0
    """
    return iqm(np.concatenate([np.asarray(x, float) for x in tasks]))


def task_median(tasks: Tasks) -> np.ndarray:
    """Median over tasks of the mean over seeds, ``[...]``.

    Args:
        tasks: Scores of each task, ``[S, ...]``.

    Returns:
        The median, ``[...]``.

    Example:
        >>> float(task_median([[0.0, 2.0], [5.0, 5.0], [9.0, 99.0]]))
        5.0
    """
    return np.median(_means(tasks), axis=0)


def task_mean(tasks: Tasks) -> np.ndarray:
    """Mean over tasks of the mean over seeds, ``[...]``.

    Args:
        tasks: Scores of each task, ``[S, ...]``.

    Returns:
        The mean, ``[...]``.

    Example:
        >>> float(task_mean([[0.0, 2.0], [5.0, 5.0]]))
        3.0
    """
    return np.mean(_means(tasks), axis=0)


def optimality_gap(tasks: Tasks, optimum: float = 1.0) -> np.ndarray:
    """By how much runs miss the optimum, ``[...]``: scores beyond it count as it; lower is better.

    Args:
        tasks: Scores of each task, ``[S, ...]``.
        optimum: The score to be reached.

    Returns:
        The mean distance, ``[...]``, at least 0.

    Example:
        >>> float(optimality_gap([[0.5, 3.0], [1.0, 0.0]]))
        0.375
    """
    return optimum - np.mean(_means([np.minimum(x, optimum) for x in tasks]), axis=0)


def performance_profile(tasks: Tasks, thresholds: ArrayLike) -> np.ndarray:
    """Fraction of runs above each threshold, the mean over tasks, ``[K, ...]``.

    Args:
        tasks: Scores of each task, ``[S, ...]``.
        thresholds: ``[K]``.

    Returns:
        Fractions ``[K, ...]``, from 0 to 1.

    Example:
        >>> performance_profile([[0.0, 1.0, 2.0, 3.0]], [0.0, 1.5, 3.0]).tolist()
        [0.75, 0.5, 0.0]

    References:
        Agarwal et al. 2021, section 4.2 (score distributions).
    """
    arrays = [np.asarray(x, float) for x in tasks]
    return np.array([np.mean(_means([x > t for x in arrays]), 0) for t in np.asarray(thresholds)])


def probability_of_improvement(x: Tasks, y: Tasks) -> np.ndarray:
    """Probability that a run of X scores higher than one of Y, the mean over tasks, ``[...]``.

    Mann and Whitney's U over the number of pairs: a tie counts half.

    Args:
        x: Scores of each task, ``[S, ...]``.
        y: Of the other, on the same tasks.

    Returns:
        A probability ``[...]``.

    Raises:
        ValueError: If there are not as many tasks of the one as of the other.

    Example:
        >>> float(probability_of_improvement([[1.0, 2.0]], [[0.0, 2.0]]))
        0.625
    """
    of_tasks = []
    for mine, others in zip(x, y, strict=True):
        other = np.asarray(others, float)
        # One run after another: all pairs of all resamples at once can be gigabytes.
        won = [np.mean((one > other) + 0.5 * (one == other), axis=0) for one in np.asarray(mine)]
        of_tasks.append(np.mean(won, axis=0))
    return np.mean(of_tasks, axis=0)


def stratified_interval(
    statistic: Callable[..., np.ndarray],
    *scores: Tasks,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile-bootstrap interval of a statistic: the seeds of each task are resampled apart.

    Always with the same resamples, so that the same data give the same interval.

    Args:
        statistic: One of those above, or another whose arguments are tasks ``[S, ...]`` each.
        *scores: Its arguments: the tasks of each algorithm, ``[S]`` each.
        confidence: Of the interval.
        resamples: Bootstrap samples.

    Returns:
        ``(low, high)``, of the statistic's shape.

    Example:
        >>> low, high = stratified_interval(task_mean, [[0.0, 1.0, 2.0], [4.0, 5.0, 9.0]])
        >>> bool(low < 3.5 < high)
        True
    """
    rng = np.random.default_rng(0)
    drawn = [[_resampled(np.asarray(x, float), rng, resamples) for x in one] for one in scores]
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(*drawn), (tail, 1 - tail), axis=-1)
    return low, high


def _resampled(x: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """``[S] -> [S, R]``."""
    return x[rng.integers(len(x), size=(len(x), resamples))]


def _means(tasks: Tasks) -> np.ndarray:
    """Over seeds, ``[T, ...]``."""
    return np.array([np.mean(np.asarray(x, float), axis=0) for x in tasks])
