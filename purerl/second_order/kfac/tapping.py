"""Inputs of a network's layers, and gradients of their outputs, by evaluating its jaxpr.

At each product of a layer a zero is added to the result, whose gradient is the result's, and the
input is kept. All other operations, and custom derivatives, are left as they are.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.records import PyTree
from purerl.second_order.kfac.equations import (
    dimension_numbers,
    inner_program,
    is_product,
    product_axes,
    scan_operands,
    shape_of,
    walk,
)
from purerl.second_order.kfac.finder import SAMPLE, Path, Use
from purerl.second_order.kfac.layers import Layer, Network

ByPath = dict[Path, jax.Array]  # by the paths of products, from where one is in the program


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
    closed, shape = jax.make_jaxpr(network, return_shape=True)(params, x)
    equations, zeros = {}, {}
    for product in (product for layer in layers for product in layer.products):
        equation = equations[product.path] = _equation(closed.jaxpr, product.path)
        result = equation.outvars[0].aval
        zeros[product.path] = jnp.zeros((*product.turns, *result.shape), result.dtype)

    def forward(params, zeros):
        results, seen = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((params, x)), zeros)
        return jax.tree.unflatten(jax.tree.structure(shape), results), seen

    output, pull, seen = jax.vjp(forward, params, zeros, has_aux=True)

    def by_layer(rows: Callable[..., jax.Array], values: ByPath) -> Iterator[jax.Array]:
        """Rows of each layer: of its products, one after the other."""
        for layer in layers:
            parts = [rows(equations[p.path], p, values[p.path], samples) for p in layer.products]
            yield parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def inputs():
        return tuple(map(_with_ones, layers, by_layer(_inputs, seen)))

    def pullback(cotangent):
        gradient, deltas = pull(cotangent)
        return gradient, tuple(by_layer(_rows, deltas))

    return Tapped(output, inputs, pullback)


def _equation(jaxpr: Any, path: Path) -> Any:
    """A product's equation, checked."""
    *outer, last, _ = path
    try:
        for i in outer:
            jaxpr, _ = inner_program(jaxpr.eqns[i])  # type: ignore[misc]
        if is_product(jaxpr.eqns[last]):
            return jaxpr.eqns[last]
    except (IndexError, TypeError):
        pass
    raise ValueError(
        "tap: the layers are of another program than this network's with these inputs; give what "
        "find_layers finds for inputs of this kind."
    )


def _evaluate(jaxpr: Any, consts: Any, values: Any, zeros: ByPath) -> tuple[list[Any], ByPath]:
    """A program's results, with zeros added to its products; and what the weights multiply."""
    seen: ByPath = {}

    def apply(i, equation, values):
        inside = {path[1:]: zero for path, zero in zeros.items() if path[0] == i}
        results, found = _call(equation, values, inside)
        seen.update({(i, *path): x for path, x in found.items()})
        return results

    return walk(jaxpr, consts, values, apply), seen


def _bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    """An equation's results, as they are."""
    primitive = equation.primitive
    results = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return list(results) if primitive.multiple_results else [results]


def _call(equation: Any, values: list[Any], zeros: ByPath) -> tuple[list[Any], ByPath]:
    """:func:`_evaluate` of one equation, and of the program that it calls."""
    name, params = equation.primitive.name, equation.params
    if not zeros or is_product(equation):
        results = _bind(equation, values)
        seen: ByPath = {}
        for (weight,), zero in zeros.items():
            results, seen = [results[0] + zero], {(weight,): values[1 - weight]}
        return results, seen
    program, consts = inner_program(equation)  # type: ignore[misc]
    run = functools.partial(_evaluate, program, consts)
    if name == "scan":
        same, carry = scan_operands(equation)
        split = same + carry

        def body(state, turn):
            slices, zeros = turn
            results, seen = run([*values[:same], *state, *slices], zeros)
            return results[:carry], (results[carry:], seen)

        options = {key: params[key] for key in ("length", "reverse", "unroll")}
        turns = values[split:], zeros
        state, (stacked, seen) = jax.lax.scan(body, values[same:split], turns, **options)
        return [*state, *stacked], seen
    if name in ("remat2", "checkpoint"):
        options = {key: params[key] for key in ("prevent_cse", "policy")}
        return jax.checkpoint(run, **options)(values, zeros)
    if name in ("custom_jvp_call", "custom_vjp_call"):
        # The custom derivative stays; the zeros' effect is added to what it gives.
        fixed, start = jax.lax.stop_gradient(values), jax.tree.map(jnp.zeros_like, zeros)
        _, effect, seen = jax.jvp(lambda z: run(fixed, z), (start,), (zeros,), has_aux=True)
        pairs = zip(_bind(equation, values), effect, strict=True)
        return [y if e.dtype == jax.dtypes.float0 else y + e for y, e in pairs], seen
    return run(values, zeros)


def _rows(equation: Any, product: Use, y: jax.Array, samples: int, inputs=False) -> jax.Array:
    """``[B, L, k]`` of what has the layout of a product's result; of its inputs ``[B, L, d]``."""
    axes, turns = product_axes(equation, product.path[-1]), len(product.turns)
    order = axes.inputs if inputs else (*axes.places, *axes.features)
    y = y.transpose(*range(turns), *(turns + i for i in order))
    y = y.reshape(*product.turns, *(samples if n == SAMPLE else n for n in product.places), -1)
    y = jnp.moveaxis(y, turns + product.places.index(SAMPLE), 0)
    return y.reshape(samples, -1, y.shape[-1])


def _inputs(equation: Any, product: Use, x: jax.Array, samples: int) -> jax.Array:
    """What a product's weight is multiplied with, ``[B, L, d]``."""
    if dimension_numbers(equation) is not None:
        return _rows(equation, product, x, samples, inputs=True)
    patches = functools.partial(_patches, equation)
    for _ in product.turns:
        patches = jax.vmap(patches)
    return _rows(equation, product, patches(x), samples)


def _patches(equation: Any, x: jax.Array) -> jax.Array:
    """A convolution's input at each output pixel, in the order of the kernel's rows.

    The same convolution with the identity for its kernel: strides, padding and dilation are right
    without a second implementation of them.
    """
    shape, (rows, columns, *_) = shape_of(equation.invars[1]), product_axes(equation, 1)
    sizes = [shape[i] for i in rows]
    kernel = jnp.eye(math.prod(sizes), dtype=x.dtype).reshape(*sizes, -1)
    kernel = jnp.moveaxis(kernel, range(kernel.ndim), (*rows, *columns))
    exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": x.dtype}
    return jax.lax.conv_general_dilated(x, kernel, **(equation.params | exact))


def _with_ones(layer: Layer, rows: jax.Array) -> jax.Array:
    if layer.bias is None:
        return rows
    return jnp.concatenate([rows, jnp.ones((*rows.shape[:2], 1), rows.dtype)], axis=-1)
