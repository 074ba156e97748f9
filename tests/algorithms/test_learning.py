"""Algorithms learn what is known: the values of the probes, the best actions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl import NetworkConfig

pytestmark = pytest.mark.trains

TABULAR = NetworkConfig(hidden_sizes=())  # on one-hot observations: one number a state
COMMON = {"gamma": probe_envs.GAMMA, "network": TABULAR, "learning_rate_schedule": "linear"}


def policy_gradient(estimator, space, **kw):
    kw = {"learning_rate": 0.1, "value_coef": 1.0, "normalize_weight": False} | COMMON | kw
    return purerl.policy_gradient(purerl.PolicyGradientConfig(estimator=estimator, **kw), space)


def a2c(space, **kw):
    kw = {"learning_rate": 0.1, "optimizer": "adam", "max_grad_norm": None} | COMMON | kw
    return purerl.a2c(purerl.A2CConfig(**kw), space)


def acktr(space, **kw):
    kw = (
        {"cold_start": 1, "learning_rate": 0.3, "critic_kl_clip": 0.1, "kl_clip": 0.01}
        | COMMON
        | kw
    )
    return purerl.acktr(purerl.ACKTRConfig(**kw), space)


def ppo(build, config, space, **kw):
    kw = {"learning_rate": 0.03, "max_grad_norm": None, "num_minibatches": 2} | COMMON | kw
    return build(config(**kw), space)


def trust_region(build, config, space, **kw):
    kw = COMMON | kw
    for name in ("learning_rate_schedule", "learning_rate"):  # it has none but the critic's
        kw.pop(name, None)
    options = {"critic_learning_rate": 0.03, "critic_learning_rate_schedule": "linear"}
    return build(config(critic_minibatches=2, critic_epochs=4, **options, **kw), space)


ALGORITHMS = {
    "a2c": a2c,
    "actor_critic": functools.partial(a2c, n_step=1),
    "acktr": acktr,
    "ppo_clip": functools.partial(ppo, purerl.ppo_clip, purerl.PPOClipConfig),
    "ppo_penalty": functools.partial(ppo, purerl.ppo_penalty, purerl.PPOPenaltyConfig),
    "baseline": functools.partial(policy_gradient, "baseline"),
    "td_error": functools.partial(policy_gradient, "td_error"),
    "q_critic": functools.partial(policy_gradient, "q_critic"),
    "return_to_go": functools.partial(policy_gradient, "return_to_go"),
    "trpo": functools.partial(trust_region, purerl.trpo, purerl.TRPOConfig),
}
# One of each way to bootstrap; the other estimators are exact in test_policy_gradient.
PROBED = ("a2c", "actor_critic", "acktr", "ppo_clip", "td_error", "q_critic", "trpo")


@functools.cache
def learned(name):
    """Values [S] and probabilities [S, 2] after a run on all tables at once."""
    env, _, values = probe_envs.all_tables()
    algorithm = ALGORITHMS[name](env.action_space)
    sizes = {"num_envs": 32, "rollout_length": 8, "evaluations": 0}
    train = purerl.make_train(algorithm, env, 400 * 256, **sizes)
    result = jax.jit(train.train)(jax.random.key(1))
    assert not result.failed
    if "q" in name.split("_"):
        network = purerl.ActorQCritic(env.action_space, TABULAR)
    else:
        network = purerl.ActorCritic(env.action_space, TABULAR)
    params = result.state.learner.params
    distribution, value = network.apply(params, jnp.eye(len(values)))
    policy = jax.nn.softmax(distribution.logits)
    if value.ndim == 2:
        value = jnp.sum(policy * value, axis=1)
    return np.asarray(value), np.asarray(policy)


@pytest.mark.parametrize("table", [name for name in probe_envs.TABLES if name != "action"])
@pytest.mark.parametrize("name", PROBED)
def test_critic_learns_the_known_values(name, table):
    _, where, wanted = probe_envs.all_tables()
    np.testing.assert_allclose(learned(name)[0][where[table]], wanted[where[table]], atol=0.1)


@pytest.mark.parametrize("name", [*PROBED, "return_to_go"])
def test_policy_learns_the_good_action(name):
    _, where, _ = probe_envs.all_tables()
    assert learned(name)[1][where["action"]][0, 1] > 0.9


@pytest.mark.parametrize("name", ["acktr", "ppo_penalty", "baseline", "trpo"])
def test_policy_learns_the_best_real_action(name):
    env = purerl.make_env(probe_envs.BoxEnv())
    network = NetworkConfig(hidden_sizes=(8,))
    rate = 0.01 if "ppo" in name else 0.03
    algorithm = ALGORITHMS[name](env.action_space, network=network, learning_rate=rate)
    sizes = {"num_envs": 64, "rollout_length": 5, "evaluations": 1, "evaluation_episodes": 1}
    train = purerl.make_train(algorithm, env, 300 * 320, **sizes)
    result = jax.jit(train.train)(jax.random.key(0))
    assert float(result.curve.evaluation.mean_return[-1]) > -0.05
