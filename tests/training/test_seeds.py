"""vectorize: many seeds equal each one alone, on any number of devices, and a Clock stays whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import Clock, use_all_cores, vectorize
from purerl.records import Cursor


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


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices; conftest makes two CPU ones")
def test_an_odd_number_of_seeds_uses_the_devices_that_divide_it():
    result = jax.jit(vectorize(small_run))(*seeds(3))
    assert len(result["x"].sharding.device_set) == 1


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


def test_use_all_cores_is_harmless_once_jax_runs():
    before = jax.device_count()
    assert use_all_cores() == before == jax.device_count()
