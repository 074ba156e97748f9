"""Networks of another precision than JAX's default, and data of NumPy's, with every algorithm."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import Box, Categorical, DiagGaussian, Discrete

T, N, B = 4, 2, 6
KEY = jax.random.key(0)
SPACES = {"discrete": Discrete(2), "box": Box((2,))}


class Small(nn.Module):
    """Dense layers alone, so that K-FAC can factor it."""

    space: object
    dtype: object
    q: bool = False

    @nn.compact
    def __call__(self, obs):
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.dtype)
        heads = dense(5)(jnp.tanh(dense(4)(obs)))
        if self.q:
            return heads[:, :2]
        if isinstance(self.space, Discrete):
            return Categorical(heads[:, :2]), heads[:, 4]
        return DiagGaussian(heads[:, :2], 0.1 * heads[:, 2:4]), heads[:, 4]


def build(name, space, dtype):
    config = {
        "a2c": lambda: purerl.A2CConfig(),
        "acktr": lambda: purerl.ACKTRConfig(
            cold_start=0, target_kl=1e-4, learning_rate_schedule="constant"
        ),
        "dqn": lambda: purerl.DQNConfig(batch_size=B, double=True, target_tau=0.5, target_every=1),
        "npg": lambda: purerl.NPGConfig(critic_epochs=1, critic_minibatches=2),
        "policy_gradient": lambda: purerl.PolicyGradientConfig(),
        "ppo_clip": lambda: purerl.PPOClipConfig(
            num_epochs=2, num_minibatches=2, value_epochs=1, clip_value=0.2, max_kl=0.1
        ),
        "ppo_penalty": lambda: purerl.PPOPenaltyConfig(num_epochs=1, num_minibatches=2),
        "trpo": lambda: purerl.TRPOConfig(critic_epochs=1, critic_minibatches=2),
    }[name]()
    return getattr(purerl, name)(config, space, Small(space, dtype, name == "dqn"))


def data(name, space):
    """NumPy's arrays, of a loop of the user's own."""
    rng = np.random.default_rng(0)
    real = np.dtype(jnp.result_type(float))

    def numbers(*shape):
        return rng.normal(size=shape).astype(real)

    lead = (B,) if name == "dqn" else (T, N)
    action = rng.integers(2, size=lead).astype(np.int32)
    if isinstance(space, Box):
        action = numbers(*lead, 2)
    obs, next_obs = numbers(*lead, 3), numbers(*lead, 3)
    if name == "dqn":
        indices = np.arange(B, dtype=np.int32)
        ones = np.ones(B, real)
        return purerl.OffPolicyBatch(obs, action, numbers(B), 0.9 * ones, next_obs, ones, indices)
    flags = rng.random((2, T, N)) < 0.3
    log_prob, step = numbers(T, N) - 1, np.zeros((T, N), np.int32)
    return purerl.Rollout(obs, action, log_prob, numbers(T, N), *flags, next_obs, step)


CASES = [(name, "discrete") for name in purerl.ALGORITHMS]
CASES += [("acktr", "box"), ("ppo_penalty", "box"), ("trpo", "box")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("name", "space"), CASES)
def test_two_updates_keep_every_dtype(name, space, dtype):
    """bfloat16 by default, float32 under x64: parameters stay as they are, so that a scan over
    updates has one state; actions and log-probabilities are float32 at least.
    """
    with jax.enable_x64(dtype == "float32"):
        space = SPACES[space]
        algorithm, played = build(name, space, dtype), data(name, space)

        def run(key):
            obs = jnp.zeros((N, 3))
            state = algorithm.init(obs, key)

            def iterate(state, progress):
                action, extras = algorithm.act(state, obs, key, progress=progress)
                rollout = played
                if name != "dqn":
                    rollout = played._replace(log_prob=jnp.tile(extras["log_prob"], (T, 1)))
                state, info = algorithm.update(state, rollout, key, progress=progress)
                return state, (action, extras["log_prob"], info)

            end, out = jax.lax.scan(iterate, state, jnp.array([0.0, 0.5]))
            return state.params, end.params, out

        before, after, (action, log_prob, info) = jax.eval_shape(run, KEY)
        chex.assert_trees_all_equal_dtypes(before, after)
        assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype(dtype)}
        for x in (log_prob, info.get("loss", log_prob)):
            assert jnp.finfo(x.dtype).bits >= 32
        if isinstance(space, Box):
            assert jnp.finfo(action.dtype).bits >= 32


def test_a_bfloat16_network_learns():
    """The step is made, in the parameters' own precision, and changes what the policy does."""
    algorithm = build("a2c", SPACES["discrete"], jnp.bfloat16)
    state = algorithm.init(jnp.zeros((N, 3)), KEY)
    new, info = algorithm.update(state, data("a2c", SPACES["discrete"]), KEY)
    assert info["finite"]
    chex.assert_tree_all_finite(new.params)
    pairs = zip(*map(jax.tree.leaves, (state.params, new.params)), strict=True)
    assert all(jnp.any(a != b) for a, b in pairs)


@pytest.mark.parametrize("name", purerl.ALGORITHMS)
def test_numpy_data_go_wherever_jax_data_go(name):
    """Not as arguments of what is traced, so that they stay NumPy's, as in eager use."""
    algorithm, played = build(name, SPACES["discrete"], jnp.float32), data(name, SPACES["discrete"])
    obs = played.obs if name == "dqn" else played.obs[0]

    def by_hand():
        state = algorithm.init(obs, KEY)
        return algorithm.act(state, obs, KEY), algorithm.update(state, played, KEY)

    (action, _), (_, info) = jax.eval_shape(by_hand)
    assert action.shape == obs.shape[:1]
    assert info["finite"].shape == ()


@pytest.mark.parametrize("name", ["policy_gradient", "dqn"])
def test_numpy_data_give_the_same_numbers(name):
    algorithm, played = build(name, SPACES["discrete"], jnp.float32), data(name, SPACES["discrete"])
    state = algorithm.init(jnp.zeros((N, 3)), KEY)
    got = algorithm.update(state, played, KEY)
    wanted = algorithm.update(state, jax.tree.map(jnp.asarray, played), KEY)
    chex.assert_trees_all_equal(got, wanted)
