from purerl.algorithms.ppo import *
from purerl.algorithms.ppo import PPOClipConfig, PPOPenaltyConfig, ppo_clip, ppo_penalty
from purerl.envs import make_env, list_envs
from purerl.train.on_policy import make_train
from purerl.train.vectorize import vectorize, use_all_cores
