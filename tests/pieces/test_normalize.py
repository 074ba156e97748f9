"""Running moments against NumPy on all the data at once."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.envs.record import Env, Step
from purerl.pieces.normalize import (
    init_moments,
    init_obs_moments,
    init_reward_scaler,
    merge_moments,
    normalize,
    scale_rewards,
)
from purerl.records import Discrete


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


def test_nothing_seen_changes_nothing():
    """No clip either: CartPole's first rollout held a 1000 that became 10."""
    x = jnp.array([[1.0, -2.0], [0.5, 1000.0]])
    np.testing.assert_array_equal(normalize(x, init_moments((2,))), x)
    reward = jnp.array([[-16.0], [1.0]])
    done = jnp.zeros((2, 1), bool)
    scaled, scaler = scale_rewards(init_reward_scaler(1), reward, done, 0.9)
    np.testing.assert_array_equal(scaled, reward)
    scaled, _ = scale_rewards(scaler, 10 * reward, done, 0.9)
    assert scaled[0] == -10


def test_a_constant_becomes_zero():
    data = jnp.full((5, 2), 7.0)
    assert not normalize(data, merged([data], (2,))).any()


def test_clip_bounds_the_result():
    moments = init_moments(())._replace(seen=jnp.float32(1))
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
        std = np.sqrt(np.var(totals) + 1e-8) if i else 1.0
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
    start = init_reward_scaler(1)
    start = start._replace(moments=start.moments._replace(seen=jnp.float32(1)))
    scale = lambda **kw: scale_rewards(start, reward, done, 0.9, **kw)[0]  # noqa: E731
    np.testing.assert_allclose(scale(), [[10.0], [-1.0]], rtol=1e-6)
    np.testing.assert_allclose(scale(clip=None), reward, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_samples_that_are_not_finite_are_left_out_whole(bad):
    rng = np.random.default_rng(5)
    data = rng.normal(2, 3, size=(6, 2, 3)).astype(np.float32)
    data[1, 0, 2] = data[4, 1, 0] = bad
    good = data.reshape(-1, 3)[np.isfinite(data).all(-1).ravel()]
    moments = merged([data[:3], data[3:]], (3,))
    assert moments.seen == len(good) == 10
    np.testing.assert_allclose(moments.mean, good.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, good.var(0), rtol=1e-5)
    nothing = jnp.full((2, 3), bad)
    for before in (moments, init_moments((3,))):
        after = merge_moments(before, nothing)
        assert jax.tree.map(jnp.array_equal, after, before) == (True, True, True)
    assert not jnp.isfinite(normalize(nothing, moments, clip=None)).any()  # not repaired


def test_a_reward_that_is_not_finite_ends_the_running_return_and_nothing_else():
    reward = jnp.array([[1.0, 1.0], [jnp.nan, 1.0], [1.0, 1.0]])
    done = jnp.zeros((3, 2), bool)
    scaled, scaler = scale_rewards(init_reward_scaler(2), reward, done, 0.5)
    np.testing.assert_array_equal(scaled, reward)
    np.testing.assert_allclose(scaler.running, [1.0, 1.75])
    assert scaler.moments.seen == 5
    np.testing.assert_allclose(scaler.moments.var, np.var([1, 1, 1, 1.5, 1.75]), rtol=1e-6)


def test_the_running_return_ends_with_the_episodes_of_a_run():
    """Whole episodes: each iteration starts at a reset, so what the last one left is no return of
    the next. Three steps of reward 1 an episode, four steps a rollout.
    """
    done = lambda state: state == 2  # noqa: E731

    def step(state, action, key, fresh=None):
        end, after = done(state), jnp.where(done(state), 0, state + 1)
        return Step(jnp.ones(1), jnp.ones(1), jnp.float32(1), end, jnp.array(False)), after

    env = Env("three", lambda key: (jnp.ones(1), jnp.int32(0)), step, Discrete(2), (1,), 3)
    config = purerl.PolicyGradientConfig(
        estimator="return_to_go", gamma=0.99, network=purerl.NetworkConfig(hidden_sizes=(4,))
    )
    train = purerl.make_train(
        purerl.policy_gradient(config, Discrete(2)),
        env,
        16,
        num_envs=2,
        rollout_length=4,
        evaluations=0,
        normalize_reward=True,
    )
    state, _ = jax.jit(train.advance, static_argnums=1)(train.init(jax.random.key(0)), 2)
    totals = [1, 1.99, 1 + 0.99 * 1.99, 1]
    np.testing.assert_allclose(state.normalizer.reward.moments.mean, np.mean(totals), rtol=1e-5)
    np.testing.assert_allclose(state.normalizer.reward.moments.var, np.var(totals), rtol=1e-5)


def test_the_sign_of_a_reward_stays():
    """Rewards are divided and not centred: a penalty must not become a prize."""
    reward = jnp.full((8, 2), -1.0)
    scaler = init_reward_scaler(2)
    for _ in range(2):
        scaled, scaler = scale_rewards(scaler, reward, jnp.zeros((8, 2), bool), 0.9)
        assert jnp.all(scaled < 0)


def test_moments_of_half_precision_are_of_single_precision():
    """Sums of 2,560 samples are beyond float16."""
    obs = jnp.broadcast_to(jnp.arange(4, dtype=jnp.float16), (64, 4))
    moments = init_obs_moments(obs)
    for _ in range(40):
        moments = merge_moments(moments, obs)
    assert moments.mean.dtype == jnp.float32
    np.testing.assert_allclose(moments.mean, np.arange(4), rtol=1e-3)
