"""vectorize: many seeds equal each one alone, on any number of devices, and a Clock stays whole."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl import Clock, take_seeds, use_all_cores, vectorize
from purerl.records import Cursor
from purerl.training.seeds import is_clock


def small_run(key, scale):
    """Something like training: random numbers, matrix products, a loop."""
    weight = jax.random.normal(key, (5, 5))

    def step(x, key):
        x = jnp.tanh(weight @ x + scale * jax.random.normal(key, (5,)))
        return x, jnp.sum(x)

    x, sums = jax.lax.scan(step, jnp.ones(5), jax.random.split(key, 7))
    return {"x": x, "sums": sums, "key": key}


def seeds(count):
    return jax.random.split(jax.random.key(0), count), jnp.linspace(0.1, 1.0, count)


def assert_close(got, wanted):
    assert jnp.all(got["key"] == wanted["key"])
    for name in ("x", "sums"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 32])
def test_equals_a_loop_over_seeds(count):
    keys, scales = seeds(count)
    got = jax.jit(vectorize(small_run))(keys, scales)
    single = jax.jit(small_run)
    for i in range(count):
        assert_close(jax.tree.map(lambda x, i=i: x[i], got), single(keys[i], scales[i]))


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices; conftest makes two CPU ones")
def test_two_devices_equal_one(monkeypatch):
    inputs = seeds(4)
    sharded = jax.jit(vectorize(small_run))(*inputs)
    assert len(sharded["x"].sharding.device_set) == 2
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    alone = jax.jit(vectorize(small_run))(*inputs)
    assert len(alone["x"].sharding.device_set) == 1
    assert_close(sharded, alone)


TWO = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices; conftest makes them")


@TWO
@pytest.mark.parametrize("count", [3, 17])
def test_seeds_that_the_devices_do_not_divide_are_padded(count):
    keys, scales = seeds(count)
    result = jax.jit(vectorize(small_run))(keys, scales)
    assert result["x"].shape == (count, 5)
    text = jaxpr(vectorize(small_run), keys, scales)
    assert "shard_map" in text
    assert_close(result, jax.jit(jax.vmap(small_run))(keys, scales))
    assert "shard_map" not in jaxpr(vectorize(small_run, pad=False), keys, scales)


def test_groups_are_of_five_to_eight_seeds():
    of = lambda n: jaxpr(vectorize(lambda x: x + 1), jnp.ones(n))  # noqa: E731
    devices = jax.device_count()
    assert all("length=2" in of(n * devices) for n in (10, 12, 14, 16))
    assert all("scan" not in of(n * devices) for n in (7, 8, 9, 11))


@TWO
def test_vectorize_within_vectorize_shards_once():
    keys = jax.random.split(jax.random.key(0), (2, 4))
    inner = vectorize(lambda key: jax.random.normal(key, (3,)))
    got = jax.jit(vectorize(inner))(keys)
    np.testing.assert_array_equal(
        got, jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (3,))))(keys)
    )


def test_no_tracer_is_kept():
    clock = Clock(jnp.int32(0))
    with jax.checking_leaks():
        jax.jit(vectorize(lambda x, c: (x + 1, c)))(jnp.ones(2), clock)


def periodic(state, clock):
    """Expensive work every third iteration."""
    work = lambda x: jnp.linalg.qr(x)[0]  # noqa: E731
    state = jax.lax.cond(clock.iteration % 3 == 0, work, lambda x: x, state)
    return state, Clock(clock.iteration + 1)


def jaxpr(function, *args):
    return str(jax.make_jaxpr(function)(*args))


@pytest.mark.parametrize("count", [2, 3], ids=["sharded", "one device"])
def test_a_branch_on_the_clock_stays_a_branch(count):
    states, clock = jnp.ones((count, 2, 2)), Clock(jnp.int32(0))
    assert "cond[" in jaxpr(vectorize(periodic), states, clock)
    # What it protects from: with a batched clock both branches run at every step.
    batched = Clock(jnp.zeros(count, jnp.int32))
    assert "cond[" not in jaxpr(jax.vmap(periodic), states, batched)


def test_the_clock_is_unbatched_in_and_out_and_in_again():
    states = jnp.arange(16.0).reshape(4, 2, 2)
    function = jax.jit(vectorize(periodic))
    once, clock = function(states, Clock(jnp.int32(2)))
    assert clock.iteration.shape == ()
    assert clock.iteration == 3
    np.testing.assert_array_equal(once, states)
    twice, clock = function(once, clock)
    assert clock.iteration == 4
    wanted = jnp.stack([jnp.linalg.qr(x)[0] for x in states])
    np.testing.assert_allclose(twice, wanted, atol=1e-6)


def test_a_clock_deep_inside_a_state():
    def function(state):
        return {"a": (state["a"][0] * 2, Clock(state["a"][1].iteration + 1)), "b": [state["b"]]}

    state = {"a": (jnp.arange(3.0), Clock(jnp.int32(5))), "b": jnp.ones((3, 2))}
    got = jax.jit(vectorize(function))(state)
    assert got["a"][0].tolist() == [0.0, 2.0, 4.0]
    assert got["a"][1] == Clock(6)
    assert got["b"][0].shape == (3, 2)


def test_a_clock_that_is_made_inside_comes_out_unbatched():
    states, clock = jax.jit(vectorize(lambda x: (x, Clock(jnp.int32(0)))))(jnp.arange(4.0))
    assert states.shape == (4,)
    assert clock.iteration.shape == ()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU's caches need groups")
@pytest.mark.parametrize("buffer", [False, True])
def test_a_core_trains_eight_seeds_at_a_time_but_where_that_would_copy_a_replay_buffer(buffer):
    """A replay buffer's Cursor says that there is one."""
    zero = jnp.int32(0)
    state = jnp.ones((16 * jax.device_count(), 3)), Cursor(zero, zero) if buffer else Clock(zero)
    program = jax.jit(vectorize(lambda state: (state[0] * 2, state[1]))).lower(state)
    assert ("while" in program.as_text()) == (not buffer)


def test_a_clock_that_differs_between_seeds_is_an_error():
    function = vectorize(lambda x: Clock(x))
    with pytest.raises(ValueError, match=r"out_axes.*None but output was batched|out_axes is None"):
        jax.make_jaxpr(function)(jnp.arange(4))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((jnp.zeros((0, 2)),), "zero seeds"),
        ((jnp.zeros((2, 2)), jnp.zeros(3)), r"leading axes \[\(2,\), \(3,\)\], wanted one size"),
        ((jnp.zeros(()),), r"leading axes \[\(\)\], wanted one size.*jax.random.split"),
        ((jax.random.key(0),), r"keys of shape \[S\]"),
    ],
    ids=["zero", "different", "scalar", "one key"],
)
def test_errors_of_axes(args, message):
    with pytest.raises(ValueError, match=message):
        vectorize(lambda *args: args)(*args)


@pytest.mark.parametrize("clock", [Clock, lambda x: Cursor(x, x)], ids=["Clock", "Cursor"])
def test_a_batched_clock_is_refused(clock):
    with pytest.raises(ValueError, match=r"must not be batched: use .*vectorize\(train.init\)"):
        vectorize(lambda x, c: x)(jnp.ones(2), clock(jnp.zeros(2, jnp.int32)))


def test_use_all_cores_says_what_it_costs_to_come_too_late(monkeypatch):
    before = jax.device_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(before), raising=False)
    assert use_all_cores() == before == jax.device_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(before + 1), raising=False)
    with pytest.warns(UserWarning, match=f"up to {before + 1}/{before} times as long"):
        assert use_all_cores() == before


# Seeds out of a state.

TINY = purerl.NetworkConfig(hidden_sizes=(8,))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("name", purerl.ALGORITHMS)
def test_a_seed_of_any_state_and_result_is_that_of_one_run(name, normalized):
    """Shapes and dtypes only; nothing is compiled."""
    env = purerl.make_env(probe_envs.NoisyEnv())
    spec = purerl.ALGORITHMS[name]
    sizes = {"normalize_obs": normalized, "evaluations": 2, "evaluation_episodes": 2}
    if not spec.off_policy:
        sizes |= {"normalize_reward": normalized, "rollout_length": 8}
    algorithm = spec.build(spec.config(network=TINY), env.action_space)
    train = purerl.make_train(algorithm, env, 2048, **sizes)
    keys = jax.random.split(jax.random.key(0), 3)
    one = jax.eval_shape(train.train, keys[0])
    all_of_them = jax.eval_shape(jax.vmap(train.train, out_axes=seed_axes(one)), keys)
    assert all_of_them.state.refused.shape == (3,)
    assert jax.eval_shape(lambda x: take_seeds(x, 1), all_of_them) == one
    two = jax.eval_shape(lambda x: take_seeds(x, slice(1, 3)), all_of_them)
    assert two.state.refused.shape == (2,)
    assert two.state.clock.iteration.shape == ()


def seed_axes(tree):
    return jax.tree.map(lambda x: None if is_clock(x) else 0, tree, is_leaf=is_clock)


@pytest.mark.parametrize(
    ("seeds", "wanted"),
    [
        (1, 1.0),
        (-1, 2.0),
        (np.int64(2), 2.0),
        (slice(1, None), [1.0, 2.0]),
        ([2, 0], [2.0, 0.0]),
        (np.array([2, 2]), [2.0, 2.0]),
        (jnp.array([True, False, True]), [0.0, 2.0]),
    ],
)
def test_take_seeds(seeds, wanted):
    clock = Clock(jnp.int32(7))
    x, key, same = take_seeds(
        (jnp.arange(3.0), jax.random.split(jax.random.key(0), 3), clock), seeds
    )
    assert x.tolist() == wanted
    assert key.shape == x.shape
    assert same is clock


def test_a_seed_that_is_not_there():
    with pytest.raises(IndexError, match="out of bounds"):
        take_seeds(jnp.arange(3.0), 3)
    with pytest.raises(ValueError, match="take_seeds got leading axes"):
        take_seeds((jnp.arange(3.0), jnp.arange(2.0)), 0)


BATCHED_LAPACK = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
import purerl

def train(key):
    def step(x, key):
        _, vectors = jnp.linalg.eigh(x @ x.T)
        return vectors @ jax.random.normal(key, (12, 12)), jnp.sum(vectors)
    start = jax.random.normal(key, (12, 12))
    return jax.lax.scan(step, start, jax.random.split(key, 500))[1]

for _ in range(4):
    sums = jax.jit(purerl.vectorize(train))(jax.random.split(jax.random.key(0), 16))
    assert np.isfinite(sums).all()
"""


def test_batched_lapack_on_two_devices_comes_to_an_end():
    """JAX 0.10 and 0.11.0 hang: LAPACK calls on XLA's own threads wait for one another. In a
    process of its own, for which there is a time limit.
    """
    where = {"PYTHONPATH": str(pathlib.Path(purerl.__file__).parents[1])}
    code = [sys.executable, "-c", BATCHED_LAPACK]
    subprocess.run(code, check=True, timeout=120, env=os.environ | where)


class Relaxing(probe_envs.NoisyEnv):
    """A step that iterates until something converges, as simulators of contacts do."""

    def step_env(self, key, state, action, params):
        obs, state, reward, done, info = super().step_env(key, state, action, params)
        relax = lambda x: (x[0] * 0.5, x[1] + 1)  # noqa: E731
        moving = lambda x: (jnp.abs(x[0]).max() > 1e-3) & (x[1] < 50)  # noqa: E731
        return jax.lax.while_loop(moving, relax, (obs, 0))[0], state, reward, done, info


@TWO
def test_a_step_with_a_loop_of_its_own_trains_and_is_evaluated_on_two_devices():
    """XLA crashed while it compiled such a step inside a while_loop inside shard_map."""
    env = purerl.make_env(Relaxing(), max_steps_in_episode=20)
    network = purerl.NetworkConfig(hidden_sizes=(4,))
    algorithm = purerl.a2c(purerl.A2CConfig(network=network), env.action_space)
    sizes = {"num_envs": 2, "rollout_length": 4, "evaluations": 2, "evaluation_episodes": 2}
    train = purerl.make_train(algorithm, env, 64, **sizes)
    keys = jax.random.split(jax.random.key(0), 4)
    result = jax.jit(vectorize(train.train))(keys)
    assert result.curve.evaluation.mean_return.shape == (4, 2)
    assert np.isfinite(result.curve.evaluation.mean_return).all()
    chunk = jax.jit(vectorize(train.accumulate))  # a loop of traced length
    state = jax.jit(vectorize(train.init))(keys)
    totals = jax.jit(vectorize(train.totals))(state)
    state, _ = chunk(state, totals, Clock(jnp.int32(3)))
    assert state.clock.iteration == 3
