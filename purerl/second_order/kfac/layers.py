"""The layers of a network, for K-FAC: which of its parameters are weights of matrix products.

The network is any function of parameters and inputs. Its jaxpr is read: a layer is a parameter that
is an operand of ``dot_general`` or of a convolution whose other operand depends on the input.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.checks import named
from purerl.records import PyTree
from purerl.second_order.kfac.equations import inner_program
from purerl.second_order.kfac.finder import Data, Finder, Layout, Use, Weight, regroup

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
        matrix: Places of ``[d, k]`` in the flattened weight.
        vector: Places of ``[k]`` in the flattened bias.
        products: The weight's uses.
    """

    weight: str
    bias: str | None
    inputs: int
    outputs: int
    locations: int
    matrix: Layout = ()
    vector: Layout = ()
    products: tuple[Use, ...] = ()

    @property
    def rows(self) -> int:
        """d, and one more for a bias."""
        return self.inputs + (self.bias is not None)


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
    found, refused = [], {}
    for name, uses in finder.uses.items():
        products = tuple(uses.values())
        if misfit := _misfit(products):
            refused[name] = misfit
        elif products[0].kind == "product":
            found.append(_layer(name, products, finder))
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
    return tuple(sorted(found, key=lambda layer: layer.products[0].path))


def _follow(network: Network, params: PyTree, x: PyTree, axis: PyTree) -> Finder:
    """Parameters followed through the program, at a number of samples that no other axis has."""
    axes = jax.tree.broadcast(axis, x)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((x, params))]
    samples = shapes[0][jax.tree.leaves(axes)[0]]

    def program(size: int) -> Any:
        def resized(leaf, i):
            before, after = jnp.shape(leaf)[:i], jnp.shape(leaf)[i + 1 :]
            return jax.ShapeDtypeStruct((*before, size, *after), jnp.result_type(leaf))

        return jax.make_jaxpr(network)(params, jax.tree.map(resized, x, axes)).jaxpr

    size = next(p for p in PRIMES if all(n % p or not n for shape in shapes for n in shape))
    jaxpr = wide = program(samples)
    with contextlib.suppress(TypeError, ValueError):  # it may be for this many samples only
        wide = program(size)
    if wide is jaxpr or _signature(wide) != _signature(jaxpr):
        wide, size = jaxpr, samples
    finder = Finder(size)
    kinds = [
        Weight(frozenset({name}), regroup([((jnp.size(leaf), 1),)], jnp.shape(leaf)))
        for name, leaf in named(params).items()
    ]
    kinds += [finder.made(None, (), v, Data()) for v in wide.invars[len(kinds) :]]
    for kind in finder.run(wide, kinds, (), ()):
        if isinstance(kind, Data):
            finder.readers[kind.product].add(())
    return finder


PRIMES = (1009, 1013, 10007, 100003, 1000003)


def _signature(jaxpr: Any) -> tuple[Any, ...]:
    """The operations of a program, whatever the sizes."""
    inner = [(equation.primitive.name, inner_program(equation)) for equation in jaxpr.eqns]
    return tuple((name, program and _signature(program[0])) for name, program in inner)


def _misfit(uses: Sequence[Use]) -> Use | None:
    """The use that keeps a parameter from being a layer; None: it is one, or none is wanted."""
    products = [use for use in uses if use.kind == "product"]
    for use in uses:
        if use.reason:
            return use
        if products and use.kind != "product":
            where = products[0].where
            return use._replace(reason=f"it is a weight at {where}, and something else as well")
        if products and use.layout != products[0].layout:
            return use._replace(reason=f"at {products[0].where} it is multiplied as another matrix")
    return None


def _layer(name: str, products: tuple[Use, ...], finder: Finder) -> Layer:
    """The layer of a weight, with its bias."""
    matrix = products[0].layout
    inputs, outputs = (math.prod(n for n, _ in axis) for axis in matrix)
    locations = -sum(math.prod((*use.turns, *use.places)) for use in products)  # SAMPLE is -1
    layer = Layer(name, None, inputs, outputs, locations, matrix, products=products)
    alone = all(len(finder.readers[use.path]) == 1 for use in products)
    for other, uses in finder.uses.items():
        vector = next(iter(uses.values())).layout
        added = [("bias", vector, use.path) for use in products]
        if alone and [use[:3] for use in uses.values()] == added:
            return layer._replace(bias=other, vector=vector)
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
        matrix = _taken(layer.matrix, rest.pop(layer.weight))
        if layer.bias is not None:
            bias = _taken(layer.vector, rest.pop(layer.bias))
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
        flat[layer.weight] = _put_back(layer.matrix, weight, leaves[layer.weight])
        if layer.bias is not None:
            flat[layer.bias] = _put_back(layer.vector, matrix[-1], leaves[layer.bias])
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in leaves])


def _parts(layout: Layout) -> tuple[list[int], list[int]]:
    """Sizes of a layout's parts, and their order in the parameter, slowest first."""
    parts = [part for axis in layout for part in axis]
    return [n for n, _ in parts], sorted(range(len(parts)), key=lambda i: -parts[i][1])


def _taken(layout: Layout, x: jax.Array) -> jax.Array:
    """The matrix of a parameter."""
    sizes, order = _parts(layout)
    shape = [math.prod(n for n, _ in axis) for axis in layout]
    return x.reshape([sizes[i] for i in order]).transpose(np.argsort(order)).reshape(shape)


def _put_back(layout: Layout, x: jax.Array, like: jax.Array) -> jax.Array:
    """The parameter of a matrix."""
    sizes, order = _parts(layout)
    return x.reshape(sizes).transpose(order).reshape(jnp.shape(like))
