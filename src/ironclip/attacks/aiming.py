"""What attacks that try several targets share: a stream for each of their runs, and a direction to start in."""

from __future__ import annotations

import torch
from torch import Tensor

from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom


def refuse_targeted_game(name: str, instead: str, threat: ThreatModel) -> None:
    """Refuse a game whose target is given to an attack that tries targets of its own.

    Raises:
        ConfigError: The goal is "targeted".
    """
    if threat.goal == "targeted":
        raise ConfigError(
            f"{name} chooses its own targets, and any wrong answer is its success; this game names the target.",
            f"Use {instead} in a targeted game.",
        )


def run_seeds(random: SampleRandom, device: torch.device) -> Tensor:
    """Draw a seed a sample for the runs to come, `[B]` int64: a state can carry numbers, but no streams."""
    seeds = [int(random.generator(row, "runs").integers(2**63)) for row in range(len(random.keys))]
    return torch.tensor(seeds, dtype=torch.int64, device=device)


def run_streams(seeds: Tensor, run: int) -> SampleRandom:
    """Return the samples' streams of one run."""
    return SampleRandom(run, [str(seed) for seed in seeds.tolist()], "run")


def unit_direction(pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> Tensor:
    """Draw a direction of norm 1 for each image: uniform noise over its largest entry in linf, on the sphere in l2."""
    shape = pixels.shape[1:]
    if threat.norm == "linf":
        noise = random.uniform(shape, -1, 1, "start")
        size = noise.flatten(1).abs().amax(dim=1)
    else:
        noise = random.normal(shape, "start")
        size = torch.linalg.vector_norm(noise.flatten(1), dim=1)
    return (noise / size.view(-1, 1, 1, 1)).to(pixels.device, pixels.dtype)
