"""What users do wrong, and what they are told."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl import NetworkConfig
from purerl.config import Config, field
from purerl.records import Box, Discrete, Rollout

TINY = NetworkConfig(hidden_sizes=(4,))
NAN = float("nan")
CONFIGS = {name: entry.config for name, entry in purerl.ALGORITHMS.items()}
ON_POLICY = [name for name, entry in purerl.ALGORITHMS.items() if not entry.off_policy]
BUILDERS = {name: getattr(purerl, name) for name in ON_POLICY}


# Configurations: each field of each, by what it says it wants.

FIELDS = [
    (config, field.name, config.specs[field.name], field.default)
    for config in (*CONFIGS.values(), NetworkConfig)
    for field in dataclasses.fields(config)
]
EACH_FIELD = pytest.mark.parametrize(
    ("config", "name", "spec", "default"), FIELDS, ids=[f"{c.__name__}-{n}" for c, n, *_ in FIELDS]
)


def interval(spec):
    """The ends of a number's interval, and whether each of them belongs to it."""
    text = re.match(r"an? \w+ in (.[^\])]*.)", spec.wanted).group(1)
    low, high = (float(x) for x in text[1:-1].split(","))
    return low, high, text[0] == "[", text[-1] == "]"


def good_number(spec):
    low, high, *_ = interval(spec)
    return max(low, 0) + 0.5 if high == np.inf else (low + high) / 2


def refused_numbers(spec):
    """Numbers outside of the interval, of several types, and what is no number."""
    low, high, with_low, with_high = interval(spec)
    yield from ("0.1", True, np.bool_(True), (0.1,), {}, np.ones(2), 1j)
    yield from (x(v) for v in (NAN, np.inf, -np.inf) for x in (float, np.float32, jnp.float32))
    if low > -np.inf:
        kinds = (float, int, np.float32, np.float64, np.int64, jnp.float32)
        yield from (x(low - 1) for x in kinds)
    if not with_low:
        yield from (low, np.float32(low), jnp.float32(low))
    if high < np.inf:
        yield from (high + 1, np.float64(high + 1), jnp.float32(high + 1))
        if not with_high:
            yield from (high, np.float32(high))
    if "None" not in spec.wanted:
        yield None
    if "function of progress" not in spec.wanted:
        yield lambda progress: good_number(spec)


def refused(spec, default):
    wanted = spec.wanted
    if wanted.startswith("a number"):
        return refused_numbers(spec)
    if wanted.startswith("an integer"):
        least = int(interval(spec)[0])
        none = () if "None" in wanted else (None,)
        less = (x(least - 1) for x in (int, np.int64, np.int32, jnp.int32))
        return (*less, 2.5, 3.0, np.float32(3), NAN, np.float32("nan"), True, "3", (3,), {}, *none)
    if wanted == "True or False":
        return 1, 0, np.int64(1), 1.0, "yes", None, NAN, np.ones(2, bool)
    if wanted.startswith("one of"):
        return "", "no such word", default.upper() + "x", None, True, 1, NAN
    if wanted.startswith("a tuple, each an integer"):
        return 8, "8", None, (8, 0), (8, -1), (8.0,), (True,), (None,), np.array([0.5]), np.array(8)
    return {}, None, "network", {"hidden_sizes": (8,)}, 1, type(default)  # a part


@EACH_FIELD
def test_what_a_field_refuses(config, name, spec, default):
    """The message says whose field it is, and which."""
    for value in refused(spec, default):
        with pytest.raises(ValueError, match=rf"{config.__name__}: .*{name}.*"):
            config(**{name: value})


# What the fields say is tested above; that they say the right thing, here.
INTERVALS = {
    "[0, 1]": "gamma gae_lambda epsilon_start epsilon_end exploration alpha beta",
    "[0, 1)": "rmsprop_decay momentum decay",
    "(0, 1)": "backtrack_factor",
    "(0, 1]": "clip target_tau fisher_fraction",
    "[0, inf)": "value_coef entropy_coef cg_tolerance",
    "(0, inf)": "learning_rate critic_learning_rate max_grad_norm adam_eps optimizer_eps "
    "clip_value max_kl target_kl initial_beta priority_eps kl_clip",
}
LEAST_0 = ("value_epochs", "cold_start")


@EACH_FIELD
def test_ranges(config, name, spec, default):
    for wanted, names in INTERVALS.items():
        if name in names.split():
            assert spec.wanted.startswith(f"a number in {wanted}")
    if spec.wanted.startswith("an integer"):
        assert spec.wanted.startswith(f"an integer in [{0 if name in LEAST_0 else 1}, inf)")


# What else has to be said where a field is given a number.
NEEDS = {
    ("DQNConfig", "capacity"): {"batch_size": 1},
    ("ACKTRConfig", "target_kl"): {"learning_rate_schedule": "constant", "kl_clip": 3.0},
    ("NetworkConfig", "min_log_std"): {"initial_log_std": 9.0},
}


@EACH_FIELD
def test_scalars_are_stored_as_python_has_them(config, name, spec, default):
    """Those of NumPy and JAX are checked, then are JSON-ready; None where it is allowed."""
    kinds, value = (), None
    if spec.wanted.startswith("a number"):
        kinds, value = (float, np.float32, np.float64, jnp.float32, np.asarray), good_number(spec)
    elif spec.wanted.startswith("an integer"):
        kinds, value = (int, np.int64, np.int32, np.uint8, jnp.int32), 1
    elif spec.wanted == "True or False":
        kinds, value = (bool, np.bool_), not default
    needs = NEEDS.get((config.__name__, name), {})
    for kind in kinds:
        stored = getattr(config(**needs, **{name: kind(value)}), name)
        assert type(stored) is kinds[0]
        assert stored == pytest.approx(value)
    if "None" in spec.wanted:
        assert getattr(config(**{name: None}), name) is None


@EACH_FIELD
def test_only_what_is_swept_takes_a_tracer(config, name, spec, default):

    def build(number):
        config(**NEEDS.get((config.__name__, name), {}), **{name: number})
        return number

    if spec.swept:
        jax.eval_shape(build, jnp.float32(-1e9))  # tracers are not checked
        return
    with pytest.raises(ValueError, match=rf"{config.__name__}: .*{name}.*"):
        jax.eval_shape(build, jnp.float32(1.0))


@EACH_FIELD
def test_help_says_what_a_field_is(config, name, spec, default):
    assert f"    {name}: {spec.meaning} ({spec.wanted}" in config.__doc__
    assert spec.swept == (", swept)" in spec.text())


def test_a_field_is_of_a_type_that_can_be_checked():
    with pytest.raises(ValueError, match=r"Odd.x is a dict, wanted float, int, bool, str"):

        class Odd(Config):
            x: dict = field({}, "Of no use.")


@pytest.mark.parametrize(
    ("estimator", "meant"), [("return-to-go", "return_to_go"), ("td-error", "td_error")]
)
def test_unknown_estimator_gets_the_close_match(estimator, meant):
    with pytest.raises(ValueError, match=f"Did you mean {meant}"):
        purerl.PolicyGradientConfig(estimator=estimator)


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
    with pytest.raises(TypeError, match=r"action_space is a builtins\.str"):
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


# Memory.

GRU = NetworkConfig(hidden_sizes=(4,), memory="gru", memory_size=4)


def remembering(name, **options):
    """An algorithm with a memory, its state, and a rollout [6, 2] that it made."""
    algorithm = BUILDERS[name](CONFIGS[name](network=GRU, **options), Discrete(2))
    obs, flags = np.zeros((6, 2, 3), np.float32), np.zeros((6, 2), bool)
    zeros = np.zeros((6, 2), np.float32)
    memory = jax.tree.map(
        lambda x: jnp.zeros((7, *x.shape), x.dtype), algorithm.init_memory(jnp.asarray(obs[0]))
    )
    whole = zeros.astype(np.int32)
    rollout = Rollout(obs, whole, zeros, zeros, flags, flags, obs, whole, memory=memory)
    return algorithm, algorithm.init(jnp.asarray(obs[0]), jax.random.key(0)), rollout


@pytest.mark.parametrize(
    ("name", "options", "change", "message"),
    [
        ("ppo_clip", {"num_minibatches": 4}, {}, "2 sequences cannot be split into 4 equal"),
        ("trpo", {"critic_minibatches": 3}, {}, "2 sequences cannot be split into 3 equal"),
        (
            "ppo_penalty",
            {"sequence_length": 4},
            {},
            "sequence_length=4 does not divide the rollout's 6 steps; choose one that divides",
        ),
        ("a2c", {}, {"memory": None}, "rollout.memory has nothing, wanted leaves [T + 1, N, ...]"),
    ],
)
def test_sequences_that_do_not_fit(name, options, change, message):
    algorithm, state, rollout = remembering(name, **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        algorithm.update(state, rollout._replace(**change), jax.random.key(0))


def test_algorithms_without_a_memory():
    class Own:
        init = apply = init_memory = len

    for name in ("acktr", "dqn"):
        with pytest.raises(ValueError, match=f"{name} cannot learn with a memory; give it a netw"):
            getattr(purerl, name)(CONFIGS[name](network=GRU), Discrete(2))
        with pytest.raises(ValueError, match=r"or take policy_gradient, a2c, ppo_clip, ppo_penal"):
            getattr(purerl, name)(CONFIGS[name](), Discrete(2), Own())


def test_sequences_without_a_memory():
    with pytest.raises(ValueError, match=r"PPOClipConfig: sequence_length=4 is for networks with"):
        purerl.ppo_clip(purerl.PPOClipConfig(sequence_length=4), Discrete(2))


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
