r"""The natural gradient in the space of samples: a system as large as the batch, not the network.

With the scores of n actions drawn from the policy, :math:`J_{bp} = \partial_p \log \pi(a_b|s_b)`,
the Fisher matrix is estimated by :math:`\hat F = J^T J / n`, and

.. math::
    (\hat F + c I)^{-1} g = \tfrac1c \big(g - J^T (J J^T + n c I)^{-1} J g\big)

(Woodbury), whatever the network. Of a weight that K-FAC would factor, with one location, J's part
is never formed: the products of its rows are products of inputs times products of output gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import cho_factor, cho_solve

from purerl.checks import named
from purerl.config import check_range
from purerl.pieces.gradient import all_finite
from purerl.records import PyTree, Sequences
from purerl.second_order.conjugate_gradient import CGResult, CGStop
from purerl.second_order.kfac.layers import find_layers
from purerl.second_order.kfac.regions import reaching
from purerl.second_order.kfac.tapping import tap
from purerl.second_order.products import Policy, cast_like, subsample

LogProb = Callable[[PyTree, PyTree], jax.Array]  # (params, x) -> [B], or [B, R]


class Scores(NamedTuple):
    """The matrix J ``[n, P]`` of scores, as what a solver needs of it.

    Attributes:
        gram: J J^T, ``[n, n]``.
        push: ``v -> J v``, of pytrees like the parameters.
        pull: ``u [n] -> J^T u``.
        total: Rows that count.
    """

    gram: jax.Array
    push: Callable[[PyTree], jax.Array]
    pull: Callable[[jax.Array], PyTree]
    total: int | jax.Array


def score_matrix(
    log_prob: LogProb, params: PyTree, x: PyTree, valid: jax.Array | None = None
) -> Scores:
    """The scores of a batch.

    Args:
        log_prob: ``(params, x) -> [B]`` for independent samples. A recurrent policy's gives
            ``[B, R]`` for B sequences: a sample's R scores depend on its own inputs only.
        params: The policy's.
        x: Observations and actions, arrays ``[B, ...]``.
        valid: Which rows count, bool, shaped as the result; None: all.

    Returns:
        The scores of B R rows. ``gram`` takes the weights one after the other: of one with L > 1
        locations, or in a recurrent network, the rows' gradients are held for that weight alone.

    Example:
        >>> import jax.numpy as jnp
        >>> log_prob = lambda w, x: -jnp.square(x["action"] - x["obs"] @ w) / 2
        >>> x = {"obs": jnp.array([[1.0, 0.0], [1.0, 1.0]]), "action": jnp.array([1.0, 2.0])}
        >>> scores = score_matrix(log_prob, jnp.zeros(2), x)
        >>> scores.gram.tolist(), scores.push(jnp.array([0.0, 1.0])).tolist()
        ([[1.0, 2.0], [2.0, 8.0]], [0.0, 2.0])

    References:
        Ren and Goldfarb 2019, "Efficient Subsampled Gauss-Newton and Natural Gradient Methods for
        Training Neural Networks", section 3.
    """
    output, push = jax.linearize(lambda p: log_prob(p, x), params)
    pull = jax.linear_transpose(push, params)
    weight = jnp.ones_like(output) if valid is None else valid.astype(output.dtype)
    count = output.size if valid is None else jnp.maximum(jnp.sum(valid), 1)
    return Scores(
        gram=_gram(log_prob, params, x, weight.reshape(len(output), -1)),
        push=lambda v: jnp.ravel(weight * push(cast_like(v, params))),
        pull=lambda u: pull((weight * u.reshape(output.shape)).astype(output.dtype))[0],
        total=count,
    )


def policy_scores(
    policy: Policy,
    params: PyTree,
    obs: PyTree,
    action: jax.Array,
    valid: jax.Array | None = None,
    fraction: float = 1.0,
) -> Scores:
    """The scores of a batch's actions, whether its policy has a memory or not.

    Args:
        policy: ``(params, obs) -> distribution`` over ``[B]``.
        params: The policy's.
        obs: ``[B, *O]``, or :class:`purerl.Sequences`.
        action: ``[B, *A]``.
        valid: Which samples count, bool ``[B]``; None: all.
        fraction: Share of the samples, or of the sequences, to use, in (0, 1].
    """
    if not isinstance(obs, Sequences):
        x, valid = subsample(((obs, action), valid), fraction)
        return score_matrix(lambda p, x: policy(p, x[0]).log_prob(x[1]), params, x, valid)
    lead = obs.start.shape
    action, valid = (
        jax.tree.map(lambda y: y.reshape(*lead, *y.shape[1:]), x) for x in (action, valid)
    )
    # Sequences first: a sample's scores are those of a sequence's steps.
    of_steps = jax.tree.map(_swapped, (obs.obs, obs.start, action, valid))
    (*x, valid), memory = subsample((of_steps, obs.memory), fraction)

    def log_prob(params: PyTree, x: PyTree) -> jax.Array:
        (obs, start, action), memory = x
        obs, start, action = jax.tree.map(_swapped, (obs, start, action))
        distribution = policy(params, Sequences(obs, memory, start))
        return distribution.log_prob(action.reshape(-1, *action.shape[2:])).reshape(start.shape).T

    return score_matrix(log_prob, params, (tuple(x), memory), valid)


def _swapped(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 0, 1)


def _gram(log_prob: LogProb, params: PyTree, x: PyTree, weight: jax.Array) -> jax.Array:
    """J J^T, rows (sample, which of its scores); weight ``[B, R]``."""
    batch, turns = weight.shape

    def flat(params: PyTree, x: PyTree) -> jax.Array:
        return log_prob(params, x).reshape(-1, turns)

    used = {n for n, here in named(reaching(lambda p: flat(p, x), params)).items() if here}
    layers = find_layers(flat, params, x, strict=False)
    layers = tuple(layer for layer in layers if layer.weight in used)
    tapped = tap(flat, layers, params, x)
    # One pass back for each score of a sample, of all samples at once.
    each = jnp.eye(turns, dtype=weight.dtype)[:, None, :] * weight[None]
    deltas = jax.vmap(lambda cotangent: tapped.pullback(cotangent)[1], out_axes=2)(each)
    gram = jnp.zeros((batch * turns,) * 2, weight.dtype)
    for inputs, delta in zip(tapped.inputs(), deltas, strict=True):
        gram = gram + _product_of_rows(inputs, delta)
    claimed = {name for layer in layers for name in (layer.weight, layer.bias)}
    rest = used - claimed
    if rest:
        gram = gram + _gram_of_rest(flat, params, x, weight, rest)
    return gram


def _product_of_rows(inputs: jax.Array, deltas: jax.Array) -> jax.Array:
    """Inner products of gradients, of inputs ``[B, L, d]`` and deltas ``[B, L, R, k]``."""
    batch, locations, turns, _ = deltas.shape
    if locations == 1:
        products = inputs[:, 0] @ inputs[:, 0].T
        delta = deltas[:, 0].reshape(batch * turns, -1)
        return jnp.repeat(jnp.repeat(products, turns, 0), turns, 1) * (delta @ delta.T)
    rows = jnp.einsum("bld,blrk->brdk", inputs, deltas).reshape(batch * turns, -1)
    return rows @ rows.T


def _gram_of_rest(
    flat: LogProb, params: PyTree, x: PyTree, weight: jax.Array, names: set[str]
) -> jax.Array:
    """Of parameters that are no weights, sample by sample."""
    leaves, structure = named(params), jax.tree.structure(params)

    def of_one(sample):
        def of_some(some):
            merged = jax.tree.unflatten(structure, list((leaves | some).values()))
            return flat(merged, jax.tree.map(lambda x: x[None], sample))[0]

        jacobian = jax.jacrev(of_some)({name: leaves[name] for name in names})
        return jnp.concatenate([j.reshape(weight.shape[1], -1) for j in jacobian.values()], axis=1)

    rows = (jax.vmap(of_one)(x) * weight[..., None]).reshape(weight.size, -1)
    return rows @ rows.T


def solve_by_samples(scores: Scores, b: PyTree, damping: float | jax.Array) -> CGResult:
    r"""Solves :math:`(\hat F + c I) x = b` by a Cholesky decomposition of ``[n, n]``.

    Args:
        scores: Of the batch that the Fisher matrix is taken over.
        b: Right-hand side, such as a gradient, of any batch.
        damping: c.

    Returns:
        As of :func:`conjugate_gradient`, with no iterations: the residual is that of the solution.

    Raises:
        ValueError: If the damping is not positive: without it there are many solutions, or none.

    Example:
        >>> import jax.numpy as jnp
        >>> log_prob = lambda w, x: -jnp.square(x["action"] - x["obs"] @ w) / 2
        >>> x = {"obs": jnp.eye(2), "action": jnp.array([1.0, 2.0])}  # F = diag(1, 4) / 2
        >>> scores = score_matrix(log_prob, jnp.zeros(2), x)
        >>> solve_by_samples(scores, jnp.array([1.0, 2.5]), 0.5).x.round(5).tolist()
        [1.0, 1.0]
    """
    check_range("solve_by_samples", "damping", damping, "(0, inf)")
    in_samples = _solve(scores, scores.push(b), damping)
    x = jax.tree.map(lambda v, u: (v - u) / damping, b, cast_like(scores.pull(in_samples), b))
    product = cast_like(scores.pull(scores.push(x)), b)
    residual = jax.tree.map(
        lambda v, p, x: v - (p / scores.total).astype(p.dtype) - damping * x, b, product, x
    )
    norm = optax.tree.norm(residual)
    reason = jnp.where(all_finite(x), CGStop.CONVERGED, CGStop.NON_FINITE).astype(jnp.int32)
    return CGResult(x, residual, norm, jnp.zeros((), jnp.int32), reason)


def transform_advantages(
    scores: Scores, advantage: jax.Array, damping: float | jax.Array
) -> jax.Array:
    r"""Advantages whose policy gradient is the natural one:
    :math:`(J J^T / n + c I)^{-1} \hat A`.

    With :math:`g = J^T \hat A / n` of the same batch, :math:`(\hat F + c I)^{-1} g` is
    :math:`J^T` times this, over n: any policy-gradient code takes the natural step.

    Args:
        scores: Of the batch.
        advantage: ``[n]``.
        damping: c, positive.

    References:
        RAT, arXiv 2605.18591.
    """
    return scores.total * _solve(scores, jnp.ravel(advantage), damping)


def _solve(scores: Scores, u: jax.Array, damping: Any) -> jax.Array:
    """``(J J^T + n c I)^-1 u``."""
    added = (scores.total * damping) * jnp.eye(len(scores.gram), dtype=scores.gram.dtype)
    return cho_solve(cho_factor(scores.gram + added), u.astype(scores.gram.dtype))
