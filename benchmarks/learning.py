"""Learning results: many seeds of each algorithm on each environment, at the presets.

    python benchmarks/learning.py                        # every cell (those without a result yet)
    python benchmarks/learning.py --only ppo_clip-CartPole-v1 --force
    python benchmarks/learning.py --report               # only writes the tables again

Each cell of ``cells.py`` writes ``results/learning/ALGORITHM-ENV.json`` with the configuration,
commit, versions, hardware and every seed's curve; the tables in ``benchmarks/README.md`` and in the
documentation are made from them alone (``learning_tables.py``), published figures beside them
(``published.toml``).
"""

import dataclasses
import datetime
import json
import pathlib
import sys
from typing import Any

import learning_tables
import numpy as np
import tyro
from cells import ACKTR_ENVS, CELLS, Cell, short
from learning_tables import RESULTS
from matplotlib.figure import Figure

import purerl
from purerl.host.report.plotting import draw_curves, plot_curves, save_plot
from purerl.host.store.provenance import provenance

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # by label: steps [E], returns [S, E]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Learning results of all algorithms."""

    only: tuple[str, ...] = ()
    """Names of cells (ALGORITHM-ENV); all by default."""
    seeds: int | None = None
    """Instead of each cell's own number."""
    seed: int = 0
    """Random seed."""
    force: bool = False
    """Measure again where there is a result, and replace it."""
    report: bool = False
    """Measure nothing, only write the tables and draw the pictures."""


def measure(cell: Cell, seeds: int, seed: int) -> dict[str, Any]:
    """Trains one cell."""
    experiment = purerl.make_experiment(cell.algorithm, cell.env, **cell.changes)
    result = purerl.run(experiment, seeds=seeds, seed=seed)
    print(f"{cell.name}: {result.summary()}", flush=True)
    return {
        "name": cell.name,
        "target": cell.target,
        "above": cell.above,
        "last": cell.last,
        "experiment": experiment.to_json(),
        "seeds": seeds,
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        **provenance(),
        "seconds": result.seconds,
        "steps_per_second": result.steps_per_second,
        "failed": result.failed.tolist(),
        "steps": result.steps.tolist(),
        "returns": np.round(result.returns, 3).tolist(),
    }


def report() -> None:
    """Fills the marked parts of the pages, and draws a picture for each environment."""
    results = learning_tables.read()
    texts = learning_tables.sections(results)
    for page in PAGES:
        page.write_text(learning_tables.filled(page.read_text(), texts))
    by_env: dict[str, Curves] = {}
    for cell in (cell for cell in CELLS if cell.name in results):
        result = results[cell.name]
        curve = np.array(result["steps"]), np.array(result["returns"])
        by_env.setdefault(short(cell.env), {})[cell.label] = curve
    for env, curves in by_env.items():
        plot_env(env, curves)
    plot_acktr(results)


def plot_env(env: str, curves: Curves) -> None:
    """The algorithms; those with and without a memory; DQN with its switches."""
    pictures = {
        env: [name for name in curves if "[" not in name],
        f"memory-{env}": [x for x in curves if x.endswith(("[gru]", "[memoryless]"))],
        f"dqn-{env}": [name for name in curves if name.startswith("dqn")],
    }
    for picture, names in pictures.items():
        if len(names) > 1 or (names and picture == env):
            found = {name: curves[name] for name in names}
            save_plot(plot_curves(found, env), RESULTS / f"{picture}.png")


def plot_acktr(found: learning_tables.Results) -> None:
    """A2C beside ACKTR, per step and per second of training all seeds at the same time."""
    envs = (*ACKTR_ENVS, "Breakout-MinAtar")
    envs = [env for env in envs if {f"a2c-{env}", f"acktr-{env}"} <= {*found}]
    if not envs:
        return
    figure = Figure(figsize=(4.6 * len(envs), 7.2), layout="constrained")
    axes = figure.subplots(2, len(envs), squeeze=False)
    for column, env in enumerate(envs):
        by_step, by_second = {}, {}
        for name in ("a2c", "acktr", "acktr[full]", "acktr[light]"):
            if (result := found.get(f"{name}-{env}")) is None:
                continue
            steps, returns = np.array(result["steps"]), np.array(result["returns"])
            by_step[name] = steps, returns
            by_second[name] = steps * result["seeds"] / result["steps_per_second"], returns
        draw_curves(axes[0, column], by_step)
        draw_curves(axes[1, column], by_second)
        axes[0, column].set(title=env, xlabel="environment steps", ylabel="return, IQM")
        axes[1, column].set(xlabel="seconds of training", ylabel="return, IQM")
    save_plot(figure, RESULTS / "acktr-a2c.png")


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    names = [cell.name for cell in CELLS]
    for name in options.only:
        if name not in names:
            print(f"unknown cell {name!r}, wanted one of {', '.join(names)}", file=sys.stderr)
            return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    for cell in [] if options.report else CELLS:
        path = RESULTS / f"{cell.name}.json"
        if options.only and cell.name not in options.only:
            continue
        if path.exists() and not options.force:
            print(f"{cell.name}: has a result; --force measures again")
            continue
        result = measure(cell, options.seeds or cell.seeds, options.seed)
        path.write_text(json.dumps(result) + "\n")
    report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
