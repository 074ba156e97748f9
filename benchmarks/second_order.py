"""What the second-order pieces cost.

    python benchmarks/second_order.py            # some minutes; nothing else should run meanwhile

Cost: one policy step of TRPO with 10 iterations of conjugate gradient and one try of the line
search, in units of one gradient of the surrogate on the same batch, all of it in one process and in
turns; where the time goes; the Fisher-vector product as Gauss-Newton (what purerl uses) beside the
Hessian of the mean KL by forward over reverse; and all of this against the batch and the network.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from record import circumstances, result_files

import purerl

HERE = Path(__file__).resolve().parent
PRODUCTS = 10
BATCH, WIDTH = 2048, 64
BATCHES = (256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = (16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    repeats: int = 25
    """Timed executions of each function; the median counts."""
    seeds: tuple[int, ...] = (1, 16)
    """Policies at the same time, sharded over the cores."""
    output: Path = HERE / "results" / "second_order.json"
    """Result file; picture and table go beside it."""
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
    from purerl.pieces.losses import surrogate_loss

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


def plot(record: dict[str, Any], path: Path) -> None:
    """Cost against batch and width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 4.4), layout="constrained")
    batch_axes, width_axes = figure.subplots(1, 2)
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
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    """Measures, prints and writes."""
    files = result_files(options.output, (".json", ".md", ".png"), options.force)
    purerl.use_all_cores()
    record = {
        **circumstances("second_order", options),
        "cells": measure_cost(options),
    }
    table = cost_table(record["cells"], options.seeds)
    files[0].write_text(json.dumps(record, indent=1) + "\n")
    files[1].write_text(table + "\n")
    plot(record, files[2])
    print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
