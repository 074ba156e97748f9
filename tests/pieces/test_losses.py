"""Losses against rlax and hand formulas, and what their gradients may reach."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import purerl
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


def test_surrogate_by_hand(x64):
    x = samples(3, "log_prob", "old_log_prob", "advantage")
    ratio = np.exp(np.asarray(x["log_prob"]) - np.asarray(x["old_log_prob"]))
    got = losses.surrogate_loss(**x)
    np.testing.assert_allclose(got, -ratio * x["advantage"], rtol=0, atol=1e-12)


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


GRADIENTS = [  # loss, arguments that are learned, arguments that are constant
    (losses.policy_gradient_loss, ["log_prob"], ["weight"]),
    (losses.value_loss, ["value"], ["target"]),
    (losses.clipped_value_loss, ["value"], ["old_value", "target"]),
    (losses.surrogate_loss, ["log_prob"], ["old_log_prob", "advantage"]),
    (losses.clipped_surrogate_loss, ["log_prob"], ["old_log_prob", "advantage"]),
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


RATIO_LOSSES = {
    "surrogate": losses.surrogate_loss,
    "clipped": lambda *x: losses.clipped_surrogate_loss(*x, 0.2),
}


@pytest.mark.parametrize("loss", RATIO_LOSSES.values(), ids=RATIO_LOSSES.keys())
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_probability_that_exploded_has_a_finite_loss_and_gradient(loss, advantage):
    """exp(89) is infinite in float32, and so is the square of exp(50), which Adam takes."""
    for log_prob in (50.0, 89.0, 1e30):
        x = jnp.float32(log_prob), jnp.float32(0.0), jnp.float32(advantage)
        value, gradient = jax.value_and_grad(loss)(*x)
        assert jnp.isfinite(value)
        assert gradient == 0


def test_the_bound_of_the_ratio_changes_no_ordinary_one():
    x = jnp.linspace(-30.0, 39.0, 100)
    np.testing.assert_array_equal(losses.probability_ratio(x, jnp.zeros(100)), jnp.exp(x))
    np.testing.assert_array_equal(
        jax.vmap(jax.grad(losses.probability_ratio))(x, 0 * x), jnp.exp(x)
    )
    kl = losses.approximate_kl(jnp.array([0.5, 89.0, 1e30]), jnp.zeros(3))
    np.testing.assert_allclose(kl, [np.expm1(0.5) - 0.5, *[np.exp(40.0)] * 2], rtol=1e-5)


def test_approximate_kl_by_hand_and_in_the_mean(x64):
    """Its mean over actions of the old policy is KL(old || new)."""
    old, new = np.array([0.2, 0.8]), np.array([0.5, 0.5])
    each = losses.approximate_kl(jnp.log(new), jnp.log(old))
    np.testing.assert_allclose(each, new / old - 1 - np.log(new / old), rtol=1e-12)
    np.testing.assert_allclose(old @ each, old @ np.log(old / new), rtol=1e-12)


def test_targets_of_terminal_states_do_not_look_at_what_was_observed_last():
    reward, discount = jnp.array([1.0, 2.0]), jnp.array([0.0, 0.5])
    next_q = jnp.array([[jnp.nan, jnp.inf], [4.0, 6.0]])
    assert losses.q_target(reward, discount, next_q).tolist() == [1.0, 5.0]
    for selector in (next_q, next_q[:, ::-1]):
        target = losses.double_q_target(reward, discount, next_q, selector)
        assert target[0] == 1.0
    assert losses.double_q_target(reward, discount, next_q, -next_q).tolist() == [1.0, 4.0]


def test_targets_are_constant():
    x = jnp.ones((2, 3))
    gradient = jax.grad(lambda q: jnp.sum(losses.q_target(jnp.ones(2), jnp.ones(2), q)))(x)
    assert not gradient.any()
    double = lambda q, s: jnp.sum(losses.double_q_target(jnp.ones(2), jnp.ones(2), q, s))  # noqa: E731
    assert not any(g.any() for g in jax.grad(double, (0, 1))(x, x))


def test_taken_picks_and_its_gradient_reaches_only_what_is_taken():
    q, action = jnp.arange(6.0).reshape(2, 3), jnp.array([2, 0])
    assert losses.taken(q, action).tolist() == [2.0, 3.0]
    gradient = jax.grad(lambda q: jnp.sum(losses.taken(q, action)))(q)
    assert gradient.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_actor_critic_loss_is_the_sum_of_its_terms():
    policy = purerl.Categorical(jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]])))
    batch = purerl.OnPolicyBatch(
        obs=None,
        action=jnp.array([0, 1]),
        log_prob=None,
        value=None,
        advantage=jnp.array([1.0, -2.0]),
        target=jnp.array([3.0, 1.0]),
    )
    total, info = losses.actor_critic_loss(policy, jnp.array([1.0, 1.0]), batch, 0.5, 0.1)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75) + np.log(0.5)) / 2
    gain = (-np.log(0.25) + 2 * np.log(0.5)) / 2
    np.testing.assert_allclose(info["policy_loss"], gain, rtol=1e-6)
    np.testing.assert_allclose(info["value_loss"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(info["entropy"], entropy, rtol=1e-6)
    np.testing.assert_allclose(total, gain + 0.5 - 0.1 * entropy, rtol=1e-6)
    assert info["loss"] == total
