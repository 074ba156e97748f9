"""How many seeds one needs: intervals of 5, 16, 64 and 256 seeds of PPO, and how often they hold.

    python benchmarks/seeds_needed.py            # trains 256 seeds each of CartPole and Acrobot
    python benchmarks/seeds_needed.py --report   # only table and picture

All 256 seeds together stand for the truth. Of n of them, drawn without replacement 200 times over:
the width of the 95 % bootstrap interval of the interquartile mean, how often it holds that of all
256, and how far apart two such means of n other seeds are by chance (95 % quantile). At three
moments: the first evaluation at which the mean of all seeds is half way from its first to its
highest, the one halfway between that and the end, and the end. The table has also the 64 seeds of
each of ``regression.py``'s short runs, treated alike.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from record import circumstances

import purerl
from purerl.host.report.plotting import save_plot
from purerl.host.report.tables import number

OUTPUT = Path(__file__).resolve().parent / "results" / "seeds_needed.json"
REGRESSION = OUTPUT.parents[2] / "tests" / "data" / "regression.json"
COUNTS = (5, 16, 64, 256)
DRAWS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the experiment."""

    envs: tuple[str, ...] = ("CartPole-v1", "Acrobot-v1")
    """Environments, at PPO's presets."""
    seeds: int = 256
    """All that are trained."""
    seed: int = 2000
    """Random seed."""
    report: bool = False
    """Train nothing."""
    force: bool = False
    """Train again what is there."""
    output: Path = OUTPUT
    """Result file; table and picture go beside it."""


class Spread:
    """How n of all seeds spread at one evaluation."""

    def __init__(self, returns: np.ndarray, count: int):
        """Draws them.

        Args:
            returns: Of all seeds, ``[S]``.
            count: n.
        """
        rng = np.random.default_rng(count)
        rows = [rng.permutation(len(returns)) for _ in range(DRAWS)]
        truth = purerl.iqm(returns)
        drawn = np.array([returns[row[:count]] for row in rows]).T  # [n, DRAWS]
        low, high = purerl.iqm_interval(drawn, resamples=1000)
        self.width = float(np.median(high - low))
        self.holds = float(np.mean((low <= truth) & (truth <= high)))
        # Other seeds than the first n, as far as there are so many.
        self.apart = None
        if 2 * count <= len(returns):
            other = np.array([returns[row[count : 2 * count]] for row in rows]).T
            self.apart = float(np.quantile(abs(purerl.iqm(drawn) - purerl.iqm(other)), 0.95))


def moments(returns: np.ndarray) -> list[int]:
    """Numbers of three evaluations, of ``[S, E]``."""
    mean = returns.mean(axis=0)
    rising = int(np.argmax(mean >= (mean[0] + mean.max()) / 2))
    last = len(mean) - 1
    return [rising, (rising + last) // 2, last]


def table(cells: list[dict[str, Any]]) -> str:
    """A row a moment and number of seeds."""
    rows = [
        "| environment | steps | IQM of all | seeds | width of the interval | holds | apart |",
        "|---" * 7 + "|",
    ]
    for cell in cells:
        returns = np.array(cell["returns"])
        for at in dict.fromkeys(moments(returns)):
            for count in (count for count in COUNTS if count <= len(returns)):
                spread = Spread(returns[:, at], count)
                apart = "-" if spread.apart is None else number(spread.apart)
                holds = "-" if count == len(returns) else f"{spread.holds:.0%}"
                rows.append(
                    f"| {cell['env']} | {cell['steps'][at]:,} "
                    f"| {number(float(purerl.iqm(returns[:, at])))} | {count} "
                    f"| {number(spread.width)} | {holds} | {apart} |"
                )
    return "\n".join(rows) + "\n"


def short_runs() -> list[dict[str, Any]]:
    """What ``regression.py`` measured, as cells with one evaluation."""
    return [
        {
            "env": f"{name}, a short run of CartPole",
            "steps": [cell["experiment"]["loop"]["steps"]],
            "returns": [[x] for x in cell["returns"]],
        }
        for name, cell in json.loads(REGRESSION.read_text()).items()
    ]


def plot(cells: list[dict[str, Any]]) -> Figure:
    """Width of the interval and how often it holds, against the number of seeds."""
    parts = {
        cell["env"]: {
            f"after {cell['steps'][at]:,} steps": np.array(cell["returns"])[:, at]
            for at in moments(np.array(cell["returns"]))
        }
        for cell in cells
    }
    parts["short runs of CartPole"] = {
        cell["env"].partition(",")[0]: np.array(cell["returns"])[:, 0] for cell in short_runs()
    }
    figure = Figure(figsize=(max(4.6 * len(parts), 7), 6.4), layout="constrained")
    axes = figure.subplots(2, len(parts), squeeze=False)
    for (upper, lower), (title, lines) in zip(axes.T, parts.items(), strict=True):
        for label, returns in lines.items():
            counts = [count for count in (4, 5, 8, 16, 32, 64) if count <= len(returns) / 2]
            spreads = [Spread(returns, count) for count in counts]
            upper.plot(counts, [x.width for x in spreads], label=label, marker=".")
            lower.plot(counts, [x.holds for x in spreads], label=label, marker=".")
        upper.set(title=title, ylabel="width of the 95 % interval", ylim=(0, None))
        lower.set(xlabel="seeds", ylabel="how often it holds", ylim=(0.7, 1.02))
        lower.axhline(0.95, color="gray", linestyle=":")
        for part in (upper, lower):
            part.set_xscale("log", base=2)
            part.xaxis.set_major_formatter("{x:g}")
            part.grid(alpha=0.3)
        upper.legend(fontsize="small", ncols=2)
    return figure


def main(options: Options) -> None:
    """Trains what is missing, writes table and picture."""
    path = options.output
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    for env in () if options.report else options.envs:
        same = [cell for cell in cells if cell["env"] == env]
        if same and not options.force:
            continue
        result = purerl.run("ppo_clip", env, seeds=options.seeds, seed=options.seed)
        cell = {
            "env": env,
            **circumstances("seeds_needed", options),
            "experiment": result.experiment.to_json(),
            "steps": result.steps.tolist(),
            "returns": np.round(result.returns, 2).tolist(),
        }
        cells = [x for x in cells if x not in same] + [cell]
        path.write_text(json.dumps({"cells": cells}) + "\n")
    text = table([*cells, *short_runs()])
    path.with_suffix(".md").write_text(text)
    save_plot(plot(cells), path.with_suffix(".png"))
    print(text, end="")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
