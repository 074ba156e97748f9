"""The protocol of networks, and the default ones: flax.linen modules of ``nn.Dense`` alone.

What a caller does not use of a network's outputs is never computed: under ``jit`` the compiler
drops it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from purerl.config import Config, field
from purerl.policies.distributions import (
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    forbid,
)
from purerl.records import (
    ActionSpace,
    Discrete,
    MultiDiscrete,
    PyTree,
    action_mask,
    inputs_of,
)

Activation = Literal["tanh", "relu", "elu", "swish", "gelu"]
TorsoKind = Literal["auto", "mlp", "conv"]
MemoryKind = Literal["none", "gru", "lstm"]


class Network(Protocol):
    """What an algorithm calls of a network, which is a pure function of parameters and
    observations: nothing is kept from one call to the next, and nothing is drawn at random.

    A ``flax.linen`` module is one as it is; ``purerl.from_nnx`` and ``purerl.from_equinox`` make
    one of a network of theirs; :class:`purerl.NetworkFunctions` of two functions.
    """

    def init(self, key: jax.Array, obs: PyTree) -> PyTree:
        """Parameters for observations ``[B, *O]``: a pytree of arrays, each of which is trained."""

    def apply(self, params: PyTree, obs: PyTree) -> Any:
        """``(distribution, value [B])`` of observations ``[B, *O]``, with a
        :class:`purerl.Distribution` over actions; for DQN ``q [B, K]``; for a critic of action
        values it takes ``action=None`` too, and the value is that of the action, or of all.

        It gets an observation whole, its ``action_mask`` too; what that forbids is taken out of
        its output by the algorithm.
        """


class RecurrentNetwork(Protocol):
    """A :class:`Network` with a memory, which it gets and gives back; it keeps nothing itself.

    With a method ``unroll(params, obs [T, n, *O], memory, start [T, n])`` besides, which returns
    ``(distribution [T, n], value [T, n], memory)`` of all steps at once, as ``apply`` at one step
    after the other does, updates need no loop over ``apply``: for what can be computed faster than
    step by step (a linear recurrence by an associative scan; layers before and after a cell).
    """

    def init_memory(self, obs: PyTree) -> PyTree:
        """The empty memory for observations ``[B, *O]``: a pytree with leaves ``[B, ...]``."""

    def init(self, key: jax.Array, obs: PyTree, memory: PyTree, start: jax.Array) -> PyTree:
        """Parameters, as of a :class:`Network`, for what ``apply`` takes."""

    def apply(self, params: PyTree, obs: PyTree, memory: PyTree, start: jax.Array) -> Any:
        """``(distribution, value [B], memory)`` of observations ``[B, *O]``: the memory after this
        step. Where ``start`` (bool ``[B]``) is true the memory it gets counts as empty.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(Config):
    """The shape of the default actor-critic; every field is static."""

    hidden_sizes: tuple[int, ...] = field(
        (64, 64), "Widths of the hidden layers; for images, of those after the convolution."
    )
    activation: Activation = field("tanh", "Non-linearity after each hidden layer.")
    torso: TorsoKind = field(
        "auto", "conv: a 3x3 convolution first; auto: conv for observations [H, W, C], else mlp."
    )
    conv_features: int = field(16, "Channels of the convolution.")
    shared: bool = field(False, "One trunk for actor and critic instead of two.")
    state_dependent_std: bool = field(
        False, "A Gaussian's log-std as an output; else the same in all states, a parameter."
    )
    initial_log_std: float = field(0.0, "A Gaussian's log-std at the start.", "(-inf, inf)")
    min_log_std: float | None = field(
        None, "Least log-std of a Gaussian; a parameter that reached it stays.", "(-inf, inf)"
    )
    max_log_std: float | None = field(
        None, "Largest log-std of a Gaussian; a parameter that reached it stays.", "(-inf, inf)"
    )
    orthogonal_init: bool = field(
        True, "Orthogonal weights (sqrt 2, policy head 0.01, value head 1); else flax's default."
    )
    memory: MemoryKind = field(
        "none", "A recurrent cell after the hidden layers; policy-gradient family, PPO and TRPO."
    )
    memory_size: int = field(64, "Width of the recurrent cell.")
    memory_span: int | None = field(
        None, "Most steps that a unit keeps its state at first; None: as if it were 2."
    )

    def check(self) -> None:
        """Refuses a log-std that begins beyond its bounds, where its gradient is zero."""
        low = -math.inf if self.min_log_std is None else self.min_log_std
        high = math.inf if self.max_log_std is None else self.max_log_std
        if not low <= self.initial_log_std <= high:
            raise ValueError(
                f"NetworkConfig: initial_log_std={self.initial_log_std} is not from "
                f"min_log_std={self.min_log_std} to max_log_std={self.max_log_std}, where it could "
                "learn; move it or the bounds."
            )


def dense(features: int, scale: float, orthogonal: bool = True, name: str | None = None):
    """``nn.Dense`` with zero bias and orthogonal weights of gain ``scale``.

    Args:
        features: Width of the output.
        scale: Gain of the orthogonal initialization.
        orthogonal: If False, flax's default initialization.
        name: The layer's name in the parameters.
    """
    # flax's own default is float32 also where JAX works in float64.
    options: dict[str, Any] = {"name": name, "param_dtype": jnp.result_type(float)}
    if orthogonal:
        options["kernel_init"] = orthogonal_weights(scale)
    if features <= NARROW:
        options["dot_general"] = _narrow_product
    return nn.Dense(features, **options)


@functools.cache
def orthogonal_weights(scale: float) -> Callable[..., jax.Array]:
    """The initialization ``(key, shape, dtype) -> weights``, of this gain.

    Under jit it is traced once for each shape: whenever a network is applied, flax asks the
    initialization of each parameter for its shape.

    Args:
        scale: Gain.
    """
    return jax.jit(nn.initializers.orthogonal(scale), static_argnums=(1, 2))


NARROW = 4  # columns
FEW = 512  # rows
MATRIX_PRODUCT = "matrix_product"  # by a function of this name under jit K-FAC knows a product


@jax.jit
def matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x @ kernel`` for a few outputs, as a sum of products where x has few rows.

    Matrix-product kernels are poor at one or two columns: as heads on minibatches, this saves 4 %
    of a whole small PPO update on a CPU. On large batches it costs more than it saves, and a third
    of a Fisher-vector product, whose linearization keeps the broadcast factors.

    Args:
        x: ``[..., d]``.
        kernel: ``[d, k]``.

    Returns:
        ``[..., k]``.
    """
    if x.size > FEW * x.shape[-1]:
        return x @ kernel
    shape = (*x.shape, kernel.shape[1])
    factors = jnp.broadcast_to(x[..., None], shape), jnp.broadcast_to(kernel, shape)
    return jnp.sum(factors[0] * factors[1], axis=-2)


def _narrow_product(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    return matrix_product(x, kernel)


class MLP(nn.Module):
    """Hidden layers ``[B, *O] -> [B, hidden_sizes[-1]]``; what is not flat is flattened.

    Attributes:
        config: Sizes and activation.
    """

    config: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, *O] -> [B, hidden_sizes[-1]]``."""
        activation = getattr(nn, self.config.activation)
        x = x.reshape(x.shape[0], -1)
        for width in self.config.hidden_sizes:
            x = activation(dense(width, 2**0.5, self.config.orthogonal_init)(x))
        return x


class Conv(nn.Module):
    """A 3x3 convolution of stride 1 without padding, ``[B, H, W, C] -> [B, H-2, W-2, features]``.

    Written as patches times a matrix: on a CPU this is ten times as fast as ``lax.conv`` on
    observations of MinAtar's size, and a Dense layer at many locations is what K-FAC knows.
    """

    features: int = 16
    orthogonal: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, H-2, W-2, features]``."""
        height, width = x.shape[1] - 2, x.shape[2] - 2
        if height < 1 or width < 1:
            raise ValueError(
                f"observations have shape {x.shape[1:]}, wanted at least 3 x 3 pixels for a "
                "convolution; set torso='mlp' in NetworkConfig."
            )
        shifted = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = jnp.concatenate(shifted, axis=-1)  # [B, H-2, W-2, 9 C], in the order (h, w, c)
        return dense(self.features, 2**0.5, self.orthogonal)(patches)


def features_of(config: NetworkConfig, obs: PyTree) -> jax.Array:
    """Observations as the input of an MLP: after the convolution, where there is one, and with the
    leaves of a pytree flattened and side by side; called within a module.

    Args:
        config: Whose ``torso`` says when to convolve.
        obs: ``[B, *O]``; bytes are scaled by 1/255, and an ``action_mask`` is left out.
    """
    leaves = [_real(x) for x in inputs_of(obs)]
    if config.torso == "conv" and not any(x.ndim == 4 for x in leaves):
        raise ValueError(
            f"observations have shape {', '.join(str(x.shape[1:]) for x in leaves)}, wanted "
            "[H, W, C] for torso='conv'; set torso='mlp' or 'auto' in NetworkConfig."
        )
    leaves = [_convolved(config, x) for x in leaves]
    if len(leaves) == 1:
        return leaves[0]
    return jnp.concatenate([x.reshape(len(x), -1) for x in leaves], axis=-1)


def _real(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    real = jnp.result_type(float)
    return x.astype(real) / 255 if x.dtype == jnp.uint8 else x.astype(real)


def _convolved(config: NetworkConfig, x: jax.Array) -> jax.Array:
    if config.torso == "mlp" or x.ndim != 4:
        return x
    return getattr(nn, config.activation)(Conv(config.conv_features, config.orthogonal_init)(x))


class Torso(nn.Module):
    """Trunk of a network: ``[B, *O] -> [B, hidden_sizes[-1]]``."""

    config: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(self, obs: PyTree) -> jax.Array:
        """``[B, *O] -> [B, hidden_sizes[-1]]``."""
        return MLP(self.config)(features_of(self.config, obs))


class PolicyHead(nn.Module):
    """Features ``[B, F]`` to the action space's distribution.

    Discrete: Categorical; MultiDiscrete: MultiCategorical; both without the actions that a mask
    forbids. Box: DiagGaussian whose log-std is a parameter, the same in every state, or an output.
    """

    action_space: ActionSpace
    config: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> Distribution:
        """``[B, F]`` and perhaps a mask ``[B, K]`` to a distribution over ``[B]`` actions."""
        space, orthogonal = self.action_space, self.config.orthogonal_init
        if isinstance(space, Discrete):
            return forbid(Categorical(dense(space.num_actions, 0.01, orthogonal)(features)), mask)
        if isinstance(space, MultiDiscrete):
            logits = dense(sum(space.counts), 0.01, orthogonal)(features)
            return forbid(MultiCategorical.of(logits, space.counts), mask, space.counts)
        (size,), config = space.shape, self.config
        mean = dense(size, 0.01, orthogonal)(features)
        if config.state_dependent_std:
            log_std = config.initial_log_std + dense(size, 0.01, orthogonal, "log_std")(features)
        else:
            initial = nn.initializers.constant(config.initial_log_std)
            log_std = self.param("log_std", initial, (size,), mean.dtype)
        log_std = jnp.clip(log_std, config.min_log_std, config.max_log_std)
        return DiagGaussian(mean, jnp.broadcast_to(log_std, mean.shape))


class ActorCritic(nn.Module):
    """Policy and state value, with separate trunks or a shared one.

    Attributes:
        action_space: What the policy is over.
        config: Sizes, activation, initial weights; ``shared`` gives one trunk.

    Example:
        >>> import jax, jax.numpy as jnp, purerl
        >>> network, obs = ActorCritic(purerl.Discrete(3)), jnp.zeros((8, 4))
        >>> distribution, value = network.apply(network.init(jax.random.key(0), obs), obs)
        >>> distribution.sample(jax.random.key(1)).shape, value.shape
        ((8,), (8,))
    """

    action_space: ActionSpace
    config: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(self, obs: PyTree) -> tuple[Distribution, jax.Array]:
        """Observations ``[B, *O]`` to ``(distribution [B], value [B])``."""
        refuse_memory(self.config)
        config, mask = self.config, action_mask(obs)
        actor = Torso(config, name="torso" if config.shared else "actor")(obs)
        critic = actor if config.shared else Torso(config, name="critic")(obs)
        distribution = PolicyHead(self.action_space, config, name="policy_head")(actor, mask)
        value = dense(1, 1.0, config.orthogonal_init, name="value_head")(critic)
        return distribution, value[:, 0]


def refuse_memory(config: NetworkConfig) -> None:
    """Raises ValueError if a network without a memory is configured with one.

    Args:
        config: Of the network.
    """
    if config.memory != "none":
        raise ValueError(
            f"memory={config.memory!r} is for purerl.RecurrentActorCritic or "
            "RecurrentActorQCritic; use one of these, or leave it out of this network's config."
        )
