"""What an algorithm and the sizes of its run owe, told when the run is made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl import OffPolicyAlgorithm, OnPolicyAlgorithm, make_train
from purerl.envs.record import Env, Step
from purerl.records import Clock, Discrete

NOISY = purerl.make_env(probe_envs.NoisyEnv())
SIZES = {"num_envs": 4, "rollout_length": 6, "evaluation_episodes": 3}
OFF = {"num_envs": 4, "rollout_length": 2, "warmup": 16, "evaluation_episodes": 3}
YES = jnp.array(True)


def act(state, obs, key, *, greedy=False, progress=1.0):
    return jnp.zeros(len(obs), jnp.int32), {"log_prob": jnp.zeros(len(obs))}


def algorithm(act=act, update=lambda s, rollout, key, *, progress: (s, {"finite": YES}), **kw):
    return OnPolicyAlgorithm(lambda obs, key: jnp.zeros(3), act, update, **kw)


def off_policy(info, act=act):
    update = lambda s, batch, key, *, progress: (s, {"finite": YES} | info)  # noqa: E731
    init = lambda obs, key: jnp.zeros(3)  # noqa: E731
    return OffPolicyAlgorithm(init, act, update, purerl.uniform(100), 8, 1, 0.9)


def acting(action, extras):
    return lambda state, obs, key, *, greedy=False, progress=1.0: (action, extras)


def updating(change):
    return lambda s, rollout, key, *, progress=0.0: change(s)


def ahead(acted):
    noise = lambda state, obs, key, length: jax.random.split(key, length)  # noqa: E731
    return purerl.Ahead(noise, lambda *args, **kw: acted)


INTS = jnp.zeros(4, jnp.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act": acting(INTS, {})}, r"act owes 'log_prob' of shape \(4,\) .* it is missing"),
        ({"act": acting(INTS, {"log_prob": jnp.zeros((4, 1))})}, r"and it is \(4, 1\)"),
        ({"act": acting(INTS[:, None], {"log_prob": jnp.zeros(4)})}, r"actions of shape \(4, 1\)"),
        ({"act": lambda *a, **k: INTS}, r"act returned a .*wanted \(action, extras\)"),
        ({"act": lambda *a, **k: (INTS, 0)}, r"act returned a int second, wanted .* a dict"),
        ({"ahead": ahead(INTS)}, r"ahead\.act returned a .*wanted \(action, policy\)"),
        ({"ahead": ahead((INTS[:, None], None))}, r"act returned actions of shape \(4, 1\)"),
        ({"update": updating(lambda s: s)}, r"update returned a .*wanted \(state, info\)"),
        ({"update": updating(lambda s: (s, {}))}, r"owes 'finite' of shape \(\) .* missing"),
        ({"update": updating(lambda s: (s, {"finite": s > 0}))}, r"'finite'.* it is \(3,\)"),
        ({"update": updating(lambda s: (s, {"finite": 1}))}, "'finite' as a bool, .* it is int32"),
        (
            {"update": updating(lambda s: (s, {"finite": jnp.float32(1)}))},
            r"'finite' as a bool, and it is float32: .*jnp\.isfinite",
        ),
        (
            {"update": updating(lambda s: (s.astype(jnp.float16), {"finite": YES}))},
            r"changes its state:  from float32\[3\] to float16\[3\]; return what init",
        ),
        (
            {"update": updating(lambda s: ({"a": s}, {"finite": YES}))},
            r"changes its state: .*\['a'\] from nothing to float32\[3\]",
        ),
    ],
)
def test_what_an_algorithm_owes(changes, message):
    make_train(algorithm(), NOISY, 1000, **SIZES)
    with pytest.raises((TypeError, ValueError), match=f"the algorithm's .*{message}"):
        make_train(algorithm(**changes), NOISY, 1000, **SIZES)


def column(state, obs, key, *, greedy=False, progress=1.0):
    action, extras = act(state, obs, key)
    return action[:, None] if greedy else action, extras


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (column, ValueError, r"greedy=True, as in evaluation: .* actions of shape \(4, 1\)"),
        (lambda state, obs, key, *, progress=1.0: act(state, obs, key), TypeError, "no greedy, by"),
    ],
)
def test_what_an_algorithm_owes_in_evaluation(act, error, message):
    off = off_policy({"td_error": jnp.zeros(8)}, act)
    for learner, sizes in ((algorithm(act=act), SIZES), (off, OFF)):
        for env in (NOISY, "gymnasium:CartPole-v1"):  # one is played by the host
            with pytest.raises(error, match=message):
                make_train(learner, env, 1000, **sizes)


@pytest.mark.parametrize("info", [{}, {"td_error": jnp.zeros(7)}, {"td_error": jnp.zeros(())}])
def test_an_off_policy_algorithm_owes_td_errors(info):
    silent = acting(INTS, {})  # log_prob is not needed
    make_train(off_policy({"td_error": jnp.zeros(8)}, silent), NOISY, 1000, **OFF)
    with pytest.raises(ValueError, match=r"update owes 'td_error' of shape \(8,\).*priorities"):
        make_train(off_policy(info), NOISY, 1000, **OFF)


def test_arrays_in_info_are_summed_as_scalars_are():
    def update(state, rollout, key, *, progress):
        return state, {"finite": YES, "reward": rollout.reward, "count": jnp.int32(2)}

    train = make_train(algorithm(update=update), NOISY, 72, **SIZES)
    start = train.init(jax.random.key(0))
    _, metrics = jax.jit(lambda s: train.advance(s, 3))(start)
    _, totals = jax.jit(train.accumulate)(start, train.totals(start), Clock(jnp.int32(3)))
    np.testing.assert_allclose(totals.info["reward"], metrics.info["reward"].sum(0), rtol=1e-6)
    assert totals.info["count"] == 6


def test_rewards_cannot_be_normalized_without_gamma():
    make_train(algorithm(gamma=0.9), NOISY, 1000, normalize_reward=True, **SIZES)
    with pytest.raises(ValueError, match=r"gamma is None; set the field: .*gamma=0.99"):
        make_train(algorithm(), NOISY, 1000, normalize_reward=True, **SIZES)


def test_n_step_returns_longer_than_what_is_held():
    longer = off_policy({"td_error": jnp.zeros(8)})._replace(n_step=26)
    with pytest.raises(ValueError, match="n_step=26 is more than the 25 steps of each of 4"):
        make_train(longer, NOISY, 1000, **OFF)
    make_train(longer._replace(n_step=25), NOISY, 1000, **OFF)


@pytest.mark.parametrize(
    ("obs_range", "held", "fits"),
    [
        (None, "bool", False),
        (None, "uint8", False),
        ((0, 1), "bool", True),
        ((0, 2), "bool", False),
        ((0, 255), "uint8", True),
        ((-1, 1), "uint8", False),
        (None, "float", True),
    ],
)
def test_observations_are_held_as_bytes_only_where_they_are_that(obs_range, held, fits):
    env, learner = NOISY._replace(obs_range=obs_range), off_policy({"td_error": jnp.zeros(8)})
    if fits:
        make_train(learner, env, 1000, replay_obs=held, **OFF)
        return
    with pytest.raises(ValueError, match=f"replay_obs='{held}' holds .*use replay_obs='float'"):
        make_train(learner, env, 1000, replay_obs=held, **OFF)


@pytest.mark.parametrize(
    ("limit", "steps", "sizes", "episodes"),
    [
        (1000, 500_000, {}, 2),
        (1000, 10_000_000, {}, 50),
        (10, 1_000_000, {}, 128),
        (1000, 500_000, {"evaluations": 1}, 50),
        (1000, 500_000, {"max_episode_steps": 100}, 25),
        (1000, 5_000, {}, 1),
        (1000, 500_000, {"evaluation_episodes": 128}, 128),
    ],
)
def test_the_default_evaluation_costs_a_tenth_of_the_run(limit, steps, sizes, episodes):
    env = NOISY._replace(max_episode_steps=limit)
    train = make_train(algorithm(), env, steps, num_envs=4, rollout_length=6, **sizes)
    assert train.evaluation_episodes == episodes
    cost = len(train.evaluate_at) * episodes * sizes.get("max_episode_steps", limit)
    assert train.evaluation_share == cost / train.steps
    if episodes > 1 and "evaluation_episodes" not in sizes:
        assert train.evaluation_share <= 0.1


def test_an_environment_and_an_algorithm_in_the_wrong_order_are_told():
    env = purerl.make_env("CartPole-v1")
    algorithm = purerl.a2c(purerl.A2CConfig(), env.action_space)
    with pytest.raises(TypeError, match=r"algorithm is a Env, wanted .*the environment after it"):
        purerl.make_train(env, algorithm, steps=1000)


def test_names_and_what_are_no_algorithms():
    assert make_train(algorithm(), "CartPole-v1", 2000, **SIZES).iterations == 84
    with pytest.raises(TypeError, match=r"algorithm is a Train, wanted .*purerl.run takes names"):
        make_train(make_train(algorithm(), NOISY, 1000, **SIZES), NOISY)


@pytest.mark.parametrize("make", [make_train, purerl.make_experiment])
def test_a_record_of_an_environment_is_checked_where_a_run_is_made(make):
    env = NOISY._replace(obs_shape=(2,), step=lambda *given: NOISY.step(*given))
    with pytest.raises(TypeError, match=r"reset: obs has shape \(3,\), wanted \(2,\)"):
        make(algorithm(), env)


def test_sampled_evaluations_act_as_at_the_end_of_the_run():
    """Reward 1 a step for the action that is taken at progress 1 only."""

    def late(state, obs, key, *, greedy=False, progress=1.0):
        action = jnp.full(len(obs), progress == 1, jnp.int32)
        return action, {}

    def step(state, action, key, fresh=None):
        obs, end = jnp.zeros(1), state == 1
        after = jnp.where(end, 0, state + 1)
        return Step(obs, obs, 1.0 * action, jnp.array(False), end), after

    env = Env("late", lambda key: (jnp.zeros(1), jnp.int32(0)), step, Discrete(2), (1,), 2)
    learner = off_policy({"td_error": jnp.zeros(8)}, late)
    train = make_train(learner, env, 1000, greedy_evaluation=False, **OFF)
    state = jax.jit(train.init)(jax.random.key(0))
    assert jax.jit(train.evaluate)(state).mean_return == 2


def test_a_bool_of_python_is_a_bool():
    train = make_train(
        algorithm(update=updating(lambda s: (s, {"finite": True}))), NOISY, 48, **SIZES
    )
    assert not jax.jit(train.train)(jax.random.key(0)).failed


@pytest.mark.parametrize(
    ("builder", "config"),
    [
        (purerl.ppo_clip, purerl.PPOClipConfig(value_epochs=1)),
        (purerl.acktr, purerl.ACKTRConfig()),
        (purerl.dqn, purerl.DQNConfig(capacity=64, batch_size=8)),
    ],
    ids=["ppo_clip", "acktr", "dqn"],
)
def test_a_state_has_no_array_twice(builder, config):
    """What is donated may not be: a state that is made outside jit, too."""
    small = dataclasses.replace(config, network=purerl.NetworkConfig(hidden_sizes=(4,)))
    own = builder(small, NOISY.action_space)
    sizes = OFF if isinstance(own, OffPolicyAlgorithm) else SIZES
    state = make_train(own, NOISY, 480, **sizes).init(jax.random.key(0))
    leaves = jax.tree.leaves(state)
    assert len({id(x) for x in leaves}) == len(leaves)
