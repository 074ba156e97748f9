"""Samples out of rollouts, normalized advantages, and how well a critic explains its targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.pieces.advantages import explained_variance, on_policy_batch, standardize


@pytest.mark.parametrize("size", [2, 64, 1000, 4000])
def test_equal_numbers_become_exactly_zero(size):
    """The mean of equal float32 numbers is rounded; what it is off by is not divided by itself."""
    for number in (0.1, -99.34299, 1e6 / 3):
        x = jnp.full(size, number, jnp.float32)
        assert not standardize(x).any()
        assert not standardize(x, jnp.arange(size) % 3.0).any()


def test_returns_of_solved_episodes_are_not_all_bad():
    """CartPole solved: 500 steps of 8 environments, whose total returns are all the same."""
    reward, no = jnp.ones((500, 8)), jnp.zeros((500, 8), bool)
    weight = purerl.discounted_return(reward, no, no, 0.99)
    assert not standardize(weight, jnp.ones((500, 8))).any()


def test_weights_are_numbers_of_copies(x64):
    rng = np.random.default_rng(0)
    x, copies = rng.normal(3, 2, 40), rng.integers(0, 4, 40)
    many = np.repeat(x, copies)
    got = standardize(jnp.asarray(x), jnp.asarray(copies, float))[copies > 0]
    np.testing.assert_allclose(got, ((x - many.mean()) / many.std())[copies > 0], rtol=1e-7)
    alone = standardize(jnp.asarray(many))
    np.testing.assert_allclose(alone, (many - many.mean()) / many.std(), rtol=1e-7)


def test_what_has_no_weight_may_be_anything():
    x = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    got = standardize(x, jnp.array([1.0, 0.0, 1.0, 0.0]))
    assert got[::2].tolist() == [-1.0, 1.0]
    assert got[1::2].tolist() == [-1.0, -1.0]
    assert jnp.isnan(standardize(x)).any()  # nothing is repaired silently


def test_explained_variance_by_hand():
    target = jnp.array([0.0, 2.0, 4.0])
    assert explained_variance(target, target) == 1
    assert explained_variance(jnp.full(3, 9.0), target) == 0
    np.testing.assert_allclose(explained_variance(0.5 * target, target), 0.75, rtol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1.0])
def test_of_constant_targets_nothing_is_explained(value):
    target = jnp.full(1000, 0.1, jnp.float32)
    assert explained_variance(jnp.full(1000, value, jnp.float32), target) == 0
    assert explained_variance(jnp.arange(1000.0), target) == 0


def test_samples_of_a_rollout():
    """Time first: sample t * N + n is step t of environment n; NumPy's arrays become JAX's."""
    network = purerl.ActorCritic(purerl.Discrete(2), purerl.NetworkConfig(hidden_sizes=(4,)))
    rng = np.random.default_rng(1)
    obs, next_obs = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    action, no = rng.integers(2, size=(3, 2)).astype(np.int32), np.zeros((3, 2), bool)
    reward = rng.normal(size=(3, 2)).astype(np.float32)
    end = no.copy()
    end[1, 0] = True
    step = np.zeros((3, 2), np.int32)
    rollout = purerl.Rollout(obs, action, reward, reward, end, no, next_obs, step)
    params = network.init(jax.random.key(0), obs[0])
    batch = on_policy_batch(network, params, rollout, 0.9, 0.8)
    np.testing.assert_array_equal(batch.obs[4], obs[2, 0])
    np.testing.assert_array_equal(batch.action, action.ravel())
    value, next_value = (network.apply(params, x.reshape(-1, 4))[1] for x in (obs, next_obs))
    np.testing.assert_allclose(batch.value, value, rtol=1e-6)
    value, next_value = value.reshape(3, 2), next_value.reshape(3, 2)
    wanted = purerl.gae(reward, value, next_value, end, no, 0.9, 0.8).ravel()
    np.testing.assert_allclose(batch.advantage, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.target, wanted + batch.value, rtol=1e-5, atol=1e-6)
    normal = on_policy_batch(network, params, rollout, 0.9, 0.8, normalize=True)
    np.testing.assert_allclose(normal.advantage, standardize(wanted), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(normal.target, batch.target)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(batch))
