"""What XLA's optimization level costs to compile, and what the programs then train.

    python benchmarks/compilation.py                  # about a quarter of an hour on two cores

Each algorithm trains CartPole-v1 with its preset's networks and sizes, in fresh processes that take
turns between XLA's default level and level 1; tracing, compiling and training are timed apart. The
lower level is for where an algorithm trains within two hundredths of the default's speed.
"""

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tyro
from record import circumstances, result_files

HERE = Path(__file__).resolve().parent
LEVELS = {"default": {}, "level 1": {"xla_backend_optimization_level": 1}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    seeds: int = 16
    """Trained at the same time."""
    steps: int = 40_000
    """Environment steps of each seed; of dqn a quarter."""
    rounds: int = 3
    """Fresh processes of each algorithm and level."""
    repeats: int = 3
    """Measured executions in each process, after one that is discarded; the median counts."""
    output: Path = HERE / "results" / "compilation.json"
    """Result file; the table goes beside it, as .md."""
    force: bool = False
    """Whether to overwrite the result files."""


def measure(algorithm: str, level: str, seeds: int, steps: int, repeats: int) -> dict[str, float]:
    """Seconds to trace and to compile, and steps a second; in a process of its own."""
    import jax

    import purerl

    purerl.use_all_cores()
    experiment = purerl.make_experiment(algorithm, "CartPole-v1", steps=steps, evaluations=0)
    train = experiment.build()
    keys = jax.random.split(jax.random.key(0), seeds)
    times = [time.perf_counter()]
    lowered = jax.jit(purerl.vectorize(train.train)).lower(keys)
    times.append(time.perf_counter())
    compiled = lowered.compile(LEVELS[level])
    times.append(time.perf_counter())
    for _ in range(1 + repeats):
        jax.block_until_ready(compiled(keys))
        times.append(time.perf_counter())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    speed = train.steps * seeds / statistics.median(seconds[3:])
    return {"trace": seconds[0], "compile": seconds[1], "steps_per_second": speed}


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Medians, as Markdown."""
    lines = [
        "| algorithm | s to compile, default / level 1 | ratio | k steps/s, the same | ratio |",
        "|---|---|---|---|---|",
    ]
    for algorithm, levels in results.items():
        cells = []
        for what, unit in (("compile", 1.0), ("steps_per_second", 1e3)):
            default, one = (
                statistics.median(x[what] for x in levels[level]) / unit for level in LEVELS
            )
            cells += [f"{default:.1f} / {one:.1f}", f"{one / default:.2f}"]
        lines.append(f"| {algorithm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measures, and writes the results."""
    from purerl import ALGORITHMS

    data, text = result_files(options.output, (".json", ".md"), options.force)
    results: dict[str, Any] = {}
    for algorithm in ALGORITHMS:
        results[algorithm] = {level: [] for level in LEVELS}
        steps = options.steps // 4 if algorithm == "dqn" else options.steps
        for turn in range(options.rounds):
            for level in [*LEVELS][:: 1 if turn % 2 else -1]:
                arguments = [algorithm, level, options.seeds, steps, options.repeats]
                call = [sys.executable, __file__, "--one", json.dumps(arguments)]
                done = subprocess.run(call, check=True, capture_output=True, text=True)
                results[algorithm][level].append(json.loads(done.stdout.splitlines()[-1]))
        print(table({algorithm: results[algorithm]}).splitlines()[-1], flush=True)
    data.write_text(
        json.dumps(circumstances("compilation", options) | {"results": results}, indent=1) + "\n"
    )
    text.write_text(table(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main(tyro.cli(Options))
