"""Statistics and plots, against hand numbers, scipy and rliable."""

import json
import pathlib
import types

import numpy as np
import pytest
import scipy.stats

from purerl.host.report.aggregate import (
    coverage,
    iqm,
    iqm_interval,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
    task_iqm,
    task_mean,
    task_median,
)
from purerl.host.report.plotting import plot_curves, save_plot


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm([100.0, 2.0, 4.0, -100.0]) == 3.0
    x = np.random.default_rng(0).normal(size=(17, 3))
    np.testing.assert_allclose(iqm(x), scipy.stats.trim_mean(x, 0.25, axis=0))


def test_iqm_is_nan_where_a_seed_is():
    x = np.array([[1.0, 2.0], [1.0, np.nan], [1.0, 2.0]])
    np.testing.assert_array_equal(iqm(x), [1.0, np.nan])


def test_iqm_trims_a_quarter_of_the_seeds_rounded_down():
    assert [float(iqm([0.0, *[1.0] * n])) for n in (2, 3, 7)] == [2 / 3, 1.0, 1.0]
    assert float(iqm([0.0, 0.0, *[1.0] * 6])) == 1.0
    assert float(iqm([0.0, 0.0, 0.0, *[1.0] * 5])) == 0.75


@pytest.mark.parametrize(
    ("x", "confidence", "wanted"),
    [
        # The middle four of six draws are 0 with probability 13 / 729, which is 1.8 %.
        ([0, 0, 1, 1, 1, 1], 0.95, 0.25),
        ([0, 0, 1, 1, 1, 1], 0.975, 0.0),
        # All three draws are 0 with probability 1 / 27, which is 3.7 %.
        ([0, 1, 1], 0.95, 0.0),
        ([0, 1, 1], 0.9, 1 / 3),
    ],
)
def test_ends_of_the_interval_are_the_quantiles_that_it_says(x, confidence, wanted):
    """A tail of (1 - confidence) / 2 at each end; 0.95 unless it is given."""
    given = {} if confidence == 0.95 else {"confidence": confidence}
    low, _ = iqm_interval(x, resamples=20_000, **given)
    _, high = iqm_interval(1 - np.array(x), resamples=20_000, **given)
    np.testing.assert_allclose([low, 1 - high], wanted, atol=1e-12)


def test_interval_is_nan_where_a_seed_is():
    x = np.array([[1.0, 2.0], [1.0, np.nan], [1.0, 2.0]])
    np.testing.assert_array_equal(iqm_interval(x), [[1.0, np.nan]] * 2)


def test_interval_of_one_seed_is_that_seed_and_repeats_agree():
    assert iqm_interval([3.0]) == (3.0, 3.0)
    x = np.random.default_rng(2).normal(size=8)
    assert iqm_interval(x) == iqm_interval(x)


def test_of_fewer_than_five_seeds_the_interval_is_called_a_range_because_it_is_one():
    rng = np.random.default_rng(3)
    for seeds in range(2, 9):
        x = rng.normal(size=(seeds, 20))
        low, high = iqm_interval(x)
        is_range = np.allclose((low, high), (x.min(axis=0), x.max(axis=0)))
        assert coverage(seeds) == ("range" if is_range else "95 % interval"), seeds


# By rliable (see data/rliable_numbers.py), which takes scores [S, tasks].
RLIABLE = json.loads((pathlib.Path(__file__).parents[1] / "data/rliable_numbers.json").read_text())
X, Y = (np.array(RLIABLE[name]).T for name in "xy")
STATISTICS = {
    "iqm": (task_iqm, X),
    "median": (task_median, X),
    "mean": (task_mean, X),
    "optimality_gap": (optimality_gap, X),
    "improvement": (probability_of_improvement, X, Y),
    "profile": (lambda tasks: performance_profile(tasks, RLIABLE["thresholds"]), X),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_over_tasks_are_those_of_rliable(name):
    statistic, *scores = STATISTICS[name]
    np.testing.assert_allclose(statistic(*scores), np.squeeze(RLIABLE[name]["value"]))
    ends = stratified_interval(statistic, *scores, resamples=10_000)
    wanted = np.array(RLIABLE[name]["interval"])
    atol = 0.03 * (wanted[1] - wanted[0]).max()  # both are random
    np.testing.assert_allclose(ends, np.squeeze(wanted), atol=atol)


def test_probability_of_improvement_counts_pairs_and_half_of_each_tie():
    """Of 2 x 3 pairs: 1 beats nothing but 0, 2 beats 0 and ties with 2; on the other task all."""
    x, y = [[1.0, 2.0], [5.0]], [[0.0, 2.0, 3.0], [4.0, 4.0]]
    assert probability_of_improvement(x[:1], y[:1]) == pytest.approx(2.5 / 6)
    assert probability_of_improvement(x, y) == pytest.approx((2.5 / 6 + 1) / 2)
    assert probability_of_improvement(y, x) == pytest.approx(1 - (2.5 / 6 + 1) / 2)
    u = scipy.stats.mannwhitneyu(X[0], Y[0]).statistic
    assert probability_of_improvement(X[:1], Y[:1]) == pytest.approx(u / X[0].size / Y[0].size)
    with pytest.raises(ValueError, match="shorter"):
        probability_of_improvement(x, y[:1])


def test_tasks_with_different_numbers_of_seeds_count_alike():
    """But for the IQM, where each run does."""
    tasks = [[0.0, 0.2, 0.4, 0.6], [1.5]]
    assert task_mean(tasks) == task_median(tasks) == pytest.approx(0.9)
    assert optimality_gap(tasks) == pytest.approx((0.7 + 0.0) / 2)
    assert optimality_gap(tasks, optimum=2.0) == pytest.approx((1.7 + 0.5) / 2)
    np.testing.assert_allclose(performance_profile(tasks, [0.2, 1.5]), [(0.5 + 1) / 2, 0])
    assert task_iqm(tasks) == pytest.approx((0.2 + 0.4 + 0.6) / 3)


def test_seeds_are_resampled_within_their_task():
    """Two tasks of one score each: whatever is drawn, their mean is the same."""
    tasks = [[1.0, 1.0, 1.0], [5.0, 5.0]]
    np.testing.assert_array_equal(stratified_interval(task_mean, tasks), (3.0, 3.0))


def test_plot_shows_every_curve_with_its_number_of_seeds(tmp_path):
    steps = np.arange(1, 6) * 1_000_000
    returns = np.random.default_rng(3).normal(size=(4, 5)).cumsum(axis=1)
    figure = plot_curves({"a": (steps, returns), "b": (steps, returns[:1] + 1)}, "title")
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["a (4 seeds, range)", "b (1 seeds, range)"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), iqm(returns))
    low, high = iqm_interval(returns)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [low.min(), high.max()])
    result = types.SimpleNamespace(steps=steps, returns=returns)
    (same,) = plot_curves({"a": result}).axes
    np.testing.assert_array_equal(same.lines[0].get_xydata(), axes.lines[0].get_xydata())
    path = tmp_path / "curve.png"
    save_plot(figure, path)
    assert path.stat().st_size > 5000


@pytest.mark.parametrize(("x", "text"), [(1_500_000, "1.5M"), (20_000, "20k"), (5, "5")])
def test_axis_labels_are_short(x, text):
    from purerl.host.report.plotting import _thousands

    assert _thousands(x, 0) == text
