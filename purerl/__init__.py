"""purerl: reinforcement learning as pure functions, in JAX."""

from purerl.actor_critic import default_network
from purerl.algorithms.a2c import A2CConfig, a2c
from purerl.algorithms.policy_gradient import PolicyGradientConfig, policy_gradient
from purerl.algorithms.ppo import PPOClipConfig, PPOPenaltyConfig, ppo_clip, ppo_penalty
from purerl.distributions import Categorical, DiagGaussian
from purerl.envs import Env, list_envs, make_env
from purerl.networks import MLP, ActorCritic, ActorQCritic, NetworkConfig
from purerl.train.evaluate import Evaluation, evaluate
from purerl.train.on_policy import Train, TrainResult, TrainState, make_train
from purerl.train.vectorize import use_all_cores, vectorize
from purerl.types import (
    ActionSpace,
    Box,
    Clock,
    Discrete,
    OnPolicyAlgorithm,
    OnPolicyBatch,
    Rollout,
)
from purerl.algorithms import ALGORITHMS
from purerl.experiment import Experiment, LoopConfig, make_experiment
from purerl.run import RunResult, evaluate_run, run
