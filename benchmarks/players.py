"""What playing environments from the host costs, and how fast it is beside stable-baselines3.

    python benchmarks/players.py    # needs envpool; fifteen minutes on two cores

PPO on a task of MuJoCo's, at purerl's preset, in turns in one process, compilation apart:

* ``run``: what ``purerl.run`` takes to train, without evaluations;
* ``environment alone``: as many steps of the same environments, with actions drawn before;
* ``updates alone``: as many updates, on one rollout.

The first is to be at most 1.15 times the sum of the others. stable-baselines3 trains one agent on
Gymnasium's version of the task, with as many environments, batches and epochs, in an environment of
its own; compared are environment steps a second, all seeds together.
"""

import dataclasses
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import isolated
import tyro
from contention import Watch
from record import circumstances, result_files

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SB3: isolated.Environment = (
    "sb3-mujoco",
    (("torch==2.13.0",), ("stable-baselines3==2.9.2", "gymnasium[mujoco]", "tyro")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    task: str = "Hopper-v5"
    """Of MuJoCo's, by its name in EnvPool and in Gymnasium."""
    seeds: int = 5
    """Trained at the same time by purerl; stable-baselines3 trains one."""
    iterations: int = 8
    """Rollouts and updates of each turn."""
    rounds: int = 5
    """Turns."""
    peer: bool = True
    """Whether stable-baselines3 takes part."""
    cache: Path = dataclasses.field(default_factory=isolated.default_cache)
    """Where its environment is kept."""
    output: Path = RESULTS / "players.json"
    """Result file."""
    force: bool = False
    """Whether to overwrite the result file."""


class Parts:
    """A run that is under way, whose parts can be repeated alone."""

    def __init__(self, options: Options):
        """Compiles and warms up.

        Args:
            options: Of the benchmark.
        """
        import jax
        import numpy as np

        import purerl
        from purerl.host.options import RunOptions
        from purerl.host.players.driver import make_driver

        purerl.use_all_cores()
        self.iterations = options.iterations
        name = f"envpool:{options.task}"
        experiment = purerl.make_experiment("ppo_clip", name, evaluations=0)
        keys = jax.random.split(jax.random.key(0), options.seeds)
        self.driver = make_driver(experiment, {}, keys, RunOptions())
        self.driver.compile()
        self.driver.start()
        self.length = experiment.loop.rollout_length
        self.steps = options.seeds * experiment.loop.steps_per_iteration * self.iterations
        self.run()
        self.rollout = self.driver._collect(self.length)
        rng, count = np.random.default_rng(0), options.seeds * experiment.loop.num_envs
        size = experiment.environment.action_space.shape
        self.actions = rng.uniform(-1, 1, (self.length, count, *size)).astype(np.float32)

    def run(self) -> None:
        """Plays and learns, as ``purerl.run`` does."""
        import jax

        jax.block_until_ready(self.driver.advance(self.iterations))

    def environment(self) -> None:
        """Steps alone."""
        for _ in range(self.iterations):
            for action in self.actions:
                self.driver.actors.player.step(action)

    def updates(self) -> None:
        """Updates alone."""
        import jax

        driver = self.driver
        for _ in range(self.iterations):
            driver.state, driver.totals, report, _ = driver.programs.advance(
                driver.rows, driver.state, driver.totals, *self.rollout
            )
        jax.block_until_ready(report)


def in_turns(options: Options) -> dict[str, Any]:
    """Seconds of each part, a row a round, and steps of a turn."""
    parts = Parts(options)
    kinds = {"run": parts.run, "environment alone": parts.environment}
    kinds |= {"updates alone": parts.updates}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, function in kinds.items():
            begin = time.perf_counter()
            function()
            seconds[kind].append(round(time.perf_counter() - begin, 4))
        print({kind: x[-1] for kind, x in seconds.items()}, flush=True)
    return {"steps": parts.steps, "seconds": seconds}


def peer(options: Options) -> dict[str, Any]:
    """Steps a second of stable-baselines3, of each round."""
    python = isolated.python_with(*SB3, options.cache)
    program = HERE / "peers" / "sb3_mujoco.py"
    command = [str(python), str(program), "--task", options.task, "--rounds", str(options.rounds)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=isolated.clean_environment()
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(options: Options) -> None:
    """Measures, prints and writes."""
    (file,) = result_files(options.output, (".json",), options.force)
    watch = Watch()
    measured = in_turns(options)
    seconds = measured["seconds"]
    whole, *parts = seconds.values()
    ratios = [x / sum(y) for x, *y in zip(whole, *parts, strict=True)]
    speed = measured["steps"] / statistics.median(whole)
    measured |= {"steps_per_s": round(speed), "ratios": [round(x, 3) for x in ratios]}
    print(f"run / (environment + updates): {statistics.median(ratios):.2f} ({measured['ratios']})")
    print(f"{options.seeds} seeds: {speed:,.0f} steps/s")
    if options.peer:
        measured["stable-baselines3"] = other = peer(options)
        print(f"stable-baselines3: {other['steps_per_s']} steps/s; {speed / other['median']:.1f} x")
    record = {
        **circumstances("players", options),
        **measured,
        "cores kept busy by others": watch.others(),
    }
    file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
