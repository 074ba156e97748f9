"""Networks of flax.nnx and equinox as pure functions of parameters, as :class:`purerl.Network` is.

Parameters are a dict from each weight's path to its array. What a network keeps or draws besides
its weights (running statistics, dropout) cannot be: an update is a function of parameters alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import named
from purerl.policies.acting import STATELESS
from purerl.records import PyTree


class NetworkFunctions(NamedTuple):
    """A network made of two functions; a :class:`purerl.Network`.

    Attributes:
        init: ``(key, obs [B, *O], *args) -> params``.
        apply: ``(params, obs [B, *O], *args) -> output``.
        init_memory: ``(obs [B, *O]) -> memory``, of a :class:`purerl.RecurrentNetwork`; else None.
        unroll: That of a :class:`purerl.RecurrentNetwork` that has one; else None.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Any]
    init_memory: Callable[..., PyTree] | None = None
    unroll: Callable[..., Any] | None = None


def from_nnx(
    make: Callable[[Any], Any], init_memory: Callable[[PyTree], PyTree] | None = None
) -> NetworkFunctions:
    """A network of flax.nnx.

    Args:
        make: ``(nnx.Rngs) -> module``, whose call takes observations ``[B, *O]``.
        init_memory: ``(obs [B, *O]) -> memory``, if the module has one: its call is then that of a
            :class:`purerl.RecurrentNetwork`.

    Returns:
        A network of two functions, whose parameters are the module's by name.

    Raises:
        TypeError: If the module has variables that are no ``nnx.Param``.

    Example:
        >>> import jax, purerl
        >>> from flax import nnx
        >>> class Policy(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.heads = nnx.Linear(4, 3, rngs=rngs)
        ...
        ...     def __call__(self, obs):
        ...         heads = self.heads(obs)
        ...         return purerl.Categorical(heads[:, :2]), heads[:, 2]
        >>> algorithm = purerl.a2c(purerl.A2CConfig(), purerl.Discrete(2), from_nnx(Policy))
        >>> state = algorithm.init(jax.numpy.zeros((8, 4)), jax.random.key(0))
        >>> sorted(state.params)
        ['heads/bias/value', 'heads/kernel/value']
    """
    from flax import nnx

    like = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, weights, *rest = nnx.split(like, nnx.Param, ...)
    _check_rest(rest[0])
    join = _joined(weights)

    def init(key: jax.Array, obs: jax.Array, *args: Any) -> PyTree:
        return named(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, obs: jax.Array, *args: Any) -> Any:
        return nnx.merge(graph, join(params))(obs, *args)

    return NetworkFunctions(init, apply, init_memory)


def from_equinox(
    make: Callable[[jax.Array], Any], init_memory: Callable[[PyTree], PyTree] | None = None
) -> NetworkFunctions:
    """A network of equinox, mapped over the batch.

    Args:
        make: ``(key) -> module``, whose call takes one observation ``[*O]`` and returns a
            distribution without a batch axis and a value ``[]``.
        init_memory: ``(obs [B, *O]) -> memory``, if the module has one: its call then takes one
            row of the memory and one ``start`` too, and also returns the memory after the step.

    Returns:
        A network of two functions, whose parameters are the module's weights by name.

    Raises:
        TypeError: If the module has arrays that are not floating-point weights.
    """
    import equinox

    like = equinox.filter_eval_shape(make, jax.random.key(0))
    weights, rest = equinox.partition(like, _is_weight)
    _check_rest(rest)
    join = _joined(weights)

    def init(key: jax.Array, obs: jax.Array, *args: Any) -> PyTree:
        return named(equinox.filter(make(key), _is_weight))

    def apply(params: PyTree, obs: jax.Array, *args: Any) -> Any:
        return jax.vmap(equinox.combine(join(params), rest))(obs, *args)

    return NetworkFunctions(init, apply, init_memory)


def _is_weight(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def _check_rest(rest: PyTree) -> None:
    names = [name for name, leaf in named(rest).items() if hasattr(leaf, "dtype")]
    if names:
        raise TypeError(f"the network keeps {', '.join(names)}, {STATELESS}")


def _joined(like: PyTree) -> Callable[[dict[str, Any]], PyTree]:
    """The inverse of :func:`purerl.checks.named` for trees like this one."""
    names, structure = list(named(like)), jax.tree.structure(like)
    return lambda params: jax.tree.unflatten(structure, [params[name] for name in names])
