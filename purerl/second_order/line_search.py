"""Backtracking line search under a bound, in a ``lax.while_loop``."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import check_like
from purerl.config import check_integer, check_range
from purerl.records import PyTree


class LineSearchResult(NamedTuple):
    """Result of :func:`backtracking_line_search`; all numbers but ``tries`` are 0 if refused.

    Attributes:
        params: The accepted point, or the old one.
        accepted: ``[]`` bool.
        fraction: ``[]``, factor^j, of the step taken.
        improvement: ``[]``, of the objective.
        constraint: ``[]``, at the accepted point.
        tries: ``[]`` int32, points evaluated.
    """

    params: PyTree
    accepted: jax.Array
    fraction: jax.Array
    improvement: jax.Array
    constraint: jax.Array
    tries: jax.Array


def backtracking_line_search(
    evaluate: Callable[[PyTree], tuple[jax.Array, jax.Array]],
    params: PyTree,
    step: PyTree,
    *,
    objective: jax.Array,
    bound: float | jax.Array,
    factor: float | jax.Array = 0.8,
    max_tries: int = 10,
    least_improvement: float | jax.Array = 0.0,
) -> LineSearchResult:
    r"""The smallest j in 0, 1, ... for which :math:`\theta + \alpha^j \Delta` improves the
    objective and keeps the constraint.

    Both conditions are checked anew at every point. A point whose objective or constraint is not
    finite is not accepted.

    Args:
        evaluate: ``params -> (objective, constraint)``, scalars; the objective is maximized.
        params: :math:`\theta`.
        step: :math:`\Delta`, the full step, shaped like ``params``.
        objective: Its value at ``params``.
        bound: An accepted point's constraint is at most this.
        factor: :math:`\alpha`, in (0, 1).
        max_tries: Number of points tried at most; static.
        least_improvement: An accepted point's objective is larger by more than this.

    Returns:
        A :class:`LineSearchResult`. Where no point is accepted, ``params`` are the old ones, bit
        for bit.

    Raises:
        ValueError: If ``factor`` or ``max_tries`` is out of range, or ``step`` is not shaped like
            ``params``.

    Example:
        >>> import jax.numpy as jnp
        >>> square = lambda x: (x, jnp.square(x))
        >>> zero, one = jnp.float32(0.0), jnp.float32(1.0)
        >>> found = backtracking_line_search(
        ...     square, zero, one, objective=zero, bound=0.3, factor=0.5
        ... )
        >>> float(found.params), int(found.tries)
        (0.5, 2)

    References:
        Schulman et al. 2015 (TRPO), appendix C.
    """
    where = "backtracking_line_search"
    check_range(where, "factor", factor, "(0, 1)")
    check_integer(where, "max_tries", max_tries)
    check_like(f"{where}: step", step, params, "params")
    params = jax.tree.map(jnp.asarray, params)
    dtype = jnp.promote_types(jnp.result_type(objective), jnp.float32)  # sees small improvements
    zero = jnp.zeros((), dtype)

    def attempt(found: LineSearchResult) -> LineSearchResult:
        fraction = jnp.asarray(factor, dtype) ** found.tries
        point = jax.tree.map(lambda p, s: (p + fraction * s).astype(p.dtype), params, step)
        value, constraint = evaluate(point)
        accepted = (value > objective + least_improvement) & (constraint <= bound)
        accepted &= jnp.isfinite(value) & jnp.isfinite(constraint)
        keep = lambda new: jnp.where(accepted, new, zero).astype(dtype)  # noqa: E731
        return LineSearchResult(
            params=jax.tree.map(lambda new, old: jnp.where(accepted, new, old), point, params),
            accepted=accepted,
            fraction=keep(fraction),
            improvement=keep(value - objective),
            constraint=keep(constraint),
            tries=found.tries + 1,
        )

    start = LineSearchResult(params, jnp.array(False), zero, zero, zero, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(
        lambda found: ~found.accepted & (found.tries < max_tries), attempt, start
    )
