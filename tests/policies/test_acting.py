"""What a network owes, for every algorithm, and what it is told otherwise."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import purerl
from purerl import Box, Categorical, DiagGaussian, Discrete
from purerl.policies.acting import init_params, init_q_params

OBS = jnp.zeros((8, 4))
KEY = jax.random.key(0)
TWO, ARM = Discrete(2), Box((2,))


class Policy(nn.Module):
    """Whatever a function makes of five numbers a row."""

    output: object
    drop: bool = False
    norm: bool = False

    @nn.compact
    def __call__(self, obs):
        x = nn.Dense(5)(obs)
        if self.drop:
            x = nn.Dropout(0.5, deterministic=False)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=False)(x)
        return self.output(x)


def three_actions(x):
    return Categorical(x[:, :3]), x[:, 4]


def column(x):
    return Categorical(x[:, :2]), x[:, 4:]


class Wrong(NamedTuple):
    """A distribution of the user's with one number too many."""

    base: Categorical

    def sample(self, key):
        return self.base.sample(key)

    def mode(self):
        return self.base.mode()

    def log_prob(self, action):
        return self.base.log_prob(action)[:, None]

    def entropy(self):
        return self.base.entropy()

    def kl(self, other):
        return self.base.kl(other.base)


WRONG = {
    "column": (TWO, column, ValueError, r"value has shape \(8, 1\), wanted \(8,\)"),
    "three": (TWO, three_actions, ValueError, r"logits has shape \(8, 3\), wanted \(8, 2\)"),
    "scalar": (TWO, lambda x: (Categorical(x[:, :2]), x[0, 4]), ValueError, r"\(\), wanted \(8,\)"),
    "one value": (
        ARM,
        lambda x: (DiagGaussian(x[:, :1], x[:, :1]), x[:, 4]),
        ValueError,
        r"sampled actions has shape \(8, 1\), wanted \(8, 2\)",
    ),
    "own": (
        TWO,
        lambda x: (Wrong(Categorical(x[:, :2])), x[:, 4]),
        ValueError,
        r"log_prob has shape \(8, 1\), wanted \(8,\)",
    ),
    "logits": (
        TWO,
        lambda x: (x[:, :2], x[:, 4]),
        TypeError,
        "wanted a distribution with sample, mode, log_prob, entropy, kl; return purerl.Categorical",
    ),
    "policy alone": (TWO, lambda x: Categorical(x[:, :2]), TypeError, "Categorical, wanted a pair"),
    "two fields": (ARM, lambda x: DiagGaussian(x[:, :2], x[:, :2]), TypeError, "wanted a pair"),
    "nothing": (TWO, lambda x: None, TypeError, "returns a NoneType, wanted a pair"),
    "other kind": (TWO, lambda x: (DiagGaussian(x, x), x[:, 0]), TypeError, "actions are Discrete"),
}


@pytest.mark.parametrize(("space", "output", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_network_that_does_not_fit(space, output, error, message):
    with pytest.raises(error, match=message):
        init_params(Policy(output), space, OBS, KEY)


ALGORITHMS = {
    "a2c": (purerl.a2c, purerl.A2CConfig()),
    "acktr": (purerl.acktr, purerl.ACKTRConfig()),
    "dqn": (purerl.dqn, purerl.DQNConfig()),
    "npg": (purerl.npg, purerl.NPGConfig()),
    "policy_gradient": (purerl.policy_gradient, purerl.PolicyGradientConfig()),
    "ppo_clip": (purerl.ppo_clip, purerl.PPOClipConfig()),
    "ppo_penalty": (purerl.ppo_penalty, purerl.PPOPenaltyConfig()),
    "trpo": (purerl.trpo, purerl.TRPOConfig()),
}


@pytest.mark.parametrize("name", purerl.ALGORITHMS)
def test_every_algorithm_checks_its_network(name):
    build, config = ALGORITHMS[name]
    cases = {"three": three_actions, "column": column}
    if name == "dqn":
        cases = {"five values": lambda x: x, "pair": lambda x: (x, x), "none": lambda x: x[:, 0]}
    for output in cases.values():
        algorithm = build(config, TWO, Policy(output))
        with pytest.raises(ValueError, match=r"network.s .* has shape .*, wanted \(8,"):
            jax.eval_shape(algorithm.init, OBS, KEY)


@pytest.mark.parametrize("name", purerl.ALGORITHMS)
def test_every_algorithm_checks_that_it_is_a_network(name):
    build, config = ALGORITHMS[name]
    for network, message in (
        ({"hidden_sizes": (8,)}, "network is a dict, wanted init"),
        (purerl.ActorCritic, "network is the class ActorCritic; give an instance"),
    ):
        with pytest.raises(TypeError, match=message):
            build(config, TWO, network).init(OBS, KEY)


def test_action_values_have_one_for_each_action():
    for output, shape in ((lambda x: x, r"\(8, 5\)"), (lambda x: x[:, 0], r"\(8,\)")):
        with pytest.raises(ValueError, match=rf"q has shape {shape}, wanted \(8, 2\)"):
            init_q_params(Policy(output), TWO, OBS, KEY)
    init_q_params(Policy(lambda x: x[:, :2]), TWO, OBS, KEY)


@pytest.mark.parametrize("space", [TWO, ARM], ids=["discrete", "box"])
def test_q_critics_are_checked_as_such(space):
    config = purerl.PolicyGradientConfig(estimator="q_critic")
    init = purerl.policy_gradient(config, space).init
    jax.eval_shape(init, OBS, KEY)
    init = purerl.policy_gradient(config, space, purerl.ActorCritic(space)).init
    with pytest.raises((ValueError, TypeError)):
        jax.eval_shape(init, OBS, KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": True}, "draws random numbers, .* no BatchNorm and no Dropout"),
        ({"norm": True}, "keeps batch_stats, .* no BatchNorm and no Dropout"),
    ],
)
def test_what_a_network_cannot_have(options, message):
    output = lambda x: (Categorical(x[:, :2]), x[:, 4])  # noqa: E731
    with pytest.raises(TypeError, match=message):
        init_params(Policy(output, **options), TWO, OBS, KEY)


def test_the_check_changes_no_parameters():
    """And a network's own errors come through as they are."""
    network = purerl.ActorCritic(TWO, purerl.NetworkConfig(hidden_sizes=(4,)))
    ours, theirs = init_params(network, TWO, OBS, KEY), network.init(KEY, OBS)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, ours, theirs))

    def fails(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        init_params(Policy(fails), TWO, OBS, KEY)


def test_networks_are_hashable():
    """So they can be static arguments of jit; bounds may be NumPy's or JAX's arrays."""
    low, high = jnp.array([-1.0, -2.0]), jnp.array([1.0, 3.0])
    one, same = (purerl.ActorCritic(Box((2,), *x)) for x in ((low, high), ([-1, -2], [1, 3])))
    assert one == same
    assert hash(one) == hash(same)
    assert one != purerl.ActorCritic(Box((2,), low, 4.0))
    assert jax.jit(lambda n, x: x, static_argnums=0)(one, 1) == 1
