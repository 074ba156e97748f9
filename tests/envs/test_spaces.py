"""Spaces of Gymnasium as learners see them, on JAX's and on NumPy's arrays."""

import gymnasium.spaces as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.envs import spaces
from purerl.records import action_mask

BOTH = pytest.mark.parametrize("arrays", [np, jnp], ids=["numpy", "jax"])
OBSERVATIONS = {
    "box": (gym.Box(-1, 1, (2,), np.float64), [0.5, -0.5], [0.5, -0.5]),
    "scalar": (gym.Box(-1, 1, ()), 0.5, [0.5]),
    "integers": (gym.Box(0, 9, (2,), np.int64), [3, 9], [3.0, 9.0]),
    "discrete": (gym.Discrete(3), 2, [0.0, 0.0, 1.0]),
    "discrete from 5": (gym.Discrete(3, start=5), 6, [0.0, 1.0, 0.0]),
    "multi_discrete": (gym.MultiDiscrete([2, 3]), [1, 0], [0.0, 1.0, 1.0, 0.0, 0.0]),
    "multi_binary": (gym.MultiBinary(3), [1, 0, 1], [1.0, 0.0, 1.0]),
}


@BOTH
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_are_numbers(name, arrays):
    space, raw, wanted = OBSERVATIONS[name]
    seen = spaces.observations("env", space, arrays=arrays)
    got = seen.convert("env.reset", arrays.asarray(raw))
    assert seen.shape == np.shape(wanted) == got.shape
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)
    if arrays is np:  # of several environments at once
        np.testing.assert_array_equal(seen.convert("", np.array([raw, raw])), [wanted, wanted])


@BOTH
def test_bytes_stay_bytes_masks_booleans_and_trees_trees(arrays):
    image = gym.Box(0, 255, (4, 4, 3), np.uint8)
    space = gym.Dict(
        {
            "action_mask": gym.Box(0, 1, (2,), np.int8),
            "several": gym.Tuple([image, gym.Discrete(2)]),
        }
    )
    seen = spaces.observations("env", space, arrays=arrays)
    raw = space.sample()
    raw = {**raw, "action_mask": arrays.asarray(raw["action_mask"])}
    got = seen.convert("env.reset", jax.tree.map(arrays.asarray, raw))
    assert seen.shape == {"action_mask": (2,), "several": ((4, 4, 3), (2,))}
    assert got["action_mask"].dtype == bool
    assert got["several"][0].dtype == np.uint8
    np.testing.assert_array_equal(got["several"][0], raw["several"][0])


@BOTH
def test_a_tuple_of_masks_is_one_mask(arrays):
    choices = gym.Tuple([gym.MultiBinary(3), gym.Tuple([gym.MultiBinary(2)])])
    space = gym.Dict({"action_mask": choices, "at": gym.Discrete(2)})
    seen = spaces.observations("env", space, arrays=arrays)
    masks = arrays.array([1, 0, 0], np.int8), (arrays.array([0, 1], np.int8),)
    got = seen.convert("env.reset", {"action_mask": masks, "at": arrays.asarray(1)})
    assert action_mask(got).dtype == bool
    assert action_mask(got).tolist() == [True, False, False, False, True]
    assert seen.shape["action_mask"] == (5,)
    with pytest.raises(
        TypeError, match=r"env.action_mask\[0\] is a Discrete, wanted a MultiBinary"
    ):
        spaces.observations("env", gym.Dict({"action_mask": gym.Tuple([gym.Discrete(2)])}))


@BOTH
def test_actions_go_to_the_environments_own(arrays):
    def both(space, action):
        to_env, learners = spaces.actions("env", space, arrays=arrays)
        return to_env(arrays.asarray(action)), learners

    assert both(gym.Discrete(3, start=-1), 2) == (1, purerl.Discrete(3))
    action, space = both(gym.MultiDiscrete([[2, 3], [4, 5]]), [1, 2, 3, 4])
    assert (action.tolist(), space.counts) == ([[1, 2], [3, 4]], (2, 3, 4, 5))
    assert both(gym.MultiBinary(2), [0, 1])[1].counts == (2, 2)
    low, high = np.array([[50.0, -60.0]]), np.array([[100.0, -10.0]])
    bounds = gym.Box(low, high, dtype=np.float64)
    action, space = both(bounds, [0.0, 3.0])  # the middle, and beyond the upper bound
    assert (action.tolist(), space) == ([[75.0, -10.0]], purerl.Box((2,), -1.0, 1.0))
    half = gym.Box(np.array([0.0, -np.inf]), np.array([np.inf, np.inf]), dtype=np.float64)
    action, space = both(half, [-3.0, -3.0])  # not scaled, but kept within what there is
    assert action.tolist() == [0.0, -3.0]
    assert np.isinf(space.high).all()


def test_what_is_no_space_of_ours_is_told():
    inner = gym.Tuple([gym.Discrete(2), gym.Text(3)])
    space = gym.Dict({"a": inner})
    with pytest.raises(TypeError, match=r"env.a\[1\] has observations of Text; Box, Discrete"):
        spaces.observations("env", space)
    with pytest.raises(TypeError, match="env has actions of Dict; Discrete, MultiDiscrete"):
        spaces.actions("env", space)
