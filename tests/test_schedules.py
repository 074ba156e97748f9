"""Schedules by hand: at the run's beginning, its middle and its end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purerl.config import scheduled

POINTS = {
    "constant": [0.5, 0.5, 0.5, 0.5],
    "linear": [0.5, 0.375, 0.25, 0.0],
    "cosine": [0.5, 0.25 * (1 + np.sqrt(0.5)), 0.25, 0.0],
}


@pytest.mark.parametrize("shape", POINTS)
def test_points_of_a_run(shape):
    values = [float(scheduled(0.5, shape, p)) for p in (0.0, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(values, POINTS[shape], atol=1e-7)
    swept = jax.vmap(lambda x: jnp.asarray(scheduled(x, shape, 0.25)))(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(swept, [POINTS[shape][1], 2 * POINTS[shape][1]], rtol=1e-6)


@pytest.mark.parametrize("shape", POINTS)
def test_a_function_of_progress_is_asked_whatever_the_shape(shape):
    value = scheduled(optax.linear_schedule(1.0, 0.2, 1), shape, jnp.float32(0.5))
    np.testing.assert_allclose(value, 0.6, rtol=1e-6)
