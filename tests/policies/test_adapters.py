"""Networks of flax.nnx and equinox, made by hand from the same weights, and trained."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import purerl

OBS = jax.random.normal(jax.random.key(1), (8, 4))
TWO = purerl.Discrete(2)


class NnxPolicy(nnx.Module):
    """Two layers, in a list, whose keys are integers."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, obs):
        heads = self.layers[1](jnp.tanh(self.layers[0](obs)))
        return purerl.Categorical(heads[:, :2]), heads[:, 2]


def nnx_network():
    return purerl.from_nnx(NnxPolicy)


def equinox_network():
    equinox = oracles.optional("equinox")

    class Policy(equinox.Module):
        """Equinox's modules take one observation."""

        mlp: equinox.nn.MLP

        def __init__(self, key):
            self.mlp = equinox.nn.MLP(4, 3, 8, 1, activation=jnp.tanh, key=key)

        def __call__(self, obs):
            heads = self.mlp(obs)
            return purerl.Categorical(heads[:2]), heads[2]

    return purerl.from_equinox(Policy)


NETWORKS = {
    "nnx": (nnx_network, ["layers/{}/kernel/value", "layers/{}/bias/value"]),
    "equinox": (equinox_network, ["mlp/layers/{}/weight", "mlp/layers/{}/bias"]),
}


@pytest.mark.parametrize(("make", "names"), NETWORKS.values(), ids=NETWORKS.keys())
def test_the_same_function_of_the_same_weights(make, names):
    network = make()
    params = network.init(jax.random.key(0), OBS)
    assert sorted(params) == sorted(name.format(i) for name in names for i in range(2))
    other = network.init(jax.random.key(1), OBS)
    x = OBS
    for i in range(2):
        weight, bias = (params[name.format(i)] for name in names)
        assert jnp.any(weight != other[names[0].format(i)])
        x = x @ (weight if "kernel" in names[0] else weight.T) + bias[None]
        x = jnp.tanh(x) if i == 0 else x
    policy, value = jax.jit(network.apply)(params, OBS)
    np.testing.assert_allclose(policy.logits, x[:, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, x[:, 2], rtol=1e-5, atol=1e-6)
    hash(network)


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (nnx_network, (purerl.trpo, purerl.TRPOConfig(critic_epochs=1, critic_minibatches=2))),
        (equinox_network, (purerl.a2c, purerl.A2CConfig())),
    ],
    ids=NETWORKS.keys(),
)
def test_seeds_are_trained(make, algorithm):
    build, config = algorithm
    algorithm = build(config, TWO, make())
    env = purerl.make_env("CartPole-v1")
    train = purerl.make_train(algorithm, env, 16, num_envs=2, rollout_length=8, evaluations=0)
    result = jax.jit(purerl.vectorize(train.train))(jax.random.split(jax.random.key(0), 2))
    assert not result.failed.any()
    biases = [x for name, x in result.state.learner.params.items() if "bias" in name]
    assert all(jnp.any(x != 0) and jnp.any(x[0] != x[1]) for x in biases)


def test_what_is_no_weight_is_refused():
    class Normalized(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(4, rngs=rngs)

    class Dropping(nnx.Module):
        def __init__(self, rngs):
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    for network, message in ((Normalized, "keeps norm/mean"), (Dropping, "keeps drop/rngs")):
        with pytest.raises(TypeError, match=f"{message}.*no BatchNorm and no Dropout"):
            purerl.from_nnx(network)


def test_arrays_of_equinox_that_are_no_weights_are_refused():
    equinox = oracles.optional("equinox")

    class Counting(equinox.Module):
        count: jax.Array

        def __init__(self, key):
            self.count = jnp.arange(3)

    with pytest.raises(TypeError, match=r"keeps count.*no BatchNorm"):
        purerl.from_equinox(Counting)


def test_modules_are_told_of_the_adapters():
    module = NnxPolicy(nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"network is a NnxPolicy.*purerl.from_nnx"):
        purerl.ppo_clip(purerl.PPOClipConfig(), TWO, module)


def test_acktr_factors_it_too():
    state = purerl.acktr(purerl.ACKTRConfig(), TWO, nnx_network()).init(OBS, jax.random.key(0))
    assert len(state.opt_state[0].factors.a) >= 2
