"""A sweep in one program against one cold process for each of its runs.

    python benchmarks/sweep.py                    # some minutes on two cores

Eight learning rates x four seeds of PPO on CartPole: by ``purerl sweep``, and by 32 processes
``purerl train --seeds 1``, as many at the same time as there are cores (``--jobs``). Both start
Python, compile, train, evaluate and write; no compilation is kept from one process to another.
"""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from record import circumstances, result_files

RESULTS = Path(__file__).resolve().parent / "results"
RATES = ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3", "1e-2", "2e-2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    steps: int = 100_000
    """Environment steps of each run."""
    seeds: int = 4
    """Of each learning rate."""
    jobs: int = os.cpu_count() or 1
    """Cold processes at the same time."""
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


def main(options: Options) -> None:
    """Measures, prints and writes."""
    files = result_files(options.output, (".json",), options.force)
    common = ("ppo_clip", "CartPole-v1", "--steps", str(options.steps))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        table = purerl(
            *("sweep", *common, "--seeds", str(options.seeds)),
            *("--grid", f"learning_rate={','.join(RATES)}", "--out", f"{folder}/sweep"),
        )
        together = time.perf_counter() - begin
        print(table, f"{together:.1f} s", sep="", flush=True)

        def alone(rate: str, seed: int) -> str:
            out = f"{folder}/{rate}-{seed}"
            numbers = ("--learning-rate", rate, "--seed", str(seed), "--seeds", "1", "--out", out)
            return purerl("train", *common, *numbers)

        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            runs = [(rate, seed) for rate in RATES for seed in range(options.seeds)]
            list(pool.map(alone, *zip(*runs, strict=True)))
        apart = time.perf_counter() - begin
    print(f"{len(runs)} processes: {apart:.1f} s, {apart / together:.1f} times as long")
    record = {
        **circumstances("sweep", options),
        "sweep_seconds": together,
        "processes_seconds": apart,
        "table": table.splitlines(),
    }
    files[0].write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
