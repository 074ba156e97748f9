"""Rows that are no transitions are as if they were not there, for every algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import Box, Discrete, NetworkConfig, OnPolicyBatch, Rollout, Transition
from purerl.pieces import advantages, normalize, rows
from purerl.pieces.minibatches import minibatches

STEPS, ENVS = 7, 4
TINY = NetworkConfig(hidden_sizes=(5,))
ONE = {"num_minibatches": 1, "num_epochs": 2}  # in one minibatch the order of rows is nothing
NUMBERS = {
    "policy_gradient": {},
    "a2c": {"normalize_advantage": True, "entropy_coef": 0.1},
    "acktr": {"cold_start": 0, "fisher_actions": "taken", "kl_clip": 0.1, "stats_stride": 1},
    "ppo_clip": ONE | {"entropy_coef": 0.1, "normalize_advantage": "minibatch"},
    "ppo_penalty": ONE | {"normalize_advantage": "batch"},
    "trpo": {"critic_minibatches": 1, "cg_tolerance": 1e-10},
    "npg": {"critic_minibatches": 1},
}


def data(space):
    """A rollout in which each environment ends one episode, at a time of its own."""
    rng = np.random.default_rng(0)
    shape, real = (STEPS, ENVS), isinstance(space, Box)
    action = rng.normal(size=(*shape, 2)) if real else rng.integers(3, size=shape)
    ends = np.zeros(shape, bool)
    ends[np.arange(ENVS), np.arange(ENVS)] = True
    terminated = ends & (np.arange(ENVS) % 2 == 0)
    return Rollout(
        obs=rng.normal(size=(*shape, 3)),
        action=action,
        log_prob=rng.normal(size=shape) - 2,
        reward=rng.normal(size=shape),
        terminated=terminated,
        truncated=ends & ~terminated,
        next_obs=rng.normal(size=(*shape, 3)),
        episode_step=np.zeros(shape, np.int32),
    )


def with_gaps(rollout, junk=np.nan):
    """The same with a row after the end of each episode that is none."""
    done = rollout.terminated | rollout.truncated
    places = [np.flatnonzero(column)[0] + 1 for column in done.T]

    def insert(x):
        kind = junk if np.issubdtype(x.dtype, np.floating) else x.dtype.type(1)
        columns = [np.insert(x[:, n], at, kind, axis=0) for n, at in enumerate(places)]
        return np.stack(columns, axis=1)

    valid = insert(np.zeros(done.shape, bool))
    return jax.tree.map(insert, rollout)._replace(valid=~valid)


def close(got, wanted):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10), got, wanted)


@pytest.mark.parametrize("name", NUMBERS)
def test_an_update_is_that_of_the_same_data_without_them(name, x64):
    space = Box((2,), -2.0, 2.0) if name in ("acktr", "trpo", "ppo_penalty") else Discrete(3)
    entry = purerl.ALGORITHMS[name]
    algorithm = entry.build(entry.config(network=TINY, **NUMBERS[name]), space)
    rollout = data(space)
    state = algorithm.init(rollout.obs[0], jax.random.key(0))
    update = jax.jit(algorithm.update)
    wanted = update(state, rollout, jax.random.key(1))
    got = update(state, with_gaps(rollout), jax.random.key(1))
    assert wanted[1]["finite"]
    close(got, wanted)


def test_an_estimator_without_critic_takes_first_episodes(x64):
    config = purerl.PolicyGradientConfig(estimator="return_to_go", network=TINY)
    algorithm = purerl.policy_gradient(config, Discrete(3))
    rollout = data(Discrete(3))
    state = algorithm.init(rollout.obs[0], jax.random.key(0))
    updates = [algorithm.update(state, x, jax.random.key(1)) for x in (rollout, with_gaps(rollout))]
    close(updates[1][0], updates[0][0])


@pytest.mark.parametrize(("prioritized", "n_step"), [(False, 3), (True, 1)])
def test_a_replay_memory_gives_them_no_weight(prioritized, n_step, x64):
    rollout = data(Discrete(3))
    gaps = with_gaps(rollout, junk=0.0)
    numbers = {"capacity": 64, "batch_size": 32, "n_step": n_step, "prioritized": prioritized}
    config = purerl.DQNConfig(network=TINY, **numbers)
    algorithm = purerl.dqn(config, Discrete(3))
    memory = purerl.replay_memory(algorithm.replay, ENVS)

    def filled(rollout):
        steps = Transition(*(getattr(rollout, name) for name in Transition._fields))
        steps = jax.tree.map(jnp.asarray, steps)
        state = memory.init(jax.tree.map(lambda x: x[0, 0], steps))
        return memory.add(state, steps)

    both, valid = [filled(rollout), filled(gaps)], gaps.valid.reshape(-1)
    if prioritized:
        drawn = memory.sample(both[1], jax.random.key(0), 4096).indices
        assert np.unique(drawn).tolist() == np.flatnonzero(valid).tolist()
        assert float(both[1].replay.tree.least) == 1.0
    # The n-step returns that cross no gap, since each gap follows an end; in another order.
    places = [np.arange(STEPS * ENVS), np.arange(len(valid))]
    batches = []
    for state, index in zip(both, places, strict=True):
        sample = purerl.replay.buffers.Sample(jnp.asarray(index), jnp.ones(len(index)))
        batches.append(memory.batch(state, sample, gamma=0.9, n_step=n_step))
    assert not batches[1].weight[~valid].any()
    np.testing.assert_allclose(batches[1].weight.mean(), 1.0)
    learner = algorithm.init(rollout.obs[0], jax.random.key(0))
    updated = [algorithm.update(learner, batch, jax.random.key(1))[0].params for batch in batches]
    close(updated[1], updated[0])


def test_each_minibatch_gets_its_share():
    valid = jnp.arange(24) % 3 > 0
    for shuffle in (False, True):
        parts = minibatches(jax.random.key(0), (jnp.arange(24), valid), 4, shuffle, valid)
        assert parts[1].sum(axis=1).tolist() == [4, 4, 4, 4]
        assert sorted(parts[0].reshape(-1).tolist()) == list(range(24))


def test_moments_and_scales_of_rewards_pass_over_them(x64):
    rollout = data(Discrete(3))
    gaps = with_gaps(rollout, junk=7.0)  # finite: what is not is left out anyway
    scalers, moments = [], []
    for x in (rollout, gaps):
        done = jnp.asarray(x.terminated | x.truncated)
        empty = normalize.init_reward_scaler(ENVS)
        scalers.append(normalize.scale_rewards(empty, x.reward, done, 0.9, valid=x.valid)[1])
        valid = None if x.valid is None else jnp.asarray(x.valid)
        moments.append(normalize.merge_moments(normalize.init_moments((3,)), x.obs, valid))
    close(scalers[1], scalers[0])
    close(moments[1], moments[0])


def test_what_precedes_an_unexpected_gap_is_cut_off_there(x64):
    """A row that is none, in the middle of an episode: the return before it ends with a value."""
    rollout = data(Discrete(3))
    valid = np.ones((STEPS, ENVS), bool)
    valid[5] = False
    cut = rollout._replace(truncated=rollout.truncated.copy())
    cut.truncated[4] = True
    network = purerl.ActorCritic(Discrete(3), TINY)
    params = network.init(jax.random.key(0), rollout.obs[0])
    got, wanted = (
        advantages.on_policy_batch(network, params, x, 0.9, 0.8)
        for x in (rollout._replace(valid=valid), cut)
    )
    kept = valid.reshape(-1)
    close(got.advantage[kept], wanted.advantage[kept])


def test_a_batch_without_any_valid_row_changes_nothing():
    assert float(rows.mean(jnp.array([jnp.nan, 1.0]), jnp.zeros(2, bool))) == 0.0
    assert OnPolicyBatch(*[jnp.zeros(2)] * 6).valid is None
