"""The natural gradient by samples beside conjugate gradient: what each costs, over B and P.

    python benchmarks/sample_space.py          # some minutes; nothing else should run meanwhile

One direction ``(F + c I)^-1 g`` of a policy with two hidden layers: by ten iterations of conjugate
gradient on products with F; by a Cholesky decomposition of the inner products of B scores, which is
``solver="samples"``; by ten iterations of conjugate gradient on those; and by advantages that make
the plain gradient the natural one (RAT). P is the number of the policy's parameters. All from the
same gradient, in turns; the table has the median ratios to the first (below 1: the samples are
cheaper) and the milliseconds.
"""

import dataclasses
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import tyro
from record import circumstances, result_files

import purerl

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    batches: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    """Samples that the Fisher matrix is taken over."""
    widths: tuple[int, ...] = (16, 64, 256, 512)
    """Of the two hidden layers."""
    features: int = 17
    """Of an observation."""
    repeats: int = 9
    """Timed executions of each; the median counts."""
    output: Path = HERE / "results" / "sample_space.json"
    """Result file; picture and table go beside it."""
    force: bool = False
    """Whether to overwrite the result files."""


def problem(batch: int, width: int, features: int):
    """A Gaussian policy, a batch of its own actions, and three functions of the parameters."""
    import jax

    from purerl.algorithms.trpo import make_surrogate
    from purerl.second_order import sample_space

    config = purerl.NetworkConfig(hidden_sizes=(width, width))
    network = purerl.ActorCritic(purerl.Box((6,)), config)
    keys = jax.random.split(jax.random.key(0), 4)
    obs = jax.random.normal(keys[0], (batch, features))
    params = network.init(keys[1], obs)
    policy = network.apply(params, obs)[0]
    action, advantage = policy.sample(keys[2]), jax.random.normal(keys[3], (batch,))
    sample = purerl.OnPolicyBatch(obs, action, policy.log_prob(action), None, advantage, None)
    g = jax.grad(make_surrogate(network))(params, sample)

    def by_products(params, g):
        fisher = purerl.fisher_vector_product(lambda p, x: network.apply(p, x)[0], params, obs)
        options = dict(damping=0.1, tolerance=0.0, max_iterations=10)
        return purerl.conjugate_gradient(fisher, g, **options).x

    def scores_of(params):
        log_prob = lambda p, x: network.apply(p, x[0])[0].log_prob(x[1])  # noqa: E731
        return sample_space.score_matrix(log_prob, params, (obs, action))

    def by_samples(params, g):
        return sample_space.solve_by_samples(scores_of(params), g, 0.1).x

    def by_iterations(params, g):
        scores = scores_of(params)
        options = dict(damping=0.1 * batch, tolerance=0.0, max_iterations=10)
        u = purerl.conjugate_gradient(lambda v: scores.gram @ v, scores.push(g), **options).x
        return jax.tree.map(lambda v, w: (v - w) / 0.1, g, scores.pull(u))

    def by_advantages(params, g):
        del g
        changed = sample_space.transform_advantages(scores_of(params), advantage, 0.1)
        return jax.grad(make_surrogate(network))(params, sample._replace(advantage=changed))

    leaves = {k: v for k, v in params["params"].items() if k not in ("critic", "value_head")}
    size = sum(x.size for x in jax.tree.leaves(leaves))
    functions = {"cg": by_products, "samples": by_samples, "iterations": by_iterations}
    functions["advantages"] = by_advantages
    return size, functions, (params, g)


def measure(batch: int, width: int, options: Options) -> dict[str, Any]:
    """Milliseconds of each."""
    import jax

    size, functions, arguments = problem(batch, width, options.features)
    compiled = {name: jax.jit(f).lower(*arguments).compile() for name, f in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for repeat in range(options.repeats + 1):
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat:  # the first execution is discarded
                times[name].append(1e3 * (time.perf_counter() - start))
    cell: dict[str, Any] = {"batch": batch, "width": width, "params": size}
    for name, own in times.items():
        ratios = [t / c for t, c in zip(own, times["cg"], strict=True)]
        cell |= {name: statistics.median(own), f"{name}_ratio": statistics.median(ratios)}
    print(cell, file=sys.stderr, flush=True)
    return cell


def table(cells: list[dict[str, Any]], batches: tuple[int, ...]) -> str:
    """Ratios of the time by samples: Cholesky's, iterations', advantages'; and milliseconds, the
    last by conjugate gradient on products with F. A row is a network.
    """
    rows = [f"| P (width) | {' | '.join(f'B = {b}' for b in batches)} |"]
    rows.append("|---" * (len(batches) + 1) + "|")
    for width, line in itertools.groupby(cells, key=lambda cell: cell["width"]):
        found = list(line)
        ways = ("samples", "iterations", "advantages")
        texts = [
            ", ".join(f"{c[way + '_ratio']:.2f}" for way in ways)
            + f" ({', '.join(f'{c[way]:.1f}' for way in (*ways, 'cg'))})"
            for c in found
        ]
        rows.append(f"| {found[0]['params']:,} ({width}) | {' | '.join(texts)} |")
    return "\n".join(rows)


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    """The ratio against B, a line a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for _, line in itertools.groupby(cells, key=lambda cell: cell["width"]):
        found = list(line)
        label = f"P = {found[0]['params']:,}"
        axes.loglog(
            [c["batch"] for c in found], [c["samples_ratio"] for c in found], "o-", label=label
        )
    axes.axhline(1.0, color="gray", linewidth=1)
    axes.set(xlabel="B", ylabel="time by samples / by conjugate gradient")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    """Measures, prints and writes."""
    files = result_files(options.output, (".json", ".md", ".png"), options.force)
    purerl.use_all_cores()
    sizes = itertools.product(options.widths, options.batches)
    cells = [measure(batch, width, options) for width, batch in sizes]
    record = {**circumstances("sample_space", options), "cells": cells}
    files[0].write_text(json.dumps(record, indent=1) + "\n")
    files[1].write_text(table(cells, options.batches) + "\n")
    plot(cells, files[2])
    print(table(cells, options.batches))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
