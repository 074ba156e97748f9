"""Why a cell of ``learning.py`` is what it is: its presets varied, on seeds that are not published.

    python benchmarks/variants.py breakout                   # every variant without a result yet
    python benchmarks/variants.py a2c_pendulum --only preset --force

Presets are chosen here and published there, so the seeds differ (``--seed``, 1000 here, 0 there).
Each question's results and table are ``results/variants/QUESTION.json`` and ``.md``: mean greedy
return of the last evaluation, over seeds, beside what the same policies reach when they sample, and
how long their greedy episodes are.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from questions import QUESTIONS
from record import circumstances

import purerl
from purerl.host.players.driver import evaluate_played

RESULTS = Path(__file__).resolve().parent / "results" / "variants"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Presets, varied."""

    question: tyro.conf.Positional[str]
    """Which one: a name in ``questions.py``."""
    only: tuple[str, ...] = ()
    """Variants; all by default."""
    seeds: int = 8
    """Of each variant; of MuJoCo 4 are many."""
    seed: int = 1000
    """Random seed."""
    output: Path = RESULTS
    """Folder of the results."""
    force: bool = False
    """Measure again where there is a result."""
    report: bool = False
    """Measure nothing, only write the table."""


def played(experiment: Any, state: Any, *, greedy: bool) -> dict[str, list[float]]:
    """Returns and lengths of whole episodes, each of a seed."""
    asked = experiment.replace(greedy_evaluation=greedy)
    if asked.environment.outside is not None:  # the host plays it
        evaluation = evaluate_played(asked, state)
    else:
        evaluation = jax.device_get(jax.jit(purerl.vectorize(asked.build().evaluate))(state))
    return {
        "return": np.round(evaluation.mean_return, 2).tolist(),
        "length": np.round(evaluation.mean_length, 1).tolist(),
    }


def measure(name: str, options: Options) -> dict[str, Any]:
    """One variant."""
    algorithm, env, variants = QUESTIONS[options.question]
    experiment = purerl.make_experiment(algorithm, env, **variants[name])
    notes: dict[str, list[Any]] = {}

    def note(columns: dict[str, Any]) -> None:
        for name in ("entropy", "kl", "trust", "explained_variance"):
            if name in columns:  # not of every algorithm
                notes.setdefault(name, []).append([float(f"{x:.3g}") for x in columns[name]])

    result = purerl.run(experiment, seeds=options.seeds, seed=options.seed, on_row=note)
    return {
        "name": name,
        **circumstances("variants", options),
        "experiment": experiment.to_json(),
        "seconds": result.seconds,
        "failed": int(result.failed.sum()),
        "steps": result.steps.tolist(),
        "returns": np.round(result.returns, 2).tolist(),
        **{name: np.transpose(rows).tolist() for name, rows in notes.items()},
        "greedy": played(experiment, result.state, greedy=True),
        "sampled": played(experiment, result.state, greedy=False),
    }


def row(cell: dict[str, Any]) -> str:
    """Of the table."""
    last = np.array(cell["returns"])[:, -1]
    ends = [np.array(cell[how]["return"]) for how in ("greedy", "sampled")]
    texts = []
    for x in (last, ends[1]):
        low, high = purerl.iqm_interval(x)
        texts.append(f"{purerl.iqm(x):.1f} [{low:.1f}, {high:.1f}]")
    return (
        f"| {cell['name']} | {cell['steps'][-1]:,} | {len(last)} | {texts[0]} "
        f"| {last.min():.1f} | {last.max():.1f} | {np.mean(cell['greedy']['length']):.0f} "
        f"| {texts[1]} | {cell['commit'][:10]} |"
    )


def table(cells: list[dict[str, Any]]) -> str:
    """Of one question."""
    head = "| variant | steps | seeds | greedy return, IQM [95 %] | min | max | length "
    head += "| sampled return, IQM [95 %] | commit |"
    return "\n".join([head, "|---" * 9 + "|", *map(row, cells)]) + "\n"


def main(options: Options) -> int:
    """Measures what is missing, prints and writes."""
    if options.question not in QUESTIONS:
        print(f"unknown question, wanted one of {', '.join(QUESTIONS)}", file=sys.stderr)
        return 2
    path = options.output / f"{options.question}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    order = list(QUESTIONS[options.question][2])
    for name in () if options.report else options.only or order:
        same = [cell for cell in cells if cell["name"] == name]
        if same and not options.force:
            continue
        cell = measure(name, options)
        print(row(cell), file=sys.stderr, flush=True)
        cells = sorted(
            [c for c in cells if c not in same] + [cell], key=lambda c: order.index(c["name"])
        )
        path.write_text(json.dumps({"cells": cells}) + "\n")
    path.with_suffix(".md").write_text(table(cells))
    print(table(cells), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
