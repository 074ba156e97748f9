"""What every algorithm promises, for discrete and for real actions.

Compiling is what costs time here, so each algorithm is compiled once, as one function of its
hyper-parameters, key and data, whose outputs serve most of the tests.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe_envs
import pytest
from test_dqn import random_batch

import purerl
from purerl import NetworkConfig
from purerl.records import Box, Clock, Discrete, MultiDiscrete, Rollout

TINY = NetworkConfig(hidden_sizes=(8,))
GRU, LSTM = (NetworkConfig(hidden_sizes=(8,), memory=x, memory_size=4) for x in ("gru", "lstm"))
SPACES = {
    "discrete": Discrete(3),
    "box": Box((2,), jnp.full(2, -2.0), jnp.full(2, 2.0)),
    "several": MultiDiscrete((3, 2)),
}
STEPS, ENVS, OBS = 6, 4, 3


def ppo(name, space, rate, gamma, entropy, own, network=TINY, **more):
    build, config, own_name = {
        "clip": (purerl.ppo_clip, purerl.PPOClipConfig, "clip"),
        "penalty": (purerl.ppo_penalty, purerl.PPOPenaltyConfig, "target_kl"),
    }[name]
    numbers = {"learning_rate": rate, "gamma": gamma, "entropy_coef": entropy, own_name: own}
    # A large epsilon: Adam would let grow what rounding leaves of the KL's gradient.
    sizes = {"num_epochs": 2, "num_minibatches": 2, "adam_eps": 1e-3}
    return build(config(network=network, **sizes, **numbers, **more), space)


def a2c(space, rate, gamma, entropy, own, network=TINY):
    numbers = {"learning_rate": rate, "gamma": gamma, "entropy_coef": entropy, "value_coef": own}
    return purerl.a2c(purerl.A2CConfig(network=network, **numbers), space)


def acktr(space, rate, gamma, entropy, own, **more):
    numbers = {"learning_rate": rate, "gamma": gamma, "entropy_coef": entropy, "kl_clip": own}
    config = purerl.ACKTRConfig(network=TINY, cold_start=0, inverse_every=2, **numbers, **more)
    return purerl.acktr(config, space)


def policy_gradient(space, rate, gamma, entropy, own, network=TINY, **choices):
    numbers = {"learning_rate": rate, "gamma": gamma, "entropy_coef": entropy, "optimizer_eps": own}
    config = purerl.PolicyGradientConfig(network=network, **numbers, **choices)
    return purerl.policy_gradient(config, space)


def trust_region(build, config, space, rate, gamma, damping, own, network=TINY, **more):
    sizes = {"cg_iterations": 4, "critic_epochs": 2, "critic_minibatches": 2}
    numbers = {"gamma": gamma, "damping": 0.1 + damping, "max_kl": 0.1 * own}
    numbers["critic_learning_rate"] = rate
    return build(config(network=network, **sizes, **numbers, **more), space)


def dqn(space, rate, tau, norm, own, **switches):
    """The target is 'gamma' of the way along; the gradient's bound and epsilon are the others."""
    numbers = {"learning_rate": rate, "target_tau": tau, "max_grad_norm": 1 + norm}
    numbers["epsilon_end"] = own
    config = purerl.DQNConfig(network=TINY, target_every=1, capacity=200, **numbers, **switches)
    return purerl.dqn(config, space)


EVERYTHING = {"double": True, "dueling": True, "prioritized": True, "n_step": 3, "loss": "squared"}
ALGORITHMS = {
    "a2c": a2c,
    "acktr": acktr,
    "acktr ekfac": functools.partial(acktr, damping_kind="ekfac", momentum=0.5),
    "dqn": dqn,
    "dqn_everything": functools.partial(dqn, **EVERYTHING),
    "npg": functools.partial(trust_region, purerl.npg, purerl.NPGConfig),
    "policy_gradient": policy_gradient,
    "ppo_clip": functools.partial(ppo, "clip"),
    "ppo_penalty": functools.partial(ppo, "penalty"),
    "q_minus_v": functools.partial(policy_gradient, estimator="advantage", advantage="q_minus_v"),
    "return_to_go": functools.partial(policy_gradient, estimator="return_to_go"),
    "trpo": functools.partial(trust_region, purerl.trpo, purerl.TRPOConfig),
}
ALGORITHMS["trpo samples"] = functools.partial(ALGORITHMS["trpo"], solver="samples")
# With a memory: all of those that have one, with the parts of each.
REMEMBERS = {
    "a2c": functools.partial(a2c, network=GRU),
    "npg": functools.partial(ALGORITHMS["npg"], network=GRU),
    "policy_gradient": functools.partial(policy_gradient, network=GRU),
    "ppo_clip": functools.partial(ppo, "clip", network=GRU, sequence_length=3),
    "ppo_penalty": functools.partial(ppo, "penalty", network=LSTM),
    "q_minus_v": functools.partial(ALGORITHMS["q_minus_v"], network=GRU),
    "return_to_go": functools.partial(ALGORITHMS["return_to_go"], network=LSTM),
    "trpo": functools.partial(ALGORITHMS["trpo"], network=GRU),
    "trpo samples": functools.partial(ALGORITHMS["trpo samples"], network=GRU),
}
ALGORITHMS |= {f"{name} memory": build for name, build in REMEMBERS.items()}
# Learning rate, gamma, the entropy's coefficient, a number of its own.
HYPER = (0.01, 0.9, 0.05, 0.1)
GRID = np.array([HYPER, (0.02, 0.5, 0.0, 0.2), (0.03, 1.0, 0.3, 0.01)])
ON_BOX = ("acktr", "ppo_penalty", "q_minus_v", "trpo")
# Those with a memory are compiled where they have code of their own.
ROWS = [(name, "discrete") for name in ALGORITHMS if "memory" not in name]
ROWS += [(name, "box") for name in ON_BOX]
ROWS += [("ppo_clip memory", "discrete"), ("trpo memory", "box"), ("q_minus_v", "several")]
EVERY = pytest.mark.parametrize(
    ("name", "space"),
    [(a, s) for a in ALGORITHMS for s in ("discrete", "box") if (a[:3], s) != ("dqn", "box")],
)
TABLE = pytest.mark.parametrize(("name", "space"), ROWS)


def hand_made(space):
    """A rollout that came from nowhere."""
    rng = np.random.default_rng(0)
    real = jnp.result_type(float)
    draw = lambda *shape: jnp.array(rng.normal(size=(STEPS, ENVS, *shape)), real)  # noqa: E731
    if space == "discrete":
        action = jnp.array(rng.integers(3, size=(STEPS, ENVS)), jnp.int32)
        log_prob = jnp.full((STEPS, ENVS), -np.log(3), real)
    elif space == "several":
        action = jnp.array(rng.integers([3, 2], size=(STEPS, ENVS, 2)), jnp.int32)
        log_prob = jnp.full((STEPS, ENVS), -np.log(6), real)
    else:
        action = draw(2)
        log_prob = -0.5 * jnp.sum(jnp.square(action), axis=-1) - np.log(2 * np.pi)
    done = rng.uniform(size=(2, STEPS, ENVS)) < 0.2
    step = jnp.array(rng.integers(9, size=(STEPS, ENVS)), jnp.int32)
    flags = jnp.array(done[0]), jnp.array(done[1])
    return Rollout(draw(OBS), action, log_prob, draw(), *flags, draw(OBS), step)


def data_for(name, space):
    """What ``update`` takes, and observations for ``init`` and ``act``."""
    if not name.startswith("dqn"):
        rollout = hand_made(space)
        if name.endswith("memory"):
            rollout = rollout._replace(memory=memories(name, space, rollout.obs))
        return rollout, rollout.obs[0]
    batch = random_batch(actions=3)
    return batch, batch.obs[:ENVS]


def memories(name, space, obs):
    """Some, before each step and after the last."""
    empty = ALGORITHMS[name](SPACES[space], *HYPER).init_memory(obs[0])
    leaves, structure = jax.tree.flatten(empty)
    rng = np.random.default_rng(1)
    some = [jnp.array(rng.normal(size=(STEPS + 1, *x.shape)), x.dtype) for x in leaves]
    return jax.tree.unflatten(structure, some)


class Compiled:
    """An algorithm as one compiled function, and its vmap."""

    def __init__(self, name, space):
        self.traces = 0
        self.data, obs = data_for(name, space)

        def run(hyper, key, data, head_scale):
            self.traces += 1
            algorithm = ALGORITHMS[name](SPACES[space], *hyper)
            init_key, update_key, act_key = jax.random.split(key, 3)
            state = algorithm.init(obs, init_key)
            params = scale_heads(state.params, head_scale)
            both = {"target_params": params} if name.startswith("dqn") else {}
            state = state._replace(params=params, **both)
            new, info = algorithm.update(state, data, update_key, progress=0.25)
            keys = jax.random.split(act_key, 20)
            act = functools.partial(algorithm.act, new, obs)
            greedy, _ = jax.vmap(functools.partial(act, greedy=True))(keys)
            action, extras = jax.vmap(functools.partial(act, progress=1.0))(keys)
            default, _ = jax.vmap(act)(keys)
            out = {"old": state, "new": new, "info": info, "greedy": greedy, "action": action}
            out["by_key"] = act(act_key)
            noise = algorithm.ahead.noise(new, obs, act_key, 1)
            row = jax.tree.map(lambda x: x[0], noise)
            out["by_noise"], policy, *_ = algorithm.ahead.act(new, obs, row, progress=1.0)
            if algorithm.ahead.log_prob is not None:
                out["evaluated"] = algorithm.ahead.log_prob(policy, out["by_noise"])
            return out | {"log_prob": extras["log_prob"], "default": default}

        self.run = jax.jit(run)
        self.many = jax.jit(jax.vmap(run, in_axes=(0, 0, None, None)))

    def __call__(self, seed=0, hyper=HYPER, head_scale=1.0, **changes):
        data = self.data._replace(**changes)
        return self.run(hyper, jax.random.key(seed), data, head_scale)


def scale_heads(params, scale):
    """The parameters with the last layers of all critics multiplied by a number."""
    heads = ("value_head", "q_head", "advantage_head")

    def one(path, x):
        return x * scale if any(head in jax.tree_util.keystr(path) for head in heads) else x

    return jax.tree_util.tree_map_with_path(one, params)


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
    """And the state keeps its structure, shapes and dtypes."""
    out = compiled(name, space)()
    assert bool(out["info"]["finite"])
    chex.assert_tree_all_finite((out["new"], out["info"]))
    chex.assert_trees_all_equal_shapes_and_dtypes(out["new"], out["old"])
    weak = [[x.weak_type for x in jax.tree.leaves(out[k])] for k in ("old", "new")]
    assert weak[0] == weak[1]
    assert np.any(flat(out["new"].params) != flat(out["old"].params))


@TABLE
def test_other_data_of_the_same_shape_are_not_compiled_again(name, space):
    function = compiled(name, space)
    function()
    traces = function.traces
    function(seed=5, reward=function.data.reward + 1)
    assert function.traces == traces


@TABLE
def test_the_key_decides_everything(name, space):
    one, again, other = (compiled(name, space)(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(flat(one), flat(again))
    assert np.any(flat(one["new"].params) != flat(other["new"].params))


@TABLE
def test_acting(name, space):
    """Greedy without chance, else with it; by default as at the end of the run."""
    out = compiled(name, space)()
    greedy, sampled = np.asarray(out["greedy"]), np.asarray(out["action"])
    np.testing.assert_array_equal(greedy, np.broadcast_to(greedy[0], greedy.shape))
    assert np.any(sampled != sampled[0])
    assert greedy[0].shape == (ENVS, *(() if space == "discrete" else (2,)))
    assert out["log_prob"].shape == (20, ENVS)
    np.testing.assert_array_equal(sampled, out["default"])
    if space == "discrete":
        assert out["action"].dtype == out["greedy"].dtype == jnp.int32


@TABLE
def test_acting_with_noise_drawn_ahead_is_acting(name, space):
    """The same numbers, drawn by the same key, give the same actions and log-probabilities."""
    out = compiled(name, space)()
    action, extras = out["by_key"]
    np.testing.assert_allclose(out["by_noise"], action, rtol=1e-5, atol=1e-6)
    assert name.startswith("dqn") == ("evaluated" not in out)
    if "evaluated" in out:
        np.testing.assert_allclose(out["evaluated"], extras["log_prob"], rtol=1e-5, atol=1e-6)


@TABLE
def test_swept_hyper_parameters_and_seeds_equal_separate_runs(name, space):
    """Under vmap the configuration is built from tracers; and vmapped is single, to rounding."""
    function = compiled(name, space)
    keys = jnp.stack([jax.random.key(seed) for seed in range(3)])
    many = function.many(tuple(jnp.float32(GRID.T)), keys, function.data, 1.0)
    for i in range(3):
        one = function(i, tuple(GRID[i].tolist()))
        for part in ("new", "info"):
            of_many = jax.tree.map(lambda x, i=i: x[i], many[part])
            np.testing.assert_allclose(flat(of_many), flat(one[part]), rtol=1e-3, atol=1e-5)


@TABLE
def test_each_swept_hyper_parameter_counts(name, space):
    """As a tracer it changes the state after the update."""
    function = compiled(name, space)
    plain = flat(function()["new"])
    for i in range(3):
        if (name, i) in (("dqn", 2), ("dqn_everything", 2)):
            continue  # the gradient's bound; Adam hardly sees it
        hyper = [x * 0.5 if i == k else x for k, x in enumerate(HYPER)]
        assert np.any(flat(function(hyper=tuple(hyper))["new"]) != plain), i


@TABLE
def test_zero_advantage_changes_nothing(name, space):
    """A critic that expects nothing and gets nothing, without an entropy bonus."""
    function = compiled(name, space)
    nothing = {"head_scale": 0.0, "reward": jnp.zeros_like(function.data.reward)}
    out = function(hyper=(0.01, 0.9, 0.0, 0.1), **nothing)
    np.testing.assert_allclose(flat(out["new"].params), flat(out["old"].params), atol=1e-4)
    assert np.abs(flat(function()["new"].params) - flat(function()["old"].params)).max() > 1e-3


@TABLE
def test_nan_in_the_data_is_refused(name, space):
    """Nothing is changed, and the info says so."""
    function = compiled(name, space)
    reward = jnp.asarray(function.data.reward)
    out = function(reward=reward.at[(0,) * reward.ndim].set(jnp.nan))
    assert not out["info"]["finite"]
    new, old = (flat(without_clocks(out[name])) for name in ("new", "old"))
    np.testing.assert_array_equal(new, old)


# Traced only, which is cheap: for all algorithms and both kinds of actions.


def shapes(name, space, rate=HYPER[0], wrap=lambda f: f):
    """Shapes and dtypes of the state, and of the state and info after an update."""
    algorithm = ALGORITHMS[name](SPACES[space], rate, *HYPER[1:])
    data, obs = data_for(name, space)
    state = jax.eval_shape(algorithm.init, obs, jax.random.key(0))

    def update(state, key, progress):
        return algorithm.update(state, data, key, progress=progress)

    return state, *jax.eval_shape(wrap(update), state, jax.random.key(0), 0.5)


@EVERY
def test_float64_stays_float64(name, space, x64):
    """Of what the default network and the optimizer hold, and of what is reported."""
    state, new, info = shapes(name, space)
    real = {x.dtype for x in jax.tree.leaves((state, new, info))}
    assert real <= {jnp.dtype(d) for d in (jnp.float64, jnp.int32, jnp.bool_)}
    assert {x.dtype for x in jax.tree.leaves(new.params)} == {jnp.dtype(jnp.float64)}


@EVERY
def test_learning_rate_as_a_function_of_progress_under_jit_and_vmap(name, space):
    schedule = optax.linear_schedule(1e-3, 1e-4, 1)

    def over_progress(update):
        several = jax.jit(jax.vmap(update, in_axes=(None, None, 0)))
        return lambda state, key, progress: several(state, key, progress + jnp.arange(3) / 4)

    state, new, _ = shapes(name, space, schedule, over_progress)
    wanted = [(3, *x.shape) for x in jax.tree.leaves(state.params)]
    assert [x.shape for x in jax.tree.leaves(new.params)] == wanted
    assert [x.dtype for x in jax.tree.leaves(new)] == [x.dtype for x in jax.tree.leaves(state)]


# A whole run: every kind of state, loop and key.
CHUNKED = [
    ("a2c", "discrete"),
    ("acktr", "box"),
    ("acktr ekfac", "discrete"),
    ("dqn_everything", "discrete"),
    ("npg", "discrete"),
    ("ppo_clip", "box"),
    ("ppo_clip memory", "discrete"),
    ("ppo_penalty", "discrete"),
    ("return_to_go", "discrete"),
    ("trpo", "discrete"),
    ("trpo memory", "box"),
    ("trpo samples memory", "box"),
]


@pytest.mark.parametrize(("name", "space"), CHUNKED)
def test_chunks_are_the_whole_run_bit_for_bit(name, space):
    """One compiled program, which takes the number of iterations as an argument."""
    env = purerl.make_env(probe_envs.NoisyEnv(box=space == "box"))
    algorithm = ALGORITHMS[name](SPACES[space], *HYPER)
    sizes = {"num_envs": ENVS, "rollout_length": STEPS, "evaluations": 0}
    sizes |= {"warmup": 150} if name.startswith("dqn") else {}
    train = purerl.make_train(algorithm, env, 1000, **sizes)
    start = jax.jit(train.init)(jax.random.key(0))
    advance = jax.jit(train.accumulate)
    count = lambda n: Clock(jnp.int32(n))  # noqa: E731
    whole = advance(start, train.totals(start), count(10))
    pieces = start, train.totals(start)
    for iterations in (3, 2, 5):
        pieces = advance(*pieces, count(iterations))
    np.testing.assert_array_equal(flat(pieces[0].learner), flat(whole[0].learner))
    np.testing.assert_array_equal(flat(pieces[0].actors), flat(whole[0].actors))
    np.testing.assert_array_equal(flat(pieces[1]), flat(whole[1]))
    assert np.any(flat(whole[0].learner.params) != flat(start.learner.params))
    assert not whole[0].refused
