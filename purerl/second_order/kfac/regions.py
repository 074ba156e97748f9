"""Which parameters an output depends on: the actor's, the critic's, or a trunk that they share."""

from collections.abc import Callable

import jax
from jax.interpreters import partial_eval

from purerl.records import PyTree
from purerl.second_order.products import floating_leaves


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
