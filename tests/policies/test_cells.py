"""Cells over sequences against flax's own cell, step by step and differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import purerl
from purerl.policies.cells import forget_where, make_cell, unroll_cell

STEPS, ENVS, INPUTS, SIZE = 6, 2, 3, 4


def case(kind, steps=STEPS):
    """``(of the cell step by step, of this library, a point)``, all of one vector."""
    cell = make_cell(purerl.NetworkConfig(memory=kind, memory_size=SIZE))
    keys = jax.random.split(jax.random.key(1), 3)
    memory = cell.initialize_carry(keys[0], (ENVS, INPUTS))
    features = jax.random.normal(keys[1], (steps, ENVS, INPUTS))
    params = cell.init(keys[2], memory, features[0])["params"]
    start = jnp.zeros((steps, ENVS), bool).at[steps // 2, 0].set(True)
    point, unravel = ravel_pytree((params, memory, features))
    point += 0.3 * jax.random.normal(jax.random.key(2), point.shape)  # biases and memory, too

    def stepwise(vector):
        params, memory, features = unravel(vector)
        outputs = []
        for obs, begins in zip(features, start, strict=True):
            memory, out = cell.apply({"params": params}, forget_where(begins, memory), obs)
            outputs.append(out)
        return ravel_pytree((memory, jnp.stack(outputs)))[0]

    def unrolled(vector):
        params, memory, features = unravel(vector)
        return ravel_pytree(unroll_cell(kind, params, memory, features, start))[0]

    return stepwise, unrolled, point


@pytest.mark.parametrize(("kind", "steps"), [("gru", 1), ("gru", STEPS), ("lstm", STEPS)])
def test_outputs_and_derivatives_are_those_of_flaxs_cell(kind, steps, x64):
    *functions, point = case(kind, steps)
    direction = jax.random.normal(jax.random.key(3), point.shape)

    def everything(f):
        def loss(x):
            return jnp.sum(jnp.sin(3 * f(x)))

        hessian_product = jax.jvp(jax.grad(loss), (point,), (direction,))[1]
        reverse = jax.grad(lambda x: jax.jvp(loss, (x,), (direction,))[1])(point)
        return (
            *jax.jvp(f, (point,), (direction,)),
            jax.grad(loss)(point),
            hessian_product,
            reverse,
        )

    wanted, got = (jax.jit(everything, static_argnums=0)(f) for f in functions)
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-11, atol=1e-13)
