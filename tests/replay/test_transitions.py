"""Transitions in a replay buffer: what comes back is what a Python list of whole ones says."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import purerl
from purerl.host.resources import tree_bytes
from purerl.records import Transition
from purerl.replay.buffers import Sample, prioritized, uniform
from purerl.replay.packed import unpack
from purerl.replay.transitions import replay_memory

GAMMA = 0.9


class Actors:
    """N environments: observations follow one another, and every number occurs once."""

    def __init__(self, num_envs, interval=1, terminated=0.1, truncated=0.2, seed=0):
        self.rng, self.num_envs, self.interval = np.random.default_rng(seed), num_envs, interval
        self.chances = terminated, truncated
        self.numbers = 0
        self.obs = self.draw()
        self.since = np.full(num_envs, interval)  # steps since the last truncation

    def draw(self):
        self.numbers += self.num_envs
        return np.arange(self.numbers - self.num_envs, self.numbers, dtype=np.float32) + 1

    def step(self):
        self.since += 1
        terminated, truncated = (
            self.rng.uniform(size=self.num_envs) < chance for chance in self.chances
        )
        truncated &= self.since >= self.interval
        self.since[truncated] = 0
        obs, next_obs, fresh = self.obs, self.draw(), self.draw()
        self.obs = np.where(terminated | truncated, fresh, next_obs)
        action, reward = obs.astype(np.int32), self.rng.normal(size=self.num_envs)
        return Transition(obs, action, reward, terminated, truncated, next_obs)


def stack(steps):
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(i) for i in x]), *steps)


def item(dtype=jnp.float32):
    real, no = jnp.zeros(()), jnp.array(False)
    return Transition(jnp.zeros((), dtype), jnp.int32(0), real, no, no, jnp.zeros((), dtype))


def by_hand(steps, t, env, n_step):
    """Reward, discount and next_obs of step t, one after another."""
    reward, discount = 0.0, 1.0
    for step in steps[t : t + n_step]:
        reward += discount * step.reward[env]
        discount *= GAMMA
        if step.terminated[env] or step.truncated[env]:
            break
    return reward, 0.0 if step.terminated[env] else discount, step.next_obs[env]


COMPILED = {}


def compiled(capacity, num_envs, interval, n_step):
    """The functions of each memory are compiled once."""
    case = capacity, num_envs, interval, n_step
    if case not in COMPILED:
        memory = replay_memory(uniform(capacity), num_envs, interval)
        batch = jax.jit(lambda s, x: memory.batch(s, x, gamma=GAMMA, n_step=n_step))
        COMPILED[case] = memory._replace(add=jax.jit(memory.add), batch=batch)
    return COMPILED[case]


def assert_is_the_list(memory, state, steps, capacity, num_envs, n_step):
    """Every place of the buffer against the transitions that were added."""
    count = len(steps) * num_envs
    size = min(capacity, count)
    # Always as many indices, so that nothing is compiled twice.
    index = jnp.arange(capacity) % size
    batch = jax.tree.map(np.asarray, memory.batch(state, Sample(index, jnp.ones(capacity))))
    newest_first = count - 1 - (int(state.replay.cursor.next) - 1 - np.arange(size)) % capacity
    for i, number in enumerate(newest_first):
        t, env = divmod(int(number), num_envs)
        reward, discount, next_obs = by_hand(steps, t, env, n_step)
        np.testing.assert_allclose(batch.reward[i], reward, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch.discount[i], discount, rtol=1e-5)
        assert batch.obs[i] == batch.action[i] == steps[t].obs[env]
        if discount:  # after termination any observation will do
            assert batch.next_obs[i] == next_obs
        assert np.isfinite(batch.next_obs[i])


SHAPES = [  # capacity, environments, interval
    (7, 1, 1), (12, 3, 1), (13, 3, 1), (13, 3, 2), (12, 3, 4), (20, 3, 3), (11, 2, 100), (3, 3, 2),
]  # fmt: skip


class Memory(RuleBasedStateMachine):
    """Steps added one or several at a time, over the end of the ring, many times."""

    @initialize(
        shape=st.sampled_from(SHAPES),
        n_step=st.sampled_from([1, 3]),
        seed=st.integers(0, 2**31 - 1),
    )
    def start(self, shape, n_step, seed):
        self.capacity, self.num_envs, interval = shape
        self.n_step = n_step = min(n_step, self.capacity // self.num_envs)  # more is refused
        self.memory = compiled(*shape, n_step)
        self.state = self.memory.init(item())
        self.actors, self.steps = Actors(self.num_envs, interval, 0.1, 0.4, seed), []

    @rule(length=st.sampled_from([1, 1, 2, 4]))
    def add(self, length):
        length = min(length, self.capacity // self.num_envs)
        steps = [self.actors.step() for _ in range(length)]
        self.state = self.memory.add(self.state, stack(steps))
        self.steps += steps

    @precondition(lambda self: self.steps)
    @rule()
    def compare(self):
        assert_is_the_list(
            self.memory, self.state, self.steps, self.capacity, self.num_envs, self.n_step
        )


TestMemory = Memory.TestCase
TestMemory.settings = hypothesis.settings(
    max_examples=40,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


@pytest.mark.parametrize("n_step", [1, 2, 5])
@pytest.mark.parametrize(
    ("capacity", "num_envs", "interval"), [(40, 4, 1), (41, 3, 6), (120, 3, 7)]
)
def test_long_runs_are_the_list(capacity, num_envs, interval, n_step):
    """After every step: round the ring, and round the places of the last observations."""
    memory = compiled(capacity, num_envs, interval, n_step)
    state, steps = memory.init(item()), []
    actors = Actors(num_envs, interval, 0.05, 0.5)
    for t in range(60):
        steps.append(actors.step())
        state = memory.add(state, stack(steps[-1:]))
        if t % 7 == 0 or t > 55:
            assert_is_the_list(memory, state, steps, capacity, num_envs, n_step)
    assert any(step.truncated.any() for step in steps)


def test_returns_of_many_steps_are_the_list():
    """Thirty steps and more that are written out took XLA minutes."""
    memory = compiled(120, 2, 1, 48)
    state, steps = memory.init(item()), []
    actors = Actors(2, 1, 0.01, 0.5)
    for _ in range(70):
        steps.append(actors.step())
        state = memory.add(state, stack(steps[-1:]))
    assert_is_the_list(memory, state, steps, 120, 2, 48)


def test_each_interval_may_hold_a_truncation():
    """The most that the interval allows: all environments are cut off every four steps."""
    memory = compiled(24, 2, 4, 1)
    state, steps, actors = memory.init(item()), [], Actors(2, 4, 0.0, 1.0)
    for _ in range(40):
        steps.append(actors.step())
        state = memory.add(state, stack(steps[-1:]))
        assert_is_the_list(memory, state, steps, 24, 2, 1)
    assert [step.truncated.all() for step in steps[:9]] == [True] + 2 * [False, False, False, True]


def test_seeds_that_end_at_different_steps_are_each_alone():
    memory = replay_memory(uniform(12), 3, 2)
    seeds = [Actors(3, 2, 0.1, 0.4, seed) for seed in range(3)]
    runs = [[actors.step() for _ in range(9)] for actors in seeds]
    index = Sample(jnp.arange(12), jnp.ones(12))

    def play(steps):
        state = memory.init(item())
        for i in range(0, 9, 3):
            state = memory.add(state, jax.tree.map(lambda x, i=i: x[i : i + 3], steps))
        return memory.batch(state, index, gamma=GAMMA, n_step=2)

    many = jax.jit(purerl.vectorize(play))(stack([stack(steps) for steps in runs]))
    for i, steps in enumerate(runs):
        one = jax.jit(play)(stack(steps))
        np.testing.assert_array_equal(many.next_obs[i], one.next_obs)
        np.testing.assert_allclose(many.reward[i], one.reward, rtol=1e-6)


def test_what_the_flags_do_to_a_bootstrap():
    for terminated in (False, True):
        for truncated in (False, True):
            flags = jnp.array([[terminated]]), jnp.array([[truncated]])
            one = jnp.ones((1, 1))
            step = Transition(one, one, one, *flags, 7 * one)
            after = Transition(one * 7, one, one, one > 2, one > 2, 8 * one)
            memory = replay_memory(uniform(4))
            state = memory.add(memory.add(memory.init(item()), step), after)
            batch = memory.batch(state, Sample(jnp.array([0]), jnp.ones(1)), gamma=0.5, n_step=2)
            got = batch.reward[0], batch.discount[0], batch.next_obs[0]
            if terminated:
                assert got[:2] == (1.0, 0.0)
            elif truncated:
                assert got == (1.0, 0.5, 7.0)
            else:
                assert got == (1.5, 0.25, 8.0)


@pytest.mark.parametrize("dtype", ["uint8", "bool"])
def test_observations_held_as_bytes_come_back_as_numbers(dtype):
    obs = jnp.array([[[0.0, 1.0]], [[1.0, 1.0]]])
    no = jnp.zeros((2, 1), bool)
    data = Transition(obs, no, obs[..., 0], no, ~no, 1 - obs)
    memory, byte = replay_memory(uniform(2)), jnp.zeros(2, dtype)
    state = memory.init(jax.tree.map(lambda x: x[0, 0], data)._replace(obs=byte, next_obs=byte))
    state = memory.add(state, data)
    assert unpack(state.replay.items).obs.dtype == state.last_obs.dtype == jnp.dtype(dtype)
    batch = memory.batch(state, Sample(jnp.array([0, 1]), jnp.ones(2)), gamma=1.0)
    np.testing.assert_array_equal(batch.obs, obs[:, 0])
    np.testing.assert_array_equal(batch.next_obs, 1 - obs[:, 0])
    assert batch.obs.dtype == batch.next_obs.dtype == jnp.float32


def test_sampling_and_priorities_are_the_buffers():
    replay = prioritized(8, alpha=1.0, beta=1.0, eps=0.0)
    memory, actors = replay_memory(replay, 2), Actors(2)
    state = memory.add(memory.init(item()), stack([actors.step() for _ in range(4)]))
    state = memory.update_priorities(state, jnp.arange(8), jnp.arange(1.0, 9.0))
    assert state.replay.tree.leaves.tolist() == list(range(1, 9))
    sample = memory.sample(state, jax.random.key(0), 6, progress=0.5)
    wanted = replay.sample(state.replay, jax.random.key(0), 6, progress=0.5)
    np.testing.assert_array_equal(sample.indices, wanted.indices)
    np.testing.assert_array_equal(sample.weight, wanted.weight)
    batch = memory.batch(state, sample, gamma=0.5)
    np.testing.assert_array_equal(batch.weight, sample.weight)
    np.testing.assert_array_equal(batch.indices, sample.indices)


def test_an_observation_takes_memory_once():
    """A time limit of 500 adds 1/500 and a few rows; without one each has a second."""
    image = item()._replace(obs=jnp.zeros(100), next_obs=jnp.zeros(100))
    once = 100_000 * (100 + 2) * 4 + 2 * 100_000  # and action, reward, flags
    for interval, more in ((500, 1 / 500), (1, 1.0)):
        memory = replay_memory(uniform(100_000), 10, interval)
        needed = tree_bytes(jax.eval_shape(memory.init, image))
        assert needed == pytest.approx(once + more * 100_000 * 400, abs=30 * 400 + 100)


@pytest.mark.parametrize("name", ["num_envs", "interval"])
def test_bad_numbers(name):
    with pytest.raises(ValueError, match=f"replay_memory: {name}=0 is out of range"):
        replay_memory(uniform(4), **{name: 0})


def test_returns_longer_than_what_is_held_are_refused():
    memory = replay_memory(uniform(16), num_envs=2)
    state = jax.eval_shape(memory.init, item())
    sample = Sample(jnp.zeros(3, jnp.int32), jnp.ones(3))
    batch = lambda n: jax.eval_shape(lambda s: memory.batch(s, sample, gamma=0.9, n_step=n), state)  # noqa: E731
    assert batch(8).reward.shape == (3,)
    with pytest.raises(ValueError, match=r"n_step=9, .* holds 8 steps each; .* at least 18"):
        batch(9)


def test_steps_of_another_number_of_environments():
    memory = replay_memory(uniform(8), 2)
    with pytest.raises(ValueError, match=r"add got steps of 3 environments, wanted .* N = 2"):
        memory.add(memory.init(item()), stack([Actors(3).step()]))
