"""Trees packed into few arrays and back: no bit changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.pieces.packing import SMALL, make_packing


def tree():
    rng = np.random.default_rng(0)
    whole = lambda dtype, *shape: jnp.array(rng.integers(0, 120, (5, *shape)), dtype)  # noqa: E731
    return {
        "bfloat16": jnp.array(rng.normal(size=(5, 3)), jnp.bfloat16),
        "bool": jnp.array(rng.random((5, 2)) > 0.5),
        "complex": jnp.ones((5, 2), complex),
        "float": jnp.array(rng.normal(size=(5, 3))),
        "int": -whole(int, 2, 2),
        "int8": -whole(jnp.int8, 2),
        "key": jax.random.split(jax.random.key(0), (5, 3)),
        "large": jnp.ones((5, SMALL + 1)),
        "nan": jnp.array([jnp.nan, -jnp.nan, jnp.inf, 1e-42, -0.0]),
        "nothing": jnp.zeros((5, 0)),
        "uint16": jnp.full(5, 65535, jnp.uint16),
    }


def bits(x):
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.asarray(x).tobytes()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap])
def test_no_bit_changes(wide, transform):
    with jax.enable_x64(wide):
        before = tree()
        axes = 0 if transform is jax.vmap else 1
        shapes = jax.tree.map(lambda x: x[0], before) if transform is jax.vmap else before
        packing = make_packing(shapes, axes, packed=True)
        after = transform(lambda tree: packing.unpack(packing.pack(tree)))(before)
        for name, x in before.items():
            assert (x.dtype, x.shape) == (after[name].dtype, after[name].shape), name
            assert bits(x) == bits(after[name]), name


def test_small_leaves_become_one_array_a_type():
    packed = make_packing(tree(), 1, packed=True).pack(tree())
    alone = {"complex", "key", "large", "nothing"}
    assert len(packed) == 3 + len(alone)  # bfloat16, float32, words
    assert sorted(x.shape for x in packed[:3]) == [(5, 3), (5, 4), (5, 9)]


def test_gradients_pass():
    packing = make_packing({"x": jnp.ones(3), "t": jnp.int32(2)}, 0, packed=True)

    def square(x):
        return jnp.sum(packing.unpack(packing.pack({"x": x, "t": jnp.int32(2)}))["x"] ** 2)

    np.testing.assert_array_equal(jax.grad(square)(jnp.arange(3.0)), [0, 2, 4])


def test_an_empty_tree():
    packing = make_packing((), 1, packed=True)
    assert packing.pack(()) == []
    assert packing.unpack([]) == ()
