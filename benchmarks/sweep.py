"""A sweep in one program against one cold process for each of its runs.

    python benchmarks/sweep.py                    # twenty minutes on two cores

Eight learning rates x four seeds on CartPole: by ``purerl sweep``, and by 32 processes ``purerl
train --seeds 1``, first one after another, then as many at the same time as there are cores
(``--jobs``). All start Python, compile, train, evaluate and write; no compilation is kept from one
process to another.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from contention import Watch
from record import circumstances, result_files

RESULTS = Path(__file__).resolve().parent / "results"
RATES = ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3", "1e-2", "2e-2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    algorithms: tuple[str, ...] = ("ppo_clip", "a2c")
    """At their presets for CartPole but for the learning rate."""
    steps: int = 100_000
    """Environment steps of each run."""
    seeds: int = 4
    """Of each learning rate."""
    jobs: tuple[int, ...] = tuple(sorted({1, os.cpu_count() or 1}))
    """Cold processes at the same time; each number is measured."""
    output: Path = RESULTS / "sweep.json"
    """Result file."""
    force: bool = False
    """Whether to overwrite the result file."""


def purerl(*arguments: str) -> str:
    """Runs the command line in a process of its own; what it prints."""
    program = "import sys; from purerl.cli import main; sys.exit(main())"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", program, *arguments, "--no-progress"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def measure(algorithm: str, options: Options) -> dict[str, Any]:
    """Seconds of the sweep, and of the processes by how many ran at the same time."""
    common = (algorithm, "CartPole-v1", "--steps", str(options.steps))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        table = purerl(
            *("sweep", *common, "--seeds", str(options.seeds)),
            *("--grid", f"learning_rate={','.join(RATES)}", "--out", f"{folder}/sweep"),
        )
        together = time.perf_counter() - begin
        print(table, f"{together:.1f} s", sep="", flush=True)

        def alone(jobs: int, rate: str, seed: int) -> str:
            out = f"{folder}/{jobs}-{rate}-{seed}"
            numbers = ("--learning-rate", rate, "--seed", str(seed), "--seeds", "1", "--out", out)
            return purerl("train", *common, *numbers)

        runs = list(itertools.product(RATES, range(options.seeds)))
        apart = {}
        for jobs in options.jobs:
            begin = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                list(pool.map(alone, itertools.repeat(jobs), *zip(*runs, strict=True)))
            apart[jobs] = time.perf_counter() - begin
            print(
                f"{len(runs)} processes, {jobs} at a time: {apart[jobs]:.1f} s, "
                f"{apart[jobs] / together:.1f} times as long",
                flush=True,
            )
    return {"sweep": together, "processes": apart, "table": table.splitlines()}


def main(options: Options) -> None:
    """Measures, prints and writes."""
    files = result_files(options.output, (".json",), options.force)
    watch = Watch()
    seconds = {algorithm: measure(algorithm, options) for algorithm in options.algorithms}
    record = {
        **circumstances("sweep", options),
        "seconds": seconds,
        "cores kept busy by others": watch.others(),
    }
    files[0].write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
