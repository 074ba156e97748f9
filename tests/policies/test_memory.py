"""Networks with a memory: step by step, unrolled, differentiated."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import purerl
from purerl.algorithms.a2c import A2CState
from purerl.policies import acting
from purerl.records import Sequences

STEPS, ENVS, OBS = 20, 3, 2
SPACES = {
    "discrete": purerl.Discrete(3),
    "box": purerl.Box((2,), -1.0, 1.0),
    "several": purerl.MultiDiscrete((3, 2)),
}


def config(memory="gru", **changes):
    return purerl.NetworkConfig(hidden_sizes=(5,), memory=memory, memory_size=4, **changes)


class Network:
    """A network with parameters and sequences, with episodes that start in their middle."""

    def __init__(self, network, seed=0):
        self.network = network
        keys = jax.random.split(jax.random.key(seed), 4)
        obs = jax.random.normal(keys[0], (STEPS, ENVS, OBS))
        start = jax.random.uniform(keys[1], (STEPS, ENVS)) < 0.15
        memory = network.init_memory(obs[0])
        self.params = network.init(keys[2], obs[0], memory, start[0])
        memory = jax.tree.map(lambda x: jax.random.normal(keys[3], x.shape), memory)
        self.inputs = Sequences(obs, memory, start)

    def step_by_step(self, inputs=None):
        """Outputs ``[T * n]`` and the memory after each step, as actors have them."""
        inputs, rows, memories = inputs or self.inputs, [], []
        memory, apply = inputs.memory, jax.jit(self.network.apply)
        for obs, start in zip(inputs.obs, inputs.start, strict=True):
            *outputs, memory = apply(self.params, obs, memory, start)
            rows.append(outputs)
            memories.append(memory)
        return jax.tree.map(lambda *x: jnp.concatenate(x), *rows), memories

    def at_once(self, params=None, inputs=None, *args):
        params = self.params if params is None else params
        return acting.apply_network(self.network, params, inputs or self.inputs, *args)


def default(space, *args, **kwargs):
    return Network(purerl.RecurrentActorCritic(SPACES[space], config(*args, **kwargs)))


class Plain(nn.Module):
    """A user's: its own cell, and nothing but one step of it."""

    @nn.compact
    def __call__(self, obs, memory, start):
        memory = jnp.where(start[:, None], 0.0, memory)
        dense = functools.partial(nn.Dense, 4, param_dtype=jnp.result_type(float))
        memory = jnp.tanh(dense()(jnp.concatenate([obs, memory], axis=-1)))
        heads = dense()(memory)
        return purerl.Categorical(heads[:, :3]), heads[:, 3], memory

    @nn.nowrap
    def init_memory(self, obs):
        return jnp.zeros((len(obs), 4))


class LinearRecurrence:
    """A user's that sees all steps of a sequence at once: h = a h + b x by an associative scan."""

    def init_memory(self, obs):
        return jnp.zeros((len(obs), OBS))

    def init(self, key, obs, memory, start):
        heads = jax.random.normal(key, (OBS, 4))
        return {"a": jnp.full(OBS, 0.9), "b": jnp.full(OBS, 0.5), "heads": heads}

    def apply(self, params, obs, memory, start):
        memory = jnp.where(start[:, None], 0.0, params["a"][None] * memory)
        memory += params["b"][None] * obs
        return *self.outputs(params, memory), memory

    def outputs(self, params, memory):
        heads = memory @ params["heads"]
        return purerl.Categorical(heads[..., :3]), heads[..., 3]

    def unroll(self, params, obs, memory, start):
        a = jnp.where(start[..., None], 0.0, params["a"][None, None])
        x = params["b"][None, None] * obs
        x = x.at[0].add(a[0] * memory)
        combine = lambda left, right: (left[0] * right[0], left[1] * right[0] + right[1])  # noqa: E731
        memories = jax.lax.associative_scan(combine, (a, x))[1]
        return *self.outputs(params, memories), memories[-1]


CASES = {
    "gru": functools.partial(default, "discrete"),
    "lstm": functools.partial(default, "box", "lstm"),
    "shared": functools.partial(default, "several", shared=True),
    "plain": lambda: Network(Plain()),
    "linear": lambda: Network(LinearRecurrence()),
}
EACH = pytest.mark.parametrize("case", CASES)


@EACH
def test_the_unrolled_network_is_the_one_that_acts(case, x64):
    made = CASES[case]()
    assert made.inputs.start.any()
    outputs, _ = made.step_by_step()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12),
        made.at_once(),
        tuple(outputs),
    )


def test_the_unrolled_network_in_single_precision():
    made = CASES["gru"]()
    wanted = jax.tree.leaves(made.step_by_step()[0])
    for got, x in zip(jax.tree.leaves(made.at_once()), wanted, strict=True):
        np.testing.assert_allclose(got, x, atol=1e-5)


@EACH
def test_an_episode_that_ends_in_a_sequence_is_two_sequences(case, x64):
    """What was before is not seen, and no gradient goes there."""
    made, cut = CASES[case](), 7
    start = jnp.zeros((STEPS, ENVS), bool).at[cut].set(True)
    inputs = made.inputs._replace(start=start)
    first = Sequences(inputs.obs[:cut], inputs.memory, start[:cut])
    other = jax.tree.map(lambda x: x + 5.0, inputs.memory)
    second = Sequences(inputs.obs[cut:], other, start[cut:])

    weights = jax.random.normal(jax.random.key(1), (STEPS * ENVS,))

    def weighted(params, parts):
        value = jnp.concatenate([made.at_once(params, part)[1] for part in parts])
        return jnp.sum(weights * value), value

    both = jax.jit(lambda *cases: [jax.grad(weighted, has_aux=True)(made.params, x) for x in cases])
    whole, parts = both([inputs], [first, second])
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-12), whole, parts)


@pytest.mark.parametrize("case", ["gru", "lstm", "linear"])
def test_gradients_through_20_steps_are_finite_differences(case, x64):
    made = CASES[case]()
    inputs = made.inputs._replace(start=made.inputs.start & False)
    flat, unravel = ravel_pytree(made.params)

    @jax.jit
    def f(flat):
        policy, value = made.at_once(unravel(flat), inputs)
        last = jax.tree.map(lambda x: x[-ENVS:], policy)  # of the last step alone
        return jnp.sum(jnp.square(value[-ENVS:])) + jnp.sum(last.entropy())

    v = jax.random.normal(jax.random.key(5), flat.shape)
    slope = jax.jvp(f, (flat,), (v,))[1]
    np.testing.assert_allclose(jax.grad(f)(flat) @ v, slope, rtol=1e-10)
    step = 1e-5
    differences = (f(flat + step * v) - f(flat - step * v)) / (2 * step)
    np.testing.assert_allclose(slope, differences, rtol=1e-6)


def test_the_default_cells_are_those_of_the_papers(x64):
    """GRU and LSTM in NumPy, at one step."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    for kind in ("gru", "lstm"):
        made = default("discrete", kind)
        weights = jax.tree.map(np.asarray, made.params["params"]["actor"])
        layer = weights["torso"]["MLP_0"]["Dense_0"]
        x = np.tanh(np.asarray(made.inputs.obs[0]) @ layer["kernel"] + layer["bias"])
        before = jax.tree.map(np.asarray, made.inputs.memory["actor"])
        start = np.asarray(made.inputs.start[0])[:, None]
        before = jax.tree.map(lambda m, start=start: np.where(start, 0, m), before)

        def gate(name, memory, x=x, cell=weights["cell"]):
            parts = ((f"i{name}", x), (f"h{name}", memory))
            return [y @ cell[key]["kernel"] + cell[key].get("bias", 0) for key, y in parts]

        if kind == "gru":
            reset, update = (sigmoid(sum(gate(name, before))) for name in "rz")
            of_input, of_memory = gate("n", before)
            wanted = (1 - update) * np.tanh(of_input + reset * of_memory) + update * before
        else:
            cell, hidden = before
            i, f, o = (sigmoid(sum(gate(name, hidden))) for name in "ifo")
            cell = f * cell + i * np.tanh(sum(gate("g", hidden)))
            wanted = cell, o * np.tanh(cell)
        after = made.step_by_step()[1][0]["actor"]
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-12), after, wanted)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_cells_that_keep_their_state_from_the_beginning(kind):
    """Half of the units for more than half the span; the other numbers are as before."""
    settings = {"hidden_sizes": (5,), "memory": kind, "memory_size": 64}
    space, args = SPACES["discrete"], (jnp.zeros((1, OBS)), None, jnp.ones(1, bool))
    made = []
    for span in (None, 41):
        network = purerl.RecurrentActorCritic(
            space, purerl.NetworkConfig(**settings, memory_span=span)
        )
        memory = network.init_memory(args[0])
        made.append(network.init(jax.random.key(0), args[0], memory, args[2])["params"])
    plain, longer = made
    kept, let_in = {"gru": ("iz", None), "lstm": ("hf", "hi")}[kind]
    for part in ("actor", "critic"):
        cell = longer[part]["cell"]
        bias = cell[kept].pop("bias")
        steps = 1 + np.exp(bias)
        assert steps.min() >= 2
        assert steps.max() <= 41
        assert abs(np.median(steps) - 21) < 6
        if let_in:
            np.testing.assert_array_equal(cell[let_in].pop("bias"), -bias)
            plain[part]["cell"][let_in].pop("bias")
        plain[part]["cell"][kept].pop("bias")
    jax.tree.map(np.testing.assert_array_equal, plain, longer)
    assert not np.array_equal(bias, steps)


@pytest.mark.parametrize("case", ["gru", "lstm", "plain"])
def test_fisher_vector_products_through_the_unrolled_network(case, x64):
    """J^T H J with a dense Jacobian, and the Hessian of the mean KL."""
    made = CASES[case]()
    flat, unravel = ravel_pytree(made.params)
    policy = lambda flat, obs: made.at_once(unravel(flat), obs)[0]  # noqa: E731
    product = purerl.fisher_vector_product(policy, flat, made.inputs)
    old, v = policy(flat, made.inputs), jax.random.normal(jax.random.key(1), flat.shape)
    mean_kl = lambda flat: jnp.mean(old.kl(policy(flat, made.inputs)))  # noqa: E731
    np.testing.assert_allclose(product(v), purerl.hvp(mean_kl, flat, v), atol=1e-12)
    if case == "gru":
        logits = lambda flat: policy(flat, made.inputs).logits  # noqa: E731
        jacobian, p = jax.jacobian(logits)(flat), jax.nn.softmax(old.logits)
        curvature = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None]
        dense = jnp.einsum("bip,bij,bjq->pq", jacobian, curvature, jacobian) / len(p)
        np.testing.assert_allclose(product(v), dense @ v, atol=1e-12)


def test_a_fraction_of_the_fisher_matrix_is_of_whole_sequences(x64):
    made = CASES["plain"]()
    policy = lambda params, obs: made.at_once(params, obs)[0]  # noqa: E731
    product = purerl.fisher_vector_product(policy, made.params, made.inputs, fraction=0.34)
    found = []
    for i in range(ENVS):
        memory = jax.tree.map(lambda x, i=i: x[i : i + 1], made.inputs.memory)
        obs, start = made.inputs.obs[:, i : i + 1], made.inputs.start[:, i : i + 1]
        one = purerl.fisher_vector_product(policy, made.params, Sequences(obs, memory, start))
        both = (ravel_pytree(f(made.params))[0] for f in (product, one))
        found.append(np.allclose(*both, atol=1e-12))
    assert sum(found) == 1


@pytest.mark.parametrize("space", SPACES)
def test_values_of_actions_with_a_memory(space, x64):
    """Step by step as unrolled; of discrete actions one out of all; of others another for each."""
    made = Network(purerl.RecurrentActorQCritic(SPACES[space], config()))
    key = jax.random.key(3)
    action = made.at_once()[0].sample(key)
    value = made.at_once(None, None, action)[1]
    by_step = action.reshape(STEPS, ENVS, *action.shape[1:])
    memory = made.inputs.memory
    for t in range(3):
        inputs = made.inputs.obs[t], memory, made.inputs.start[t], by_step[t]
        _, q, memory = made.network.apply(made.params, *inputs)
        np.testing.assert_allclose(q, value[t * ENVS : (t + 1) * ENVS], atol=1e-12)
    all_of_them = made.at_once()[1]
    if space == "discrete":
        np.testing.assert_array_equal(value, all_of_them[jnp.arange(len(action)), action])
    else:
        assert value.shape == all_of_them.shape
        assert not np.allclose(value, all_of_them)


class Masked(LinearRecurrence):
    """The same, for observations with an action mask, which it does not look at."""

    def init_memory(self, obs):
        return super().init_memory(obs["x"])

    def apply(self, params, obs, memory, start):
        return super().apply(params, obs["x"], memory, start)

    def unroll(self, params, obs, memory, start):
        return super().unroll(params, obs["x"], memory, start)


@pytest.mark.parametrize("own", [False, True])
def test_what_observations_forbid_is_forbidden_in_sequences_too(own, x64):
    """Of the default network and of a user's, step by step and unrolled."""
    space = SPACES["discrete"]
    network = acting.default_network(space, config(), Masked() if own else None)
    keys = jax.random.split(jax.random.key(0), 3)
    mask = jax.random.uniform(keys[0], (STEPS, ENVS, 3)) < 0.6
    mask = mask.at[..., 2].set(True)
    obs = {"x": jax.random.normal(keys[1], (STEPS, ENVS, OBS)), "action_mask": mask}
    first = jax.tree.map(lambda x: x[0], obs)
    memory, start = network.init_memory(first), jnp.zeros((STEPS, ENVS), bool)
    params = network.init(keys[2], first, memory, start[0])
    policy, _ = acting.apply_network(network, params, Sequences(obs, memory, start))
    possible = np.isfinite(policy.log_probs()).reshape(mask.shape)
    np.testing.assert_array_equal(possible, mask)
    one, *_ = acting.apply_network(network, params, first, memory, start[0])
    np.testing.assert_allclose(one.log_probs(), policy.log_probs()[:ENVS], atol=1e-12)


# Acting.


@pytest.mark.parametrize("case", ["gru", "plain"])
def test_without_a_memory_given_each_step_is_an_episodes_first(case):
    made = CASES[case]()
    act = acting.make_act(made.network)
    state = A2CState(made.params, None)
    obs, key = made.inputs.obs[0], jax.random.key(0)
    action, extras = act(state, obs, key)
    given = {"memory": made.inputs.memory, "start": jnp.ones(ENVS, bool)}
    again, same = act(state, obs, key, **given)
    np.testing.assert_array_equal(action, again)
    jax.tree.map(np.testing.assert_array_equal, extras, same)
    given["start"] = jnp.zeros(ENVS, bool)
    _, other = act(state, obs, key, **given)
    assert not np.array_equal(extras["log_prob"], other["log_prob"])


def test_networks_of_equinox_and_nnx_with_a_memory(x64):
    import equinox
    from flax import nnx

    class Own(equinox.Module):
        cell: equinox.nn.GRUCell
        heads: equinox.nn.Linear

        def __init__(self, key):
            self.cell = equinox.nn.GRUCell(OBS, 4, key=key)
            self.heads = equinox.nn.Linear(4, 4, key=key)

        def __call__(self, obs, memory, start):
            memory = self.cell(obs, jnp.where(start, 0.0, memory))
            heads = self.heads(memory)
            return purerl.Categorical(heads[:3]), heads[3], memory

    class Theirs(nnx.Module):
        def __init__(self, rngs):
            self.cell = nnx.GRUCell(OBS, 4, rngs=rngs, param_dtype=jnp.float64)
            self.heads = nnx.Linear(4, 4, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, obs, memory, start):
            memory, out = self.cell(jnp.where(start[:, None], 0.0, memory), obs)
            heads = self.heads(out)
            return purerl.Categorical(heads[:, :3]), heads[:, 3], memory

    empty = lambda obs: jnp.zeros((len(obs), 4))  # noqa: E731
    for network in (purerl.from_equinox(Own, empty), purerl.from_nnx(Theirs, empty)):
        made = Network(network)
        outputs, _ = made.step_by_step()
        np.testing.assert_allclose(made.at_once()[1], outputs[1], atol=1e-12)
        algorithm = purerl.a2c(purerl.A2CConfig(), SPACES["discrete"], network)
        algorithm.init(made.inputs.obs[0], jax.random.key(0))


# What a network owes.


def test_a_memory_that_changes_is_refused():
    class Grows(Plain):
        def __call__(self, obs, memory, start):
            policy, value, memory = super().__call__(obs, memory, start)
            return policy, value, memory.astype(jnp.bfloat16)

    class Forgets(Plain):
        def __call__(self, obs, memory, start):
            return super().__call__(obs, memory, start)[:2]

    obs, key = jnp.zeros((ENVS, OBS)), jax.random.key(0)
    with pytest.raises(ValueError, match=r"memory is .*bfloat16.* after a step, wanted that of"):
        purerl.a2c(purerl.A2CConfig(), SPACES["discrete"], Grows()).init(obs, key)
    with pytest.raises(TypeError, match=r"wanted three: \(distribution \[B\], value \[B\], memory"):
        purerl.a2c(purerl.A2CConfig(), SPACES["discrete"], Forgets()).init(obs, key)


def test_networks_without_a_memory_refuse_the_option():
    for network in (
        purerl.ActorCritic(SPACES["discrete"], config()),
        purerl.ActorQCritic(SPACES["discrete"], config("lstm")),
        purerl.QNetwork(SPACES["discrete"], config()),
    ):
        with pytest.raises(ValueError, match=r"is for purerl\.RecurrentActorCritic"):
            network.init(jax.random.key(0), jnp.zeros((1, OBS)))
