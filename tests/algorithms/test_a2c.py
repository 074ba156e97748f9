"""A2C against NumPy loops and gradients written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_policy_gradient import GAMMA, OBS, SPACE, Mdp, Table, random_rollout

import purerl
from purerl.algorithms.a2c import A2CConfig, a2c, make_loss
from purerl.pieces.advantages import on_policy_batch


@pytest.fixture(autouse=True)
def _loops_are_python_loops():
    """Quicker than compiling a loop for each configuration, where a network has few numbers."""
    with jax.disable_jit():
        yield


def by_hand(config, params, rollout):
    """Advantages and targets [T, N]: the definition, step by step."""
    table = np.asarray(params["params"]["value"])
    v, w = np.asarray(rollout.obs) @ table, np.asarray(rollout.next_obs) @ table
    r, term, trunc = (
        np.asarray(x) for x in (rollout.reward, rollout.terminated, rollout.truncated)
    )
    steps, envs = r.shape
    target = np.zeros((steps, envs))
    for n in range(envs):
        if config.n_step is None:
            following = 0.0
            for t in reversed(range(steps)):
                delta = r[t, n] + config.gamma * (not term[t, n]) * w[t, n] - v[t, n]
                ends = term[t, n] or trunc[t, n]
                following = delta + config.gamma * config.gae_lambda * (not ends) * following
                target[t, n] = following + v[t, n]
            continue
        for t in range(steps):
            total = 0.0
            for k in range(config.n_step):
                total += config.gamma**k * r[t + k, n]
                ends = term[t + k, n] or trunc[t + k, n] or t + k + 1 == steps
                if ends or k + 1 == config.n_step:
                    total += config.gamma ** (k + 1) * (not term[t + k, n]) * w[t + k, n]
                    break
            target[t, n] = total
    return target - v, target


def make_batch(config, params, rollout):
    discounts = config.gamma, config.gae_lambda
    return on_policy_batch(Table(), params, rollout, *discounts, n_step=config.n_step)


ESTIMATES = {
    "n_step_to_the_end": {},
    "gae": {"gae_lambda": 0.7},
    "one_step": {"n_step": 1},
    "three_steps": {"n_step": 3},
}


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_advantages_and_targets_by_hand(estimate, x64):
    config = A2CConfig(gamma=GAMMA, **ESTIMATES[estimate])
    params, rollout = Mdp().params(False), random_rollout()
    advantage, target = by_hand(config, params, rollout)
    batch = make_batch(config, params, rollout)
    np.testing.assert_allclose(batch.advantage, advantage.reshape(-1), atol=1e-12)
    np.testing.assert_allclose(batch.target, target.reshape(-1), atol=1e-12)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "sgd"])
def test_update_by_hand(optimizer, x64):
    """Softmax policy and a table of values: the gradient in closed form, then two steps."""
    config = A2CConfig(
        gamma=GAMMA,
        optimizer=optimizer,
        learning_rate=0.1,
        optimizer_eps=1e-3,
        rmsprop_decay=0.9,
        max_grad_norm=0.05,
        value_coef=0.3,
        entropy_coef=0.2,
        entropy_coef_schedule="linear",
        normalize_advantage=True,
    )
    algorithm = a2c(config, SPACE, Table())
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
    state = state._replace(params=Mdp().params(False))
    logits, value = (np.asarray(state.params["params"][k]) for k in ("logits", "value"))
    moments = {k: [np.zeros(x.shape)] * 2 for k, x in (("logits", logits), ("value", value))}
    learned = {"logits": logits, "value": value}
    for i, progress in enumerate((0.25, 0.5)):
        rollout = random_rollout(seed=i)
        state, info = algorithm.update(state, rollout, jax.random.key(0), progress=progress)

        advantage, target = (x.reshape(-1) for x in by_hand(config, {"params": learned}, rollout))
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        obs = np.asarray(rollout.obs).reshape(-1, OBS)
        action = np.asarray(rollout.action).reshape(-1)
        features = obs.reshape(len(obs), -1, logits.shape[0]).sum(1)
        z = features @ learned["logits"]
        policy = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        entropy = -(policy * np.log(policy)).sum(1)
        # d(-log pi)/dz = pi - onehot;  d(-H)/dz = pi (log pi + H)
        slope = (policy - np.eye(2)[action]) * advantage[:, None]
        slope += 0.2 * (1 - progress) * policy * (np.log(policy) + entropy[:, None])
        gradient = {
            "logits": features.T @ slope / len(obs),
            "value": 0.3 * obs.T @ (obs @ learned["value"] - target) / len(obs),
        }
        assert info["entropy"] == pytest.approx(entropy.mean(), abs=1e-12)
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        assert norm > 0.05
        rate = 0.1 * (1 - progress)
        for name, g in gradient.items():
            g = g * 0.05 / norm
            m, s = moments[name]
            if optimizer == "rmsprop":
                s = 0.9 * s + 0.1 * g**2
                step = g / (np.sqrt(s) + 1e-3)
            elif optimizer == "adam":
                m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
                step = m / (1 - 0.9 ** (i + 1))
                step = step / (np.sqrt(s / (1 - 0.999 ** (i + 1))) + 1e-3)
            else:
                step = g
            moments[name] = [m, s]
            learned[name] = learned[name] - rate * step
            np.testing.assert_allclose(state.params["params"][name], learned[name], atol=1e-10)


CHANGES = {
    "optimizer": {"optimizer": "sgd"},
    "learning_rate_schedule": {"learning_rate_schedule": "constant"},
    "max_grad_norm": {"max_grad_norm": None},
    "gamma": {"gamma": 0.5},
    "gae_lambda": {"gae_lambda": 0.5},
    "n_step": {"n_step": 2},
    "normalize_advantage": {"normalize_advantage": True},
    "value_coef": {"value_coef": 0.1},
    "entropy_coef": {"entropy_coef": 0.0},
    "entropy_coef_schedule": {"entropy_coef_schedule": "linear"},
    "optimizer_eps": {"optimizer_eps": 1e-2},
    "rmsprop_decay": {"rmsprop_decay": 0.5},
}


def updated(**changes):
    config = A2CConfig(**{"entropy_coef": 0.1} | changes)
    algorithm = a2c(config, SPACE, Table())
    state = algorithm.init(jnp.zeros((1, OBS)), jax.random.key(0))
    state = state._replace(params=Mdp().params(False))
    state, _ = algorithm.update(state, random_rollout(), jax.random.key(0), progress=0.5)
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])


@pytest.mark.parametrize("name", CHANGES)
def test_every_switch_changes_the_update(name, x64):
    assert np.abs(updated(**CHANGES[name]) - updated()).max() > 1e-8


def test_zero_advantage_leaves_the_policy_alone(x64):
    config = A2CConfig(entropy_coef=0.0)
    params = Mdp().params(False)
    batch = make_batch(config, params, random_rollout())
    batch = batch._replace(advantage=jnp.zeros_like(batch.advantage))
    gradient = jax.grad(lambda p: make_loss(Table(), config)(p, batch)[0])(params)["params"]
    assert not np.any(gradient["logits"])
    assert np.any(gradient["value"])


def test_nothing_but_the_parameters_has_a_gradient(x64):
    """The advantage and the target are constants: the critic's step is the semi-gradient."""
    config, params = A2CConfig(entropy_coef=0.1), Mdp().params(False)
    batch = make_batch(config, params, random_rollout())
    loss = lambda a, t: make_loss(Table(), config)(  # noqa: E731
        params, batch._replace(advantage=a, target=t)
    )[0]
    for gradient in jax.grad(loss, (0, 1))(batch.advantage, batch.target):
        assert not np.any(gradient)


def test_explained_variance_is_of_the_values_before_the_update(x64):
    config, rollout, params = A2CConfig(gamma=GAMMA), random_rollout(), Mdp().params(False)
    algorithm = a2c(config, SPACE, Table())
    state = algorithm.init(rollout.obs[0], jax.random.key(0))._replace(params=params)
    _, info = algorithm.update(state, rollout, jax.random.key(0))
    advantage, target = by_hand(config, params, rollout)
    wanted = 1 - advantage.var() / target.var()
    assert info["explained_variance"] == pytest.approx(wanted, abs=1e-12)


def test_network_config_is_used():
    config = A2CConfig(network=purerl.NetworkConfig(hidden_sizes=(5,), shared=True))
    state = a2c(config, SPACE).init(jnp.zeros((1, OBS)), jax.random.key(0))
    assert state.params["params"]["torso"]["MLP_0"]["Dense_0"]["kernel"].shape == (OBS, 5)


@pytest.mark.parametrize("gae_lambda", [0.95, 0.0])
def test_n_step_and_gae_lambda_exclude_each_other(gae_lambda):
    """Returns of n rewards have no lambda; it was ignored without a word."""
    with pytest.raises(ValueError, match=r"n_step=5 replaces GAE.*set gae_lambda=1.0"):
        A2CConfig(n_step=5, gae_lambda=gae_lambda)
    with pytest.raises(ValueError, match="n_step=5 replaces GAE"):
        jax.eval_shape(lambda x: A2CConfig(n_step=5, gae_lambda=x).gae_lambda, 0.5)
    assert A2CConfig(n_step=5, gae_lambda=np.float32(1.0)).n_step == 5


def test_rmsprop_that_never_forgets_is_refused():
    """With a decay of 1 the mean square stays 0: the norm of the first update was 574."""
    with pytest.raises(ValueError, match=r"A2CConfig: rmsprop_decay=1.0 .*\[0, 1\)"):
        A2CConfig(rmsprop_decay=1.0)


@pytest.mark.parametrize("n_step", [None, 2])
def test_numpy_rollouts_give_the_same_samples(n_step):
    params, rollout = jax.tree.map(np.float32, Mdp().params(False)), random_rollout()
    config = A2CConfig(n_step=n_step)
    plain = jax.tree.map(
        lambda x: np.asarray(x, np.float64 if x.dtype.kind == "f" else None), rollout
    )
    for one, other in zip(
        jax.tree.leaves(make_batch(config, params, rollout)),
        jax.tree.leaves(make_batch(config, params, plain)),
        strict=True,
    ):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6)
