"""Returns and advantages against sums written out in NumPy, rlax and scipy."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import signal

from purerl.pieces import returns

NAMES = ["return_to_go", "discounted_return", "n_step_return", "lambda_return", "gae"]
FLOATS = ["reward", "value", "next_value"]
T = 37

estimators = pytest.mark.parametrize("name", NAMES)


@functools.partial(jax.jit, static_argnames="n")
def compute(data, gamma, lam, n):
    """All estimators in one program, so that each shape is compiled once."""
    return {name: oracles.estimate(returns, name, data, gamma, lam, n) for name in NAMES}


def ours(name, data, gamma=0.97, lam=0.9, n=4):
    return compute(data, gamma, lam, n)[name]


@pytest.fixture(params=[(T,), (T, 3)], ids=["T", "TN"])
def data(request):
    return oracles.random_transitions(0, request.param, ends=0.3)


@estimators
def test_float64_equals_the_sums(x64, name, data):
    assert (data.terminated & data.truncated).any()
    wanted = oracles.estimate(oracles, name, data)
    got = ours(name, data)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


@estimators
def test_float32_equals_the_sums(name, data):
    wanted = oracles.estimate(oracles, name, data)
    got = ours(name, data.cast(np.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@estimators
def test_more_axes_equal_vmap_and_single_columns(x64, name):
    data = jax.tree.map(jnp.asarray, oracles.random_transitions(1, (T, 3)))
    together = ours(name, data)
    single = lambda d: ours(name, d)  # noqa: E731
    mapped = jax.vmap(single, in_axes=1, out_axes=1)(data)
    np.testing.assert_allclose(together, mapped, rtol=0, atol=1e-14)
    alone = single(jax.tree.map(lambda x: x[:, 1], data))
    np.testing.assert_allclose(together[:, 1], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 6, 7, 9])
def test_n_step_return_for_every_kind_of_n(x64, n):
    data = oracles.random_transitions(3, (7,), ends=0.1)
    wanted = oracles.estimate(oracles, "n_step_return", data, n=n)
    got = oracles.estimate(returns, "n_step_return", data, n=n)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


def test_n_step_return_of_no_step_is_an_error():
    data = oracles.random_transitions(3, (T,))
    with pytest.raises(ValueError, match="n >= 1, got n=0"):
        oracles.estimate(returns, "n_step_return", data, n=0)


@pytest.mark.parametrize("name", ["return_to_go", "discounted_return"])
def test_without_next_value_nothing_follows(x64, name):
    data = oracles.random_transitions(4, (T,))
    function = getattr(returns, name)
    got = function(data.reward, data.terminated, data.truncated, 0.9)
    nothing = data._replace(next_value=np.zeros(T))
    wanted = oracles.estimate(oracles, name, nothing, gamma=0.9)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


# Hand numbers: rewards 1, 2, 4, values 10 and next values 100, gamma and lambda one half, n = 2.
# The middle step's flags are those of the name; the rollout ends in the middle of an episode.
GOES_ON = {
    "return_to_go": [15.5, 29.0, 54.0],
    "discounted_return": [15.5, 15.5, 15.5],
    "n_step_return": [27.0, 29.0, 54.0],
    "lambda_return": [36.125, 40.5, 54.0],
    "gae": [54.25, 53.0, 44.0],
}
TERMINATED = {
    "return_to_go": [2.0, 2.0, 54.0],
    "discounted_return": [2.0, 2.0, 54.0],
    "n_step_return": [2.0, 2.0, 54.0],
    "lambda_return": [26.5, 2.0, 54.0],
    "gae": [39.0, -8.0, 44.0],
}
TRUNCATED = {
    "return_to_go": [27.0, 52.0, 54.0],
    "discounted_return": [27.0, 27.0, 54.0],
    "n_step_return": [27.0, 52.0, 54.0],
    "lambda_return": [39.0, 52.0, 54.0],
    "gae": [51.5, 42.0, 44.0],
}


@estimators
@pytest.mark.parametrize(
    ("terminated", "truncated", "wanted"),
    [
        (False, False, GOES_ON),
        (True, False, TERMINATED),
        (False, True, TRUNCATED),
        (True, True, TERMINATED),  # terminated wins
    ],
    ids=["goes on", "terminated", "truncated", "both"],
)
def test_hand_numbers(name, terminated, truncated, wanted):
    flags = [jnp.array([False, flag, False]) for flag in (terminated, truncated)]
    data = oracles.Transitions(
        jnp.array([1.0, 2.0, 4.0]), jnp.full(3, 10.0), jnp.full(3, 100.0), *flags
    )
    got = ours(name, data, gamma=0.5, lam=0.5, n=2)
    assert got.tolist() == wanted[name]


@estimators
def test_value_of_the_final_observation_counts_after_truncation_only(name):
    """Its gradient is zero at the terminated step and not at the truncated one."""
    data = oracles.random_transitions(5, (7,)).cast(np.float32)
    flags = {"terminated": np.arange(7) == 1, "truncated": np.arange(7) == 3}
    data = jax.tree.map(jnp.asarray, data._replace(**flags))

    def total(next_value):
        return jnp.sum(ours(name, data._replace(next_value=next_value)))

    gradient = jax.grad(total)(data.next_value)
    assert gradient[1] == 0
    assert gradient[3] > 0
    assert gradient[6] > 0  # the rollout's end


@estimators
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_nothing_crosses_the_end_of_an_episode(name, end):
    data = oracles.random_transitions(6, (7,)).cast(np.float32)
    never, at_3 = np.zeros(7, bool), np.arange(7) == 3
    data = data._replace(**{"terminated": never, "truncated": never, end: at_3})
    data = jax.tree.map(jnp.asarray, data)
    changed = data._replace(
        reward=data.reward.at[4:].add(5.0),
        value=data.value.at[4:].add(7.0),
        next_value=data.next_value.at[4:].add(9.0),
    )
    before, after = (ours(name, d) for d in (data, changed))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert jnp.all(before[4:] != after[4:])


def test_gae_with_lambda_0_is_the_td_error(x64, data):
    got = ours("gae", data, lam=0.0)
    wanted = oracles.td_error(data.reward, data.value, data.next_value, data.terminated, 0.97)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


def consistent(seed):
    """One environment's data: the next value is V of the next observation, except at an end."""
    data = oracles.random_transitions(seed, (T,))
    done = (data.terminated | data.truncated)[:-1]
    following = np.where(done, data.next_value[:-1], data.value[1:])
    return data._replace(next_value=np.append(following, data.next_value[-1]))


def test_gae_with_lambda_1_is_the_return_minus_the_value(x64):
    data = consistent(7)
    got = ours("gae", data, lam=1.0)
    wanted = oracles.estimate(oracles, "return_to_go", data) - data.value
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


def test_gae_plus_value_is_the_lambda_return(x64):
    data = consistent(8)
    advantage = ours("gae", data)
    wanted = ours("lambda_return", data)
    np.testing.assert_allclose(advantage + data.value, wanted, rtol=0, atol=1e-12)


def test_lambda_0_and_1_are_one_step_and_all_steps(x64, data):
    one, everything = (ours("lambda_return", data, lam=x) for x in (0.0, 1.0))
    td_target = oracles.estimate(oracles, "n_step_return", data, n=1)
    np.testing.assert_allclose(one, td_target, rtol=0, atol=1e-12)
    to_go = oracles.estimate(oracles, "return_to_go", data)
    np.testing.assert_allclose(everything, to_go, rtol=0, atol=1e-12)


@estimators
def test_linear_in_rewards_and_values(x64, name, data):
    other = oracles.random_transitions(9, data.reward.shape)
    combined = data._replace(**{f: 2 * getattr(data, f) - 3 * getattr(other, f) for f in FLOATS})
    other = other._replace(terminated=data.terminated, truncated=data.truncated)
    parts = [ours(name, d) for d in (data, other)]
    whole = ours(name, combined)
    np.testing.assert_allclose(whole, 2 * parts[0] - 3 * parts[1], rtol=0, atol=1e-12)


def test_gae_equals_rlax(x64):
    rlax = oracles.optional("rlax")
    data = consistent(10)._replace(truncated=np.zeros(T, bool))
    data = data._replace(next_value=np.append(data.value[1:], 0.3))  # what rlax takes: v[0 ... T]
    got = ours("gae", data)
    wanted = rlax.truncated_generalized_advantage_estimation(
        jnp.asarray(data.reward),
        jnp.asarray(0.97 * (1 - data.terminated)),
        0.9,
        jnp.append(data.value, 0.3),
    )
    assert data.terminated.any()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["lambda_return", "return_to_go"])
def test_returns_equal_rlax(x64, name):
    rlax = oracles.optional("rlax")
    data = oracles.random_transitions(11, (T,))._replace(truncated=np.zeros(T, bool))
    discount = jnp.asarray(0.97 * (1 - data.terminated))
    reward, value = jnp.asarray(data.reward), jnp.asarray(data.next_value)
    if name == "lambda_return":
        wanted = rlax.lambda_returns(reward, discount, value, 0.9)
    else:
        wanted = rlax.discounted_returns(reward, discount, value)
    got = ours(name, data)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


def test_sums_equal_scipy_filter(x64):
    """Episode by episode, each of which is a first-order filter of the reversed rewards."""
    data = oracles.random_transitions(12, (T,))
    flags = (data.terminated, data.truncated)
    ends = np.append(np.flatnonzero(flags[0] | flags[1]) + 1, T)
    episodes = np.split(data.reward, ends[ends < T])
    assert len(episodes) > 5
    to_go = [signal.lfilter([1.0], [1.0, -0.97], r[::-1])[::-1] for r in episodes]
    data = data._replace(next_value=np.zeros(T))
    got = ours("return_to_go", data)
    np.testing.assert_allclose(got, np.concatenate(to_go), rtol=0, atol=1e-12)
    whole = [np.full(len(g), g[0]) for g in to_go]
    got = ours("discounted_return", data)
    np.testing.assert_allclose(got, np.concatenate(whole), rtol=0, atol=1e-12)


def test_linear_recurrence_equals_a_loop(x64):
    rng = np.random.default_rng(13)
    a, on, x = rng.normal(size=(T, 2)), rng.random((T, 2)) < 0.8, rng.normal(size=2)
    got = returns.linear_recurrence(jnp.asarray(a), 0.7, jnp.asarray(on), jnp.asarray(x))
    for t in reversed(range(T)):
        x = a[t] + 0.7 * on[t] * x
        np.testing.assert_allclose(got[t], x, rtol=1e-12)


NAN = np.nan
# Reward 1, step 1 terminates into an observation that has no value.
AFTER_THE_END = {
    "return_to_go": [1.9, 1.0, 1.0],
    "discounted_return": [1.9, 1.9, 1.0],
    "n_step_return": [1.9, 1.0, 1.0],
    "lambda_return": [1.81, 1.0, 1.0],
    "gae": [1.81, 1.0, 1.0],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_observation_without_a_value_harms_nothing(name):
    """Neither the numbers, nor any of their derivatives."""
    no = jnp.zeros(3, bool)
    next_value = jnp.array([0.0, NAN, 0.0])
    data = oracles.Transitions(jnp.ones(3), jnp.zeros(3), next_value, no.at[1].set(True), no)

    def total(floats, gamma, lam):
        got = oracles.estimate(returns, name, data._replace(**floats), gamma, lam, n=2)
        return jnp.sum(got), got

    floats = {key: getattr(data, key) for key in FLOATS}
    gradient, got = jax.grad(total, (0, 1, 2), has_aux=True)(floats, 0.9, 0.9)
    np.testing.assert_allclose(got, AFTER_THE_END[name], rtol=1e-6)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("name", ["return_to_go", "discounted_return"])
def test_sums_of_rewards_look_only_at_values_that_continue_them(name):
    data = oracles.random_transitions(14, (T,))
    unused = ~(data.truncated & ~data.terminated)
    unused[-1] = False
    assert unused.any()
    holes = data._replace(next_value=np.where(unused, NAN, data.next_value))
    np.testing.assert_array_equal(ours(name, holes), ours(name, data))


def test_values_of_another_precision_are_promoted():
    """Of a bfloat16 network, say; NumPy's arrays and JAX's."""
    data = oracles.random_transitions(15, (T,)).cast(np.float32)
    rounded = data._replace(
        value=jnp.asarray(data.value, jnp.bfloat16),
        next_value=jnp.asarray(data.next_value, jnp.bfloat16),
    )
    for name in NAMES:
        got = ours(name, rounded)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, ours(name, data), rtol=0.1, atol=0.1)


FLAGS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=7, max_size=7)
UNIT = st.floats(0, 1, width=32)


@hypothesis.given(flags=FLAGS, gamma=UNIT, lam=UNIT, seed=st.integers(0, 99))
@hypothesis.settings(max_examples=60, deadline=None, database=None)
def test_any_pattern_of_ends(flags, gamma, lam, seed):
    terminated, truncated = np.array(flags).T
    data = oracles.random_transitions(seed, (7,))
    data = data._replace(terminated=terminated, truncated=truncated)
    for name in NAMES:
        wanted = oracles.estimate(oracles, name, data, gamma, lam, n=3)
        got = ours(name, data.cast(np.float32), gamma, lam, n=3)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5, err_msg=name)


@hypothesis.given(flags=FLAGS, gamma=UNIT, lam=UNIT)
@hypothesis.settings(max_examples=30, deadline=None, database=None)
def test_a_perfect_critic_leaves_no_advantage(flags, gamma, lam):
    """Rewards r with V(s) = r + gamma V(s'): every TD error is zero, hence every advantage."""
    terminated, truncated = np.array(flags).T
    data = oracles.random_transitions(0, (7,))
    reward = data.value - gamma * (1 - terminated) * data.next_value
    data = data._replace(reward=reward, terminated=terminated, truncated=truncated)
    np.testing.assert_allclose(
        ours("gae", data.cast(np.float32), gamma, lam, n=3), np.zeros(7), atol=1e-5
    )


def test_an_n_step_return_may_be_long(x64):
    """XLA crashed where forty steps and more were written out."""
    data = oracles.random_transitions(4, (120,), ends=0.02)
    wanted = oracles.estimate(oracles, "n_step_return", data, n=100)
    got = jax.jit(lambda: oracles.estimate(returns, "n_step_return", data, n=100))()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)
