"""PPO against plain loops; early stopping, the penalty coefficient, separate value epochs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_policy_gradient import OBS, SPACE, STATES, Mdp, Table, random_rollout

import purerl
from purerl.algorithms.ppo import (
    PPOClipConfig,
    PPOPenaltyConfig,
    adapt_beta,
    make_loss,
    ppo_clip,
    ppo_penalty,
)
from purerl.pieces.advantages import explained_variance, on_policy_batch
from purerl.pieces.gradient import fit, make_optimizer
from purerl.pieces.losses import approximate_kl, make_critic_loss
from purerl.policies.distributions import DiagGaussian

PLAIN = {
    "num_minibatches": 1,
    "num_epochs": 3,
    "shuffle": False,
    "max_grad_norm": None,
    "learning_rate": 0.05,
    "learning_rate_schedule": "constant",
    "normalize_advantage": "none",
}


@pytest.fixture(autouse=True)
def _loops_are_python_loops():
    """Quicker than compiling a loop for each configuration, where a network has few numbers."""
    with jax.disable_jit():
        yield


class Gaussian(nn.Module):
    """A linear policy with a log-std of its own for each action, and a linear value."""

    @nn.compact
    def __call__(self, obs):
        mean = obs @ self.param("mean", nn.initializers.normal(0.3), (OBS, 2))
        log_std = self.param("log_std", nn.initializers.normal(0.3), (2,))
        value = obs @ self.param("value", nn.initializers.normal(0.3), (OBS,))
        return DiagGaussian(mean, jnp.broadcast_to(log_std, mean.shape)), value


def on_policy(network, params, rollout, box=False):
    """The rollout with the actions' probabilities under ``params``."""
    if box:
        noise = np.random.default_rng(5).normal(size=(*rollout.reward.shape, 2))
        rollout = rollout._replace(action=jnp.array(noise))
    distribution, _ = network.apply(params, rollout.obs.reshape(-1, OBS))
    log_prob = distribution.log_prob(rollout.action.reshape(-1, *rollout.action.shape[2:]))
    return rollout._replace(log_prob=log_prob.reshape(rollout.reward.shape))


def make_batch(params, rollout, **options):
    """The samples that an update of PPO learns from."""
    return on_policy_batch(Table(), params, rollout, 0.99, 0.95, **options)


def start(algorithm, params=None):
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
    return state if params is None else state._replace(params=params)


def setup(build=ppo_clip, box=False, **changes):
    """An algorithm, a state, and a rollout that it collected."""
    network = Gaussian() if box else Table()
    config = {ppo_clip: PPOClipConfig, ppo_penalty: PPOPenaltyConfig}[build](**(PLAIN | changes))
    algorithm = build(config, purerl.Box((2,)) if box else SPACE, network)
    state = start(algorithm, None if box else Mdp().params(False))
    return algorithm, state, on_policy(network, state.params, random_rollout(), box)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


# One update against loops.


def advantages(params, rollout, gamma, lam):
    table = np.asarray(params["params"]["value"])
    v, w = np.asarray(rollout.obs) @ table, np.asarray(rollout.next_obs) @ table
    advantage = np.zeros(v.shape)
    for n in range(v.shape[1]):
        following = 0.0
        for t in reversed(range(v.shape[0])):
            term, trunc = bool(rollout.terminated[t, n]), bool(rollout.truncated[t, n])
            delta = float(rollout.reward[t, n]) - v[t, n] + (0 if term else gamma * w[t, n])
            following = delta + (0 if term or trunc else gamma * lam * following)
            advantage[t, n] = following
    return advantage.reshape(-1), v.reshape(-1), (advantage + v).reshape(-1)


def forward(params, obs, action):
    """log pi(a|s) [B], all log-probabilities [B, A], values [B]."""
    params = params["params"]
    z = sum(obs[:, i : i + STATES] for i in range(0, OBS, STATES)) @ params["logits"]
    log_pi = z - jnp.log(jnp.sum(jnp.exp(z), axis=1, keepdims=True))
    return log_pi[jnp.arange(len(obs)), action], log_pi, obs @ params["value"]


def adam(loss, params, moments, rate, eps):
    m, s, count = moments
    gradient = jax.grad(loss)(params)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
    s = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, s, gradient)
    count += 1
    params = jax.tree.map(
        lambda p, m, s: p - rate * m / (1 - 0.9**count) / (jnp.sqrt(s / (1 - 0.999**count)) + eps),
        params,
        m,
        s,
    )
    return params, (m, s, count)


def zeros(params):
    zero = jax.tree.map(jnp.zeros_like, params)
    return zero, zero, 0


def reference_update(state, rollout, clip=None, beta=None, value_epochs=0):
    """Eqs. 7 or 8, and 9, on the full batch."""
    obs = np.asarray(rollout.obs).reshape(-1, OBS)
    action = np.asarray(rollout.action).reshape(-1)
    advantage, old_value, target = advantages(state.params, rollout, 0.9, 0.6)
    old_log_prob, old_log_pi, _ = forward(state.params, obs, action)

    def critic(params):
        value = forward(params, obs, action)[2]
        near = old_value + jnp.clip(value - old_value, -0.1, 0.1)
        return 0.5 * jnp.mean(jnp.maximum((value - target) ** 2, (near - target) ** 2))

    def loss(params):
        log_prob, log_pi, _ = forward(params, obs, action)
        ratio = jnp.exp(log_prob - old_log_prob)
        entropy = -jnp.mean(jnp.sum(jnp.exp(log_pi) * log_pi, axis=1))
        if clip is None:
            kl = jnp.sum(jnp.exp(old_log_pi) * (old_log_pi - log_pi), axis=1)
            gain = jnp.mean(ratio * advantage - beta * kl)
        else:
            gain = jnp.mean(
                jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
            )
        total = -gain - 0.01 * entropy
        return total if value_epochs else total + 0.7 * critic(params)

    params, moments, rate = state.params, zeros(state.params), 0.05 * (1 - 0.25)
    for _ in range(3):
        params, moments = adam(loss, params, moments, rate, 1e-4)
    moments = zeros(params)
    for _ in range(value_epochs):
        params, moments = adam(critic, params, moments, rate, 1e-4)
    return params


FULL = {
    "gamma": 0.9,
    "gae_lambda": 0.6,
    "value_coef": 0.7,
    "entropy_coef": 0.01,
    "clip_value": 0.1,
    "adam_eps": 1e-4,
    "learning_rate_schedule": "linear",
}


@pytest.mark.parametrize("value_epochs", [0, 4], ids=["one_loss", "algorithm_5_24"])
@pytest.mark.parametrize("build", [ppo_clip, ppo_penalty], ids=["eq_7", "eq_8"])
def test_update_by_hand(build, value_epochs, x64):
    own = {"clip": 0.05} if build is ppo_clip else {"initial_beta": 0.8}
    algorithm, state, rollout = setup(build, value_epochs=value_epochs, **FULL, **own)
    new, info = algorithm.update(state, rollout, jax.random.key(0), progress=0.25)
    wanted = reference_update(
        state, rollout, own.get("clip"), own.get("initial_beta"), value_epochs
    )
    assert np.abs(flat(wanted) - flat(state.params)).max() > 0.05
    np.testing.assert_allclose(flat(new.params), flat(wanted), atol=1e-10)
    if build is ppo_clip:
        assert info["clip_fraction"] > 0.1  # the clip took part


def test_annealed_clip_is_used(x64):
    algorithm, state, rollout = setup(clip=0.2, clip_schedule="linear", **FULL)
    new, _ = algorithm.update(state, rollout, jax.random.key(0), progress=0.25)
    wanted = reference_update(state, rollout, clip=0.15)
    np.testing.assert_allclose(flat(new.params), flat(wanted), atol=1e-10)


def test_gradient_norm_is_clipped(x64):
    """Adam's first step hardly depends on the scale, so its epsilon is made large."""
    algorithm, state, rollout = setup(num_epochs=1, adam_eps=1e3, max_grad_norm=1e-3)
    new, _ = algorithm.update(state, rollout, jax.random.key(0))
    step = np.linalg.norm(flat(new.params) - flat(state.params))
    assert step == pytest.approx(0.05 * 1e-3 / 1e3, rel=1e-3)


# Separate value epochs.


def test_value_epochs_leave_the_policy_bitwise_alone(x64):
    learned = []
    for value_epochs in (1, 5):
        algorithm, state, rollout = setup(value_epochs=value_epochs)
        new, _ = algorithm.update(state, rollout, jax.random.key(0))
        learned.append(new.params["params"])
    np.testing.assert_array_equal(*(p["logits"] for p in learned))
    assert np.any(learned[0]["value"] != learned[1]["value"])


def test_policy_epochs_leave_the_value_alone_where_value_epochs_follow(x64):
    _, state, rollout = setup(value_epochs=1)
    batch = make_batch(state.params, rollout)
    loss = make_loss(Table(), PPOClipConfig(value_epochs=1))
    gradient = jax.grad(lambda p: loss(p, batch)[0])(state.params)["params"]
    assert not np.any(gradient["value"])
    value_loss = make_critic_loss(Table())
    gradient = jax.grad(lambda p: value_loss(p, batch)[0])(state.params)["params"]
    assert not np.any(gradient["logits"])


def test_value_epochs_have_an_order_of_their_own(x64):
    """Minibatches of the value's pass are drawn by another key than those of the policy's."""
    sizes = {"num_epochs": 1, "num_minibatches": 2, "shuffle": True}
    algorithm, state, rollout = setup(value_epochs=1, **sizes)
    key = jax.random.key(3)
    batch, optimizer = make_batch(state.params, rollout), make_optimizer("adam")

    def fitted(key):
        loss, opt_state = make_critic_loss(Table()), optimizer.init(state.params)
        rate = {"optimizer": optimizer, "learning_rate": 0.05}
        return fit(loss, state.params, opt_state, batch, key, **rate, **sizes)[0]

    value = algorithm.update(state, rollout, key)[0].params["params"]["value"]
    of_policy, of_value = (fitted(k)["params"]["value"] for k in jax.random.split(key))
    np.testing.assert_allclose(value, of_value, atol=1e-12)
    assert np.abs(value - of_policy).max() > 1e-6


def test_value_epochs_have_an_optimizer_of_their_own(x64):
    """Both begin at zero, count their own steps, and go on from update to update."""
    algorithm, state, rollout = setup(value_epochs=2)
    new, _ = algorithm.update(state, rollout, jax.random.key(0))
    counts = [
        [int(x) for x in jax.tree.leaves(s) if jnp.issubdtype(x.dtype, jnp.integer)]
        for s in (new.opt_state, new.value_opt_state)
    ]
    assert counts == [[3], [2]]
    assert state.beta == ()
    assert setup()[1].value_opt_state == ()


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (ppo_clip, PPOPenaltyConfig(), "ppo_clip: config is of type PPOPenaltyConfig, wanted an"),
        (ppo_penalty, PPOClipConfig(), r"wanted an object PPOPenaltyConfig\(...\)"),
        (ppo_clip, PPOClipConfig, "config is <class .*PPOClipConfig'>, wanted an object PPOClip"),
        (purerl.a2c, {"gamma": 0.9}, "a2c: config is of type dict, wanted an object A2CConfig"),
        (purerl.dqn, None, "dqn: config is of type NoneType, wanted an object DQNConfig"),
        (purerl.policy_gradient, purerl.A2CConfig(), "wanted an object PolicyGradientConfig"),
    ],
)
def test_configuration_of_another_algorithm(build, config, message):
    with pytest.raises(TypeError, match=message):
        build(config, SPACE)


# Switches.

CHANGES = {
    "batch_advantage": {"normalize_advantage": "batch"},
    "minibatch_advantage": {"normalize_advantage": "minibatch"},
    "shuffle": {"shuffle": True},
    "clip_value": {"clip_value": 0.01},
    "learning_rate_schedule": {"learning_rate_schedule": "linear"},
    "clip_schedule": {"clip_schedule": "linear"},
    "max_kl": {"max_kl": 1e-6},
    "num_epochs": {"num_epochs": 2},
    "num_minibatches": {"num_minibatches": 3},
    "entropy_coef": {"entropy_coef": 0.1},
    "entropy_coef_schedule": {"entropy_coef": 0.1, "entropy_coef_schedule": "cosine"},
    "value_coef": {"value_coef": 0.1},
    "value_epochs": {"value_epochs": 1},
    "clip": {"clip": 0.01},
    "gamma": {"gamma": 0.5},
    "gae_lambda": {"gae_lambda": 0.5},
    "adam_eps": {"adam_eps": 1e-2},
    "max_grad_norm": {"max_grad_norm": 0.01},
}


def updated(**changes):
    algorithm, state, rollout = setup(**({"num_minibatches": 2, "adam_eps": 1e-3} | changes))
    return flat(algorithm.update(state, rollout, jax.random.key(0), progress=0.5)[0].params)


@pytest.fixture(scope="module")
def plain_update():
    with jax.enable_x64(True):
        return updated()


@pytest.mark.parametrize("name", CHANGES)
def test_every_switch_changes_the_update(name, plain_update, x64):
    assert np.abs(updated(**CHANGES[name]) - plain_update).max() > 1e-8


def test_kinds_of_advantage_normalization_differ(x64):
    kinds = [updated(normalize_advantage=kind) for kind in ("minibatch", "batch")]
    assert np.abs(kinds[0] - kinds[1]).max() > 1e-8


def test_normalized_over_the_batch_is_mean_0_and_deviation_1(x64):
    _, state, rollout = setup()
    advantage = np.asarray(make_batch(state.params, rollout, normalize=True).advantage)
    assert advantage.mean() == pytest.approx(0, abs=1e-12)
    assert advantage.std() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("build", [ppo_clip, ppo_penalty])
def test_zero_advantage_leaves_the_policy_alone(build, x64):
    """A critic that expects nothing, and gets nothing; also through the normalization."""
    # Few steps: what rounding leaves of the KL's gradient, Adam lets grow from step to step.
    few = {"num_epochs": 1, "num_minibatches": 2}
    algorithm, state, rollout = setup(build, normalize_advantage="minibatch", **few)
    params = {"params": state.params["params"] | {"value": jnp.zeros(OBS)}}
    rollout = rollout._replace(reward=jnp.zeros_like(rollout.reward))
    new, _ = algorithm.update(state._replace(params=params), rollout, jax.random.key(0))
    np.testing.assert_allclose(flat(new.params), flat(params), atol=1e-9)


@pytest.mark.parametrize("build", [ppo_clip, ppo_penalty])
def test_zero_advantage_has_no_policy_gradient(build, x64):
    _, state, rollout = setup(build)
    config = PPOClipConfig() if build is ppo_clip else PPOPenaltyConfig()
    batch = make_batch(state.params, rollout)
    old, _ = Table().apply(state.params, batch.obs)
    batch = batch._replace(advantage=jnp.zeros_like(batch.advantage), distribution=old)
    loss = make_loss(Table(), config, beta=1.0)
    gradient = jax.grad(lambda p: loss(p, batch)[0])(state.params)["params"]
    np.testing.assert_allclose(gradient["logits"], 0, atol=1e-15)
    assert np.any(gradient["value"])


def test_nothing_but_the_parameters_has_a_gradient(x64):
    _, state, rollout = setup()
    config = PPOClipConfig(clip_value=0.1, normalize_advantage="none")
    batch = make_batch(state.params, rollout)
    constants = batch.log_prob, batch.value, batch.advantage, batch.target

    def loss(*constants):
        names = ("log_prob", "value", "advantage", "target")
        changed = batch._replace(**dict(zip(names, constants, strict=True)))
        return make_loss(Table(), config)(state.params, changed)[0]

    for gradient in jax.grad(loss, (0, 1, 2, 3))(*constants):
        assert not np.any(gradient)


# Stopping early.


def test_epochs_after_the_one_that_exceeds_target_kl_do_nothing(x64):
    """Stops after that epoch: its own step stays, as if there had been only so many epochs."""
    made = {n: setup(num_epochs=n)[0] for n in (1, 2, 6)}
    _, state, rollout = setup()
    key = jax.random.key(0)
    # The loss is evaluated before a step, so the kl of the first epoch is 0.
    second = made[2].update(state, rollout, key)[1]["kl"] * 2  # of epochs 1 and 2, the first is 0
    for target, epochs in ((float(second) * 0.9, 2), (1e-12, 2)):
        stopped = setup(num_epochs=6, max_kl=target)[0].update(state, rollout, key)[0]
        wanted = made[epochs].update(state, rollout, key)[0]
        np.testing.assert_array_equal(flat(stopped.params), flat(wanted.params))
        np.testing.assert_array_equal(flat(stopped.opt_state), flat(wanted.opt_state))
    never = setup(num_epochs=6, max_kl=1e6)[0].update(state, rollout, key)[0]
    wanted = made[6].update(state, rollout, key)[0]
    np.testing.assert_allclose(flat(never.params), flat(wanted.params), atol=1e-12)


def test_under_vmap_one_seed_stops_and_another_goes_on(x64):
    _, state, rollout = setup()

    def update(max_kl):
        config = PPOClipConfig(**PLAIN | {"num_epochs": 6, "max_kl": max_kl})
        algorithm = ppo_clip(config, SPACE, Table())
        return algorithm.update(state, rollout, jax.random.key(0))[0].params

    both = jax.vmap(update)(jnp.array([1e-12, 1e6]))
    for i, epochs in enumerate((2, 6)):
        algorithm = setup(num_epochs=epochs)[0]
        wanted = algorithm.update(state, rollout, jax.random.key(0))[0].params
        one = jax.tree.map(lambda x, i=i: x[i], both)
        np.testing.assert_allclose(flat(one), flat(wanted), atol=1e-12)


def test_info_of_a_stopped_update_is_the_mean_over_the_epochs_made(x64):
    algorithm, state, rollout = setup(num_epochs=6, max_kl=1e-12)
    info = algorithm.update(state, rollout, jax.random.key(0))[1]
    wanted = setup(num_epochs=2)[0].update(state, rollout, jax.random.key(0))[1]
    for name in wanted:
        np.testing.assert_allclose(info[name], wanted[name], atol=1e-12)


# The penalty coefficient.


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.0, 0.5),
        (0.03 / 1.5 * (1 - 1e-9), 0.5),
        (0.03 / 1.5 * (1 + 1e-9), 1.0),
        (0.03, 1.0),
        (0.03 * 1.5 * (1 - 1e-9), 1.0),
        (0.03 * 1.5 * (1 + 1e-9), 2.0),
        (10.0, 2.0),
    ],
)
def test_beta_rule(kl, factor, x64):
    assert float(adapt_beta(jnp.array(0.6), jnp.array(kl), 0.03)) == 0.6 * factor


@pytest.mark.parametrize("box", [False, True], ids=["categorical", "gaussian"])
def test_kl_after_is_exact_and_of_old_to_new(box, x64):
    algorithm, state, rollout = setup(ppo_penalty, box=box)
    new, info = algorithm.update(state, rollout, jax.random.key(0))
    network = Gaussian() if box else Table()
    old_pi, new_pi = (
        network.apply(p, rollout.obs.reshape(-1, OBS))[0] for p in (state.params, new.params)
    )

    def kl(p, q):
        if not box:
            p, q = (np.asarray(jax.nn.softmax(x.logits)) for x in (p, q))
            return (p * np.log(p / q)).sum(1).mean()
        s, z = np.exp(np.asarray(p.log_std)), np.exp(np.asarray(q.log_std))
        far = np.asarray(p.mean - q.mean)
        return (np.log(z / s) + (s**2 + far**2) / (2 * z**2) - 0.5).sum(1).mean()

    assert abs(kl(old_pi, new_pi) - kl(new_pi, old_pi)) > 1e-5
    assert info["kl_after"] == pytest.approx(kl(old_pi, new_pi), rel=1e-9)


@pytest.mark.parametrize(("target", "factor"), [(1e-9, 2.0), (1e9, 0.5)])
def test_update_adapts_beta_by_what_came_of_it(target, factor, x64):
    algorithm, state, rollout = setup(ppo_penalty, target_kl=target, initial_beta=0.3)
    new, info = algorithm.update(state, rollout, jax.random.key(0))
    assert float(new.beta) == float(info["beta"]) == 0.3 * factor
    assert float(state.beta) == 0.3


@pytest.mark.trains
def test_more_beta_means_less_kl(x64):
    kls = []
    for beta in (1e-3, 1.0, 1e3):
        algorithm, state, rollout = setup(ppo_penalty, initial_beta=beta, num_epochs=30)
        with jax.disable_jit(False):  # so many epochs are sooner compiled
            kls.append(
                float(jax.jit(algorithm.update)(state, rollout, jax.random.key(0))[1]["kl_after"])
            )
    assert kls[0] > kls[1] > kls[2]


# The reported numbers.


def test_approximate_kl_is_unbiased_and_never_negative(x64):
    """Against the exact KL of the old to the new policy, by summation over the actions."""
    rng = np.random.default_rng(0)
    old, new = (jax.nn.log_softmax(jnp.array(rng.normal(size=5))) for _ in range(2))
    estimate = approximate_kl(new, old)
    assert np.all(estimate >= 0)
    exact = jnp.sum(jnp.exp(old) * (old - new))
    assert float(jnp.sum(jnp.exp(old) * estimate)) == pytest.approx(float(exact), abs=1e-12)
    assert float(exact) > 0.1


def test_approximate_kl_keeps_small_numbers_in_float32():
    tiny = approximate_kl(jnp.float32(1e-3), jnp.float32(0.0))
    assert float(tiny) == pytest.approx(5.0017e-7, rel=1e-3)


def test_explained_variance(x64):
    target = jnp.array([1.0, 2.0, 4.0])
    one = explained_variance(target + 3, target)  # a constant error does not count
    assert float(one) == pytest.approx(1.0)
    assert float(explained_variance(jnp.ones(3), target)) == pytest.approx(0.0, abs=1e-12)
    assert float(explained_variance(-target, target)) == pytest.approx(-3.0)


def test_info_at_the_old_policy(x64):
    """One epoch on the full batch: ratio 1, no clipping, no KL."""
    algorithm, state, rollout = setup(num_epochs=1)
    info = algorithm.update(state, rollout, jax.random.key(0))[1]
    advantage, _, target = advantages(state.params, rollout, 0.99, 0.95)
    assert info["kl"] == pytest.approx(0, abs=1e-15)
    assert info["clip_fraction"] == 0
    assert info["policy_loss"] == pytest.approx(-advantage.mean(), abs=1e-12)
    assert info["value_loss"] == pytest.approx(0.5 * (advantage**2).mean(), abs=1e-12)
    wanted = 1 - advantage.var() / target.var()
    assert info["explained_variance"] == pytest.approx(wanted, abs=1e-12)


def test_beta_can_come_back_from_both_ends():
    low = high = jnp.float32(1.0)
    for _ in range(200):
        low = purerl.algorithms.ppo.adapt_beta(low, 0.0, 0.01)
        high = purerl.algorithms.ppo.adapt_beta(high, 1.0, 0.01)
    np.testing.assert_allclose([low, high], [1e-6, 1e6])
    assert purerl.algorithms.ppo.adapt_beta(low, 1.0, 0.01) > low
    assert purerl.algorithms.ppo.adapt_beta(high, 0.0, 0.01) < high


def test_minibatches_of_one_sample_are_refused_where_they_would_learn_nothing():
    config = purerl.PPOClipConfig(num_minibatches=8)
    algorithm = purerl.ppo_clip(config, purerl.Discrete(2))
    state = algorithm.init(jnp.zeros((2, 3)), jax.random.key(0))
    flags = jnp.zeros((4, 2), bool)
    zeros = jnp.zeros((4, 2))
    rollout = purerl.Rollout(
        obs=jnp.zeros((4, 2, 3)),
        action=jnp.zeros((4, 2), jnp.int32),
        log_prob=zeros,
        reward=zeros,
        terminated=flags,
        truncated=flags,
        next_obs=jnp.zeros((4, 2, 3)),
        episode_step=jnp.zeros((4, 2), jnp.int32),
    )
    with pytest.raises(ValueError, match="minibatches of one sample"):
        algorithm.update(state, rollout, jax.random.key(1))
