"""Inputs of a network's layers, and gradients of their outputs, for K-FAC.

No tracer and no graph matcher: ``flax.linen.intercept_methods`` sees every call of an ``nn.Dense``
or ``nn.Conv``, records its input and adds a perturbation of zero to its output, whose gradient is
the output's. So any network of such layers will do, unchanged.
"""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import tracers
from flax.traverse_util import flatten_dict
from jax.interpreters import partial_eval

from purerl.records import PyTree, num_rows
from purerl.second_order.products import floating_leaves


class Layer(NamedTuple):
    """A Dense or Conv layer: one matrix ``[d, k]``, applied at L locations of every sample.

    A Dense layer on ``[B, d]`` has one location; on ``[B, H, W, d]`` it has H W, and so has a
    convolution with H W output pixels, whose input at each is a patch. A layer that is called
    several times has the locations of all calls.

    Attributes:
        path: Of its parameters: ``params/actor/Dense_0``.
        inputs: d, without the 1 that stands for the bias.
        outputs: k.
        bias: Whether it has one.
        locations: L.
    """

    path: str
    inputs: int
    outputs: int
    bias: bool
    locations: int


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


def find_layers(network: nn.Module, params: PyTree, obs: jax.Array) -> tuple[Layer, ...]:
    """The network's Dense and Conv layers, in the order in which they are called.

    Nothing is computed, only shapes are.

    Args:
        network: A flax module.
        params: Its variables, as ``network.init`` returns them.
        obs: ``[B, *O]``.

    Raises:
        ValueError: If there is no such layer, a matrix that belongs to none (of an embedding, or of
            attention), or a layer that a Kronecker product does not describe: grouped or masked
            convolutions, layers within ``nn.scan``, ``nn.vmap``, ``nn.remat`` or
            ``nn.jit``, layers whose input's first axis is not the batch.

    Example:
        >>> import jax, jax.numpy as jnp, purerl
        >>> network, obs = purerl.MLP(purerl.NetworkConfig(hidden_sizes=(8,))), jnp.zeros((5, 3))
        >>> params = network.init(jax.random.key(0), obs)
        >>> find_layers(network, params, obs)[0]._asdict()
        {'path': 'params/Dense_0', 'inputs': 3, 'outputs': 8, 'bias': True, 'locations': 1}
    """
    found: dict[str, Layer] = {}

    def forward(params, obs):
        trace = tracers.current_trace()

        def visit(module, x, y):
            _check(module, x, num_rows(obs), lifted=tracers.current_trace() != trace)
            path = _path(module)
            locations = _count(module, y) + (found[path].locations if path in found else 0)
            size = _rows(module, x), module.features
            found[path] = Layer(path, *size, module.use_bias, locations)
            return y

        with _visiting(visit):
            return network.apply(params, obs)

    jax.eval_shape(forward, params, obs)
    if not found:
        raise ValueError(
            f"the network {type(network).__name__} has no nn.Dense or nn.Conv layer of flax.linen, "
            "which are all that K-FAC can factor; choose an algorithm such as trpo for others."
        )
    # Vectors of no layer (a log-std, a norm's scale) have a diagonal; matrices need a layer.
    for name, x in flatten_dict(params, sep="/").items():
        layer = name.rpartition("/")[0]
        if layer not in found and jnp.ndim(x) > 1:
            raise ValueError(
                f"K-FAC cannot factor {name}, of shape {jnp.shape(x)}: {layer} is no nn.Dense or "
                "nn.Conv layer; build the network of these, or choose another algorithm."
            )
    return tuple(found.values())


def tap(network: nn.Module, layers: Iterable[Layer], params: PyTree, obs: jax.Array) -> Tapped:
    """One forward pass that the loss and the Fisher information can share.

    Args:
        network: A flax module.
        layers: Of it, by :func:`find_layers`.
        params: Its variables.
        obs: ``[B, *O]``.

    Example:
        >>> import jax, jax.numpy as jnp, purerl
        >>> network, obs = purerl.MLP(purerl.NetworkConfig(hidden_sizes=(8,))), jnp.ones((5, 3))
        >>> params = network.init(jax.random.key(0), obs)
        >>> tapped = tap(network, find_layers(network, params, obs), params, obs)
        >>> gradient, of_outputs = tapped.pullback(jnp.ones_like(tapped.output))
        >>> tapped.inputs()[0].shape, of_outputs[0].shape
        ((5, 1, 4), (5, 1, 8))
    """
    layers = tuple(layers)
    index = {layer.path: i for i, layer in enumerate(layers)}
    modules: list[list[nn.Module]] = [[] for _ in layers]

    def forward(params, perturbations):
        seen: list[list[jax.Array]] = [[] for _ in layers]
        used = [0] * len(layers)

        def visit(module, x, y):
            i, here = index[_path(module)], _count(module, y)
            perturbation = perturbations[i][:, used[i] : used[i] + here]
            used[i] += here
            modules[i].append(module.clone(parent=None, name=None))
            seen[i].append(x)
            return y + perturbation.reshape(y.shape).astype(y.dtype)

        with _visiting(visit):
            output = network.apply(params, obs)
        return output, seen

    dtype = jnp.result_type(*jax.tree.leaves(params))
    zeros = tuple(
        jnp.zeros((num_rows(obs), layer.locations, layer.outputs), dtype) for layer in layers
    )
    output, pullback, seen = jax.vjp(forward, params, zeros, has_aux=True)
    return Tapped(output, lambda: tuple(map(_locations, modules, seen)), pullback)


def reaching(function: Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """Whether a function's output has a gradient for each parameter, by the gradient's structure.

    A parameter's gradient is zero in structure where it does not depend on the output's cotangent.

    Args:
        function: Of the parameters; differentiable.
        params: Their shapes matter, not their values.

    Returns:
        Bools, shaped like ``params``.

    Example:
        >>> import jax
        >>> both = jax.jit(lambda p: (p["a"] * 2.0, p["b"]))
        >>> reaching(lambda p: both(p)[0], {"a": 1.0, "b": 1.0})
        {'a': True, 'b': False}
    """

    def outputs(params):
        return floating_leaves(function(params))[0]

    def pull(cotangents):
        return jax.vjp(outputs, params)[1](cotangents)

    jaxpr = jax.make_jaxpr(pull)(jax.eval_shape(outputs, params)).jaxpr
    count = len(jaxpr.outvars)
    # JAX's own dead-code elimination says which inputs an output needs.
    needed = [
        partial_eval.dce_jaxpr(jaxpr, [i == j for j in range(count)])[1] for i in range(count)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), map(any, needed))


@contextlib.contextmanager
def _visiting(visit: Callable[[Any, jax.Array, jax.Array], jax.Array]):
    """Context in which each Dense or Conv layer returns ``visit(layer, input, output)``."""

    def interceptor(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name != "__call__" or not isinstance(context.module, nn.Dense | nn.Conv):
            return y
        return visit(context.module, args[0] if args else kwargs["inputs"], y)

    with nn.intercept_methods(interceptor):
        yield


def _check(module: Any, x: jax.Array, batch: int, lifted: bool) -> None:
    where = f"K-FAC cannot factor the layer {'/'.join(module.path)} ({type(module).__name__})"
    if lifted:
        raise ValueError(
            f"{where}: it is within nn.scan, nn.vmap, nn.remat or nn.jit; call it outside of them."
        )
    conv = isinstance(module, nn.Conv)
    if conv and (module.feature_group_count != 1 or module.mask is not None):
        raise ValueError(f"{where}: it has groups or a mask; use neither.")
    axes = len(_kernel_size(module)) + 2 if conv else max(x.ndim, 2)
    if x.ndim != axes or x.shape[0] != batch:
        wanted = "one batch axis" if conv else f"[{batch}, ...], one row a sample"
        raise ValueError(f"{where}: its input has shape {x.shape}, wanted {wanted}.")


def _locations(modules: list[Any], seen: list[jax.Array]) -> jax.Array:
    """A layer's inputs in all of its calls, ``[B, L, d + bias]``."""
    rows = []
    for module, x in zip(modules, seen, strict=True):
        if isinstance(module, nn.Conv):
            x = _patches(module, x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if module.use_bias:
            x = jnp.concatenate([x, jnp.ones((*x.shape[:2], 1), x.dtype)], axis=-1)
        rows.append(x)
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)


def _patches(module: Any, x: jax.Array) -> jax.Array:
    """A convolution's input at each output pixel, in the order of the kernel's rows.

    The same convolution with the identity for its kernel: strides, padding and dilation are right
    without a second implementation of them.
    """
    rows = _rows(module, x)
    kernel = jnp.eye(rows, dtype=x.dtype).reshape(*_kernel_size(module), x.shape[-1], rows)
    finder = module.clone(features=rows, use_bias=False, precision=jax.lax.Precision.HIGHEST)
    return finder.apply({"params": {"kernel": kernel}}, x)


def _path(module: nn.Module) -> str:
    return "/".join(("params", *module.path))


def _count(module: Any, y: jax.Array) -> int:
    """Number of locations of one call."""
    return y.size // (len(y) * module.features)


def _rows(module: Any, x: jax.Array) -> int:
    """Number of rows of the layer's matrix, without the bias."""
    return x.shape[-1] * (math.prod(_kernel_size(module)) if isinstance(module, nn.Conv) else 1)


def _kernel_size(module: nn.Conv) -> tuple[int, ...]:
    size = module.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)
