"""Small environments whose values and best actions are known, to gymnax's interface.

A :class:`Table` is a deterministic environment whose states follow one another. Several tables in
one (:func:`union`) are learned in one run. Everything is made in JAX's current default float type.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from purerl import Discrete, Env, make_env
from purerl.envs.record import Step

GAMMA = 0.8
LIMIT = 5  # the time limit of a table


@dataclasses.dataclass(frozen=True)
class Table:
    """States 0 ... S-1; the action only changes the reward."""

    reward: list[list[float]]  # [S][2]
    next: list[int]  # [S] the state that follows, also where the episode ends
    value: list[float]  # [S] the known values at GAMMA
    starts: list[int] = dataclasses.field(default_factory=lambda: [0])
    terminated: list[bool] | None = None
    truncated: list[bool] | None = None  # besides the time limit


def _both(rewards):
    return [[r, r] for r in rewards]


def _geometric(n):
    return sum(GAMMA**k for k in range(n))


FOREVER = 1 / (1 - GAMMA)
_ROUND = 1 / (1 - GAMMA**3)

TABLES = {
    # One step of reward 1.
    "constant": Table(_both([1.0]), [0], [1.0], terminated=[True]),
    # Reward 1 at the second step only.
    "discount": Table(_both([0.0, 1.0]), [1, 1], [GAMMA, 1.0], terminated=[False, True]),
    # One step; the reward is what is seen.
    "observation": Table(
        _both([-1.0, 2.0]), [0, 1], [-1.0, 2.0], starts=[0, 1], terminated=[True, True]
    ),
    # One step; action 1 is the good one. The value is that of the best policy.
    "action": Table([[-1.0, 1.0]], [0], [1.0], terminated=[True]),
    # Reward 1 for ever, only cut off.
    "only_truncates": Table(_both([1.0]), [0], [FOREVER]),
    # Reward 1, three steps. What follows the last step is worth something, but is never reached.
    "only_terminates": Table(
        _both([1.0] * 3),
        [1, 2, 0],
        [_geometric(3), _geometric(2), 1.0],
        terminated=[False, False, True],
    ),
    # Both flags at the same step: as if terminated.
    "both_flags": Table(_both([1.0]), [0], [1.0], terminated=[True], truncated=[True]),
    # Round a circle for ever, reward 1 in state 0, cut off where the next start is elsewhere:
    # the value of the observation after the reset is another than that of the last one.
    "circle": Table(
        _both([1.0, 0.0, 0.0]),
        [1, 2, 0],
        [_ROUND, GAMMA**2 * _ROUND, GAMMA * _ROUND],
        starts=[0, 0, 0, 1],
    ),
}


def union(tables):
    """One table of several, and the states of each: ``(Table, {name: slice})``."""
    joint, where, offset = Table([], [], [], starts=[], terminated=[], truncated=[]), {}, 0
    for name, table in tables.items():
        size = len(table.next)
        joint.reward.extend(table.reward)
        joint.next.extend(offset + s for s in table.next)
        joint.value.extend(table.value)
        joint.starts.extend(offset + s for s in table.starts)
        joint.terminated.extend(table.terminated or [False] * size)
        joint.truncated.extend(table.truncated or [False] * size)
        where[name] = slice(offset, offset + size)
        offset += size
    return joint, where


@struct.dataclass
class State(environment.EnvState):
    time: jax.Array
    place: jax.Array  # which state of a table; or a number drawn at the reset
    ended: jax.Array  # bool: the step before was the last by the table


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = LIMIT


class _Probe(environment.Environment[State, Params]):
    @property
    def default_params(self):
        return Params()

    def action_space(self, params):
        return spaces.Discrete(2)

    def is_truncated(self, state, params):
        return (state.time >= params.max_steps_in_episode) | state.ended


class TableEnv(_Probe):
    """A :class:`Table` as an environment; observations are one-hot."""

    def __init__(self, table):
        self.table = union({"only": table})[0]

    def observation_space(self, params):
        return spaces.Box(0, 1, (len(self.table.next),))

    def get_obs(self, state, params=None, key=None):
        return jax.nn.one_hot(state.place, len(self.table.next), dtype=jnp.result_type(float))

    def reset_env(self, key, params):
        place = jax.random.choice(key, jnp.array(self.table.starts, jnp.int32))
        state = State(time=jnp.int32(0), place=place, ended=jnp.array(False))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        here = state.place
        state = State(
            time=state.time + 1,
            place=jnp.array(self.table.next, jnp.int32)[here],
            ended=jnp.array(self.table.truncated)[here],
        )
        reward = jnp.array(self.table.reward, jnp.result_type(float))[here, action]
        return self.get_obs(state), state, reward, jnp.array(self.table.terminated)[here], {}


class NoisyEnv(_Probe):
    """Everything is random: the observation, the reward, the length. For loops, not for values.

    With ``box`` the actions are real and the reward is ``-(action - 0.5)^2``, plus the noise.
    With ``nan_below`` > 0 an episode whose first draw is below it has NaN rewards.
    """

    def __init__(self, box=False, nan_below=0.0, noise=1.0):
        self.box, self.nan_below, self.noise = box, nan_below, noise

    def action_space(self, params):
        return spaces.Box(-2.0, 2.0, (2,)) if self.box else spaces.Discrete(3)

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (3,))

    def reset_env(self, key, params):
        draw_key, obs_key = jax.random.split(key)
        draw = jax.random.uniform(draw_key)
        state = State(time=jnp.int32(0), place=draw, ended=jnp.array(False))
        return jax.random.normal(obs_key, (3,)), state

    def step_env(self, key, state, action, params):
        obs_key, reward_key, end_key = jax.random.split(key, 3)
        reward = self.noise * jax.random.normal(reward_key)
        if self.box:
            reward = reward - jnp.sum(jnp.square(action - 0.5))
        reward = jnp.where(state.place < self.nan_below, jnp.nan, reward)
        state = State(time=state.time + 1, place=state.place, ended=state.ended)
        terminated = jax.random.uniform(end_key) < 0.2
        return 2 + jax.random.normal(obs_key, (3,)), state, reward, terminated, {}


class BoxEnv(_Probe):
    """One step; the best action is (0.5, 0.5), whatever is seen, and its value is 0."""

    def action_space(self, params):
        return spaces.Box(-2.0, 2.0, (2,))

    def observation_space(self, params):
        return spaces.Box(-1.0, 1.0, (1,))

    def reset_env(self, key, params):
        state = State(time=jnp.int32(0), place=jnp.int32(0), ended=jnp.array(False))
        return jnp.ones(1), state

    def step_env(self, key, state, action, params):
        state = State(time=state.time + 1, place=state.place, ended=state.ended)
        reward = -jnp.sum(jnp.square(action - 0.5))
        return jnp.ones(1), state, reward, jnp.array(True), {}


def all_tables():
    """``(env, {name: states}, values [S])`` of all tables in one."""
    joint, where = union(TABLES)
    return make_env(TableEnv(joint)), where, np.array(joint.value)


def recall():
    """A bit is seen at the first step, and is the reward of each later one, whatever is done.

    Each step is truncated with probability 1/2, and nothing ever terminates. With gamma = 1/2 the
    value is the bit at the first step, and twice the bit later, where nothing tells it.
    """

    def observe(time, bit):
        real = jnp.result_type(float)
        return jnp.where(time == 0, jnp.stack([jnp.ones((), real), bit]), jnp.zeros(2, real))

    def reset(key):
        bit = jax.random.rademacher(key, (), jnp.result_type(float))
        return observe(0, bit), (jnp.int32(0), bit)

    def step(state, action, key, fresh=None):
        time, bit = state
        reset_key, end_key = jax.random.split(key)
        truncated = jax.random.bernoulli(end_key)
        next_obs = observe(time + 1, bit)
        fresh = reset(reset_key) if fresh is None else fresh
        after = next_obs, (time + 1, bit)
        obs, state = jax.tree.map(lambda x, y: jnp.where(truncated, x, y), fresh, after)
        reward = jnp.where(time == 0, 0.0, bit)
        return Step(obs, next_obs, reward, jnp.array(False), truncated), state

    return Env("recall", reset, step, Discrete(2), (2,), None)
