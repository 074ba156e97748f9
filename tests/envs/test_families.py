"""The families of environments beside gymnax: each against its own package, on scripted actions.

Their packages are optional; what is missing is skipped.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.cli import main
from purerl.envs import families, list_envs, make_env
from purerl.envs.episodes import lenient
from purerl.records import Box, Discrete, MultiDiscrete

KEY = jax.random.key(0)
RAW = jax.random.PRNGKey(0)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Brax System"),  # "not actively being maintained"
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what the packages use
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def needs(family):
    return pytest.importorskip(families.FAMILIES[family].package)


def play(env, actions):
    """One environment through scripted actions: a reset, and steps with leaves ``[T]``."""

    def step(state, action):
        result, state = env.step(state, action, KEY)
        return state, (result, state)

    def run(actions):
        obs, state = env.reset(KEY)
        return (obs, state), jax.lax.scan(step, state, actions)[1]

    return jax.jit(run)(actions)


def alone(own):
    """A package's own environment: its first state, and its step."""
    step = lenient(jax.jit(own.step))
    return lenient(jax.jit(own.reset))(RAW), step


# What is missing, what is unknown.


def test_a_family_that_is_not_installed_names_its_extra(monkeypatch, capsys):
    absent = families.Family("purerl.envs.brax_adapter", "no_such_package", "brax")
    monkeypatch.setitem(families.FAMILIES, "brax", absent)
    message = r"brax need the package no_such_package.*: pip install 'purerl\[brax\]'"
    with pytest.raises(ValueError, match=message):
        make_env("brax:hopper")
    assert main(["train", "ppo_clip", "brax:hopper"]) == 2
    assert "pip install 'purerl[brax]'" in capsys.readouterr().err
    monkeypatch.setattr(families, "list_envs", lambda family: [family])
    assert main(["list"]) == 0
    assert "brax (pip install 'purerl[brax]')" in capsys.readouterr().out


def test_a_family_that_does_not_exist_has_close_matches(capsys):
    with pytest.raises(ValueError, match=r"'brx:hopper': unknown family 'brx'. Did you mean brax"):
        make_env("brx:hopper")
    with pytest.raises(ValueError, match=r"list_envs: unknown family 'brx'. Did you mean brax"):
        list_envs("brx")
    assert main(["train", "ppo_clip", "brx:hopper"]) == 2
    assert "family:name, where the families are gymnax, brax" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("brax:hoper", {}, "unknown environment of brax 'hoper'. Did you mean hopper"),
        ("brax:fast", {"episode_lenght": 9}, "has no parameter .*Did you mean episode_length"),
        ("brax:fast", {"episode_length": 0}, "brax:fast: episode_length=0 is out of range"),
        ("playground:Pendulum", {}, "of playground 'Pendulum'. Did you mean PendulumSwingup"),
        ("playground:CartpoleBalance", {"sim_dtt": 1}, "Did you mean sim_dt"),
        ("playground:Go1Getup", {}, "models of MuJoCo Menagerie, which Playground downloads"),
        ("navix:Empty-5x5", {}, "unknown environment of navix .*Navix-Empty-5x5-v0"),
        ("navix:Navix-Empty-5x5-v0", {"max_step": 9}, "Did you mean max_steps"),
        ("navix:Navix-Empty-5x5-v0", {"observation_fn": "rbg"}, "Did you mean rgb"),
        ("jumanji:Snak-v1", {}, "Did you mean Snake-v1"),
        ("jumanji:Snake-v1", {"time_limits": 9}, "Did you mean time_limit"),
        ("jumanji:Sokoban-v0", {}, "downloads its levels; give it generator="),
        ("craftax:Craftax-Symbolic", {}, "Did you mean Craftax-Symbolic-v1"),
        ("craftax:Craftax-Classic-Symbolic-v1", {"max_steps": 1}, "Did you mean max_timesteps"),
    ],
)
def test_errors_of_names_and_parameters(name, params, message):
    needs(name.partition(":")[0])
    with pytest.raises(ValueError, match=message):
        make_env(name, **params)


def test_gymnax_has_a_family_name_too():
    assert make_env("gymnax:CartPole-v1", max_steps_in_episode=9).max_episode_steps == 9
    assert purerl.make_experiment("ppo_clip", "gymnax:CartPole-v1") == purerl.make_experiment(
        "ppo_clip", "CartPole-v1"
    )
    assert "CartPole-v1" in list_envs("gymnax")


# Each against its own package.


class Stub:
    """Brax's interface: it ends after ``ends`` steps; the reward is the step's number."""

    action_size = 1

    def __init__(self, ends):
        self.ends = ends

    def reset(self, key):
        brax = importlib.import_module("brax.envs")
        zero = jnp.zeros(())
        return brax.State(None, jnp.zeros(1), zero, zero, {}, {"time": zero})

    def step(self, state, action):
        state.info["time"] += 1  # as Brax's own do
        time = state.info["time"]
        done = (time >= self.ends).astype(float)
        return state.replace(obs=time[None], reward=time, done=done)


@pytest.mark.parametrize(
    ("ends", "episode_length", "repeat", "terminated", "truncated", "reward"),
    [
        (3, 9, 1, [0, 0, 1, 0], [0, 0, 0, 0], [1, 2, 3, 1]),
        (9, 3, 1, [0, 0, 0, 0], [0, 0, 1, 0], [1, 2, 3, 1]),
        (3, 3, 1, [0, 0, 1, 0], [0, 0, 1, 0], [1, 2, 3, 1]),  # both: terminated wins
        (3, 9, 2, [0, 1, 0, 1], [0, 0, 0, 0], [3, 3, 3, 3]),  # no step after an end
        (9, 3, 2, [0, 0, 0, 0], [0, 1, 0, 1], [3, 7, 3, 7]),
    ],
)
def test_ends_of_states_with_done(ends, episode_length, repeat, terminated, truncated, reward):
    needs("brax")
    from purerl.envs.episodes import make_physics_record

    env = make_physics_record("stub", Stub(ends), episode_length, repeat)
    assert env.max_episode_steps == env.truncation_interval == -(-episode_length // repeat)
    _, (steps, states) = play(env, jnp.zeros((4, 1)))
    assert steps.terminated.tolist() == [bool(x) for x in terminated]
    assert steps.truncated.tolist() == [bool(x) for x in truncated]
    assert steps.reward.tolist() == reward
    done = steps.terminated | steps.truncated
    np.testing.assert_array_equal(steps.obs[done], 0)
    np.testing.assert_array_equal(steps.obs[~done], steps.next_obs[~done])
    assert np.all(steps.next_obs > 0)
    assert states[0].info["time"].tolist() == steps.obs[:, 0].tolist()


def test_brax_falls_as_by_itself_and_has_its_time_limit_besides():
    needs("brax")
    import brax.envs

    env = make_env("brax:inverted_pendulum", backend="spring", episode_length=1000)
    assert (env.obs_shape, env.action_space) == ((4,), Box((1,), -1, 1))
    assert (env.max_episode_steps, env.resets) == (1000, "due")
    actions = jnp.tile(jnp.array([[1.0], [0.2]]), (15, 1))
    (_, first), (steps, _) = play(env, actions)
    page = env.pictures.html([first])
    assert "https://cdn.jsdelivr.net" in page  # from where it loads its scripts
    own = brax.envs.create("inverted_pendulum", auto_reset=False, backend="spring")
    state, step = alone(own)
    end = int(np.argmax(steps.terminated))
    assert 3 < end < 29
    assert not steps.truncated.any()
    for i in range(end + 1):
        state = step(state, actions[i])
        np.testing.assert_allclose(steps.next_obs[i], state.obs, rtol=1e-4, atol=1e-5)
        assert (bool(state.done), float(state.info["truncation"])) == (i == end, 0.0)
        assert steps.reward[i] == state.reward


def test_playground_is_as_its_own_and_has_a_time_limit_besides():
    needs("playground")
    from mujoco_playground import registry

    env = make_env("playground:PendulumSwingup", episode_length=5)
    assert (env.obs_shape, env.action_space) == ((3,), Box((1,), -1, 1))
    actions = jnp.linspace(-1.0, 1.0, 6)[:, None]
    (obs, first), (steps, _) = play(env, actions)
    assert all(x.size for x in jax.tree.leaves(first))  # of empty arrays XLA loses the sharding
    own = registry.load("PendulumSwingup", config_overrides={"impl": "jax"})
    state, step = alone(own)
    np.testing.assert_allclose(obs, state.obs, rtol=1e-5)
    for i in range(5):
        state = step(state, actions[i])
        np.testing.assert_allclose(steps.next_obs[i], state.obs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(steps.reward[i], state.reward, atol=1e-5)
    assert steps.truncated.tolist() == [False] * 4 + [True, False]
    assert not steps.terminated.any()


@pytest.mark.parametrize("limit", [4, 5, 9])
def test_navix_tells_reaching_the_goal_from_the_time_limit(limit):
    needs("navix")
    import navix

    env = make_env("navix:Navix-Empty-5x5-v0", max_steps=limit)
    assert (env.obs_shape, env.max_episode_steps) == ((5, 5, 3), limit)
    names = [f.__name__ for f in navix.make("Navix-Empty-5x5-v0").action_set]
    assert env.action_space == Discrete(len(names))
    forward, turn = names.index("forward"), names.index("rotate_cw")
    actions = jnp.array([forward, forward, turn, forward, forward, turn])
    (first, _), (steps, _) = play(env, actions)
    last = min(limit, 5)  # the goal is five steps away
    flags = [(i + 1 == 5 <= limit, i + 1 == limit < 5) for i in range(last)]
    assert [*zip(steps.terminated.tolist(), steps.truncated.tolist(), strict=True)][:last] == flags
    assert steps.reward[:last].tolist() == [float(x) for x, _ in flags]
    np.testing.assert_array_equal(steps.obs[last - 1], first)
    own = navix.make("Navix-Empty-5x5-v0", max_steps=limit)
    timestep, step = alone(own)
    for i in range(last):
        timestep = step(timestep, actions[i])
        np.testing.assert_array_equal(steps.next_obs[i], timestep.observation)
        assert (bool(timestep.is_termination()), bool(timestep.is_truncation())) == flags[i]


def test_navix_draws_the_picture_that_it_draws_itself():
    """Its cache of tiles is not carried in our state but made again."""
    needs("navix")
    import navix

    name = "Navix-DoorKey-5x5-v0"
    env = make_env(f"navix:{name}", observation_fn="rgb")
    actions = jnp.array([1, 2, 3, 2])
    (obs, _), (steps, states) = play(env, actions)
    assert obs.dtype == jnp.uint8
    (picture,) = env.pictures.frames([jax.tree.map(lambda x: x[-1], states)])
    np.testing.assert_array_equal(picture, steps.obs[-1])
    own = navix.make(name, observation_fn=navix.observations.rgb)
    timestep, step = alone(own)
    np.testing.assert_array_equal(obs, timestep.observation)
    for i, action in enumerate(actions):
        timestep = step(timestep, action)
        np.testing.assert_array_equal(steps.next_obs[i], timestep.observation)


def test_craftax_tells_death_from_the_time_limit():
    needs("craftax")
    env = make_env("craftax:Craftax-Classic-Symbolic-v1", max_timesteps=3)
    assert (env.obs_shape, env.max_episode_steps) == ((1345,), 3)
    assert env.action_space == Discrete(17)
    fresh = jax.jit(env.reset)(KEY)
    step = jax.jit(functools.partial(env.step, fresh=fresh))
    state, flags = fresh[1], []
    for i in range(4):
        result, state = step(state, jnp.int32(0), KEY)
        flags.append((bool(result.terminated), bool(result.truncated)))
        assert int(state.timestep) == (i + 1) % 3
    assert flags == [(False, False), (False, False), (False, True), (False, False)]
    dead, after = step(state.replace(player_health=jnp.int32(0)), jnp.int32(0), KEY)
    assert (bool(dead.terminated), bool(dead.truncated)) == (True, False)
    assert int(after.timestep) == 0


def test_jumanji_is_as_its_own_with_named_observations_and_masks():
    """At its time limit Jumanji's discount is zero: in its own words a termination."""
    needs("jumanji")
    import jumanji

    env = make_env("jumanji:Maze-v0", time_limit=3)
    assert (env.action_space, env.max_episode_steps) == (Discrete(4), 3)
    place = {"row": (1,), "col": (1,)}
    assert env.obs_shape == {
        "agent_position": place,
        "target_position": place,
        "walls": (10, 10),
        "step_count": (1,),
        "action_mask": (4,),
    }
    (obs, _), (steps, _) = play(env, jnp.array([0, 1, 2, 3]))
    assert (obs["action_mask"].dtype, obs["walls"].dtype) == (bool, jnp.float32)
    (state, first), step = alone(jumanji.make("Maze-v0", time_limit=3))
    np.testing.assert_array_equal(obs["walls"], first.observation.walls)
    for i, action in enumerate([0, 1, 2]):
        state, timestep = step(state, action)
        got = jax.tree.map(lambda x, i=i: x[i], steps.next_obs)
        np.testing.assert_array_equal(got["action_mask"], timestep.observation.action_mask)
        assert got["agent_position"]["row"][0] == timestep.observation.agent_position.row
        assert bool(steps.terminated[i]) == (bool(timestep.last()) and timestep.discount == 0)
    assert steps.terminated.tolist() == [False, False, True, False]
    assert not steps.truncated.any()


class Agents:
    """Jumanji's interface, two agents: the state counts; it ends as its arguments say."""

    time_limit = 9

    def __init__(self, spec, mask, discounts=(1, 1)):
        self.action_spec, self.mask, self.discounts = spec, mask, jnp.array(discounts, float)

    def _seen(self):
        from jumanji.environments.routing.connector.types import Observation

        return Observation(grid=jnp.ones((2, 2), jnp.int8), action_mask=self.mask, step_count=7)

    def reset(self, key):
        from jumanji import types

        return jnp.int32(0), types.restart(self._seen(), shape=(2,))

    def step(self, state, action):
        from jumanji import types

        reward = jnp.stack([action.ravel()[0], action.ravel()[-1]]).astype(float)
        step = types.TimeStep(
            step_type=jnp.where(state == 1, types.StepType.LAST, types.StepType.MID),
            reward=reward,
            discount=jnp.where(state == 1, self.discounts, 1.0),
            observation=self._seen(),
        )
        return state + 1, step


@pytest.mark.parametrize(("discounts", "terminated"), [((0, 0), True), ((0, 1), False)])
def test_jumanji_ends_by_truncation_where_a_discount_is_left(discounts, terminated):
    needs("jumanji")
    from jumanji import specs

    from purerl.envs import jumanji_adapter

    two = specs.MultiDiscreteArray(jnp.array([3, 3]))
    mask = jnp.array([[True, False, True], [True, True, False]])
    env = jumanji_adapter.adapt(Agents(two, mask, discounts), {})
    assert env.action_space == MultiDiscrete((3, 3))
    (obs, _), (steps, states) = play(env, jnp.array([[0, 1], [2, 2], [1, 0]]))
    assert obs["action_mask"].tolist() == mask.ravel().tolist()
    assert steps.reward.tolist() == [1, 4, 1]  # the sum over agents
    assert steps.terminated.tolist() == [False, terminated, False]
    assert steps.truncated.tolist() == [False, not terminated, False]
    assert states.tolist() == [1, 0, 1]


def test_actions_of_jumanji():
    needs("jumanji")
    from jumanji import specs

    from purerl.envs import jumanji_adapter

    grid = specs.MultiDiscreteArray(jnp.array([2, 5]))
    env = jumanji_adapter.adapt(Agents(grid, jnp.arange(10).reshape(2, 5) == 7), {})
    assert env.action_space == Discrete(10)  # a mask of combinations
    assert env.to_env_action(jnp.int32(7)).tolist() == [1, 2]
    assert jnp.argmax(env.reset(KEY)[0]["action_mask"]) == 7
    force = specs.BoundedArray((2, 2), float, minimum=0.0, maximum=4.0)
    env = jumanji_adapter.adapt(Agents(force, jnp.ones(1, bool)), {})
    assert env.action_space == Box((4,), -1, 1)
    assert env.to_env_action(jnp.array([-1, 1, 0, 9.0])).tolist() == [[0, 4], [2, 4]]


@pytest.mark.parametrize("family", [x for x in families.FAMILIES if x != "gymnax"])
def test_names_of_a_family_are_listed(family):
    needs(family)
    names = list_envs(family)
    assert len(names) >= 4
    assert all(name.startswith(f"{family}:") for name in names)
    assert len({*names}) == len(names)
