"""Observations of several arrays, forbidden actions, several choices at once: all the way."""

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest
from gymnax.environments import spaces as gymnax_spaces

import purerl
from purerl import NetworkConfig
from purerl.envs import Step, make
from purerl.training.choices import refuse_without_choice, without_choice

GAMMA = 0.5
REWARDS = [0.0, 0.5, 1.0]
LINEAR = NetworkConfig(hidden_sizes=())
RATES = {
    "learning_rate": 0.1,
    "max_grad_norm": None,
}
NUMBERS = {
    "policy_gradient": {"learning_rate": 0.1},
    "a2c": RATES | {"optimizer": "adam"},
    "acktr": {"learning_rate": 0.3, "cold_start": 1},
    "ppo_clip": RATES | {"num_minibatches": 2, "num_epochs": 2, "learning_rate": 0.03},
    "ppo_penalty": RATES | {"num_minibatches": 2, "num_epochs": 2, "learning_rate": 0.03},
    "trpo": {"critic_learning_rate": 0.1, "critic_minibatches": 2, "critic_epochs": 2},
    "npg": {"critic_learning_rate": 0.1, "critic_minibatches": 2, "critic_epochs": 2},
    "dqn": RATES | {"learning_rate": 0.03, "target_every": 8, "double": True, "batch_size": 64},
}


def halves(several: bool = False) -> purerl.Env:
    """Two steps; in half of the episodes the best action is illegal, and taking it gives NaN.

    With ``several`` there are two choices a step, and the reward is the mean of theirs.
    """

    def observe(time, bound):
        places = jax.nn.one_hot(2 * bound + time, 4)
        mask = jnp.array([True, True, False]) | ~bound
        return {
            "place": {"time": places.reshape(2, 2), "again": places},
            "action_mask": jnp.concatenate([mask, mask]) if several else mask,
        }

    def reset(key):
        bound = jax.random.bernoulli(key)
        return observe(0, bound), (jnp.int32(0), bound)

    def step(state, action, key, fresh=None):
        time, bound = state
        reward = jnp.mean(jnp.array(REWARDS)[action])
        reward = jnp.where(bound & (jnp.max(action) == 2), jnp.nan, reward)
        last, no = time == 1, jnp.array(False)
        after = observe(1, bound), (jnp.int32(1), bound)
        fresh = reset(key) if fresh is None else fresh
        obs, state = jax.tree.map(lambda x, y: jnp.where(last, x, y), fresh, after)
        return Step(obs, after[0], reward, terminated=last, truncated=no), state

    space = purerl.MultiDiscrete([3, 3]) if several else purerl.Discrete(3)
    count = 6 if several else 3
    shape = {"place": {"time": (2, 2), "again": (4,)}, "action_mask": (count,)}
    return purerl.Env("Halves", reset, step, space, shape, 2)


def observations(several=False):
    """One of each of the four states: free first, free second, bound first, bound second."""
    places = jnp.eye(4)
    mask = jnp.array([[1, 1, 1]] * 2 + [[1, 1, 0]] * 2, bool)
    mask = jnp.concatenate([mask, mask], axis=1) if several else mask
    return {
        "place": {"time": places.reshape(4, 2, 2), "again": places},
        "action_mask": mask,
    }


VALUES = [1 + GAMMA, 1.0, 0.5 * (1 + GAMMA), 0.5]


def learned(name, several=False, normalize=False):
    env = halves(several)
    config = purerl.ALGORITHMS[name].config(gamma=GAMMA, network=LINEAR, **NUMBERS[name])
    algorithm = purerl.ALGORITHMS[name].build(config, env.action_space)
    sizes = {"num_envs": 32, "rollout_length": 8, "evaluations": 1, "evaluation_episodes": 16}
    if name == "dqn":
        sizes |= {"rollout_length": 1, "warmup": 64}
    steps = 300 * sizes["num_envs"] * sizes["rollout_length"]
    train = purerl.make_train(algorithm, env, steps, normalize_obs=normalize, **sizes)
    result = jax.jit(train.train)(jax.random.key(0))
    assert not result.failed  # no illegal action was ever taken, since its reward is NaN
    return algorithm, config, env, result


@pytest.mark.trains
@pytest.mark.parametrize("name", NUMBERS)
def test_the_best_legal_action_and_its_value_are_learned(name):
    algorithm, _, env, result = learned(name)
    action, _ = algorithm.act(result.state.learner, observations(), jax.random.key(0), greedy=True)
    assert action.tolist() == [2, 2, 1, 1]
    params = result.state.learner.params
    if name == "dqn":
        value = purerl.QNetwork(env.action_space, LINEAR).apply(params, observations()).max(axis=1)
    else:
        _, value = purerl.ActorCritic(env.action_space, LINEAR).apply(params, observations())
    np.testing.assert_allclose(value, VALUES, atol=0.15)
    assert abs(float(result.curve.evaluation.mean_return[-1]) - 1.5) < 0.4  # of both kinds


@pytest.mark.trains
@pytest.mark.parametrize("name", ["acktr", "ppo_clip", "trpo"])
def test_several_choices_are_learned_with_masks(name):
    algorithm, *_, result = learned(name, several=True, normalize=name == "ppo_clip")
    sizes = purerl.training.sizes.OnPolicyLoopConfig()
    obs = result.state.normalizer.observe(observations(several=True), sizes)
    assert obs["action_mask"].dtype == bool
    action, _ = algorithm.act(result.state.learner, obs, jax.random.key(0), greedy=True)
    assert action.tolist() == [[2, 2], [2, 2], [1, 1], [1, 1]]


@pytest.mark.parametrize("name", ["ppo_clip", "dqn"])
def test_illegal_actions_are_never_drawn(name):
    env = halves()
    config = purerl.ALGORITHMS[name].config(network=LINEAR)
    algorithm = purerl.ALGORITHMS[name].build(config, env.action_space)
    count = 1_000_000
    mask = jax.random.bernoulli(jax.random.key(1), 0.4, (count, 3)).at[:, 1].set(True)
    obs = {"place": jnp.zeros((count, 2)), "action_mask": mask}
    state = algorithm.init(jax.tree.map(lambda x: x[:2], obs), jax.random.key(0))
    action, extras = jax.jit(algorithm.act)(state, obs, jax.random.key(2), progress=0.0)
    assert np.take_along_axis(np.asarray(mask), np.asarray(action)[:, None], axis=1).all()
    # All that is legal is drawn, about as often as its log-probability says.
    alone = np.asarray(mask).all(axis=1)
    frequency = np.bincount(np.asarray(action)[alone], minlength=3) / alone.sum()
    np.testing.assert_allclose(frequency, 1 / 3, atol=0.05 if name == "dqn" else 0.02)
    two = np.asarray(mask).sum(axis=1) == 2
    np.testing.assert_allclose(np.exp(extras["log_prob"][two]).mean(), 0.5, atol=0.02)


@pytest.mark.parametrize("name", ["policy_gradient", "dqn"])
def test_a_network_of_ones_own_gets_masks_and_needs_no_care(name):
    class Net:
        def init(self, key, obs):
            return {"bias": jnp.zeros(3)}

        def apply(self, params, obs):
            assert set(obs) == {"place", "action_mask"}
            logits = jnp.tile(params["bias"], (len(obs["action_mask"]), 1))
            return logits if name == "dqn" else (purerl.Categorical(logits), logits[:, 0])

    entry = purerl.ALGORITHMS[name]
    algorithm = entry.build(entry.config(), purerl.Discrete(3), Net())
    obs, key = observations(), jax.random.key(0)
    state = algorithm.init(obs, key)
    state = state._replace(params={"bias": jnp.array([0.0, 1.0, 9.0])})
    assert algorithm.act(state, obs, key, greedy=True)[0].tolist() == [2, 2, 1, 1]


def test_a_distribution_that_cannot_be_masked_is_told():
    class Net:
        def init(self, key, obs):
            return {"w": jnp.zeros(1)}

        def apply(self, params, obs):
            zeros = jnp.zeros((4, 2))
            return purerl.DiagGaussian(zeros, zeros), zeros[:, 0]

    algorithm = purerl.a2c(purerl.A2CConfig(), purerl.Discrete(3), Net())
    with pytest.raises(TypeError, match=r"action_mask, and a DiagGaussian has no masked\(mask\)"):
        algorithm.init(observations(), jax.random.key(0))


def test_a_state_without_a_legal_action_is_told():
    env = halves()

    def reset(key):
        obs, state = env.reset(key)
        return obs | {"action_mask": jnp.zeros(3, bool)}, state

    with pytest.raises(ValueError, match=r"Halves: in the state before step 0 .* allows no action"):
        purerl.make_env(env._replace(reset=reset))
    other = env._replace(action_space=purerl.Discrete(2))
    with pytest.raises(TypeError, match=r"action_mask has shape \(3,\), wanted \(2,\)"):
        purerl.make_env(other)


@pytest.mark.parametrize("name", ["a2c", "dqn"])
def test_what_is_learned_from_a_state_without_a_legal_action_is_refused(name, capsys):
    """In one of twenty steps; its gradient would be finite."""
    env = halves()
    whole = env.step

    def step(state, action, key, fresh=None):
        result, state = whole(state, action, key)
        mask = result.obs["action_mask"] & ~jax.random.bernoulli(key, 0.05)
        return result._replace(obs=result.obs | {"action_mask": mask}), state

    env = env._replace(step=step)
    make._remember(env)  # the trial of make_env would find it
    numbers = {"batch_size": 32, "capacity": 256, "warmup": 64} if name == "dqn" else {}
    sizes = {"steps": 512, "num_envs": 8, "evaluations": 0, "network": LINEAR}
    result = purerl.run(name, env, seeds=1, **sizes, **numbers)
    assert result.failed.all()
    assert int(result.state.refused[0]) > 0
    assert "seed 0: a state's action_mask allowed no action by step" in capsys.readouterr().err


class Informed:
    """An actor that sees ``part`` and a critic that sees ``all``."""

    def init(self, key, obs):
        return {"actor": jnp.zeros((2, 2)), "critic": jnp.zeros(4)}

    def apply(self, params, obs):
        return purerl.Categorical(obs["part"] @ params["actor"]), obs["all"] @ params["critic"]


def test_a_critic_may_see_more_than_the_actor():
    """The reward is known from ``all`` only, so this critic is right and its policy is blind."""

    def observe(key):
        return {"part": jnp.zeros(2), "all": jax.nn.one_hot(jax.random.randint(key, (), 0, 4), 4)}

    def reset(key):
        obs = observe(key)
        return obs, obs["all"]

    def step(state, action, key, fresh=None):
        reward, last = jnp.dot(state, jnp.arange(4.0)), jnp.array(True)
        obs, state = reset(key) if fresh is None else fresh
        return Step(obs, obs, reward, terminated=last, truncated=~last), state

    shape = {"part": (2,), "all": (4,)}
    env = purerl.Env("Informed", reset, step, purerl.Discrete(2), shape, 1)
    config = purerl.A2CConfig(learning_rate=0.05, optimizer="adam")
    algorithm = purerl.a2c(config, env.action_space, Informed())
    train = purerl.make_train(algorithm, env, 40_000, num_envs=16, rollout_length=8, evaluations=0)
    params = jax.jit(train.train)(jax.random.key(0)).state.learner.params
    np.testing.assert_allclose(params["critic"], jnp.arange(4.0), atol=0.1)
    assert not params["actor"].any()


def test_pixels_are_bytes_in_a_replay_memory_and_scaled_in_the_network():
    def observe(time):
        return {"pixels": jnp.full((4, 4, 1), 51 * time, jnp.uint8), "time": jnp.zeros(1)}

    def reset(key):
        return observe(1), jnp.uint8(1)

    def step(state, action, key, fresh=None):
        last, no = state == 5, jnp.array(False)
        after = jnp.where(last, 1, state + 1).astype(jnp.uint8)
        return Step(observe(after), observe(state + 1), 1.0 * last, last, no), after

    env = purerl.Env(
        "Pixels", reset, step, purerl.Discrete(2), {"pixels": (4, 4, 1), "time": (1,)}, 5
    )
    algorithm = purerl.dqn(purerl.DQNConfig(capacity=64, batch_size=8), env.action_space)
    train = purerl.make_train(
        algorithm, env, 64, num_envs=2, warmup=16, evaluations=0, normalize_obs=True
    )
    state = jax.jit(train.train)(jax.random.key(0)).state
    assert state.normalizer.obs["pixels"] is None
    held = state.replay.replay.items.fields.obs
    assert (held["pixels"].dtype, held["time"].dtype) == (np.uint8, np.float32)
    bytes_held = sum(x.nbytes for x in state.replay.replay.items.words)
    assert bytes_held == 64 * (16 + 2 + 4 * 3)  # pixels and flags; time, action, reward

    network = purerl.QNetwork(purerl.Discrete(2))
    obs = {"pixels": jnp.full((1, 4, 4, 1), 51, jnp.uint8), "time": jnp.zeros((1, 1))}
    params = network.init(jax.random.key(0), obs)
    scaled = obs | {"pixels": jnp.full((1, 4, 4, 1), 0.2)}
    np.testing.assert_allclose(network.apply(params, obs), network.apply(params, scaled), rtol=1e-6)


@pytest.mark.trains
@pytest.mark.parametrize("name", ["ppo_clip", "trpo"])
def test_a_box_far_from_zero_is_learned(name):
    """Bounds [50, 100] x [-60, -10]; the best action, whose reward is 0, is (80, -20)."""
    low, high = np.array([50.0, -60.0]), np.array([100.0, -10.0])

    class Far(probe_envs.BoxEnv):
        def action_space(self, params):
            return gymnax_spaces.Box(low, high, (2,))

        def step_env(self, key, state, action, params):
            obs, state, _, done, info = super().step_env(key, state, action, params)
            reward = -jnp.sum(jnp.square((action - jnp.array([80.0, -20.0])) / 25))
            return obs, state, reward, done, info

    env = purerl.make_env(Far())
    rate = {"learning_rate": 3e-3} if name == "ppo_clip" else {}
    config = purerl.ALGORITHMS[name].config(network=NetworkConfig(hidden_sizes=(8,)), **rate)
    algorithm = purerl.ALGORITHMS[name].build(config, env.action_space)
    sizes = {"num_envs": 64, "rollout_length": 5, "evaluations": 1, "evaluation_episodes": 1}
    train = purerl.make_train(algorithm, env, 300 * 320, **sizes)
    result = jax.jit(train.train)(jax.random.key(0))
    assert float(result.curve.evaluation.mean_return[-1]) > -0.05
    action = algorithm.act(result.state.learner, jnp.ones((1, 1)), jax.random.key(0), greedy=True)
    np.testing.assert_allclose(env.to_env_action(action[0][0]), [80, -20], atol=5)
    assert "mean_outside" in result.metrics.info


def test_of_several_choices_each_needs_a_legal_one():
    """An update is refused where one of them has none, though others do."""
    mask = jnp.array([[True, False, True, False, True], [True, True, True, False, False]])
    space = purerl.MultiDiscrete([3, 2])
    obs = {"x": jnp.zeros((1, 2, 3)), "action_mask": mask[None]}
    flags = jnp.zeros((1, 2), bool)
    numbers = jnp.zeros((1, 2))
    action = jnp.zeros((1, 2, 2), jnp.int32)
    rollout = purerl.Rollout(obs, action, numbers, numbers, flags, flags, obs, flags)
    none = without_choice(rollout, space)
    np.testing.assert_array_equal(none, [[False, True]])
    learner, info = refuse_without_choice(0.0, 1.0, {"finite": jnp.array(True)}, rollout, space)
    assert (float(learner), bool(info["finite"])) == (0.0, False)
