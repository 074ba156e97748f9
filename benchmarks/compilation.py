"""What XLA's optimization level costs to compile, and what the programs then train.

    python benchmarks/compilation.py                  # about ten minutes on two cores

Each algorithm trains CartPole-v1 with its preset's networks and sizes. A process traces it once,
compiles it at XLA's default level and at level 1, and lets the two programs train by turns. What is
measured are seconds of the CPU, of all threads together, which other processes disturb less. The
lower level is for where an algorithm trains within two hundredths of the default's speed.
"""

import dataclasses
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
    """Fresh processes of each algorithm; medians count."""
    repeats: int = 7
    """Measured executions in each process, after one that is discarded; the fastest counts."""
    output: Path = HERE / "results" / "compilation.json"
    """Result file; the table goes beside it, as .md."""
    force: bool = False
    """Whether to overwrite the result files."""


def measure(algorithm: str, seeds: int, steps: int, repeats: int) -> dict[str, dict[str, float]]:
    """CPU seconds to compile, and of a million environment steps, by level."""
    import jax

    import purerl

    purerl.use_all_cores()
    experiment = purerl.make_experiment(algorithm, "CartPole-v1", steps=steps, evaluations=0)
    train = experiment.build()
    keys = jax.random.split(jax.random.key(0), seeds)
    lowered = jax.jit(purerl.vectorize(train.train)).lower(keys)
    compiled, results = {}, {}
    for level, options in LEVELS.items():
        begin = time.process_time()
        compiled[level] = lowered.compile(options)
        results[level] = {"compile": time.process_time() - begin}
    seconds: dict[str, list[float]] = {level: [] for level in LEVELS}
    for _ in range(1 + repeats):
        for level in LEVELS:
            begin = time.process_time()
            jax.block_until_ready(compiled[level](keys))
            seconds[level].append(time.process_time() - begin)
    for level in LEVELS:
        results[level]["million_steps"] = min(seconds[level][1:]) / (train.steps * seeds) * 1e6
    return results


def table(results: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Medians, as Markdown."""
    lines = [
        "| algorithm | CPU s to compile, default / level 1 | ratio | a million steps | speed |",
        "|---|---|---|---|---|",
    ]
    for algorithm, rounds in results.items():
        compile, steps = (
            [statistics.median(x[level][what] for x in rounds) for level in LEVELS]
            for what in ("compile", "million_steps")
        )
        cells = [f"{compile[0]:.1f} / {compile[1]:.1f}", f"{compile[1] / compile[0]:.2f}"]
        cells += [f"{steps[0]:.2f} / {steps[1]:.2f}", f"{steps[0] / steps[1]:.2f}"]
        lines.append(f"| {algorithm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measures, and writes the results."""
    from purerl import ALGORITHMS

    data, text = result_files(options.output, (".json", ".md"), options.force)
    results: dict[str, Any] = {}
    for algorithm in ALGORITHMS:
        steps = options.steps // 4 if algorithm == "dqn" else options.steps
        arguments = [algorithm, options.seeds, steps, options.repeats]
        call = [sys.executable, __file__, "--one", json.dumps(arguments)]
        for _ in range(options.rounds):
            done = subprocess.run(call, check=True, capture_output=True, text=True)
            results.setdefault(algorithm, []).append(json.loads(done.stdout.splitlines()[-1]))
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
