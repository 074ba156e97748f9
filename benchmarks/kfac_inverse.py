"""Ways to invert K-FAC's factors: which is fastest, at the sizes of a network, for many seeds.

    python benchmarks/kfac_inverse.py
    python benchmarks/kfac_inverse.py --hidden-sizes 256 256 --inputs 8 --seeds 1 64

The factors are second moments of 160 random tanh features, two trunks of them (actor and critic).
``eigh`` and ``cholesky`` are what ``damping_kind`` "eigenbasis" and "factored" do, without the
damping's bookkeeping; ``inv`` is by LU; ``newton_schulz`` iterates X <- X (2 I - M X) on products
alone, from a bound on the norm. ``apart`` calls each matrix on its own, ``grouped`` all of one size
at once. A time is the median of ``--repeats``, of all factors of one seed; the residual is the
largest entry of M X - I.
"""

import collections
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.scipy.linalg import cho_factor, cho_solve
from record import circumstances, result_files

import purerl

HERE = Path(__file__).resolve().parent


def identity(matrix: jax.Array) -> jax.Array:
    return jnp.eye(len(matrix), dtype=matrix.dtype)


def eigh(matrix: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors / values) @ vectors.T


def cholesky(matrix: jax.Array) -> jax.Array:
    return cho_solve(cho_factor(matrix), identity(matrix))


def newton_schulz(iterations: int, matrix: jax.Array) -> jax.Array:
    start = identity(matrix) / jnp.max(jnp.sum(jnp.abs(matrix), axis=0))
    step = lambda _, x: x @ (2 * identity(matrix) - matrix @ x)  # noqa: E731
    return jax.lax.fori_loop(0, iterations, step, start)


METHODS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "eigh": eigh,
    "cholesky": cholesky,
    "inv": jnp.linalg.inv,
    "newton_schulz 12": functools.partial(newton_schulz, 12),
    "newton_schulz 24": functools.partial(newton_schulz, 24),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of what is inverted."""

    inputs: int = 4
    """Size of an observation."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of each trunk."""
    outputs: tuple[int, ...] = (2, 1)
    """Width of each trunk's head."""
    seeds: tuple[int, ...] = (1, 16)
    """Numbers of seeds side by side."""
    damping: float = 0.1
    """Added to each factor's diagonal: the root of K-FAC's epsilon."""
    repeats: int = 30
    """Measurements, of which the median counts."""
    output: Path = HERE / "results" / "kfac_inverse.json"
    """Result file; the table goes beside it."""
    force: bool = False
    """Whether to overwrite the result files."""


def factors(options: Options, seeds: int) -> dict[int, jax.Array]:
    """``{n: [seeds, count, n, n]}``, damped."""
    sizes: collections.Counter[int] = collections.Counter()
    for head in options.outputs:
        widths = [options.inputs, *options.hidden_sizes]
        sizes.update([*(width + 1 for width in widths), *options.hidden_sizes, head])
    rng = np.random.default_rng(0)
    made = {}
    for n, count in sizes.items():
        features = np.tanh(rng.normal(size=(seeds, count, 160, n)) @ rng.normal(size=(n, n)) * 0.3)
        moments = np.swapaxes(features, -1, -2) @ features / 160 + options.damping * np.eye(n)
        made[n] = jnp.array(moments, jnp.float32)
    return made


def invert(method: Callable[[jax.Array], jax.Array], grouped: bool, matrices: dict) -> dict:
    """All factors of one seed."""
    if grouped:
        return {n: jax.vmap(method)(stack) for n, stack in matrices.items()}
    return {n: jnp.stack([method(matrix) for matrix in stack]) for n, stack in matrices.items()}


def median_seconds(function: Callable, argument: dict, repeats: int) -> float:
    jax.block_until_ready(function(argument))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(options: Options) -> list[dict]:
    """A cell for each method, grouped and apart, at each number of seeds."""
    cells = []
    for seeds in options.seeds:
        matrices = factors(options, seeds)
        for name, method in METHODS.items():
            for grouped in (False, True):
                invert_all = functools.partial(invert, method, grouped)
                function = jax.jit(purerl.vectorize(invert_all))
                inverses = function(matrices)
                residual = max(
                    np.abs(np.asarray(matrices[n]) @ np.asarray(x) - np.eye(n)).max()
                    for n, x in inverses.items()
                )
                seconds = median_seconds(function, matrices, options.repeats)
                calls = "grouped" if grouped else "apart"
                cells.append(
                    {
                        "method": name,
                        "calls": calls,
                        "seeds": seeds,
                        "us": 1e6 * seconds / seeds,
                        "residual": float(residual),
                    }
                )
    return cells


def table(cells: list[dict], seeds: tuple[int, ...]) -> str:
    """A row for each method, a column for each number of seeds."""
    titles = " | ".join(f"{n} seed{'s' * (n > 1)}, us a seed" for n in seeds)
    rows = [f"| method | calls | {titles} | residual |", "|---" * (3 + len(seeds)) + "|"]
    for cell in (cell for cell in cells if cell["seeds"] == seeds[0]):
        same = [c for c in cells if all(c[k] == cell[k] for k in ("method", "calls"))]
        times = " | ".join(f"{c['us']:,.0f}" for c in same)
        worst = max(c["residual"] for c in same)
        rows.append(f"| {cell['method']} | {cell['calls']} | {times} | {worst:.0e} |")
    return "\n".join(rows)


def main(options: Options) -> None:
    """Measures, prints and writes."""
    files = result_files(options.output, (".json", ".md"), options.force)
    purerl.use_all_cores()
    cells = measure(options)
    record = {
        **circumstances("kfac_inverse", options),
        "cells": cells,
    }
    files[0].write_text(json.dumps(record, indent=1) + "\n")
    files[1].write_text(table(cells, options.seeds) + "\n")
    print(table(cells, options.seeds))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
