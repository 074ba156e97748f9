"""How TRPO's KL bound and line search are met over training.

    python benchmarks/trust_region.py    # CartPole and Acrobot, 8 seeds at the presets

Each policy step of each seed: the KL divergence that it made beside the bound, the fraction of the
full step that the line search took (0: refused), the improvement of the surrogate beside what its
gradient promises, and the residual that conjugate gradient left. Medians over seeds and tenths of
the run.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from record import circumstances

import purerl
from purerl.host.report.plotting import save_plot

OUTPUT = Path(__file__).resolve().parent / "results" / "trust_region.json"
FIELDS = (
    *("kl", "step_fraction", "accepted", "improvement", "expected_improvement"),
    *("cg_residual", "cg_iterations"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the experiment."""

    envs: tuple[str, ...] = ("CartPole-v1", "Acrobot-v1")
    """Environments."""
    seeds: int = 8
    """Of each."""
    report: bool = False
    """Train nothing."""
    output: Path = OUTPUT
    """Result file; table and picture go beside it."""


def measure(env: str, options: Options) -> dict[str, Any]:
    """Every update of every seed."""
    experiment = purerl.make_experiment("trpo", env, evaluations=0)
    keys = jax.random.split(jax.random.key(0), options.seeds)
    metrics = jax.jit(purerl.vectorize(experiment.build().train))(keys).metrics
    found = {name: np.asarray(metrics.info[name], float) for name in FIELDS}
    return {
        "env": env,
        **circumstances("trust_region", options),
        "experiment": experiment.to_json(),
        "steps": np.asarray(metrics.step[0]).tolist(),
        **{
            name: [[float(f"{x:.4g}") for x in row] for row in rows] for name, rows in found.items()
        },
    }


def row(cell: dict[str, Any], tenth: slice, label: str) -> str:
    """Of the table."""
    all_steps = {name: np.array(cell[name])[:, tenth] for name in FIELDS}
    found = {name: x[all_steps["accepted"] > 0] for name, x in all_steps.items()}
    bound, fraction = cell["experiment"]["config"]["max_kl"], found["step_fraction"]
    low, median, high = np.quantile(found["kl"] / bound, [0.05, 0.5, 0.95])
    kept = found["improvement"] / found["expected_improvement"]
    return (
        f"| {cell['env']} | {label} | {1 - all_steps['accepted'].mean():.1%} "
        f"| {np.mean(fraction == 1):.1%} | {fraction.mean():.2f} "
        f"| {median:.2f} ({low:.2f} - {high:.2f}) | {np.median(kept):.2f} "
        f"| {np.median(found['cg_residual']):.3f} |"
    )


def table(cells: list[dict[str, Any]]) -> str:
    """Tenths of the run."""
    rows = [
        "| environment | part | refused | taken in full | fraction of a step taken | KL / bound "
        "| improvement / promised | CG residual |",
        "|---" * 8 + "|",
    ]
    for cell in cells:
        ends = np.linspace(0, len(cell["steps"]), 11).astype(int)
        for i in (0, 1, 4, 9):
            rows.append(row(cell, slice(ends[i], ends[i + 1]), f"tenth {i + 1}"))
        rows.append(row(cell, slice(None), "all"))
    return "\n".join(rows) + "\n"


def plot(cells: list[dict[str, Any]]) -> Figure:
    """KL and fraction of a step against environment steps."""
    figure = Figure(figsize=(4.6 * len(cells), 6.2), layout="constrained")
    axes = figure.subplots(2, len(cells), squeeze=False)
    for column, cell in enumerate(cells):
        bound = cell["experiment"]["config"]["max_kl"]
        for part, name in zip(axes[:, column], ("kl", "step_fraction"), strict=True):
            low, middle, high = np.quantile(np.array(cell[name]), [0.1, 0.5, 0.9], axis=0)
            part.fill_between(cell["steps"], low, high, alpha=0.3, linewidth=0)
            part.plot(cell["steps"], middle)
            part.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:g}k")
            part.grid(alpha=0.3)
        axes[0, column].axhline(bound, color="black", linestyle=":", label="bound")
        axes[0, column].set(title=cell["env"], ylabel="KL divergence of an update, nats")
        axes[0, column].set_ylim(bottom=0)
        axes[0, column].legend()
        axes[1, column].set(xlabel="environment steps", ylabel="fraction of the full step taken")
        axes[1, column].set_ylim(-0.05, 1.05)
    return figure


def main(options: Options) -> None:
    """Trains, writes table and picture."""
    purerl.use_all_cores()
    path = options.output
    if options.report:
        cells = json.loads(path.read_text())["cells"]
    else:
        cells = []
        for env in options.envs:
            cells.append(measure(env, options))
            path.write_text(json.dumps({"cells": cells}) + "\n")
    path.with_suffix(".md").write_text(table(cells))
    save_plot(plot(cells), path.with_suffix(".png"))
    print(table(cells), end="")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
