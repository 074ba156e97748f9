"""The layers of a network, for K-FAC: which of its parameters are weights of matrix products.

The network is any function of parameters and inputs. Its jaxpr is read: a layer is a parameter that
is an operand of ``dot_general`` or of a convolution whose other operand depends on the input.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records import PyTree
from purerl.second_order.kfac.equations import Shape, dimension_numbers, inner_program
from purerl.second_order.kfac.finder import Data, Finder, Product, Step, Use, View

Network = Callable[[PyTree, PyTree], Any]  # (params, x) -> outputs


class Layer(NamedTuple):
    """One matrix ``[d, k]``, applied at L locations of every sample.

    A product with ``[B, d]`` has one location; with ``[B, H, W, d]`` it has H W, and so has a
    convolution with H W output pixels, whose input at each is a patch. A weight that is used
    several times, or at every turn of a scan, has the locations of all uses.

    Attributes:
        weight: Name of the parameter: ``params/actor/Dense_0/kernel``.
        bias: Name of the parameter that is added to the product; None: there is none.
        inputs: d, without the 1 that stands for the bias.
        outputs: k.
        locations: L.
        steps: From the weight to the matrix.
        bias_steps: From the bias to ``[k]``.
        products: The weight's uses.
    """

    weight: str
    bias: str | None
    inputs: int
    outputs: int
    locations: int
    steps: tuple[Step, ...] = ()
    bias_steps: tuple[Step, ...] = ()
    products: tuple[Product, ...] = ()

    @property
    def rows(self) -> int:
        """d, and one more for a bias."""
        return self.inputs + (self.bias is not None)


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves by their names: ``params/Dense_0/kernel``.

    Args:
        tree: Parameters.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def find_layers(
    network: Network, params: PyTree, x: PyTree, *, axis: PyTree = 0, strict: bool = True
) -> tuple[Layer, ...]:
    """The layers of any function of parameters and inputs, in the order in which they are used.

    Nothing is computed. A weight may reach its product transposed, reshaped, cast or repeated,
    within ``jit``, ``checkpoint``, ``scan`` or a function with a custom derivative. A parameter
    that meets the input in other operations only (a bias that is added to a sum of two products,
    the scale of a LayerNorm, an embedding) is no layer: K-FAC keeps a diagonal for it.

    Args:
        network: ``(params, x) -> outputs``, such as ``module.apply``.
        params: Parameters.
        x: Inputs of B samples, arrays ``[B, ...]``; only the shapes matter.
        axis: Where B is in them; an integer, or a tree of them, or a prefix of one.
        strict: If False, what cannot be factored is left out, and has a diagonal.

    Raises:
        ValueError: If there is no layer, or if a parameter is multiplied with the input in a way
            that a Kronecker product does not describe: a convolution with groups, a stack of
            matrices, a function of the parameter in its place, samples that have no axis of their
            own. Says where in the source.

    Example:
        >>> import jax.numpy as jnp
        >>> network = lambda w, x: jnp.tanh(x @ w["hidden"].T + w["b"][None]) @ w["out"]
        >>> w = {"hidden": jnp.ones((8, 3)), "b": jnp.ones(8), "out": jnp.ones((8, 2))}
        >>> for layer in find_layers(network, w, jnp.ones((5, 3))):
        ...     print(layer.weight, layer.bias, layer.inputs, layer.outputs, layer.locations)
        hidden b 3 8 1
        out None 8 2 1
    """
    finder = _follow(network, params, x, axis)
    found: list[tuple[int, str]] = []
    refused: dict[str, Use] = {}
    for name, uses in finder.uses.items():
        if misfit := _misfit(uses):
            refused[name] = misfit
        elif uses[0].kind == "product":
            found.append((uses[0].product, name))
    if refused and strict:
        name, use = next(iter(refused.items()))
        raise ValueError(
            f"K-FAC cannot factor {name}, of shape {jnp.shape(named(params)[name])}: {use.reason} "
            f"({use.where}); write it as a matrix times a vector at every location, or choose an "
            "algorithm such as trpo."
        )
    if not found and strict:
        raise ValueError(
            "the network multiplies none of its parameters with its input, and such weights are "
            "all that K-FAC can factor; choose an algorithm such as trpo."
        )
    return tuple(_layer(name, finder) for _, name in sorted(found))


def _follow(network: Network, params: PyTree, x: PyTree, axis: PyTree) -> Finder:
    """Parameters followed through the program, at a number of samples that no other axis has."""
    leaves, structure = jax.tree.flatten(x)
    axes = jax.tree.leaves(jax.tree.broadcast(axis, x))
    shapes = [jnp.shape(leaf) for leaf in leaves]
    samples = shapes[0][axes[0]]

    def program(size):
        resized = [
            jax.ShapeDtypeStruct((*shape[:i], size, *shape[i + 1 :]), jnp.result_type(leaf))
            for leaf, shape, i in zip(leaves, shapes, axes, strict=True)
        ]
        return jax.make_jaxpr(network)(params, jax.tree.unflatten(structure, resized)).jaxpr

    taken = {n for shape in (*shapes, *map(jnp.shape, jax.tree.leaves(params))) for n in shape}
    size = next(p for p in PRIMES if not any(n and n % p == 0 for n in taken))
    jaxpr = program(samples)
    try:
        wide = program(size)
    except (TypeError, ValueError):  # the function is for this many samples only
        wide = None
    if wide is None or _signature(wide) != _signature(jaxpr):
        wide, size = jaxpr, samples
    finder = Finder(size)
    views = [_whole(name, jnp.shape(leaf)) for name, leaf in named(params).items()]
    finder.run(wide, [*views, *[Data()] * len(leaves)])
    return finder


PRIMES = (1009, 1013, 10007, 100003, 1000003)


def _whole(name: str, shape: Shape) -> View:
    squeezed = tuple(n for n in shape if n > 1)
    places = iter(range(len(squeezed)))
    axes = tuple(next(places) if n > 1 else None for n in shape)
    return View(name, (("reshape", squeezed),), axes)


def _signature(jaxpr: Any) -> tuple[Any, ...]:
    """The operations of a program, whatever the sizes."""
    found = []
    for equation in jaxpr.eqns:
        program = None if dimension_numbers(equation) else inner_program(equation)
        found.append((equation.primitive.name, program and _signature(program[0])))
    return tuple(found)


def _misfit(uses: list[Use]) -> Use | None:
    """The use that keeps a parameter from being a layer; None: it is one, or none is wanted."""
    products = [use for use in uses if use.kind == "product"]
    for use in uses:
        if use.kind == "bad":
            return use
        if products and use.kind != "product":
            where = products[0].where
            return use._replace(reason=f"it is a weight at {where}, and something else as well")
        if products and use.steps != products[0].steps:
            return use._replace(reason=f"at {products[0].where} it is multiplied as another matrix")
    return None


def _layer(name: str, finder: Finder) -> Layer:
    uses = finder.uses[name]
    mine = [use.product for use in uses]
    products = tuple(finder.products[i] for i in mine)
    layer = Layer(
        weight=name,
        bias=None,
        inputs=uses[0].shape[0],
        outputs=uses[0].shape[1],
        locations=sum(product.locations for product in products),
        steps=uses[0].steps,
        products=products,
    )
    for other, theirs in finder.uses.items():
        alike = {(use.kind, use.steps) for use in theirs} == {("bias", theirs[0].steps)}
        if alike and [use.product for use in theirs] == mine:
            return layer._replace(bias=other, bias_steps=theirs[0].steps)
    return layer


def to_matrices(
    layers: Sequence[Layer], tree: PyTree
) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
    """A tree shaped like the parameters as one matrix ``[d + bias, k]`` a layer, and the rest.

    Args:
        layers: Of the network.
        tree: Shaped like its parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> network = lambda p, x: x @ p["w"] + p["b"][None]
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> layers = find_layers(network, params, jnp.ones((5, 2)))
        >>> (matrix,), rest = to_matrices(layers, params)
        >>> matrix.shape, rest
        ((3, 3), {})
    """
    rest = named(tree)
    matrices = []
    for layer in layers:
        matrix = _apply(layer.steps, rest.pop(layer.weight))
        if layer.bias is not None:
            bias = _apply(layer.bias_steps, rest.pop(layer.bias))
            matrix = jnp.concatenate([matrix, bias[None]])
        matrices.append(matrix)
    return tuple(matrices), rest


def from_matrices(
    layers: Sequence[Layer], matrices: Sequence[jax.Array], rest: dict[str, jax.Array], like: PyTree
) -> PyTree:
    """The inverse of :func:`to_matrices`.

    Args:
        layers: Of the network.
        matrices: ``[d + bias, k]`` of each layer.
        rest: What belongs to no layer.
        like: A tree of the wanted shapes.
    """
    leaves, flat = named(like), dict(rest)
    for layer, matrix in zip(layers, matrices, strict=True):
        weight = matrix[: layer.inputs]
        flat[layer.weight] = _undo(layer.steps, weight, leaves[layer.weight])
        if layer.bias is not None:
            flat[layer.bias] = _undo(layer.bias_steps, matrix[-1], leaves[layer.bias])
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in leaves])


def _apply(steps: Sequence[Step], x: jax.Array) -> jax.Array:
    for name, argument in steps:
        x = x.reshape(argument) if name == "reshape" else x.transpose(argument)
    return x


def _undo(steps: Sequence[Step], x: jax.Array, like: jax.Array) -> jax.Array:
    """From the matrix back to the parameter."""
    shapes = [jnp.shape(like)]
    for name, argument in steps:
        shape = shapes[-1]
        shapes.append(argument if name == "reshape" else tuple(shape[i] for i in argument))
    for (name, argument), shape in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
        x = x.reshape(shape) if name == "reshape" else x.transpose(np.argsort(argument))
    return x
