"""What the second-order pieces cost, and what a preconditioner saves.

    python benchmarks/second_order.py            # some minutes; nothing else should run meanwhile

Cost: one policy step of TRPO with 10 iterations of conjugate gradient and one try of the line
search, in units of one gradient of the surrogate on the same batch, all of it in one process and in
turns; where the time goes; the Fisher-vector product as Gauss-Newton (what purerl uses) beside the
Hessian of the mean KL by forward over reverse; and all of this against the batch and the network.

Preconditioners: conjugate gradient on the damped Fisher matrix of a policy whose observations come
in units from 1e-2 to 1e2 (the first layer's weights the other way round, so that the policy is that
of standardized observations), plain and preconditioned with the Fisher matrix's diagonal and with
K-FAC's factors of the same batch; and on the problems that TRPO meets on the way, at its preset on
Pendulum after so many iterations, at its damping and at less.
"""

import dataclasses
import datetime
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

import purerl
from purerl.second_order.kfac import precondition
from purerl.second_order.kfac_capture import find_layers, tap
from purerl.second_order.kfac_factors import fisher_factors, invert_eigenbasis

HERE = Path(__file__).resolve().parent
PRODUCTS = 10
BATCH, WIDTH = 2048, 64
BATCHES = (256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = (16, 32, 64, 128, 256)
RESIDUALS = (1e-1, 1e-2, 1e-3, 1e-4)
PRECONDITIONERS = ("plain", "diagonal Fisher", "K-FAC")
MET_ENV, MET_AFTER, MET_DAMPINGS = "Pendulum-v1", (5, 50), (0.1, 1e-2, 1e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    repeats: int = 25
    """Timed executions of each function; the median counts."""
    seeds: tuple[int, ...] = (1, 16)
    """Policies at the same time, sharded over the cores."""
    problems: int = 16
    """Random problems of the preconditioner's comparison."""
    output: Path = HERE / "results" / "second_order.json"
    """Result file; pictures and table go beside it."""
    force: bool = False
    """Whether to overwrite the result files."""


def make_problem(key, batch: int, width: int, features: int = 4, scale=1.0):
    """A policy away from its initialization and a batch of its own actions."""
    import jax

    config = purerl.NetworkConfig(hidden_sizes=(width, width))
    network = purerl.ActorCritic(purerl.Discrete(2), config)
    keys = jax.random.split(key, 5)
    obs = scale * jax.random.normal(keys[0], (batch, features))
    params = network.init(keys[1], obs)
    leaves, treedef = jax.tree.flatten(params)
    noise = jax.random.split(keys[2], len(leaves))
    params = treedef.unflatten(
        [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, noise, strict=True)]
    )
    policy, _ = network.apply(params, obs)
    action = policy.sample(keys[3])
    advantage = jax.random.normal(keys[4], (batch,))
    sample = purerl.OnPolicyBatch(obs, action, policy.log_prob(action), None, advantage, None)
    return params, sample


def pieces(width: int) -> dict[str, Callable[..., Any]]:
    """Functions of ``(params, batch)``; those of one product or gradient do ten, in a loop."""
    import jax
    import jax.numpy as jnp

    from purerl.algorithms.trpo import make_policy_step
    from purerl.losses import surrogate_loss

    config = purerl.NetworkConfig(hidden_sizes=(width, width))
    network = purerl.ActorCritic(purerl.Discrete(2), config)

    def policy(params, obs):
        return network.apply(params, obs)[0]

    def surrogate(params, batch):
        log_prob = policy(params, batch.obs).log_prob(batch.action)
        return -jnp.mean(surrogate_loss(log_prob, batch.log_prob, batch.advantage))

    def mean_kl_hessian(params, obs):
        old = policy(params, obs)
        mean_kl = lambda p: jnp.mean(old.kl(policy(p, obs)))  # noqa: E731
        return jax.linearize(jax.grad(mean_kl), params)[1]

    def ten(make_linear):
        """Each product needs the last one's result, as in conjugate gradient."""

        def run(params, batch):
            product = make_linear(params, batch)
            shrink = lambda x, y: 1e-3 * x + y  # noqa: E731
            body = lambda _, v: jax.tree.map(shrink, v, product(v))  # noqa: E731
            return jax.lax.fori_loop(0, PRODUCTS, body, params)

        return run

    step = functools.partial(purerl.TRPOConfig, cg_tolerance=0.0, backtrack_steps=1)
    return {
        "gradient": ten(lambda _, batch: lambda params: jax.grad(surrogate)(params, batch)),
        "Gauss-Newton product": ten(
            lambda params, batch: purerl.fisher_vector_product(policy, params, batch.obs)
        ),
        "Hessian-of-KL product": ten(lambda params, batch: mean_kl_hessian(params, batch.obs)),
        "line-search try": lambda params, batch: (
            surrogate(params, batch),
            jnp.mean(batch.distribution.kl(policy(params, batch.obs))),
        ),
        "policy step": make_policy_step(network, step(cg_iterations=PRODUCTS)),
    }


def time_pieces(seeds: int, batch: int, width: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of each, a seed, the functions taking turns."""
    import jax

    functions = pieces(width)
    network = purerl.ActorCritic(
        purerl.Discrete(2), purerl.NetworkConfig(hidden_sizes=(width, width))
    )
    keys = jax.random.split(jax.random.key(0), seeds)
    params, samples = jax.vmap(lambda key: make_problem(key, batch, width))(keys)
    old = jax.vmap(lambda p, o: network.apply(p, o)[0])(params, samples.obs)
    arguments = (params, samples._replace(distribution=old))
    compiled = {
        name: jax.jit(purerl.vectorize(function)).lower(*arguments).compile()
        for name, function in functions.items()
    }
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for repeat in range(repeats + 1):
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat:  # the first execution is discarded
                times[name].append(time.perf_counter() - start)
    count = {"gradient": PRODUCTS, "Gauss-Newton product": PRODUCTS}
    count["Hessian-of-KL product"] = PRODUCTS
    return {
        name: 1e3 * statistics.median(values) / count.get(name, 1) / seeds
        for name, values in times.items()
    }


def measure_cost(options: Options) -> list[dict[str, Any]]:
    """At the setting of the speed benchmark, then over batches and widths at one seed."""
    cells = []
    sizes = [(seeds, BATCH, WIDTH) for seeds in options.seeds]
    sizes += [(1, batch, WIDTH) for batch in BATCHES if batch != BATCH]
    sizes += [(1, BATCH, width) for width in WIDTHS if width != WIDTH]
    for seeds, batch, width in sizes:
        ms = time_pieces(seeds, batch, width, options.repeats)
        cells.append({"seeds": seeds, "batch": batch, "width": width, "ms": ms})
        ratio = ms["policy step"] / ms["gradient"]
        text = f"{seeds} seeds, batch {batch}, width {width}: {ratio:.1f} gradients"
        print(text, file=sys.stderr)
    return cells


def iterations_needed(network, params, obs, b, action, tolerance, damping, preconditioner: str):
    """Of conjugate gradient on (F + damping I) x = b, and the residual of the solution itself."""
    import jax
    import jax.numpy as jnp
    import optax

    def policy(params, obs):
        return network.apply(params, obs)[0]

    product = purerl.fisher_vector_product(policy, params, obs)

    def divide():
        diagonal = purerl.fisher_diagonal(policy, params, obs)
        return lambda r: jax.tree.map(lambda x, d: x / (d + damping), r, diagonal)

    def kronecker():
        layers = find_layers(network, params, obs)
        tapped = tap(network, layers, params, obs)
        distribution, value = tapped.output
        score = jax.grad(lambda d: jnp.sum(d.log_prob(action)))(distribution)
        factors = fisher_factors(layers, tapped, (score, jnp.zeros_like(value)))
        inverse = invert_eigenbasis(factors, damping)
        return lambda r: precondition(layers, inverse, r)

    made = {"plain": lambda: None, "diagonal Fisher": divide, "K-FAC": kronecker}[preconditioner]()
    result = purerl.conjugate_gradient(
        product,
        b,
        tolerance=tolerance,
        max_iterations=5000,
        damping=damping,
        preconditioner=made,
    )
    left = jax.tree.map(lambda p, x: p + damping * x, product(result.x), result.x)
    return result.iterations, optax.tree.norm(optax.tree.sub(b, left)) / optax.tree.norm(b)


def compare_preconditioners(solve: Callable[..., Any], problems: Any) -> dict[str, Any]:
    """Iterations to each relative residual, ``[problem][residual]``, with each preconditioner."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    found = {}
    for name in PRECONDITIONERS:
        run = functools.partial(solve, preconditioner=name)
        run = jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))
        iterations, residuals = jax.jit(run)(problems, jnp.array(RESIDUALS))
        if not np.all(residuals <= 1.01 * np.array(RESIDUALS)):
            raise RuntimeError(f"{name}: a residual was not reached: {residuals}")
        found[name] = np.asarray(iterations).tolist()
    return found


def measure_units(options: Options) -> dict[str, Any]:
    """Random policies whose observations come in different units."""
    import jax
    import jax.numpy as jnp

    damping, features = 1e-3, 8
    # Not the small first head of the orthogonal initialization, beside which the damping is large.
    config = purerl.NetworkConfig(hidden_sizes=(32,), orthogonal_init=False)
    network = purerl.ActorCritic(purerl.Discrete(3), config)

    def solve(key, tolerance, preconditioner):
        obs_key, init_key, weight_key, action_key = jax.random.split(key, 4)
        obs = jax.random.normal(obs_key, (512, features))
        params = network.init(init_key, obs)
        # The same policy of the same observations, measured in other units.
        scale = jnp.geomspace(1e-2, 1e2, features)
        first = params["params"]["actor"]["MLP_0"]["Dense_0"]
        first["kernel"] = first["kernel"] / scale[:, None]
        obs = scale * obs
        weight = jax.random.normal(weight_key, (512, 3))
        b = jax.grad(lambda p: jnp.mean(network.apply(p, obs)[0].log_probs() * weight))(params)
        action = network.apply(params, obs)[0].sample(action_key)
        return iterations_needed(
            network, params, obs, b, action, tolerance, damping, preconditioner
        )

    with jax.enable_x64(True):  # rounding would end the plain iteration early
        keys = jax.random.split(jax.random.key(0), options.problems)
        return {"damping": damping, "iterations": compare_preconditioners(solve, keys)}


def measure_met(options: Options) -> list[dict[str, Any]]:
    """The surrogate's gradient, on the batches of runs of TRPO after some iterations."""
    import jax
    import jax.numpy as jnp

    from purerl import rollout as rollouts
    from purerl.algorithms.trpo import make_batch

    experiment = purerl.make_experiment("trpo", MET_ENV)
    train, env, config = experiment.build(), purerl.make_env(MET_ENV), experiment.config
    algorithm = purerl.trpo(config, env.action_space)
    network = purerl.ActorCritic(env.action_space, config.network)

    def problem(state, key):
        act = lambda obs, key: algorithm.act(state.learner, state.normalizer.observe(obs), key)  # noqa: E731
        length = experiment.loop.rollout_length
        _, rollout, _ = rollouts.unroll(act, env, state.actors, key, length)
        seen = {
            name: state.normalizer.observe(getattr(rollout, name)) for name in ("obs", "next_obs")
        }
        params = state.learner.params
        return params, make_batch(network, config, params, rollout._replace(**seen))

    def solve(problem, tolerance, preconditioner, damping):
        params, batch = problem

        def surrogate(params):
            log_prob = network.apply(params, batch.obs)[0].log_prob(batch.action)
            return -jnp.mean(jnp.exp(log_prob - batch.log_prob) * batch.advantage)

        b = jax.grad(surrogate)(params)
        return iterations_needed(
            network, params, batch.obs, b, batch.action, tolerance, damping, preconditioner
        )

    keys = jax.random.split(jax.random.key(0), options.problems)
    states, done, cells = jax.jit(jax.vmap(train.init))(keys), 0, []
    for after in MET_AFTER:
        advance = functools.partial(train.advance, iterations=after - done)
        states, done = jax.jit(jax.vmap(advance))(states)[0], after
        problems = jax.jit(jax.vmap(problem))(states, keys)
        with jax.enable_x64(True):
            wide = jax.tree.map(
                lambda x: x.astype(float) if x.dtype == jnp.float32 else x, problems
            )
            for damping in MET_DAMPINGS:
                at = functools.partial(solve, damping=damping)
                found = compare_preconditioners(at, wide)
                cells.append({"after": after, "damping": damping, "iterations": found})
    return cells


def cost_table(cells: list[dict[str, Any]], seeds: tuple[int, ...]) -> str:
    """What each piece costs at the setting of the speed benchmark."""
    chosen = [
        next(c for c in cells if (c["seeds"], c["batch"], c["width"]) == (n, BATCH, WIDTH))
        for n in seeds
    ]
    titles = [f"{n} seed{'s' * (n > 1)}" for n in seeds]
    rows = [f"| in gradients (ms a seed) | {' | '.join(titles)} |", "|---" * (len(seeds) + 1) + "|"]
    for name in chosen[0]["ms"]:
        texts = [f"{c['ms'][name] / c['ms']['gradient']:.2f} ({c['ms'][name]:.2f})" for c in chosen]
        rows.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(rows)


def preconditioner_table(found: dict[str, Any], first: str = "relative residual") -> str:
    """Median (lowest - highest) number of iterations."""
    rows = [f"| {first} | {' | '.join(PRECONDITIONERS)} |", "|---" * (1 + len(found)) + "|"]
    for i, residual in enumerate(RESIDUALS):
        texts = []
        for name in PRECONDITIONERS:
            counts = sorted(problem[i] for problem in found[name])
            texts.append(f"{statistics.median(counts):g} ({counts[0]} - {counts[-1]})")
        rows.append(f"| {residual:g} | {' | '.join(texts)} |")
    return "\n".join(rows)


def plot(record: dict[str, Any], path: Path) -> None:
    """Cost against batch and width; iterations against the residual."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.4), layout="constrained")
    batch_axes, width_axes, cg_axes = figure.subplots(1, 3)
    of_one = [c for c in record["cells"] if c["seeds"] == 1]
    for axes, varied, other, fixed in (
        (batch_axes, "batch", "width", WIDTH),
        (width_axes, "width", "batch", BATCH),
    ):
        line = sorted((c for c in of_one if c[other] == fixed), key=lambda c: c[varied])
        for name in line[0]["ms"]:
            axes.loglog([c[varied] for c in line], [c["ms"][name] for c in line], "o-", label=name)
        axes.set(xlabel=varied, ylabel="ms", title=f"{other} {fixed}, 1 seed")
        axes.set_xticks([c[varied] for c in line], [str(c[varied]) for c in line], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    width_axes.legend(fontsize="small")
    found = record["units"]["iterations"]
    for name in PRECONDITIONERS:
        counts = list(zip(*found[name], strict=True))
        (line,) = cg_axes.loglog(
            RESIDUALS, [statistics.median(c) for c in counts], "o-", label=name
        )
        cg_axes.fill_between(
            RESIDUALS,
            [min(c) for c in counts],
            [max(c) for c in counts],
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    cg_axes.set(
        xlabel="relative residual",
        ylabel="iterations of conjugate gradient",
        title=f"observations in different units, {len(found['plain'])} problems",
    )
    cg_axes.invert_xaxis()
    cg_axes.grid(alpha=0.3)
    cg_axes.legend()
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    """Measures, prints and writes."""
    from purerl.provenance import provenance

    files = [options.output.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
    present = [file.name for file in files if file.exists()]
    if present and not options.force:
        raise SystemExit(f"{', '.join(present)} exist(s) already: give --force or another --output")
    purerl.use_all_cores()
    settings = {k: v for k, v in vars(options).items() if k not in ("output", "force")}
    record = {
        "benchmark": "second_order",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **provenance(),
        "options": settings,
        "residuals": RESIDUALS,
        "units": measure_units(options),
        "met": measure_met(options),
        "cells": measure_cost(options),
    }
    tables = [
        cost_table(record["cells"], options.seeds),
        preconditioner_table(record["units"]["iterations"]),
    ]
    for cell in record["met"]:
        title = f"{MET_ENV}, after {cell['after']} iterations, damping {cell['damping']:g}"
        tables.append(preconditioner_table(cell["iterations"], title))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files[0].write_text(json.dumps(record, indent=1) + "\n")
    files[1].write_text("\n\n".join(tables) + "\n")
    plot(record, files[2])
    print("\n\n".join(tables))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
