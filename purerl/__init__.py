"""purerl: reinforcement learning as pure functions, in JAX.

Whole training runs are pure functions of a key, under ``jit`` and ``vmap``; algorithms are records
of pure functions; every piece is usable alone.
"""

from purerl.algorithms import ALGORITHMS
from purerl.algorithms.a2c import A2CConfig, a2c
from purerl.algorithms.acktr import ACKTRConfig, acktr
from purerl.algorithms.dqn import DQNConfig, dqn
from purerl.algorithms.policy_gradient import PolicyGradientConfig, policy_gradient
from purerl.algorithms.ppo import PPOClipConfig, PPOPenaltyConfig, ppo_clip, ppo_penalty
from purerl.algorithms.trpo import NPGConfig, TRPOConfig, npg, trpo
from purerl.envs.make import Env, list_envs, make_env
from purerl.host.experiment import Experiment, make_experiment
from purerl.host.options import STOP, RunOptions, Terminated
from purerl.host.report.aggregate import iqm, iqm_interval
from purerl.host.report.plotting import plot_curves
from purerl.host.report.writers import Writer
from purerl.host.runs import RunResult, load_run, resume, run
from purerl.host.store.policy import evaluate_run, load_policy
from purerl.host.sweep.parts import resume_sweep, sweep
from purerl.host.sweep.points import samples
from purerl.host.sweep.result import SweepResult, load_sweep
from purerl.pieces.minibatches import minibatches, permutation
from purerl.pieces.returns import discounted_return, gae, lambda_return, n_step_return, return_to_go
from purerl.pieces.rollout import unroll
from purerl.policies.acting import default_network
from purerl.policies.distributions import Categorical, DiagGaussian
from purerl.policies.networks import MLP, ActorCritic, ActorQCritic, NetworkConfig, QNetwork
from purerl.records import (
    ActionSpace,
    Box,
    Clock,
    Cursor,
    Discrete,
    OffPolicyAlgorithm,
    OffPolicyBatch,
    OnPolicyAlgorithm,
    OnPolicyBatch,
    Rollout,
    Transition,
)
from purerl.replay.buffers import Replay, prioritized, uniform
from purerl.replay.transitions import ReplayMemory, replay_memory
from purerl.second_order.conjugate_gradient import CGResult, CGStop, conjugate_gradient
from purerl.second_order.line_search import LineSearchResult, backtracking_line_search
from purerl.second_order.products import fisher_diagonal, fisher_vector_product, hvp
from purerl.training.evaluation import Evaluation, evaluate
from purerl.training.seeds import take_seeds, use_all_cores, vectorize
from purerl.training.sizes import LoopConfig, OffPolicyLoopConfig, OnPolicyLoopConfig
from purerl.training.state import Train, TrainResult, TrainState
from purerl.training.train import make_train

__all__ = [
    # Environments
    "ActionSpace",
    "Box",
    "Discrete",
    "Env",
    "list_envs",
    "make_env",
    # Algorithms
    "ALGORITHMS",
    "A2CConfig",
    "ACKTRConfig",
    "DQNConfig",
    "NPGConfig",
    "OffPolicyAlgorithm",
    "OnPolicyAlgorithm",
    "PPOClipConfig",
    "PPOPenaltyConfig",
    "PolicyGradientConfig",
    "TRPOConfig",
    "a2c",
    "acktr",
    "dqn",
    "npg",
    "policy_gradient",
    "ppo_clip",
    "ppo_penalty",
    "trpo",
    # Whole runs
    "Clock",
    "Cursor",
    "Evaluation",
    "Train",
    "TrainResult",
    "TrainState",
    "evaluate",
    "make_train",
    "take_seeds",
    "use_all_cores",
    "vectorize",
    # From the host
    "Experiment",
    "LoopConfig",
    "OffPolicyLoopConfig",
    "OnPolicyLoopConfig",
    "RunOptions",
    "RunResult",
    "SweepResult",
    "Terminated",
    "Writer",
    "evaluate_run",
    "iqm",
    "iqm_interval",
    "STOP",
    "load_policy",
    "load_run",
    "load_sweep",
    "make_experiment",
    "plot_curves",
    "resume",
    "resume_sweep",
    "run",
    "samples",
    "sweep",
    # Second order
    "CGResult",
    "CGStop",
    "LineSearchResult",
    "backtracking_line_search",
    "conjugate_gradient",
    "fisher_diagonal",
    "fisher_vector_product",
    "hvp",
    # Pieces
    "ActorCritic",
    "ActorQCritic",
    "OffPolicyBatch",
    "Categorical",
    "DiagGaussian",
    "MLP",
    "NetworkConfig",
    "OnPolicyBatch",
    "QNetwork",
    "Replay",
    "ReplayMemory",
    "Rollout",
    "Transition",
    "default_network",
    "discounted_return",
    "gae",
    "lambda_return",
    "minibatches",
    "n_step_return",
    "permutation",
    "prioritized",
    "replay_memory",
    "return_to_go",
    "uniform",
    "unroll",
]
