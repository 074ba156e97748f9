"""What second order is worth: steps and seconds to a return, with each way to take the curvature.

    python benchmarks/second_order_worth.py                    # every cell without a result yet
    python benchmarks/second_order_worth.py --only acktr[ekfac] --envs Pendulum-v1 --force

ACKTR with damping in the eigenbasis and with EKFAC, TRPO on a quarter of the samples by conjugate
gradient and by their scores, PPO with K-FAC on MuJoCo, at the presets; the defaults are taken from
``learning.py``'s results, PPO on the other tasks from ``ppo_kfac.json``. The table has the first
evaluation's step at which a seed's mean return reaches the target (interquartile mean over the
seeds that do, and how many do), the seconds after which all seeds together have made so many, and
the return at the end. Seconds are of training and evaluating, on machines that did other things
too; those of a row of ``learning.py`` were measured on another day.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import tyro
from record import circumstances

import purerl

HERE = Path(__file__).resolve().parent
TARGETS = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "Pendulum-v1": -250.0}
MUJOCO = {"envpool:Hopper-v5": 1000.0, "envpool:HalfCheetah-v5": 2000.0}
TARGETS |= MUJOCO
QUARTER = {"fisher_fraction": 0.25}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "acktr[eigenbasis]": ("acktr", {"damping_kind": "eigenbasis"}),
    "acktr[ekfac]": ("acktr", {"damping_kind": "ekfac"}),
    "trpo[cg, a quarter]": ("trpo", QUARTER),
    "trpo[samples, a quarter]": ("trpo", QUARTER | {"solver": "samples"}),
    "ppo_clip[K-FAC]": ("ppo_kfac:of_preset", {}),  # on MuJoCo
}
ORDER = (
    *("acktr[factored]", "acktr[eigenbasis]", "acktr[ekfac]"),
    *("trpo[cg]", "trpo[cg, a quarter]", "trpo[samples, a quarter]"),
    *("ppo_clip[Adam]", "ppo_clip[K-FAC]"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    envs: tuple[str, ...] = tuple(TARGETS)
    """Environments."""
    only: tuple[str, ...] = tuple(VARIANTS)
    """Variants."""
    seeds: int = 16
    """Seeds of each cell; of MuJoCo 5."""
    output: Path = HERE / "results" / "second_order_worth.json"
    """Result file, to which cells are added; the table goes beside it."""
    force: bool = False
    """Measure again where there is a result."""


def measure(name: str, env_name: str, options: Options) -> dict[str, Any]:
    """One variant on one environment."""
    import numpy as np

    algorithm, changes = VARIANTS[name]
    if algorithm not in purerl.ALGORITHMS:
        loop = purerl.make_experiment("ppo_clip", env_name).loop
        changes = vars(loop) | {"preset_of": env_name}
    experiment = purerl.make_experiment(algorithm, env_name, **changes)
    result = purerl.run(experiment, seeds=5 if env_name in MUJOCO else options.seeds)
    return {
        "name": name,
        "env": env_name,
        **circumstances("second_order_worth", options),
        "experiment": experiment.to_json(),
        "seconds": result.seconds["training"] + result.seconds["evaluating"],
        "failed": int(result.failed.sum()),
        "steps": result.steps.tolist(),
        "returns": np.round(result.returns, 2).tolist(),
    }


def steps_to(cell: dict[str, Any], target: float) -> list[int]:
    """Of each seed that reaches the target, the first evaluation's step at which it has."""
    found = []
    for returns in cell["returns"]:
        reached = [s for s, r in zip(cell["steps"], returns, strict=True) if r >= target]
        found += reached[:1]
    return found


def row(cell: dict[str, Any]) -> str:
    """Of the table."""
    import numpy as np

    reached, seeds = steps_to(cell, TARGETS[cell["env"]]), len(cell["returns"])
    steps = seconds = "-"
    if len(reached) > 1:
        low, high = purerl.iqm_interval(np.array(reached, float))
        steps = f"{purerl.iqm(np.array(reached, float)):,.0f} [{low:,.0f}, {high:,.0f}]"
        share = cell["seconds"] / cell["steps"][-1]
        middle, low, high = (x * share for x in (purerl.iqm(np.array(reached, float)), low, high))
        seconds = f"{middle:.1f} [{low:.1f}, {high:.1f}]"
    last = np.array(cell["returns"])[:, -1]
    low, high = purerl.iqm_interval(last)
    return (
        f"| {cell['env']} | {cell['name']} | {steps} | {seconds} | {len(reached)} of {seeds} "
        f"| {purerl.iqm(last):.1f} [{low:.1f}, {high:.1f}] | {last.min():.1f} "
        f"| {cell['seconds']:.0f} |"
    )


def with_others(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells, and what other benchmarks measured at the same presets, by environment."""
    cells = list(cells)
    for env in TARGETS:
        defaults = {"acktr[factored]": "acktr", "trpo[cg]": "trpo"}
        if env in MUJOCO:
            defaults["ppo_clip[Adam]"] = "ppo_clip"
        for name, whose in defaults.items():
            file = f"{whose}-{env.rpartition(':')[2]}.json"
            there = json.loads((HERE / "results" / "learning" / file).read_text())
            seconds = there["seconds"]["training"] + there["seconds"]["evaluating"]
            cells.append({**there, "name": name, "env": env, "seconds": seconds})
    for cell in json.loads((HERE / "results" / "ppo_kfac.json").read_text())["cells"]:
        for step in ("Adam", "K-FAC"):
            cells.append({"name": f"ppo_clip[{step}]", "env": cell["env"], **cell[step]})
    envs = list(TARGETS)
    return sorted(cells, key=lambda c: (envs.index(c["env"]), ORDER.index(c["name"])))


def main(options: Options) -> None:
    """Measures what is missing, prints and writes."""
    purerl.use_all_cores()
    path = options.output
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    for env in options.envs:
        for name in options.only:
            if name == "ppo_clip[K-FAC]" and env not in MUJOCO:
                continue
            same = [c for c in cells if (c["name"], c["env"]) == (name, env)]
            if same and not options.force:
                continue
            cell = measure(name, env, options)
            print(row(cell), file=sys.stderr, flush=True)
            cells = [c for c in cells if c not in same] + [cell]
            path.write_text(json.dumps({"cells": cells}) + "\n")
    head = "| environment | variant | steps to the target | seconds | seeds that reach it "
    head += "| return at the end | min | s in all |"
    rows = [head, "|---" * 8 + "|", *map(row, with_others(cells))]
    path.with_suffix(".md").write_text("\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
