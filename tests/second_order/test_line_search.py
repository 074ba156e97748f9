"""The line search on scripted sequences of (objective, constraint)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl

FACTOR, TRIES, BOUND = 0.5, 6, 1.0
GOOD, WORSE, FAR, NAN = (1.0, 0.5), (-1.0, 0.5), (1.0, 2.0), (np.nan, 0.5)


def search(script, **kwargs):
    """From 0 along a step of 1: the point 0.5^j gets the j-th pair of the script."""
    values = jnp.array(script, jnp.result_type(float))

    def evaluate(x):
        j = jnp.round(-jnp.log2(x["x"])).astype(int)
        return values[j, 0], values[j, 1]

    options = {"objective": jnp.array(0.0), "bound": BOUND, "factor": FACTOR, "max_tries": TRIES}
    return purerl.backtracking_line_search(
        evaluate, {"x": jnp.array(0.0)}, {"x": jnp.array(1.0)}, **(options | kwargs)
    )


@pytest.mark.parametrize(
    ("script", "j"),
    [
        ([GOOD] * 6, 0),
        ([WORSE, GOOD, GOOD, GOOD, GOOD, GOOD], 1),
        ([FAR, GOOD, GOOD, GOOD, GOOD, GOOD], 1),
        ([FAR, WORSE, FAR, GOOD, WORSE, GOOD], 3),
        ([WORSE, FAR, WORSE, FAR, WORSE, GOOD], 5),
        ([NAN, (1.0, np.nan), (np.inf, np.nan), (np.nan, np.nan), GOOD, GOOD], 4),
        ([(0.0, 0.5), (1e-9, 0.5), GOOD, GOOD, GOOD, GOOD], 1),  # strictly better
        ([(1.0, 1.0 + 1e-9), (1.0, 1.0), GOOD, GOOD, GOOD, GOOD], 1),  # at the bound is within
    ],
)
def test_the_smallest_j_that_improves_and_keeps_the_bound(script, j, x64):
    found = search(script)
    assert found.accepted
    assert float(found.params["x"]) == float(found.fraction) == FACTOR**j
    assert found.tries == j + 1
    assert (float(found.improvement), float(found.constraint)) == script[j]


@pytest.mark.parametrize("pair", [WORSE, FAR, NAN, (1.0, np.nan), (0.0, 0.0), (np.inf, 0.5)])
def test_on_failure_the_old_parameters(pair, x64):
    params = {"x": jnp.array(1e-3), "y": jnp.array([0.1, -0.0])}
    found = purerl.backtracking_line_search(
        lambda _: (jnp.array(pair[0]), jnp.array(pair[1])),
        params,
        jax.tree.map(jnp.ones_like, params),
        objective=jnp.array(0.0),
        bound=BOUND,
        max_tries=TRIES,
    )
    assert not found.accepted
    assert found.tries == TRIES
    for got, wanted in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()
    assert float(found.fraction) == float(found.improvement) == float(found.constraint) == 0


def test_a_step_that_is_not_finite_is_not_taken():
    found = purerl.backtracking_line_search(
        lambda x: (jnp.sum(x), jnp.sum(jnp.square(x))),
        jnp.zeros(2),
        jnp.array([jnp.nan, 1.0]),
        objective=jnp.float32(0.0),
        bound=BOUND,
    )
    assert not found.accepted
    np.testing.assert_array_equal(found.params, 0)


def test_the_constraint_is_checked_again_after_shrinking(x64):
    """The first point that improves is still too far."""
    found = search([WORSE, FAR, FAR, GOOD, GOOD, GOOD])
    assert float(found.fraction) == FACTOR**3
    assert float(found.constraint) <= BOUND


def test_nothing_is_evaluated_after_success(x64):
    """The objective is called once for each try, under jit too."""
    calls = []

    def evaluate(x):
        jax.debug.callback(lambda x: calls.append(float(x)), x)
        return x, x

    run = jax.jit(
        lambda bound: purerl.backtracking_line_search(
            evaluate,
            jnp.array(0.0),
            jnp.array(1.0),
            objective=jnp.array(0.0),
            bound=bound,
            factor=0.5,
        )
    )
    found = jax.block_until_ready(run(0.3))
    jax.effects_barrier()
    assert calls == [1.0, 0.5, 0.25]
    assert found.tries == 3


def test_sixteen_searches_at_once(x64):
    rng = np.random.default_rng(0)
    pairs = [GOOD, WORSE, FAR, NAN]
    scripts = np.array([[pairs[i] for i in rng.integers(4, size=6)] for _ in range(14)])
    scripts = np.concatenate([scripts, [[GOOD] * 6, [WORSE] * 6]])
    many = jax.jit(jax.vmap(search))(scripts)
    for i, script in enumerate(scripts):
        one = search(script)
        for got, wanted in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_array_equal(got[i], wanted)
    assert set(many.tries.tolist()) >= {1, 2, 6}


def test_any_finite_point_will_do_where_no_improvement_is_asked_for(x64):
    """The natural policy gradient's step: worse by 1 and far, but finite."""
    free = {"least_improvement": -jnp.inf, "bound": jnp.inf, "max_tries": 1}
    found = search([(-1.0, 9.0)], **free)
    assert found.accepted
    assert (found.fraction, found.improvement, found.constraint) == (1, -1, 9)
    for pair in ((np.nan, 1.0), (-np.inf, 1.0), (1.0, np.nan), (1.0, np.inf)):
        assert not search([pair], **free).accepted, pair
    assert not search([GOOD], **free, objective=jnp.array(jnp.inf)).accepted
    assert search([(0.5, 0.5), GOOD], least_improvement=0.5, max_tries=2).tries == 2


def test_step_of_another_shape():
    with pytest.raises(ValueError, match=r"step has shapes \(1,\), wanted those of params, \(2,\)"):
        purerl.backtracking_line_search(
            lambda x: (x.sum(), x.sum()), jnp.ones(2), jnp.ones(1), objective=0.0, bound=1.0
        )


@pytest.mark.parametrize("factor", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_factor_out_of_range(factor):
    with pytest.raises(ValueError, match=r"factor=.* is out of range; set it within \(0, 1\)"):
        search([GOOD] * 6, factor=factor)


@pytest.mark.parametrize("tries", [0, -1])
def test_number_of_tries_out_of_range(tries):
    with pytest.raises(ValueError, match=r"max_tries=.* is out of range"):
        search([GOOD] * 6, max_tries=tries)
