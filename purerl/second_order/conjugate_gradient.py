"""Conjugate gradient on pytrees, in a ``lax.while_loop``."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from purerl.checks import check_like
from purerl.config import check_integer, check_range
from purerl.pieces.gradient import all_finite
from purerl.records import PyTree
from purerl.second_order.products import cast_like

LinearMap = Callable[[PyTree], PyTree]


class CGStop(enum.IntEnum):
    r"""Why :func:`conjugate_gradient` stopped.

    Attributes:
        CONVERGED: The residual is small enough.
        MAX_ITERATIONS: There was no more iteration to make.
        NON_POSITIVE_CURVATURE: A direction p had :math:`p^\top (A + c I) p \le 0`.
        NON_FINITE: A number was not finite.
    """

    CONVERGED = 0
    MAX_ITERATIONS = 1
    NON_POSITIVE_CURVATURE = 2
    NON_FINITE = 3


class CGResult(NamedTuple):
    """Result of :func:`conjugate_gradient`.

    Attributes:
        x: The solution, shaped like b; finite, if x0 is.
        residual: Like b: b - (A + damping I) x, as the recursion has it.
        residual_norm: ``[]``, its Euclidean norm.
        iterations: ``[]`` int32, products with A that made up x.
        reason: ``[]`` int32, a :class:`CGStop`.
    """

    x: PyTree
    residual: PyTree
    residual_norm: jax.Array
    iterations: jax.Array
    reason: jax.Array


class _Carry(NamedTuple):
    x: PyTree
    residual: PyTree
    direction: PyTree
    rz: jax.Array  # [] residual^T M residual
    rr: jax.Array  # [] residual^T residual
    iterations: jax.Array
    reason: jax.Array  # [] int32; _RUNNING while there is none


_RUNNING = -1


def conjugate_gradient(
    matvec: LinearMap,
    b: PyTree,
    *,
    x0: PyTree | None = None,
    tolerance: float | jax.Array = 1e-6,
    max_iterations: int = 10,
    damping: float | jax.Array = 0.0,
    preconditioner: LinearMap | None = None,
) -> CGResult:
    r"""Solves :math:`(A + c I) x = b` for a symmetric positive definite matrix.

    Stops at the first residual whose norm is at most ``tolerance`` times b's; after
    ``max_iterations``; where a direction p has :math:`p^\top (A + c I) p \le 0`; and where a number
    is not finite (a squared norm beyond the range of the dtype is not, either). In the last two
    cases x is that of the iteration before. Under ``vmap`` a system that has stopped keeps its
    values, bit for bit, while others go on, whatever they run into.

    Args:
        matvec: ``v -> A v``, on pytrees like b.
        b: Right-hand side, of floating-point leaves.
        x0: Where to start; zero by default, which saves a product.
        tolerance: Relative to the norm of b.
        max_iterations: At most so many products with A; static.
        damping: c.
        preconditioner: ``r -> M r`` with M an approximation of the inverse of A + c I, symmetric
            positive definite; None: the identity.

    Returns:
        A :class:`CGResult`.

    Raises:
        ValueError: If an argument is out of range, x0 or a product is not shaped like b, or b is
            not of floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> result = conjugate_gradient(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 2.0]))
        >>> stop = CGStop(int(result.reason))
        >>> result.x.round(5).tolist(), int(result.iterations), stop.name
        ([1.0, 0.5], 2, 'CONVERGED')

    References:
        Hestenes & Stiefel 1952; Saad 2003, algorithm 9.1.

    Differs from:
        Implementations that stop at an absolute :math:`r^\top r < 10^{-10}`, which depends on the
        scale of the gradient; here the tolerance is relative.
    """
    where = "conjugate_gradient"
    check_integer(where, "max_iterations", max_iterations)
    check_range(where, "tolerance", tolerance, "[0, inf)")
    check_range(where, "damping", damping, "[0, inf)")
    _check(matvec, b, x0)
    flatten, tree_of = _flattening(b)
    b, like = flatten(b), b
    x0 = None if x0 is None else flatten(cast_like(x0, like))

    def matrix(v: PyTree) -> PyTree:
        return _axpy(damping, v, flatten(matvec(tree_of(v))))

    def precondition(r: PyTree) -> PyTree:
        return r if preconditioner is None else flatten(cast_like(preconditioner(tree_of(r)), like))

    start = jax.tree.map(jnp.zeros_like, b) if x0 is None else x0
    residual = b if x0 is None else _axpy(-1.0, matrix(start), b)
    direction = precondition(residual)
    threshold = jnp.square(tolerance) * optax.tree.vdot(b, b)
    dtype = threshold.dtype
    rr = optax.tree.vdot(residual, residual).astype(dtype)

    def reason(rr, iterations):
        """The CGStop after an iteration without failure, or _RUNNING."""
        going = jnp.where(iterations < max_iterations, _RUNNING, CGStop.MAX_ITERATIONS)
        return jnp.where(rr <= threshold, CGStop.CONVERGED, going).astype(jnp.int32)

    def iterate(c: _Carry) -> _Carry:
        product = matrix(c.direction)
        curvature = optax.tree.vdot(c.direction, product)
        alpha = c.rz / curvature
        x = _axpy(alpha, c.direction, c.x)
        residual = _axpy(-alpha, product, c.residual)
        z = precondition(residual)
        rz = optax.tree.vdot(residual, z).astype(dtype)
        rr = optax.tree.vdot(residual, residual).astype(dtype)
        direction = _axpy(rz / c.rz, c.direction, z)
        iterations = c.iterations + 1
        new = _Carry(x, residual, direction, rz, rr, iterations, reason(rr, iterations))
        # Where rr = 0 the new direction may be 0 / 0, but it is not used any more.
        bad = jnp.where(curvature <= 0, CGStop.NON_POSITIVE_CURVATURE, CGStop.NON_FINITE)
        good = (curvature > 0) & all_finite(x) & jnp.isfinite(rz) & jnp.isfinite(rr)
        old = c._replace(reason=bad.astype(jnp.int32))
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    zero = jnp.zeros((), jnp.int32)
    first = jnp.where(jnp.isfinite(rr), reason(rr, zero), CGStop.NON_FINITE).astype(jnp.int32)
    rz = optax.tree.vdot(residual, direction).astype(dtype)
    carry = _Carry(start, residual, direction, rz, rr, zero, first)
    end = jax.lax.while_loop(lambda c: c.reason == _RUNNING, iterate, carry)
    x, residual = tree_of(end.x), tree_of(end.residual)
    return CGResult(x, residual, jnp.sqrt(end.rr), end.iterations, end.reason)


def _flattening(b: PyTree) -> tuple[LinearMap, LinearMap]:
    """To one vector, where all leaves are of one dtype, and back: an iteration is then a few
    operations on long arrays, and not on each leaf, which is half of its kernels on a GPU.
    """
    if len({jnp.result_type(x) for x in jax.tree.leaves(b)}) > 1:
        return lambda tree: tree, lambda tree: tree
    _, tree_of = ravel_pytree(b)
    return lambda tree: ravel_pytree(tree)[0], tree_of


def _axpy(alpha: float | jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """``alpha x + y``, in the precision of y."""
    return jax.tree.map(lambda x, y: (alpha * x + y).astype(jnp.result_type(y)), x, y)


def _check(matvec: LinearMap, b: PyTree, x0: PyTree | None) -> None:
    kinds = {str(jnp.result_type(x)) for x in jax.tree.leaves(b)}
    if not kinds or not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ValueError(
            f"conjugate_gradient: b has leaves of dtype {sorted(kinds)}, wanted floating point; "
            "convert them with astype."
        )
    if x0 is not None:
        check_like("conjugate_gradient: x0", x0, b, "b")
    check_like("conjugate_gradient: matvec's product", jax.eval_shape(matvec, b), b, "b")
