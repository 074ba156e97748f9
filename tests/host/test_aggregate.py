"""Statistics and plots, against hand numbers and scipy."""

import numpy as np
import pytest
import scipy.stats

from purerl.host.report.aggregate import iqm, iqm_interval
from purerl.host.report.plotting import plot_curves, save_plot


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm([100.0, 2.0, 4.0, -100.0]) == 3.0
    x = np.random.default_rng(0).normal(size=(17, 3))
    np.testing.assert_allclose(iqm(x), scipy.stats.trim_mean(x, 0.25, axis=0))


def test_iqm_is_nan_where_a_seed_is():
    x = np.array([[1.0, 2.0], [1.0, np.nan], [1.0, 2.0]])
    np.testing.assert_array_equal(iqm(x), [1.0, np.nan])


def test_interval_covers_the_true_value_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        low, high = iqm_interval(rng.normal(size=16), resamples=300)
        hits += low <= 0 <= high
    assert 80 <= hits <= 99


def test_interval_of_one_seed_is_that_seed_and_repeats_agree():
    assert iqm_interval([3.0]) == (3.0, 3.0)
    x = np.random.default_rng(2).normal(size=8)
    assert iqm_interval(x) == iqm_interval(x)


def test_plot_shows_every_curve_with_its_number_of_seeds(tmp_path):
    steps = np.arange(1, 6) * 1_000_000
    returns = np.random.default_rng(3).normal(size=(4, 5)).cumsum(axis=1)
    figure = plot_curves({"a": (steps, returns), "b": (steps, returns[:1] + 1)}, "title")
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["a (4 seeds)", "b (1 seeds)"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), iqm(returns))
    path = tmp_path / "curve.png"
    save_plot(figure, path)
    assert path.stat().st_size > 5000


@pytest.mark.parametrize(("x", "text"), [(1_500_000, "1.5M"), (20_000, "20k"), (5, "5")])
def test_axis_labels_are_short(x, text):
    from purerl.host.report.plotting import _thousands

    assert _thousands(x, 0) == text
