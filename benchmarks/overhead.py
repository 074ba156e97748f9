"""What driving a run from the host costs, and that its memory does not grow.

    python benchmarks/overhead.py                      # about ten minutes on two cores
    python benchmarks/overhead.py --memory             # 1e8 steps of one run, and its memory

The same run twice in turns, each in a fresh process, compilation apart: as one jitted function
(``jit(vectorize(train))``), and by ``purerl.run`` with its chunks, progress bar, log and a
checkpoint every 30 seconds.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from record import circumstances, result_files

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    steps: int = 2_000_000
    """Environment steps of each seed."""
    seeds: int = 16
    """Seeds trained at the same time."""
    rounds: int = 3
    """Fresh processes of each kind, in turns."""
    checkpoint_seconds: float = 30.0
    """Wall time between two checkpoints."""
    memory: bool = False
    """Instead, one run of 1e8 environment steps, all seeds together, and its memory."""
    output: Path = RESULTS / "overhead.json"
    """Result file; with --memory overhead-memory.json."""
    force: bool = False
    """Whether to overwrite the result file."""
    one: str = ""
    """For the fresh processes: which kind to run."""


def experiment(options: Options) -> Any:
    """PPO on CartPole, at its preset."""
    import purerl

    return purerl.make_experiment("ppo_clip", "CartPole-v1", steps=options.steps)


def one_jit(options: Options) -> float:
    """Seconds of the run as one program."""
    import jax

    import purerl

    purerl.use_all_cores()
    train = purerl.vectorize(experiment(options).build().train)
    keys = jax.random.split(jax.random.key(0), options.seeds)
    program = jax.jit(train).lower(keys).compile()
    begin = time.perf_counter()
    jax.block_until_ready(program(keys))
    return time.perf_counter() - begin


def by_run(options: Options) -> float:
    """Seconds of the same by ``purerl.run``, all but those of compiling."""
    import purerl

    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        result = purerl.run(
            experiment(options),
            seeds=options.seeds,
            out=Path(folder) / "run",
            checkpoint_seconds=options.checkpoint_seconds,
        )
        return time.perf_counter() - begin - result.seconds["compiling"]


def resident() -> float:
    """MiB that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def memory(options: Options) -> dict[str, Any]:
    """A long run, and its memory at every evaluation."""
    import purerl

    class Memory:
        """A writer that looks at the memory."""

        def __init__(self) -> None:
            self.seen: list[tuple[int, float]] = []

        def open(self, folder: Path, config: dict[str, Any], step: int | None) -> None:
            """Nothing to open."""

        def write(self, rows: dict[str, Any]) -> None:
            """One more look."""
            self.seen.append((int(rows["step"][0]), round(resident(), 1)))

        def close(self) -> None:
            """Nothing to close."""

    writer = Memory()
    long = dataclasses.replace(options, steps=100_000_000 // options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        result = purerl.run(
            experiment(long).replace(evaluations=50),
            seeds=options.seeds,
            out=Path(folder) / "run",
            checkpoint_seconds=options.checkpoint_seconds,
            writers=("csv", writer),
        )
    return {"step of each seed, MiB": writer.seen, "seconds": result.seconds}


def fresh(kind: str, options: Options) -> float:
    """One measurement in a process of its own."""
    arguments = [f"--steps={options.steps}", f"--seeds={options.seeds}", f"--one={kind}"]
    arguments.append(f"--checkpoint-seconds={options.checkpoint_seconds}")
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def main(options: Options) -> None:
    """Measures, prints and writes."""
    kinds = {"one jit": one_jit, "purerl.run": by_run}
    if options.one:
        print(kinds[options.one](options))
        return
    if options.memory:
        output = options.output.with_name(options.output.stem + "-memory.json")
        files = result_files(output, (".json",), options.force)
        record = {**circumstances("overhead-memory", options), **memory(options)}
        seen = [mib for _, mib in record["step of each seed, MiB"]]
        print(f"MiB after 1/10, 1/2 and all of it: {seen[4]}, {seen[24]}, {seen[-1]}")
    else:
        files = result_files(options.output, (".json",), options.force)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind in kinds:
                seconds[kind].append(round(fresh(kind, options), 2))
                print(f"{kind}: {seconds[kind][-1]} s", flush=True)
        medians = {kind: statistics.median(x) for kind, x in seconds.items()}
        ratio = medians["purerl.run"] / medians["one jit"]
        print(f"purerl.run takes {100 * (ratio - 1):+.1f} % of the time of one jit")
        record = {**circumstances("overhead", options), "seconds": seconds, "ratio": ratio}
    files[0].write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
