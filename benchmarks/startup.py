"""Where the time of ``purerl train ALGORITHM CartPole-v1`` goes, from the shell to the shell.

    python benchmarks/startup.py                     # a quarter of an hour on two cores

Each algorithm runs in fresh processes with a cache of programs that is empty (cold) or holds all of
them (warm), by turns. The parts: ``start`` until the run begins to compile (Python, imports, the
environment) without what is traced until then, ``trace`` (what JAX says that tracing and lowering
the run's programs took), ``compile`` (the rest of the time until they are there; one is compiled
while another is traced), ``train``, ``evaluate``, and ``write``: all else, to the end.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from record import circumstances, result_files

from purerl.host.store.checkpoint import read_host
from purerl.host.store.folder import RunFolder

HERE = Path(__file__).resolve().parent
PARTS = ("start", "trace", "compile", "train", "evaluate", "write")
CHILD = """
import json, sys
import jax.monitoring
seconds = []
def listen(event, duration, fun_name="", **kw):
    traced = event.endswith(("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration"))
    if traced and "mapped" in fun_name:  # what purerl.vectorize returns; events nest
        seconds.append(duration)
jax.monitoring.register_event_duration_secs_listener(listen)
from purerl.host.programs import Driver
compile, before = Driver.compile, []
def noted(self):
    before.append(sum(seconds))
    compile(self)
Driver.compile = noted
from purerl.cli import main
status = main(sys.argv[1:])
print(before[0], sum(seconds) - before[0])
sys.exit(status)
"""
TRACING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    algorithms: tuple[str, ...] = ()
    """All by default."""
    rounds: int = 3
    """Fresh processes of each algorithm, cold and warm; medians count."""
    output: Path = HERE / "results" / "startup.json"
    """Result file; the table goes beside it, as .md."""
    force: bool = False
    """Whether to overwrite the result files."""


def measure(algorithm: str, cache: Path, out: Path) -> dict[str, float]:
    """Seconds of each part of one run of the command."""
    begin = time.perf_counter()
    words = ["train", algorithm, "CartPole-v1", "--out", str(out)]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        env=os.environ | {"PURERL_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    line = child.stderr.readline()
    if not line.startswith("compiling"):
        raise RuntimeError(line + child.stderr.read())
    start = time.perf_counter() - begin
    child.stderr.read()
    before, after = map(float, child.stdout.read().splitlines()[-1].split())  # seconds of tracing
    if child.wait():
        raise RuntimeError(f"the run ended with status {child.returncode}")
    total = time.perf_counter() - begin
    seconds = read_host(RunFolder(out))["seconds"]
    parts = {"start": start - before, "trace": before + after}
    parts["compile"] = max(seconds["compiling"] - after, 0.0)
    parts |= {"train": seconds["training"], "evaluate": seconds["evaluating"]}
    return parts | {"write": total - sum(parts.values()), "total": total}


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Medians in seconds, as Markdown."""
    lines = [
        f"| algorithm | cache | {' | '.join(PARTS)} | all | all but train and evaluate |",
        f"|{'---|' * (len(PARTS) + 4)}",
    ]
    for algorithm, states in results.items():
        for state, rounds in states.items():
            parts = {part: statistics.median(x[part] for x in rounds) for part in rounds[0]}
            rest = statistics.median(x["total"] - x["train"] - x["evaluate"] for x in rounds)
            cells = [f"{parts[part]:.1f}" for part in (*PARTS, "total")]
            lines.append(f"| {algorithm} | {state} | {' | '.join(cells)} | {rest:.1f} |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measures, and writes the results."""
    from purerl import ALGORITHMS

    data, text = result_files(options.output, (".json", ".md"), options.force)
    results: dict[str, Any] = {}
    for algorithm in options.algorithms or ALGORITHMS:
        results[algorithm] = {"cold": [], "warm": []}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for state, rounds in results[algorithm].items():
                    parts = measure(algorithm, Path(folder) / "cache", Path(folder) / state)
                    rounds.append(parts)
        print("\n".join(table({algorithm: results[algorithm]}).splitlines()[2:]), flush=True)
    data.write_text(
        json.dumps(circumstances("startup", options) | {"results": results}, indent=1) + "\n"
    )
    text.write_text(table(results))


if __name__ == "__main__":
    main(tyro.cli(Options))
