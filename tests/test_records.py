"""Records and spaces: what help() shows of them, and what is no space."""

import inspect

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces as gymnax_spaces

import purerl
from purerl import Box, Discrete
from purerl.checks import check_action_space, check_fields

PUBLIC = [getattr(purerl, name) for name in purerl.__all__]
RECORDS = [x for x in PUBLIC if inspect.isclass(x) and hasattr(x, "_fields")]


@pytest.mark.parametrize("record", RECORDS, ids=lambda x: x.__name__)
def test_help_shows_every_field(record):
    """Comments and attribute docstrings are not in help(); the docstring's Attributes are."""
    text = inspect.getdoc(record)
    assert "Attributes:" in text
    missing = [name for name in record._fields if f"    {name}: " not in text]
    assert not missing


EQUAL = [
    (Box((2,), [-1, -2], 3), Box((2,), jnp.array([-1.0, -2.0]), np.array([3, 3]))),
    (Box((2,)), Box([2], -np.inf, float("inf"))),
    (Discrete(3), Discrete(np.int64(3))),
]


@pytest.mark.parametrize(("one", "same"), EQUAL, ids=lambda x: str(x)[:20])
def test_equal_spaces_are_one_key(one, same):
    assert one == same
    assert len({one, same}) == 1


def test_other_spaces_are_other_keys():
    boxes = [Box((1,), 0, 1), Box((1,), 0, 2), Box((1,), -1, 1), Box((2,), 0, 1), Box((1,))]
    assert len({*boxes, Discrete(1), Discrete(2)}) == 7
    assert Box((1,)) != Discrete(1)


def test_bounds_are_a_number_or_an_array_that_does_not_change():
    box = Box((2,), [-1, -2], jnp.ones(2))
    assert box.high == 1.0
    assert isinstance(box.high, float)
    with pytest.raises(ValueError, match="read-only"):
        box.low[0] = 5
    assert jnp.clip(jnp.array([-9.0, 9.0]), box.low, box.high).tolist() == [-1.0, 1.0]


def test_traced_bounds_pass_unchecked():
    jax.eval_shape(lambda x: Box((2,), -x, x).high, jnp.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Discrete(0), r"num_actions=0 is out of range"),
        (lambda: Discrete(2.5), "num_actions=2.5 is no integer"),
        (lambda: Box(3), r"shape=3, wanted a tuple of integers: \(3,\)"),
        (lambda: Box((0,)), "an axis of shape=0 is out of range"),
        (lambda: Box((2,), 1.0, 1.0), "low=1.0 is not below high=1.0 everywhere"),
        (lambda: Box((2,), [0.0, 2.0], 1.0), r"low=\[0. 2.\] is not below high=1.0"),
        (lambda: Box((2,), np.nan), "low=nan is not below"),
        (lambda: Box((2,), np.zeros(3)), r"low has shape \(3,\), wanted a number or shape \(2,\)"),
        (lambda: Box((2,), 0.0, np.ones((2, 1))), r"high has shape \(2, 1\)"),
    ],
)
def test_what_is_no_space(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gymnasium.spaces.Discrete(4), r"gymnasium.Discrete, .*write purerl.Discrete\(4\)"),
        (gymnax_spaces.Discrete(4), r"gymnax.Discrete, .*write purerl.Discrete\(4\)"),
        (
            gymnasium.spaces.Box(-1, 1, (3,)),
            r"gymnasium.Box, .*write purerl.Box\(\(3,\), space.low, space.high\)",
        ),
        (
            gymnasium.spaces.MultiDiscrete([3, 2]),
            r"gymnasium.MultiDiscrete, .*write purerl.MultiDiscrete\(\(3, 2\)\)",
        ),
        (gymnasium.spaces.Text(2), "wanted purerl.Discrete, MultiDiscrete or Box"),
    ],
)
def test_other_libraries_spaces_are_told_what_to_write(space, message):
    with pytest.raises(TypeError, match=message):
        check_action_space(space)
    with pytest.raises(TypeError, match=message):
        purerl.ppo_clip(purerl.PPOClipConfig(), space)


def test_shapes_by_letters():
    class Record:
        x = jnp.zeros((5, 3, 4, 2))
        y = jnp.zeros((5, 4, 2), jnp.int32)

    check_fields("record", Record, {"T N *O floating": "x", "T *O integer": "y"})
    check_fields("record", Record, {"T N *O any": "x"}, **{"*O": (4, 2)})
    for layout, sizes, message in (
        ({"T N *O any": "x y"}, {}, r"record.y has shape \(5, 4, 2\), wanted \[5, 3, 4, 2\]"),
        (
            {"T N floating": "x"},
            {},
            r"record.x has shape .*, wanted \[T, N\], as \[T, N\] \(time, environments\)",
        ),
        ({"T N *O any": "x"}, {"*O": (4,)}, r"wanted \[T, N, 4\]"),
        ({"T *O integer": "x"}, {}, "record.x has dtype float32, wanted integer; convert it"),
        ({"T *O bool": "y"}, {}, "record.y has dtype int32, wanted bool"),
    ):
        with pytest.raises(ValueError, match=message):
            check_fields("record", Record, layout, **sizes)
