"""The adapter to gymnax: names, casts, clipping, errors, and dynamics equal to Gymnasium's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import probe_envs
import pytest
from gymnax.environments import spaces

from purerl.envs.make import list_envs, make_env
from purerl.pieces.rollout import reset, unroll
from purerl.records import Box, Discrete


def some_action(env):
    if isinstance(env.action_space, Discrete):
        return jnp.zeros((), jnp.int32)
    return jnp.zeros(env.action_space.shape)


def two_steps(env, key):
    """A reset and two steps, everything that they return."""
    obs, state = env.reset(key)
    first, after = env.step(state, some_action(env), key)
    second, last = env.step(after, some_action(env), key)
    return obs, (first, second), (state, after, last)


def signature(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize("name", list_envs())
def test_every_environment_has_the_declared_shapes(name):
    """Also floating point, and a state whose type no step changes, as a scan wants it."""
    env = make_env(name)
    obs, steps, states = jax.eval_shape(lambda key: two_steps(env, key), jax.random.key(0))
    assert env.name == name
    for x in (obs, *(s.obs for s in steps), *(s.next_obs for s in steps)):
        assert (x.shape, x.dtype) == (env.obs_shape, jnp.float32)
    for step in steps:
        assert (step.reward.shape, step.reward.dtype) == ((), jnp.float32)
        for flag in (step.terminated, step.truncated):
            assert (flag.shape, flag.dtype) == ((), bool)
    assert signature(states[0]) == signature(states[1]) == signature(states[2])


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "Catch-bsuite",
        "BernoulliBandit-misc",
        "FourRooms-misc",
        "FrozenLake-misc",
        "UmbrellaChain-bsuite",
    ],
)
def test_environments_really_run(name):
    env = make_env(name)
    run = jax.jit(lambda key: two_steps(env, key))
    obs, (first, second), _ = run(jax.random.key(0))
    again = run(jax.random.key(0))[0]
    np.testing.assert_array_equal(obs, again)
    for x in (obs, first.obs, first.next_obs, first.reward, second.obs, second.reward):
        assert jnp.all(jnp.isfinite(x))


def test_a_discrete_observation_becomes_one_hot():
    env = make_env("FrozenLake-misc")
    obs, _ = jax.jit(env.reset)(jax.random.key(0))
    assert env.obs_shape == (16,)
    assert obs.tolist() == [1.0] + [0.0] * 15


def test_time_limit_and_other_parameters():
    env = make_env("CartPole-v1", max_steps_in_episode=2)
    assert env.max_episode_steps == 2
    _, (first, second), _ = jax.jit(lambda key: two_steps(env, key))(jax.random.key(0))
    assert (first.truncated, second.truncated) == (False, True)
    assert not second.terminated
    assert np.any(second.obs != second.next_obs)  # reset, and what was there before it


def test_steps_between_truncations_are_known_where_only_the_time_limit_truncates():
    assert make_env("CartPole-v1", max_steps_in_episode=7).truncation_interval == 7
    assert make_env(probe_envs.NoisyEnv()).truncation_interval == 1  # decides by itself
    assert make_env(Own()).truncation_interval == 1  # begins again in a way of its own


def test_constructor_arguments():
    """An argument of the class changes the observation; a field of its parameters, the limit."""
    assert make_env("FourRooms-misc").obs_shape == (4,)
    env = make_env("FourRooms-misc", use_visual_obs=True, max_steps_in_episode=7)
    obs, _ = jax.eval_shape(env.reset, jax.random.key(0))
    assert obs.shape == env.obs_shape == (13, 13, 2)
    assert env.max_episode_steps == 7


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("CartPole-v2", {}, r"unknown environment 'CartPole-v2'. Did you mean CartPole-v1"),
        ("cartpole", {}, r"unknown environment 'cartpole'. Did you mean CartPole-v1"),
        ("qqqq", {}, r"unknown environment 'qqqq'. Choose one of .*Pendulum-v1"),
        ("MNISTBandit-bsuite", {}, r"downloads the MNIST images.*give a gymnax object"),
        ("CartPole-v1", {"gravitas": 1}, r"CartPole-v1 has no parameter 'gravitas'.*gravity"),
    ],
)
def test_errors_of_names(name, params, message):
    with pytest.raises(ValueError, match=message):
        make_env(name, **params)


def test_what_needs_a_download_is_not_listed():
    assert "MNISTBandit-bsuite" not in list_envs()
    assert len(list_envs()) >= 25


class Params(NamedTuple):
    max_steps_in_episode: int = 3


class Own:
    """A user's environment with gymnax's interface: no base class, no registration.

    Observation: steps so far. Reward: the action as the environment gets it. Its state holds
    what states hold: a key, a Python number at first, a dictionary.
    """

    default_params = Params()

    def __init__(self, observations=None, actions=None):
        self.observations = observations or spaces.Box(0, 9, (1,), jnp.int32)
        self.actions = actions or spaces.Box(-1.0, 2.0, (1,))

    def observation_space(self, params):
        return self.observations

    def action_space(self, params):
        return self.actions

    def reset(self, key, params):
        return jnp.zeros(1, jnp.int32), {"time": 0, "key": key}

    def step(self, key, state, action, params):
        time = state["time"] + 1
        done = time >= params.max_steps_in_episode
        final = jnp.full(1, time)
        obs = jnp.where(done, 0, final)
        state = {"time": jnp.where(done, 0, time), "key": key}
        info = {"final_observation": final}
        return obs, state, action[0], jnp.array(False), done, info


def test_own_environment():
    env = make_env(Own())
    assert (env.name, env.obs_shape, env.max_episode_steps) == ("Own", (1,), 3)
    assert env.action_space.shape == (1,)
    act = lambda obs, key: (jnp.ones((2, 1)), {"log_prob": jnp.zeros(2)})  # noqa: E731
    actors = reset(env, 2, jax.random.key(0))
    _, rollout, _ = jax.jit(lambda a, k: unroll(act, env, a, k, 7))(actors, jax.random.key(1))
    assert rollout.obs.dtype == jnp.float32
    assert rollout.obs[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert rollout.next_obs[:, 0, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert rollout.truncated[:, 0].tolist() == [False, False, True, False, False, True, False]


def test_own_environment_in_float64(x64):
    env = make_env(Own())
    obs, steps, states = jax.eval_shape(lambda key: two_steps(env, key), jax.random.key(0))
    assert obs.dtype == steps[0].next_obs.dtype == steps[0].reward.dtype == jnp.float64
    assert signature(states[0]) == signature(states[1])


def test_the_environment_gets_clipped_actions_and_the_learner_its_own():
    env = make_env(Own())
    wish = jnp.array([[5.0], [-5.0], [0.5]])
    act = lambda obs, key: (wish, {"log_prob": jnp.zeros(3)})  # noqa: E731
    actors = reset(env, 3, jax.random.key(0))
    _, rollout, _ = unroll(act, env, actors, jax.random.key(1), 1)
    assert rollout.action.ravel().tolist() == [5.0, -5.0, 0.5]
    assert rollout.reward.ravel().tolist() == [2.0, -1.0, 0.5]


def test_bounds_may_differ_between_components():
    bounds = spaces.Box(jnp.array([-1.0, -2.0]), jnp.array([1.0, 3.0]), (2,))
    space = make_env(Own(actions=bounds)).action_space
    assert isinstance(space, Box)
    assert (space.low.tolist(), space.high.tolist()) == ([-1.0, -2.0], [1.0, 3.0])


PARTS = {"a": spaces.Discrete(2), "b": spaces.Discrete(3)}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Own(observations=spaces.Dict(PARTS)), "Own has observations of Dict; Discrete and Box"),
        (Own(actions=spaces.Dict(PARTS)), "Own has actions of Dict; Discrete and Box"),
        (Own(actions=spaces.Tuple(tuple(PARTS.values()))), "Own has actions of Tuple"),
        (object(), "object has no attribute 'reset'; make_env takes a name"),
    ],
)
def test_unsupported_spaces_and_objects(own, message):
    with pytest.raises(TypeError, match=message):
        make_env(own)


GYMNASIUM = {  # the fields of gymnax's state in the order of Gymnasium's, and the range of each
    "CartPole-v1": {"x": 2.39, "x_dot": 3.0, "theta": 0.2, "theta_dot": 3.0},
    "MountainCar-v0": {"position": 0.55, "velocity": 0.07},
    "Acrobot-v1": {"joint_angle1": 3.0, "joint_angle2": 3.0, "velocity_1": 5.0, "velocity_2": 5.0},
    "Pendulum-v1": {"theta": 3.0, "theta_dot": 7.0},
}


@pytest.mark.parametrize("name", GYMNASIUM)
def test_one_step_equals_gymnasium(name):
    """From the same states, near and beyond the ends of episodes too, with the same actions."""
    with oracles.lenient():
        gymnasium = oracles.optional("gymnasium")
        oracle = gymnasium.make(name).unwrapped
        oracle.reset(seed=0)
    env, n = make_env(name), 40
    rng = np.random.default_rng(0)
    ranges = GYMNASIUM[name]
    start = {k: rng.uniform(-r, r, n).astype(np.float32) for k, r in ranges.items()}
    if isinstance(env.action_space, Discrete):
        actions = rng.integers(env.action_space.num_actions, size=n)
    else:
        actions = rng.uniform(-3, 3, (n, 1)).astype(np.float32)  # beyond the bounds too

    def step(fields, action, key):
        state = env.reset(key)[1].replace(**fields)
        return env.step(state, action, key)[0]

    keys = jax.random.split(jax.random.key(0), n)
    got = jax.jit(jax.vmap(step))(jax.tree.map(jnp.asarray, start), jnp.asarray(actions), keys)
    for i in range(n):
        oracle.state = np.array([float(x[i]) for x in start.values()])
        oracle.steps_beyond_terminated = None
        obs, reward, terminated, _, _ = oracle.step(actions[i])
        np.testing.assert_allclose(got.next_obs[i], obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got.reward[i], reward, rtol=1e-5, atol=1e-5)
        assert got.terminated[i] == terminated
    if name != "Pendulum-v1":
        assert 0 < got.terminated.sum() < n
