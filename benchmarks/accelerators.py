"""What training programs become on an H200 and on 256 chips of a TPU v5e, without either.

    python benchmarks/accelerators.py           # half an hour; 9 GB of packages the first time
    python benchmarks/accelerators.py --show    # the table of the last time

XLA compiles for accelerators that are not there, in environments of their own. What is read from
the programs: launches (kernels that are started one after another) of a step of a rollout and of an
iteration of training, loops whose number of turns is known only when they run, collectives among
the chips, memory by the compiler's analysis. **Nothing is timed.** A small program on a GPU is
bound by its launches; how long they take is not said here, nor whether CUDA graphs (XLA's command
buffers) hide them. Both branches of a cond are counted at every turn, a loop of unknown length
once, its condition never. An iteration is that of each algorithm's preset for CartPole-v1, so a row
is to be compared with itself at another commit; ``ppo`` is the setting of the speed suite, beside
Rejax's.
"""

import dataclasses
import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import isolated
import tyro
from peers import measure
from record import circumstances, result_files

from purerl import ALGORITHMS
from purerl.host.store.provenance import source

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
JAX = measure.version("jax")
PEER = tuple(f"{name}=={measure.version(name)}" for name in ("flax", "optax"))
PURERL = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
GPU = (f"jax=={JAX}", f"jax-cuda12-plugin[with-cuda]=={JAX}")
ENVIRONMENTS = {
    ("gpu", "purerl"): ("accelerators-gpu", (GPU, PURERL)),
    ("gpu", "rejax"): ("accelerators-gpu-rejax", (GPU, ("rejax==0.1.3", "gymnax==0.0.9", *PEER))),
    ("tpu", "purerl"): ("accelerators-tpu", ((f"jax[tpu]=={JAX}",), PURERL)),
}
# By row: the algorithm, and what is changed of its preset.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ("ppo", *ALGORITHMS)}
ROWS["trpo[cg, a quarter]"] = ("trpo", {"fisher_fraction": 0.25})
ROWS["trpo[samples, a quarter]"] = ("trpo", {"fisher_fraction": 0.25, "solver": "samples"})
SEEDS, SEEDS_OF_CHIPS = 16, 2048
CHIPS = "v5e:16x16"
MEMORY = 141e9  # bytes of an H200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    show: bool = False
    """Only print the table that is there; rows of other code are marked."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Those that are measured; the others stay as they are."""
    cache: Path = dataclasses.field(default_factory=isolated.default_cache)
    """Folder of the environments."""
    output: Path = HERE / "results" / "accelerators.json"
    """Result file; the table goes beside it, as .md."""
    force: bool = False
    """Whether to overwrite the result files."""


def compiled(target: str, whose: str, name: str, seeds: int, cache: Path) -> dict[str, Any]:
    """What ``accelerator_program.py`` says of one program."""
    kind = "gpu" if target == "gpu" else "tpu"
    python = isolated.python_with(*ENVIRONMENTS[kind, whose], cache)
    algorithm, changes = ROWS[name]
    words = [str(python), str(HERE / "accelerator_program.py"), target, whose, algorithm]
    words += [str(seeds), json.dumps(changes)]
    environment = isolated.clean_environment(
        PYTHONPATH=str(ROOT)
    )  # these files, not installed ones
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: dict[str, Any]) -> str:
    """The rows as Markdown; those of other code than this are marked."""
    lines = [
        "| program | launches a rollout step | launches an iteration | loops of unknown length | "
        "MB a seed | seeds in 141 GB | collectives on 256 chips |",
        "|---|---|---|---|---|---|---|",
    ]
    here = source()
    for name, row in rows.items():
        gpu, tpu = row["gpu"], row.get("tpu")
        marked = name + ("" if row["source"] in (here, None) else " (of other code than this)")
        step = f"{gpu['launches_a_step']:.1f}" if gpu["launches_a_step"] else "-"
        each = gpu["bytes_a_seed"]
        collectives = "-" if tpu is None else sum(tpu["collectives"].values())
        lines.append(
            f"| {marked} | {step} | {gpu['launches_an_iteration']:,} | {gpu['dynamic_loops']} | "
            f"{each / 1e6:.1f} | {MEMORY / each:,.0f} | {collectives} |"
        )
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Compiles, and writes the results."""
    there = json.loads(options.output.read_text())["rows"] if options.output.exists() else {}
    if options.show:
        print(table(there))
        return
    data, text = result_files(options.output, (".json", ".md"), options.force)
    for name in options.rows:
        row = {"gpu": compiled("gpu", "purerl", name, SEEDS, options.cache), "source": source()}
        row["tpu"] = compiled(CHIPS, "purerl", name, SEEDS_OF_CHIPS, options.cache)
        there[name] = row
        print(table({name: row}).splitlines()[-1], flush=True)
        if name == "ppo":
            gpu = compiled("gpu", "rejax", name, SEEDS, options.cache)
            there["ppo of Rejax 0.1.3"] = {"gpu": gpu, "source": None}
    data.write_text(
        json.dumps(circumstances("accelerators", options) | {"rows": there}, indent=1) + "\n"
    )
    text.write_text(table(there))


if __name__ == "__main__":
    main(tyro.cli(Options))
