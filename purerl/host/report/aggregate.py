"""Statistics over seeds, on the host, in NumPy."""

import numpy as np
from numpy.typing import ArrayLike


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
        Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
    """
    x = np.asarray(x, float)
    cut = len(x) // 4
    ends = cut, len(x) - cut - 1
    trimmed = np.partition(np.where(np.isnan(x), 0, x), ends, axis=0)[cut : len(x) - cut]
    return np.where(np.isnan(x).any(axis=0), np.nan, trimmed.mean(axis=0))


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
    rows = np.random.default_rng(0).integers(len(x), size=(len(x), resamples))
    tail = (1 - confidence) / 2
    # One column after another: all resamples of all columns at once can be gigabytes.
    ends = [np.quantile(iqm(column[rows]), (tail, 1 - tail)) for column in x.reshape(len(x), -1).T]
    low, high = np.array(ends).reshape(-1, 2).T
    return low.reshape(x.shape[1:])[()], high.reshape(x.shape[1:])[()]
