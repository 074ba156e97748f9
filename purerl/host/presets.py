"""Default numbers of each algorithm on each environment, out of ``presets.toml``."""

import functools
import pathlib
import re
import tomllib
from typing import Any

from purerl.policies.networks import NetworkConfig

MUJOCO = re.compile(
    "(gymnasium|envpool):(Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedDoublePendulum"
    "|InvertedPendulum|Pusher|Reacher|Swimmer|Walker2d)-v[0-9]+"
)
FILE = pathlib.Path(__file__).with_name("presets.toml")


@functools.cache
def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """All of them, by algorithm and environment.

    ``*`` is for every environment, ``MinAtar`` for each of its games, ``MuJoCo`` for each task.
    """
    tables = tomllib.loads(FILE.read_text())
    bases = tables.pop("base")
    for rows in tables.values():
        for env, row in rows.items():
            rows[env] = bases.get(row.pop("base", None), {}) | row
            if "network" in rows[env]:
                rows[env]["network"] = NetworkConfig(**rows[env]["network"])
    return tables


def preset(algorithm: Any, env: Any) -> dict[str, Any]:
    """Default numbers that differ from the general ones.

    Args:
        algorithm: Its name; there are none for what is not a name.
        env: The environment's name.
    """
    rows = presets().get(algorithm, {}) if isinstance(algorithm, str) else {}
    name = env if isinstance(env, str) else ""
    own = rows.get(_group(name), {})
    # The tables of results were made with so many episodes an evaluation.
    episodes = {"evaluation_episodes": 128} if own else {}
    return episodes | rows.get("*", {}) | own


def _group(name: str) -> str:
    """The row of an environment: its name, or that of its group."""
    if name.endswith("-MinAtar"):
        return "MinAtar"
    return "MuJoCo" if MUJOCO.fullmatch(name) else name
