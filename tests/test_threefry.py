"""Threefry written out: what JAX draws, and nothing else."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.classic_control.cartpole import CartPole
from gymnax.wrappers.purerl import FlattenObservationWrapper, GymnaxWrapper

import purerl
from purerl.envs.record import Env, Step
from purerl.envs.trial import random_action
from purerl.threefry import UNROLLED, as_others_take, rolled, threefry, unrolled

DRAWS = {
    "split": lambda key: jax.random.key_data(rolled(jax.random.split(key))),
    "split to a matrix": lambda key: jax.random.key_data(rolled(jax.random.split(key, (3, 5)))),
    "fold_in": lambda key: jax.random.key_data(rolled(jax.random.fold_in(key, 2**32 - 1))),
    "32 bits": lambda key: jax.random.bits(key, (4, 3, 2), jnp.uint32),
    "16 bits": lambda key: jax.random.bits(key, (7,), jnp.uint16),
    "8 bits": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "one number": jax.random.uniform,
    "no numbers": lambda key: jax.random.uniform(key, (0, 3)),
    "normal": lambda key: jax.random.normal(key, (64, 3)),
    "integers": lambda key: jax.random.randint(key, (9,), 0, 100),
    "permutation": lambda key: jax.random.permutation(key, 11),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_is_what_jax_draws(name):
    def both(key):
        return DRAWS[name](key), DRAWS[name](unrolled(key))

    keys = jax.random.split(jax.random.key(3), 4)
    for theirs, ours in (both(keys[0]), jax.jit(both)(keys[1]), jax.jit(jax.vmap(both))(keys)):
        np.testing.assert_array_equal(ours, theirs)


def test_words_of_64_bits_are_those_of_jax():
    with jax.enable_x64(True):
        key = jax.random.key(1)
        for draw in (
            lambda key: jax.random.bits(key, (3, 2), jnp.uint64),
            lambda key: jax.random.normal(key, (5,), jnp.float64),
        ):
            np.testing.assert_array_equal(draw(unrolled(key)), draw(key))


@pytest.mark.parametrize(
    ("key", "number", "hashed"),
    [  # Random123's kat_vectors, threefry2x32 20
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_cipher_against_the_vectors_of_its_authors(key, number, hashed):
    key, number = (jnp.array(x, jnp.uint32) for x in (key, number))
    assert tuple(int(x) for x in threefry(key, *number)) == hashed


def test_the_cipher_is_an_operation_that_jax_transforms_as_any_other():
    def loss(x, key):
        return jnp.sum(jnp.tanh(x * jax.random.normal(key, (3,))))

    keys = jax.random.split(jax.random.key(3), 4)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("seeds",))
    spread = {"mesh": mesh, "in_specs": jax.P("seeds"), "out_specs": jax.P("seeds")}
    of_one = lambda key: jax.random.normal(key, (3,))  # noqa: E731
    for transformed in (
        jax.vmap(jax.grad(loss), in_axes=(None, 0)),
        jax.jit(jax.vmap(jax.jacfwd(jax.grad(jax.checkpoint(loss))), in_axes=(None, 0))),
        lambda _, keys: jax.jit(jax.shard_map(jax.vmap(of_one), **spread))(keys),
        lambda _, keys: jax.lax.map(of_one, keys),
        lambda x, keys: jax.vmap(jax.vmap(loss, (0, None)), (None, 0))(x[:, None], keys),
    ):
        x = jnp.array([0.5, 1.0, 2.0])
        np.testing.assert_array_equal(transformed(x, unrolled(keys)), transformed(x, keys))
    with jax.disable_jit():
        np.testing.assert_array_equal(of_one(unrolled(keys[0])), of_one(keys[0]))


def test_other_keys_and_other_arrays_stay_as_they_are():
    tree = {"key": jax.random.key(0), "other": jax.random.key(0, impl="rbg"), "x": jnp.ones(2)}
    there = unrolled(tree)
    assert jax.random.key_impl(there["key"]) == UNROLLED
    assert there["other"] is tree["other"]
    assert there["x"] is tree["x"]
    assert rolled(there)["key"].dtype == tree["key"].dtype


def test_keys_stay_as_they_are_where_jax_draws_other_numbers():
    key = jax.random.key(0)
    with jax.threefry_partitionable(False):
        assert unrolled(key) is key


@pytest.mark.parametrize("algorithm", ["a2c", "dqn"])
def test_a_run_shows_the_keys_of_jax_alone(algorithm):
    experiment = purerl.make_experiment(algorithm, "CartPole-v1", steps=2000)
    train = experiment.build()
    state = jax.eval_shape(train.init, jax.random.key(0))
    after, _ = jax.eval_shape(lambda state: train.advance(state, 1), state)
    for shown in (state, after):
        assert shown.key.dtype == jax.random.key(0).dtype


def jaxs_own(key):
    """What JAX draws by its own kind of keys alone, and a key beside another."""
    key = jnp.where(key == key, key, jax.random.key(0))
    return jax.random.poisson(key, 3.0).astype(jnp.float32)


class Queue:
    """An environment of somebody else's, in gymnax's manner, with a key in its state."""

    def make(self):
        def reset(key):
            return jnp.full(2, jaxs_own(key)), (jax.random.key(7), jnp.int32(0))

        def step(state, action, key, fresh):
            obs, over = jnp.full(2, jaxs_own(key)), state[1] == 3
            after = obs, (jax.random.fold_in(state[0], 1), state[1] + 1)
            begun = jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, after)
            return Step(begun[0], obs, obs[0], over, jnp.array(False)), begun[1]

        return Env("queue", reset, step, purerl.Discrete(2), (2,), 4)


@pytest.mark.parametrize("name", [name for name in purerl.list_envs() if ":" not in name])
def test_gymnaxs_environments_take_keys_of_either_kind(name):
    env = purerl.make_env(name)
    given = lambda drawing: as_others_take(drawing, lambda tree: tree)  # noqa: E731
    assert given(env.reset) is env.reset and given(env.step) is env.step  # noqa: PT018

    def play(key):
        obs, state = env.reset(key)
        action = random_action(env.action_space, None, key)
        return (
            (obs, state),
            env.step(state, action, key),
            env.step(state, action, key, (obs, state)),
        )

    key = jax.random.key(4)
    both = jax.eval_shape(play, key), rolled(jax.eval_shape(lambda: play(unrolled(key))))
    assert both[0] == both[1]
    if name in ("CartPole-v1", "Breakout-MinAtar", "Catch-bsuite"):
        theirs, ours = jax.jit(play)(key), rolled(jax.jit(play)(unrolled(key)))
        jax.tree.map(np.testing.assert_array_equal, theirs, ours)


class Drawing(CartPole):
    """An environment of somebody else's, made of gymnax's."""

    def step_env(self, key, state, action, params):
        jaxs_own(key)
        return super().step_env(key, state, action, params)


@pytest.mark.parametrize("wrap", [lambda env: env, GymnaxWrapper, FlattenObservationWrapper])
def test_an_environment_of_others_in_a_wrapper_of_gymnaxs_sees_the_keys_of_jax(wrap):
    env = purerl.make_env(wrap(Drawing()))
    algorithm = purerl.a2c(purerl.A2CConfig(), env.action_space)
    train = purerl.make_train(algorithm, env, 256, num_envs=4, rollout_length=16, evaluations=0)
    jax.eval_shape(lambda key: train.advance(train.init(key), 1)[0], jax.random.key(0))


@pytest.mark.parametrize("algorithm", purerl.ALGORITHMS)
def test_an_environment_of_others_sees_the_keys_of_jax(algorithm):
    sizes = {"steps": 256, "num_envs": 4, "evaluations": 0, "normalize_obs": True}
    if algorithm == "dqn":
        sizes |= {"warmup": 64, "capacity": 256, "batch_size": 16}
    else:
        sizes |= {"rollout_length": 16}
    if algorithm.startswith("ppo"):
        sizes["num_minibatches"] = 2
    train = purerl.make_experiment(algorithm, Queue().make(), **sizes).build()
    state = jax.eval_shape(lambda key: train.advance(train.init(key), 1)[0], jax.random.key(0))
    assert state.actors.env_state[0].dtype == state.key.dtype == jax.random.key(0).dtype
    jax.eval_shape(train.evaluate, state)


@flax.struct.dataclass
class Counts:
    """A distribution of somebody else's."""

    inner: purerl.Categorical

    def sample(self, key):
        return self.inner.sample(key) + 0 * jaxs_own(key).astype(jnp.int32)

    def mode(self):
        return self.inner.mode()

    def log_prob(self, action):
        return self.inner.log_prob(action)

    def entropy(self):
        return self.inner.entropy()

    def kl(self, other):
        return self.inner.kl(other.inner)


class Net:
    """A network of somebody else's."""

    def init(self, key, obs):
        return {"w": jnp.full((obs.shape[-1], 3), jaxs_own(key))}

    def apply(self, params, obs):
        y = obs @ params["w"]
        return Counts(purerl.Categorical(y[..., :2])), y[..., 2]


@pytest.mark.parametrize("algorithm", [name for name in purerl.ALGORITHMS if name != "dqn"])
def test_a_network_of_others_and_its_distribution_see_the_keys_of_jax(algorithm):
    sizes = {"steps": 256, "num_envs": 4, "rollout_length": 16, "evaluations": 0}
    changes = {"num_minibatches": 2} if algorithm.startswith("ppo") else {}
    experiment = purerl.make_experiment(algorithm, "CartPole-v1", network=Net(), **sizes, **changes)
    train = experiment.build()
    state = jax.eval_shape(lambda key: train.advance(train.init(key), 1)[0], jax.random.key(0))
    jax.eval_shape(train.evaluate, state)


@pytest.mark.parametrize("function", ["init", "act", "update"])
def test_an_algorithm_of_others_sees_the_keys_of_jax(function):
    env = purerl.make_env("CartPole-v1")
    inner = purerl.a2c(purerl.A2CConfig(), env.action_space)

    def theirs(*args, **kw):
        jaxs_own(args[-1])
        return getattr(inner, function)(*args, **kw)

    algorithm = inner._replace(**{function: theirs}, ahead=None)
    train = purerl.make_train(algorithm, env, 256, num_envs=4, rollout_length=16, evaluations=0)
    state = jax.eval_shape(lambda key: train.advance(train.init(key), 1)[0], jax.random.key(0))
    jax.eval_shape(train.evaluate, state)
