"""Gradient steps against optax, epochs of minibatches, and the finite guard."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purerl.pieces import gradient
from purerl.records import Clock

DATA = jnp.arange(8.0)


def quadratic(params, batch):
    """The gradient is params - mean(batch); what is measured is the distance before the step."""
    distance = params - jnp.mean(batch)
    return 0.5 * jnp.square(distance), {"kl": jnp.abs(distance)}


def fit(loss=quadratic, start=10.0, **changes):
    options = {
        "optimizer": gradient.make_optimizer("sgd"),
        "learning_rate": 0.5,
        "num_epochs": 3,
        "num_minibatches": 1,
    }
    options |= changes
    start = jnp.float32(start)
    state = options["optimizer"].init(start)
    return gradient.fit(loss, start, state, DATA, jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("adam", optax.adam(0.1, eps=1e-5)),
        ("rmsprop", optax.rmsprop(0.1, decay=0.99, eps=1e-5, eps_in_sqrt=False)),
        ("sgd", optax.sgd(0.1)),
    ],
)
def test_steps_equal_optax(name, theirs):
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
    ours = gradient.make_optimizer(name, max_grad_norm=1.0)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), theirs)
    state, their_params, their_state = ours.init(params), params, theirs.init(params)
    for factor in (5.0, 0.1):
        slope = jax.tree.map(lambda x: factor * x, params)  # noqa: B023
        params, state = gradient.gradient_step(ours, slope, state, params, 0.1)
        step, their_state = theirs.update(slope, their_state)
        their_params = optax.apply_updates(their_params, step)
        for a, b in zip(*map(jax.tree.leaves, (params, their_params)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_parameters_keep_their_dtype(x64, name):
    """bfloat16 and float32 side by side, under x64, with a learning rate of float64."""
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3, jnp.float32)}
    optimizer = gradient.make_optimizer(name, max_grad_norm=0.5)

    def step(carry, rate):
        params, state = carry
        return gradient.gradient_step(optimizer, params, state, params, rate), None

    start = params, optimizer.init(params)
    (new, _), _ = jax.lax.scan(step, start, jnp.array([0.1, 0.1], jnp.float64))
    assert new["a"].dtype == jnp.bfloat16
    assert all((new[k] < params[k]).all() for k in params)


def test_passes_over_the_samples():
    params, _, info = fit()
    np.testing.assert_allclose(params, 3.5 + 6.5 / 8, rtol=1e-6)
    np.testing.assert_allclose(info["kl"], 6.5 * np.mean([1, 1 / 2, 1 / 4]), rtol=1e-6)


def test_passes_after_the_bound_do_nothing_and_count_nothing():
    """The second pass is the first whose measured 3.25 is above 3; the third is not made."""
    params, _, info = fit(max_kl=3.0, start=3.5 + 2.0)  # 2, 1, 0.5: never above
    np.testing.assert_allclose(params, 3.5 + 0.25, rtol=1e-6)
    params, _, info = fit(max_kl=3.0)
    np.testing.assert_allclose(params, 3.5 + 3.25, rtol=1e-6)
    np.testing.assert_allclose(info["kl"], 6.5, rtol=1e-6)


@pytest.mark.parametrize(("max_kl", "passes"), [(None, 3), (20.0, 3), (3.0, 1)])
def test_passes_that_are_not_made_leave_the_optimizer_alone(max_kl, passes):
    adam = gradient.make_optimizer("adam")
    _, state, _ = fit(optimizer=adam, learning_rate=0.1, max_kl=max_kl, num_minibatches=2)
    (count,) = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert count == 2 * passes


def test_a_pass_that_is_not_made_may_overflow():
    """Info is the mean over the passes made; an infinite one times 0 would make it NaN."""

    def loss(params, batch):
        return -10 * params, {"kl": jnp.exp(params)}

    params, _, info = fit(loss, start=2.0, max_kl=1.0, learning_rate=10.0)
    assert params == 102.0
    np.testing.assert_allclose(info["kl"], np.exp(2.0), rtol=1e-6)


def test_bound_without_a_kl_to_measure_is_no_bound():
    loss = lambda params, batch: (0.5 * jnp.square(params), {"loss": params})  # noqa: E731
    np.testing.assert_allclose(fit(loss, max_kl=1e-6)[0], 10 / 8, rtol=1e-6)


def test_each_pass_has_minibatches_of_its_own():
    """Without a shuffle the order of the samples is theirs; with it each pass differs."""
    seen = lambda params, batch: (0.0 * params, {"first": batch[0]})  # noqa: E731
    assert fit(seen, num_minibatches=4, shuffle=False)[2]["first"] == np.mean([0, 2, 4, 6])
    runs = {float(fit(seen, num_minibatches=4, num_epochs=n)[2]["first"]) for n in (1, 2, 3)}
    assert len(runs) == 3


def test_the_finite_guard_keeps_all_but_the_clock():
    old = {"w": jnp.ones(2), "n": jnp.int32(3), "clock": Clock(jnp.int32(7))}
    new = {"w": jnp.array([2.0, jnp.nan]), "n": jnp.int32(4), "clock": Clock(jnp.int32(8))}
    kept, finite = gradient.keep_if_finite(new, old)
    assert not finite
    assert (kept["w"].tolist(), int(kept["n"]), int(kept["clock"].iteration)) == ([1, 1], 3, 8)
    new["w"] = jnp.array([2.0, 3.0])
    taken, finite = gradient.keep_if_finite(new, old)
    assert finite
    assert (taken["w"].tolist(), int(taken["n"])) == ([2, 3], 4)
    refused, finite = gradient.keep_if_finite(new, old, also=jnp.array(False))
    assert not finite
    assert refused["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("tree", "finite"),
    [
        ({"a": jnp.ones(2), "b": jnp.array([1, 2])}, True),
        ({"a": jnp.ones(2), "b": jnp.array([jnp.inf])}, False),
        ({"a": jnp.array([jnp.nan, 1.0], jnp.bfloat16)}, False),
        ({"key": jax.random.key(0)}, True),
        ((), True),
    ],
)
def test_what_is_finite(tree, finite):
    assert gradient.all_finite(tree) == finite
