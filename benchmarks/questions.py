"""What ``variants.py`` asks: by question an algorithm, an environment, and changes of its preset."""

from typing import Any

Variants = dict[str, dict[str, Any]]

BREAKOUT: Variants = {
    "preset": {},
    "entropy 0.03": {"entropy_coef": 0.03},
    "gamma 0.95": {"gamma": 0.95},
    "256 envs": {"num_envs": 256, "rollout_length": 32},
}

QUESTIONS: dict[str, tuple[str, str, Variants]] = {
    # Seeds end anywhere between 10 and 89 bricks.
    "breakout": ("ppo_clip", "Breakout-MinAtar", BREAKOUT),
}
