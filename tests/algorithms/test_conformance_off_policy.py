"""What every off-policy algorithm promises: the table of test_conformance, on batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_dqn import OBS, SPACE, TINY, random_batch

import purerl

ALGORITHMS = {
    "dqn": {},
    "double": {"double": True},
    "dueling": {"dueling": True},
    "squared": {"loss": "squared", "target_every": 1},
    "everything": {"double": True, "dueling": True, "prioritized": True, "n_step": 3},
}
HYPER = {"learning_rate": 0.01, "max_grad_norm": 1.0, "target_tau": 0.5, "epsilon_end": 0.1}
GRID = {
    "learning_rate": np.array([0.01, 0.02, 0.03]),
    "max_grad_norm": np.array([1.0, 0.1, 10.0]),
    "target_tau": np.array([0.5, 1.0, 0.1]),
    "epsilon_end": np.array([0.1, 0.2, 0.3]),
}
TABLE = pytest.mark.parametrize("name", ALGORITHMS)


def build(name, hyper):
    switches = {"target_every": 2} | ALGORITHMS[name]
    return purerl.dqn(purerl.DQNConfig(network=TINY, **switches, **hyper), SPACE)


def batch():
    real = jnp.result_type(float)
    is_real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: x.astype(real) if is_real(x) else x, random_batch())


class Compiled:
    """An algorithm as one compiled function of its hyper-parameters, and its vmap."""

    def __init__(self, name):
        self.traces = 0
        self.batch = batch()

        def run(hyper, key, batch):
            self.traces += 1
            algorithm = build(name, hyper)
            init_key, update_key, act_key = jax.random.split(key, 3)
            state = algorithm.init(batch.obs, init_key)
            middle, _ = algorithm.update(state, batch, update_key, progress=0.25)
            new, info = algorithm.update(middle, batch, update_key, progress=0.5)
            greedy, _ = algorithm.act(new, batch.obs, act_key, greedy=True)
            action, extras = algorithm.act(new, batch.obs, act_key)
            acted = {"greedy": greedy, "action": action, "log_prob": extras["log_prob"]}
            return {"old": state, "new": new, "info": info} | acted

        self.run = jax.jit(run)
        self.many = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))

    def __call__(self, seed=0, hyper=HYPER, batch=None):
        return self.run(hyper, jax.random.key(seed), self.batch if batch is None else batch)


compiled = functools.cache(Compiled)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@TABLE
def test_update_is_usable_alone(name):
    out = compiled(name)()
    assert bool(out["info"]["finite"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out["new"], out["info"])))
    assert np.any(flat(out["new"].params) != flat(out["old"].params))


@TABLE
def test_state_keeps_its_shapes_and_dtypes(name):
    out = compiled(name)()
    old, new = (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), out[k]) for k in ("old", "new")
    )
    assert old == new


@TABLE
def test_another_batch_of_the_same_shape_is_not_compiled_again(name):
    function = compiled(name)
    function()
    traces = function.traces
    function(seed=5, batch=function.batch._replace(reward=function.batch.reward + 1))
    assert function.traces == traces


@TABLE
def test_the_key_decides_everything(name):
    one, again, other = (compiled(name)(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(flat(one), flat(again))
    assert np.any(flat(one["new"].params) != flat(other["new"].params))


@TABLE
def test_acting(name):
    """Greedy without chance, else with it; at the start of the run at random."""
    function = compiled(name)
    algorithm, out, obs = build(name, HYPER), function(), function.batch.obs
    keys = jax.random.split(jax.random.key(9), 20)

    @jax.jit
    def act(state, obs):
        greedy = jax.vmap(lambda key: algorithm.act(state, obs, key, greedy=True)[0])(keys)
        return greedy, jax.vmap(lambda key: algorithm.act(state, obs, key)[0])(keys)

    greedy, sampled = act(out["new"], obs)
    np.testing.assert_array_equal(greedy, np.broadcast_to(out["greedy"], greedy.shape))
    assert np.any(np.asarray(sampled) != np.asarray(sampled[0]))
    assert out["action"].shape == out["log_prob"].shape == obs.shape[:1]
    assert out["action"].dtype == out["greedy"].dtype == jnp.int32


@TABLE
def test_swept_hyper_parameters_and_seeds_equal_separate_runs(name):
    function = compiled(name)
    keys = jnp.stack([jax.random.key(seed) for seed in range(3)])
    grid = {name: jnp.asarray(values, jnp.float32) for name, values in GRID.items()}
    many = function.many(grid, keys, function.batch)
    for i in range(3):
        one = function(i, {name: float(values[i]) for name, values in GRID.items()})
        for part in ("new", "info"):
            of_many = jax.tree.map(lambda x, i=i: x[i], many[part])
            np.testing.assert_allclose(flat(of_many), flat(one[part]), rtol=1e-3, atol=1e-5)


@TABLE
def test_no_error_changes_nothing(name, x64):
    """Rewards that make every TD error zero: the gradient is zero, and Adam stands still."""
    algorithm = build(name, HYPER)
    data = batch()._replace(discount=jnp.zeros(len(batch().reward)))
    state = algorithm.init(data.obs, jax.random.key(0))
    _, info = algorithm.update(state, data._replace(reward=0 * data.reward), jax.random.key(0))
    new, info = algorithm.update(state, data._replace(reward=info["td_error"]), jax.random.key(0))
    assert np.abs(info["td_error"]).max() < 1e-12
    np.testing.assert_allclose(flat(new.params), flat(state.params), atol=1e-9)


@TABLE
def test_nan_in_a_batch_is_refused(name):
    function = compiled(name)
    reward = function.batch.reward.at[0].set(jnp.nan)
    out = function(batch=function.batch._replace(reward=reward))
    assert not out["info"]["finite"]
    kept = ("params", "opt_state", "target_params")
    for field in kept:
        new, old = (flat(getattr(out[k], field)) for k in ("new", "old"))
        np.testing.assert_array_equal(new, old)


@TABLE
def test_float64_stays_float64(name, x64):
    algorithm = build(name, HYPER)
    state = jax.eval_shape(algorithm.init, jnp.zeros((1, OBS)), jax.random.key(0))
    new, info = jax.eval_shape(algorithm.update, state, batch(), jax.random.key(0))
    buffer = jax.eval_shape(algorithm.replay.init, jnp.zeros(3))
    real = {x.dtype for x in jax.tree.leaves((state, new, info, buffer))}
    assert real <= {jnp.dtype(d) for d in (jnp.float64, jnp.int32, jnp.bool_)}
    assert {x.dtype for x in jax.tree.leaves(new.params)} == {jnp.dtype(jnp.float64)}
