r"""The Kronecker factors of the Fisher information: estimated, damped, inverted, applied.

For a layer with matrix :math:`W [d, k]` (the bias is its last row), inputs a and gradients of the
outputs :math:`\delta`, both at L locations of a sample,

.. math::
    F \approx A \otimes G, \qquad
    A = \frac1L E \sum_l a_l a_l^T, \qquad G = E \sum_l \delta_l \delta_l^T,

with W flattened row by row. That the expectation of the product is replaced by the product of the
expectations is the approximation; it is exact for one sample, and for a linear network whose output
has constant variance. At L > 1 locations, their terms are taken as uncorrelated besides (KFC).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from purerl.records import PyTree
from purerl.second_order.kfac.layers import Layer, to_matrices
from purerl.second_order.kfac.tapping import Tapped

_SMALLEST_TRACE = 1e-12  # of a factor, per row: what a layer without gradients has


class Factors(NamedTuple):
    """An estimate of the Fisher information, one block a layer; in float32 at least.

    Attributes:
        a: A of each layer, ``[d + bias, d + bias]``.
        g: G of each layer, ``[k, k]``.
        rest: The diagonal, for parameters that belong to no layer.
        moments: For EKFAC, of each layer the diagonal in a basis, ``[d + bias, k]``.
    """

    a: tuple[jax.Array, ...]
    g: tuple[jax.Array, ...]
    rest: dict[str, jax.Array]
    moments: tuple[jax.Array, ...] = ()


class Inverse(NamedTuple):
    """The damped Fisher's inverse, block by block.

    Attributes:
        layers: Of each layer, an :class:`EigenbasisInverse` or a :class:`FactoredInverse`.
        rest: 1 / (diagonal + damping).
        condition: ``[]``, the largest condition number of the layers' damped blocks.
    """

    layers: tuple[Any, ...]
    rest: dict[str, jax.Array]
    condition: jax.Array


def fisher_factors(
    layers: Sequence[Layer],
    tapped: Tapped,
    score: PyTree,
    valid: jax.Array | None = None,
    *,
    basis: "Inverse | None" = None,
) -> Factors:
    r"""The factors over one batch.

    What no layer claims (a log-std, the scale of a LayerNorm) has a diagonal: scores of different
    samples are uncorrelated and of mean zero, so :math:`(\sum_b s_b)^2 / B` has the expectation
    :math:`E[s^2]`, without a gradient for each sample. It is noisy, and meant to be averaged.

    Args:
        layers: Of the network.
        tapped: A forward pass, over B samples.
        score: Cotangent of the output: gradient of :math:`\sum_b \log p(y_b | output_b)`, a *sum*,
            for y *drawn from the model*. With the gradient of a loss in its place this would be
            the empirical Fisher, which is another matrix. Zero of samples that do not count.
        valid: Which samples count, bool ``[B]``; None: all.
        basis: With eigenvectors; then the Fisher's diagonal in their basis is measured, too.

    References:
        Martens and Grosse 2015, section 3; Grosse and Martens 2016 (KFC), section 3; George et
        al. 2018, section 3.2, for the moments.
    """
    gradient, deltas = tapped.pullback(score)
    inputs, batch = tapped.inputs(), _count(deltas[0], valid)
    if valid is not None:
        inputs = tuple(jnp.where(valid[:, None, None], x, 0) for x in inputs)
    _, rest = to_matrices(layers, gradient)
    return Factors(
        a=tuple(_second_moment(x, batch) / x.shape[1] for x in inputs),
        g=tuple(_second_moment(x, batch) for x in deltas),
        rest={name: jnp.square(_wide(x)) / batch for name, x in rest.items()},
        moments=()
        if basis is None
        else tuple(
            _squares(block, x, delta) / batch
            for block, x, delta in zip(basis.layers, inputs, deltas, strict=True)
        ),
    )


def _count(x: jax.Array, valid: jax.Array | None) -> int | jax.Array:
    """How many samples count."""
    return len(x) if valid is None else jnp.maximum(jnp.sum(valid), 1)


def _squares(basis: "EigenbasisInverse", x: jax.Array, delta: jax.Array) -> jax.Array:
    """Of the samples' gradients ``sum_l x_l delta_l^T`` in a basis, summed, ``[d + bias, k]``."""
    x, delta = _wide(x) @ basis.vectors_a, _wide(delta) @ basis.vectors_g
    if x.shape[1] == 1:  # the square of a product is the product of the squares
        return jnp.square(x[:, 0]).T @ jnp.square(delta[:, 0])
    return jnp.sum(jnp.square(jnp.einsum("bld,blk->bdk", x, delta)), axis=0)


def _second_moment(x: jax.Array, batch: int | jax.Array) -> jax.Array:
    """Sum over locations, mean over a batch of samples: ``[B, L, d] -> [d, d]``."""
    rows = _wide(x.reshape(-1, x.shape[-1]))
    return rows.T @ rows / batch


def _wide(x: jax.Array) -> jax.Array:
    """In float32 at least: no narrower matrix can be inverted."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def identity_factors(layers: Sequence[Layer], params: PyTree, moments: bool = False) -> Factors:
    """Factors that are identity matrices.

    Args:
        layers: Of the network.
        params: Its parameters, for the rest's shapes and the dtype.
        moments: Whether to have them, too.
    """
    _, rest = to_matrices(layers, params)
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
    return Factors(
        tuple(jnp.eye(layer.rows, dtype=dtype) for layer in layers),
        tuple(jnp.eye(layer.outputs, dtype=dtype) for layer in layers),
        {name: jnp.ones(x.shape, dtype) for name, x in rest.items()},
        tuple(jnp.ones((x.rows, x.outputs), dtype) for x in layers) if moments else (),
    )


class EigenbasisInverse(NamedTuple):
    """Inverse of one layer's block, in the basis of its eigenvectors.

    Attributes:
        vectors_a: Of A, ``[d + bias, d + bias]``.
        vectors_g: Of G, ``[k, k]``.
        reciprocal: 1 / (eigenvalue + damping), ``[d + bias, k]``.
    """

    vectors_a: jax.Array
    vectors_g: jax.Array
    reciprocal: jax.Array

    def solve(self, gradient: jax.Array) -> jax.Array:
        """The inverse times a gradient ``[d + bias, k]``."""
        coordinates = self.vectors_a.T @ gradient @ self.vectors_g
        return self.vectors_a @ (coordinates * self.reciprocal) @ self.vectors_g.T


class FactoredInverse(NamedTuple):
    """Inverse of one layer's block, as a Kronecker product.

    Attributes:
        a: Inverse of the damped A, ``[d + bias, d + bias]``.
        g: Inverse of the damped G, ``[k, k]``.
    """

    a: jax.Array
    g: jax.Array

    def solve(self, gradient: jax.Array) -> jax.Array:
        """The inverse times a gradient ``[d + bias, k]``."""
        return self.a @ gradient @ self.g


def invert_eigenbasis(factors: Factors, damping: float | jax.Array) -> Inverse:
    r""":math:`(A \otimes G + \epsilon I)^{-1}`, exactly, by the eigenvectors of A and of G.

    Args:
        factors: A and G.
        damping: :math:`\epsilon`.

    Returns:
        The inverse. Its condition number is of the 2-norm.

    References:
        George et al. 2018, section 3, has the eigenbasis; this is OpenAI baselines' ACKTR.
    """
    spectra = _by_size(jnp.linalg.eigh, [*factors.a, *factors.g])
    layers, diagonals = [], []
    for a, g in zip(spectra[: len(factors.a)], spectra[len(factors.a) :], strict=True):
        values_a, values_g = jnp.maximum(a.eigenvalues, 0), jnp.maximum(g.eigenvalues, 0)
        layers.append((a.eigenvectors, g.eigenvectors))
        diagonals.append(jnp.outer(values_a, values_g))
    return _by_diagonals(layers, diagonals, factors, damping)


def _by_diagonals(
    vectors: Sequence[tuple[jax.Array, jax.Array]],
    diagonals: Sequence[jax.Array],
    factors: Factors,
    damping: Any,
) -> Inverse:
    blocks = [diagonal + damping for diagonal in diagonals]
    layers = [EigenbasisInverse(*v, 1 / b) for v, b in zip(vectors, blocks, strict=True)]
    conditions = [jnp.max(block) / jnp.min(block) for block in blocks]
    return _with_rest(layers, conditions, factors, damping)


def invert_ekfac(factors: Factors, damping: float | jax.Array, basis: Inverse) -> Inverse:
    r""":math:`U (\mathrm{diag}(S) + \epsilon I)^{-1} U^T`, U a Kronecker eigenbasis and S the
    measured diagonal of the Fisher matrix in it.

    Of all diagonals in that basis it is the best in the Frobenius norm; K-FAC's products of
    eigenvalues are one of them.

    Args:
        factors: With moments, in the basis.
        damping: :math:`\epsilon`.
        basis: With the eigenvectors.

    References:
        George et al. 2018, section 3.
    """
    vectors = [(block.vectors_a, block.vectors_g) for block in basis.layers]
    return _by_diagonals(vectors, factors.moments, factors, damping)


def rotate(factors: Factors, old: Inverse, new: Inverse) -> Factors:
    r"""The moments in another basis: the diagonal there of what was diagonal in the old one.

    .. math::
        S' = R_A^2 \, S \, (R_G^2)^T, \qquad R = U_{new}^T U_{old}, \text{ squared entry by entry}

    Args:
        factors: With moments in the old basis.
        old: With its eigenvectors.
        new: With the others.
    """
    moments = []
    for moment, one, other in zip(factors.moments, old.layers, new.layers, strict=True):
        of_a = jnp.square(other.vectors_a.T @ one.vectors_a)
        of_g = jnp.square(other.vectors_g.T @ one.vectors_g)
        moments.append(of_a @ moment @ of_g.T)
    return factors._replace(moments=tuple(moments))


def invert_factored(factors: Factors, damping: float | jax.Array) -> Inverse:
    r""":math:`(A + \pi \sqrt\epsilon I)^{-1} \otimes (G + \pi^{-1} \sqrt\epsilon I)^{-1}`.

    .. math::
        \pi^2 = \frac{tr A / dim A}{tr G / dim G}

    Args:
        factors: A and G.
        damping: :math:`\epsilon`.

    Returns:
        The inverse. Its condition number is of the 1-norm.

    References:
        Martens and Grosse 2015, section 6.3.
    """
    damped = []
    for a, g in zip(factors.a, factors.g, strict=True):
        size_a, size_g = (jnp.maximum(jnp.mean(jnp.diag(m)), _SMALLEST_TRACE) for m in (a, g))
        pi, root = jnp.sqrt(size_a / size_g), jnp.sqrt(damping)
        damped += [_add_to_diagonal(a, pi * root), _add_to_diagonal(g, root / pi)]
    inverses = _by_size(_inverse, damped)
    norm = lambda m: jnp.max(jnp.sum(jnp.abs(m), axis=0))  # noqa: E731
    norms = [norm(m) * norm(i) for m, i in zip(damped, inverses, strict=True)]
    layers = [FactoredInverse(*pair) for pair in zip(inverses[::2], inverses[1::2], strict=True)]
    conditions = [of_a * of_g for of_a, of_g in zip(norms[::2], norms[1::2], strict=True)]
    return _with_rest(layers, conditions, factors, damping)


def _inverse(matrix: jax.Array) -> jax.Array:
    """Of a symmetric positive definite one: L^-T L^-1, with L of Cholesky's."""
    root = jnp.linalg.cholesky(matrix, symmetrize_input=False)
    part = solve_triangular(root, jnp.eye(len(matrix), dtype=matrix.dtype), lower=True)
    return part.T @ part


def _add_to_diagonal(matrix: jax.Array, number: jax.Array) -> jax.Array:
    # Cholesky needs what rounding may have taken from the smallest eigenvalues, too.
    number = number + jnp.finfo(matrix.dtype).eps * jnp.trace(matrix)
    return matrix + number * jnp.eye(len(matrix), dtype=matrix.dtype)


def _with_rest(layers: list[Any], conditions: list[Any], factors: Factors, damping: Any) -> Inverse:
    rest = jax.tree.map(lambda diagonal: 1 / (diagonal + damping), factors.rest)
    return Inverse(tuple(layers), rest, jnp.max(jnp.stack(conditions)))


INVERT = {"eigenbasis": invert_eigenbasis, "factored": invert_factored}


def _by_size(function: Callable[[jax.Array], Any], matrices: Sequence[jax.Array]) -> list[Any]:
    """``function`` of each square matrix, with one batched call for all of one size."""
    results: list[Any] = [None] * len(matrices)
    for size in sorted({len(matrix) for matrix in matrices}):
        where = [i for i, matrix in enumerate(matrices) if len(matrix) == size]
        batch = jax.vmap(function)(jnp.stack([matrices[i] for i in where]))
        for place, i in enumerate(where):
            results[i] = jax.tree.map(lambda x, place=place: x[place], batch)
    return results
