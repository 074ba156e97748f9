"""Policies with a memory in a user's hands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
