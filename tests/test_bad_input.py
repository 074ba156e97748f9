"""What users do wrong, and what they are told."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl import NetworkConfig
from purerl.records import Box, Discrete, Rollout

TINY = NetworkConfig(hidden_sizes=(4,))
CONFIGS = {
    "a2c": purerl.A2CConfig,
    "acktr": purerl.ACKTRConfig,
    "ppo_clip": purerl.PPOClipConfig,
    "ppo_penalty": purerl.PPOPenaltyConfig,
    "policy_gradient": purerl.PolicyGradientConfig,
    "trpo": purerl.TRPOConfig,
    "npg": purerl.NPGConfig,
}
BUILDERS = {name: getattr(purerl, name) for name in CONFIGS}
NAN = float("nan")
BAD = {
    "gamma": (-0.1, 1.1, NAN),
    "gae_lambda": (-0.1, 1.01, NAN),
    "learning_rate": (0.0, -1e-3, NAN),
    "max_grad_norm": (0.0, -1.0, NAN),
    "value_coef": (-0.5, NAN),
    "entropy_coef": (-0.5, NAN),
}
OWN = {
    "a2c": {
        "n_step": (0, -1),
        "rmsprop_decay": (1.5, NAN),
        "optimizer_eps": (0.0,),
        "optimizer": ("adamw", "Adam"),
    },
    "acktr": {
        "decay": (-0.1, 1.0, NAN),
        "momentum": (-0.1, 1.0, NAN),
        "damping": (0.0, -0.01, NAN),
        "kl_clip": (0.0, NAN),
        "critic_kl_clip": (0.0, NAN),
        "critic_std": (0.0, -1.0, NAN),
        "target_kl": (0.0, NAN),
        "cold_max_norm": (0.0, NAN),
        "stats_every": (0, 1.5),
        "stats_stride": (0,),
        "inverse_every": (0, -1),
        "cold_start": (-1,),
        "damping_kind": ("tikhonov", "Eigenbasis"),
        "fisher_actions": ("greedy",),
    },
    "ppo_clip": {
        "clip": (0.0, -0.2, NAN),
        "adam_eps": (0.0,),
        "clip_value": (0.0, -1.0),
        "max_kl": (0.0, -1.0),
        "num_epochs": (0,),
        "num_minibatches": (0,),
        "value_epochs": (-1,),
        "normalize_advantage": ("rollout", True),
    },
    "ppo_penalty": {"target_kl": (0.0, NAN), "initial_beta": (0.0, -1.0)},
    "policy_gradient": {
        "estimator": ("reinforce", "return"),
        "advantage": ("q-v",),
        "optimizer": ("rms",),
        "q_samples": (0,),
    },
    "npg": {
        "max_kl": (0.0, -0.01, NAN),
        "damping": (-0.1, NAN),
        "cg_iterations": (0, -1, 2.5),
        "cg_tolerance": (-1e-6, NAN),
        "fisher_fraction": (0.0, 1.1, NAN),
        "critic_learning_rate": (0.0, NAN),
        "critic_epochs": (0,),
        "critic_minibatches": (0,),
        "adam_eps": (0.0,),
    },
}
OWN["trpo"] = OWN["npg"] | {
    "backtrack_factor": (0.0, 1.0, -0.5, 1.5, NAN),
    "backtrack_steps": (0, 1.5),
}
CASES = [
    (name, field, value)
    for name, config in CONFIGS.items()
    for field, values in (BAD | OWN[name]).items()
    for value in values
    if field in OWN[name] or field in config.__dataclass_fields__
]


@pytest.mark.parametrize(("name", "field", "value"), CASES)
def test_config_says_which_field_is_wrong(name, field, value):
    with pytest.raises(ValueError, match=rf"{CONFIGS[name].__name__}: .*{field}.*"):
        CONFIGS[name](**{field: value})


@pytest.mark.parametrize(
    ("estimator", "meant"), [("return-to-go", "return_to_go"), ("td-error", "td_error")]
)
def test_unknown_estimator_gets_the_close_match(estimator, meant):
    with pytest.raises(ValueError, match=f"Did you mean {meant}"):
        purerl.PolicyGradientConfig(estimator=estimator)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_takes_tracers(name):
    """What is not a Python number is not checked, so that a sweep may put it in."""

    def build(rate):
        CONFIGS[name](gae_lambda=rate, gamma=rate, network=TINY)
        return rate

    jax.eval_shape(build, jnp.float32(-1.0))


# Networks and action spaces.


class Other(nn.Module):
    """The distribution of the other kind of action."""

    box: bool

    @nn.compact
    def __call__(self, obs):
        logits = nn.Dense(2)(obs)
        if self.box:
            return purerl.DiagGaussian(logits, jnp.zeros_like(logits)), logits[:, 0]
        return purerl.Categorical(logits), logits[:, 0]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    ("box", "space", "message"),
    [
        (True, Discrete(2), "DiagGaussian, but the actions are Discrete"),
        (False, Box((2,)), "Categorical, but the actions are a Box"),
    ],
)
def test_policy_of_the_wrong_kind(name, box, space, message):
    algorithm = BUILDERS[name](CONFIGS[name](), space, Other(box))
    with pytest.raises(TypeError, match=message):
        algorithm.init(jnp.zeros((1, 3)), jax.random.key(0))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (2, r"action_space is a builtins.int, wanted purerl.Discrete"),
        (Box(()), r"actions of shape \(\), wanted vectors"),
        (Box((2, 2)), r"actions of shape \(2, 2\), wanted vectors"),
    ],
)
def test_action_space_that_is_none(name, space, message):
    with pytest.raises(TypeError, match=message):
        BUILDERS[name](CONFIGS[name](), space)


def test_q_critic_checks_the_action_space_too():
    config = purerl.PolicyGradientConfig(estimator="q_critic")
    with pytest.raises(TypeError, match="action_space is a builtins.str"):
        purerl.policy_gradient(config, "Discrete")


# Rollouts.


def rollout(box=False):
    zeros = lambda *shape: jnp.zeros((5, 3, *shape))  # noqa: E731
    no = jnp.zeros((5, 3), bool)
    action = zeros(2) if box else jnp.zeros((5, 3), jnp.int32)
    step = jnp.zeros((5, 3), jnp.int32)
    return Rollout(zeros(4), action, zeros(), zeros(), no, no, zeros(4), step)


def update(name, rollout, box=False, **config):
    space = Box((2,)) if box else Discrete(2)
    if name in ("trpo", "npg"):
        config = {"critic_minibatches": 1} | config
    algorithm = BUILDERS[name](CONFIGS[name](network=TINY, **config), space)
    state = jax.eval_shape(algorithm.init, jnp.zeros((3, 4)), jax.random.key(0))
    return jax.eval_shape(algorithm.update, state, rollout, jax.random.key(0))


WRONG_SHAPE = {
    "reward": (jnp.zeros(5), r"rollout.reward has shape \(5,\), wanted \[T, N\]"),
    "log_prob": (jnp.zeros((5, 2)), r"rollout.log_prob has shape \(5, 2\), wanted \[5, 3\]"),
    "terminated": (jnp.zeros((5, 1), bool), r"rollout.terminated has shape \(5, 1\)"),
    "truncated": (jnp.zeros((3, 5), bool), r"rollout.truncated has shape \(3, 5\)"),
    "episode_step": (jnp.zeros(5, jnp.int32), r"rollout.episode_step has shape \(5,\)"),
    "obs": (jnp.zeros((15, 4)), r"rollout.obs has shape \(15, 4\)"),
    "next_obs": (jnp.zeros((5, 3, 5)), r"rollout.next_obs has shape \(5, 3, 5\)"),
    "action": (jnp.zeros((5, 3, 1), jnp.int32), r"rollout.action has shape \(5, 3, 1\)"),
}
WRONG_DTYPE = {
    "reward": (jnp.zeros((5, 3), jnp.int32), "rollout.reward has dtype int32, wanted floating"),
    "log_prob": (jnp.zeros((5, 3), jnp.int32), "rollout.log_prob has dtype int32"),
    "terminated": (jnp.zeros((5, 3)), "rollout.terminated has dtype float32, wanted bool"),
    "truncated": (jnp.zeros((5, 3), jnp.int32), "rollout.truncated has dtype int32, wanted bool"),
    "action": (jnp.zeros((5, 3)), "rollout.action has dtype float32, wanted integer"),
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("field", WRONG_SHAPE)
def test_rollout_of_a_wrong_shape(name, field):
    value, message = WRONG_SHAPE[field]
    with pytest.raises(ValueError, match=message):
        update(name, rollout()._replace(**{field: value}))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("field", WRONG_DTYPE)
def test_rollout_of_a_wrong_dtype(name, field):
    value, message = WRONG_DTYPE[field]
    with pytest.raises(ValueError, match=message):
        update(name, rollout()._replace(**{field: value}))


@pytest.mark.parametrize("name", BUILDERS)
def test_box_actions_of_a_wrong_shape_or_dtype(name):
    good = rollout(box=True)
    with pytest.raises(ValueError, match=r"action has shape \(5, 3, 1\), wanted \[5, 3, 2\]"):
        update(name, good._replace(action=jnp.zeros((5, 3, 1))), box=True)
    with pytest.raises(ValueError, match=r"rollout.action has dtype int32, wanted floating"):
        update(name, good._replace(action=jnp.zeros((5, 3, 2), jnp.int32)), box=True)


@pytest.mark.parametrize("name", BUILDERS)
def test_observations_of_another_size_than_at_init(name):
    other = rollout()._replace(obs=jnp.zeros((5, 3, 6)), next_obs=jnp.zeros((5, 3, 6)))
    with pytest.raises(ValueError, match=r"obs has shape \(15, 6\)"):
        update(name, other)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("ppo_clip", "num_minibatches"),
        ("ppo_penalty", "num_minibatches"),
        ("trpo", "critic_minibatches"),
        ("npg", "critic_minibatches"),
    ],
)
def test_minibatches_that_do_not_divide(name, field):
    with pytest.raises(ValueError, match="15 samples cannot be split into 4 equal minibatches"):
        update(name, rollout(), **{field: 4})


# The loop.

ENV = purerl.make_env(probe_envs.NoisyEnv())
A2C = purerl.a2c(purerl.A2CConfig(network=TINY), ENV.action_space)


def test_fewer_steps_than_one_iteration():
    with pytest.raises(ValueError, match=r"steps=1023 is less than .* 8 \* 128 = 1024 steps"):
        purerl.make_train(A2C, ENV, 1023)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 0),
        ("rollout_length", 0),
        ("evaluations", -1),
        ("evaluation_episodes", 0),
    ],
)
def test_sizes_of_the_loop(field, value):
    with pytest.raises(ValueError, match=f"OnPolicyLoopConfig: {field}={value} is out of range"):
        purerl.make_train(A2C, ENV, 10_000, **{field: value})


@pytest.mark.parametrize("algorithm", [purerl.A2CConfig(), (A2C.init, A2C.act, A2C.update), "ppo"])
def test_what_is_no_algorithm(algorithm):
    kind = type(algorithm).__name__
    with pytest.raises(TypeError, match=f"algorithm is a {kind}, wanted an OnPolicyAlgorithm"):
        purerl.make_train(algorithm, ENV, 10_000)


@pytest.mark.parametrize("estimator", ["total_return", "return_to_go"])
def test_rollout_shorter_than_an_episode_without_a_critic(estimator):
    config = purerl.PolicyGradientConfig(estimator=estimator, network=TINY)
    algorithm = purerl.policy_gradient(config, ENV.action_space)
    purerl.make_train(algorithm, ENV, 10_000, rollout_length=probe_envs.LIMIT)
    with pytest.raises(ValueError, match=r"rollout_length=4 must be at least the time limit"):
        purerl.make_train(algorithm, ENV, 10_000, rollout_length=probe_envs.LIMIT - 1)


def test_rollout_without_a_critic_where_no_limit_is_known():
    config = purerl.PolicyGradientConfig(estimator="return_to_go", network=TINY)
    algorithm = purerl.policy_gradient(config, ENV.action_space)
    env = ENV._replace(max_episode_steps=None)
    with pytest.raises(ValueError, match="no known time limit to end an evaluation"):
        purerl.make_train(algorithm, env, 10_000)
    with pytest.raises(ValueError, match=r"time limit of NoisyEnv \(None"):
        purerl.make_train(algorithm, env, 10_000, evaluations=0)


@pytest.mark.parametrize("function", ["init", "train"])
def test_keys_that_are_none(function):
    function = getattr(purerl.make_train(A2C, ENV, 10_000), function)
    with pytest.raises(TypeError, match=r"key is a uint32, wanted a typed PRNG key: jax.random"):
        function(jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match="key is a int, wanted a typed PRNG key"):
        function(0)
    with pytest.raises(TypeError, match="key is a float"):
        function(np.zeros(2))


def test_a_batch_of_keys_without_vectorize():
    train = purerl.make_train(A2C, ENV, 10_000).train
    with pytest.raises(ValueError, match=r"key has shape \(4,\), wanted one key; .*vectorize"):
        train(jax.random.split(jax.random.key(0), 4))


def test_zero_seeds():
    train = purerl.make_train(A2C, ENV, 10_000).train
    with pytest.raises(ValueError, match="zero seeds"):
        purerl.vectorize(train)(jax.random.split(jax.random.key(0), 0))


def test_one_key_to_vectorize():
    train = purerl.make_train(A2C, ENV, 10_000).train
    with pytest.raises(ValueError, match=r"keys of shape \[S\]"):
        purerl.vectorize(train)(jax.random.key(0))
