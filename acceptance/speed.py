"""As fast as the machine allows: one item for each group of claims, trainings before what reads their models."""

from __future__ import annotations

from acceptance import (
    speed_attacks,
    speed_cost,
    speed_equal,
    speed_memory,
    speed_paths,
    speed_precision,
    speed_training,
    speed_tuned,
)

ITEMS = (
    speed_equal.fast_equal,
    speed_training.training_equal,
    speed_training.tower_share,
    speed_tuned.training,
    speed_training.training_agft,
    speed_training.training_fare,
    speed_training.training_tuned,
    speed_training.training_tecoa,
    speed_attacks.pair_speed,
    speed_cost.predicted_cost,
    speed_training.training_pmg_aft,
    speed_attacks.step_speed,
    speed_memory.evaluation_memory,
    speed_precision.low_precision,
    speed_paths.fast_and_plain,
)
