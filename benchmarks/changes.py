"""What changed between two folders of results by more than chance.

    git worktree add /tmp/before HEAD~10
    python benchmarks/changes.py /tmp/before/benchmarks/results/learning benchmarks/results/learning

Each cell that is in both and was measured anew: a permutation test of the difference of the
interquartile means of its seeds, and Holm's correction for as many tests. The exit status is 1 if a
cell is worse. Cells whose steps differ are compared, and marked.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from learning_tables import iqm_text, last

import purerl
from purerl.host.report.tables import aligned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Two folders."""

    old: tyro.conf.Positional[Path]
    """The folder of the results before."""
    new: tyro.conf.Positional[Path]
    """And after."""
    level: float = 0.05
    """Probability that chance alone makes any cell differ."""
    permutations: int = 10_000
    """Random ones, of each cell."""


def p_value(x: np.ndarray, y: np.ndarray, permutations: int) -> float:
    """Of the hypothesis that the seeds of both ``[S]`` are drawn alike, by the difference of their
    interquartile means; two-sided.
    """
    both, rng = np.concatenate([x, y]), np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(len(both)), (permutations, 1)), axis=1).T
    drawn = both[order]
    differences = purerl.iqm(drawn[: len(x)]) - purerl.iqm(drawn[len(x) :])
    observed = abs(purerl.iqm(x) - purerl.iqm(y))
    # Sums in another order: what is equal may differ in the last bits.
    as_large = np.abs(differences) >= observed - 1e-9 * (1 + observed)
    return float((1 + as_large.sum()) / (1 + permutations))


def holm(p: list[float], level: float) -> list[bool]:
    """Which hypotheses are refused, so that any is refused wrongly with at most this probability.

    Example:
        >>> holm([0.02, 0.01, 0.5], 0.05)
        [True, True, False]
    """
    refused = [False] * len(p)
    for rank, i in enumerate(np.argsort(p)):
        if p[i] > level / (len(p) - rank):
            break
        refused[i] = True
    return refused


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by name."""
    if not (paths := sorted(folder.glob("*.json"))):
        raise SystemExit(f"{folder} holds no results, wanted a folder of learning.py's JSON files.")
    return {path.stem: json.loads(path.read_text()) for path in paths}


def main(options: Options) -> int:
    """Prints the table."""
    old, new = read(options.old), read(options.new)
    names = [name for name in old if name in new and old[name]["returns"] != new[name]["returns"]]
    pairs = [(last(old[name]), last(new[name])) for name in names]
    p = [p_value(x, y, options.permutations) for x, y in pairs]
    rows, worse = [["cell", "before", "after", "p", "by more than chance"]], 0
    for name, (x, y), chance, refused in zip(names, pairs, p, holm(p, options.level), strict=True):
        better = purerl.iqm(y) > purerl.iqm(x)
        worse += refused and not better
        verdict = ("better" if better else "WORSE") if refused else "-"
        if old[name]["steps"][-1] != new[name]["steps"][-1]:
            verdict += f", {old[name]['steps'][-1]:,} to {new[name]['steps'][-1]:,} steps"
        rows.append([name, iqm_text(x), iqm_text(y), f"{chance:.4f}", verdict])
    print(aligned(rows))
    print(
        f"{len(names)} cells measured anew, {len([n for n in old if n in new]) - len(names)} the "
        f"same, {len(old.keys() - new.keys())} gone, {len(new.keys() - old.keys())} new"
    )
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
