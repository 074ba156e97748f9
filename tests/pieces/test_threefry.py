"""Threefry written out: what JAX draws, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.pieces.threefry import UNROLLED, rolled, threefry, unrolled

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
