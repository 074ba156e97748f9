"""The only file that knows Navix, which tells termination from truncation itself."""

from typing import Any

import jax
import navix
import numpy as np
from navix.rendering.cache import RenderingCache

from purerl.config import check_choice
from purerl.envs.episodes import check_params, make_record
from purerl.envs.record import Env, Pictures
from purerl.records import Discrete

# Parameters that are functions, and where they are found by name.
FUNCTIONS: dict[str, Any] = {
    "observation_fn": navix.observations,
    "reward_fn": navix.rewards,
    "termination_fn": navix.terminations,
}
PICTURES = (navix.observations.rgb, navix.observations.rgb_first_person)
PARAMS = ("max_steps", "penality_coeff", *FUNCTIONS)


def list_envs() -> list[str]:
    """Names that :func:`named` takes."""
    return list(navix.registry())


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of Navix's.

    Args:
        name: Out of :func:`list_envs`.
        params: ``max_steps``, the time limit; ``penality_coeff``; ``observation_fn``, ``reward_fn``
            and ``termination_fn``, functions or their names in Navix, such as ``"rgb"``.
    """
    check_choice("unknown environment of navix", name, list_envs())
    check_params(f"navix:{name}", params, PARAMS)
    chosen = {key: _function(key, x) if key in FUNCTIONS else x for key, x in params.items()}
    return adapt(navix.make(name, **chosen), {}, f"navix:{name}")


def _function(key: str, value: Any) -> Any:
    """What a name stands for; functions as they are."""
    if not isinstance(value, str):
        return value
    module = FUNCTIONS[key]
    known = [x for x, f in vars(module).items() if getattr(f, "__module__", "") == module.__name__]
    check_choice(f"navix: unknown {key}", value, known)
    return getattr(module, value)


def adapt(env: Any, params: dict[str, Any], name: str | None = None) -> Env:
    """An environment of an object of Navix's.

    Args:
        env: A ``navix.Environment``.
        params: There are none; the object has them.
        name: Its name; that of its class by default.
    """
    name = name or type(env).__name__
    check_params(name, params, ["what navix.make takes"])

    # Pictures of the grid's tiles are hundreds of kilobytes, the same in every step, and made of
    # the grid, so they are not carried along.
    def bare(timestep):
        return timestep.replace(state=timestep.state.replace(cache=None))

    # Bytes stay bytes to a learner, who takes them for the brightness of pixels, which symbols in
    # bytes are not.
    picture = env.observation_fn in PICTURES

    def seen(obs):
        return obs if picture else obs.astype(float)

    def reset(key):
        timestep = env.reset(key)
        return seen(timestep.observation), bare(timestep)

    def step(timestep, action, key):
        del key  # its state has one
        cache = RenderingCache.init(timestep.state.grid)
        # Its own reset, one step after an end, is never due here; a constant says so to XLA.
        timestep = timestep.replace(
            state=timestep.state.replace(cache=cache), step_type=navix.StepType.TRANSITION
        )
        after = env.step(timestep, action)
        flags = after.is_termination(), after.is_truncation()
        return seen(after.observation), bare(after), after.reward, *flags

    actions, symbols = Discrete(len(env.action_set)), None if picture else (0.0, 255.0)
    limit, drawn = int(env.max_steps), Pictures(_frames, seconds=0.2)
    return make_record(name, reset, step, actions, limit=limit, obs_range=symbols, pictures=drawn)


def _frames(timesteps: list[Any]) -> list[np.ndarray]:
    return [np.asarray(_picture(timestep.state)) for timestep in timesteps]


@jax.jit
def _picture(state: Any) -> jax.Array:
    return navix.observations.rgb(state.replace(cache=RenderingCache.init(state.grid)))
