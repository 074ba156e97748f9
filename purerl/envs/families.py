"""The families of environments, each an adapter of a package, imported when it is used.

An environment is named ``family:name``; gymnax's also go by their names alone.
"""

import importlib
import importlib.util
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import jax

from purerl.config import check_choice, see


class Family(NamedTuple):
    """One of them.

    Attributes:
        adapter: Its module, with ``list_envs() -> names``, ``named(name, params) -> Env`` and
            ``adapt(env, params) -> Env``.
        package: What must be installed for it.
        extra: The extra of purerl's that installs it.
    """

    adapter: str
    package: str
    extra: str | None


FAMILIES = {
    "gymnax": Family("purerl.envs.gymnax_adapter", "gymnax", None),
    "brax": Family("purerl.envs.brax_adapter", "brax", "brax"),
    "playground": Family("purerl.envs.playground_adapter", "mujoco_playground", "playground"),
    "jumanji": Family("purerl.envs.jumanji_adapter", "jumanji", "jumanji"),
    "navix": Family("purerl.envs.navix_adapter", "navix", "navix"),
    "craftax": Family("purerl.envs.craftax_adapter", "craftax", "craftax"),
    # Not written in JAX: the host plays them.
    "gymnasium": Family("purerl.host.players.gymnasium_adapter", "gymnasium", None),
    "envpool": Family("purerl.host.players.envpool_adapter", "envpool", "envpool"),
}


def split(name: str) -> tuple[str, str]:
    """Family and name within it.

    Args:
        name: ``family:name``, or a name of gymnax's.

    Raises:
        ValueError: If there is no such family.
    """
    family, colon, rest = name.rpartition(":")
    if not colon:
        return "gymnax", name
    check_choice(f"unknown environment {name!r}: unknown family", family, FAMILIES)
    return family, rest


def is_named(value: Any) -> bool:
    """Whether it is ``family:name``, which is no import path.

    Args:
        value: What a user gave for an environment.
    """
    return isinstance(value, str) and value.partition(":")[0] in FAMILIES and ":" in value


def plain_name(env: Any) -> Any:
    """A name of gymnax's without its family, as presets and folders have it; all else as it is.

    Args:
        env: What a user gave for an environment.
    """
    return env.removeprefix("gymnax:") if isinstance(env, str) else env


def is_installed(family: str) -> bool:
    """Whether its package is there.

    Args:
        family: Its name.
    """
    return importlib.util.find_spec(FAMILIES[family].package) is not None


def adapter(family: str) -> ModuleType:
    """Its adapter; imports its package.

    Args:
        family: Its name.

    Raises:
        ValueError: If the package is not installed; it names the extra that installs it.
    """
    module, package, extra = FAMILIES[family]
    if not is_installed(family):
        raise ValueError(
            f"the environments of {family} need the package {package}, which is not installed: "
            f"pip install 'purerl[{extra}]'. {see('environments.md')}"
        )
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")  # of what the package imports; nothing a user can mend
        return importlib.import_module(module)


def family_of(env: Any) -> str:
    """The family that an object is of, by the package of one of its classes; by default gymnax.

    Args:
        env: An environment of a user's.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(env).__mro__}
    return next((name for name, x in FAMILIES.items() if x.package in packages), "gymnax")


def list_envs(family: str | None = None) -> list[str]:
    """Names that :func:`purerl.make_env` takes.

    Args:
        family: Those of one family, such as ``"brax"``; by default of all that are installed, whose
            packages are imported for it.

    Returns:
        Names, such as ``"CartPole-v1"`` and ``"brax:hopper"``.

    Example:
        >>> "CartPole-v1" in list_envs("gymnax")
        True
    """
    if family is not None:
        check_choice("list_envs: unknown family", family, FAMILIES)
    wanted = [x for x in FAMILIES if is_installed(x)] if family is None else [family]
    names = {x: adapter(x).list_envs() for x in wanted}
    return [n if x == "gymnax" else f"{x}:{n}" for x in wanted for n in names[x]]
