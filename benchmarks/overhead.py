"""What driving a run from the host costs, and that its memory does not grow.

    python benchmarks/overhead.py                            # ten minutes on two cores
    python benchmarks/overhead.py --memory --algorithm a2c   # 1e8 steps of one run, and its memory

The same run in turns, in one process, compilation apart: as one jitted function
(``jit(vectorize(train))``), and by ``purerl.run`` with its chunks, progress bar, log and a
checkpoint every 30 seconds. Of ``purerl.run`` two times are kept: the whole call, and the loop from
the first chunk to the last; what is between them (opening the folder, the last checkpoint, the
picture) does not depend on how long a run is.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from contention import Watch
from record import circumstances, result_files

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    algorithm: str = "ppo_clip"
    """At its preset for CartPole."""
    steps: int = 500_000
    """Environment steps of each seed."""
    seeds: int = 16
    """Seeds trained at the same time."""
    rounds: int = 6
    """Runs of each kind, in turns."""
    checkpoint_seconds: float = 30.0
    """Wall time between two checkpoints."""
    memory: bool = False
    """Instead, one run of 1e8 environment steps, all seeds together, and its memory."""
    output: Path = RESULTS / "overhead.json"
    """Result file; with --memory overhead-memory.json."""
    force: bool = False
    """Whether to overwrite the result file."""


def experiment(options: Options) -> Any:
    """The run."""
    import purerl

    return purerl.make_experiment(options.algorithm, "CartPole-v1", steps=options.steps)


def in_turns(options: Options, cache: str) -> dict[str, list[float]]:
    """Seconds of each kind, a row a round."""
    import jax

    import purerl

    purerl.use_all_cores()
    jax.config.update("jax_compilation_cache_dir", cache)  # each purerl.run compiles the same
    train = purerl.vectorize(experiment(options).build().train)
    keys = jax.random.split(jax.random.key(0), options.seeds)
    program = jax.jit(train).lower(keys).compile()
    jax.block_until_ready(program(keys))  # a device's first execution takes longer
    seconds: dict[str, list[float]] = {"one jit": [], "purerl.run": [], "its loop": []}
    for number in range(options.rounds):
        begin = time.perf_counter()
        jax.block_until_ready(program(keys))
        seconds["one jit"].append(time.perf_counter() - begin)
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            result = purerl.run(
                experiment(options),
                seeds=options.seeds,
                out=Path(folder) / "run",
                checkpoint_seconds=options.checkpoint_seconds,
            )
            whole = time.perf_counter() - begin
        seconds["purerl.run"].append(whole - result.seconds["compiling"])
        loop = result.seconds["training"] + result.seconds["evaluating"]
        seconds["its loop"].append(loop)
        print({kind: round(x[number], 2) for kind, x in seconds.items()}, flush=True)
    return {kind: [round(x, 3) for x in each] for kind, each in seconds.items()}


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


def compared(seconds: dict[str, list[float]], kind: str) -> dict[str, float]:
    """How much longer a kind takes than one jit: by the fastest of each, and the median pair."""
    pairs = [x / jit for x, jit in zip(seconds[kind], seconds["one jit"], strict=True)]
    return {
        "fastest": min(seconds[kind]) / min(seconds["one jit"]) - 1,
        "median of pairs": statistics.median(pairs) - 1,
    }


def main(options: Options) -> None:
    """Measures, prints and writes."""
    if options.memory:
        output = options.output.with_name(options.output.stem + "-memory.json")
        files = result_files(output, (".json",), options.force)
        record = memory(options)
        seen = [mib for _, mib in record["step of each seed, MiB"]]
        print(f"MiB after 1/10, 1/2 and all of it: {seen[4]}, {seen[24]}, {seen[-1]}")
        record = {**circumstances("overhead-memory", options), **record}
    else:
        files = result_files(options.output, (".json",), options.force)
        watch = Watch()
        with tempfile.TemporaryDirectory() as cache:
            seconds = in_turns(options, cache)
        over = {kind: compared(seconds, kind) for kind in ("its loop", "purerl.run")}
        for kind, measures in over.items():
            each = ", ".join(f"{100 * x:+.1f} % ({how})" for how, x in measures.items())
            print(f"{kind}, beside one jit: {each}")
        record = {
            **circumstances("overhead", options),
            "seconds": seconds,
            "over one jit": over,
            "cores kept busy by others": watch.others(),
        }
    files[0].write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
