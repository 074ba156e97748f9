r"""Policy distributions: pytrees with ``sample``, ``log_prob``, ``entropy``, ``kl`` and ``mode``.

Numbers are float32 at least, also where a network computes in bfloat16.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Distribution(Protocol):
    """Protocol of policies: a distribution over actions for each row of a batch.

    One of your own has these five methods and is a pytree (a ``NamedTuple`` is one) whose leaves
    have the batch axes first. Everything but ``sample`` is differentiated. With two more methods,
    ``noise(key, lead)`` and ``from_noise(noise)``, the random numbers of a whole rollout are drawn
    at once, which is faster: see :class:`Categorical`. Where observations have an ``action_mask``,
    it has ``masked(mask)`` too, the same distribution without the actions that are not allowed.
    """

    def sample(self, key: jax.Array) -> jax.Array:
        """One action a row: int32 ``[B]``, or floating point ``[B, *A]``."""

    def mode(self) -> jax.Array:
        """The best action of each row, shaped like a sample."""

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability or log-density of an action a row, in nats, ``[B]``."""

    def entropy(self) -> jax.Array:
        """In nats, ``[B]``."""

    def kl(self, other: Any) -> jax.Array:
        """KL(self || other) to a distribution of the same kind, in nats, ``[B]``."""


def _wide_type(x: jax.Array) -> Any:
    """At least float32."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def _wide(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, _wide_type(x))


class Categorical(NamedTuple):
    r"""Over ``0 ... K - 1`` with probabilities :math:`softmax(logits)`.

    A logit of ``-inf`` is a forbidden action, whose log-probability is ``-inf``; each row needs one
    that is allowed. Log-probabilities, entropies and their gradients are finite for finite logits
    whose differences float32 can hold (up to 3e38).

    Attributes:
        logits: ``[..., K]``.

    Example:
        >>> import jax.numpy as jnp
        >>> policy = Categorical(jnp.array([[0.0, 0.0], [0.0, 1e9]]))
        >>> policy.mode().tolist(), [f"{nats:.3f}" for nats in abs(policy.entropy())]
        ([0, 1], ['0.693', '0.000'])
    """

    logits: jax.Array

    def masked(self, mask: jax.Array) -> "Categorical":
        """Without the actions for which ``mask`` (bool ``[..., K]``) is False."""
        return Categorical(jnp.where(mask, self.logits, -jnp.inf))

    def log_probs(self) -> jax.Array:
        """Log-probabilities of all actions, ``[..., K]``."""
        return jax.nn.log_softmax(_wide(self.logits))

    def sample(self, key: jax.Array) -> jax.Array:
        """One action a row, int32 ``[...]``."""
        return self.from_noise(self.noise(key))

    def noise(self, key: jax.Array, lead: tuple[int, ...] = ()) -> jax.Array:
        """Numbers for ``lead`` samples of all rows, ``[*lead, ..., K]``; of the shapes alone."""
        return jax.random.gumbel(key, (*lead, *self.logits.shape), _wide_type(self.logits))

    def from_noise(self, noise: jax.Array) -> jax.Array:
        """The action a row, int32 ``[...]``, that is a sample for noise ``[..., K]``."""
        return jnp.argmax(_wide(self.logits) + noise, axis=-1).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """The most probable action, int32 ``[...]``."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of ``action`` (int ``[...]``), ``[...]``."""
        # A product with a one-hot row instead of a gather: the gradient is then no scatter, which
        # XLA runs one element at a time on a CPU.
        hot = jax.nn.one_hot(action, self.logits.shape[-1], dtype=bool)
        return jnp.sum(jnp.where(hot, self.log_probs(), 0), axis=-1)

    def entropy(self) -> jax.Array:
        r""":math:`-\sum_k p_k \log p_k` in nats, ``[...]``."""
        log_p = self.log_probs()
        return -jnp.sum(_weighted(log_p, log_p), axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        r""":math:`KL(self \| other) = \sum_k p_k (\log p_k - \log q_k)` in nats, ``[...]``."""
        log_p, log_q = self.log_probs(), other.log_probs()
        return jnp.sum(_weighted(log_p, log_p - log_q), axis=-1)


def _weighted(log_p: jax.Array, x: jax.Array) -> jax.Array:
    """``exp(log_p) * x`` with 0 * inf = 0, in the gradient too."""
    possible = jnp.isfinite(log_p)
    return jnp.where(possible, jnp.exp(log_p) * jnp.where(possible, x, 0), 0)


class MultiCategorical(NamedTuple):
    r"""Independent choices: a product of :class:`Categorical`, over actions ``[..., D]``.

    Attributes:
        logits: ``[..., D, K]``, with K of the choice that has most; ``-inf`` beyond the others.

    Example:
        >>> import jax.numpy as jnp
        >>> policy = MultiCategorical.of(jnp.zeros((1, 5)), (3, 2))
        >>> policy.logits.shape, policy.mode().tolist(), f"{policy.entropy()[0]:.4f}"
        ((1, 2, 3), [[0, 0]], '1.7918')
    """

    logits: jax.Array

    @classmethod
    def of(cls, logits: jax.Array, counts: tuple[int, ...]) -> "MultiCategorical":
        """From the logits of all choices, one after the other, ``[..., sum(counts)]``."""
        return cls(_side_by_side(logits, counts, -jnp.inf))

    def masked(self, mask: jax.Array) -> "MultiCategorical":
        """Without what ``mask`` (bool ``[..., D, K]``) forbids."""
        return MultiCategorical(jnp.where(mask, self.logits, -jnp.inf))

    def sample(self, key: jax.Array) -> jax.Array:
        """One action a row, int32 ``[..., D]``."""
        return self.from_noise(self.noise(key))

    def noise(self, key: jax.Array, lead: tuple[int, ...] = ()) -> jax.Array:
        """Numbers for ``lead`` samples of all rows, ``[*lead, ..., D, K]``."""
        return Categorical(self.logits).noise(key, lead)

    def from_noise(self, noise: jax.Array) -> jax.Array:
        """The action a row, int32 ``[..., D]``, that is a sample for noise ``[..., D, K]``."""
        return Categorical(self.logits).from_noise(noise)

    def mode(self) -> jax.Array:
        """The most probable action, int32 ``[..., D]``."""
        return Categorical(self.logits).mode()

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of ``action`` (int ``[..., D]``), ``[...]``."""
        return jnp.sum(Categorical(self.logits).log_prob(action), axis=-1)

    def entropy(self) -> jax.Array:
        """The sum of the choices' entropies in nats, ``[...]``."""
        return jnp.sum(Categorical(self.logits).entropy(), axis=-1)

    def kl(self, other: "MultiCategorical") -> jax.Array:
        """The sum of the choices' divergences in nats, ``[...]``."""
        return jnp.sum(Categorical(self.logits).kl(Categorical(other.logits)), axis=-1)


def _side_by_side(x: jax.Array, counts: tuple[int, ...], fill: Any) -> jax.Array:
    """``[..., sum(counts)]`` as rows ``[..., D, max(counts)]``, the shorter ones filled up."""
    parts = jnp.split(x, np.cumsum(counts)[:-1], axis=-1)
    widths = [[(0, 0)] * (x.ndim - 1) + [(0, max(counts) - n)] for n in counts]
    pairs = zip(parts, widths, strict=True)
    return jnp.stack([jnp.pad(part, w, constant_values=fill) for part, w in pairs], axis=-2)


def forbid(policy: Any, mask: jax.Array | None, counts: tuple[int, ...] | None = None) -> Any:
    """A distribution without the actions that observations forbid.

    Args:
        policy: Over actions ``[...]``, with a method ``masked``.
        mask: What is allowed, bool ``[..., K]``; None: all.
        counts: Of a MultiDiscrete, whose choices lie one after the other in the mask.

    Raises:
        TypeError: If the distribution cannot do without some actions.
    """
    if mask is None:
        return policy
    if not hasattr(policy, "masked"):
        raise TypeError(
            f"observations have an action_mask, and a {type(policy).__name__} has no masked(mask); "
            "return a purerl.Categorical or MultiCategorical, or add the method."
        )
    return policy.masked(mask if counts is None else _side_by_side(mask, counts, False))


def forbid_values(q: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Action values, -inf of what is not allowed.

    Args:
        q: ``[..., K]``.
        mask: What is allowed, bool ``[..., K]``; None: all.
    """
    return q if mask is None else jnp.where(mask, q, -jnp.inf)


class DiagGaussian(NamedTuple):
    r"""Independent normals :math:`N(\mu_i, \sigma_i^2)`, over the last axis.

    Finite in float32, with its gradients, for scales between 1e-13 and 1e13, actions and other
    means within 1e5 of its own, and in a divergence two scales whose ratio is below 1e19.

    Attributes:
        mean: :math:`\mu`, ``[..., D]``.
        log_std: :math:`\log \sigma`, ``[..., D]``.

    Example:
        >>> import jax.numpy as jnp
        >>> policy = DiagGaussian(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
        >>> [f"{value:.4f}" for value in policy.log_prob(jnp.zeros((1, 2)))]
        ['-1.8379']
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """One action a row, ``[..., D]``; not clipped to the action space's bounds."""
        return self.from_noise(self.noise(key))

    def noise(self, key: jax.Array, lead: tuple[int, ...] = ()) -> jax.Array:
        """Numbers for ``lead`` samples of all rows, ``[*lead, ..., D]``; of the shapes alone."""
        return jax.random.normal(key, (*lead, *self.mean.shape), _wide_type(self.mean))

    def from_noise(self, noise: jax.Array) -> jax.Array:
        """The action a row, ``[..., D]``, that is a sample for noise ``[..., D]``."""
        return _wide(self.mean) + jnp.exp(_wide(self.log_std)) * noise

    def mode(self) -> jax.Array:
        """The mean, ``[..., D]``."""
        return _wide(self.mean)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density of ``action`` (``[..., D]``), ``[...]``."""
        log_std = _wide(self.log_std)
        z = (action - self.mean) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * jnp.square(z) - log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> jax.Array:
        r""":math:`\sum_i \log \sigma_i + \tfrac12 \log 2 \pi e` in nats, ``[...]``."""
        return jnp.sum(_wide(self.log_std) + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: "DiagGaussian") -> jax.Array:
        r""":math:`KL(self \| other)` in nats, ``[...]``.

        .. math::
            \tfrac12 \sum_i \frac{\sigma_i^2}{\sigma_i'^2} + \frac{(\mu_i - \mu_i')^2}{\sigma_i'^2}
            - 1 - \log \frac{\sigma_i^2}{\sigma_i'^2}
        """
        log_ratio = 2 * (_wide(self.log_std) - other.log_std)
        z = (_wide(self.mean) - other.mean) * jnp.exp(-_wide(other.log_std))
        # expm1 keeps the digits near 0 that exp(x) - 1 loses: a KL is about x^2, and x is small.
        return 0.5 * jnp.sum(jnp.expm1(log_ratio) - log_ratio + jnp.square(z), axis=-1)
