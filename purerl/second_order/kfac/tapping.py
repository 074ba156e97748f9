"""Inputs of a network's layers, and gradients of their outputs, by evaluating its jaxpr.

At each product of a layer a zero is added to the result, whose gradient is the result's, and the
input is kept. All other operations, and custom derivatives, are left as they are.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from purerl.records import PyTree
from purerl.second_order.kfac.equations import (
    dimension_numbers,
    inner_program,
    product_axes,
    scan_operands,
    shape_of,
)
from purerl.second_order.kfac.finder import Product
from purerl.second_order.kfac.layers import Layer, Network

# By an equation's index: the plan inside of it, or a product's number and its input's operand.
Plan = dict[int, Any]
Zeros = dict[int, jax.Array]  # by a product's number


class Tapped(NamedTuple):
    """A network's output, and the inputs and output gradients of its layers.

    Attributes:
        output: Of the network.
        inputs: Function without arguments that gives each layer's inputs, ``[B, L, d + bias]``:
            patches, with a 1 for the bias. Only the factors need them, so they are not computed
            at every update.
        pullback: Function of the output's cotangent that gives the gradients of the parameters and
            of each layer's output, ``[B, L, k]``. Under ``jit`` only what is used is computed.
    """

    output: PyTree
    inputs: Callable[[], tuple[jax.Array, ...]]
    pullback: Callable[[PyTree], tuple[PyTree, tuple[jax.Array, ...]]]


def tap(
    network: Network, layers: Sequence[Layer], params: PyTree, x: PyTree, *, axis: PyTree = 0
) -> Tapped:
    """One forward pass that the loss and the Fisher information can share.

    Args:
        network: ``(params, x) -> outputs``.
        layers: Of it, by :func:`find_layers`.
        params: Parameters.
        x: Inputs of B samples.
        axis: Where B is in them, as for :func:`find_layers`.

    Raises:
        ValueError: If the layers are of another program.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from purerl.second_order.kfac import find_layers
        >>> network = lambda w, x: jnp.tanh(x @ w["hidden"]) @ w["out"]
        >>> w, x = {"hidden": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}, jnp.ones((5, 3))
        >>> tapped = tap(network, find_layers(network, w, x), w, x)
        >>> gradient, of_outputs = tapped.pullback(jnp.ones_like(tapped.output))
        >>> tapped.inputs()[0].shape, of_outputs[0].shape
        ((5, 1, 3), (5, 1, 8))
    """
    first, place = jax.tree.leaves(x)[0], jax.tree.leaves(jax.tree.broadcast(axis, x))[0]
    samples = jnp.shape(first)[place]
    products = [product for layer in layers for product in layer.products]
    closed, shape = jax.make_jaxpr(network, return_shape=True)(params, x)
    pairs = [(product, _equation(closed.jaxpr, product)) for product in products]
    plan: Plan = {}
    for number, product in enumerate(products):
        *outer, last = product.path
        inside = functools.reduce(lambda inner, i: inner.setdefault(i, {}), outer, plan)
        inside[last] = number, 1 - product.weight
    zeros = {
        number: jnp.zeros(
            (*product.turns, *shape_of(equation.outvars[0])), equation.outvars[0].aval.dtype
        )
        for number, (product, equation) in enumerate(pairs)
    }

    def forward(params, zeros):
        arguments = jax.tree.leaves((params, x))
        results, seen = _evaluate(closed.jaxpr, closed.consts, arguments, plan, zeros)
        return jax.tree.unflatten(jax.tree.structure(shape), results), seen

    output, pull, seen = jax.vjp(forward, params, zeros, has_aux=True)

    def by_layer(rows: list[jax.Array]) -> list[jax.Array]:
        """The locations of a layer's products, one after the other."""
        of_product = iter(rows)
        parts = [[next(of_product) for _ in layer.products] for layer in layers]
        return [part[0] if len(part) == 1 else jnp.concatenate(part, axis=1) for part in parts]

    def inputs():
        rows = [_inputs(*pair, seen[number], samples) for number, pair in enumerate(pairs)]
        return tuple(map(_with_ones, layers, by_layer(rows)))

    def pullback(cotangent):
        gradient, deltas = pull(cotangent)
        rows = [
            _rows(deltas[number], product, product_axes(equation, product.weight).features, samples)
            for number, (product, equation) in enumerate(pairs)
        ]
        return gradient, tuple(by_layer(rows))

    return Tapped(output, inputs, pullback)


def _equation(jaxpr: Any, product: Product) -> Any:
    """A product's equation, checked."""
    *outer, last = product.path
    try:
        for i in outer:
            jaxpr, _ = inner_program(jaxpr.eqns[i])  # type: ignore[misc]
        equation = jaxpr.eqns[last]
    except (IndexError, TypeError):
        equation = None
    if equation is not None and (
        dimension_numbers(equation) or equation.primitive.name == "conv_general_dilated"
    ):
        return equation
    raise ValueError(
        "tap: the layers are of another program than this network's with these inputs; give what "
        "find_layers finds for inputs of this kind."
    )


def _evaluate(
    jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], plan: Plan, zeros: Zeros
) -> tuple[list[Any], Zeros]:
    """A program's results, with zeros added to its products; and what the weights multiply."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else env[v]  # noqa: E731
    seen: Zeros = {}
    for i, equation in enumerate(jaxpr.eqns):
        values = [read(v) for v in equation.invars]
        part = plan.get(i)
        with equation.ctx.manager:
            if isinstance(part, dict):
                results, inner = _call(equation, values, part, zeros)
                seen |= inner
            else:
                results = _bind(equation, values)
        if isinstance(part, tuple):
            number, operand = part
            results, seen[number] = [results[0] + zeros[number]], values[operand]
        env.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars], seen


def _bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    """An equation's results, as they are."""
    primitive = equation.primitive
    results = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return list(results) if primitive.multiple_results else [results]


def _call(
    equation: Any, values: Sequence[Any], plan: Plan, zeros: Zeros
) -> tuple[list[Any], Zeros]:
    """:func:`_evaluate` of the program that an equation calls."""
    name, params = equation.primitive.name, equation.params
    program, consts = inner_program(equation)  # type: ignore[misc]
    zeros = {number: zeros[number] for number in _numbers(plan)}

    def run(values, zeros):
        return _evaluate(program, consts, values, plan, zeros)

    if name == "scan":
        return _scan(equation, values, run, zeros)
    if name in ("remat2", "checkpoint"):
        options = {key: params[key] for key in ("prevent_cse", "policy")}
        return jax.checkpoint(run, **options)(values, zeros)
    if name in ("custom_jvp_call", "custom_vjp_call"):
        # The custom derivative stays; the zeros' effect is added to what it gives.
        fixed, start = jax.lax.stop_gradient(list(values)), jax.tree.map(jnp.zeros_like, zeros)
        _, effect, seen = jax.jvp(lambda z: run(fixed, z), (start,), (zeros,), has_aux=True)
        pairs = zip(_bind(equation, values), effect, strict=True)
        return [y if e.dtype == jax.dtypes.float0 else y + e for y, e in pairs], seen
    return run(values, zeros)


def _numbers(plan: Plan) -> list[int]:
    """Of the products within a plan."""
    inner = [_numbers(x) if isinstance(x, dict) else [x[0]] for x in plan.values()]
    return [number for numbers in inner for number in numbers]


def _scan(
    equation: Any, values: Sequence[Any], run: Callable[..., Any], zeros: Zeros
) -> tuple[list[Any], Zeros]:
    consts, carry = scan_operands(equation)

    def body(state, turn):
        slices, zeros = turn
        results, seen = run([*values[:consts], *state, *slices], zeros)
        return results[:carry], (results[carry:], seen)

    options = {key: equation.params[key] for key in ("length", "reverse", "unroll")}
    split = consts + carry
    turns = list(values[split:]), zeros
    state, (stacked, seen) = jax.lax.scan(body, list(values[consts:split]), turns, **options)
    return [*state, *stacked], seen


def _rows(y: jax.Array, product: Product, features: Sequence[int], samples: int) -> jax.Array:
    """An array in the layout of a product's result as ``[B, L, k]``."""
    turns, count = len(product.turns), len(features)
    y = jnp.moveaxis(y, [turns + i for i in features], range(-count, 0))
    places, width = y.shape[: y.ndim - count], math.prod(y.shape[y.ndim - count :])
    axis = turns + product.batch
    if places[axis] != samples:
        after = places[axis] // (product.before * samples)
        places = (*places[:axis], product.before, samples, after, *places[axis + 1 :])
        axis += 1
    y = jnp.moveaxis(y.reshape(*places, width), axis, 0)
    return y.reshape(samples, -1, width)


def _inputs(product: Product, equation: Any, x: jax.Array, samples: int) -> jax.Array:
    """What a product's weight is multiplied with, ``[B, L, d]``."""
    axes, turns = product_axes(equation, product.weight), len(product.turns)
    if dimension_numbers(equation) is None:
        patches = functools.partial(_patches, equation)
        for _ in range(turns):
            patches = jax.vmap(patches)
        return _rows(patches(x), product, axes.features, samples)
    order = [turns + i for i in (*axes.others, *axes.summed)]
    rows = x.transpose(*range(turns), *order)
    features = range(len(axes.others), len(order))
    return _rows(rows, product, features, samples)


def _patches(equation: Any, x: jax.Array) -> jax.Array:
    """A convolution's input at each output pixel, in the order of the kernel's rows.

    The same convolution with the identity for its kernel: strides, padding and dilation are right
    without a second implementation of them.
    """
    shape = shape_of(equation.invars[1])
    _, (out, channels, *pixels), _ = equation.params["dimension_numbers"]
    rows = [*(shape[i] for i in pixels), shape[channels]]
    size = math.prod(rows)
    kernel = jnp.eye(size, dtype=x.dtype).reshape(*rows, size)
    kernel = jnp.moveaxis(kernel, range(kernel.ndim), (*pixels, channels, out))
    exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": x.dtype}
    return jax.lax.conv_general_dilated(x, kernel, **(equation.params | exact))


def _with_ones(layer: Layer, rows: jax.Array) -> jax.Array:
    if layer.bias is None:
        return rows
    return jnp.concatenate([rows, jnp.ones((*rows.shape[:2], 1), rows.dtype)], axis=-1)
