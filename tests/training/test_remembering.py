"""Policies with a memory in whole runs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl.pieces import rollout as rollouts
from purerl.policies.acting import apply_network
from purerl.records import Sequences
from purerl.training import state as states
from purerl.training.sizes import OnPolicyLoopConfig

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
MEMORY = purerl.NetworkConfig(hidden_sizes=(8,), memory="gru", memory_size=8)


def played(env, network, config=purerl.A2CConfig, length=12):
    """A rollout of an untrained policy, from the middle of its episodes."""
    algorithm = purerl.a2c(config(network=MEMORY), env.action_space, network)
    sizes = OnPolicyLoopConfig(num_envs=4, rollout_length=length)

    def play(key):
        start = states.start(algorithm, env, sizes, key)
        for _ in range(2):
            seen = states.play(algorithm, env, sizes, start, key, length, 0.0, "log_prob")
            start = start._replace(actors=seen.actors)
        return start.learner.params, seen.rollout, seen.actors

    return jax.jit(play)(jax.random.key(0))


class OneStep:
    """The default network, of which only single steps are known: no ``unroll``."""

    def __init__(self, action_space):
        network = purerl.RecurrentActorCritic(action_space, MEMORY)
        self.init, self.apply, self.init_memory = network.init, network.apply, network.init_memory


def ratio(network, params, rollout, environments=slice(None)):
    """Of the probabilities that an update begins with to those of acting."""

    @jax.jit
    def log_prob(params, inputs, action):
        return apply_network(network, params, inputs)[0].log_prob(action.reshape(-1))

    of = lambda x: x[:, environments]  # noqa: E731
    memory = jax.tree.map(lambda x: x[0, environments], rollout.memory)
    inputs = Sequences(of(rollout.obs), memory, of(rollout.episode_step == 0))
    recomputed = log_prob(params, inputs, of(rollout.action))
    return jnp.exp(recomputed - of(rollout.log_prob).reshape(-1))


def test_an_update_begins_with_what_acting_had(x64):
    """The ratio is 1: to the last bit where the same kernels compute it, else to rounding."""
    env = purerl.make_env(probe_envs.NoisyEnv())
    network = purerl.RecurrentActorCritic(env.action_space, MEMORY)
    params, rollout, actors = played(env, network)
    assert (rollout.terminated | rollout.truncated).any()
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x[-1], y), rollout.memory, actors.memory
    )
    assert (ratio(OneStep(env.action_space), params, rollout) == 1).all()
    for environments in (slice(None), slice(1, 3)):
        np.testing.assert_allclose(ratio(network, params, rollout, environments), 1, atol=1e-12)


def test_the_same_in_single_precision():
    env = purerl.make_env(probe_envs.NoisyEnv())
    network = purerl.RecurrentActorCritic(env.action_space, MEMORY)
    params, rollout, _ = played(env, network)
    np.testing.assert_allclose(ratio(network, params, rollout, slice(1, 3)), 1, atol=1e-5)


@pytest.mark.trains
def test_values_that_need_the_memory_after_a_final_observation():
    """Half of all bootstraps are at truncations, where the last observation tells nothing.

    With the memory of the reset, or that before the step, V at the beginning would be near half of
    what it is. Gradients go through sequences of half a rollout.
    """
    env = probe_envs.recall()
    options = {"num_minibatches": 2, "sequence_length": 4, "num_epochs": 2, "gamma": 0.5}
    options |= {"learning_rate": 0.02, "learning_rate_schedule": "linear"}
    experiment = purerl.make_experiment(
        *("ppo_clip", env),
        network=MEMORY,
        **options,
        steps=300 * 256,
        num_envs=32,
        rollout_length=8,
        evaluations=0,
    )
    result = jax.jit(experiment.build().train)(jax.random.key(0))
    network = purerl.RecurrentActorCritic(env.action_space, MEMORY)
    params = result.state.learner.params
    obs = jnp.array([[[1.0, 1.0], [1.0, -1.0]], *[[[0.0, 0.0]] * 2] * 3])
    start = jnp.zeros((4, 2), bool).at[0].set(True)
    inputs = Sequences(obs, network.init_memory(obs[0]), start)
    value = apply_network(network, params, inputs)[1].reshape(4, 2)
    wanted = np.array([[1.0, -1.0]] + [[2.0, -2.0]] * 3)
    np.testing.assert_allclose(value, wanted, atol=0.2)


@pytest.mark.trains
def test_trpo_remembers_the_way_and_keeps_its_bound(monkeypatch):
    """A T-maze: evaluations carry the memory; no accepted step has a KL above the bound."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory_tasks

    env = memory_tasks.t_maze(length=3)
    experiment = purerl.make_experiment(
        *("trpo", env),
        network=MEMORY,
        steps=60 * 256,
        num_envs=16,
        rollout_length=16,
        gamma=0.5,
        max_kl=0.02,
        critic_minibatches=2,
        critic_learning_rate=0.01,
        evaluations=1,
        evaluation_episodes=64,
    )
    result = jax.jit(experiment.build().train)(jax.random.key(0))
    info = result.metrics.info
    assert info["accepted"].sum() > 30
    assert (info["kl"] <= 0.02).all()
    assert (info["kl"][info["accepted"]] > 0).all()
    assert result.curve.evaluation.mean_return[-1] == 1.0
    network = purerl.RecurrentActorCritic(env.action_space, MEMORY)
    params = result.state.learner.params
    obs = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    _, value, _ = network.apply(params, obs, network.init_memory(obs), jnp.ones(2, bool))
    np.testing.assert_allclose(value, 0.5**3, atol=0.04)


# The last action and reward.


@pytest.mark.parametrize("box", [False, True])
def test_observations_with_the_last_action_and_reward(box):
    """At an episode's first step both are zeros; in the final observation they are the last."""
    env = purerl.make_env(probe_envs.NoisyEnv(box=box), last_step=True)
    width = 2 if box else 3
    assert env.obs_shape == {"obs": (3,), "last_action": (width,), "last_reward": (1,)}

    def act(obs, key):
        if box:
            return jax.random.normal(key, (4, 2)), {}
        return jax.random.randint(key, (4,), 0, 3), {}

    actors = rollouts.reset(env, 4, jax.random.key(0))
    _, rollout, _ = jax.jit(lambda key: purerl.unroll(act, env, actors, key, 20))(jax.random.key(1))
    action = rollout.action if box else jax.nn.one_hot(rollout.action, 3)
    np.testing.assert_allclose(rollout.next_obs["last_action"], action)
    np.testing.assert_allclose(rollout.next_obs["last_reward"][..., 0], rollout.reward)
    done = np.asarray(rollout.terminated | rollout.truncated)[:-1]
    assert done.any()
    for name, last in (("last_action", action), ("last_reward", rollout.reward[..., None])):
        wanted = np.where(done[..., None], 0, last[:-1])
        np.testing.assert_allclose(rollout.obs[name][1:], wanted)
    assert not rollout.obs["last_action"][0].any()


def test_a_part_of_an_observation():
    whole = purerl.make_env("CartPole-v1")
    env = purerl.observe_only(whole, (2, 0))
    key = jax.random.key(0)
    (obs, state), (all_of_it, _) = env.reset(key), whole.reset(key)
    np.testing.assert_array_equal(obs, all_of_it[jnp.array([2, 0])])
    step, _ = env.step(state, 1, key)
    same, _ = whole.step(state[0], 1, key)
    np.testing.assert_array_equal(step.next_obs, same.next_obs[jnp.array([2, 0])])
    with pytest.raises(
        ValueError, match=r"indices=\(4,\) of observations \[4\]; give some of 0 to 3"
    ):
        purerl.observe_only(whole, (4,))


def test_an_own_act_with_a_memory_gets_it_wherever_it_acts():
    """Also where a Box policy's best actions are compared with the bounds."""
    env = purerl.make_env("Pendulum-v1")
    of_ours = purerl.a2c(purerl.A2CConfig(network=MEMORY), env.action_space)

    def act(state, obs, key, *, memory, start, greedy=False, progress=1.0):
        return of_ours.act(state, obs, key, memory=memory, start=start, greedy=greedy)

    own = of_ours._replace(act=act, ahead=None)
    sizes = {"num_envs": 2, "rollout_length": 4, "evaluation_episodes": 1}
    purerl.make_train(own, env, 16, **sizes)
