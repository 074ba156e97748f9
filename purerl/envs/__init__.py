"""Environments as pure functions; gymnax is imported when one of its environments is made."""

from purerl.envs.make import Env, Step, list_envs, make_env

__all__ = ["Env", "Step", "list_envs", "make_env"]
