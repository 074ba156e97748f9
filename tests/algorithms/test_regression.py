"""No algorithm learns worse than when ``benchmarks/regression.py`` measured it."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

import purerl
from purerl.host.experiment import Experiment

pytestmark = pytest.mark.trains
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from regression import CELLS, learned  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))

MEASURED = json.loads((ROOT / "tests/data/regression.json").read_text())
SEEDS = 16


def lowest(returns):
    """2.5 % quantile of the interquartile mean of so many seeds of the measured ones."""
    rng = np.random.default_rng(0)
    drawn = np.asarray(returns)[rng.integers(len(returns), size=(SEEDS, 10_000))]
    return np.quantile(purerl.iqm(drawn), 0.025)


def test_every_algorithm_is_measured_with_64_seeds():
    assert MEASURED.keys() == CELLS.keys()
    assert {cell["experiment"]["algorithm"] for cell in MEASURED.values()} == {*purerl.ALGORITHMS}
    assert {len(cell["returns"]) for cell in MEASURED.values()} == {64}


def test_the_lowest_is_a_quantile_of_the_means_of_16_seeds():
    normal = np.random.default_rng(1).normal(size=20_000)
    # The IQM of a normal distribution has 1.09 times the standard deviation of the mean.
    np.testing.assert_allclose(lowest(normal), -1.96 * 1.09 / np.sqrt(SEEDS), rtol=0.05)


@pytest.mark.parametrize("name", CELLS)
def test_learns_as_when_it_was_measured(name):
    """If it is meant to learn otherwise: python benchmarks/regression.py --only NAME."""
    cell = MEASURED[name]
    keys = jax.random.split(jax.random.key(1), SEEDS)  # others than those measured
    returns = learned(Experiment.from_json(cell["experiment"]), keys)
    assert purerl.iqm(returns) >= lowest(cell["returns"])
