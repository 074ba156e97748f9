"""Default numbers of each algorithm on each environment, out of ``presets.toml``."""

import functools
import pathlib
import tomllib
from typing import Any

from purerl.policies.networks import NetworkConfig

FILE = pathlib.Path(__file__).with_name("presets.toml")


@functools.cache
def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """All of them, by algorithm and environment.

    ``*`` is for every environment, ``MinAtar`` for each of its games.
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
    own = rows.get("MinAtar" if name.endswith("-MinAtar") else name, {})
    # The tables of results were made with so many episodes an evaluation.
    episodes = {"evaluation_episodes": 128} if own else {}
    return episodes | rows.get("*", {}) | own
