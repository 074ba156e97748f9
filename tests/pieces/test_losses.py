"""Losses against rlax and hand formulas, and what their gradients may reach."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from purerl.pieces import losses

B = 64


def samples(seed, *names):
    """One array [B] of normal numbers for each name."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=B)) for name in names}


def assert_equal_with_gradient(ours, oracle, x, atol=1e-12):
    """Two functions [B] -> scalar have the same value and gradient at x."""
    for got, wanted in zip(jax.value_and_grad(ours)(x), jax.value_and_grad(oracle)(x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)


def test_clipped_surrogate_equals_rlax(x64):
    rlax = oracles.optional("rlax")
    x = samples(0, "log_prob", "old", "advantage")
    old = x["log_prob"] + 0.3 * x["old"]

    def ours(log_prob):
        return jnp.mean(losses.clipped_surrogate_loss(log_prob, old, x["advantage"], 0.2))

    def oracle(log_prob):
        ratio = jnp.exp(log_prob - old)
        return rlax.clipped_surrogate_pg_loss(ratio, x["advantage"], 0.2)

    assert_equal_with_gradient(ours, oracle, x["log_prob"])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # better than allowed: no reason to go further
        (0.5, 2.0, -1.0, -1.0),  # a good action made rare: pushed back
        (1.5, -2.0, 3.0, 3.0),  # a bad action made frequent: pushed back
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, slope):
    """The slope is with respect to log pi, so it has the ratio as a factor."""

    def of_log_prob(log_prob):
        one = jnp.ones(1)
        return losses.clipped_surrogate_loss(log_prob * one, 0 * one, advantage * one, 0.2)[0]

    got = jax.value_and_grad(of_log_prob)(jnp.log(ratio))
    np.testing.assert_allclose(got, (loss, slope), rtol=1e-6, atol=1e-6)


def test_policy_gradient_equals_rlax(x64):
    rlax = oracles.optional("rlax")
    rng = np.random.default_rng(1)
    logits, weight = jnp.asarray(rng.normal(size=(B, 5))), jnp.asarray(rng.normal(size=B))
    action = jnp.asarray(rng.integers(5, size=B))

    def ours(logits):
        log_prob = jax.nn.log_softmax(logits)[jnp.arange(B), action]
        return jnp.mean(losses.policy_gradient_loss(log_prob, weight))

    def oracle(logits):
        return rlax.policy_gradient_loss(logits, action, weight, jnp.ones(B))

    with oracles.lenient():
        assert_equal_with_gradient(ours, oracle, logits)


def test_policy_gradient_makes_rewarded_actions_likelier():
    gradient = jax.grad(lambda x: losses.policy_gradient_loss(x, jnp.array([2.0, -3.0])).sum())
    assert gradient(jnp.array([-1.0, -1.0])).tolist() == [-2.0, 3.0]


def test_entropy_loss_equals_rlax(x64):
    rlax = oracles.optional("rlax")
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(B, 5)))

    def ours(logits):
        log_p = jax.nn.log_softmax(logits)
        return jnp.mean(losses.entropy_loss(-jnp.sum(jnp.exp(log_p) * log_p, axis=-1)))

    with oracles.lenient():
        assert_equal_with_gradient(ours, lambda x: rlax.entropy_loss(x, jnp.ones(B)), logits)


def test_surrogate_by_hand(x64):
    x = samples(3, "log_prob", "old_log_prob", "advantage")
    ratio = np.exp(np.asarray(x["log_prob"]) - np.asarray(x["old_log_prob"]))
    got = losses.surrogate_loss(**x)
    np.testing.assert_allclose(got, -ratio * x["advantage"], rtol=0, atol=1e-12)


def test_kl_penalized_surrogate_by_hand(x64):
    x = samples(3, "log_prob", "old_log_prob", "advantage", "kl")
    got = losses.kl_penalized_surrogate_loss(**x, beta=0.7)
    ratio = np.exp(np.asarray(x["log_prob"]) - np.asarray(x["old_log_prob"]))
    np.testing.assert_allclose(got, 0.7 * x["kl"] - ratio * x["advantage"], rtol=0, atol=1e-12)


def test_value_loss_by_hand(x64):
    x = samples(4, "value", "target")
    got = losses.value_loss(**x)
    wanted = (np.asarray(x["value"]) - np.asarray(x["target"])) ** 2 / 2
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


def test_clipped_value_loss_by_hand(x64):
    x = samples(5, "value", "old_value", "target")
    got = losses.clipped_value_loss(**x, clip=0.5)
    for i in range(B):
        value, old, target = (float(x[name][i]) for name in ("value", "old_value", "target"))
        clipped = old + min(max(value - old, -0.5), 0.5)
        wanted = max((value - target) ** 2, (clipped - target) ** 2) / 2
        np.testing.assert_allclose(got[i], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "target", "slope"),
    [
        (0.3, 1.0, -0.7),  # within the clip
        (0.8, 1.0, 0.0),  # moved far towards the target: no reason to go further
        (-0.8, 1.0, -1.8),  # moved far away from it: pulled back
    ],
)
def test_clipped_value_loss_stops_only_towards_the_target(value, target, slope):
    loss = lambda v: losses.clipped_value_loss(  # noqa: E731
        v, jnp.float32(0.0), jnp.float32(target), 0.5
    )
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(value)), slope, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_huber_equals_rlax(x64, delta):
    rlax = oracles.optional("rlax")
    x = samples(6, "value", "target")

    def ours(value):
        return jnp.mean(losses.huber_loss(value, x["target"], delta))

    def oracle(value):
        return jnp.mean(rlax.huber_loss(value - x["target"], delta))

    assert_equal_with_gradient(ours, oracle, 2 * x["value"])


GRADIENTS = [  # loss, arguments that are learned, arguments that are constant
    (losses.policy_gradient_loss, ["log_prob"], ["weight"]),
    (losses.value_loss, ["value"], ["target"]),
    (losses.huber_loss, ["value"], ["target"]),
    (losses.clipped_value_loss, ["value"], ["old_value", "target"]),
    (losses.surrogate_loss, ["log_prob"], ["old_log_prob", "advantage"]),
    (losses.clipped_surrogate_loss, ["log_prob"], ["old_log_prob", "advantage"]),
    (
        losses.kl_penalized_surrogate_loss,
        ["log_prob", "kl"],
        ["old_log_prob", "advantage", "beta"],
    ),
    (losses.entropy_loss, ["entropy"], []),
]


@pytest.mark.parametrize(
    ("loss", "learned", "constant"), GRADIENTS, ids=lambda x: getattr(x, "__name__", None)
)
def test_gradients_reach_what_is_learned_and_nothing_else(loss, learned, constant):
    x = {k: v.astype(jnp.float32) for k, v in samples(7, *learned, *constant).items()}
    settings = {"clip": 0.5} if "clipped" in loss.__name__ else {}
    gradient = jax.grad(lambda x: jnp.sum(loss(**x, **settings)))(x)
    for name in learned:
        assert jnp.count_nonzero(gradient[name]) > B // 4, name
    for name in constant:
        assert jnp.count_nonzero(gradient[name]) == 0, name


@pytest.mark.parametrize(
    ("loss", "learned", "constant"), GRADIENTS, ids=lambda x: getattr(x, "__name__", None)
)
def test_one_number_a_sample(loss, learned, constant):
    """No mean inside: shuffled samples give shuffled losses."""
    x = samples(8, *learned, *constant)
    settings = {"clip": 0.5} if "clipped" in loss.__name__ else {}
    got = loss(**x, **settings)
    assert got.shape == (B,)
    reverse = loss(**{k: v[::-1] for k, v in x.items()}, **settings)
    np.testing.assert_array_equal(got[::-1], reverse)
