"""The six estimators against the exact gradient, by enumeration of every trajectory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

import purerl
from purerl.algorithms.policy_gradient import (
    PolicyGradientConfig,
    estimate,
    expected_q,
    first_episode,
    make_batch,
    make_loss,
    policy_gradient,
)
from purerl.pieces import rollout as rollouts
from purerl.policies.distributions import Categorical
from purerl.records import Discrete, Rollout

STATES, ACTIONS, HORIZON, GAMMA = 3, 2, 3, 0.7
SPACE = Discrete(ACTIONS)
OBS = STATES * (HORIZON + 1)  # one-hot of (time, state); the last time is after the end

VARIANTS = {
    "total_return": {"estimator": "total_return"},
    "return_to_go": {"estimator": "return_to_go"},
    "baseline": {"estimator": "baseline"},
    "q_critic": {"estimator": "q_critic"},
    "gae_0.5": {"estimator": "advantage", "gae_lambda": 0.5},
    "gae_1": {"estimator": "advantage", "gae_lambda": 1.0},
    "q_minus_v": {"estimator": "advantage", "advantage": "q_minus_v"},
    "td_error": {"estimator": "td_error"},
}
EXACT = {"gamma": GAMMA, "normalize_weight": False, "value_coef": 0.0}


class Table(nn.Module):
    """One logit a state and action, one value (or Q) a time and state."""

    q: bool = False

    @nn.compact
    def __call__(self, obs, action=None):
        logits = self.param("logits", nn.initializers.zeros, (STATES, ACTIONS))
        shape = (OBS, ACTIONS) if self.q else (OBS,)
        value = obs @ self.param("value", nn.initializers.zeros, shape)
        if self.q and action is not None:
            value = jnp.take_along_axis(value, action[:, None], axis=1)[:, 0]
        return Categorical(obs.reshape(-1, HORIZON + 1, STATES).sum(1) @ logits), value


class Mdp:
    """Random transitions, rewards and chances that a step ends the episode."""

    def __init__(self, seed=0, ends=True):
        rng = np.random.default_rng(seed)
        self.start = rng.dirichlet(np.ones(STATES))
        # To one of the states, or to the same state with the episode ended.
        self.move = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
        self.end = rng.uniform(0.1, 0.5, (STATES, ACTIONS)) * ends
        self.reward = rng.normal(size=(STATES, ACTIONS)) + 1
        self.logits = jnp.array(rng.normal(size=(STATES, ACTIONS)))

    def values(self, logits):
        """V [H + 1, S] and Q [H + 1, S, A] by dynamic programming; nothing follows time H."""
        policy, v, q = jax.nn.softmax(logits), [jnp.zeros(STATES)], [jnp.zeros((STATES, ACTIONS))]
        for _ in range(HORIZON):
            q.insert(0, self.reward + GAMMA * (1 - self.end) * (self.move @ v[0]))
            v.insert(0, jnp.sum(policy * q[0], axis=1))
        return jnp.stack(v), jnp.stack(q)

    def objective(self, logits):
        return self.start @ self.values(logits)[0][0]

    def params(self, q):
        v, action_value = self.values(self.logits)
        value = action_value.reshape(OBS, ACTIONS) if q else v.reshape(OBS)
        return {"params": {"logits": self.logits, "value": value}}

    def trajectories(self):
        """Every course of the first H steps: a Rollout [H, M] and its probabilities [M].

        A course that ends before H goes on with a new episode, as an environment that resets
        itself does.
        """
        policy = np.asarray(jax.nn.softmax(self.logits))
        # (probability, state, step of the episode, columns so far)
        courses = [(p, s, 0, []) for s, p in enumerate(self.start)]
        for _ in range(HORIZON):
            grown = []
            for p, s, t, rows in courses:
                for a in range(ACTIONS):
                    for n in range(STATES):
                        pa = p * policy[s, a] * self.move[s, a, n]
                        last = t + 1 == HORIZON
                        row = (t, s, a, self.reward[s, a], False, False, t + 1, n)
                        alive = (*row[:5], last, *row[6:])
                        follow = (0, 0) if last else (n, t + 1)
                        grown.append((pa * (1 - self.end[s, a]), *follow, [*rows, alive]))
                        if self.end[s, a]:
                            dead = (*row[:4], True, *row[5:])
                            grown.append((pa * self.end[s, a], 0, 0, [*rows, dead]))
            courses = grown
        weight = np.array([c[0] for c in courses])
        t, s, a, r, term, trunc, t1, n = (
            np.array([[row[k] for row in c[3]] for c in courses]).T for k in range(8)
        )
        place = np.eye(OBS)
        log_prob = np.log(policy)[s, a]
        rollout = Rollout(
            place[t * STATES + s], a, log_prob, r, term, trunc, place[t1 * STATES + n], t
        )
        return jax.tree.map(jnp.asarray, rollout), jnp.array(weight)


def expected_gradient(mdp, config):
    """The expectation of the loss's negative gradient, a sum over an episode's steps."""
    q = config.critic == "q"
    network, params = Table(q), mdp.params(q)
    rollout, weight = mdp.trajectories()
    batch = make_batch(network, config, params, rollout, jax.random.key(0))
    # The mean over samples becomes the expectation over courses, of each one's first episode.
    first = first_episode(rollout.terminated | rollout.truncated)
    chance = jnp.broadcast_to(weight, first.shape) * weight.size
    scale = 1 if config.critic == "none" else HORIZON * first
    batch = batch._replace(share=batch.share * (chance * scale).reshape(-1))
    loss = make_loss(network, config)
    return -jax.grad(lambda p: loss(p, batch)[0])(params)["params"]["logits"]


@pytest.mark.parametrize("ends", [True, False], ids=["episodes_of_any_length", "fixed_length"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_expected_gradient_is_the_gradient_of_the_objective(variant, ends, x64):
    mdp = Mdp(ends=ends)
    config = PolicyGradientConfig(**EXACT, discount_states=True, **VARIANTS[variant])
    exact = jax.grad(mdp.objective)(mdp.logits)
    assert jnp.linalg.norm(exact) > 0.1
    np.testing.assert_allclose(expected_gradient(mdp, config), exact, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_gamma_to_the_t_it_is_another_vector(variant, x64):
    mdp = Mdp()
    config = PolicyGradientConfig(**EXACT, discount_states=False, **VARIANTS[variant])
    exact = jax.grad(mdp.objective)(mdp.logits)
    difference = jnp.linalg.norm(expected_gradient(mdp, config) - exact) / jnp.linalg.norm(exact)
    if variant == "total_return":  # its discount counts from the episode's start
        assert difference < 1e-12
    else:
        assert difference > 0.05


@pytest.mark.parametrize("variant", ["baseline", "gae_0.5", "gae_1"])
def test_any_baseline_keeps_the_expectation_where_no_value_bootstraps(variant, x64):
    """A wrong V is a baseline with lambda = 1, but biases what it bootstraps with lambda < 1."""
    mdp = Mdp()
    wrong = 5 * np.random.default_rng(1).normal(size=(HORIZON + 1, STATES))
    wrong[-1] = 0  # what follows the time limit is worth nothing in this objective
    right = mdp.values

    class Wrong(Mdp):
        def values(self, logits):
            return jnp.array(wrong), right(logits)[1]

    config = PolicyGradientConfig(**EXACT, discount_states=True, **VARIANTS[variant])
    exact = jax.grad(mdp.objective)(mdp.logits)
    difference = jnp.linalg.norm(expected_gradient(Wrong(), config) - exact)
    if variant == "gae_0.5":
        assert difference > 0.01
    else:
        assert difference < 1e-12


def test_true_critics_are_the_fixed_points_of_their_targets(x64):
    """The expectation of the targets given (t, s[, a]) is V, or Q."""
    mdp = Mdp()
    rollout, weight = mdp.trajectories()
    v, q = mdp.values(mdp.logits)
    at = rollout.obs.reshape(-1, OBS)
    chance = jnp.tile(weight, HORIZON)
    for variant in ("baseline", "gae_0.5", "td_error", "q_critic", "q_minus_v"):
        config = PolicyGradientConfig(**EXACT, **VARIANTS[variant])
        is_q = config.critic == "q"
        target = estimate(Table(is_q), config, mdp.params(is_q), rollout, jax.random.key(0))[
            1
        ].reshape(-1)
        if is_q:
            hot = jax.nn.one_hot(rollout.action.reshape(-1), ACTIONS)
            at_action = at[:, :, None] * hot[:, None]
            mean = jnp.einsum("b,b,bsa->sa", chance, target, at_action)
            total, wanted = jnp.einsum("b,bsa->sa", chance, at_action), q.reshape(OBS, ACTIONS)
        else:
            mean, total, wanted = (chance * target) @ at, chance @ at, v.reshape(OBS)
        seen = np.asarray(total) > 0
        np.testing.assert_allclose((mean / total)[seen], wanted[seen], atol=1e-12)


class MdpEnv(probe_envs._Probe):
    """The same chain as a gymnax environment."""

    def __init__(self, mdp):
        self.mdp = mdp

    def observation_space(self, params):
        return probe_envs.spaces.Box(0, 1, (OBS,))

    def see(self, state):
        return jax.nn.one_hot(state.time * STATES + state.place, OBS, dtype=jnp.result_type(float))

    def reset_env(self, key, params):
        place = jax.random.choice(key, STATES, p=jnp.array(self.mdp.start)).astype(jnp.int32)
        state = probe_envs.State(time=jnp.int32(0), place=place, ended=jnp.array(False))
        return self.see(state), state

    def step_env(self, key, state, action, params):
        move_key, end_key = jax.random.split(key)
        here = state.place, action
        place = jax.random.choice(move_key, STATES, p=jnp.array(self.mdp.move)[here])
        state = state.replace(time=state.time + 1, place=place.astype(jnp.int32))
        end = jax.random.uniform(end_key) < jnp.array(self.mdp.end)[here]
        return self.see(state), state, jnp.array(self.mdp.reward)[here], end, {}


def test_sampled_episodes_give_the_same_gradient(x64):
    """Through the environment and unroll: 64000 episodes, within 4 standard errors of the mean."""
    mdp = Mdp()
    env = purerl.make_env(MdpEnv(mdp), max_steps_in_episode=HORIZON)
    config = PolicyGradientConfig(**EXACT, discount_states=True, estimator="return_to_go")
    blocks = 64
    params = mdp.params(False)

    @jax.jit
    def gradients(key):
        def act(obs, key):
            distribution, _ = Table().apply(params, obs)
            action = distribution.sample(key)
            return action, {"log_prob": distribution.log_prob(action)}

        def gradient(key):
            reset_key, key = jax.random.split(key)
            actors = rollouts.reset(env, 1000, reset_key)
            _, rollout, _ = rollouts.unroll(act, env, actors, key, HORIZON)
            batch = make_batch(Table(), config, params, rollout, key)
            return jax.grad(lambda p: make_loss(Table(), config)(p, batch)[0])(params)

        return jax.lax.map(gradient, jax.random.split(key, blocks))["params"]["logits"]

    sampled = -np.asarray(gradients(jax.random.key(0)))
    exact = jax.grad(mdp.objective)(mdp.logits)
    error = sampled.std(axis=0, ddof=1) / blocks**0.5
    assert error.max() < 0.03 * np.abs(exact).max()
    assert np.all(np.abs(sampled.mean(axis=0) - exact) < 4 * error)


def random_rollout(seed=0, steps=6, envs=4):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.array(rng.normal(size=(steps, envs, *shape)))  # noqa: E731
    done = rng.uniform(size=(2, steps, envs)) < 0.25
    return Rollout(
        obs=draw(OBS),
        action=jnp.array(rng.integers(ACTIONS, size=(steps, envs))),
        log_prob=draw(),
        reward=draw(),
        terminated=jnp.array(done[0]),
        truncated=jnp.array(done[1]),
        next_obs=draw(OBS),
        episode_step=jnp.array(rng.integers(9, size=(steps, envs))),
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_update_is_one_step_down_the_loss(variant, x64):
    config = PolicyGradientConfig(
        optimizer="sgd", learning_rate=0.1, entropy_coef=0.3, learning_rate_schedule="linear",
        **VARIANTS[variant],
    )  # fmt: skip
    mdp, rollout, key = Mdp(), random_rollout(), jax.random.key(1)
    q = config.critic == "q"
    params = mdp.params(q)
    algorithm = policy_gradient(config, SPACE, Table(q))
    state = algorithm.init(rollout.obs[0], key)._replace(params=params)
    new, info = algorithm.update(state, rollout, key, progress=0.25)
    batch = make_batch(Table(q), config, params, rollout, key)
    gradient = jax.grad(lambda p: make_loss(Table(q), config, progress=0.25)(p, batch)[0])(params)
    for name in ("logits", "value"):
        step = new.params["params"][name] - params["params"][name]
        np.testing.assert_allclose(step, -0.075 * gradient["params"][name], atol=1e-14)
    assert info["finite"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_and_targets_by_hand(variant, x64):
    """NumPy loops over each environment's steps."""
    config = PolicyGradientConfig(**(EXACT | VARIANTS[variant]))
    mdp, rollout = Mdp(), random_rollout()
    q = config.critic == "q"
    params = mdp.params(q)
    weight, target = estimate(Table(q), config, params, rollout, jax.random.key(0))
    value = np.asarray(params["params"]["value"])
    v, w = np.asarray(rollout.obs) @ value, np.asarray(rollout.next_obs) @ value
    steps, envs = rollout.reward.shape
    lam = {"baseline": 1.0, "td_error": 0.0}.get(config.estimator, config.gae_lambda)
    if q:
        policy = lambda obs: np.asarray(  # noqa: E731
            jax.nn.softmax(Table(True).apply(params, obs.reshape(-1, OBS))[0].logits)
        ).reshape(steps, envs, ACTIONS)
        expected_now = (policy(rollout.obs) * v).sum(-1)
        expected_then = (policy(rollout.next_obs) * w).sum(-1)
    for n in range(envs):
        following, start, total = 0.0, 0, {}
        for t in reversed(range(steps)):
            r, a = float(rollout.reward[t, n]), int(rollout.action[t, n])
            term, trunc = bool(rollout.terminated[t, n]), bool(rollout.truncated[t, n])
            if config.critic == "none":
                following = r + (0.0 if term or trunc else GAMMA * following)
                total[t] = following
                if config.estimator == "return_to_go":
                    assert weight[t, n] == pytest.approx(following, abs=1e-12)
            elif q:
                wanted = r + GAMMA * (0.0 if term else expected_then[t, n])
                assert target[t, n] == pytest.approx(wanted, abs=1e-12)
                own = v[t, n, a] - (expected_now[t, n] if variant == "q_minus_v" else 0.0)
                assert weight[t, n] == pytest.approx(own, abs=1e-12)
            else:
                delta = r + GAMMA * (0.0 if term else w[t, n]) - v[t, n]
                following = delta + (0.0 if term or trunc else GAMMA * lam * following)
                assert weight[t, n] == pytest.approx(following, abs=1e-12)
                assert target[t, n] == pytest.approx(following + v[t, n], abs=1e-12)
        if config.estimator == "total_return":
            for t in range(steps):
                if t and (rollout.terminated | rollout.truncated)[t - 1, n]:
                    start = t
                assert weight[t, n] == pytest.approx(total[start], abs=1e-12)


def test_only_the_first_episode_counts_without_a_critic(x64):
    """What follows it may be anything."""
    config = PolicyGradientConfig(estimator="return_to_go")
    rollout, params = random_rollout(), Mdp().params(False)
    later = ~first_episode(rollout.terminated | rollout.truncated)
    assert later.any()
    changed = rollout._replace(
        reward=jnp.where(later, 100.0, rollout.reward),
        action=jnp.where(later, 1 - rollout.action, rollout.action),
    )

    def gradient(rollout):
        batch = make_batch(Table(), config, params, rollout, jax.random.key(0))
        return jax.grad(lambda p: make_loss(Table(), config)(p, batch)[0])(params)

    one, other = gradient(rollout), gradient(changed)
    np.testing.assert_array_equal(one["params"]["logits"], other["params"]["logits"])


def test_first_episode_ends_with_the_step_that_ends_it():
    done = jnp.array([[0, 1], [1, 0], [0, 1], [0, 0]], bool)
    wanted = [[True, True], [True, False], [False, False], [False, False]]
    assert first_episode(done).tolist() == wanted


@pytest.mark.parametrize("variant", VARIANTS)
def test_normalized_weights_have_mean_0_and_deviation_1(variant, x64):
    config = PolicyGradientConfig(gamma=GAMMA, **VARIANTS[variant])
    q = config.critic == "q"
    rollout, params = random_rollout(), Mdp().params(q)
    batch = make_batch(Table(q), config, params, rollout, jax.random.key(0))
    used = np.asarray(batch.weight)[np.asarray(batch.share) > 0]
    assert used.mean() == pytest.approx(0, abs=1e-12)
    assert used.std() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("variant", ["baseline", "td_error", "q_critic", "q_minus_v"])
def test_a_terminal_observation_may_be_anything(variant, x64):
    """NaN in it, times a mask of 0, was NaN in the target."""
    config = PolicyGradientConfig(**EXACT, **VARIANTS[variant])
    q = config.critic == "q"
    params, rollout = Mdp().params(q), random_rollout()
    last = rollout.terminated[..., None]

    def of(value):
        changed = rollout._replace(next_obs=jnp.where(last, value, rollout.next_obs))
        return estimate(Table(q), config, params, changed, jax.random.key(0))

    for nan, zero in zip(of(jnp.nan), of(0.0), strict=True):
        np.testing.assert_array_equal(nan, zero)


@pytest.mark.parametrize("estimator", ["total_return", "return_to_go"])
def test_equal_returns_have_weight_0(estimator):
    """CartPole solved: their mean in float32 is off by what was then divided by (-0.99995)."""
    one, no = jnp.ones((500, 8)), jnp.zeros((500, 8), bool)
    reward = one if estimator == "total_return" else one.at[:-1].set(0)
    end = no.at[-1].set(True)
    rollout = Rollout(one[..., None], no, one, reward, end, no, one[..., None], no.astype(int))
    config = PolicyGradientConfig(estimator=estimator, gamma=1.0)
    batch = make_batch(None, config, None, rollout, jax.random.key(0))
    np.testing.assert_array_equal(batch.weight, 0)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_second_episode_without_a_critic_may_be_nan(normalize):
    rollout = random_rollout()
    later = ~first_episode(rollout.terminated | rollout.truncated)
    rollout = rollout._replace(reward=jnp.where(later, jnp.nan, rollout.reward))
    config = PolicyGradientConfig(estimator="return_to_go", normalize_weight=normalize)
    batch = make_batch(None, config, None, rollout, jax.random.key(0))
    assert np.isfinite(batch.weight).all()


def test_a_kind_of_advantage_belongs_to_the_estimator_advantage():
    with pytest.raises(ValueError, match="'q_minus_v' does nothing with estimator='baseline'"):
        PolicyGradientConfig(advantage="q_minus_v")


def test_nothing_but_the_parameters_has_a_gradient(x64):
    config = PolicyGradientConfig(**EXACT | {"value_coef": 0.5})
    params, rollout = Mdp().params(False), random_rollout()
    batch = make_batch(Table(), config, params, rollout, jax.random.key(0))
    loss = lambda w, t: make_loss(Table(), config)(  # noqa: E731
        params, batch._replace(weight=w, target=t)
    )[0]
    for gradient in jax.grad(loss, (0, 1))(batch.weight, batch.target):
        assert not np.any(gradient)


def test_expected_q_of_a_gaussian_is_the_mean_over_samples(x64, key):
    """Q = sum of the actions, the mean of the policy 0.3: within 4 standard errors."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, obs, action=None):
            mean = jnp.full((obs.shape[0], 2), 0.3)
            q = jnp.zeros(obs.shape[0]) if action is None else jnp.sum(action, axis=1)
            return purerl.DiagGaussian(mean, jnp.zeros_like(mean)), q

    q = expected_q(Linear(), {}, jnp.zeros((4, 1)), key, 10_000)
    np.testing.assert_allclose(q, 0.6, atol=4 * (2 / 10_000) ** 0.5)
    assert len(np.unique(q)) == 4  # each observation has samples of its own


# The identities behind it, on the discounted chain without a horizon (reference C).


class Chain:
    """J = rho (1 - gamma P_pi)^-1 r_pi, and what follows from it."""

    def __init__(self, mdp):
        self.mdp, self.eye = mdp, jnp.eye(STATES)

    def value(self, logits):
        policy = jax.nn.softmax(logits)
        p = jnp.einsum("sa,san->sn", policy, self.mdp.move)
        return jnp.linalg.solve(self.eye - GAMMA * p, jnp.sum(policy * self.mdp.reward, axis=1))

    def q(self, logits):
        return self.mdp.reward + GAMMA * self.mdp.move @ self.value(logits)

    def objective(self, logits):
        return self.mdp.start @ self.value(logits)

    def visits(self, logits):
        p = jnp.einsum("sa,san->sn", jax.nn.softmax(logits), self.mdp.move)
        return jnp.linalg.solve((self.eye - GAMMA * p).T, jnp.array(self.mdp.start))


def test_policy_gradient_theorem(x64):
    mdp = Mdp(ends=False)
    chain, logits = Chain(mdp), mdp.logits
    visits, q = chain.visits(logits), chain.q(logits)
    theorem = jax.grad(lambda x: jnp.sum(visits[:, None] * q * jax.nn.softmax(x)))(logits)
    np.testing.assert_allclose(theorem, jax.grad(chain.objective)(logits), atol=1e-12)
    advantage = q - chain.value(logits)[:, None]
    baseline = jax.grad(lambda x: jnp.sum(visits[:, None] * advantage * jax.nn.softmax(x)))(logits)
    np.testing.assert_allclose(baseline, theorem, atol=1e-12)


def test_performance_difference_lemma(x64):
    """J(new) - J(old) = sum of the new policy's discounted visits times the old advantages."""
    mdp = Mdp(ends=False)
    chain, old = Chain(mdp), mdp.logits
    new = old + jnp.array(np.random.default_rng(3).normal(size=old.shape))
    advantage = chain.q(old) - chain.value(old)[:, None]
    lemma = jnp.sum(chain.visits(new)[:, None] * jax.nn.softmax(new) * advantage)
    difference = chain.objective(new) - chain.objective(old)
    assert abs(difference) > 1e-2
    np.testing.assert_allclose(lemma, difference, atol=1e-12)
