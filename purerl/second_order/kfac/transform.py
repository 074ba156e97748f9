r"""K-FAC as a gradient transformation: the natural gradient, layer by layer, within a trust region.

Martens and Grosse 2015; Wu et al. 2017 (ACKTR). One update is

1. every ``stats_every`` updates the factors A and G of this batch go into moving averages;
2. every ``inverse_every`` updates these are damped and inverted;
3. the gradient of each layer becomes :math:`\Delta W = A^{-1} \nabla W \, G^{-1}`;
4. all of it is scaled so that :math:`\eta^2 \Delta^T F \Delta \le \delta`, the KL clip.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from purerl.config import Number, check_choice, check_integer, check_range
from purerl.pieces.gradient import all_finite
from purerl.pieces.packing import total
from purerl.records import Clock, PyTree
from purerl.second_order.kfac import factors as blocks
from purerl.second_order.kfac.layers import Layer, from_matrices, to_matrices
from purerl.second_order.products import cast_like

DampingKind = Literal["eigenbasis", "factored", "ekfac"]
KLClip = Number | Mapping[str, Number | None] | None
ALL = "all"  # the trust region, where there is only one


class KfacState(NamedTuple):
    """State of :func:`scale_by_kfac`.

    Attributes:
        clock: Updates so far, with the refused ones: what is due next.
        weight: ``[]``, sum of the weights within the moving averages: :math:`1 - decay^n`.
        factors: Weighted sums; divided by ``weight``, averages.
        inverse: Of the damped averages, as of the last inversion.
        trust: ``[]`` of each region: what the KL clip multiplied the last step by.
    """

    clock: Clock
    weight: jax.Array
    factors: blocks.Factors
    inverse: blocks.Inverse
    trust: dict[str, jax.Array]


def scale_by_kfac(
    layers: Sequence[Layer],
    *,
    damping: Number = 0.01,
    damping_kind: DampingKind = "factored",
    decay: Number = 0.95,
    stats_every: int = 1,
    inverse_every: int = 10,
    cold_start: int = 10,
    cold_max_norm: Number = 0.5,
    kl_clip: KLClip = 0.001,
    regions: PyTree = ALL,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient to natural gradient, of unit learning rate, as optax's ``scale_by_*`` are.

    ``update`` takes two more keywords: ``statistics``, a function without arguments that gives
    this batch's :class:`Factors` and is called where they are due (for ``ekfac`` with the inverse
    in use, which is the ``basis`` of :func:`fisher_factors`); and ``learning_rate``, with
    which the step will be multiplied *afterwards*, because the KL clip bounds the step and not its
    direction.

    Curvature that is not finite is not taken in, and the last inverse stays in use; nor is any with
    a gradient that is not finite, when the state stays as it was, but for the clock. Averages and
    inverses are in float32 at least; the direction has the gradient's dtypes.

    What is due is decided by a Clock in the state, which ``purerl.vectorize`` leaves unbatched, so
    that under ``vmap`` inverses are computed when they are due and not at every update.

    Args:
        layers: Of the network, by :func:`find_layers`.
        damping: :math:`\epsilon`.
        damping_kind: ``eigenbasis``: :math:`A \otimes G + \epsilon I`, by eigenvectors, as in
            OpenAI baselines; ``factored``: :math:`\pi \sqrt\epsilon` to A and
            :math:`\pi^{-1} \sqrt\epsilon` to G, by Cholesky; ``ekfac``: as ``eigenbasis``, with
            the Fisher's diagonal in that basis measured, at every measurement of the factors, in
            place of the eigenvalues' products.
        decay: Of the moving averages, which are corrected for their start at zero.
        stats_every: Updates between two measurements of the factors.
        inverse_every: Updates between two inversions.
        cold_start: So many updates at first measure the factors and go along the plain gradient.
        cold_max_norm: Global norm to which the gradient is clipped during them.
        kl_clip: :math:`\delta` of :math:`\eta^2 \Delta^T F \Delta \le \delta`; predicted, by the
            averaged blocks, is a KL of half of it. None: no bound. A mapping from labels of
            ``regions``: a bound for each.
        regions: A tree like the parameters, or a prefix of one, of labels: each label is a trust
            region of its own.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax, purerl
        >>> from purerl.second_order import kfac
        >>> network, obs = purerl.MLP(purerl.NetworkConfig(hidden_sizes=(2,))), jnp.ones((5, 3))
        >>> params = network.init(jax.random.key(0), obs)
        >>> layers = kfac.find_layers(network.apply, params, obs)
        >>> optimizer = optax.chain(kfac.scale_by_kfac(layers, cold_start=0), optax.ema(0.9))
        >>> tapped = kfac.tap(network.apply, layers, params, obs)
        >>> score = jax.random.normal(jax.random.key(1), tapped.output.shape)  # of N(y; output, I)
        >>> gradient, _ = tapped.pullback(tapped.output / len(obs))
        >>> direction, _ = optimizer.update(
        ...     gradient,
        ...     optimizer.init(params),
        ...     statistics=lambda: kfac.fisher_factors(layers, tapped, score),
        ...     learning_rate=0.1,
        ... )
        >>> jax.tree.map(jnp.shape, direction) == jax.tree.map(jnp.shape, params)
        True

    References:
        Martens and Grosse 2015, sections 5 (moving averages) and 6.3 (damping); Wu et al. 2017,
        section 3, for the trust region.

    Differs from:
        The paper bounds :math:`\tfrac12 \eta^2 \Delta^T F \Delta`, so that this ``kl_clip``, which
        is that of OpenAI baselines, is twice the paper's :math:`\delta`. Both take the damped F, so
        the bound holds for the undamped one too.

        OpenAI baselines has the same constants (epsilon 0.01, decay 0.99, momentum 0.9 times a
        learning rate of 0.25 (1 - 0.9), hence ``optax.ema`` without its correction after this) but
        for: an inverse at every update, with eigenvalues below 1e-6 taken for 0; a cold start of
        plain gradients with a momentum of its own, where here one momentum goes on; the critic's
        Fisher four times as large. Its older version for continuous actions gives actor and critic
        an optimizer each: kl_clip 0.01 and 0.3, epsilon 0.01 and 0.1, decay 0.99 and 0.95,
        statistics and inverses every 2 updates, a step adapted to a KL of 0.002. The default decay
        here, 0.95, is Martens and Grosse's.
    """
    where = "scale_by_kfac"
    check_range(where, "damping", damping, "(0, inf)")
    check_choice(f"{where}: unknown damping_kind", damping_kind, get_args(DampingKind))
    check_range(where, "decay", decay, "[0, 1)")
    check_integer(where, "stats_every", stats_every)
    check_integer(where, "inverse_every", inverse_every)
    check_integer(where, "cold_start", cold_start, "[0, inf)")
    check_range(where, "cold_max_norm", cold_max_norm, "(0, inf)")
    for bound in jax.tree.leaves(kl_clip):
        if not isinstance(bound, jax.Array):  # one of a batch's errors may be NaN: no step then
            check_range(where, "kl_clip", bound, "(0, inf)")
    ekfac = damping_kind == "ekfac"
    invert = blocks.INVERT["eigenbasis" if ekfac else damping_kind]

    def init(params: PyTree) -> KfacState:
        identity = blocks.identity_factors(layers, params, moments=ekfac)
        one = jnp.ones((), identity.a[0].dtype)
        return KfacState(
            clock=Clock(jnp.zeros((), jnp.int32)),
            weight=jnp.zeros_like(one),
            factors=jax.tree.map(jnp.zeros_like, identity),
            inverse=invert(identity, jnp.asarray(damping, one.dtype)),
            trust={label: jnp.ones_like(one) for label in jax.tree.leaves(regions)},
        )

    def update(
        gradient: PyTree,
        state: KfacState,
        params: PyTree = None,
        *,
        statistics: Callable[..., blocks.Factors],
        learning_rate: Number,
        **_: Any,
    ) -> tuple[PyTree, KfacState]:
        now, finite = state.clock.iteration, all_finite(gradient)

        # 1. The moving averages; most of the state, so they are checked only where they change.
        def measured(sums):
            new = statistics(state.inverse) if ekfac else statistics()
            # No entry of a second moment is larger than its largest diagonal entry.
            diagonals = jax.tree.map(jnp.diag, (new.a, new.g)), new.rest, new.moments
            mixed = jax.tree.map(lambda s, x: decay * s + (1 - decay) * x, sums, (new, 1.0))
            return _keep(finite & all_finite(diagonals), mixed, sums)

        sums = state.factors, state.weight
        factors, weight = _when(now % stats_every == 0, stats_every == 1, measured, sums)

        # 2. Their damped inverse.
        added, warm = jnp.asarray(damping, weight.dtype), now - cold_start

        def averages(factors):
            return jax.tree.map(lambda x: x / jnp.where(weight > 0, weight, 1), factors)

        def inverted(old):
            inverse, factors = old
            new = invert(averages(factors), added)
            if ekfac:
                rotated = blocks.rotate(factors, inverse, new).moments
                # The first basis has no past: what was measured along the axes says little there.
                first = tuple(weight * (1 / block.reciprocal - added) for block in new.layers)
                moments = jax.tree.map(lambda f, r: jnp.where(warm == 0, f, r), first, rotated)
                factors = factors._replace(moments=moments)
            return _keep(finite & all_finite(new), (new, factors), old)

        due, always = (warm >= 0) & (warm % inverse_every == 0), inverse_every == 1
        old = state.inverse, factors
        inverse, factors = _when(due, always and not cold_start, inverted, old)
        if ekfac:
            new = blocks.invert_ekfac(averages(factors), added, inverse)
            inverse = _keep(finite & all_finite(new), new, inverse)

        # 3. and 4. The natural gradient, within the KL clip.
        natural = precondition(layers, inverse, gradient)
        natural, trust = clip_kl(gradient, natural, learning_rate, kl_clip, regions)
        if cold_start:
            norm = jnp.sqrt(total([jnp.square(x) for x in jax.tree.leaves(gradient)]))
            plain = optax.tree.scale(jnp.minimum(1, cold_max_norm / norm), gradient)
            natural = _keep(warm < 0, plain, natural)
        trust = _keep(finite & (warm >= 0), trust, state.trust)
        natural = cast_like(natural, gradient)
        return natural, KfacState(Clock(now + 1), weight, factors, inverse, trust)

    return optax.GradientTransformationExtraArgs(init, update)


def _when(due: jax.Array, always: bool, new: Callable[[Any], Any], old: Any) -> Any:
    """``new(old)`` where it is due, by a loop of one turn or none: it leaves the old in its place,
    of which a ``cond`` makes two copies at every update.
    """
    if always:
        return new(old)
    turn = lambda carry: (jnp.array(False), new(carry[1]))  # noqa: E731
    return jax.lax.while_loop(lambda carry: carry[0], turn, (due, old))[1]


def _keep(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` where the condition holds, else ``old``, in the dtypes of ``old``."""
    kept = jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
    return cast_like(kept, old)


def precondition(layers: Sequence[Layer], inverse: blocks.Inverse, gradient: PyTree) -> PyTree:
    """The damped Fisher's inverse times a gradient, block by block; K-FAC without an optimizer.

    Args:
        layers: Of the network: where the matrices are in the gradient.
        inverse: A :class:`KfacState`'s, or what one of ``INVERT`` gives.
        gradient: Shaped like the parameters.

    References:
        Martens and Grosse 2015, section 4.2.
    """
    matrices, rest = to_matrices(layers, gradient)
    solved = [block.solve(matrix) for block, matrix in zip(inverse.layers, matrices, strict=True)]
    rest = {name: inverse.rest[name] * x for name, x in rest.items()}
    return from_matrices(layers, solved, rest, gradient)


def clip_kl(
    gradient: PyTree,
    natural: PyTree,
    learning_rate: Number,
    kl_clip: KLClip,
    regions: PyTree = ALL,
) -> tuple[PyTree, dict[str, jax.Array]]:
    r"""The natural gradient :math:`\Delta = F^{-1} g` times
    :math:`\min(1, \sqrt{\delta / (\eta^2 g^T F^{-1} g)})`, in each region.

    Args:
        gradient: g.
        natural: :math:`\Delta`.
        learning_rate: :math:`\eta`.
        kl_clip: :math:`\delta`, or that of each region; None: no bound.
        regions: Labels, a prefix of the parameters' tree.

    Returns:
        ``(scaled, {region: factor})``.

    Raises:
        ValueError: If a region has no entry in ``kl_clip``.

    References:
        Wu et al. 2017, section 3; with :math:`\delta` for the paper's :math:`2 \delta`.
    """
    labels = jax.tree.broadcast(regions, natural)
    names = sorted({*jax.tree.leaves(labels)})
    bounds = kl_clip if isinstance(kl_clip, Mapping) else dict.fromkeys(names, kl_clip)
    if unknown := {*names} - {*bounds}:
        raise ValueError(
            f"kl_clip is given for {', '.join(bounds)}, but the regions are also "
            f"{', '.join(sorted(unknown))}; give each label of regions its bound, or None."
        )
    slopes = jax.tree.leaves(jax.tree.map(jnp.multiply, gradient, natural))
    labelled = list(zip(jax.tree.leaves(labels), slopes, strict=True))
    factor = {}
    for region in names:
        squared = total([slope for label, slope in labelled if label == region])
        squared = jnp.maximum(jnp.square(learning_rate) * squared, 0)  # rounding makes it negative
        one, bound = jnp.ones_like(squared), bounds[region]
        factor[region] = one if bound is None else jnp.minimum(1, jnp.sqrt(bound / squared))
    return jax.tree.map(lambda x, label: x * factor[label], natural, labels), factor
