"""What rliable 1.2.0 says of fixed scores, for tests/host/test_aggregate.py.

    pip install rliable==1.2.0 "pandas<3"    # in an environment of its own
    python tests/data/rliable_numbers.py     # writes rliable_numbers.json

Intervals are of 50,000 resamples; the scores are in the file, so that no generator has to agree.
"""

import json
import pathlib

import numpy as np
from rliable import library, metrics

rng = np.random.default_rng(0)
X, Y = (np.round(rng.normal([m, m + 0.3, m + 0.6], 0.5, (10, 3)), 3) for m in (0.5, 0.7))
X[0], Y[0, 1] = [-2.0, 5.0, 0.1], X[1, 1]  # outliers, and a tie
THRESHOLDS = np.linspace(-0.5, 2.0, 6)
STATISTICS = {
    "iqm": metrics.aggregate_iqm,
    "median": metrics.aggregate_median,
    "mean": metrics.aggregate_mean,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


def estimated(scores, function):
    """A statistic and its interval."""
    points, intervals = library.get_interval_estimates(
        {"": scores},
        lambda *x: np.atleast_1d(function(*x)),
        reps=50_000,
        random_state=np.random.RandomState(0),
    )
    return {"value": points[""].tolist(), "interval": intervals[""].tolist()}


numbers = {
    "x": X.tolist(),
    "y": Y.tolist(),
    "thresholds": THRESHOLDS.tolist(),
    **{name: estimated(X, function) for name, function in STATISTICS.items()},
    "improvement": estimated([X, Y], metrics.probability_of_improvement),
    "profile": estimated(X, lambda x: library.score_distributions(x, THRESHOLDS)),
}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(numbers) + "\n")
