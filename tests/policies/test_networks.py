"""Default networks: shapes, initialization, the convolution; and networks of a user's own."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.envs.record import Env, Step
from purerl.pieces.rollout import reset, unroll
from purerl.policies.distributions import Categorical, DiagGaussian
from purerl.policies.networks import MLP, ActorCritic, Conv, NetworkConfig
from purerl.policies.q_networks import ActorQCritic
from purerl.records import Box, Discrete

TWO = Discrete(2)
ARM = Box((3,), -1.0, 1.0)
IMAGE = (6, 5, 2)


SHARED = NetworkConfig(shared=True)
SMALL = NetworkConfig(hidden_sizes=(8,), orthogonal_init=False)


def shapes(network, *inputs):
    """Shapes of outputs and parameters, without computing anything."""
    key = jax.random.key(0)
    out, params = jax.eval_shape(network.init_with_output, key, *inputs)
    leaves = jax.tree_util.tree_leaves_with_path(params["params"])
    return out, {jax.tree_util.keystr(k, simple=True, separator="/"): x.shape for k, x in leaves}


def init(network, *inputs):
    return jax.jit(network.init)(jax.random.key(1), *inputs)["params"]


@pytest.mark.parametrize("shared", [False, True])
def test_actor_critic_shapes(shared):
    config = NetworkConfig(hidden_sizes=(8, 7), shared=shared)
    (policy, value), params = shapes(ActorCritic(TWO, config), jnp.zeros((5, 4)))
    assert isinstance(policy, Categorical)
    assert policy.logits.shape == (5, 2)
    assert value.shape == (5,)
    trunks = ["torso"] if shared else ["actor", "critic"]
    names = {name.split("/")[0] for name in params}
    assert names == {*trunks, "policy_head", "value_head"}
    for trunk in trunks:
        assert params[f"{trunk}/MLP_0/Dense_0/kernel"] == (4, 8)
        assert params[f"{trunk}/MLP_0/Dense_1/kernel"] == (8, 7)
    assert params["policy_head/Dense_0/kernel"] == (7, 2)
    assert params["value_head/kernel"] == (7, 1)


def test_observations_of_any_shape_are_flattened():
    (policy, value), params = shapes(ActorCritic(TWO), jnp.zeros((5, 3, 4)))
    assert policy.logits.shape == (5, 2)
    assert value.shape == (5,)
    assert params["actor/MLP_0/Dense_0/kernel"] == (12, 64)


@pytest.mark.parametrize(
    ("torso", "obs_shape", "convolves"),
    [
        ("auto", (4,), False),
        ("auto", (6, 5), False),
        ("auto", IMAGE, True),
        ("conv", IMAGE, True),
        ("mlp", IMAGE, False),
    ],
)
def test_torso_is_chosen_by_the_observation(torso, obs_shape, convolves):
    config = NetworkConfig(torso=torso, conv_features=7)
    _, params = shapes(ActorCritic(TWO, config), jnp.zeros((5, *obs_shape)))
    conv = params.get("actor/Conv_0/Dense_0/kernel")
    assert conv == ((3 * 3 * 2, 7) if convolves else None)
    size = 4 * 3 * 7 if convolves else np.prod(obs_shape)
    assert params["actor/MLP_0/Dense_0/kernel"] == (size, 64)


@pytest.mark.parametrize(
    ("torso", "obs_shape", "message"),
    [
        ("conv", (4,), r"shape \(4,\), wanted \[H, W, C\] for torso='conv'; set torso='mlp'"),
        ("auto", (2, 5, 1), r"shape \(2, 5, 1\), wanted at least 3 x 3 pixels.*torso='mlp'"),
    ],
)
def test_observations_that_cannot_be_convolved(torso, obs_shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(ActorCritic(TWO, NetworkConfig(torso=torso)), jnp.zeros((5, *obs_shape)))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            {"hidden_sizes": (64, 0)},
            r"one of hidden_sizes=0 is out of range; set it within \[1, inf\)",
        ),
        ({"conv_features": 0}, r"conv_features=0 is out of range"),
        ({"activation": "tahn"}, "unknown activation 'tahn'. Did you mean tanh?"),
        ({"torso": "cnn"}, "unknown torso 'cnn'. Did you mean conv"),
    ],
)
def test_config_errors(field, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        NetworkConfig(**field)


def gram(kernel):
    """K^T K or K K^T, whichever is the smaller: a multiple of I for an orthogonal matrix."""
    rows, columns = kernel.shape
    return kernel @ kernel.T if rows < columns else kernel.T @ kernel


def test_weights_are_orthogonal_with_the_gains_of_ppo():
    config = NetworkConfig(hidden_sizes=(9,), conv_features=8)
    params = init(ActorCritic(TWO, config), jnp.zeros((1, *IMAGE)))
    gains = {"policy_head": 0.01, "value_head": 1.0}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert len(leaves) == 2 * 6
    for path, leaf in leaves:
        gain = gains.get(path[0].key, 2**0.5)
        if path[-1].key == "bias":
            assert not leaf.any()
        else:
            g = gram(leaf)
            np.testing.assert_allclose(g, gain**2 * np.eye(len(g)), atol=1e-5 * gain**2)


def test_the_mean_of_a_gaussian_policy_starts_near_zero():
    network = ActorCritic(ARM, NetworkConfig(hidden_sizes=(9,)))
    kernel = init(network, jnp.zeros((1, 4)))["policy_head"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(gram(kernel), 1e-4 * np.eye(3), atol=1e-9)


def test_without_orthogonal_init_weights_are_those_of_flax():
    config = NetworkConfig(hidden_sizes=(16,), orthogonal_init=False)
    kernel = init(MLP(config), jnp.zeros((1, 16)))["Dense_0"]["kernel"]
    assert np.abs(gram(kernel) - 2 * np.eye(16)).max() > 0.1
    assert 0.5 < 16 * kernel.var() < 2  # LeCun: variance 1 / fan-in


def test_actor_and_critic_start_from_different_weights():
    params = init(ActorCritic(TWO, SMALL), jnp.zeros((1, 4)))
    actor, critic = (params[k]["MLP_0"]["Dense_0"]["kernel"] for k in ("actor", "critic"))
    assert not np.allclose(actor, critic)


@pytest.mark.parametrize("shared", [False, True])
def test_the_value_moves_the_actors_trunk_only_if_it_is_shared(shared):
    network = ActorCritic(TWO, dataclasses.replace(SMALL, shared=shared))
    obs = jnp.ones((2, 4))
    params = init(network, obs)
    gradient = jax.grad(lambda p: network.apply({"params": p}, obs)[1].sum())(params)
    trunk = gradient["torso" if shared else "actor"]
    moved = any(jnp.any(g != 0) for g in jax.tree.leaves(trunk))
    assert moved == shared


def test_log_std_is_one_parameter_for_all_states():
    network = ActorCritic(ARM, SMALL)
    obs = jax.random.normal(jax.random.key(0), (5, 4))
    params = init(network, obs)
    assert params["policy_head"]["log_std"].tolist() == [0.0, 0.0, 0.0]
    params["policy_head"]["log_std"] = jnp.array([-1.0, 0.0, 2.0])
    policy, value = network.apply({"params": params}, obs)
    assert isinstance(policy, DiagGaussian)
    assert policy.mean.shape == (5, 3)
    assert policy.log_std.tolist() == [[-1.0, 0.0, 2.0]] * 5
    assert value.shape == (5,)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "swish", "gelu"])
def test_mlp_is_dense_layers_with_activations_between(x64, activation):
    config = dataclasses.replace(SMALL, hidden_sizes=(8, 7), activation=activation)
    obs = jax.random.normal(jax.random.key(0), (5, 4))
    params = init(MLP(config), obs)
    function = getattr(jax.nn, activation)
    x = obs
    for layer in ("Dense_0", "Dense_1"):
        x = function(x @ params[layer]["kernel"])
    got = MLP(config).apply({"params": params}, obs)
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)


def test_conv_equals_lax_conv(x64):
    """Its kernel, reshaped to [3, 3, C, F], is that of a convolution (HWIO)."""
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(5, *IMAGE)))
    kernel, bias = jnp.asarray(rng.normal(size=(18, 7))), jnp.asarray(rng.normal(size=7))
    got = Conv(7).apply({"params": {"Dense_0": {"kernel": kernel, "bias": bias}}}, obs)
    wanted = jax.lax.conv_general_dilated(
        obs,
        kernel.reshape(3, 3, 2, 7),
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert got.shape == (5, 4, 3, 7)
    np.testing.assert_allclose(got, wanted + bias[None, None, None], rtol=0, atol=1e-12)


def test_q_critic_of_discrete_actions():
    network = ActorQCritic(Discrete(3), SMALL)
    obs = jax.random.normal(jax.random.key(0), (5, 4))
    params = {"params": init(network, obs)}
    policy, every = network.apply(params, obs)
    assert policy.logits.shape == every.shape == (5, 3)
    action = jnp.array([0, 2, 1, 1, 0])
    _, q = network.apply(params, obs, action)
    np.testing.assert_array_equal(q, every[jnp.arange(5), action])


def test_q_critic_of_box_actions_convolves_before_the_action():
    """As torso='conv' and 'auto' say; it used to flatten the image, silently."""
    config = NetworkConfig(hidden_sizes=(8,), conv_features=7)
    _, params = shapes(ActorQCritic(ARM, config), jnp.zeros((5, *IMAGE)), jnp.zeros((5, 3)))
    assert params["Conv_0/Dense_0/kernel"] == (3 * 3 * 2, 7)
    assert params["critic/Dense_0/kernel"] == (4 * 3 * 7 + 3, 8)
    with pytest.raises(ValueError, match="wanted \\[H, W, C\\] for torso='conv'"):
        shapes(ActorQCritic(ARM, NetworkConfig(torso="conv")), jnp.zeros((5, 4)))
    config = NetworkConfig(hidden_sizes=(8,), torso="mlp")
    _, params = shapes(ActorQCritic(ARM, config), jnp.zeros((5, *IMAGE)), jnp.zeros((5, 3)))
    assert params["critic/Dense_0/kernel"] == (6 * 5 * 2 + 3, 8)


@pytest.mark.parametrize("network", [ActorQCritic(TWO, SHARED), purerl.QNetwork(TWO, SHARED)])
def test_action_values_share_no_trunk(network):
    with pytest.raises(ValueError, match="shared=True is for an actor and a state value"):
        shapes(network, jnp.zeros((5, 4)))


def test_q_critic_of_box_actions():
    network = ActorQCritic(ARM, SMALL)
    obs = jax.random.normal(jax.random.key(0), (5, 4))
    params = {"params": init(network, obs)}
    policy, q = network.apply(params, obs, jnp.ones((5, 3)))
    _, other = network.apply(params, obs, jnp.zeros((5, 3)))
    assert policy.mean.shape == (5, 3)
    assert q.shape == (5,)
    assert jnp.all(q != other)


class MaskedCategorical(NamedTuple):
    """A user's own distribution: an action that the observation forbids is never taken."""

    logits: jax.Array
    allowed: jax.Array

    @property
    def masked(self):
        return Categorical(jnp.where(self.allowed, self.logits, -jnp.inf))

    def sample(self, key):
        return self.masked.sample(key)

    def mode(self):
        return self.masked.mode()

    def log_prob(self, action):
        return self.masked.log_prob(action)

    def entropy(self):
        return self.masked.entropy()

    def kl(self, other):
        return self.masked.kl(other.masked)


class SquashedGaussian(NamedTuple):
    """A user's own distribution: the tanh of a Gaussian."""

    base: DiagGaussian

    def sample(self, key):
        return jnp.tanh(self.base.sample(key))

    def mode(self):
        return jnp.tanh(self.base.mode())

    def log_prob(self, action):
        action = jnp.clip(action, -1 + 1e-6, 1 - 1e-6)
        return self.base.log_prob(jnp.arctanh(action)) - jnp.sum(jnp.log1p(-(action**2)), axis=-1)

    def entropy(self):
        return self.base.entropy()

    def kl(self, other):
        return self.base.kl(other.base)


class OwnNetwork(nn.Module):
    """A user's own network, which shares nothing with the default ones."""

    squashed: bool = False

    @nn.compact
    def __call__(self, obs):
        x = nn.relu(nn.Dense(8)(obs))
        heads = nn.Dense(5)(x)
        if self.squashed:
            policy = SquashedGaussian(DiagGaussian(heads[:, :2], heads[:, 2:4]))
        else:
            policy = MaskedCategorical(heads[:, :3], jnp.arange(3)[None] != obs[:, :1])
        return policy, heads[:, 4]


def two_states():
    """State 0 or 1 at random, observed as such; every reward is the sum of the action."""

    def start(key):
        state = jax.random.bernoulli(key).astype(jnp.float32)
        return state[None], state

    def step(state, action, key, fresh=None):
        obs, state = start(key)
        reward = jnp.sum(action).astype(jnp.float32)
        return Step(obs, obs, reward, jnp.array(False), jnp.array(False)), state

    return Env("two states", start, step, TWO, (1,), None)


@pytest.mark.parametrize("squashed", [False, True], ids=["masked", "squashed"])
def test_own_network_and_distribution_train(squashed):
    env = two_states()
    space = Box((2,), -1.0, 1.0) if squashed else Discrete(3)
    network = OwnNetwork(squashed)
    config = purerl.PPOClipConfig(num_epochs=2, num_minibatches=2, learning_rate=0.01)
    algorithm = purerl.ppo_clip(config, space, network)
    actors = reset(env, 4, jax.random.key(0))
    learner = algorithm.init(actors.obs, jax.random.key(1))

    @jax.jit
    def iterate(learner, actors, key):
        unroll_key, update_key = jax.random.split(key)
        act = lambda obs, key: algorithm.act(learner, obs, key)  # noqa: E731
        actors, rollout, _ = unroll(act, env, actors, unroll_key, 16)
        learner, info = algorithm.update(learner, rollout, update_key)
        return learner, actors, rollout, info

    for i in range(2):
        old = learner
        learner, actors, rollout, info = iterate(old, actors, jax.random.key(2 + i))
        assert info["finite"]
        policy, _ = network.apply(old.params, rollout.obs.reshape(-1, 1))
        actions = rollout.action.reshape(64, *space.shape) if squashed else rollout.action.ravel()
        np.testing.assert_allclose(policy.log_prob(actions), rollout.log_prob.ravel(), rtol=1e-4)
        if squashed:
            assert jnp.all(jnp.abs(rollout.action) <= 1)
        else:
            assert jnp.all(rollout.action != rollout.obs[..., 0])
        changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), old.params, learner.params)
        assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Box((2,)), "returns a Categorical, but the actions are a Box"),
        (Discrete(2), "returns a DiagGaussian, but the actions are Discrete"),
    ],
)
def test_network_for_other_actions_is_refused(space, message):
    other = TWO if isinstance(space, Box) else Box((2,))
    algorithm = purerl.ppo_clip(purerl.PPOClipConfig(), space, ActorCritic(other))
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(algorithm.init, jnp.zeros((1, 4)), jax.random.key(0))


def test_the_standard_deviation_of_a_gaussian_is_chosen():
    space, obs = Box((2,)), jnp.linspace(-1, 1, 12).reshape(4, 3)

    def log_std(become=None, **options):
        network = ActorCritic(space, NetworkConfig(hidden_sizes=(8,), **options))
        params = network.init(jax.random.key(0), obs)
        if become is not None:  # by learning
            params["params"]["policy_head"]["log_std"] = jnp.full(2, become)
        return network.apply(params, obs)[0].log_std

    assert not log_std().any()
    np.testing.assert_allclose(log_std(initial_log_std=-0.5), -0.5)
    np.testing.assert_allclose(log_std(3.0, max_log_std=2.0), 2.0)
    np.testing.assert_allclose(log_std(-9.0, min_log_std=-5.0), -5.0)
    depends = log_std(state_dependent_std=True, initial_log_std=-1.0)
    np.testing.assert_allclose(depends, -1.0, atol=0.1)
    assert np.ptp(depends, axis=0).min() > 1e-4


@pytest.mark.parametrize(
    "bounds", [{"max_log_std": -0.5}, {"min_log_std": 1.0}, {"min_log_std": 1.0, "max_log_std": -1}]
)
def test_a_log_std_begins_within_its_bounds(bounds):
    """Beyond them its gradient is zero: it would never change."""
    with pytest.raises(ValueError, match=r"initial_log_std=0\.0 is not from min_log_std"):
        NetworkConfig(**bounds)
    NetworkConfig(min_log_std=-1.0, max_log_std=0.5)
