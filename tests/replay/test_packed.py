"""Items packed into words: every bit comes back, and no memory is added."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.host.resources import tree_bytes
from purerl.replay.packed import empty, pack, take_fields, unpack

DTYPES = [
    "bool", "uint8", "int8", "uint16", "int16", "float16", "bfloat16", "uint32", "int32", "float32",
    "complex64",
]  # fmt: skip
WIDE = ["uint64", "int64", "float64", "complex128"]


def bits(x):
    return np.frombuffer(np.asarray(x).tobytes(), np.uint8)


def random_items(dtypes, lead, seed=0):
    """Any bits, so NaN, infinities and negative zeros too; shapes with no axis, one, three."""
    rng = np.random.default_rng(seed)
    shapes = [(), (3,), (2, 1, 5), (0,)]

    def leaf(dtype, shape):
        if dtype == "bool":
            return jnp.asarray(rng.integers(0, 2, (*lead, *shape)).astype(bool))
        size = jnp.dtype(dtype).itemsize
        raw = rng.integers(0, 256, (*lead, *shape, size), np.uint8)
        return jnp.asarray(raw.view(jnp.dtype(dtype))[..., 0])

    return {
        dtype: [leaf(dtype, shapes[(i + j) % 4]) for j in range(3)]
        for i, dtype in enumerate(dtypes)
    }


def of_one(items, lead):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[len(lead) :], x.dtype), items)


def assert_same_bits(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(bits(a), bits(b))


def check_round_trip(dtypes, lead):
    items = random_items(dtypes, lead)
    packed = jax.jit(lambda items: pack(items, empty(of_one(items, lead))))(items)
    assert_same_bits(jax.jit(unpack)(packed), items)
    assert tree_bytes(packed) == tree_bytes(items)
    for x in packed.words:
        assert x.shape[:-1] == lead


@pytest.mark.parametrize("lead", [(), (7,), (2, 7)])
def test_every_bit_comes_back(lead):
    check_round_trip(DTYPES, lead)


def test_every_bit_comes_back_in_double_precision(x64):
    check_round_trip([*DTYPES, *WIDE], (7,))


def test_leaves_of_one_width_share_an_array():
    items = {"a": jnp.zeros(4), "b": jnp.int32(0), "c": jnp.array(True), "d": jnp.zeros(2, "uint8")}
    words = empty(items).words
    assert [(x.shape, x.dtype) for x in words] == [((5,), jnp.uint32), ((3,), jnp.uint8)]


def test_fields_of_some_items():
    """One field, several that are not neighbours, all; from one array of words and from several."""
    items = random_items(DTYPES, (9,))
    packed = pack(items, empty(of_one(items, (9,))))
    index = jnp.array([8, 0, 3, 3])
    wanted = jax.tree.map(lambda x: x[index], items)
    for choose in (
        lambda x: x["int32"][1],
        lambda x: (x["float32"][2], x["uint32"][0]),
        lambda x: (x["bool"][0], x["float32"]),
        lambda x: x,
    ):
        got = jax.jit(lambda p, i, c=choose: take_fields(p, i, c(p.fields)))(packed, index)
        assert_same_bits(got, choose(wanted))


def test_items_are_cast_and_their_number_is_known():
    like = empty({"obs": jnp.zeros(2, "uint8"), "flag": jnp.array(False)})
    packed = pack({"obs": jnp.array([[1.0, 7.0]] * 5), "flag": jnp.ones(5)}, like)
    assert packed.count == 5
    assert unpack(packed)["obs"].tolist() == [[1, 7]] * 5
    assert unpack(packed)["flag"].tolist() == [True] * 5
    seeds = jax.vmap(lambda scale: pack({"obs": jnp.full((5, 2), scale), "flag": [True] * 5}, like))
    assert seeds(jnp.arange(3)).count == 5


def test_items_of_other_fields():
    with pytest.raises(ValueError, match="Dict key mismatch"):
        pack({"a": jnp.zeros((3, 2))}, empty({"b": jnp.zeros(2)}))
