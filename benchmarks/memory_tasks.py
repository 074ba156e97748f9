"""Tasks that only a policy with a memory solves, for ``learning.py``."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import purerl
from purerl.envs.record import Step


def cartpole_positions() -> purerl.Env:
    """CartPole-v1 without its velocities: position and angle alone are seen."""
    return purerl.observe_only(purerl.make_env("CartPole-v1"), (0, 2))


class TMazeState(NamedTuple):
    """State of :func:`t_maze`."""

    time: jax.Array
    side: jax.Array


def t_maze(length: int = 10) -> purerl.Env:
    """A corridor of some steps, then a junction; the side that is right is seen at the start only.

    At the junction the right action earns 1, the wrong one -1, and the episode ends; before it
    actions do nothing. So the value of the best policy is gamma to the power of the steps to the
    junction, and without a memory no policy earns more than 0 on average.

    Args:
        length: Steps before the junction.
    """

    def see(state: TMazeState) -> jax.Array:
        sign = jnp.where(state.time == 0, 2 * state.side - 1, 0)
        parts = [sign, state.time == length]
        return jnp.stack([jnp.asarray(x, jnp.result_type(float)) for x in parts])

    def reset(key: jax.Array) -> tuple[jax.Array, TMazeState]:
        side = jax.random.bernoulli(key).astype(jnp.int32)
        state = TMazeState(jnp.int32(0), side)
        return see(state), state

    def step(state: TMazeState, action: jax.Array, key: jax.Array, fresh=None):
        at_junction = state.time == length
        reward = jnp.where(at_junction, jnp.where(action == state.side, 1.0, -1.0), 0.0)
        after = state._replace(time=state.time + 1)
        next_obs = see(after)
        fresh = reset(key) if fresh is None else fresh
        obs, new = jax.tree.map(lambda x, y: jnp.where(at_junction, x, y), fresh, (next_obs, after))
        reward = jnp.asarray(reward, jnp.result_type(float))
        return Step(obs, next_obs, reward, at_junction, jnp.array(False)), new

    return purerl.Env("t_maze", reset, step, purerl.Discrete(2), (2,), length + 1)


def memory_chain_10() -> purerl.Env:
    """MemoryChain-bsuite, asked after 10 steps for what its first two observations hold."""
    return purerl.make_env("MemoryChain-bsuite", memory_length=10)


def memory_chain_30() -> purerl.Env:
    """MemoryChain-bsuite, asked after 30 steps for what its first two observations hold."""
    return purerl.make_env("MemoryChain-bsuite", memory_length=30)
