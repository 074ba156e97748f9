r"""Recurrent cells of flax over whole sequences, with a derivative that suits long ones.

Each cell here is, with gates :math:`g_k` that act on each unit for itself,

.. math::
    m_t = g(m_{t-1}, x_t, r_t), \qquad x_{t,k} = W_k o_t + b_k, \qquad r_{t,k} = U_k h_{t-1} + c_k,

h being (the last part of) the memory m. The inputs' products of all steps are one product before
the loop. The derivative's are, too: with the elementwise Jacobians of g, which are taken of all
steps at once, what changes :math:`m_t` besides :math:`m_{t-1}` is :math:`\partial_x g\,\dot x_t +
\partial_r g\,(\dot U h_{t-1} + \dot c)`, and a loop is left that has no parameters but U. So a
gradient's loop neither computes nor adds up a gradient of the weights at each step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from purerl.policies.networks import NetworkConfig, orthogonal_weights
from purerl.records import PyTree, flatten_time

Arrays = tuple[jax.Array, ...]


class Cell(NamedTuple):
    """What flax calls the layers of a cell, and how its gates follow from them."""

    kind: Callable[..., nn.RNNCellBase]
    inputs: tuple[str, ...]
    memory: tuple[str, ...]
    gates: Callable[[Arrays, Arrays, Arrays], Arrays]


def _gru(memory: Arrays, x: Arrays, r: Arrays) -> Arrays:
    (h,) = memory
    reset, update = nn.sigmoid(x[0] + r[0]), nn.sigmoid(x[1] + r[1])
    new = jnp.tanh(x[2] + reset * r[2])
    return ((1 - update) * new + update * h,)


def _lstm(memory: Arrays, x: Arrays, r: Arrays) -> Arrays:
    cell, _ = memory
    write, forget, new, output = (a + b for a, b in zip(x, r, strict=True))
    cell = nn.sigmoid(forget) * cell + nn.sigmoid(write) * jnp.tanh(new)
    return cell, nn.sigmoid(output) * jnp.tanh(cell)


CELLS = {
    "gru": Cell(nn.GRUCell, ("ir", "iz", "in"), ("hr", "hz", "hn"), _gru),
    "lstm": Cell(nn.OptimizedLSTMCell, ("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho"), _lstm),
}


def make_cell(config: NetworkConfig, name: str | None = None) -> nn.RNNCellBase:
    """The recurrent cell, flax's own.

    Args:
        config: Whose ``memory`` and ``memory_size`` it has.
        name: Of its parameters.
    """
    options: dict[str, Any] = {"name": name, "param_dtype": jnp.result_type(float)}
    if config.orthogonal_init:
        options["kernel_init"] = orthogonal_weights(1.0)
    return CELLS[config.memory].kind(config.memory_size, **options)


def forget_where(start: jax.Array, memory: PyTree) -> PyTree:
    """A memory that is zero where an episode starts.

    Args:
        start: bool ``[B]``.
        memory: Leaves ``[B, ...]``.
    """

    def one(x: jax.Array) -> jax.Array:
        return jnp.where(start.reshape(-1, *[1] * (x.ndim - 1)), jnp.zeros_like(x), x)

    return jax.tree.map(one, memory)


def unroll_cell(
    memory_kind: str, params: PyTree, memory: PyTree, features: jax.Array, start: jax.Array
) -> tuple[PyTree, jax.Array]:
    """A cell's outputs over sequences, as the cell step by step gives them.

    Args:
        memory_kind: ``"gru"`` or ``"lstm"``.
        params: Of flax's cell.
        memory: Before the first step, leaves ``[n, H]``.
        features: ``[T, n, F]``.
        start: bool ``[T, n]``, where the memory is empty.

    Returns:
        ``(memory, outputs [T, n, H])``: the memory after the last step.
    """
    cell = CELLS[memory_kind]
    leaves, structure = jax.tree.flatten(memory)
    x = tuple(_dense(params[name], features) for name in cell.inputs)
    kernels = tuple(params[name]["kernel"] for name in cell.memory)
    biases = tuple(
        params[name].get("bias", jnp.zeros(k.shape[1], k.dtype))
        for name, k in zip(cell.memory, kernels, strict=True)
    )
    after = _unroll(cell.gates, kernels, biases, x, start, tuple(leaves))
    return jax.tree.unflatten(structure, [m[-1] for m in after]), after[-1]


def _dense(params: PyTree, x: jax.Array) -> jax.Array:
    """``[T, n, F] -> [T, n, H]`` by one product."""
    out = flatten_time(x) @ params["kernel"]
    if "bias" in params:
        out = out + params["bias"][None]
    return out.reshape(*x.shape[:2], -1)


def _steps(
    gates: Any, kernels: Arrays, biases: Arrays, x: Arrays, start: jax.Array, memory: Arrays
) -> tuple[Arrays, Arrays, Arrays]:
    """The memories ``[T, n, H]`` after each step and before it, and the products ``r``."""

    def step(memory: Arrays, row: Any) -> Any:
        x, start = row
        memory = forget_where(start, memory)
        r = tuple(memory[-1] @ u + c[None] for u, c in zip(kernels, biases, strict=True))
        after = gates(memory, x, r)
        return after, (after, memory, r)

    return _scan(step, memory, (x, start))


def _scan(step: Any, carry: PyTree, rows: PyTree) -> PyTree:
    """``lax.scan``, without a loop for one step, as in acting; the stacked outputs."""
    if len(jax.tree.leaves(rows)[0]) > 1:
        return jax.lax.scan(step, carry, rows)[1]
    return jax.tree.map(lambda x: x[None], step(carry, jax.tree.map(lambda x: x[0], rows))[1])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _unroll(
    gates: Any, kernels: Arrays, biases: Arrays, x: Arrays, start: jax.Array, memory: Arrays
) -> Arrays:
    return _steps(gates, kernels, biases, x, start, memory)[0]


@_unroll.defjvp
def _unroll_jvp(gates: Any, primals: Any, tangents: Any) -> tuple[Arrays, Arrays]:
    kernels, _, x, start, _ = primals
    kernels_dot, biases_dot, x_dot, _, memory_dot = tangents
    after, before, r = _steps(gates, *primals)
    by_memory, by_x, by_r = _elementwise_jacobians(gates, before, x, r)
    by_memory = jax.tree.map(lambda d: jnp.where(start[..., None], 0, d), by_memory)
    r_dot = [
        _dense({"kernel": u, "bias": c}, before[-1])
        for u, c in zip(kernels_dot, biases_dot, strict=True)
    ]
    force = _combine([*by_x, *by_r], [*x_dot, *r_dot])
    # A start forgets the memory's change, too.
    by_r = jax.tree.map(lambda d: jnp.where(start[..., None], 0, d), by_r)

    def linear(force: Arrays, memory_dot: Arrays) -> Arrays:
        def step(memory_dot: Arrays, row: Any) -> Any:
            force, by_memory, by_r = row
            r_dot = [memory_dot[-1] @ u for u in kernels]
            change = _combine([*by_memory, *by_r], [*memory_dot, *r_dot])
            out = tuple(a + b for a, b in zip(change, force, strict=True))
            return out, out

        return _scan(step, memory_dot, (force, by_memory, by_r))

    # JAX transposes a scan only where its own linearization has marked what is linear in it.
    zeros = jax.tree.map(jnp.zeros_like, (force, memory_dot))
    return after, jax.linearize(linear, *zeros)[1](force, memory_dot)


def _elementwise_jacobians(gates: Any, *inputs: Arrays) -> list[list[Arrays]]:
    """For each array of each input the derivatives of the gates' outputs by it."""

    def of(i: int, j: int) -> Arrays:
        def vary(x: jax.Array) -> Arrays:
            group = (*inputs[i][:j], x, *inputs[i][j + 1 :])
            return gates(*inputs[:i], group, *inputs[i + 1 :])

        return jax.jvp(vary, (inputs[i][j],), (jnp.ones_like(inputs[i][j]),))[1]

    return [[of(i, j) for j in range(len(group))] for i, group in enumerate(inputs)]


def _combine(jacobians: list[Arrays], tangents: list[jax.Array]) -> Arrays:
    """Each output's change: the sum over the inputs of derivative times change."""
    terms = [[d * t for d in by] for by, t in zip(jacobians, tangents, strict=True)]
    return tuple(sum(column[1:], column[0]) for column in zip(*terms, strict=True))
