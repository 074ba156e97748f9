"""Default numbers of each algorithm on each environment, out of ``presets.toml``."""

import functools
import pathlib
import tomllib
from typing import Any

from purerl.policies.networks import NetworkConfig

FILE = pathlib.Path(__file__).with_name("presets.toml")
MINATAR = (
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
)


@functools.cache
def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """All of them, by algorithm and environment; ``*`` is for every environment."""
    tables = tomllib.loads(FILE.read_text())
    bases = tables.pop("base")
    read: dict[str, dict[str, dict[str, Any]]] = {}
    for algorithm, rows in tables.items():
        read[algorithm] = {}
        for env, row in rows.items():
            numbers = bases.get(row.pop("base", None), {}) | row
            if "network" in numbers:
                numbers["network"] = NetworkConfig(**numbers["network"])
            names = MINATAR if env == "MinAtar" else (env,)
            read[algorithm] |= dict.fromkeys(names, numbers)
    return read


def preset(algorithm: str, env: str) -> dict[str, Any]:
    """Default numbers that differ from the general ones.

    Args:
        algorithm: Its name.
        env: The environment's name.
    """
    rows = presets().get(algorithm, {})
    # The tables of results were made with so many episodes an evaluation.
    episodes = {"evaluation_episodes": 128} if env in rows else {}
    return episodes | rows.get("*", {}) | rows.get(env, {})
