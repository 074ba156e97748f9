"""The environments of all seeds in the middle of their episodes, and rollouts of them."""

from typing import Any

import jax
import numpy as np

from purerl.host.players.player import Moved, PlayedError, Player, Watch
from purerl.records import PyTree

KEPT = "(The run's last checkpoint is kept.)"


class Actors:
    """The environments of all seeds in the middle of their episodes, ``[S, N]`` each.

    Attributes:
        player: Of S * N environments.
        obs: What to act on next, leaves ``[S, N, ...]``.
        returns: Sums of the running episodes' rewards.
        lengths: Their steps.
    """

    def __init__(self, player: Player, seeds: int, num_envs: int, seconds: float):
        """Begins an episode in each.

        Args:
            player: Of S * N environments.
            seeds: S.
            num_envs: N.
            seconds: That a step, or a reset, may take.
        """
        self.player, self.watch = player, Watch(seconds)
        self.seeds, self.num_envs, self.steps = seeds, num_envs, 0
        self.obs = self._by_seed(self._call("reset", player.reset))
        self.returns = np.zeros((seeds, num_envs))
        self.lengths = np.zeros((seeds, num_envs), np.int32)

    def reset(self) -> None:
        """Begins anew in each."""
        self.obs = self._by_seed(self._call("reset", self.player.reset))
        self.returns[:], self.lengths[:] = 0, 0

    def step(self, action: np.ndarray, running: np.ndarray | None = None) -> Moved:
        """One step of all, or of those that are running.

        Args:
            action: ``[S, N, *A]``.
            running: bool ``[S, N]``; the others keep their observations.

        Returns:
            What happened, ``[S, N]``; of those that were not stepped it is not valid.
        """
        flat = action.reshape(-1, *action.shape[2:])
        if running is None or running.all():
            moved = self._call("step", self.player.step, flat)
            moved = jax.tree.map(self._by_seed, moved)
        else:
            rows = np.flatnonzero(running)
            part = self._call("step", self.player.step, flat[rows], rows)
            moved = self._among(part, rows)
        self.steps += 1
        self.obs = moved.obs
        self.returns += np.where(moved.valid, moved.reward, 0)
        self.lengths += moved.valid
        return moved

    def ended(self, moved: Moved) -> np.ndarray:
        """Whose episodes ended; their sums begin at zero after :meth:`begin_anew`."""
        return moved.valid & (moved.terminated | moved.truncated)

    def begin_anew(self, ended: np.ndarray) -> None:
        """Running sums of new episodes.

        Args:
            ended: bool ``[S, N]``.
        """
        self.returns[ended], self.lengths[ended] = 0, 0

    def close(self) -> None:
        """Closes the player."""
        self.watch.close()
        self.player.close()

    def _by_seed(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(self.seeds, -1, *x.shape[1:]), tree)

    def _among(self, part: Moved, rows: np.ndarray) -> Moved:
        """What some rows did, with the others as they were."""
        shape = self.lengths.shape

        def spread(x: np.ndarray, rest: np.ndarray) -> np.ndarray:
            whole = rest.reshape(-1, *rest.shape[2:]).copy()
            whole[rows] = x
            return whole.reshape(rest.shape)

        obs, next_obs = (jax.tree.map(spread, x, self.obs) for x in (part.obs, part.next_obs))
        no = np.zeros(shape, bool)
        others = [np.zeros(shape), no, no, no]
        return Moved(obs, next_obs, *(spread(x, y) for x, y in zip(part[2:], others, strict=True)))

    def _call(self, what: str, function: Any, *args: Any) -> Any:
        try:
            return self.watch.call(function, *args)
        except PlayedError as error:
            raise PlayedError(f"{self._where(error.row)}, in {what}: {error} {KEPT}") from error
        except TimeoutError as error:
            wanted = "give env_seconds if they need longer"
            raise PlayedError(f"{self._where()}, in {what}: {error}; {wanted}. {KEPT}") from error
        except Exception as error:
            kind = f"{type(error).__name__}: {error}"
            raise PlayedError(f"{self._where()}, in {what}: {kind} {KEPT}") from error

    def _where(self, row: int | None = None) -> str:
        """Which environment, and when."""
        when = f"at step {self.steps} since this process began to play"
        if row is None:
            return f"an environment of seeds 0 to {self.seeds - 1} failed {when}"
        return f"environment {row % self.num_envs} of seed {row // self.num_envs} failed {when}"
