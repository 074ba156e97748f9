"""Constant, linear, cosine or any function of progress, for each number that may be annealed.

The numbers at a quarter of the run are by hand. Nothing is compiled whole: ``disable_jit`` makes
loops Python's, which is quicker for a network of a few numbers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_dqn import Linear, random_batch
from test_policy_gradient import SPACE, Mdp, Table, random_rollout

import purerl
from purerl.algorithms import a2c, dqn, policy_gradient, ppo
from purerl.pieces.advantages import on_policy_batch

COSINE = 0.5 * (1 + 0.5**0.5)  # (1 + cos(pi / 4)) / 2
SCHEDULES = {
    "constant": (lambda x: x, 1.0),
    "linear": (lambda x: x, 0.75),
    "cosine": (lambda x: x, COSINE),
    "function": (lambda x: lambda progress: x * (1 + 2 * progress), 1.5),
    "optax": (lambda x: optax.linear_schedule(x, 0.2 * x, 1), 0.8),
}
EACH = pytest.mark.parametrize("schedule", SCHEDULES)


def options(knob, value, schedule):
    """The configuration's options, and what the number is at progress 0.25."""
    make, factor = SCHEDULES[schedule]
    shape = "constant" if schedule in ("function", "optax") else schedule
    return {knob: make(value), f"{knob}_schedule": shape}, value * factor


ONCE = {"num_epochs": 1, "num_minibatches": 1, "shuffle": False, "normalize_advantage": "none"}
LEARNERS = {
    "a2c": (a2c.a2c, a2c.A2CConfig, {"optimizer": "sgd"}),
    "policy_gradient": (
        policy_gradient.policy_gradient,
        policy_gradient.PolicyGradientConfig,
        {"optimizer": "sgd"},
    ),
    "ppo_clip": (ppo.ppo_clip, ppo.PPOClipConfig, ONCE),
    "ppo_penalty": (ppo.ppo_penalty, ppo.PPOPenaltyConfig, ONCE),
    "dqn": (dqn.dqn, dqn.DQNConfig, {}),
}


def first_step(name, **changes):
    """What the first update at progress 0.25 adds to the parameters."""
    build, config, own = LEARNERS[name]
    config = config(**own, **changes)
    if name == "dqn":
        algorithm, data = build(config, purerl.Discrete(4), Linear()), random_batch()
        obs = data.obs
    else:
        algorithm, data = build(config, SPACE, Table()), random_rollout()
        obs = data.obs[0]
    state = algorithm.init(obs, jax.random.key(0))
    with jax.disable_jit():
        new, _ = algorithm.update(state, data, jax.random.key(1), progress=0.25)
    leaves = zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True)
    return np.concatenate([np.ravel(new - old) for new, old in leaves])


@EACH
@pytest.mark.parametrize("name", LEARNERS)
def test_learning_rate(name, schedule, x64):
    """The first step of SGD, and of Adam too, is proportional to it."""
    changes, wanted = options("learning_rate", 0.02, schedule)
    one = first_step(name, learning_rate=1.0, learning_rate_schedule="constant")
    np.testing.assert_allclose(first_step(name, **changes), wanted * one, rtol=1e-9, atol=1e-14)


def on_policy_loss(name, batch_of, **changes):
    _, config, own = LEARNERS[name]
    module = {"a2c": a2c, "policy_gradient": policy_gradient}.get(name, ppo)
    config = config(**own, **changes)
    return module.make_loss(Table(), config, progress=0.25)(*batch_of(module, config))


def same_batch(module, config):
    """Parameters, and samples that all losses can read."""
    params, rollout = Mdp().params(False), random_rollout()
    if module is policy_gradient:
        key = jax.random.key(0)
        return params, module.make_batch(Table(), config, params, rollout, key)
    batch = on_policy_batch(Table(), params, rollout, 0.99, 1.0)
    return params, batch._replace(distribution=Table().apply(params, batch.obs)[0])


@EACH
@pytest.mark.parametrize("name", ["a2c", "policy_gradient", "ppo_clip", "ppo_penalty"])
def test_entropy_coefficient(name, schedule, x64):
    changes, wanted = options("entropy_coef", 0.3, schedule)
    with jax.disable_jit():
        without, info = on_policy_loss(name, same_batch, entropy_coef=0.0)
        loss, _ = on_policy_loss(name, same_batch, **changes)
    assert float(without - loss) == pytest.approx(wanted * float(info["entropy"]), rel=1e-9)


@EACH
def test_clip(schedule, x64):
    """Every ratio is 1.2 and every advantage 1, so the surrogate is min(1.2, 1 + clip)."""
    changes, wanted = options("clip", 0.16, schedule)

    def batch_of(module, config):
        params, batch = same_batch(module, config)
        new = Table().apply(params, batch.obs)[0].log_prob(batch.action)
        ones = jnp.ones_like(new)
        return params, batch._replace(log_prob=new - jnp.log(1.2), advantage=ones)

    with jax.disable_jit():
        _, info = on_policy_loss("ppo_clip", batch_of, **changes)
    assert float(-info["policy_loss"]) == pytest.approx(min(1.2, 1 + wanted), rel=1e-9)
    assert float(info["clip_fraction"]) == (wanted < 0.2)


EPSILON = {"constant": 0.9, "linear": 0.7, "cosine": 0.1 + 0.8 * COSINE}


@pytest.mark.parametrize("schedule", EPSILON)
def test_epsilon(schedule):
    """From 0.9 to 0.1, at a quarter of the exploration; and where that is over."""
    config = purerl.DQNConfig(
        epsilon_start=0.9, epsilon_end=0.1, exploration=1.0, epsilon_schedule=schedule
    )
    assert float(dqn.epsilon_at(config, 0.25)) == pytest.approx(EPSILON[schedule])
    end = 0.9 if schedule == "constant" else 0.1
    assert float(dqn.epsilon_at(config, 1.0)) == pytest.approx(end)
    swept = jax.vmap(
        lambda start: dqn.epsilon_at(dataclasses.replace(config, epsilon_start=start), 0.25)
    )
    assert float(swept(jnp.array([0.9]))[0]) == pytest.approx(EPSILON[schedule])


def test_epsilon_as_a_function_of_progress_decides_alone():
    config = purerl.DQNConfig(epsilon_start=lambda progress: 0.3 + progress, exploration=0.1)
    assert dqn.epsilon_at(config, 0.25) == 0.55
    config = purerl.DQNConfig(epsilon_start=optax.linear_schedule(1.0, 0.2, 1))
    assert float(jax.jit(lambda p: dqn.epsilon_at(config, p))(0.25)) == pytest.approx(0.8)


def test_epsilon_is_what_act_uses():
    """Seen in the log-probabilities; by default, by hand, it is that of the end of the run."""
    config = purerl.DQNConfig(epsilon_start=0.8, epsilon_end=0.4, exploration=0.5)
    algorithm = purerl.dqn(config, purerl.Discrete(4), Linear())
    obs = random_batch().obs
    state = algorithm.init(obs, jax.random.key(0))
    for options, epsilon in (
        ({"progress": 0.0}, 0.8),
        ({"progress": 0.25}, 0.6),
        ({"progress": 0.75}, 0.4),
        ({}, 0.4),
        ({"greedy": True, "progress": 0.0}, 0.0),
    ):
        action, extras = algorithm.act(state, obs, jax.random.key(1), **options)
        best = np.argmax(obs @ state.params["params"]["w"], axis=1)
        wanted = epsilon / 4 + (1 - epsilon) * (np.asarray(action) == best)
        np.testing.assert_allclose(np.exp(extras["log_prob"]), wanted, rtol=1e-5)
        assert (np.asarray(action) == best).all() == (epsilon == 0)
