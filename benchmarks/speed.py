"""Speed of purerl side by side with other libraries, and beside its ceilings.

    python benchmarks/speed.py --suite ppo            # about half an hour on two cores
    python benchmarks/speed.py --suite trpo
    python benchmarks/speed.py --suite acktr          # beside A2C; its parts are in kfac_cost.py
    python benchmarks/speed.py --suite dqn
    python benchmarks/speed.py --suite ppo --quick    # a look, some minutes; proves nothing

Each suite trains one algorithm on CartPole-v1 with networks of 64-64 and without any evaluation;
``suites.py`` says who takes part and what is demanded, ``peers/measure.py`` holds the settings.
Each contender runs in a fresh process, the contenders take turns, and compilation is measured
apart. Other libraries are installed into environments of their own, Rejax with the JAX of this
process; pip's settings decide where packages come from and which build of PyTorch.
stable-baselines3 and sb3-contrib train one agent, so they appear at one seed only.

"Rejax, seeds sharded by us" is Rejax's run under the ``shard_map`` that purerl uses: it tells how
much of the difference is the use of all cores, which Rejax's users do not get by themselves.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import contention
import isolated
import speed_report
import tyro
from record import circumstances, result_files
from suites import SUITES, Contender

HERE = Path(__file__).resolve().parent
DISTURBED = 0.15  # cores used by others; the system itself takes a few hundredths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    suite: Literal[tuple(SUITES)]
    """What is compared."""
    contenders: tuple[str, ...] = ()
    """Who takes part; by default all of the suite."""
    seeds: tuple[int, ...] = ()
    """Numbers of seeds trained at the same time; by default the suite's."""
    steps: int = 500_000
    """Environment steps of each seed."""
    max_total_steps: int = 8_000_000
    """Environment steps of all seeds together; above it each seed gets fewer."""
    one_seed_steps: int = 30_000
    """Environment steps of those who train one agent only, after a warm-up."""
    rounds: int = 5
    """Fresh processes a contender, in turns."""
    repeats: int = 1
    """Measured executions in each process, after one that is discarded."""
    quick: bool = False
    """One round of a tenth of the steps."""
    timeout: float = 1800.0
    """Seconds after which a contender's process is given up."""
    cache: Path = dataclasses.field(default_factory=isolated.default_cache)
    """Folder of the isolated environments."""
    output: Path | None = None
    """Result file, by default results/speed-SUITE.json; the tables go beside it, as .md."""
    force: bool = False
    """Whether to overwrite the result files."""


def completed(options: Options) -> Options:
    """With the suite's defaults, and with what ``--quick`` means."""
    suite = SUITES[options.suite]
    unknown = [name for name in options.contenders if name not in suite.contenders]
    if unknown:
        wanted = ", ".join(suite.contenders)
        raise SystemExit(
            f"got --contenders {' '.join(unknown)}; suite {options.suite} has {wanted}"
        )
    options = dataclasses.replace(
        options,
        contenders=options.contenders or tuple(suite.contenders),
        seeds=options.seeds or suite.seeds,
        output=options.output or HERE / "results" / f"speed-{options.suite}.json",
    )
    if not options.quick:
        return options
    return dataclasses.replace(
        options,
        steps=options.steps // 10,
        max_total_steps=options.max_total_steps // 10,
        one_seed_steps=options.one_seed_steps // 3,
        rounds=1,
    )


def command(contender: Contender, cache: Path) -> list[str]:
    """How a contender's program is called, its own interpreter included."""
    program, *arguments = contender.program.split()
    python = Path(sys.executable)
    if contender.environment is not None:
        python = isolated.python_with(*contender.environment, cache)
    return [str(python), str(HERE / "peers" / program), *arguments]


def measure_once(
    call: list[str], contender: Contender, seeds: int, options: Options
) -> dict[str, Any]:
    """One fresh process of one contender; returns the line it printed."""
    steps = min(options.steps, options.max_total_steps // seeds)
    arguments = {
        "--seeds": seeds,
        "--steps": options.one_seed_steps if contender.seeds == "one" else steps,
        "--repeats": options.repeats,
    }
    call = call + [str(part) for pair in arguments.items() for part in pair]
    # The checkout is measured, installed or not.
    environment = isolated.clean_environment(PYTHONPATH=str(HERE.parent))
    done = subprocess.run(
        call,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=options.timeout,
    )
    if done.returncode:
        raise RuntimeError(f"{contender.label} at {seeds} seed(s) failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(options: Options) -> list[dict[str, Any]]:
    """All rounds: at each number of seeds the contenders take turns."""
    contenders = {name: SUITES[options.suite].contenders[name] for name in options.contenders}
    calls = {name: command(contender, options.cache) for name, contender in contenders.items()}
    lines = []
    for seeds, turn in itertools.product(options.seeds, range(options.rounds)):
        for name, contender in contenders.items():
            if not contender.takes_part(seeds):
                continue
            watch = contention.Watch()
            line = measure_once(calls[name], contender, seeds, options)
            line = {"contender": name, **line, "round": turn, "others_cores": watch.others()}
            lines.append(line)
            rates = ", ".join(f"{rate:,.0f}" for rate in line["steps_per_s"])
            print(f"{seeds:3d} seeds  {name:20s} {rates} steps/s", file=sys.stderr)
    return lines


def main(options: Options) -> None:
    """Measures, prints and writes."""
    options = completed(options)
    suite = SUITES[options.suite]
    files = result_files(options.output, (".json", ".md"), options.force)
    record = circumstances("speed", options)
    lines = measure_all(options)
    cells = speed_report.summarize(lines)
    table = speed_report.markdown(suite, cells)
    targets = speed_report.targets(suite, cells)
    record["medians"] = [
        {"contender": name, "seeds": seeds, **cell._asdict()}
        for (name, seeds), cell in cells.items()
    ]
    record["targets"] = [target._asdict() for target in targets]
    record["measurements"] = lines
    files[0].write_text(json.dumps(record, indent=1) + "\n")
    files[1].write_text(table)
    print(table)
    for target in targets:
        verdict = "met   " if target.met else "MISSED"
        print(f"{verdict} {target.measured:5.2f}  {target.demand}")
    disturbed = sum((line["others_cores"] or 0) > DISTURBED for line in lines)
    if disturbed:
        print(f"in {disturbed} of {len(lines)} measurements others used over {DISTURBED} cores")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
