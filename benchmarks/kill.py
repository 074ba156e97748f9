"""Kills training runs with SIGKILL at random moments, resumes them, and compares the bytes.

    python benchmarks/kill.py                    # 5 kinds of runs x 20 kills, an hour
    python benchmarks/kill.py --only ppo_clip --kills 3 --output /tmp/kill.json

For each algorithm two runs are never interrupted. Every other one is killed once, at a random
moment between its first iterations and its end (every second one as soon as, after that moment, a
checkpoint is being written), resumed by ``purerl train --resume``, and must end with the same
bytes: the checksums of every array of the last checkpoint (learner, optimizer, factors, replay
buffer, environments, normalizers, keys, counters), all evaluations, and the rows of the log but for
their wall time. A run that had ended before it was to be killed is another one's turn again.
"""

import concurrent.futures
import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from record import circumstances, result_files

RESULTS = Path(__file__).resolve().parent / "results"
ENV = "CartPole-v1"
COMMON = ["--normalize-obs", "--hidden-sizes", "32", "32", "--evaluation-episodes", "8"]
COMMON += ["--checkpoint-seconds", "0.5", "--chunk-seconds", "0.1", "--no-progress"]
RUNS = {
    "ppo_clip": ["--steps", "200000", "--normalize-reward"],
    "trpo": ["--steps", "200000", "--normalize-reward"],
    "acktr": ["--steps", "200000", "--normalize-reward"],
    "ppo_clip memory": ["--steps", "20000", "--memory", "gru", "--memory-size", "8"],
    "dqn": ["--steps", "60000", "--prioritized", "--capacity", "20000"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the trial."""

    only: tuple[str, ...] = tuple(RUNS)
    """Algorithms."""
    kills: int = 20
    """Runs of each that are killed."""
    seeds: int = 2
    """Seeds of each run."""
    jobs: int = 2
    """Runs at the same time."""
    random_seed: int = 0
    """Of the moments."""
    output: Path = RESULTS / "kill.json"
    """Result file; the table goes beside it, as .md."""
    force: bool = False
    """Whether to overwrite the result files."""


def start(arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    """A purerl of its own, that compiles what another one has compiled only once."""
    program = [sys.executable, "-c", "import sys; from purerl.cli import main; sys.exit(main())"]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [*program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for the end of a run."""
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"status {process.returncode}: {' '.join(process.args)}\n{out}{err}")


def final_bytes(folder: Path) -> dict[str, Any]:
    """Everything that a run came to."""
    from purerl.host.store.checkpoint import read_host
    from purerl.host.store.folder import RunFolder

    host = read_host(RunFolder(folder))
    assert host is not None
    with (folder / "evaluations.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return {**{k: host[k] for k in ("iteration", "checksums", "steps", "returns")}, "rows": rows}


def writing(folder: Path) -> bool:
    """Whether a checkpoint is being written now."""
    return any((folder / "checkpoints").glob("*tmp*"))


def train(name: str, folder: Path, options: Options) -> list[str]:
    """The command line of one run."""
    seeds = ["--seeds", str(options.seeds)]
    return ["train", name.split()[0], ENV, *RUNS[name], *COMMON, *seeds, "--out", str(folder)]


def whole(name: str, folder: Path, options: Options) -> tuple[dict[str, Any], float]:
    """An uninterrupted run: what it came to, and seconds from its first checkpoint to its end."""
    process = start(train(name, folder, options), folder.parent / "cache")
    while process.poll() is None and not (folder / "checkpoints").exists():
        time.sleep(0.01)
    begin = time.perf_counter()
    finish(process)
    return final_bytes(folder), time.perf_counter() - begin


def newest(folder: Path) -> int:
    """Iterations at the newest whole checkpoint; 0 if there is none."""
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    return max((int(name) for name in names if name.isdigit()), default=0)


def killed(
    name: str, folder: Path, options: Options, delay: float, in_write: bool
) -> tuple[str, int] | None:
    """A run that is killed and resumed: at what moment, and after how many iterations it went on;
    None if it had ended before.
    """
    process = start(train(name, folder, options), folder.parent / "cache")
    while process.poll() is None and not (folder / "checkpoints").exists():
        time.sleep(0.01)
    time.sleep(delay)
    while in_write and process.poll() is None and not writing(folder):
        time.sleep(0.0005)
    moment = "while a checkpoint was written" if writing(folder) else "between checkpoints"
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    if (folder / "learning_curve.png").exists():  # it had ended, but for its process
        return None
    done = newest(folder)
    finish(start(["train", "--resume", str(folder), *COMMON[-5:]], folder.parent / "cache"))
    return moment, done


def trial(name: str, folder: Path, options: Options) -> dict[str, Any]:
    """All kills of one algorithm."""
    expected, seconds = whole(name, folder / "whole", options)
    repeated, _ = whole(name, folder / "repeated", options)

    def one(i: int) -> dict[str, Any]:
        moments = random.Random(f"{options.random_seed} {name} {i}")
        for again in range(100):
            run, delay = folder / f"killed-{i}-{again}", moments.uniform(0, 0.95 * seconds)
            outcome = killed(name, run, options, delay, in_write=i % 2 == 1)
            if outcome is not None:
                break
        else:
            raise SystemExit(f"{name}: no run could be killed before its end")
        return {
            "delay": round(delay, 2),
            "moment": outcome[0],
            "resumed after": outcome[1],
            "equal": final_bytes(run) == expected,
        }

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        kills = list(pool.map(one, range(options.kills)))
    return {
        "seconds": round(seconds, 1),
        "iterations": expected["iteration"],
        "repeated without a kill, equal": repeated == expected,
        "kills": kills,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row an algorithm."""
    lines = [
        "| algorithm | killed | of these while a checkpoint was written | before the first one | "
        "resumed to equal bytes |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        kills = result["kills"]
        inside = sum(kill["moment"] == "while a checkpoint was written" for kill in kills)
        first = sum(not kill["resumed after"] for kill in kills)
        equal = f"{sum(kill['equal'] for kill in kills)} of {len(kills)}"
        lines.append(f"| {name} | {len(kills)} | {inside} | {first} | {equal} |")
    return "\n".join(lines)


def main(options: Options) -> int:
    """Tries, prints and writes; status 1 if anything differs."""
    files = result_files(options.output, (".json", ".md"), options.force)
    results = {}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = trial(name, Path(folder), options)
        print(table({name: results[name]}).splitlines()[-1], flush=True)
        record = {**circumstances("kill", options), "results": results}  # of those that are done
        files[0].write_text(json.dumps(record, indent=1) + "\n")
        files[1].write_text(table(results) + "\n")
    return int(
        not all(
            result["repeated without a kill, equal"]
            and all(kill["equal"] for kill in result["kills"])
            for result in results.values()
        )
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
