"""A run as data: which algorithm, where, with which numbers; to JSON and back."""

import dataclasses
import functools
import json
from typing import Any

import jax

from purerl.config import Config, plain, see, suggest
from purerl.envs import families
from purerl.envs.make import make_env
from purerl.envs.record import Env
from purerl.host import brought, env_params as parameters
from purerl.host.presets import preset
from purerl.policies.acting import beginnings
from purerl.policies.networks import NetworkConfig
from purerl.records import OffPolicyAlgorithm
from purerl.training.sizes import LoopConfig, OffPolicyLoopConfig, OnPolicyLoopConfig
from purerl.training.state import Train
from purerl.training.train import make_train

FORMAT = 3  # of a run's folder
PARTS = ("algorithm", "env", "network")  # names, import paths or objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One algorithm on one environment, with all its numbers; :func:`make_experiment` makes one.

    Algorithm, environment and network are each a name, an import path ``package.module:object``, or
    an object. The environment is made once, when it is first used, and so is the algorithm.

    Attributes:
        algorithm: A name, an import path, a function that builds, or a record.
        env: A name, an import path, or what :func:`purerl.make_env` takes.
        config: The algorithm's configuration.
        loop: Sizes of the run, :class:`purerl.OnPolicyLoopConfig` or of the other kind.
        network: A network, or an import path; None: the default one.
        env_params: Parameters of the environment, by name.
    """

    algorithm: Any
    env: Any
    config: Any
    loop: LoopConfig
    network: Any = None
    env_params: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "env_params", parameters.settled(self.env_params))

    @property
    def label(self) -> str:
        """What is trained where, in words."""
        return f"{brought.short_name(self.algorithm)} on {brought.short_name(self.env)}"

    @functools.cached_property
    def environment(self) -> Env:
        """The environment."""
        return make_env(brought.load(self.env), **self.env_params)

    def parts(self) -> tuple[Any, Env]:
        """The algorithm, on-policy or off-policy, and the environment."""
        return self._algorithm, self.environment

    def build(self) -> Train:
        """The training run, as pure functions."""
        return make_train(*self.parts(), **vars(self.loop))

    @functools.cached_property
    def _network(self) -> Any:
        return brought.network(self.network, self.environment.action_space)

    @functools.cached_property
    def _algorithm(self) -> Any:
        entry = brought.algorithm_entry(self.algorithm)
        return entry.build(self.config, self.environment.action_space, self._network)

    def options(self) -> dict[str, str]:
        """What :meth:`replace` can change, and where it is: loop, configuration, or its network."""
        network = getattr(self.config, "network", None)
        parts = {"network": network, "config": self.config, "loop": self.loop}
        return {name: part for part, x in parts.items() if x is not None for name in x.specs}

    def replace(self, **changes: Any) -> "Experiment":
        """A copy with other numbers.

        Args:
            **changes: Fields of the loop, of the algorithm's configuration, or of its network's;
                ``network``, a configuration or a network; ``env_params``.

        Raises:
            ValueError: If a field is unknown or a number out of range.
        """
        if not changes:
            return self
        own = {"env_params": changes.pop("env_params")} if "env_params" in changes else {}
        if "network" in changes and not isinstance(changes["network"], NetworkConfig):
            own["network"] = brought.named(changes.pop("network"))
        known = self.options()
        chosen: dict[str, dict[str, Any]] = {"loop": {}, "config": {}, "network": {}}
        for name, value in changes.items():
            if name not in known:
                label = brought.short_name(self.algorithm)
                if name == "network":
                    raise ValueError(
                        f"{label} has no configuration of a network: a NetworkConfig is for "
                        "algorithms of purerl.ALGORITHMS; give network=a network, such as "
                        "purerl.ActorCritic(action_space, config), or a function of the action "
                        f"space that returns one. {see('own.md#a-network')}"
                    )
                raise ValueError(f"{label} has no option {name!r}. {suggest(name, sorted(known))}")
            chosen[known[name]][name] = value
        config = dataclasses.replace(self.config, **chosen["config"])
        if chosen["network"]:
            network = dataclasses.replace(config.network, **chosen["network"])
            config = dataclasses.replace(config, network=network)
        loop = dataclasses.replace(self.loop, **chosen["loop"])
        changed = self._copy(loop=loop, config=config, **own)
        changed.parts()  # what does not fit together is refused here
        return changed

    def _copy(self, **fields: Any) -> "Experiment":
        """With other fields; the environment is not made anew."""
        changed = dataclasses.replace(self, **fields)
        if "env_params" not in fields and "environment" in vars(self):
            vars(changed)["environment"] = self.environment
        return changed

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; :meth:`from_json` is the inverse. Objects are described."""
        key = jax.random.key(0)

        def obs() -> Any:
            return jax.tree.map(lambda x: x[None], self.environment.reset(key)[0])

        tells = {
            "algorithm": lambda: self._algorithm.init(obs(), key),
            "env": lambda: self.environment.reset(key),
            "network": lambda: self._network.init(key, *beginnings(self._network, obs())),
        }
        return {
            "format": FORMAT,
            **{name: brought.recorded(getattr(self, name), tell) for name, tell in tells.items()},
            **{name: plain(getattr(self, name)) for name in ("config", "loop")},
            "env_params": parameters.described(self.env_params),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], **given: Any) -> "Experiment":
        """An experiment from :meth:`to_json`'s values.

        Args:
            data: As read from a run's ``config.json``; the code that its import paths name is
                imported.
            **given: ``algorithm``, ``env``, ``network``, where they were objects; what was a
                function of progress; of ``env_params`` those with functions that no import path
                names.

        Raises:
            ValueError: If the algorithm or a field is unknown to this version of purerl, or what
                was an object is not given.
        """
        check_format(data)
        parts = {name: given.pop(name, None) for name in PARTS}
        for name in PARTS:
            part = data.get(name) if parts[name] is None else parts[name]
            if isinstance(part, dict):
                raise ValueError(
                    f"this run was begun with {name}={part['object']}, an object that no import "
                    f"path names; give it again ({name}=...)."
                )
            parts[name] = brought.named(part)
        loop = OffPolicyLoopConfig if "replay_obs" in data["loop"] else OnPolicyLoopConfig
        config = brought.algorithm_entry(parts["algorithm"]).config
        own = dict(given.pop("env_params", {}))
        made = cls(
            **parts,
            config=_from_dict(config, data["config"], given),
            loop=_from_dict(loop, data["loop"], given),
            env_params=parameters.restored(data["env_params"], own),
        )
        given |= own
        if given:
            raise ValueError(
                f"{', '.join(given)} need not be given again, and cannot be changed here: a run "
                "keeps its numbers (resume has steps=, evaluate_run episodes=; for others begin "
                f"a new run, with start_from). {suggest(next(iter(given)), PARTS)}"
            )
        return made


def make_experiment(
    algorithm: Any,
    env: Any,
    *,
    network: Any = None,
    env_params: dict[str, Any] | None = None,
    **changes: Any,
) -> Experiment:
    """An experiment with this environment's default numbers, and some of them changed.

    Args:
        algorithm: A name out of ``purerl.ALGORITHMS``; an import path ``package.module:function``
            of a function ``(action_space, *, network=None, **options)`` that returns an algorithm,
            whose options become fields of the configuration; such a function; or an algorithm.
        env: A name out of ``purerl.list_envs()``; an import path of a function or class that makes
            an environment; an object with gymnax's interface; or a :class:`purerl.Env`.
        network: A :class:`purerl.NetworkConfig` of the default network; a network; or an import
            path of a function of the action space that makes one.
        env_params: Fields of the environment's parameters, or keyword arguments of what makes it:
            numbers, texts, arrays, functions, tuples (of a list, too, it gets a tuple) and dicts.
        **changes: Fields of the loop, of the algorithm's configuration, or of its network's.

    Returns:
        What :func:`purerl.run` and :func:`purerl.sweep` take; ``replace(**changes)`` gives another.

    Raises:
        ValueError: If a name or a field is unknown, a number out of range, or the algorithm does
            not fit the environment.
        TypeError: If something is none of these.

    Example:
        >>> experiment = make_experiment("ppo_clip", "CartPole-v1", steps=50_000, clip=0.1)
        >>> experiment.loop.steps, experiment.config.clip
        (50000, 0.1)
    """
    algorithm, env = brought.named(algorithm), families.plain_name(brought.named(env))
    if isinstance(network, NetworkConfig):  # a field of the algorithm's configuration
        changes = {"network": network} | changes
        network = None
    default = Experiment(
        algorithm=algorithm,
        env=env,
        network=brought.named(network),
        config=brought.algorithm_entry(algorithm).config(),
        loop=OnPolicyLoopConfig(),
        env_params=env_params or {},
    )
    if isinstance(default.parts()[0], OffPolicyAlgorithm):
        default = default._copy(loop=OffPolicyLoopConfig())
    return default.replace(**preset(algorithm, env) | changes)


def _from_dict(cls: type[Config], data: dict[str, Any], given: dict[str, Any]) -> Any:
    """A (nested) configuration from JSON's dictionaries and lists."""
    values = {}
    for name, value in data.items():
        if name not in cls.specs:
            raise ValueError(
                f"config.json has the field {cls.__name__}.{name}, which this version of purerl "
                f"does not know. {suggest(name, cls.specs)}"
            )
        if isinstance(value, dict) and "schedule" not in value:
            value = _from_dict(cls.specs[name].kind, value, given)
        elif isinstance(value, dict):  # a function, recorded by some of its values
            if name not in given:
                raise ValueError(
                    f"this run was begun with a function of progress for {name}, which takes the "
                    f"values {value['schedule']}; give it again ({name}=...)."
                )
            value = given.pop(name)
        values[name] = value
    return cls(**values)


def check_format(data: dict[str, Any], where: str = "config.json") -> None:
    """Raises ValueError where something in a run's folder is of another format than this version's.

    Args:
        data: What it holds.
        where: What it is, for the message.
    """
    if data.get("format") != FORMAT:
        raise ValueError(
            f"{where} has the format {data.get('format', 1)}, this version of purerl reads format "
            f"{FORMAT}: of an older run the evaluations and their plot can be read, but not "
            "continued, evaluated again, or acted with; use the version that wrote it."
        )


def dumps(data: Any) -> str:
    """JSON with an indent, and a newline at the end.

    Args:
        data: JSON-ready values.
    """
    return json.dumps(data, indent=2) + "\n"
