"""The public names: each stands here once, and ``__init__.py`` reads where it comes from."""

from purerl.algorithms import ALGORITHMS as ALGORITHMS
from purerl.algorithms.a2c import A2CConfig as A2CConfig, a2c as a2c
from purerl.algorithms.acktr import ACKTRConfig as ACKTRConfig, acktr as acktr
from purerl.algorithms.dqn import DQNConfig as DQNConfig, dqn as dqn
from purerl.algorithms.policy_gradient import (
    PolicyGradientConfig as PolicyGradientConfig,
    policy_gradient as policy_gradient,
)
from purerl.algorithms.ppo import (
    PPOClipConfig as PPOClipConfig,
    PPOPenaltyConfig as PPOPenaltyConfig,
    ppo_clip as ppo_clip,
    ppo_penalty as ppo_penalty,
)
from purerl.algorithms.trpo import (
    NPGConfig as NPGConfig,
    TRPOConfig as TRPOConfig,
    npg as npg,
    trpo as trpo,
)
from purerl.envs.families import list_envs as list_envs
from purerl.envs.make import make_env as make_env
from purerl.envs.record import Env as Env, Step as Step
from purerl.envs.wrappers import (
    observe_last_step as observe_last_step,
    observe_only as observe_only,
)
from purerl.host.comparison import Comparison as Comparison, compare as compare
from purerl.host.compilation import cached_programs as cached_programs, compile as compile
from purerl.host.experiment import Experiment as Experiment, make_experiment as make_experiment
from purerl.host.options import (
    STOP as STOP,
    RunOptions as RunOptions,
    Terminated as Terminated,
)
from purerl.host.play import play as play
from purerl.host.report.aggregate import (
    iqm as iqm,
    iqm_interval as iqm_interval,
    optimality_gap as optimality_gap,
    performance_profile as performance_profile,
    probability_of_improvement as probability_of_improvement,
    stratified_interval as stratified_interval,
    task_iqm as task_iqm,
    task_mean as task_mean,
    task_median as task_median,
)
from purerl.host.report.plotting import plot_curves as plot_curves
from purerl.host.report.writers import Writer as Writer
from purerl.host.result import RunResult as RunResult, load_run as load_run
from purerl.host.runs import resume as resume, run as run
from purerl.host.store.policy import evaluate_run as evaluate_run, load_policy as load_policy
from purerl.host.sweep.parts import resume_sweep as resume_sweep, sweep as sweep
from purerl.host.sweep.points import samples as samples
from purerl.host.sweep.result import SweepResult as SweepResult, load_sweep as load_sweep
from purerl.pieces.minibatches import minibatches as minibatches, permutation as permutation
from purerl.pieces.returns import (
    discounted_return as discounted_return,
    gae as gae,
    lambda_return as lambda_return,
    n_step_return as n_step_return,
    return_to_go as return_to_go,
)
from purerl.pieces.rollout import unroll as unroll
from purerl.policies.acting import default_network as default_network
from purerl.policies.adapters import (
    NetworkFunctions as NetworkFunctions,
    from_equinox as from_equinox,
    from_nnx as from_nnx,
)
from purerl.policies.distributions import (
    Categorical as Categorical,
    DiagGaussian as DiagGaussian,
    Distribution as Distribution,
    MultiCategorical as MultiCategorical,
)
from purerl.policies.memory import (
    RecurrentActorCritic as RecurrentActorCritic,
    RecurrentActorQCritic as RecurrentActorQCritic,
)
from purerl.policies.networks import (
    MLP as MLP,
    ActorCritic as ActorCritic,
    Network as Network,
    NetworkConfig as NetworkConfig,
    RecurrentNetwork as RecurrentNetwork,
)
from purerl.policies.q_networks import ActorQCritic as ActorQCritic, QNetwork as QNetwork
from purerl.records import (
    ActionSpace as ActionSpace,
    Ahead as Ahead,
    Box as Box,
    Clock as Clock,
    Cursor as Cursor,
    Discrete as Discrete,
    MultiDiscrete as MultiDiscrete,
    OffPolicyAlgorithm as OffPolicyAlgorithm,
    OffPolicyBatch as OffPolicyBatch,
    OnPolicyAlgorithm as OnPolicyAlgorithm,
    OnPolicyBatch as OnPolicyBatch,
    Rollout as Rollout,
    Sequences as Sequences,
    Transition as Transition,
)
from purerl.replay.buffers import Replay as Replay, prioritized as prioritized, uniform as uniform
from purerl.replay.transitions import ReplayMemory as ReplayMemory, replay_memory as replay_memory
from purerl.second_order.conjugate_gradient import (
    CGResult as CGResult,
    CGStop as CGStop,
    conjugate_gradient as conjugate_gradient,
)
from purerl.second_order.line_search import (
    LineSearchResult as LineSearchResult,
    backtracking_line_search as backtracking_line_search,
)
from purerl.second_order.products import (
    fisher_vector_product as fisher_vector_product,
    hvp as hvp,
)
from purerl.training.evaluation import Evaluation as Evaluation, evaluate as evaluate
from purerl.training.seeds import (
    take_seeds as take_seeds,
    use_all_cores as use_all_cores,
    vectorize as vectorize,
)
from purerl.training.sizes import (
    LoopConfig as LoopConfig,
    OffPolicyLoopConfig as OffPolicyLoopConfig,
    OnPolicyLoopConfig as OnPolicyLoopConfig,
)
from purerl.training.state import (
    Train as Train,
    TrainResult as TrainResult,
    TrainState as TrainState,
)
from purerl.training.train import make_train as make_train

__version__: str
