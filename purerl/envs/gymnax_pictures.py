"""Pictures of gymnax's environments, by gymnax's own means; imported packages are optional."""

from typing import Any

import numpy as np

from purerl.envs.record import Pictures

# Of gymnax.visualize.Visualizer.
BY_VISUALIZER = (
    *("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar"),
    *("Catch-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc", "Pong-misc"),
)
# Of gymnax.visualize.vis_gym: drawn by Gymnasium, with pygame. Seconds of a step.
BY_GYMNASIUM = {
    "Acrobot-v1": 0.2,
    "CartPole-v1": 0.02,
    "MountainCar-v0": 0.03,
    "MountainCarContinuous-v0": 0.03,
    "Pendulum-v1": 0.05,
}


def pictures(env: Any, params: Any) -> Pictures | None:
    """How an environment is drawn; None where gymnax has no picture of it.

    Args:
        env: With gymnax's interface.
        params: Its parameters.
    """
    name = getattr(env, "name", None)
    if not type(env).__module__.startswith("gymnax."):
        return None
    if name in BY_GYMNASIUM:
        return Pictures(lambda states: _by_gymnasium(name, params, states), BY_GYMNASIUM[name])
    if name in BY_VISUALIZER:
        return Pictures(lambda states: _by_visualizer(env, params, states), 0.1)
    return None


def _by_gymnasium(name: str, params: Any, states: list[Any]) -> list[np.ndarray]:
    import gymnasium
    from gymnax.visualize import vis_gym

    try:
        screen: Any = gymnasium.make(name, render_mode="rgb_array")
        screen.reset()
        drawn = [screen.render()]
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"pictures of {name} need pygame: pip install 'purerl[play]'.") from error
    bare = screen.unwrapped
    vis_gym.set_gym_params(bare, name, params)
    drawn = []
    for state in states:
        bare.state = vis_gym.get_gym_state(state, name)
        if hasattr(state, "last_u"):
            bare.last_u = np.asarray(state.last_u, float)
        drawn.append(screen.render())
    screen.close()
    return drawn


def _by_visualizer(env: Any, params: Any, states: list[Any]) -> list[np.ndarray]:
    import matplotlib.pyplot as plt
    from gymnax.visualize import Visualizer

    shown = Visualizer(env, params, states)
    shown.init()
    drawn = []
    for number in range(len(states)):
        shown.update(number)
        shown.fig.canvas.draw()
        drawn.append(np.array(shown.fig.canvas.buffer_rgba())[..., :3])
    plt.close(shown.fig)
    return drawn
