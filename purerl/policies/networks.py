"""The protocol of networks, and the default ones: flax.linen modules of ``nn.Dense`` alone.

What a caller does not use of a network's outputs is never computed: under ``jit`` the compiler
drops it.
"""

import dataclasses
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from purerl.config import Config, field
from purerl.policies.distributions import Categorical, DiagGaussian, Distribution
from purerl.records import ActionSpace, Discrete, PyTree

Activation = Literal["tanh", "relu", "elu", "swish", "gelu"]
TorsoKind = Literal["auto", "mlp", "conv"]


class Network(Protocol):
    """What an algorithm calls of a network, which is a pure function of parameters and
    observations: nothing is kept from one call to the next, and nothing is drawn at random.

    A ``flax.linen`` module is one as it is; ``purerl.from_nnx`` and ``purerl.from_equinox`` make
    one of a network of theirs; :class:`purerl.NetworkFunctions` of two functions.
    """

    def init(self, key: jax.Array, obs: jax.Array) -> PyTree:
        """Parameters for observations ``[B, *O]``: a pytree of arrays, each of which is trained."""

    def apply(self, params: PyTree, obs: jax.Array) -> Any:
        """``(distribution, value [B])`` of observations ``[B, *O]``, with a
        :class:`purerl.Distribution` over actions; for DQN ``q [B, K]``; for a critic of action
        values it takes ``action=None`` too, and the value is that of the action, or of all.
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
    orthogonal_init: bool = field(
        True, "Orthogonal weights (sqrt 2, policy head 0.01, value head 1); else flax's default."
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
        options["kernel_init"] = nn.initializers.orthogonal(scale)
    if features <= NARROW:
        options["dot_general"] = _narrow_product
    return nn.Dense(features, **options)


NARROW = 4  # columns
FEW = 512  # rows
MATRIX_PRODUCT = "matrix_product"  # by a function of this name under jit K-FAC knows a product


@jax.jit
def matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x @ kernel`` for a few outputs, as a sum of products where x has few rows.

    Matrix-product kernels are poor at one or two columns: as heads on minibatches, this saves 4 %
    of a whole small PPO update on a CPU. On large batches it costs more than it saves, and a third
    of a Fisher-vector product, whose linearization keeps the broadcast factors.
    """
    if x.size > FEW * x.shape[-1]:
        return x @ kernel
    shape = (*x.shape, kernel.shape[1])
    factors = jnp.broadcast_to(x[..., None], shape), jnp.broadcast_to(kernel, shape)
    return jnp.sum(factors[0] * factors[1], axis=-2)


def _narrow_product(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    return matrix_product(x, kernel)


class MLP(nn.Module):
    """Hidden layers ``[B, *O] -> [B, hidden_sizes[-1]]``; the observation is flattened."""

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


def convolved(config: NetworkConfig, x: jax.Array) -> jax.Array:
    """Observations after the convolution, if there is one; called within a module.

    Args:
        config: Whose ``torso`` says when.
        x: ``[B, *O]``.
    """
    kind = config.torso
    if kind == "conv" and x.ndim != 4:
        raise ValueError(
            f"observations have shape {x.shape[1:]}, wanted [H, W, C] for torso='conv'; "
            "set torso='mlp' or 'auto' in NetworkConfig."
        )
    if kind == "mlp" or x.ndim != 4:
        return x
    return getattr(nn, config.activation)(Conv(config.conv_features, config.orthogonal_init)(x))


class Torso(nn.Module):
    """Trunk of a network: ``[B, *O] -> [B, hidden_sizes[-1]]``."""

    config: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, *O] -> [B, hidden_sizes[-1]]``."""
        return MLP(self.config)(convolved(self.config, x))


class PolicyHead(nn.Module):
    """Features ``[B, F]`` to the action space's distribution.

    Discrete: Categorical. Box: DiagGaussian whose log-std is a parameter, the same in every state.
    """

    action_space: ActionSpace
    orthogonal: bool = True

    @nn.compact
    def __call__(self, features: jax.Array) -> Distribution:
        """``[B, F]`` to a distribution over ``[B]`` actions."""
        if isinstance(self.action_space, Discrete):
            logits = dense(self.action_space.num_actions, 0.01, self.orthogonal)(features)
            return Categorical(logits)
        (size,) = self.action_space.shape
        mean = dense(size, 0.01, self.orthogonal)(features)
        log_std = self.param("log_std", nn.initializers.zeros, (size,), mean.dtype)
        return DiagGaussian(mean, jnp.broadcast_to(log_std, mean.shape))


class ActorCritic(nn.Module):
    """Policy and state value, with separate trunks or a shared one."""

    action_space: ActionSpace
    config: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[Distribution, jax.Array]:
        """Observations ``[B, *O]`` to ``(distribution [B], value [B])``."""
        actor = Torso(self.config, name="torso" if self.config.shared else "actor")(obs)
        critic = actor if self.config.shared else Torso(self.config, name="critic")(obs)
        orthogonal = self.config.orthogonal_init
        distribution = PolicyHead(self.action_space, orthogonal, name="policy_head")(actor)
        value = dense(1, 1.0, orthogonal, name="value_head")(critic)
        return distribution, value[:, 0]


def _refuse_shared(config: NetworkConfig) -> None:
    if config.shared:
        raise ValueError(
            "shared=True is for an actor and a state value; a network of action values has no "
            "trunk to share, so leave it out of its NetworkConfig."
        )


class ActorQCritic(nn.Module):
    """Policy and action value Q(s, a), with separate trunks.

    The call returns ``(distribution [B], q [B])``. For discrete actions Q has one output an action
    (``action=None`` returns them all, ``[B, K]``); for Box actions Q takes the action as input,
    after the convolution where there is one.

    Raises:
        ValueError: If a shared trunk is asked for.
    """

    action_space: ActionSpace
    config: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(
        self, obs: jax.Array, action: jax.Array | None = None
    ) -> tuple[Distribution, jax.Array]:
        """``[B, *O]`` and perhaps actions ``[B, *A]`` to ``(distribution, q)``."""
        _refuse_shared(self.config)
        orthogonal = self.config.orthogonal_init
        features = Torso(self.config, name="actor")(obs)
        distribution = PolicyHead(self.action_space, orthogonal, name="policy_head")(features)
        if isinstance(self.action_space, Discrete):
            features = Torso(self.config, name="critic")(obs)
            q = dense(self.action_space.num_actions, 1.0, orthogonal, name="q_head")(features)
            if action is not None:
                q = jnp.take_along_axis(q, action[:, None], axis=-1)[:, 0]
            return distribution, q
        if action is None:  # only the shapes matter: initialization, and acting
            action = jnp.zeros((obs.shape[0], *self.action_space.shape), obs.dtype)
        obs = convolved(self.config, obs)
        pair = jnp.concatenate([obs.reshape(obs.shape[0], -1), action], axis=-1)
        q = dense(1, 1.0, orthogonal, name="q_head")(MLP(self.config, name="critic")(pair))
        return distribution, q[:, 0]


class QNetwork(nn.Module):
    r"""Action values for discrete actions; ``dueling`` splits them into value and advantages.

    .. math::
        q(s, a) = v(s) + A(s, a) - \tfrac1K \sum_{a'} A(s, a').

    Each of the two streams has the last hidden layer to itself, as in the paper.

    References:
        Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", eq. 9.

    Raises:
        ValueError: If a shared trunk is asked for.
    """

    action_space: Discrete
    config: NetworkConfig = NetworkConfig()
    dueling: bool = False

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """``[B, *O] -> [B, K]``."""
        _refuse_shared(self.config)
        count, orthogonal = self.action_space.num_actions, self.config.orthogonal_init
        if not self.dueling:
            return dense(count, 1.0, orthogonal, name="q_head")(
                Torso(self.config, name="torso")(obs)
            )
        sizes = self.config.hidden_sizes
        config, streams = (
            dataclasses.replace(self.config, hidden_sizes=part) for part in (sizes[:-1], sizes[-1:])
        )
        features = Torso(config, name="torso")(obs)
        value = dense(1, 1.0, orthogonal, name="value_head")(MLP(streams, name="value")(features))
        advantage = dense(count, 1.0, orthogonal, name="advantage_head")(
            MLP(streams, name="advantage")(features)
        )
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)
