"""Running moments against NumPy on all the data at once."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.pieces.normalize import (
    init_moments,
    init_reward_scaler,
    merge_moments,
    normalize,
    scale_rewards,
)


def merged(parts, shape):
    moments = init_moments(shape)
    for part in parts:
        moments = merge_moments(moments, jnp.asarray(part))
    return moments


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_moments_equal_numpy_on_everything(x64, shape):
    rng = np.random.default_rng(0)
    parts = [5 + i + (i + 1) * rng.normal(size=(7, 4, *shape)) for i in range(3)]
    moments = merged(parts, shape)
    everything = np.concatenate(parts).reshape(-1, *shape)
    assert moments.seen == len(everything)
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moments.var, everything.var(0), rtol=1e-10)


@hypothesis.given(
    cuts=st.lists(st.sampled_from([1, 2, 5, 6, 11, 12, 13, 18]), unique=True, max_size=5),
    offset=st.sampled_from([0.0, -3.0, 1e4]),
)
@hypothesis.settings(max_examples=15, deadline=None, database=None)
def test_any_split_gives_the_same_moments(cuts, offset):
    data = offset + np.random.default_rng(1).normal(size=(19, 2))
    with jax.enable_x64(True):
        moments = merged(np.split(data, sorted(cuts)), (2,))
        np.testing.assert_allclose(moments.mean, data.mean(0), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(moments.var, data.var(0), rtol=1e-10, atol=1e-10)


def test_float32_moments_survive_a_large_mean():
    """A sum of squares would have lost the variance of data around 1e4."""
    rng = np.random.default_rng(2)
    parts = [1e4 + rng.normal(size=(100, 1)) for _ in range(10)]
    moments = merged([p.astype(np.float32) for p in parts], (1,))
    assert moments.var.dtype == jnp.float32
    np.testing.assert_allclose(moments.var, np.concatenate(parts).var(0), rtol=1e-2)


def test_normalized_data_have_mean_0_and_deviation_1(x64):
    data = jnp.asarray(3 + 2 * np.random.default_rng(3).normal(size=(50, 2)))
    x = normalize(data, merged([data], (2,)))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-7)


def test_nothing_seen_changes_nothing(x64):
    x = jnp.array([[1.0, -2.0], [0.5, 9.0]])
    np.testing.assert_allclose(normalize(x, init_moments((2,))), x, rtol=1e-7)


def test_a_constant_becomes_zero():
    data = jnp.full((5, 2), 7.0)
    assert not normalize(data, merged([data], (2,))).any()


def test_clip_bounds_the_result():
    moments = init_moments(())
    x = jnp.array([-50.0, 1.0, 50.0])
    np.testing.assert_allclose(normalize(x, moments), [-10, 1, 10], rtol=1e-6)
    np.testing.assert_allclose(normalize(x, moments, clip=2.0), [-2, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(normalize(x, moments, clip=None), x, rtol=1e-6)


def test_integer_observations_are_cast():
    x = normalize(jnp.array([[1, 2]]), init_moments((2,)))
    assert x.dtype == jnp.float32


def test_reward_scaler_equals_a_loop(x64):
    """Two rollouts: the first is scaled by 1, the second by what the first one taught."""
    rng = np.random.default_rng(4)
    scaler, running, totals = init_reward_scaler(3), np.zeros(3), []
    for i in range(3):
        reward, done = 2 * rng.normal(size=(6, 3)), rng.random((6, 3)) < 0.3
        std = np.sqrt((np.var(totals) if i else 1.0) + 1e-8)
        scaled, scaler = scale_rewards(scaler, jnp.asarray(reward), jnp.asarray(done), 0.9)
        np.testing.assert_allclose(scaled, reward / std, rtol=1e-10)
        for t in range(6):
            running = 0.9 * running + reward[t]
            totals.append(running.copy())
            running[done[t]] = 0.0
        np.testing.assert_allclose(scaler.running, running, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(scaler.moments.var, np.var(totals), rtol=1e-10)
        np.testing.assert_allclose(scaler.moments.mean, np.mean(totals), rtol=1e-10)


def test_scaled_rewards_are_clipped():
    reward, done = jnp.array([[30.0], [-1.0]]), jnp.zeros((2, 1), bool)
    scale = lambda **kw: scale_rewards(init_reward_scaler(1), reward, done, 0.9, **kw)[0]  # noqa: E731
    np.testing.assert_allclose(scale(), [[10.0], [-1.0]], rtol=1e-6)
    np.testing.assert_allclose(scale(clip=None), reward, rtol=1e-6)


def test_the_sign_of_a_reward_stays():
    """Rewards are divided and not centred: a penalty must not become a prize."""
    reward = jnp.full((8, 2), -1.0)
    scaler = init_reward_scaler(2)
    for _ in range(2):
        scaled, scaler = scale_rewards(scaler, reward, jnp.zeros((8, 2), bool), 0.9)
        assert jnp.all(scaled < 0)
