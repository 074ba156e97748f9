"""Layers found in any program: their factors beside those of the same network written out."""

import collections

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_kfac import B, normal

import purerl
from purerl.second_order.kfac import find_layers, fisher_factors, tap
from purerl.second_order.kfac.layers import from_matrices, to_matrices

D, T = 3, 4


@pytest.fixture(autouse=True)
def as_others_write():
    """Networks of other libraries add vectors to matrices."""
    with jax.numpy_rank_promotion("allow"):
        yield


def random_like(params):
    return jax.tree.map(lambda p: 0.7 * normal(*p.shape, seed=p.size), params)


def started(init, obs):
    return random_like(jax.eval_shape(init, jax.random.key(0), obs))


class Bench:
    """Adds a given number to each product, and notes what each weight is multiplied with."""

    def __init__(self, added=None):
        self.added, self.seen = added, collections.defaultdict(list)
        self.shapes = collections.defaultdict(list)

    def __call__(self, name, x, w, b=0.0):
        """``x @ w + b`` for ``x`` ``[B, ..., d]``."""
        y = jnp.tensordot(x, w, 1)
        number = len(self.seen[name])
        self.seen[name].append(x.reshape(len(x), -1, x.shape[-1]))
        self.shapes[name].append(y.shape)
        return y + b + (0.0 if self.added is None else self.added[name][number])


def explicit_factors(written_out, params, x, cotangent):
    """A and G of every weight, by name, of a network written with a Bench; without bias."""
    bench = Bench()
    written_out(bench, params, x)
    zeros = {name: [jnp.zeros(s) for s in shapes] for name, shapes in bench.shapes.items()}

    def total(zeros):
        return jnp.sum(written_out(Bench(zeros), params, x) * cotangent)

    found = {}
    for name, deltas in jax.grad(total)(zeros).items():
        a = jnp.concatenate(bench.seen[name], axis=1)
        g = jnp.concatenate([d.reshape(B, -1, d.shape[-1]) for d in deltas], axis=1)
        found[name] = (
            jnp.einsum("bli,blj->ij", a, a) / (B * a.shape[1]),
            jnp.einsum("bli,blj->ij", g, g) / B,
        )
    return found


# Networks: (params, x) -> outputs, and the same on a bench.


def of_nnx():
    class Policy(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(D, 6, rngs=rngs)
            self.head = nnx.Linear(6, 2, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.hidden(x)))

    def written_out(bench, p, x):
        x = bench("hidden/kernel/value", x, p["hidden/kernel/value"], p["hidden/bias/value"])
        return bench("head/kernel/value", jax.nn.relu(x), p["head/kernel/value"])

    network = purerl.from_nnx(Policy)
    return network.apply, started(network.init, None), normal(B, D), written_out, ()


def of_equinox():
    def make(key):
        layers = [equinox.nn.Linear(D, 6, key=key), jnp.tanh, equinox.nn.Linear(6, 2, key=key)]
        return equinox.nn.Sequential(
            [layers[0], equinox.nn.Lambda(layers[1]), equinox.nn.LayerNorm(6), layers[2]]
        )

    def written_out(bench, p, x):
        linear = lambda i, x: bench(  # noqa: E731
            f"layers/{i}/weight", x, p[f"layers/{i}/weight"].T, p[f"layers/{i}/bias"]
        )
        x = jnp.tanh(linear(0, x))
        x = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-5)
        return linear(3, x * p["layers/2/weight"][None] + p["layers/2/bias"][None])

    network = purerl.from_equinox(make)
    rest = ("layers/2/weight", "layers/2/bias")
    return network.apply, started(network.init, None), normal(B, D), written_out, rest


def of_bare_matrices():
    """Transposed, cast, cut into heads, repeated for every sample; a vector for a matrix."""

    def network(p, x):
        x = jnp.tanh(jnp.einsum("id,bd->bi", p["first"], x) + p["first_bias"])
        x = x + p["scale"] * x
        heads = p["heads"].reshape(6, 2, 2)
        x = jnp.einsum("bi,iho->bho", x, heads) + p["heads_bias"]
        repeated = jnp.broadcast_to(p["repeated"], (len(x), 4, 5))
        x = jnp.tanh(jax.lax.batch_matmul(x.reshape(len(x), 1, 4), repeated)[:, 0])
        return jnp.stack([x @ p["vector"] + p["number"], x.sum(1)], axis=1)

    shapes = {"first": (6, D), "first_bias": (6,), "scale": (6,), "heads": (6, 4)}
    shapes |= {"heads_bias": (2, 2), "repeated": (4, 5), "vector": (5,), "number": ()}
    params = {name: normal(*shape, seed=len(name)) for name, shape in shapes.items()}

    def written_out(bench, p, x):
        x = jnp.tanh(bench("first", x, p["first"].T, p["first_bias"]))
        x = bench("heads", x + p["scale"] * x, p["heads"], p["heads_bias"].reshape(4))
        x = jnp.tanh(bench("repeated", x, p["repeated"]))
        value = bench("vector", x, p["vector"][:, None], p["number"])
        return jnp.concatenate([value, x.sum(1, keepdims=True)], axis=1)

    return network, params, normal(B, D), written_out, ("scale",)


def of_a_gru_under_scan():
    """Of flax.linen; and rows of a flattened sequence, time first."""

    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RNN(nn.GRUCell(5, param_dtype=x.dtype, name="cell"), name="rnn")(x)
            flat = x.swapaxes(0, 1).reshape(-1, 5)
            x = nn.Dense(2, param_dtype=x.dtype, name="head")(flat)
            return x.reshape(T, -1, 2)[-1]

    def written_out(bench, p, x):
        cell, head, h = p["params"]["cell"], p["params"]["head"], jnp.zeros((B, 5))
        gate = lambda name, x: bench(  # noqa: E731
            f"params/cell/{name}/kernel", x, cell[name]["kernel"], cell[name].get("bias", 0.0)
        )
        outputs = []
        for t in range(T):
            r = jax.nn.sigmoid(gate("ir", x[:, t]) + gate("hr", h))
            z = jax.nn.sigmoid(gate("iz", x[:, t]) + gate("hz", h))
            n = jnp.tanh(gate("in", x[:, t]) + r * gate("hn", h))
            h = (1 - z) * n + z * h
            outputs.append(h)
        stacked = jnp.stack(outputs, axis=1)
        return bench("params/head/kernel", stacked, head["kernel"], head["bias"])[:, -1]

    network, obs = Recurrent(), normal(B, T, D)
    return network.apply, started(network.init, obs), obs, written_out, ()


def of_attention():
    """Projections whose kernels have three axes, an embedding, a LayerNorm, and positions."""

    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            size = dict(param_dtype=jnp.result_type(float))
            x = nn.Embed(5, 4, name="embed", **size)(x)
            x = nn.LayerNorm(name="norm", **size)(x)
            x = x + self.param("positions", nn.initializers.zeros, (T, 4), jnp.result_type(float))
            x = nn.MultiHeadDotProductAttention(2, name="attention", **size)(x)
            return x.sum(1)

    def written_out(bench, p, x):
        p = p["params"]
        x = p["embed"]["embedding"][x]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * p["norm"]["scale"] + p["norm"]["bias"] + p["positions"]

        def heads(name):
            layer = p["attention"][name]
            kernel, bias = layer["kernel"].reshape(4, 4), layer["bias"].reshape(4)
            y = bench(f"params/attention/{name}/kernel", x, kernel, bias)
            return y.reshape(B, T, 2, 2)

        weight = jnp.einsum("bqhd,bkhd->bhqk", heads("query"), heads("key")) / np.sqrt(2)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(weight), heads("value"))
        out = p["attention"]["out"]
        kernel = out["kernel"].reshape(4, 4)
        y = bench("params/attention/out/kernel", mixed.reshape(B, T, 4), kernel, out["bias"])
        return y.sum(1)

    network, obs = Attention(), jnp.array(np.random.default_rng(0).integers(5, size=(B, T)))
    params = started(network.init, obs)
    rest = [f"params/{x}" for x in ("embed/embedding", "norm/scale", "norm/bias", "positions")]
    return network.apply, params, obs, written_out, tuple(rest)


def of_programs_within_programs():
    """jit, checkpoint, functions with a custom derivative, a scan within a scan, samples second."""

    def turn(p, x):
        square = jax.custom_jvp(lambda w, x: jnp.tanh(x @ w))
        square.defjvp(
            lambda primals, tangents: jax.jvp(lambda w, x: jnp.tanh(x @ w), primals, tangents)
        )
        product = jax.custom_vjp(lambda w, x: x @ w)
        product.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))
        x = jax.jit(lambda w, x: jnp.tanh(x @ w["inner"] + w["bias"]))(p, x)
        x = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(p["saved"], x)
        return product(p["vjp"], square(p["jvp"], x))

    def network(p, x):
        def twice(x, _):
            x, kept = jax.lax.scan(lambda x, _: (turn(p, x), x), x, length=2)
            return x, kept[1]

        x, kept = jax.lax.scan(twice, x, length=2, reverse=True)
        return x + kept[0]

    params = {name: normal(D, D, seed=ord(name[0])) for name in ("inner", "saved", "jvp", "vjp")}
    params["bias"] = normal(D)

    def written_out(bench, p, x):
        kept = []
        for _ in range(4):
            kept.append(x)
            x = jnp.tanh(bench("inner", x, p["inner"], p["bias"]))
            x = jnp.tanh(bench("jvp", jnp.tanh(bench("saved", x, p["saved"])), p["jvp"]))
            x = bench("vjp", x, p["vjp"])
        return x + kept[3]

    return network, params, normal(B, D), written_out, ()


NETWORKS = {
    made.__name__: made
    for made in (
        *(of_nnx, of_equinox, of_bare_matrices),
        *(of_a_gru_under_scan, of_attention, of_programs_within_programs),
    )
}


@pytest.mark.parametrize("name", NETWORKS)
def test_factors_are_those_of_the_network_written_out(name, x64):
    network, params, obs, written_out, rest = NETWORKS[name]()
    layers = find_layers(network, params, obs)
    output = network(params, obs)
    cotangent = normal(*output.shape, seed=1)

    @jax.jit
    def capture(params, obs):
        tapped = tap(network, layers, params, obs)
        gradient, deltas = tapped.pullback(cotangent)
        return (
            tapped.output,
            gradient,
            tapped.inputs(),
            deltas,
            fisher_factors(layers, tapped, cotangent),
        )

    got, gradient, inputs, deltas, factors = capture(params, obs)
    np.testing.assert_allclose(got, output, atol=1e-12)
    wanted = jax.grad(lambda p: jnp.sum(network(p, obs) * cotangent))(params)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-12), gradient, wanted)
    matrices, others = to_matrices(layers, wanted)
    for matrix, x, delta in zip(matrices, inputs, deltas, strict=True):
        np.testing.assert_allclose(jnp.einsum("bli,blo->io", x, delta), matrix, atol=1e-12)
    assert set(others) == set(rest) == set(factors.rest)
    back = from_matrices(layers, matrices, others, params)
    jax.tree.map(np.testing.assert_array_equal, back, wanted)

    explicit = explicit_factors(written_out, params, obs, cotangent)
    assert {layer.weight for layer in layers} == set(explicit)
    for layer, a, g in zip(layers, factors.a, factors.g, strict=True):
        of_a, of_g = explicit[layer.weight]
        d = layer.inputs
        np.testing.assert_allclose(a[:d, :d], of_a, atol=1e-12, err_msg=layer.weight)
        np.testing.assert_allclose(g, of_g, atol=1e-12, err_msg=layer.weight)
        if layer.bias is not None:
            np.testing.assert_allclose(a[-1, -1], 1)


def stacked(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w["w"].reshape(4, 2, 2))[0]


def tied(w, x):
    return jnp.tanh(x @ w["w"]) @ w["w"].T


X24 = jnp.ones((B, 4))


@pytest.mark.parametrize(
    ("network", "shape", "x", "message"),
    [
        (lambda w, x: x * w["w"], (4,), X24, r"the network multiplies none of its parameters"),
        (lambda w, x: x + jnp.ones((1, 4)) @ w["w"], (4, 4), X24, r"the network multiplies none"),
        (lambda w, x: x @ jnp.tril(w["w"]), (4, 4), X24, r"w, of shape \(4, 4\): it is not multip"),
        (stacked, (16,), X24[:, :2], r"w, of shape \(16,\): .* made of it at .*test_capture.py:"),
        (lambda w, x: jax.vmap(jnp.dot)(x, w["w"]), (B, 4, 3), X24, r"it is many matrices, each"),
        (lambda w, x: w["w"] @ x, (3, B), X24, r"it is multiplied with \[B, 4\], in which samples"),
        (lambda w, x: x.mean(0) @ w["w"], (4, 3), X24, r"multiplied with \[4\], in which samples"),
        (
            tied,
            (4, 3),
            X24,
            r"at .*test_capture.py:\d+.* multiplied as another matrix \(",
        ),
        (
            lambda w, x: w["w"][x[:, 0].astype(int)] @ w["w"].T,
            *(
                (4, 3),
                X24,
                r"it is a weight at .*, and something else as well \(.*py:",
            ),
        ),
        (
            lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w["w"], lambda: x),
            *((4, 4), X24, r"it is used within lax.cond \(.*test_capture.py:"),
        ),
    ],
)
def test_what_cannot_be_factored_is_named_with_its_line(network, shape, x, message):
    with pytest.raises(ValueError, match=message):
        find_layers(network, {"w": jnp.ones(shape)}, x)
    assert find_layers(network, {"w": jnp.ones(shape)}, x, strict=False) == ()


def test_a_convolution_with_groups_is_named():
    module = nn.Conv(4, (1,), feature_group_count=2)
    params = module.init(jax.random.key(0), jnp.ones((B, 1, 4)))
    with pytest.raises(
        ValueError, match=r"cannot factor params/kernel, of shape \(1, 2, 4\): .*gro"
    ):
        find_layers(module.apply, params, jnp.ones((B, 1, 4)))


def test_a_bias_is_one_only_if_nothing_else_needs_the_product():
    shapes = {"w": (4, 3), "b": (3,)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    for network, bias in (
        (lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), "b"),
        (lambda p, x: (x @ p["w"] + p["b"]) * (x @ p["w"]), None),  # added once of twice
        (lambda p, x: (lambda y: (y + p["b"]) * y)(x @ p["w"]), None),
        (lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) * p["b"], None),
        (lambda p, x: x @ p["w"] + 2 * p["b"], None),
    ):
        (layer,) = find_layers(network, params, X24)
        assert layer.bias == bias


def test_axes_in_another_order_than_the_matrix_has_them(x64):
    """A weight whose axes move in a cycle, and a bias [o, h] of features [h, o]."""
    params = {"w": normal(4, 5, 3), "v": normal(5, 2, 3), "b": normal(3, 2)}

    def network(p, x):
        x = jnp.tanh(x @ p["w"].transpose(2, 0, 1).reshape(12, 5))
        return jnp.tanh(jnp.einsum("bd,dho->boh", x, p["v"]) + p["b"])

    x, cotangent = normal(B, 12), normal(B, 3, 2, seed=1)
    layers = find_layers(network, params, x)
    assert [layer[:5] for layer in layers] == [("w", None, 12, 5, 1), ("v", "b", 5, 6, 1)]
    tapped = tap(network, layers, params, x)
    gradient, deltas = tapped.pullback(cotangent)
    matrices, rest = to_matrices(layers, gradient)
    for matrix, inputs, delta in zip(matrices, tapped.inputs(), deltas, strict=True):
        np.testing.assert_allclose(inputs[:, 0].T @ delta[:, 0], matrix, atol=1e-12)
    back = from_matrices(layers, matrices, rest, params)
    jax.tree.map(np.testing.assert_array_equal, back, gradient)


def test_a_network_for_one_number_of_samples_only():
    """It cannot be read at another; the axis is told by its size then."""
    params = {"w": jnp.ones((4, 3))}
    mask = jnp.ones((B, 4))
    (layer,) = find_layers(lambda p, x: (x * mask) @ p["w"], params, X24)
    assert layer.locations == 1
    with pytest.raises(ValueError, match=r"in which samples have no axis of their own"):
        find_layers(lambda p, x: (x * mask)[:, None].repeat(B, 1) @ p["w"], params, X24)


def test_layers_of_another_network():
    params = {"w": jnp.ones((4, 3)), "v": jnp.ones((4, 3))}
    layers = find_layers(lambda p, x: jnp.tanh(x) @ p["w"], params, X24)
    with pytest.raises(ValueError, match=r"tap: the layers are of another program"):
        tap(lambda p, x: x @ p["w"], layers, params, X24)


def test_a_custom_derivative_stays(x64):
    """Parameters have the gradient that the user gave; the products' are those of the program."""

    @jax.custom_vjp
    def product(w, x):
        return x @ w

    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[1].T @ g * 3, g @ r[0].T))
    params = {"first": normal(4, 4), "second": normal(4, 2)}
    network = lambda p, x: product(p["second"], product(p["first"], x))  # noqa: E731
    x, cotangent = normal(B, 4), normal(B, 2)
    tapped = tap(network, find_layers(network, params, x), params, x)
    gradient, (of_first, of_second) = tapped.pullback(cotangent)
    inner = x @ params["first"]
    np.testing.assert_allclose(gradient["second"], 3 * inner.T @ cotangent, atol=1e-12)
    back = cotangent @ params["second"].T
    np.testing.assert_allclose(gradient["first"], 3 * x.T @ back, atol=1e-12)
    np.testing.assert_allclose(of_second[:, 0], cotangent, atol=1e-12)
    np.testing.assert_allclose(of_first[:, 0], back, atol=1e-12)


def test_samples_along_the_second_axis(x64):
    """Sequences [T, B, d], time first, and a memory [B, h] beside them."""
    params = {"w": normal(3, 5), "u": normal(5, 5)}

    def network(p, x):
        def turn(h, x):
            h = jnp.tanh(x @ p["w"] + h @ p["u"])
            return h, h

        return jax.lax.scan(turn, x["memory"], x["obs"])[1]

    x = {"obs": normal(T, B, 3), "memory": normal(B, 5, seed=1)}
    axis = {"obs": 1, "memory": 0}
    layers = find_layers(network, params, x, axis=axis)
    assert [(layer.weight, layer.locations) for layer in layers] == [("w", T), ("u", T)]
    tapped = tap(network, layers, params, x, axis=axis)
    np.testing.assert_array_equal(tapped.inputs()[0], x["obs"].swapaxes(0, 1))
    np.testing.assert_array_equal(tapped.inputs()[1][:, 1], tapped.output[0])
