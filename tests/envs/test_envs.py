"""The adapter to gymnax: names, casts, clipping, errors, and dynamics equal to Gymnasium's."""

import functools
import subprocess
import sys
from typing import Any, NamedTuple

import equinox
import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import probe_envs
import pytest
from flax import struct
from gymnax.environments import spaces

import purerl
from purerl.envs import Env, Step, gymnax_adapter, list_envs, make, make_env
from purerl.pieces.rollout import reset, unroll
from purerl.records import Box, Discrete

KEY = jax.random.key(0)


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
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def vectorized(env):
    """Three steps of two environments: jit, vmap and scan, as loops have them."""

    def play(key):
        start = env.reset(key)
        step = lambda state, key: env.step(state, some_action(env), key, start)[::-1]  # noqa: E731
        return start, jax.lax.scan(step, start[1], jax.random.split(key, 3))

    return jax.jit(jax.vmap(play))


RUN = ("CartPole-v1", "Pendulum-v1", "BernoulliBandit-misc", "FourRooms-misc", "FrozenLake-misc")


@pytest.mark.parametrize("name", list_envs("gymnax"))
def test_every_listed_environment_goes_through_jit_vmap_and_scan(name):
    """With the declared shapes, floating point; some of them are also run."""
    env = make_env(name)
    traced = vectorized(env).trace(jax.random.split(jax.random.key(0), 2))
    (obs, state), (last, steps) = traced.out_info
    assert env.name == name
    assert (obs.shape, obs.dtype) == ((2, *env.obs_shape), jnp.float32)
    for x in (steps.obs, steps.next_obs):
        assert (x.shape, x.dtype) == ((2, 3, *env.obs_shape), jnp.float32)
    assert (steps.reward.shape, steps.reward.dtype) == ((2, 3), jnp.float32)
    for flag in (steps.terminated, steps.truncated):
        assert (flag.shape, flag.dtype) == ((2, 3), bool)
    assert signature(last) == signature(state)
    if name in RUN:
        out = traced.lower().compile()(jax.random.split(jax.random.key(0), 2))
        for x in jax.tree.leaves((out[0][0], out[1][1])):
            assert jnp.all(jnp.isfinite(x))


@pytest.mark.parametrize("name", list_envs("gymnax"))
def test_every_listed_environment_trains_through_run(name):
    """Also those whose constructors look at values."""
    sizes = {"num_envs": 2, "rollout_length": 2, "steps": 8, "evaluations": 0}
    network = {"hidden_sizes": (2,)}
    result = purerl.run("a2c", name, seeds=1, progress=False, **sizes, **network)
    assert result.stopped is None
    assert not result.failed.any()


@pytest.mark.parametrize("name", ["FourRooms-misc", "MetaMaze-misc"])
def test_an_environment_can_be_made_where_a_function_is_traced(name):
    """Their constructors branch on values."""
    gymnax_adapter._construct.cache_clear()
    shape = jax.eval_shape(
        jax.vmap(lambda key: make_env(name).reset(key)[0]), jax.random.split(KEY)
    )
    assert shape.shape == (2, *make_env(name).obs_shape)


def test_constructing_is_done_once_for_each_set_of_arguments():
    construct = gymnax_adapter._construct
    before = construct.cache_info().misses
    for _ in range(2):
        make_env("FourRooms-misc", max_steps_in_episode=9)
        make_env("FourRooms-misc", use_visual_obs=True)
    assert construct.cache_info().misses <= before + 2
    assert make_env("FourRooms-misc").obs_shape == (4,)


def test_gymnax_is_not_imported_before_an_environment_is_made():
    code = "import sys; from purerl.envs import make_env, Env; print('gymnax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_of_gymnax_only_what_an_environment_needs_is_imported_until_more_is_asked_for():
    code = """
import sys
import purerl
env = purerl.make_env("CartPole-v1")
assert not {"seaborn", "pandas", "matplotlib"} & set(sys.modules)
import gymnax
import gymnax.environments.spaces
made, _ = gymnax.make("CartPole-v1")
assert type(made) is gymnax.environments.CartPole
assert isinstance(made, gymnax.environments.environment.Environment)
assert isinstance(made.action_space(), gymnax.environments.spaces.Discrete)
assert {"make", "registered_envs"} <= set(dir(gymnax))
assert gymnax.environments.misc.Pong.__module__ == "gymnax.environments.misc.pong"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("question", ["gymnax.nothing", "gymnax.environments.minatar.nothing"])
def test_what_is_not_in_a_deferred_package_is_no_attribute_of_it(question):
    code = f"import purerl; purerl.make_env('CartPole-v1'); import gymnax; {question}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in out.stderr


def test_the_environments_that_are_made_by_their_classes_are_those_of_the_registry():
    names = {name for name in gymnax.registered_envs if not name.endswith("-misc")}
    assert set(gymnax_adapter.CLASSES) == names - {gymnax_adapter.NEEDS_DOWNLOAD}
    for name, where in gymnax_adapter.CLASSES.items():
        made = type(gymnax.make(name)[0])
        module = made.__module__.removeprefix("gymnax.environments.")
        assert f"{module}:{made.__name__}" == where


def test_where_gymnax_has_a_class_elsewhere_its_registry_is_asked(monkeypatch):
    wanted = type(gymnax_adapter._construct("Catch-bsuite", False))
    gymnax_adapter._construct.cache_clear()
    for elsewhere in ("bsuite.nowhere:Catch", "bsuite.catch:Other"):
        monkeypatch.setitem(gymnax_adapter.CLASSES, "Catch-bsuite", elsewhere)
        assert type(gymnax_adapter._construct("Catch-bsuite", False)) is wanted
        gymnax_adapter._construct.cache_clear()


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
        ("HalfCheetah-v5", {}, r"Did you mean gymnasium:HalfCheetah-v5"),
        ("qqqq", {}, r"unknown environment 'qqqq'. Choose one of .*Pendulum-v1"),
        ("MNISTBandit-bsuite", {}, r"downloads the MNIST images.*give a gymnax object"),
        ("CartPole-v1", {"gravitas": 1}, r"CartPole-v1 has no parameter 'gravitas'.*gravity"),
    ],
)
def test_errors_of_names(name, params, message):
    with pytest.raises(ValueError, match=message):
        make_env(name, **params)


def test_what_needs_a_download_is_not_listed():
    assert "MNISTBandit-bsuite" not in list_envs("gymnax")
    assert len(list_envs("gymnax")) >= 25


@struct.dataclass
class Params:
    max_steps_in_episode: int = 3


class Own:
    """A user's environment with gymnax's interface: no base class, no registration.

    Observation: steps so far. Reward: the action as the environment gets it. Its state holds
    what states hold: a key, a Python number at first, a dictionary.
    """

    default_params = Params()

    def __init__(self, observations=None, actions=None, limit=None, final=0.0):
        self.observations = observations or spaces.Box(0, 9, (1,), jnp.int32)
        self.actions = actions or spaces.Box(-1.0, 1.0, (3,))
        self.limit, self.final = limit, final

    def observation_space(self, params):
        return self.observations

    def action_space(self, params):
        return self.actions

    def reset(self, key, params):
        return jnp.zeros(1, jnp.int32), {"time": 0, "key": key}

    def step(self, key, state, action, params):
        time = state["time"] + 1
        done = time >= (self.limit or params.max_steps_in_episode)
        final = time + jnp.where(done, self.final, 0)[None]
        obs = jnp.where(done, 0, time)[None]
        state = {"time": jnp.where(done, 0, time), "key": key}
        reward = jnp.dot(action, jnp.array([1.0, 10, 100]))
        return obs, state, reward, False, done, {"final_observation": final}


def test_own_environment():
    env = make_env(Own())
    assert (env.name, env.obs_shape, env.max_episode_steps) == ("Own", (1,), 3)
    assert env.action_space == Box((3,), -1, 1)
    act = lambda obs, key: (jnp.ones((2, 3)), {"log_prob": jnp.zeros(2)})  # noqa: E731
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


LOW, HIGH = jnp.array([50.0, -60.0, -1.0]), jnp.array([100.0, -10.0, 1.0])


def test_a_finite_box_is_scaled_to_the_learner_and_back():
    """The environment gets actions within its bounds, the rollout keeps the learner's own."""
    env = make_env(Own(actions=spaces.Box(LOW, HIGH, (3,))))
    assert env.action_space == Box((3,), -1, 1)
    wish = jnp.array([[0.0] * 3, [1.0] * 3, [-1.0] * 3, [9.0] * 3, [0.5, -0.5, 0.3]])
    wanted = jnp.array([[75, -35, 0], HIGH, LOW, HIGH, [87.5, -47.5, 0.3]])
    act = lambda obs, key: (wish, {"log_prob": jnp.zeros(5)})  # noqa: E731
    _, rollout, _ = unroll(act, env, reset(env, 5, KEY), KEY, 1)
    np.testing.assert_array_equal(rollout.action[0], wish)
    np.testing.assert_array_equal(env.to_env_action(wish), wanted)
    np.testing.assert_allclose(rollout.reward[0], wanted @ jnp.array([1.0, 10, 100]), rtol=1e-6)


def test_what_has_no_two_finite_bounds_is_not_scaled():
    bounds = spaces.Box(np.array([-np.inf, -2.0, 4.0]), np.array([np.inf, np.inf, 6.0]), (3,))
    env = make_env(Own(actions=bounds))
    assert env.action_space == Box((3,), [-np.inf, -2, -1], [np.inf, np.inf, 1])
    got = env.to_env_action(jnp.array([[7.0, 7.0, 0.0], [-7.0, -7.0, -7.0]]))
    assert got.tolist() == [[7, 7, 5], [-7, -2, 4]]


def test_the_range_of_observations_that_are_integers():
    assert make_env("CartPole-v1").obs_range is None
    assert make_env("Breakout-MinAtar").obs_range == (0, 1)
    assert make_env("FourRooms-misc").obs_range == (1, 11)  # declared float32, given int32
    assert make_env("Catch-bsuite").obs_range == (0, 1)  # the other way round
    assert make_env("FrozenLake-misc").obs_range == (0, 1)  # one-hot
    assert make_env(Own()).obs_range == (0, 9)


def test_a_nan_in_a_final_observation_stays_there():
    """Not in the observation after it, nor in the state."""
    env = make_env(Own(final=jnp.nan))
    act = lambda obs, key: (jnp.zeros((2, 3)), {"log_prob": jnp.zeros(2)})  # noqa: E731
    actors, rollout, statistics = unroll(act, env, reset(env, 2, KEY), KEY, 4)
    assert jnp.isnan(rollout.next_obs[:, 0, 0]).tolist() == [False, False, True, False]
    for obs in (rollout.obs, actors.obs):
        assert jnp.all(jnp.isfinite(obs))
    assert statistics.ended == 2


class Moves(NamedTuple):
    """Replaces values of Own's; with it every mistake below is one line."""

    reset: Any = None
    step: Any = None


def moved(own, moves):
    reset, step = own.reset, own.step
    if moves.reset:
        own.reset = lambda key, params: moves.reset(*reset(key, params))
    if moves.step:
        own.step = lambda *args: moves.step(*step(*args))
    return own


PARTS = {"a": spaces.Discrete(2), "b": spaces.Discrete(3)}


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        (Moves(reset=lambda o, s: o), r"Own.reset gives a \w+, wanted \(obs, state\)"),
        (Moves(step=lambda o, s, r, e, t, i: (o, s, r, e, i)), "Own.step gives 5 values, wanted"),
        (Moves(step=lambda o, s, r, e, t, i: (o, s, r, e, t, {})), "no info.'final_observation'"),
        (Moves(step=lambda o, s, r, *x: (o, s, r[None], *x)), r"reward has shape \(1,\), wanted"),
        (Moves(step=lambda o, s, r, e, *x: (o, s, r, 0, *x)), "terminated is int32, wanted bool"),
        (
            Moves(step=lambda o, s, r, e, t, i: (o, s, r, e, t * 1.0, i)),
            "truncated is float32, wanted bool",
        ),
        (
            Moves(step=lambda o, s, *x: (o, s | {"time": 1.0 * s["time"]}, *x)),
            r"'time'\] is int32\[\] after reset and float32\[\] after step",
        ),
        (
            Moves(step=lambda o, s, *x: (o, {"time": s["time"]}, *x)),
            r"'key'\] is key<fry>\[\] after reset and None after step",
        ),
        (Moves(reset=lambda o, s: (jnp.zeros(3), s)), r"Own.reset: .* shape \(3,\), wanted \(1,\)"),
        (
            Moves(step=lambda o, *x: (o[None], *x)),
            r"Own.step: .* shape \(1, 1\), wanted \(1,\)",
        ),
    ],
)
def test_what_an_environment_of_ones_own_owes_is_told(moves, message):
    with pytest.raises(TypeError, match=message):
        make_env(moved(Own(), moves))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Own(observations=spaces.Dict(PARTS)), "an observation is a .* without 'a', wanted a dict"),
        (
            Own(observations=gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)] * 2)),
            "an observation is no tuple of 2",
        ),
        (Own(observations=gymnasium.spaces.Text(3)), "Own has observations of Text; Box"),
        (Own(actions=spaces.Dict(PARTS)), "Own has actions of Dict; Discrete"),
        (Own(actions=spaces.Tuple(tuple(PARTS.values()))), "Own has actions of Tuple"),
        (object(), "object has no attribute 'reset'; make_env takes a name"),
        (None, "NoneType has no attribute 'reset'"),
    ],
)
def test_unsupported_spaces_and_objects(own, message):
    with pytest.raises(TypeError, match=message):
        make_env(own)


def walk(goes_on=False, keeps_time=False, limit=4, told=4):
    """A record of a user's: a walk until ``limit``, whose mistakes are the arguments."""

    def reset(key):
        place = jax.random.uniform(key)
        return place[None], (place, jnp.zeros((), jnp.int32))

    def step(state, action, key, fresh=None):
        place, time = state[0] + 1, state[1] + 1
        truncated = time % limit == 0 if goes_on == "alive" else time >= limit
        state, obs = (place, time), place[None]
        if not goes_on:
            new = reset(key) if fresh is None else fresh
            obs = jnp.where(truncated, new[0], obs)
            after = jnp.where(truncated, 0, time)
            state = jnp.where(truncated, new[1][0], place), time if keeps_time else after
        return Step(obs, place[None], place, jnp.array(False), truncated), state

    return Env("walk", reset, step, Discrete(2), (1,), told)


def test_a_record_of_ones_own_is_checked_once(monkeypatch):
    env = walk()
    assert make_env(env) is env
    monkeypatch.setattr(make, "check_record", lambda env: pytest.fail("checked again"))
    assert make_env(env) is env


def test_a_record_whose_fields_were_replaced_is_checked_again():
    env = make_env(walk())
    with pytest.raises(TypeError, match=r"walk.reset: obs has shape \(1,\), wanted \(7,\)"):
        make_env(env._replace(obs_shape=(7,)))
    with pytest.raises(ValueError, match="an episode took more than 3 steps"):
        make_env(env._replace(max_episode_steps=3))


class Walk(equinox.Module):
    """Methods of a module with arrays have no hash."""

    pace: jax.Array

    def reset(self, key):
        return walk().reset(key)

    def step(self, state, action, key, fresh=None):
        return walk().step(state, action, key, fresh)


def test_methods_of_a_module_with_arrays_are_taken():
    module = Walk(jnp.ones(2))
    env = walk()._replace(reset=module.reset, step=module.step)
    assert make_env(env) is env


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (walk(goes_on=True), r"walk.step goes on from the state in which an episode ended"),
        (walk(goes_on="alive"), "walk.step goes on from the state"),
        (walk(keeps_time=True), r"walk.step: where an episode ends, \['state'\]\[1\] must be"),
        (walk(told=3), "walk: an episode took more than 3 steps, its time limit"),
    ],
)
def test_episodes_that_do_not_begin_again_or_do_not_end_are_told(env, message):
    with pytest.raises(ValueError, match=message):
        make_env(env)


def corridor(keeps=(), told="after", line=False, forgets=None, own=False):
    """Ten cells, or a line, with ends and cuts; what ``keeps`` names is not reset, nor anything at
    what ``forgets`` names; its ``own`` resets take no look at those drawn for it.
    """

    def see(state):
        return state[0][None] if line else jax.nn.one_hot(state[0], 10)

    def reset(key):
        where = jax.random.uniform(key) if line else jax.random.randint(key, (), 0, 9)
        state = where, jnp.int32(0)
        return see(state), state

    def step(state, action, key, fresh=None):
        low, high = (-2.0, 2.0) if line else (0, 9)
        place = jnp.clip(state[0] + (2 * action - 1) * (0.3 if line else 1), low, high)
        terminated = (place == high) | (line & (place == low))
        truncated = ~terminated & (state[1] + 1 >= 30)
        ended = {None: terminated | truncated, "ends": truncated, "cuts": terminated}[forgets]
        after = place, state[1] + 1
        fresh = reset(key) if fresh is None or own else fresh
        begun = tuple(
            jnp.where(ended & (part not in keeps), new, old)
            for part, new, old in zip(("place", "time"), fresh[1], after, strict=True)
        )
        obs = jnp.where(ended, fresh[0], see(after)) if "but seen" in keeps else see(begun)
        next_obs = see(after) if told == "after" else obs
        return Step(obs, next_obs, jnp.float32(0), terminated, truncated), begun

    return Env("corridor", reset, step, Discrete(2), (1,) if line else (10,), 30)


@pytest.mark.parametrize("line", [False, True])
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"keeps": ("place",)}, r"\['obs'\], \['state'\]\[0\] must be what fresh has"),
        ({"keeps": ("place", "but seen")}, r"ends, \['state'\]\[0\] must be what fresh has"),
        ({"keeps": ("time",)}, r"ends, \['state'\]\[1\] must be what fresh has"),
        ({"keeps": ("place", "time")}, "goes on from the state in which an episode ended"),
        ({"forgets": "ends"}, "must be what fresh has|goes on from the state"),
        ({"forgets": "cuts"}, "must be what fresh has|goes on from the state"),
        ({"told": "obs"}, "takes next_obs from the episode that begins"),
        ({"own": True}, 'must be what fresh has.* says so by resets="own"'),
    ],
)
def test_what_is_not_begun_anew_after_an_end_or_a_cut_is_told(mistake, message, line):
    with pytest.raises(ValueError, match=message):
        make_env(corridor(**mistake, line=line))


def test_a_bandit_needs_no_observation_of_where_it_led_to():
    """Every step terminates, and shows the next context twice."""

    def reset(key):
        context = jax.random.normal(key, (2,))
        return context, context

    def step(state, action, key, fresh=None):
        obs, after = reset(key) if fresh is None else fresh
        return Step(obs, obs, state[action], jnp.array(True), jnp.array(False)), after

    env = Env("bandit", reset, step, Discrete(2), (2,), 1)
    assert make_env(env) is env


@pytest.mark.parametrize("line", [False, True])
def test_who_resets_as_fresh_or_says_that_it_does_not_is_taken(line):
    for env in (corridor(line=line), corridor(line=line, own=True)._replace(resets="own")):
        assert make_env(env) is env


def test_a_step_of_ones_own_has_to_obey_the_time_limit_that_is_given():
    """Own's step has a limit of its own, which a field of the parameters does not change."""
    with pytest.raises(ValueError, match=r"more than 2 steps, its time limit .*max_steps_in_ep"):
        make_env(Own(limit=3), max_steps_in_episode=2)
    assert make_env(Own(), max_steps_in_episode=2).max_episode_steps == 2


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (walk()._replace(obs_shape=(2,)), r"walk.reset: obs has shape \(1,\), wanted \(2,\)"),
        (
            walk()._replace(action_space=gymnasium.spaces.Discrete(2)),
            "wanted a Discrete, MultiDiscrete or Box of",
        ),
        (walk()._replace(step=lambda *args: (0, 1, 2)), r"gives 3 values, wanted \(Step, state"),
        (walk()._replace(step=lambda *args: (0, 1)), "first, wanted a Step"),
        (walk()._replace(obs_shape=[1]), r"walk.obs_shape is \[1\], wanted a tuple of integers"),
        (walk()._replace(max_episode_steps=4.0), "max_episode_steps=4.0 is no integer; write 4"),
        (
            walk()._replace(action_space=Box((2,), [-1, 0], [1, 2])),
            r"walk.action_space is Box.*wanted \[-1, 1\] where it is finite: give Box",
        ),
    ],
)
def test_what_a_record_owes_is_told(env, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_env(env)


def test_a_box_that_is_bounded_on_one_side_is_taken():
    space = Box((2,), [-1, 0], [1, np.inf])
    assert make_env(walk()._replace(action_space=space)).action_space == space


def test_what_makes_an_environment_is_called():
    assert make_env(Own, limit=2, max_steps_in_episode=2).max_episode_steps == 2
    assert make_env(walk, limit=3, told=3).max_episode_steps == 3
    assert make_env(functools.partial(walk, limit=9), limit=3, told=3).max_episode_steps == 3
    assert make_env(lambda **options: walk(**options), limit=3, told=3).max_episode_steps == 3
    with pytest.raises(TypeError, match=r"walk is an Env record, which has no param.*'x': 1"):
        make_env(walk(), x=1)


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
        actions = rng.uniform(-1.5, 1.5, (n, 1)).astype(np.float32)  # beyond the bounds too

    def step(fields, action, key):
        state = env.reset(key)[1].replace(**fields)
        return env.step(state, action, key)[0]

    keys = jax.random.split(jax.random.key(0), n)
    got = jax.jit(jax.vmap(step))(jax.tree.map(jnp.asarray, start), jnp.asarray(actions), keys)
    for i in range(n):
        oracle.state = np.array([float(x[i]) for x in start.values()])
        oracle.steps_beyond_terminated = None
        obs, reward, terminated, _, _ = oracle.step(env.to_env_action(actions[i]))
        np.testing.assert_allclose(got.next_obs[i], obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got.reward[i], reward, rtol=1e-5, atol=1e-5)
        assert got.terminated[i] == terminated
    if name != "Pendulum-v1":
        assert 0 < got.terminated.sum() < n
