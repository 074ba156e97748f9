"""Environments as pure functions; a family's package is imported when one of its is made."""

from purerl.envs.families import list_envs
from purerl.envs.make import Env, Step, make_env

__all__ = ["Env", "Step", "list_envs", "make_env"]
