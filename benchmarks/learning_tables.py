"""From the files of ``learning.py`` to tables: each number of a table is computed here."""

import json
import pathlib
import tomllib
from collections.abc import Iterator
from typing import Any

import numpy as np
from cells import CELLS, GROUPS, Cell, short

import purerl
from purerl.host.report.tables import interval, number

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results" / "learning"
PUBLISHED = tomllib.loads((HERE / "published.toml").read_text())
SUMMARY = ("ppo_clip", "trpo", "acktr", "a2c", "dqn")  # columns of the README's table
EXPERIMENTS = (
    *("variants/breakout", "variants/a2c_pendulum", "variants/acrobot", "variants/acktr_hopper"),
    *("variants/acktr_double_pendulum", "variants/ppo_double_pendulum"),
    *("variants/late_double_pendulum", "variants/acktr_late_double_pendulum"),
    *("variants/ppo_late_double_pendulum", "variants/ppo_clip_log_std_hopper"),
    *("variants/ppo_clip_log_std_halfcheetah", "variants/trpo_log_std_hopper"),
    *("variants/ppo_mountaincar", "variants/a2c_mountaincar", "variants/acktr_mountaincar"),
    *("variants/policy_gradient_acrobot", "variants/bootstrapped"),
    *("seeds_needed", "breakout_plateaus"),
    *("trust_region", "ppo_kfac", "kl_clip", "acktr_momentum", "second_order_worth"),
    *("sample_space", "kfac_cost", "startup"),
)
Results = dict[str, dict[str, Any]]  # by the name of their cell


def read() -> Results:
    """All results."""
    found = (json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")))
    return {result["name"]: result for result in found}


def last(result: dict[str, Any]) -> np.ndarray:
    """Result of each seed: the mean of its last evaluations, ``[S]``."""
    return np.array(result["returns"])[:, -result.get("last", 1) :].mean(axis=1)


def iqm_text(x: np.ndarray) -> str:
    """Interquartile mean with its 95 % interval."""
    return interval(float(purerl.iqm(x)), *map(float, purerl.iqm_interval(x)))


def highest(result: dict[str, Any]) -> float:
    """Maximum over training of the mean over seeds, as published maxima are."""
    return float(np.array(result["returns"]).mean(axis=0).max())


def published(cell: Cell) -> dict[str, float]:
    """Figures of others, by source."""
    return PUBLISHED["figures"].get(short(cell.env), {}).get(cell.label, {})


def network(result: dict[str, Any]) -> str:
    """The default network, in words."""
    config = result["experiment"]["config"]["network"]
    sizes, channels = "-".join(map(str, config["hidden_sizes"])), config["conv_features"]
    torso = f"conv {channels}, " if config["torso"] != "mlp" else ""
    return f"{torso}{sizes} {config['activation']}{', shared' if config['shared'] else ''}"


def wanted(cell: Cell, results: np.ndarray) -> str:
    """The target that was set before measuring."""
    if cell.above is not None:
        return f"all above {cell.above:g}: {(results > cell.above).sum()} are"
    return "-" if cell.target is None else f"{cell.target:g}"


def columns(cell: Cell, result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Head and text of each."""
    results, others = last(result), published(cell)
    yield "algorithm", cell.label
    yield "environment", short(cell.env)
    if cell.group == "minatar":
        yield "network", network(result)
    yield "steps", f"{result['steps'][-1]:,}"
    yield "seeds", str(result["seeds"])
    yield "IQM of the return [95 %]", iqm_text(results)
    yield "worst seed", number(results.min())
    if cell.group == "mujoco":
        yield "maximum", number(highest(result))
        yield "minutes", f"{sum(result['seconds'].values()) / 60:.0f}"
    yield "wanted", wanted(cell, results)
    if cell.group in ("control", "minatar", "mujoco"):
        yield "published", ", ".join(f"{x:g} ({name})" for name, x in others.items()) or "-"
    yield "commit", (result["commit"] or "?")[:10]


def table(group: str, results: Results) -> str:
    """One group as a markdown table, with what was not run and the sources below it."""
    cells = [cell for cell in CELLS if cell.group == group]
    rows = [dict(columns(cell, results[cell.name])) for cell in cells if cell.name in results]
    missing = [cell.name for cell in cells if cell.name not in results]
    lines = [" | ".join(["", *line, ""]).strip() for line in (row.values() for row in rows)]
    if rows:
        lines = [" | ".join(["", *rows[0], ""]).strip(), "|" + "---|" * len(rows[0]), *lines]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    used = {name for cell in cells if cell.name in results for name in published(cell)}
    sources = [f"{name}: {x['text']}" for name, x in PUBLISHED["sources"].items() if name in used]
    if sources:
        lines += ["", f"Published: {'; '.join(sources)}."]
    return "\n".join(lines)


def summary(results: Results) -> str:
    """The README's table: interquartile means by task and algorithm."""
    tasks = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "Breakout-MinAtar")
    tasks += ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")
    lines = [" | ".join(["| environment", *SUMMARY, ""]).strip(), "|---" * (1 + len(SUMMARY)) + "|"]
    for task in tasks:
        found = [results.get(f"{name}-{task}") for name in SUMMARY]
        texts = (
            f"{number(float(purerl.iqm(last(x))))} ({x['seeds']})" if x else "-" for x in found
        )
        lines.append(" | ".join([f"| {task}", *texts, ""]).strip())
    return "\n".join(lines)


def sections(results: Results) -> dict[str, str]:
    """By name, what stands between the markers of that name; of experiments, their own tables."""
    groups = {group: table(group, results) for group in GROUPS}
    experiments = [HERE / "results" / f"{name}.md" for name in EXPERIMENTS]
    tables = {x.stem: x.read_text().strip() if x.exists() else "Not run." for x in experiments}
    return groups | tables | {"summary": summary(results)}


def filled(text: str, texts: dict[str, str]) -> str:
    """A page whose marked parts are made anew.

    Args:
        text: With ``<!-- learning: NAME -->`` ... ``<!-- end of learning: NAME -->``.
        texts: By name.
    """
    for name, made in texts.items():
        begin, end = f"<!-- learning: {name} -->\n", f"<!-- end of learning: {name} -->"
        if begin in text:
            head, rest = text.split(begin)
            text = f"{head}{begin}{made}\n{rest[rest.index(end) :]}"
    return text
