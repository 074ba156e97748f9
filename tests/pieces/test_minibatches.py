"""Minibatches, and how even the permutation behind them is.

The permutation is home-made, so it has to show that it is as good as a random one: where each
element goes, where pairs of elements go, and what two keys of one split have to do with each other.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

from purerl.pieces.minibatches import minibatches, permutation


@functools.partial(jax.jit, static_argnums=(1, 2))
def many(key, count, n):
    """Permutations of n for ``count`` keys of one split, ``[count, n]``."""
    return jax.vmap(lambda k: permutation(k, n))(jax.random.split(key, count))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 32, 33, 100, 512, 2049])
def test_is_a_permutation(n, key):
    orders = many(key, 20, n)
    assert orders.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(n), (20, 1)))
    if n > 7:
        assert len(np.unique(orders, axis=0)) > 15  # and not always the same one


def test_same_key_same_permutation(key):
    """Also alone and under vmap, where the keys walk different numbers of cycles."""
    single = jax.jit(lambda k: permutation(k, 100))
    alone = [single(k) for k in jax.random.split(key, 20)]
    np.testing.assert_array_equal(many(key, 20, 100), jnp.stack(alone))


def positions_p(orders):
    """Does each element come equally often to each place? Chi-square with (n - 1)^2 degrees.

    In one permutation matrix every row and column sums to 1, hence not n^2 - 1 degrees, and a
    variance that is larger by n / (n - 1).
    """
    count, n = orders.shape
    table = np.stack([np.bincount(column, minlength=n) for column in orders.T])
    return stats.chi2.sf((n - 1) / count * np.sum((table - count / n) ** 2), (n - 1) ** 2)


def pair_p(orders, i, j):
    """Do the elements at places i and j take each of the n (n - 1) values equally often?"""
    n = orders.shape[1]
    table = np.bincount(orders[:, i] * n + orders[:, j], minlength=n * n).reshape(n, n)
    return oracles.chi_square_p(table[~np.eye(n, dtype=bool)])


@pytest.mark.parametrize(("n", "count"), [(4, 40_000), (8, 40_000), (16, 40_000), (100, 40_000)])
def test_elements_and_pairs_go_everywhere_equally_often(n, count, key):
    orders = np.asarray(many(key, count, n))
    assert positions_p(orders) > 1e-3
    neighbours = [(i, i + 1) for i in range(0, n - 1, max(1, n // 8))]
    far = [(0, n // 2), (0, n - 1), (n // 4, n // 2), (n // 4, 3 * n // 4)]
    pairs = neighbours + far
    p_values = [pair_p(orders, i, j) for i, j in pairs]
    assert min(p_values) > 1e-3 / len(pairs), dict(zip(pairs, p_values, strict=True))


def test_all_24_orders_of_4_come_up_equally_often(key):
    orders = np.asarray(many(key, 40_000, 4))
    _, counts = np.unique(orders @ np.array([1, 4, 16, 64]), return_counts=True)
    assert len(counts) == 24
    assert oracles.chi_square_p(counts) > 1e-3


@pytest.mark.parametrize("n", [128, 512])
def test_pairs_of_large_permutations_are_even(n, key):
    """In coarse cells: by eighths of the range, for places near and far."""
    orders = np.asarray(many(key, 20_000, n))
    assert positions_p(orders) > 1e-3
    places = [(0, 1), (0, 2), (1, 2), (0, n // 2), (0, n - 1), (n // 4, 3 * n // 4), (7, 8)]
    size = n // 8
    same, other = size * (size - 1), size * size
    expected = np.where(np.eye(8), same, other) / (n * (n - 1))
    for i, j in places:
        cells = orders[:, i] // size * 8 + orders[:, j] // size
        counts = np.bincount(cells, minlength=64)
        assert oracles.chi_square_p(counts, np.ravel(expected) * len(orders)) > 1e-4, (i, j)
        steps = np.bincount((orders[:, j] - orders[:, i]) % n, minlength=n)[1:]
        assert oracles.chi_square_p(steps) > 1e-4, (i, j)


def test_successive_keys_give_unrelated_permutations(key):
    """Two permutations from neighbouring keys agree in one place on average, and correlate no
    more than chance; their first elements fill all 64 cells equally."""
    n = 8
    pairs = np.asarray(many(key, 40_000, n)).reshape(-1, 2, n)
    cells = np.bincount(pairs[:, 0, 0] * n + pairs[:, 1, 0], minlength=n * n)
    assert oracles.chi_square_p(cells) > 1e-3
    n = 512
    orders = np.asarray(many(key, 2000, n)).astype(float)
    first, second = orders[:-1], orders[1:]
    assert abs(np.mean(np.sum(first == second, axis=1)) - 1) < 4 / 2000**0.5
    centred = [x - (n - 1) / 2 for x in (first, second)]
    correlation = np.sum(centred[0] * centred[1], axis=1) / np.sum(centred[0][0] ** 2)
    # A rank correlation has mean 0 and variance 1 / (n - 1).
    assert abs(np.mean(correlation)) < 4 / (2000 * (n - 1)) ** 0.5
    assert abs(np.var(correlation) * (n - 1) - 1) < 4 * (2 / 2000) ** 0.5


def batch_of(size):
    return {"a": jnp.arange(size), "b": jnp.arange(size)[:, None] * jnp.array([[1.0, 10.0]])}


@pytest.mark.parametrize("count", [1, 3, 12])
def test_minibatches_partition_the_batch(count, key):
    parts = jax.jit(lambda k: minibatches(k, batch_of(12), count))(key)
    assert parts["a"].shape == (count, 12 // count)
    assert parts["b"].shape == (count, 12 // count, 2)
    assert sorted(parts["a"].ravel().tolist()) == list(range(12))
    np.testing.assert_array_equal(parts["b"][..., 1], 10 * parts["a"])  # samples stay together
    if count > 1:
        assert parts["a"].ravel().tolist() != list(range(12))


def test_without_shuffle_the_order_stays(key):
    parts = minibatches(key, batch_of(12), 3, shuffle=False)
    assert parts["a"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_keys_give_different_minibatches(key):
    one, two = (minibatches(k, batch_of(12), 3)["a"] for k in jax.random.split(key))
    assert one.tolist() != two.tolist()


def test_a_count_that_does_not_divide_is_an_error(key):
    message = "12 samples cannot be split into 5 equal minibatches; choose a number of minibatches"
    with pytest.raises(ValueError, match=message):
        minibatches(key, batch_of(12), 5)


def test_numpy_batches():
    batch = {"x": np.arange(12.0).reshape(6, 2), "i": np.arange(6)}
    got = minibatches(jax.random.key(0), batch, 3)
    same = minibatches(jax.random.key(0), jax.tree.map(jnp.asarray, batch), 3)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, got, same))
    assert got["x"].shape == (3, 2, 2)
