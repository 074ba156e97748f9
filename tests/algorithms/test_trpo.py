"""TRPO against a whole update of sb3-contrib, closed forms, and the known ways to get it wrong."""

import functools
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import purerl
from purerl import Box, Discrete, NetworkConfig, OnPolicyBatch, Rollout
from purerl.algorithms.trpo import make_policy_step, trust_region_step
from purerl.pieces.advantages import on_policy_batch, standardize
from purerl.pieces.gradient import fit, make_optimizer
from purerl.pieces.losses import make_critic_loss, surrogate_loss

DATA = pathlib.Path(__file__).parents[1] / "data" / "sb3_trpo.npz"
CASES = ("categorical", "gaussian", "shrinking", "refused")
EACH_CASE = pytest.mark.parametrize("case", CASES)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def same_bits(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


class Oracle:
    """One case of ``data/sb3_trpo.npz``; see the script beside it."""

    def __init__(self, case):
        with np.load(DATA) as data:
            self.data = {
                k.removeprefix(f"{case}/"): v for k, v in data.items() if k.startswith(f"{case}/")
            }
        space = Discrete(3) if case == "categorical" else Box((2,))
        self.network = purerl.ActorCritic(space, NetworkConfig(hidden_sizes=(8, 8)))
        self.params = self.tree("params")
        # The scaling with N is checked where it is applied.
        advantage = standardize(jnp.asarray(self["advantage"]))
        self.batch = OnPolicyBatch(
            *(jnp.asarray(self[name]) for name in ("obs", "action", "log_prob")),
            value=None,
            advantage=advantage,
            target=jnp.asarray(self["target"]),
        )

    def __getitem__(self, name):
        return self.data[name]

    def tree(self, name):
        """Parameters; those that the case does not name (the critic's) are zeros."""
        start = f"{name}/"
        named = {k.removeprefix(start): v for k, v in self.data.items() if k.startswith(start)}
        if name != "params":
            every = {k.removeprefix("params/") for k in self.data if k.startswith("params/")}
            named |= {k: np.zeros_like(self[f"params/{k}"]) for k in every - set(named)}
        named = {k: jnp.asarray(v) for k, v in named.items()}
        return {"params": flax.traverse_util.unflatten_dict(named, sep="/")}

    def config(self, kind=purerl.TRPOConfig, **changes):
        options = {
            "max_kl": float(self["target_kl"]),
            "damping": float(self["damping"]),
            "cg_iterations": int(self["cg_iterations"]),
            "cg_tolerance": 0.0,
        }
        if kind is purerl.TRPOConfig:
            options["backtrack_factor"] = float(self["backtrack_factor"])
            options["backtrack_steps"] = int(self["backtrack_steps"])
        return kind(**(options | changes))

    def policy(self, params, obs):
        return self.network.apply(params, obs)[0]

    def kl(self, new):
        """KL(old || new) by hand, in NumPy."""
        old, new = (self.policy(p, self.batch.obs) for p in (self.params, new))
        if isinstance(old, purerl.Categorical):
            p, q = (np.asarray(jax.nn.softmax(d.logits)) for d in (old, new))
            return (p * np.log(p / q)).sum(1).mean()
        s, z = np.exp(np.asarray(old.log_std)), np.exp(np.asarray(new.log_std))
        far = np.asarray(old.mean - new.mean)
        return (np.log(z / s) + (s**2 + far**2) / (2 * z**2) - 0.5).sum(1).mean()


@functools.cache
def compiled(kind, discrete, **static):
    """A policy step as a function of the numbers, so that few programs do for all tests."""
    space = Discrete(3) if discrete else Box((2,))
    network = purerl.ActorCritic(space, NetworkConfig(hidden_sizes=(8, 8)))

    @jax.jit
    def run(params, batch, numbers):
        return make_policy_step(network, kind(**static, **numbers))(params, batch)

    return run


def step(oracle, kind=purerl.TRPOConfig, batch=None, **changes):
    """The case's policy step: parameters and info."""
    config = oracle.config(kind, **changes)
    names = {"max_kl", "damping", "cg_tolerance", "backtrack_factor"}
    numbers = {name: getattr(config, name) for name in names if hasattr(config, name)}
    names = {"cg_iterations", "backtrack_steps", "fisher_fraction"}
    static = {name: getattr(config, name) for name in names if hasattr(config, name)}
    run = compiled(kind, oracle["action"].ndim == 1, **static)
    return run(oracle.params, oracle.batch if batch is None else batch, numbers)


# One update of sb3-contrib, number by number.


@EACH_CASE
def test_fisher_vector_product_of_sb3(case, x64):
    oracle = Oracle(case)
    v = oracle.tree("vector")
    product = purerl.fisher_vector_product(oracle.policy, oracle.params, oracle.batch.obs)(v)
    got = flat(product) + float(oracle["damping"]) * flat(v)
    np.testing.assert_allclose(got, flat(oracle.tree("fisher_vector")), rtol=1e-10, atol=1e-14)


@EACH_CASE
def test_gradient_and_direction_of_sb3(case, x64):
    oracle = Oracle(case)
    np.testing.assert_allclose(oracle.batch.advantage, oracle["normalized_advantage"], rtol=1e-12)

    def surrogate(params):
        log_prob = oracle.policy(params, oracle.batch.obs).log_prob(oracle.batch.action)
        return -surrogate_loss(log_prob, oracle.batch.log_prob, oracle.batch.advantage).mean()

    value, gradient = jax.value_and_grad(surrogate)(oracle.params)
    np.testing.assert_allclose(value, oracle["surrogate"], atol=1e-15)
    np.testing.assert_allclose(flat(gradient), flat(oracle.tree("gradient")), atol=1e-14)
    result = purerl.conjugate_gradient(
        purerl.fisher_vector_product(oracle.policy, oracle.params, oracle.batch.obs),
        gradient,
        damping=float(oracle["damping"]),
        tolerance=0.0,
        max_iterations=int(oracle["cg_iterations"]),
    )
    np.testing.assert_allclose(flat(result.x), flat(oracle.tree("direction")), rtol=1e-8, atol=1e-9)
    product = jax.tree.map(jnp.subtract, gradient, result.residual)
    step, _ = trust_region_step(result.x, product, float(oracle["target_kl"]))
    wanted = float(oracle["step_size"]) * flat(oracle.tree("direction"))
    np.testing.assert_allclose(flat(step), wanted, rtol=1e-8, atol=1e-9)


@EACH_CASE
def test_policy_step_of_sb3(case, x64):
    oracle = Oracle(case)
    params, info = step(oracle)
    wanted = oracle.tree("new_params")["params"]
    for part in ("actor", "policy_head"):
        np.testing.assert_allclose(
            flat(params["params"][part]), flat(wanted[part]), rtol=1e-6, atol=1e-10
        )
    assert bool(info["accepted"]) == bool(oracle["accepted"])
    assert info["cg_iterations"] == oracle["cg_iterations_done"]
    np.testing.assert_allclose(info["step_fraction"], oracle["step_fraction"], rtol=1e-12)
    np.testing.assert_allclose(info["kl"], oracle["kl"], rtol=1e-8)
    norm = np.linalg.norm(flat(oracle.tree("gradient")))
    np.testing.assert_allclose(info["cg_residual"] * norm, oracle["cg_residual"], rtol=1e-3)
    improvement = float(oracle["new_surrogate"] - oracle["surrogate"])
    np.testing.assert_allclose(info["improvement"], improvement, rtol=1e-8, atol=1e-15)


@EACH_CASE
def test_whole_update_of_sb3(case, x64):
    """The policy's step, then the critic's fit, as ``update`` has them; every parameter.

    The critic's loss there has no 1/2: twice the gradient, which Adam does not notice but for its
    epsilon. The fit leaves the policy alone, bit for bit.
    """
    oracle = Oracle(case)
    stepped, _ = step(oracle)
    optimizer = make_optimizer("adam", eps=float(oracle["adam_eps"]) / 2)
    params, _, info = jax.jit(
        lambda params, batch: fit(
            make_critic_loss(oracle.network),
            params,
            optimizer.init(params),
            batch,
            jax.random.key(0),
            optimizer=optimizer,
            learning_rate=float(oracle["critic_learning_rate"]),
            num_epochs=int(oracle["critic_epochs"]),
            num_minibatches=1,
        )
    )(stepped, oracle.batch)
    wanted = oracle.tree("new_params")["params"]
    for part in ("critic", "value_head"):
        np.testing.assert_allclose(flat(params["params"][part]), flat(wanted[part]), rtol=1e-10)
    np.testing.assert_allclose(2 * info["value_loss"], oracle["value_loss"], rtol=1e-10)
    for part in ("actor", "policy_head"):
        assert same_bits(params["params"][part], stepped["params"][part])
    np.testing.assert_allclose(flat(params["params"]), flat(wanted), rtol=1e-6, atol=1e-10)


@EACH_CASE
def test_policy_step_of_sb3_in_float32(case):
    oracle = Oracle(case)
    params, info = step(oracle)
    wanted = oracle.tree("new_params")["params"]["actor"]
    np.testing.assert_allclose(flat(params["params"]["actor"]), flat(wanted), rtol=2e-3, atol=2e-3)
    assert bool(info["accepted"]) == bool(oracle["accepted"])


# The step by hand.


def spd(seed=0, n=8):
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(n, n))
    return m @ m.T + 0.1 * np.eye(n), rng.normal(size=n), rng


def test_step_solves_the_linear_quadratic_problem(x64):
    h, g, rng = spd()
    x, delta = np.linalg.solve(h, g), 0.03
    step, multiplier = trust_region_step(jnp.asarray(x), jnp.asarray(h @ x), delta)
    np.testing.assert_allclose(0.5 * step @ h @ step, delta, rtol=1e-12)
    np.testing.assert_allclose(step, np.sqrt(2 * delta / (x @ h @ x)) * x, rtol=1e-12)
    np.testing.assert_allclose(multiplier, np.sqrt(g @ np.linalg.solve(h, g) / (2 * delta)))
    np.testing.assert_allclose(g, multiplier * (h @ step), rtol=1e-9)  # the KKT condition
    for other in rng.normal(size=(200, 8)):
        other *= np.sqrt(2 * delta / (other @ h @ other))
        assert g @ other <= g @ step


@pytest.mark.parametrize("curvature", [0.0, -1.0, np.nan])
def test_no_curvature_no_step(curvature, x64):
    x = jnp.array([1.0, 0.0])
    step, multiplier = trust_region_step(x, curvature * x, 0.01)
    np.testing.assert_array_equal(step, 0)
    assert not multiplier > 0


def test_info_is_about_the_step_that_was_made(x64):
    oracle = Oracle("shrinking")
    params, info = step(oracle)
    assert info["step_fraction"] == pytest.approx(0.8**4)
    assert info["kl"] == pytest.approx(oracle.kl(params), rel=1e-9)
    assert 0 < info["kl"] < 5
    moved = flat(params) - flat(oracle.params)
    gain = flat(oracle.tree("gradient")) @ moved
    assert info["expected_improvement"] == pytest.approx(gain, rel=1e-8)


@pytest.mark.parametrize("max_kl", [1e-8, 1e-10])
def test_small_steps_meet_the_quadratic_model(max_kl, x64):
    """Without damping a small full step's KL is the bound, its improvement the expected one."""
    oracle = Oracle("gaussian")
    _, info = step(oracle, max_kl=max_kl, damping=0.0)
    assert float(info["kl"]) == pytest.approx(max_kl, rel=0.01)
    assert float(info["improvement"]) == pytest.approx(
        float(info["expected_improvement"]), rel=0.01
    )


def test_damping_only_shortens(x64):
    """The step's length counts the damping too, so the KL stays below the bound."""
    oracle = Oracle("gaussian")
    kls = [float(step(oracle, damping=c, max_kl=1e-4)[1]["kl"]) for c in (0.01, 0.1, 1.0)]
    assert kls[0] > kls[1] > kls[2]
    assert kls[0] < 1.01e-4


def test_the_scale_of_the_advantages_does_not_matter(x64):
    oracle = Oracle("gaussian")
    one, _ = step(oracle)
    other, _ = step(oracle, batch=oracle.batch._replace(advantage=1e-7 * oracle.batch.advantage))
    np.testing.assert_allclose(flat(other), flat(one), rtol=1e-9)
    with jax.enable_x64(False):
        oracle = Oracle("gaussian")
        tiny = oracle.batch._replace(advantage=1e-7 * oracle.batch.advantage)
        other = flat(step(oracle, batch=tiny)[0])
    np.testing.assert_allclose(other, flat(one), rtol=1e-2, atol=1e-3)


def test_bound_is_of_old_to_new(x64):
    """With a far step the two directions differ; the reported one is KL(old || new)."""
    oracle = Oracle("shrinking")
    params, info = step(oracle)
    old, new = (oracle.policy(p, oracle.batch.obs) for p in (oracle.params, params))
    assert abs(jnp.mean(new.kl(old)) - info["kl"]) > 0.1
    assert info["kl"] == pytest.approx(float(jnp.mean(old.kl(new))), rel=1e-12)


def test_a_fraction_of_the_fisher_is_another_step(x64):
    oracle = Oracle("gaussian")
    whole, part = (step(oracle, fisher_fraction=f) for f in (1.0, 0.25))
    assert part[1]["accepted"]
    assert np.abs(flat(whole[0]) - flat(part[0])).max() > 1e-4


# What must not move.


@EACH_CASE
def test_policy_step_leaves_the_critic_alone(case):
    oracle = Oracle(case)
    params, _ = step(oracle)
    for part in ("critic", "value_head"):
        assert same_bits(params["params"][part], oracle.params["params"][part])


def test_refused_step_is_the_identity():
    oracle = Oracle("refused")
    params, info = step(oracle)
    assert not info["accepted"]
    assert info["finite"]
    assert same_bits(params, oracle.params)
    for name in ("kl", "improvement", "expected_improvement", "step_fraction"):
        assert info[name] == 0


def test_zero_advantage_changes_nothing():
    oracle = Oracle("categorical")
    batch = oracle.batch._replace(advantage=jnp.zeros(64))
    for kind in (purerl.TRPOConfig, purerl.NPGConfig):
        params, info = step(oracle, kind, batch)
        assert same_bits(params, oracle.params)
        assert info["finite"]
        assert not info["accepted"]
        assert info["cg_iterations"] == 0
        assert all(np.isfinite(x) for x in info.values())


@pytest.mark.parametrize("kind", [purerl.TRPOConfig, purerl.NPGConfig])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("solver", ["cg", "samples"])
def test_non_finite_advantage_is_refused(kind, bad, solver):
    oracle = Oracle("gaussian")
    batch = oracle.batch._replace(advantage=oracle.batch.advantage.at[3].set(bad))
    params, info = step(oracle, kind, batch, solver=solver)
    assert not info["finite"]
    assert not info["accepted"]
    assert same_bits(params, oracle.params)
    for name in ("kl", "improvement", "expected_improvement", "step_fraction"):
        assert info[name] == 0, name
    assert np.isnan(info["cg_residual"])


@pytest.mark.parametrize("kind", [purerl.TRPOConfig, purerl.NPGConfig])
def test_advantages_out_of_range_are_refused_and_said_so(kind):
    oracle = Oracle("gaussian")
    batch = oracle.batch._replace(advantage=1e25 * oracle.batch.advantage)
    params, info = step(oracle, kind, batch)
    assert not info["finite"]
    assert not info["accepted"]
    assert same_bits(params, oracle.params)


def test_equal_advantages_are_none():
    """Not the rounding error of their mean, of which TRPO would make a full step."""
    for number in (0.1, 1e-3, 1e6, 1 / 3):
        assert not np.any(standardize(jnp.full(64, number)))
        assert not np.any(standardize(jnp.full(1000, -number)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("advantage", np.zeros((64, 1)), r"batch.advantage has shape \(64, 1\), wanted \[64"),
        ("advantage", np.zeros(1), r"batch.advantage has shape \(1,\), wanted \[64"),
        ("advantage", np.zeros(64, int), r"batch.advantage has dtype int32, wanted floating"),
        ("log_prob", np.zeros((64, 1)), r"batch.log_prob has shape \(64, 1\), wanted \[64"),
        ("action", np.zeros((63, 2)), r"batch.action has shape \(63, 2\), wanted \[64"),
        ("obs", np.zeros((64, 5)), r"obs has shape \(64, 5\), but the parameters were made for"),
    ],
)
def test_batch_of_a_wrong_shape(field, value, message):
    oracle = Oracle("gaussian")
    batch = oracle.batch._replace(**{field: jnp.asarray(value)})
    with pytest.raises(ValueError, match=message):
        step(oracle, batch=batch)


def test_surrogate_has_no_gradient_but_the_parameters(x64):
    """An advantage that depends on the critic must not train it."""
    oracle = Oracle("gaussian")

    def surrogate(advantage, old_log_prob):
        log_prob = oracle.policy(oracle.params, oracle.batch.obs).log_prob(oracle.batch.action)
        return jnp.mean(surrogate_loss(log_prob, old_log_prob, advantage))

    for gradient in jax.grad(surrogate, (0, 1))(oracle.batch.advantage, oracle.batch.log_prob):
        assert not np.any(gradient)


# Many at once.


def sixteen(kind=purerl.TRPOConfig, solver="cg"):
    """Batches of which the fourth is NaN, the fifth has no advantage, the sixth is enormous."""
    oracle = Oracle("gaussian")
    rng = np.random.default_rng(0)
    advantage = rng.normal(size=(16, 64))
    advantage[3, 0] = np.nan
    advantage[4] = 0
    advantage[5] *= 1e6
    advantage = jnp.asarray(advantage, jnp.result_type(float))
    numbers = {"max_kl": 0.5, "solver": solver}
    one = lambda a: step(oracle, kind, oracle.batch._replace(advantage=a), **numbers)  # noqa: E731
    return oracle, one, jax.jit(jax.vmap(one)), advantage


@pytest.mark.parametrize(
    ("kind", "solver"),
    [(purerl.TRPOConfig, "cg"), (purerl.TRPOConfig, "samples"), (purerl.NPGConfig, "cg")],
)
def test_sixteen_steps_at_once_are_sixteen_alone(kind, solver, x64):
    oracle, one, many, advantage = sixteen(kind, solver)
    params, info = many(advantage)
    for i in range(16):
        alone, alone_info = one(advantage[i])
        got = jax.tree.map(lambda x, i=i: x[i], params)
        np.testing.assert_allclose(flat(got), flat(alone), atol=1e-9)
        for name, value in alone_info.items():
            np.testing.assert_allclose(info[name][i], value, rtol=1e-6, atol=1e-9)
    assert same_bits(jax.tree.map(lambda x: x[3], params), oracle.params)
    assert info["finite"].tolist() == [i != 3 for i in range(16)]
    if kind is purerl.TRPOConfig:
        assert len(set(info["step_fraction"].tolist())) > 2  # searches of different lengths


@pytest.mark.parametrize("solver", ["cg", "samples"])
def test_a_bad_neighbour_is_not_felt(solver):
    """Bit for bit, whatever stands beside."""
    _, _, many, advantage = sixteen(solver=solver)
    params, _ = many(advantage)
    others, _ = many(advantage.at[3].set(advantage[0]).at[4].set(advantage[1]))
    for i in (0, 1, 2, 5, 9, 15):
        assert same_bits(*(jax.tree.map(lambda x, i=i: x[i], p) for p in (params, others)))


# The natural policy gradient.


def test_npg_is_the_full_step(x64):
    oracle = Oracle("gaussian")
    one, other = (step(oracle, kind) for kind in (purerl.TRPOConfig, purerl.NPGConfig))
    assert one[1]["step_fraction"] == 1
    np.testing.assert_allclose(flat(one[0]), flat(other[0]), atol=1e-15)
    for name in one[1]:
        np.testing.assert_allclose(one[1][name], other[1][name], atol=1e-12)


def test_npg_goes_where_trpo_does_not(x64):
    oracle = Oracle("shrinking")
    params, info = step(oracle, purerl.NPGConfig)
    wanted = flat(oracle.params) + float(oracle["step_size"]) * flat(oracle.tree("direction"))
    np.testing.assert_allclose(flat(params), wanted, rtol=1e-7, atol=1e-8)
    assert info["accepted"]
    assert info["kl"] == pytest.approx(oracle["tried_kl"][0], rel=1e-6)
    assert info["kl"] > 5


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (purerl.trpo, purerl.NPGConfig()),
        (purerl.npg, purerl.PPOClipConfig()),
        (purerl.acktr, purerl.A2CConfig()),
        (purerl.acktr, purerl.ACKTRConfig),
    ],
)
def test_a_configuration_of_another_algorithm_is_refused(make, config):
    """NPG's is all that TRPO asks for, but for the line search."""
    with pytest.raises(TypeError, match=f"{make.__name__}: config is .* wanted an object"):
        make(config, Discrete(2))


def test_npg_refuses_a_config_with_a_line_search():
    with pytest.raises(TypeError, match="npg got a TRPOConfig, but has no line search"):
        purerl.npg(purerl.TRPOConfig(), Discrete(2))


# Whole updates.


def rollout(space, steps=16, envs=8, seed=0):
    rng = np.random.default_rng(seed)
    real = jnp.result_type(float)
    draw = lambda *s: jnp.array(rng.normal(size=(steps, envs, *s)), real)  # noqa: E731
    action = jnp.array(rng.integers(3, size=(steps, envs)), jnp.int32)
    flags = rng.uniform(size=(2, steps, envs)) < 0.1
    step = jnp.zeros((steps, envs), jnp.int32)
    return Rollout(
        draw(4),
        action if isinstance(space, Discrete) else draw(2),
        jnp.full((steps, envs), -1.0, real),
        draw(),
        jnp.array(flags[0]),
        jnp.array(flags[1]),
        draw(4),
        step,
    )


@pytest.mark.parametrize(
    ("space", "shared"), [(Discrete(3), False), (Box((2,)), True)], ids=["separate", "shared"]
)
def test_update_is_policy_step_and_critic_fit(space, shared, x64):
    """With separate networks the fit leaves the policy alone; with a shared trunk it moves it."""
    config = purerl.TRPOConfig(network=NetworkConfig(hidden_sizes=(8,), shared=shared))
    algorithm = purerl.trpo(config, space)
    data = rollout(space)
    state = algorithm.init(data.obs[0], jax.random.key(0))
    network = purerl.default_network(space, config.network)
    old = jax.vmap(lambda o: network.apply(state.params, o)[0])(data.obs)
    data = data._replace(log_prob=jax.vmap(lambda d, a: d.log_prob(a))(old, data.action))
    new, info = jax.jit(algorithm.update)(state, data, jax.random.key(1))
    batch = on_policy_batch(network, state.params, data, 0.99, 0.95, normalize=True)
    stepped, step_info = make_policy_step(network, config)(state.params, batch)
    assert info["kl"] == pytest.approx(step_info["kl"])
    assert info["accepted"]
    head = flat(new.params["params"]["policy_head"])
    np.testing.assert_allclose(head, flat(stepped["params"]["policy_head"]), atol=1e-12)
    trunk = "torso" if shared else "actor"
    moved = np.abs(flat(new.params["params"][trunk]) - flat(stepped["params"][trunk])).max()
    assert (moved > 1e-4) == shared
    assert (moved < 1e-12) != shared
    after = network.apply(new.params, batch.obs)[1]
    before = jnp.mean(jnp.square(batch.value - batch.target))
    assert jnp.mean(jnp.square(after - batch.target)) < before
    assert info["entropy"] == pytest.approx(
        jnp.mean(network.apply(state.params, batch.obs)[0].entropy())
    )


@functools.cache
def tiny(**changes):
    """A small TRPO, its update compiled once."""
    network = NetworkConfig(hidden_sizes=(4,))
    config = purerl.TRPOConfig(network=network, critic_epochs=2, critic_minibatches=1, **changes)
    algorithm = purerl.trpo(config, Discrete(3))
    return algorithm, jax.jit(algorithm.update)


def tiny_update(data, progress=0.0, **changes):
    """State before and after an update, and its info."""
    algorithm, update = tiny(**changes)
    state = algorithm.init(data.obs[0], jax.random.key(0))
    return state, *update(state, data, jax.random.key(1), progress=progress)


def test_a_rollout_of_numpy_updates_without_jit():
    data = rollout(Discrete(3))
    state, wanted, _ = tiny_update(data)
    algorithm, _ = tiny()
    new, info = algorithm.update(state, jax.tree.map(np.asarray, data), jax.random.key(1))
    assert info["accepted"]
    np.testing.assert_allclose(flat(new.params), flat(wanted.params), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [purerl.TRPOConfig, purerl.NPGConfig])
def test_a_policy_in_bfloat16_steps_and_keeps_its_dtypes(kind):
    """The linear algebra is in float32, and so are the step and the numbers of the search."""
    oracle = Oracle("categorical")
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), oracle.params)
    batch = oracle.batch._replace(obs=oracle.batch.obs.astype(jnp.bfloat16))
    network = purerl.ActorCritic(Discrete(3), NetworkConfig(hidden_sizes=(8, 8)))
    one = jax.jit(make_policy_step(network, oracle.config(kind, max_kl=0.5, cg_iterations=3)))
    new, info = one(params, batch)
    one(new, batch)
    assert one._cache_size() == 1
    assert info["accepted"]
    assert info["kl"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    assert not same_bits(new, params)


def test_annealing_of_the_critic():
    data = rollout(Discrete(3))
    for shape in ("constant", "linear"):
        old, new, info = tiny_update(data, 1.0, critic_learning_rate_schedule=shape)
        critics = (s.params["params"]["critic"] for s in (old, new))
        assert same_bits(*critics) == (shape == "linear")
        assert info["accepted"]


def test_a_policy_step_that_is_not_finite_refuses_the_critic_too():
    data = rollout(Discrete(3))
    data = data._replace(log_prob=data.log_prob.at[0, 0].set(jnp.nan))
    old, new, info = tiny_update(data)
    assert same_bits(old, new)
    assert not info["finite"]
    assert not info["accepted"]


def test_a_critic_that_is_not_finite_refuses_the_policy_too():
    old, new, info = tiny_update(rollout(Discrete(3)), critic_learning_rate=lambda _: jnp.inf)
    assert same_bits(old, new)
    assert not info["finite"]
    assert not info["accepted"]


def test_advantages_and_targets_are_of_the_old_critic(x64):
    space = Discrete(3)
    network = purerl.ActorCritic(space, NetworkConfig(hidden_sizes=(4,)))
    data = rollout(space)
    params = network.init(jax.random.key(0), data.obs[0])
    batch = on_policy_batch(network, params, data, 0.9, 0.8, normalize=True)
    values = [jax.vmap(lambda o: network.apply(params, o)[1])(o) for o in (data.obs, data.next_obs)]
    wanted = purerl.gae(data.reward, *values, data.terminated, data.truncated, 0.9, 0.8)
    np.testing.assert_allclose(batch.target, (wanted + values[0]).ravel(), rtol=1e-12)
    normal = (wanted - wanted.mean()) / (np.std(wanted) + 1e-8)
    np.testing.assert_allclose(batch.advantage, normal.ravel(), rtol=1e-10)
    batch = on_policy_batch(network, params, data, 0.9, 0.8)
    np.testing.assert_allclose(batch.advantage, wanted.ravel(), rtol=1e-12)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.trains
def test_over_a_whole_run_every_step_keeps_the_bound(name):
    """Of seeds that train side by side."""
    env = purerl.make_env(name)
    max_kl = 0.02
    config = purerl.TRPOConfig(
        max_kl=max_kl, damping=1e-3, gae_lambda=0.98, network=NetworkConfig(hidden_sizes=(32,))
    )
    algorithm = purerl.trpo(config, env.action_space)
    train = purerl.make_train(
        algorithm, env, 40 * 512, num_envs=8, rollout_length=64, evaluations=0, normalize_obs=True
    )
    keys = jax.random.split(jax.random.key(0), 4)
    result = jax.jit(purerl.vectorize(train.train))(keys)
    info = result.metrics.info
    assert not result.failed.any()
    assert info["kl"].shape == (4, 40)
    assert np.all(info["kl"] <= max_kl)
    assert np.mean(info["accepted"]) > 0.9
    assert np.mean(info["kl"]) > 0.3 * max_kl
    assert np.any((info["step_fraction"] > 0) & (info["step_fraction"] < 1))  # it has backtracked


# What the surrogate is an approximation of.


class Tabular:
    """A random MDP with exact values."""

    gamma = 0.9

    def __init__(self, seed=0, states=5, actions=3):
        rng = np.random.default_rng(seed)
        self.p = jnp.asarray(rng.dirichlet(np.ones(states), size=(states, actions)))
        self.r = jnp.asarray(rng.normal(size=(states, actions)))
        self.start = jnp.asarray(rng.dirichlet(np.ones(states)))
        self.logits = jnp.asarray(rng.normal(size=(2, states, actions)))

    def value(self, policy):
        """V_pi [S]."""
        p = jnp.einsum("sa,sat->st", policy, self.p)
        r = jnp.einsum("sa,sa->s", policy, self.r)
        return jnp.linalg.solve(jnp.eye(len(r)) - self.gamma * p, r)

    def objective(self, policy):
        """J = E[sum of gamma^t r_t]."""
        return self.start @ self.value(policy)

    def advantage(self, policy):
        """A(s, a) = E[r + gamma V(s')] - V(s): an expectation, of which a TD error is a sample."""
        v = self.value(policy)
        return self.r + self.gamma * self.p @ v - v[:, None]

    def visits(self, policy):
        """nu(s) = (1 - gamma) sum of gamma^t P(s_t = s | pi), a distribution."""
        p = jnp.einsum("sa,sat->st", policy, self.p)
        return (1 - self.gamma) * jnp.linalg.solve(
            jnp.eye(len(self.start)) - self.gamma * p.T, self.start
        )


def test_performance_difference_lemma(x64):
    """J(pi') - J(pi) = E_{nu', pi'}[A_pi] / (1 - gamma)."""
    mdp = Tabular()
    old, new = (jax.nn.softmax(x) for x in mdp.logits)
    difference = mdp.objective(new) - mdp.objective(old)
    mean = jnp.einsum("s,sa,sa->", mdp.visits(new), new, mdp.advantage(old))
    assert abs(difference) > 0.1
    np.testing.assert_allclose(mdp.visits(new).sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(difference, mean / (1 - mdp.gamma), rtol=1e-10)


def test_surrogate_has_the_gradient_of_the_return(x64):
    """At the old policy, up to 1 / (1 - gamma); away from it, it is another function."""
    mdp = Tabular()
    logits = mdp.logits[0]
    old = jax.nn.softmax(logits)
    weight = mdp.visits(old)[:, None] * old

    def surrogate(logits):
        losses = surrogate_loss(jax.nn.log_softmax(logits), jnp.log(old), mdp.advantage(old))
        return -jnp.sum(weight * losses)

    wanted = jax.grad(lambda x: mdp.objective(jax.nn.softmax(x)))(logits)
    np.testing.assert_allclose(
        jax.grad(surrogate)(logits) / (1 - mdp.gamma), wanted, rtol=1e-10, atol=1e-12
    )
    change = mdp.objective(jax.nn.softmax(mdp.logits[1])) - mdp.objective(old)
    assert abs(surrogate(mdp.logits[1]) / (1 - mdp.gamma) - change) > 1e-2
