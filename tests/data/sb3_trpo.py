# ruff: noqa: E402 - sb3-contrib is there only after the first lines have run
"""One ``TRPO.train()`` of sb3-contrib in float64, as an oracle of purerl's: makes ``sb3_trpo.npz``.

    python tests/data/sb3_trpo.py    # with any Python; sb3-contrib goes into an environment apart

Each case of ``CASES`` is a batch of random samples, a policy and a critic (two separate tanh
networks, hidden layers of 8), and what ``train()`` made of them. sb3-contrib's own code runs, but
for these differences, which are patched (``patched``):

- conjugate gradients start at zeros, not at 1e-4 times normal noise;
- the KL divergence is KL(old || new), not KL(new || old); its Hessian at the old policy is equal;
- the KL divergence of a Gaussian is summed over the action's dimensions: sb3-contrib takes the mean
  over them as over the samples, so with d dimensions it bounds KL / d;
- advantages are divided by the population standard deviation, not by that with N - 1;
- nothing is cast to float32: not observations, not actions, not what the rollout buffer holds;
- the samples come in one fixed order. The critic's minibatch is the whole batch.

Keys are ``CASE/NAME``, and where NAME is one of the trees, ``CASE/NAME/PATH`` with the path of each
parameter in purerl's ``ActorCritic`` and its layout there (kernels ``[in, out]``). So

    data = np.load("sb3_trpo.npz")
    flat = {k.removeprefix("CASE/params/"): v for k, v in data.items() if "CASE/params/" in k}
    params = {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}

Trees of all parameters:
    params, new_params: before and after ``train()``.
Trees of the policy's parameters (actor, policy_head):
    gradient: g of the surrogate mean(normalized advantage * ratio), which is maximized.
    vector, fisher_vector: any v, and (H + damping I) v with H the Hessian of the mean KL.
    direction: x, what conjugate gradients made of (H + damping I) x = g.
Arrays:
    obs [B, O], action [B] or [B, A], log_prob [B] (old), advantage [B] (raw),
    normalized_advantage [B], target [B] (of the critic).
Scalars of the policy's step:
    cg_iterations_done; cg_residual (norm of g - (H + damping I) x);
    step_size: sqrt(2 target_kl / x^T (H + damping I) x), the factor of x before any shrinking;
    accepted; shrinks (before acceptance, or tries made in vain); step_fraction (0 if refused);
    tried_kl [tries]: KL(old || new) of each try; surrogate, new_surrogate; kl (0 if refused).
    A try is accepted if its KL < target_kl and its surrogate > the old one.
Scalars of the critic's fit (Adam on mean((target - v)^2); with half of that loss, half of adam_eps
gives the same updates):
    value_loss: mean over the updates of the loss before each.
Settings:
    target_kl, damping, cg_iterations, backtrack_factor, backtrack_steps, critic_learning_rate,
    critic_epochs, adam_eps.
``versions``: of sb3-contrib, stable-baselines3 and torch.
"""

import contextlib
import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
if __name__ == "__main__" and importlib.util.find_spec("sb3_contrib") is None:
    sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
    import isolated

    python = isolated.python_with(*isolated.SB3, isolated.default_cache())
    call = [str(python), str(Path(__file__).resolve())]
    sys.exit(subprocess.run(call, check=False, env=isolated.clean_environment()).returncode)

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from sb3_contrib import TRPO
from sb3_contrib.common.utils import conjugate_gradient_solver
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import RolloutBufferSamples

BATCH = 64
HIDDEN = (8, 8)
GAIN = 1.5  # of the initial kernels: the policy is far from uniform
FLAX_LAYERS = {
    "mlp_extractor.policy_net.0": "actor/MLP_0/Dense_0",
    "mlp_extractor.policy_net.2": "actor/MLP_0/Dense_1",
    "action_net": "policy_head/Dense_0",
    "mlp_extractor.value_net.0": "critic/MLP_0/Dense_0",
    "mlp_extractor.value_net.2": "critic/MLP_0/Dense_1",
    "value_net": "value_head",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One problem."""

    space: gymnasium.Space
    obs_size: int
    seed: int
    target_kl: float = 0.01


THREE = gymnasium.spaces.Discrete(3)
PLANE = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)
CASES = {
    "categorical": Case(space=THREE, obs_size=4, seed=0),
    "gaussian": Case(space=PLANE, obs_size=3, seed=1),
    # Bounds far beyond where the quadratic model holds. Shrinking: two tries are too far, two do
    # not improve the surrogate, the fifth is accepted. Refused: none of ten is.
    "shrinking": Case(space=PLANE, obs_size=3, seed=1, target_kl=5.0),
    "refused": Case(space=PLANE, obs_size=3, seed=1, target_kl=100.0),
}


class Stub(gymnasium.Env):
    """Only the spaces of an environment."""

    def __init__(self, case: Case):
        self.observation_space = gymnasium.spaces.Box(-9.0, 9.0, (case.obs_size,), np.float64)
        self.action_space = case.space


class Batch(RolloutBuffer):
    """The whole batch at once, in its own order and precision; ``samples`` is set from outside."""

    samples: RolloutBufferSamples

    def get(self, batch_size=None):
        """Once, whatever the size asked for."""
        yield self.samples


class Spy:
    """Stands in for two functions of sb3-contrib and notes what passes through them."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.kl: list[float] = []

    def kl_from_old(self, new, old):
        """KL(old || new) of each sample."""
        kl = torch.distributions.kl_divergence(old.distribution, new.distribution)
        kl = kl if kl.ndim == 1 else kl.sum(dim=1)
        self.kl.append(kl.mean().item())
        return kl

    def solve(self, product, gradient, max_iter):
        """sb3-contrib's conjugate gradients."""
        self.gradient = gradient
        self.vector = torch.from_numpy(self.rng.normal(size=gradient.shape))
        self.fisher_vector = product(self.vector)
        counted = mock.Mock(side_effect=product)
        self.direction = conjugate_gradient_solver(counted, gradient, max_iter)
        self.iterations = counted.call_count - 1  # the first product is with the start
        self.image = product(self.direction)
        return self.direction


@contextlib.contextmanager
def patched(spy: Spy):
    """The differences listed above."""
    std = torch.Tensor.std
    with contextlib.ExitStack() as stack:
        for name, stand_in in (
            ("sb3_contrib.trpo.trpo.kl_divergence", spy.kl_from_old),
            ("sb3_contrib.trpo.trpo.conjugate_gradient_solver", spy.solve),
            ("stable_baselines3.common.policies.preprocess_obs", lambda obs, *_, **__: obs),
            ("torch.randn_like", torch.zeros_like),
            ("torch.Tensor.std", lambda x: std(x, correction=0)),
        ):
            stack.enter_context(mock.patch(name, stand_in))
        yield


def make_agent(case: Case, rng: np.random.Generator) -> TRPO:
    """An agent with random parameters."""
    agent = TRPO(
        "MlpPolicy",
        Stub(case),
        learning_rate=1e-3,
        n_steps=BATCH,
        batch_size=BATCH,
        cg_max_steps=10,
        cg_damping=0.1,
        line_search_shrinking_factor=0.8,
        line_search_max_iter=10,
        n_critic_updates=3,
        target_kl=case.target_kl,
        rollout_buffer_class=Batch,
        policy_kwargs={"net_arch": {"pi": list(HIDDEN), "vf": list(HIDDEN)}},
        device="cpu",
    )
    agent.set_logger(Logger(None, []))
    for name, parameter in agent.policy.named_parameters():
        draw = rng.normal(size=parameter.shape)
        if name == "log_std":
            value = 0.3 * draw - 0.5
        elif name.endswith("weight"):
            value = GAIN * draw / np.sqrt(parameter.shape[1])
        else:
            value = 0.3 * draw
        parameter.data = torch.from_numpy(value)
    return agent


def make_samples(case: Case, agent: TRPO, rng: np.random.Generator) -> RolloutBufferSamples:
    """Random observations, advantages and targets; actions of the policy."""
    obs = torch.from_numpy(rng.normal(size=(BATCH, case.obs_size)))
    torch.manual_seed(case.seed)
    with torch.no_grad():
        action, value, log_prob = agent.policy(obs)
    advantage = torch.from_numpy(0.7 + 2.0 * rng.normal(size=BATCH))
    target = torch.from_numpy(1.0 + 3.0 * rng.normal(size=BATCH))
    return RolloutBufferSamples(obs, action, value[:, 0], log_prob, advantage, target)


def flax_path(name: str) -> str:
    """Where purerl's ``ActorCritic`` has the parameter that PyTorch calls ``name``."""
    layer, _, kind = name.rpartition(".")
    if not layer:
        return f"policy_head/{name}"
    return f"{FLAX_LAYERS[layer]}/{'kernel' if kind == 'weight' else kind}"


def all_parameters(agent: TRPO, tree: str) -> dict[str, np.ndarray]:
    """A copy of every parameter, in flax's layout."""
    named = agent.policy.named_parameters()
    return {f"{tree}/{flax_path(name)}": p.detach().numpy().T.copy() for name, p in named}


def policy_tree(agent: TRPO, tree: str, vector: torch.Tensor) -> dict[str, np.ndarray]:
    """A flat vector over the policy's parameters, in flax's layout."""
    named = [(n, p) for n, p in agent.policy.named_parameters() if "value" not in n]
    pieces = vector.detach().split([p.numel() for _, p in named])
    return {
        f"{tree}/{flax_path(name)}": piece.view(p.shape).numpy().T
        for (name, p), piece in zip(named, pieces, strict=True)
    }


def run(case: Case) -> dict[str, np.ndarray]:
    """Everything that is saved of one case."""
    rng = np.random.default_rng(case.seed)
    spy = Spy(case.seed + 100)
    agent = make_agent(case, rng)
    with patched(spy):
        samples = make_samples(case, agent, rng)
        agent.rollout_buffer.samples = samples
        before = all_parameters(agent, "params")
        agent.train()
    log = agent.logger.name_to_value
    accepted = bool(log["train/is_line_search_success"])
    tries = spy.kl[1:]  # the first one is that of the old policy with itself
    shrinks = len(tries) - accepted
    advantage = samples.advantages.numpy()
    normalized = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    return {
        **before,
        **all_parameters(agent, "new_params"),
        **policy_tree(agent, "gradient", spy.gradient),
        **policy_tree(agent, "vector", spy.vector),
        **policy_tree(agent, "fisher_vector", spy.fisher_vector),
        **policy_tree(agent, "direction", spy.direction),
        "obs": samples.observations.numpy(),
        "action": samples.actions.numpy(),
        "log_prob": samples.old_log_prob.numpy(),
        "advantage": advantage,
        "normalized_advantage": normalized,
        "target": samples.returns.numpy(),
        "cg_iterations_done": spy.iterations,
        "cg_residual": torch.linalg.norm(spy.gradient - spy.image).item(),
        "step_size": np.sqrt(2 * case.target_kl / float(spy.direction @ spy.image)),
        "accepted": accepted,
        "shrinks": shrinks,
        "step_fraction": agent.line_search_shrinking_factor**shrinks * accepted,
        "tried_kl": tries,
        "surrogate": normalized.mean(),  # the ratio is 1
        "new_surrogate": log["train/policy_objective"],
        "kl": log["train/kl_divergence_loss"],
        "value_loss": log["train/value_loss"],
        "target_kl": case.target_kl,
        "damping": agent.cg_damping,
        "cg_iterations": agent.cg_max_steps,
        "backtrack_factor": agent.line_search_shrinking_factor,
        "backtrack_steps": agent.line_search_max_iter,
        "critic_learning_rate": agent.learning_rate,
        "critic_epochs": agent.n_critic_updates,
        "adam_eps": agent.policy.optimizer.defaults["eps"],
    }


def main() -> None:
    """Runs the cases, says what came of them and writes the file."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    modules = (sb3_contrib, stable_baselines3, torch)
    arrays = {"versions": np.array([f"{m.__name__} {m.__version__}" for m in modules])}
    for name, case in CASES.items():
        saved = {key: np.asarray(value) for key, value in run(case).items()}
        for key, value in saved.items():
            if value.dtype.kind == "f" and value.dtype != np.float64:
                raise TypeError(f"{name}/{key} is {value.dtype}, wanted float64")
            arrays[f"{name}/{key}"] = value
        print(
            f"{name}: accepted {saved['accepted']} after {saved['shrinks']} shrinks; "
            f"KL of the tries {np.array2string(saved['tried_kl'], precision=4)}, "
            f"bound {case.target_kl}; surrogate {saved['surrogate']:.4f} -> "
            f"{saved['new_surrogate']:.4f}; step size {saved['step_size']:.4f}; "
            f"{saved['cg_iterations_done']} CG iterations to residual {saved['cg_residual']:.2e}; "
            f"value loss {saved['value_loss']:.4f}"
        )
    path = HERE / "sb3_trpo.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
