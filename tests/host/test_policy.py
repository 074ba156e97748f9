"""Policies in a user's hands: what they remember, and what they are given."""

import collections

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import purerl
from purerl.host.acting import Policy


@pytest.fixture
def policy():
    """Its action is how much position it has seen in this episode."""

    def step(obs, key, memory, start):
        memory = jnp.where(start, 0.0, memory) + obs[:, 0]
        return memory, memory

    env = purerl.make_env("CartPole-v1")
    return Policy(jax.jit(step), env, True, lambda obs: jnp.zeros(len(obs)))


def test_a_policy_remembers_from_call_to_call(policy):
    one = np.ones(4)
    assert [float(policy(one)) for _ in range(3)] == [1, 2, 3]
    policy.reset()
    assert policy(one) == 1


def test_a_policy_forgets_where_an_episode_ended(policy):
    many = np.arange(3.0)[:, None] * np.ones((1, 4))
    policy.reset(np.array([True]))  # nothing to forget yet
    policy(many)
    np.testing.assert_array_equal(policy(many), [0, 2, 4])
    policy.reset(np.array([False, True, False]))
    np.testing.assert_array_equal(policy(many), [0, 1, 6])
    np.testing.assert_array_equal(policy(many), [0, 2, 8])
    policy.reset()
    np.testing.assert_array_equal(policy(many[:2]), [0, 1])


def test_what_a_policy_with_a_memory_refuses(policy):
    policy(np.zeros((3, 4)))
    with pytest.raises(
        ValueError, match=r"obs are of 1 environments, and it remembers 3; call pol"
    ):
        policy(np.zeros(4))
    with pytest.raises(
        ValueError, match=r"ended has shape \(2,\), wanted \(3,\): one for each env"
    ):
        policy.reset([True, False])
    with pytest.raises(TypeError, match=r"which a traced function cannot do; use policy\.step\("):
        jax.jit(policy)(np.zeros((3, 4)))


def test_its_pure_function_can_be_traced(policy):
    obs = np.ones((3, 4), np.float32)

    @jax.jit
    def twice(obs, key):
        memory, start = policy.init_memory(obs), jnp.ones(3, bool)
        _, memory = policy.step(obs, key, memory, start)
        return policy.step(obs, key, memory, ~start)[0]

    np.testing.assert_array_equal(twice(obs, jax.random.key(0)), [2, 2, 2])


class Mixed(gymnasium.Env):
    masks = spaces.Tuple([spaces.MultiBinary(2), spaces.MultiBinary(1)])
    observation_space = spaces.Dict(
        at=spaces.Discrete(5, start=1), level=spaces.Box(0, 9, ()), action_mask=masks
    )
    action_space = spaces.MultiDiscrete([2, 1])


def given(env):
    """A policy of an environment, and the batches that its pure function is given."""
    batches = []

    def step(obs, key):
        batches.append(obs)
        return jnp.zeros(len(jax.tree.leaves(obs)[0]))

    return Policy(step, purerl.make_env(env), True), batches


def test_a_policy_takes_what_the_environment_itself_gives():
    policy, batches = given(Mixed)
    masks = np.array([1, 0], np.int8), np.array([1], np.int8)
    raw = collections.OrderedDict(more=0, level=2.0, at=np.int64(3), action_mask=masks)
    assert policy(raw).shape == ()
    hot, level = [0, 0, 1, 0, 0], [2.0]
    wanted = {"action_mask": [[True, False, True]], "at": [hot], "level": [level]}
    assert jax.tree.map(lambda x: x.tolist(), batches[-1]) == wanted
    own = jax.tree.map(lambda x: x[0], batches[-1])
    assert policy(own).shape == ()
    assert jax.tree.map(lambda x: x.tolist(), batches[-1]) == wanted
    many = {"level": [2.0, 4.0], "at": [3, 1], "action_mask": [np.stack([x, x]) for x in masks]}
    assert policy(many).shape == (2,)
    np.testing.assert_array_equal(batches[-1]["at"], [hot, [1, 0, 0, 0, 0]])
    assert jax.jit(policy)(jax.tree.map(jnp.asarray, dict(raw))).shape == ()
    with pytest.raises(ValueError, match=r"obs.at: .* shape \(1, 1\), wanted \(\).* obs is not of"):
        policy(raw | {"at": np.ones((1, 1), int)})
    with pytest.raises(ValueError, match=r"a dict without 'level', wanted a dict"):
        policy({"at": 3, "action_mask": masks})


def test_whole_numbers_are_states_and_floating_point_ones_are_one_hot():
    policy, batches = given("gymnasium:FrozenLake-v1")
    assert policy(np.arange(16)).shape == (16,)
    np.testing.assert_array_equal(batches[-1], np.eye(16))
    assert policy(np.eye(16)[2]).shape == ()
    np.testing.assert_array_equal(batches[-1], np.eye(16)[2:3])
    assert [policy(2).shape, policy([2]).shape] == [(), (1,)]
    np.testing.assert_array_equal(batches[-1], np.eye(16)[2:3])


def test_lists_of_bytes_are_bytes():
    class Pictures(Mixed):
        observation_space = spaces.Dict(picture=spaces.Box(0, 255, (2,), np.uint8))

    policy, batches = given(Pictures)
    policy({"picture": [7, 255], "more": 0})
    assert batches[-1]["picture"].dtype == np.uint8
    assert batches[-1]["picture"].tolist() == [[7, 255]]
