"""A run as data: which algorithm, where, with which numbers; to JSON and back."""

import dataclasses
import json
import typing
from typing import Any

from purerl.algorithms import ALGORITHMS
from purerl.config import check_choice, suggest
from purerl.envs.make import Env, make_env
from purerl.host.presets import preset
from purerl.training.sizes import LoopConfig, OffPolicyLoopConfig, OnPolicyLoopConfig
from purerl.training.state import Train
from purerl.training.train import make_train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One algorithm on one environment, with all its numbers."""

    algorithm: str
    env: str
    config: Any
    loop: LoopConfig
    env_params: dict[str, Any] = dataclasses.field(default_factory=dict)

    def replace(self, **changes: Any) -> "Experiment":
        """A copy with other numbers.

        Args:
            **changes: Fields of the loop, of the algorithm's configuration, or of its network's.

        Raises:
            ValueError: If a field is unknown or a number out of range.
        """
        network: Any = self.config.network
        parts = {"loop": self.loop, "config": self.config, "network": network}
        fields = {k: {f.name for f in dataclasses.fields(part)} for k, part in parts.items()}
        for name in changes:
            if not any(name in names for names in fields.values()):
                near = suggest(name, sorted(set().union(*fields.values())))
                raise ValueError(f"{self.algorithm} has no option {name!r}. {near}")
        chosen = {
            part: {name: x for name, x in changes.items() if name in names}
            for part, names in fields.items()
        }
        if chosen["network"]:
            network = chosen["config"].get("network", network)
            chosen["config"]["network"] = dataclasses.replace(network, **chosen["network"])
        return dataclasses.replace(
            self,
            loop=dataclasses.replace(self.loop, **chosen["loop"]),
            config=dataclasses.replace(self.config, **chosen["config"]),
        )

    def parts(self) -> tuple[Any, Env]:
        """The algorithm, on-policy or off-policy, and the environment."""
        env = make_env(self.env, **self.env_params)
        return ALGORITHMS[self.algorithm].build(self.config, env.action_space), env

    def build(self) -> Train:
        """The training run, as pure functions."""
        algorithm, env = self.parts()
        return make_train(algorithm, env, **vars(self.loop))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; :meth:`from_json` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Experiment":
        """An experiment from :meth:`to_json`'s values.

        Args:
            data: As read from a run's ``config.json``.

        Raises:
            ValueError: If the algorithm or a field is unknown to this version of purerl.
        """
        check_choice("config.json", "algorithm", data["algorithm"], ALGORITHMS)
        config = ALGORITHMS[data["algorithm"]].config
        return cls(
            algorithm=data["algorithm"],
            env=data["env"],
            config=_from_dict(config, data["config"]),
            loop=_from_dict(_loop_config(data["algorithm"]), data["loop"]),
            env_params=data["env_params"],
        )


def make_experiment(algorithm: str, env: str, **changes: Any) -> Experiment:
    """An experiment with this environment's default numbers, and some of them changed.

    Args:
        algorithm: A name out of ``purerl.ALGORITHMS``.
        env: A name out of ``purerl.list_envs()``.
        **changes: Fields of the loop, of the algorithm's configuration, or of its network's.

    Raises:
        ValueError: If a name or a field is unknown.

    Example:
        >>> experiment = make_experiment("ppo_clip", "CartPole-v1", steps=50_000, clip=0.1)
        >>> experiment.loop.steps, experiment.config.clip
        (50000, 0.1)
    """
    check_choice("make_experiment", "algorithm", algorithm, ALGORITHMS)
    numbers = preset(algorithm, env)
    config_type, loop_type = ALGORITHMS[algorithm].config, _loop_config(algorithm)
    of_loop = {field.name for field in dataclasses.fields(loop_type)}
    default = Experiment(
        algorithm=algorithm,
        env=env,
        config=config_type(**{k: v for k, v in numbers.items() if k not in of_loop}),
        loop=loop_type(**{k: v for k, v in numbers.items() if k in of_loop}),
    )
    return default.replace(**changes)


def _loop_config(algorithm: str) -> type[LoopConfig]:
    return OffPolicyLoopConfig if ALGORITHMS[algorithm].off_policy else OnPolicyLoopConfig


def _from_dict(cls: type, data: dict[str, Any]) -> Any:
    """A (nested) dataclass from JSON's dictionaries and lists."""
    types = typing.get_type_hints(cls)
    for name in data:
        if name not in types:
            raise ValueError(
                f"config.json has the field {cls.__name__}.{name}, which this version of purerl "
                f"does not know. {suggest(name, types)}"
            )
    values = {}
    for name, value in data.items():
        if dataclasses.is_dataclass(types[name]):
            value = _from_dict(types[name], value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def dumps(data: Any) -> str:
    """JSON with an indent, and a newline at the end.

    Args:
        data: JSON-ready values.
    """
    return json.dumps(data, indent=2) + "\n"
