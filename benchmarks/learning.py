"""Learning results: many seeds of each algorithm on each environment, at the presets.

    python benchmarks/learning.py                        # every cell (those without a result yet)
    python benchmarks/learning.py --only ppo_clip-CartPole-v1 --force
    python benchmarks/learning.py --report               # only writes the table again

Each cell writes ``results/learning/ALGORITHM-ENV.json`` with the configuration, commit, versions,
hardware and every seed's curve; the table in ``benchmarks/README.md`` is made from them alone.
"""

import dataclasses
import datetime
import json
import pathlib
import sys
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

import purerl
from purerl.host.presets import preset
from purerl.host.report.plotting import draw_curves, plot_curves, save_plot
from purerl.host.store.provenance import provenance

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "learning"
README = HERE / "README.md"
ACKTR_ENVS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table."""

    algorithm: str
    env: str
    target: float | None = None  # IQM to reach; None: only stated
    above: float | None = None  # count the seeds whose return is above this
    last: int = 1  # evaluations whose mean is a seed's result
    seeds: int = 16
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    suffix: str = ""

    @property
    def name(self) -> str:
        """Of the row and of its file."""
        return f"{self.algorithm}{self.suffix}-{short(self.env)}"


def short(env: str) -> str:
    """An environment's name; of an import path the last part."""
    return env.rpartition(":")[2]


# A small trunk and memory: what has to be remembered is little.
SMALL = {"hidden_sizes": (32,), "memory_size": 32, "num_envs": 16, "rollout_length": 128}
SMALL |= {"evaluation_episodes": 128}
POSITIONS = {"hidden_sizes": (64,), "memory_size": 32, "steps": 500_000, "evaluations": 10}
POSITIONS |= {"evaluation_episodes": 32}
# By environment: steps, target with a memory, and the numbers of each algorithm.
MEMORY_TASKS: dict[str, tuple[float | None, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "memory_tasks:memory_chain_10": (0.9, SMALL | {"steps": 100_000}, {}),
    "memory_tasks:memory_chain_30": (0.9, SMALL | {"steps": 200_000, "memory_span": 60}, {}),
    "memory_tasks:t_maze": (0.9, SMALL | {"steps": 100_000}, {}),
    "memory_tasks:cartpole_positions": (
        450,
        POSITIONS,
        {
            "ppo_clip": {"num_envs": 16, "rollout_length": 128, "sequence_length": 32}
            | {"learning_rate": 1e-3},
            "trpo": {"num_envs": 32, "rollout_length": 64},
        },
    ),
    "CartPole-v1": (None, {"hidden_sizes": (64,)}, {}),
    "UmbrellaChain-bsuite": (None, SMALL | {"steps": 100_000}, {}),
}


def memory_cells() -> list[Cell]:
    """Each task with and without a memory, which is the only difference."""
    return [
        Cell(
            algorithm=algorithm,
            env=env,
            target=target if memory != "none" else None,
            changes=_of_memory(memory, numbers | own.get(algorithm, {})),
            suffix=f"[{'gru' if memory == 'gru' else 'memoryless'}]",
        )
        for env, (target, numbers, own) in MEMORY_TASKS.items()
        for algorithm in ("ppo_clip", "trpo")
        for memory in ("gru", "none")
    ]


# By algorithm: what is wanted on each task after 1 M steps; the others are only stated.
MUJOCO = (
    "Hopper",
    "Walker2d",
    "HalfCheetah",
    "InvertedDoublePendulum",
    "Swimmer",
    "Reacher",
    "Ant",
)
MUJOCO_WANTED: dict[str, tuple[float | None, ...]] = {
    "ppo_clip": (2200, 3000, 3000, 7000, None, None, 1500),
    "trpo": (1900, 2800, 1800, 7000, None, None, 1500),
    "acktr": (2000, 1000, 1400, 7000, None, None, 1000),
    "npg": (1600, 2000, 2200, 7000, None, None),
    "a2c": (None,) * 6,
    "policy_gradient": (None,) * 6,
}


def _of_memory(memory: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Sequences are for a memory alone."""
    without = {name: x for name, x in numbers.items() if name != "sequence_length"}
    return {"memory": memory} | (without if memory == "none" else numbers)


CELLS = [
    Cell(algorithm="ppo_clip", env="CartPole-v1", target=475),
    Cell(algorithm="ppo_clip", env="Acrobot-v1", target=-90),
    Cell(algorithm="ppo_clip", env="Pendulum-v1", target=-250),
    Cell(algorithm="ppo_clip", env="Breakout-MinAtar", target=15, seeds=4),
    Cell(algorithm="ppo_penalty", env="CartPole-v1", target=475),
    Cell(algorithm="a2c", env="CartPole-v1", target=480),
    Cell(algorithm="a2c", env="Acrobot-v1"),
    Cell(algorithm="a2c", env="Pendulum-v1"),
    # With ACKTR's convolutional network, to compare.
    Cell(
        algorithm="a2c",
        env="Breakout-MinAtar",
        seeds=4,
        changes={"network": preset("acktr", "Breakout-MinAtar")["network"]},
    ),
    Cell(algorithm="trpo", env="CartPole-v1", target=490),
    Cell(algorithm="trpo", env="Acrobot-v1", target=-90),
    Cell(algorithm="trpo", env="Pendulum-v1", target=-250),
    Cell(algorithm="trpo", env="MountainCar-v0", above=-150),
    Cell(algorithm="npg", env="CartPole-v1", target=475),
    Cell(algorithm="acktr", env="CartPole-v1", target=490),
    Cell(algorithm="acktr", env="Acrobot-v1", target=-90),
    Cell(algorithm="acktr", env="Pendulum-v1", target=-250),
    Cell(algorithm="acktr", env="Breakout-MinAtar", target=15, seeds=4),
    *(
        Cell(algorithm="acktr", env=env, changes=changes, suffix=suffix)
        for env in ACKTR_ENVS
        for suffix, changes in {
            "[full]": {"stats_stride": 1},
            "[light]": {"stats_every": 10, "inverse_every": 50},
        }.items()
    ),
    Cell(algorithm="policy_gradient", env="CartPole-v1", target=470),
    *(
        Cell(
            algorithm="policy_gradient",
            env="CartPole-v1",
            changes={"estimator": estimator, **changes},
            suffix=f"[{estimator}]",
        )
        for estimator, changes in {
            "total_return": {"num_envs": 4, "rollout_length": 500},
            "return_to_go": {"num_envs": 4, "rollout_length": 500},
            "q_critic": {},
            "advantage": {},
            "td_error": {},
        }.items()
    ),
    *(
        Cell(algorithm="dqn", env="CartPole-v1", target=475, changes=changes, suffix=suffix)
        for suffix, changes in {
            "": {},
            "[double]": {"double": True},
            "[dueling]": {"dueling": True},
            "[prioritized]": {"prioritized": True},
            "[all]": {"double": True, "dueling": True, "prioritized": True},
        }.items()
    ),
    Cell(algorithm="dqn", env="Acrobot-v1", target=-90),
    Cell(algorithm="dqn", env="MountainCar-v0", above=-130),
    Cell(algorithm="dqn", env="Catch-bsuite", target=0.95),
    Cell(algorithm="dqn", env="Breakout-MinAtar", target=8, seeds=4),
    *memory_cells(),
    # Played by the host; needs envpool. Task by task, so that a table half made compares something.
    *(
        Cell(algorithm=algorithm, env=f"envpool:{task}-v5", target=wanted[i], seeds=5, last=3)
        for i, task in enumerate(MUJOCO)
        for algorithm, wanted in MUJOCO_WANTED.items()
        if i < len(wanted)
    ),
]


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
    """Measure nothing, only write the table."""


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


def table(results: list[dict[str, Any]]) -> str:
    """The results as a markdown table."""
    rows = [
        "| algorithm | environment | steps | seeds | IQM of the return [95 % interval] | min "
        "| wanted | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        last = np.array(result["returns"])[:, -result.get("last", 1) :].mean(axis=1)
        low, high = purerl.iqm_interval(last)
        target = "-" if result["target"] is None else f"{result['target']:g}"
        if result.get("above") is not None:
            target = f"{(last > result['above']).sum()} seeds above {result['above']:g}"
        env = short(result["experiment"]["env"])
        algorithm = result["name"].removesuffix("-" + env)
        rows.append(
            f"| {algorithm} | {env} | {result['steps'][-1]:,} "
            f"| {result['seeds']} | {purerl.iqm(last):.1f} [{low:.1f}, {high:.1f}] "
            f"| {last.min():.1f} | {target} | {(result['commit'] or '?')[:10]} |"
        )
    return "\n".join(rows)


def report() -> None:
    """Writes the table into benchmarks/README.md, and a picture for each environment."""
    order = {cell.name: i for i, cell in enumerate(CELLS)}
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    results.sort(key=lambda result: order.get(result["name"], len(order)))
    begin, end = "<!-- learning table -->\n", "<!-- end of learning table -->"
    text = README.read_text()
    head, rest = text.split(begin)
    README.write_text(f"{head}{begin}{table(results)}\n{rest[rest.index(end) :]}")
    for env in {short(result["experiment"]["env"]) for result in results}:
        curves = {
            result["name"].removesuffix("-" + env): (
                np.array(result["steps"]),
                np.array(result["returns"]),
            )
            for result in results
            if short(result["experiment"]["env"]) == env
        }
        plain = {name: curve for name, curve in curves.items() if "[" not in name}
        if plain:
            save_plot(plot_curves(plain, env), RESULTS / f"{env}.png")
        of_memory = {
            name: x for name, x in curves.items() if name.endswith(("[gru]", "[memoryless]"))
        }
        if of_memory:
            save_plot(plot_curves(of_memory, env), RESULTS / f"memory-{env}.png")
        switched = {name: curve for name, curve in curves.items() if name.startswith("dqn")}
        if len(switched) > 1:
            save_plot(plot_curves(switched, env), RESULTS / f"dqn-{env}.png")
    plot_acktr(results)


def plot_acktr(results: list[dict[str, Any]]) -> None:
    """A2C beside ACKTR, per step and per second of training all seeds at the same time."""
    found = {result["name"]: result for result in results}
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
