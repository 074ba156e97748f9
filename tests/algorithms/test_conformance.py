"""What every algorithm promises, for discrete and for real actions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl import NetworkConfig
from purerl.records import Box, Clock, Discrete, Rollout

TINY = NetworkConfig(hidden_sizes=(8,))
SPACES = {"discrete": Discrete(3), "box": Box((2,), jnp.full(2, -2.0), jnp.full(2, 2.0))}
STEPS, ENVS, OBS = 6, 4, 3


def ppo(build, config, space, hyper, **kw):
    sizes = {"num_epochs": 2, "num_minibatches": 2}
    return build(config(network=TINY, **sizes, **hyper, **kw), space)


def clip(space, hyper):
    return ppo(purerl.ppo_clip, purerl.PPOClipConfig, space, hyper)


def penalty(space, hyper):
    hyper = dict(hyper)
    return ppo(
        purerl.ppo_penalty, purerl.PPOPenaltyConfig, space, hyper, target_kl=hyper.pop("clip")
    )


def a2c(space, hyper):
    hyper = {name: value for name, value in hyper.items() if name != "clip"}
    return purerl.a2c(purerl.A2CConfig(network=TINY, **hyper), space)


def acktr(space, hyper):
    hyper = dict(hyper)
    clip = hyper.pop("clip")
    config = purerl.ACKTRConfig(network=TINY, kl_clip=clip, cold_start=0, inverse_every=2, **hyper)
    return purerl.acktr(config, space)


def policy_gradient(estimator, space, hyper, **kw):
    hyper = {name: value for name, value in hyper.items() if name != "clip"}
    config = purerl.PolicyGradientConfig(estimator=estimator, network=TINY, **hyper, **kw)
    return purerl.policy_gradient(config, space)


def trust_region(build, config, space, hyper):
    sizes = {"cg_iterations": 4, "critic_epochs": 2, "critic_minibatches": 2}
    own = {
        "critic_learning_rate": hyper["learning_rate"],
        "gamma": hyper["gamma"],
        "damping": 0.1 + hyper["entropy_coef"],
        "max_kl": 0.1 * hyper["clip"],
    }
    return build(config(network=TINY, **sizes, **own), space)


ALGORITHMS = {
    "a2c": a2c,
    "acktr": acktr,
    "ppo_clip": clip,
    "ppo_penalty": penalty,
    "return_to_go": functools.partial(policy_gradient, "return_to_go"),
    "td_error": functools.partial(policy_gradient, "td_error"),
    "q_minus_v": functools.partial(policy_gradient, "advantage", advantage="q_minus_v"),
    "trpo": functools.partial(trust_region, purerl.trpo, purerl.TRPOConfig),
    "npg": functools.partial(trust_region, purerl.npg, purerl.NPGConfig),
}
HYPER = {"learning_rate": 0.01, "gamma": 0.9, "entropy_coef": 0.05, "clip": 0.1}
GRID = {
    "learning_rate": np.array([0.01, 0.02, 0.03]),
    "gamma": np.array([0.9, 0.5, 1.0]),
    "entropy_coef": np.array([0.05, 0.0, 0.3]),
    "clip": np.array([0.1, 0.2, 0.01]),
}
TABLE = pytest.mark.parametrize(
    ("name", "space"), [(name, space) for name in ALGORITHMS for space in SPACES]
)
SWEPT = [(name, "discrete") for name in ALGORITHMS] + [
    (name, "box") for name in ("acktr", "ppo_clip", "q_minus_v", "trpo")
]


def hand_made(space):
    """A rollout that came from nowhere."""
    rng = np.random.default_rng(0)
    real = jnp.result_type(float)
    draw = lambda *shape: jnp.array(rng.normal(size=(STEPS, ENVS, *shape)), real)  # noqa: E731
    if space == "discrete":
        action = jnp.array(rng.integers(3, size=(STEPS, ENVS)), jnp.int32)
        log_prob = jnp.full((STEPS, ENVS), -np.log(3), real)
    else:
        action = draw(2)
        log_prob = -0.5 * jnp.sum(jnp.square(action), axis=-1) - np.log(2 * np.pi)
    done = rng.uniform(size=(2, STEPS, ENVS)) < 0.2
    step = jnp.array(rng.integers(9, size=(STEPS, ENVS)), jnp.int32)
    flags = jnp.array(done[0]), jnp.array(done[1])
    return Rollout(draw(OBS), action, log_prob, draw(), *flags, draw(OBS), step)


class Compiled:
    """An algorithm as one compiled function of its hyper-parameters, and its vmap."""

    def __init__(self, name, space):
        self.traces = 0
        self.rollout = hand_made(space)

        def run(hyper, key, rollout):
            self.traces += 1
            algorithm = ALGORITHMS[name](SPACES[space], hyper)
            init_key, update_key = jax.random.split(key)
            state = algorithm.init(rollout.obs[0], init_key)
            new, info = algorithm.update(state, rollout, update_key, progress=0.25)
            greedy, _ = algorithm.act(new, rollout.obs[0], key, greedy=True)
            action, extras = algorithm.act(new, rollout.obs[0], key)
            return {"old": state, "new": new, "info": info, "greedy": greedy} | {
                "action": action,
                "log_prob": extras["log_prob"],
            }

        self.run = jax.jit(run)
        self.many = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))

    def __call__(self, seed=0, hyper=HYPER, rollout=None):
        rollout = self.rollout if rollout is None else rollout
        return self.run(hyper, jax.random.key(seed), rollout)


compiled = functools.cache(Compiled)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def without_clocks(tree):
    """A Clock goes on whatever happens to one seed."""
    return jax.tree.map(
        lambda x: None if isinstance(x, Clock) else x, tree, is_leaf=lambda x: isinstance(x, Clock)
    )


@TABLE
def test_update_is_usable_alone(name, space):
    out = compiled(name, space)()
    assert bool(out["info"]["finite"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out["new"], out["info"])))
    assert np.any(flat(out["new"].params) != flat(out["old"].params))


@TABLE
def test_state_keeps_its_shapes_and_dtypes(name, space):
    out = compiled(name, space)()
    old, new = (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), out[k]) for k in ("old", "new")
    )
    assert old == new


@TABLE
def test_another_rollout_of_the_same_shape_is_not_compiled_again(name, space):
    function = compiled(name, space)
    function()
    traces = function.traces
    function(seed=5, rollout=function.rollout._replace(reward=function.rollout.reward + 1))
    assert function.traces == traces


@TABLE
def test_the_key_decides_everything(name, space):
    one, again, other = (compiled(name, space)(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(flat(one), flat(again))
    assert np.any(flat(one["new"].params) != flat(other["new"].params))


@TABLE
def test_acting(name, space):
    """Greedy without chance, else with it; the log-probability is that of the action."""
    function = compiled(name, space)
    algorithm = ALGORITHMS[name](SPACES[space], HYPER)
    out, obs = function(), function.rollout.obs[0]
    keys = jax.random.split(jax.random.key(9), 20)

    @jax.jit
    def act(state, obs):
        greedy = jax.vmap(lambda key: algorithm.act(state, obs, key, greedy=True)[0])(keys)
        return greedy, jax.vmap(lambda key: algorithm.act(state, obs, key)[0])(keys)

    greedy, sampled = act(out["new"], obs)
    np.testing.assert_array_equal(greedy, np.broadcast_to(greedy[0], greedy.shape))
    np.testing.assert_allclose(greedy[0], out["greedy"], rtol=1e-5, atol=1e-6)
    assert np.any(np.asarray(sampled) != np.asarray(sampled[0]))
    assert out["action"].shape == (ENVS, *(() if space == "discrete" else (2,)))
    assert out["log_prob"].shape == (ENVS,)
    if space == "discrete":
        assert out["action"].dtype == out["greedy"].dtype == jnp.int32


@pytest.mark.parametrize(("name", "space"), SWEPT)
def test_swept_hyper_parameters_and_seeds_equal_separate_runs(name, space):
    """Under vmap the configuration is built from tracers; and vmapped is single, to rounding."""
    function = compiled(name, space)
    keys = jnp.stack([jax.random.key(seed) for seed in range(3)])
    grid = {name: jnp.asarray(values, jnp.float32) for name, values in GRID.items()}
    many = function.many(grid, keys, function.rollout)
    for i in range(3):
        one = function(i, {name: float(values[i]) for name, values in GRID.items()})
        for part in ("new", "info"):
            of_many = jax.tree.map(lambda x, i=i: x[i], many[part])
            np.testing.assert_allclose(flat(of_many), flat(one[part]), rtol=1e-3, atol=1e-5)


@TABLE
def test_each_swept_hyper_parameter_counts(name, space):
    """The learning rate, gamma and the entropy's coefficient (trust regions: the damping), as
    tracers, change the update.
    """
    function = compiled(name, space)
    plain = flat(function()["new"].params)
    for field in ("learning_rate", "gamma", "entropy_coef"):
        other = function(hyper=HYPER | {field: HYPER[field] * 0.5})
        assert np.any(flat(other["new"].params) != plain), field


@TABLE
def test_nan_in_a_rollout_is_refused(name, space):
    """Nothing is changed, and the info says so."""
    function = compiled(name, space)
    reward = function.rollout.reward.at[0, 0].set(jnp.nan)
    out = function(rollout=function.rollout._replace(reward=reward))
    assert not out["info"]["finite"]
    new, old = (flat(without_clocks(out[name])) for name in ("new", "old"))
    np.testing.assert_array_equal(new, old)


@TABLE
def test_float64_stays_float64(name, space, x64):
    """Of what the default network and the optimizer hold, and of what is reported."""
    algorithm = ALGORITHMS[name](SPACES[space], HYPER)
    rollout, key = hand_made(space), jax.random.key(0)
    state = jax.eval_shape(algorithm.init, rollout.obs[0], key)
    new, info = jax.eval_shape(algorithm.update, state, rollout, key)
    real = {x.dtype for x in jax.tree.leaves((state, new, info))}
    assert real <= {jnp.dtype(d) for d in (jnp.float64, jnp.int32, jnp.bool_)}
    assert {x.dtype for x in jax.tree.leaves(new.params)} == {jnp.dtype(jnp.float64)}


# Every kind of state, loop and key; each costs two or three compilations of a whole run.
CHUNKED = [
    ("a2c", "discrete"),
    ("acktr", "box"),
    ("ppo_clip", "box"),
    ("ppo_penalty", "discrete"),
    ("return_to_go", "discrete"),
    ("q_minus_v", "box"),
    ("trpo", "discrete"),
]


@pytest.mark.parametrize(("name", "space"), CHUNKED)
def test_in_float64_chunks_are_the_whole_run_bit_for_bit(name, space, x64):
    env = purerl.make_env(probe_envs.NoisyEnv(box=space == "box"))
    algorithm = ALGORITHMS[name](SPACES[space], HYPER)
    sizes = {"num_envs": ENVS, "rollout_length": STEPS, "evaluations": 0}
    train = purerl.make_train(algorithm, env, 10 * ENVS * STEPS, **sizes)
    advance = jax.jit(train.advance, static_argnums=1)
    start = jax.jit(train.init)(jax.random.key(0))
    whole, metrics = advance(start, 10)
    state, pieces = start, []
    for iterations in (3, 2, 5) if (name, space) == ("ppo_clip", "box") else (5, 5):
        state, piece = advance(state, iterations)
        pieces.append(piece)
    np.testing.assert_array_equal(flat(state.learner), flat(whole.learner))
    np.testing.assert_array_equal(flat(state.actors), flat(whole.actors))
    joined = jax.tree.map(lambda *x: np.concatenate(x), *pieces)
    np.testing.assert_array_equal(flat(joined), flat(metrics))
    assert np.any(flat(whole.learner.params) != flat(start.learner.params))
    assert metrics.info["finite"].all()
