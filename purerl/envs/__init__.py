"""Environments as pure functions; a family's package is imported when one of its is made."""

from purerl.envs.families import list_envs
from purerl.envs.make import make_env
from purerl.envs.record import Env, Step

__all__ = ["Env", "Step", "list_envs", "make_env"]
