"""Gradient steps: optimizers with the learning rate as an argument, epochs of minibatches,
the finite guard.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from purerl.config import Number, field
from purerl.pieces.losses import Loss
from purerl.pieces.minibatches import minibatches
from purerl.pieces.packing import joined, packed_scan
from purerl.records import Clock, Info, PyTree

OptimizerName = Literal["adam", "rmsprop", "sgd"]


def norm_bound(default: float | None) -> Any:
    """A field of a configuration: :func:`make_optimizer`'s ``max_grad_norm``.

    Args:
        default: Its default value.
    """
    return field(default, "Bound on the gradient's global norm; None: no bound.", "(0, inf)")


def make_optimizer(
    name: OptimizerName,
    *,
    eps: Number = 1e-5,
    decay: Number = 0.99,
    max_grad_norm: Number | None = None,
) -> optax.GradientTransformation:
    """An optax transformation of unit learning rate; :func:`gradient_step` multiplies by the rate.

    Args:
        name: ``adam``, ``rmsprop`` (epsilon outside the square root, as PyTorch has it) or ``sgd``.
        eps: Added to the root of the second moment.
        decay: RMSProp's decay of the squared gradient.
        max_grad_norm: The gradient's global norm is clipped to this first; None: not clipped.

    Returns:
        A gradient transformation without a learning rate.
    """
    scale = {
        "adam": lambda: optax.scale_by_adam(eps=eps),
        "rmsprop": lambda: optax.scale_by_rms(decay=decay, eps=eps, eps_in_sqrt=False),
        "sgd": optax.identity,
    }[name]()
    if max_grad_norm is not None:
        scale = optax.chain(optax.clip_by_global_norm(max_grad_norm), scale)
    # One long vector instead of a dozen short ones: 4 % of a whole small PPO update on a CPU.
    return optax.flatten(scale)


def gradient_step(
    optimizer: optax.GradientTransformation,
    gradient: PyTree,
    opt_state: Any,
    params: PyTree,
    learning_rate: Number,
    **extra: Any,
) -> tuple[PyTree, Any]:
    """One step of gradient descent.

    Args:
        optimizer: Of unit learning rate.
        gradient: Of a loss, shaped like ``params``.
        opt_state: The optimizer's state.
        params: Parameters.
        learning_rate: Step size; may be traced, so that it can be annealed and swept.
        **extra: What the optimizer's ``update`` takes besides; it is told the learning rate, too.

    Returns:
        ``(params, opt_state)``; parameters keep their dtype.
    """
    extra["learning_rate"] = learning_rate
    update = optax.with_extra_args_support(optimizer).update
    direction, opt_state = update(gradient, opt_state, params, **extra)
    # A bfloat16 parameter, or a float32 one under x64, keeps its dtype; so a scan's carry does.
    new = jax.tree.map(lambda p, d: (p - learning_rate * d).astype(p.dtype), params, direction)
    return new, opt_state


def fit(
    loss: Loss,
    params: PyTree,
    opt_state: Any,
    batch: PyTree,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    learning_rate: Number,
    num_epochs: int,
    num_minibatches: int,
    shuffle: bool = True,
    max_kl: Number | None = None,
) -> tuple[PyTree, Any, Info]:
    """Some passes of minibatch gradient descent over one batch.

    Args:
        loss: ``(params, batch) -> (scalar, info)``.
        params: Parameters.
        opt_state: The optimizer's state.
        batch: Samples ``[B, ...]``; of an ``OnPolicyBatch`` those that are valid are shared out
            evenly. With a memory minibatches are sets of whole sequences.
        key: PRNG key of the shuffles.
        optimizer: Of unit learning rate.
        learning_rate: Step size.
        num_epochs: Passes over the samples.
        num_minibatches: Steps a pass; must divide B, or the number of sequences.
        shuffle: New minibatches at random in each pass.
        max_kl: After a pass whose mean ``info["kl"]`` exceeds this the other passes do nothing.

    Returns:
        ``(params, opt_state, info)``; info is the mean over the passes made.

    Raises:
        ValueError: If ``num_minibatches`` does not divide them.
    """

    def minibatch_step(carry, minibatch):
        params, opt_state = carry
        gradient, info = jax.grad(loss, has_aux=True)(params, minibatch)
        return gradient_step(optimizer, gradient, opt_state, params, learning_rate), info

    def epoch(carry, key):
        learned, stopped = carry
        valid = getattr(batch, "valid", None)
        samples = minibatches(key, batch, num_minibatches, shuffle, valid)
        updated, info = packed_scan(minibatch_step, learned, samples)
        info = jax.tree.map(jnp.mean, info)
        if max_kl is None or "kl" not in info:
            return (updated, stopped), (info, True)
        # A mask and not a branch: under vmap some seeds stop and others go on.
        learned = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), updated, learned)
        return (learned, stopped | (info["kl"] > max_kl)), (info, ~stopped)

    start = ((params, opt_state), jnp.array(False))
    keys = jax.random.split(key, num_epochs)
    ((params, opt_state), _), (info, made) = packed_scan(epoch, start, keys)
    return params, opt_state, jax.tree.map(lambda x: jnp.mean(x, where=made), info)


def keep_if_finite(
    new: PyTree, old: PyTree, also: bool | jax.Array = True
) -> tuple[PyTree, jax.Array]:
    """``new`` if all of its floating-point leaves are finite, else ``old``, unchanged.

    But a Clock always goes on: it belongs to all seeds, and must not depend on what happens to one.

    Args:
        new: A learner's state after an update.
        old: The state before it.
        also: A further condition on ``new``, bool.

    Returns:
        ``(state, finite)`` with a bool scalar.
    """
    finite = all_finite(new) & also

    def keep(new, old):
        return new if isinstance(new, Clock) else jnp.where(finite, new, old)

    return jax.tree.map(keep, new, old, is_leaf=lambda x: isinstance(x, Clock)), finite


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every floating-point leaf of ``tree`` is finite, as a bool scalar.

    Args:
        tree: Any pytree of arrays.
    """
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    floats = joined([x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)])
    checks = [jnp.all(jnp.isfinite(x)) for x in floats]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)
