"""ThreatModel: the game that an adversary plays. Two results may share a table only if their games are the same."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from ironclip.errors import ConfigError, ValueRangeError
from ironclip.randomness import SampleRandom

Norm = Literal["linf", "l2"]
_HUGE = re.compile(r"[eE][-+]?[\d_]{4,}")
_LABEL = {"linf": "Linf", "l2": "L2"}


def parse_eps(eps: str | float, norm: str = "linf", *, name: str = "threat.eps") -> Fraction:
    """Read a radius or a step exactly: `"2/255"`, `"0.5"` or a number.

    A float stands for the simplest fraction that rounds to it, so that `4 / 255` is `"4/255"`.

    Args:
        eps: In pixel units.
        norm: "linf" bounds it by 1, since pixels lie in [0, 1].
        name: What the user calls it, for the error.

    Raises:
        ValueRangeError: Not a number, negative, or above 1 in linf.
    """
    try:
        if isinstance(eps, str) and _HUGE.search(eps):
            raise OverflowError  # Fraction would write out all its digits, for minutes
        value = Fraction(eps.strip()) if isinstance(eps, str) else _simplest(float(eps))
    except (ValueError, TypeError, OverflowError, ZeroDivisionError):
        raise ValueRangeError(f'{name} is "{eps}", expected a number or a fraction.', 'Write "4/255" or 0.5.') from None
    given = eps if isinstance(eps, str) else f"{eps:g}"
    if value < 0:
        raise ValueRangeError(f"{name} is {given}, expected a number of at least 0.", 'Write "4/255" or 0.5.')
    if norm == "linf" and value > 1:
        levels = value / 255 if value.denominator > 1 else f"{value}/255"
        raise ValueRangeError(
            f"{name} is {given}, expected a number in [0, 1], since pixels lie in [0, 1].",
            f'For {given} of 255 levels write "{levels}".',
        )
    return value


def _simplest(number: float) -> Fraction:
    near = Fraction(number).limit_denominator(100_000)
    return near if float(near) == number else Fraction(str(number))


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Norm, radius and rules of one adversary; owns projection, random start and steepest ascent.

    Attributes:
        norm: "linf" or "l2", over all pixels and channels of an image.
        eps: Radius in pixel units [0, 1], as a string such as "4/255" or a number; before any normalisation.
        acting: Where the perturbation lives: "native" (the image's own resolution, resizing to the model inside the
            attacked function) or "model_input" (after resizing and cropping).
        goal: "untargeted" or "targeted".
        knowledge: "white-box", "score", "decision" or "transfer:<surrogate>".
        label_source: "ground truth" or "model prediction".
        integer: The adversary is bound to 8-bit images.
        adaptive_level: "L0" (does not know the defence) to "L3"; see evaluation plan 2.13.

    Source: evaluation plan 1.1 to 1.6.
    """

    norm: Norm = "linf"
    eps: str | float = "4/255"
    acting: Literal["native", "model_input"] = "native"
    goal: Literal["untargeted", "targeted"] = "untargeted"
    knowledge: str = "white-box"
    label_source: Literal["ground truth", "model prediction"] = "ground truth"
    integer: bool = False
    adaptive_level: Literal["L0", "L1", "L2", "L3"] = "L0"
    radius: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.norm not in _LABEL:
            raise ConfigError(f'threat.norm is "{self.norm}", expected "linf" or "l2".', "L1 is not served yet.")
        eps = parse_eps(self.eps, self.norm)
        object.__setattr__(self, "eps", self.eps.strip() if isinstance(self.eps, str) else str(eps))
        object.__setattr__(self, "radius", float(torch.tensor(float(eps), dtype=torch.float32)))

    # The record

    def record(self) -> dict[str, Any]:
        """Return every rule as plain data, the radius both as written and as the float32 number in use."""
        return {
            "space": "pixels in [0, 1], RGB, before mean and std",
            "norm": self.norm,
            "eps": self.eps,
            "eps_exact": str(parse_eps(self.eps, self.norm)),
            "eps_float": self.radius,
            "acting_resolution": self.acting,
            "goal": self.goal,
            "knowledge": self.knowledge,
            "label_source": self.label_source,
            "integer": self.integer,
            "adaptive_level": self.adaptive_level,
            "success_rule": "argmax of float32 logits differs from the label"
            if self.goal == "untargeted"
            else "argmax of float32 logits is the target",
            "tie_rule": "a tie with a class of another prompt is wrong; identical prompts: lowest index",
        }

    @property
    def hash(self) -> str:
        """sha256 hex of the rules; "2/255" and "4/510" are the same game."""
        rules = {key: value for key, value in self.record().items() if key != "eps"}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()

    def caption(self, resolution: tuple[int, int] | None = None) -> str:
        """Say the game in one line: `Linf 2/255, native 32x32, white-box`."""
        size = f" {resolution[0]}x{resolution[1]}" if resolution else ""
        parts = [f"{_LABEL[self.norm]} {self.eps}", f"{self.acting.replace('_', ' ')}{size}", self.knowledge]
        if self.goal != "untargeted":
            parts.append(self.goal)
        if self.integer:
            parts.append("8-bit")
        return ", ".join(parts)

    # Geometry; all tensors [B, 3, H, W]

    def project(self, pixels: Tensor, origin: Tensor) -> Tensor:
        """Bring points into ball and box: exact in linf; in l2 scaled, then clipped, which need not be the nearest."""
        if self.norm == "linf":
            near = torch.minimum(torch.maximum(pixels, origin - self.radius), origin + self.radius)
            return near.clamp(0, 1)
        delta = pixels - origin
        length = _length(delta)
        return (origin + delta * (self.radius / (length + 1e-12)).clamp(max=1)).clamp(0, 1)

    def random_start(self, pixels: Tensor, random: SampleRandom, *, clip: bool = True) -> Tensor:
        """Draw a start, a function of each sample's stream: uniform in the linf ball, on the l2 sphere.

        Args:
            pixels: Clean images.
            random: The samples' streams.
            clip: Clip to [0, 1]; published code that does not leaves the valid range in its first forward.
        """
        shape = pixels.shape[1:]
        if self.norm == "linf":
            delta = random.uniform(shape, -self.radius, self.radius, "start")
        else:
            direction = random.normal(shape, "start")
            delta = direction * (self.radius / (_length(direction) + 1e-12))
        start = pixels + delta.to(pixels.device, pixels.dtype)
        return start.clamp(0, 1) if clip else start

    def steepest_ascent(self, gradient: Tensor) -> Tensor:
        """Return the direction of unit norm in which a linear objective grows fastest; 0 where the gradient is 0."""
        if self.norm == "linf":
            return gradient.sign()
        # A confident model's gradient is so small (1e-20 at a margin of 45) that its squares underflow.
        largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        scaled = gradient / torch.where(largest > 0, largest, 1)
        return scaled / (_length(scaled) + 1e-12)

    def distance(self, pixels: Tensor, origin: Tensor) -> Tensor:
        """Return the norm of the perturbation, float64 `[B]`."""
        delta = (pixels.double() - origin.double()).flatten(1)
        return delta.abs().amax(dim=1) if self.norm == "linf" else torch.linalg.vector_norm(delta, dim=1)

    def contains(self, pixels: Tensor, origin: Tensor) -> Tensor:
        """Say for each row whether it is a legal adversarial image, `[B]` bool: norm (float64), box, finite, grid.

        The tolerance is `eps * (1 + 1e-5) + 1e-7`, evaluation plan 1.2; an 8-bit adversary's levels are integers up to
        float32's rounding.
        """
        flat = pixels.flatten(1)
        legal: Tensor = torch.isfinite(flat).all(dim=1) & ((flat >= 0) & (flat <= 1)).all(dim=1)
        if self.integer:
            levels = 255 * flat.double()
            legal &= ((levels - levels.round()).abs() <= 1e-4).all(dim=1)
        return legal & (self.distance(pixels, origin) <= self.radius * (1 + 1e-5) + 1e-7)


def _length(delta: Tensor) -> Tensor:
    """Euclidean length of each row, shaped to broadcast: `[B, 1, 1, 1]`."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return length.view(-1, 1, 1, 1)
