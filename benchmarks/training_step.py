"""How fast a training step is, against the same step as published code does it.

    python -m benchmarks.training_step --method tecoa --classes 50 100 200 [--baseline published|tuned]
        [--model ViT-B-32] [--batch 32] [--rounds 5] [--baseline-rounds 3] [--device cpu]

Ours is the trainer's step in bfloat16 on images in memory; `benchmarks.published` is the other side. Both lie in
processes of their own and take turns in one run; times are medians, after a round that does not count (a step of the
baseline that takes minutes may run less often, and then each of its runs counts). The ideal is
what the counted operations of both sides would take at the machine's measured peaks, float32 for the published step,
bfloat16 for ours and for the tuned one; text that is encoded once a run is not timed. `--classes largest` is the count
that fits into memory; ours then runs first, and is gone before the other begins. With three class counts a line through
the published times says what 1,000 classes would take: that is an extrapolation, and is called one. Prints one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.published import OPTIONS, STEPS
from benchmarks.sides import SideError, SideProcess
from ironclip.benchmarking.measuring import Shape, best_product, counted, in_turns, product_runs
from ironclip.benchmarking.step import TEMPLATE, MadeUpImages, OurStep, class_names, made_up_trainer, published_recipe
from ironclip.benchmarking.towers import product_shapes
from ironclip.data.classes import fill_templates
from ironclip.machine import describe_machine
from ironclip.models.sources import load_model

PEAK_ROUNDS = 3
"""The grid of products takes part in so many rounds: half a minute in two precisions."""

PROBES = (10, 30)
"""Class counts from which the memory of more is estimated."""

SPARE = 0.9
"""Share of the free memory that a step may be estimated to need."""

FAR = 1000
"""Classes of ImageNet, whose published step is extrapolated."""


@dataclass(frozen=True)
class Setting:
    """What both sides do.

    Attributes:
        method: One of `published.STEPS`.
        model: An architecture of open_clip, with random weights.
        classes: Whose prompts the images are compared with.
        batch: Images a step.
        device: Where both compute.
    """

    method: str
    model: str
    classes: int
    batch: int
    device: str

    @property
    def source(self) -> str:
        return f"open_clip:{self.model}/random?seed=0"


@dataclass(frozen=True)
class Comparison:
    """What was measured; seconds and operations a step, bytes, rates in operations a second.

    Attributes:
        method, model, batch, device: As asked for.
        classes: Whose prompts the images are compared with.
        baseline: "published" or "tuned".
        rounds: Times that ours was measured.
        baseline_rounds: Times that the other was.
        ours: Median.
        theirs: Median.
        ours_memory: The most that its process held.
        theirs_memory: Likewise.
        ours_operations: Counted.
        theirs_operations: Counted.
        ours_peak: Of bfloat16 products.
        ours_peak_shape: Rows, inner size and columns of the best of the grid.
        theirs_peak: Of products in the baseline's precision.
        theirs_peak_shape: Likewise.
        load: Of the machine when it began.
    """

    method: str
    model: str
    batch: int
    device: str
    classes: int
    baseline: str
    rounds: int
    baseline_rounds: int
    ours: float
    theirs: float
    ours_memory: int
    theirs_memory: int
    ours_operations: int
    theirs_operations: int
    ours_peak: float
    ours_peak_shape: Shape
    theirs_peak: float
    theirs_peak_shape: Shape
    load: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.theirs / self.ours

    @property
    def ideal(self) -> float:
        """The same if both sides multiplied at the machine's peaks."""
        return (self.theirs_operations / self.theirs_peak) / (self.ours_operations / self.ours_peak)

    @property
    def memory_share(self) -> float:
        """Our peak memory over theirs."""
        return self.ours_memory / self.theirs_memory

    @property
    def ours_share(self) -> float:
        """Of our peak that we reach."""
        return self.ours_operations / self.ours / self.ours_peak

    @property
    def theirs_share(self) -> float:
        """Of its peak that the baseline reaches."""
        return self.theirs_operations / self.theirs / self.theirs_peak

    def record(self) -> dict[str, Any]:
        """Return everything, derived figures included."""
        derived = {
            name: getattr(self, name) for name in ("ratio", "ideal", "memory_share", "ours_share", "theirs_share")
        }
        rates = {
            "ours_images_per_second": self.batch / self.ours,
            "theirs_images_per_second": self.batch / self.theirs,
            "of_ideal": self.ratio / self.ideal,
        }
        return asdict(self) | {name: float(f"{value:.4g}") for name, value in (derived | rates).items()}


class OurSide:
    """The trainer's step."""

    def __init__(self, setting: Setting) -> None:
        recipe = published_recipe(setting.method, batch=setting.batch, options=OPTIONS.get(setting.method))
        model = load_model(setting.source, device=setting.device)
        self.run = OurStep(made_up_trainer(recipe, model, classes=setting.classes))

    def operations(self) -> int:
        return counted(self.run)


class TheirSide:
    """The published step, in float32 or tuned."""

    def __init__(self, setting: Setting, tuned: bool) -> None:
        model = load_model(setting.source, device=setting.device, fast=False)
        data = MadeUpImages(setting.batch, model.input_resolution, setting.classes)
        samples = [data[position] for position in range(len(data))]
        self.run = STEPS[setting.method](
            model.clip,
            model.tokenize([fill_templates(name, [TEMPLATE])[0] for name in class_names(setting.classes)]),
            model.spec.preprocessing,
            torch.stack([sample.pixels for sample in samples]).to(setting.device),
            torch.tensor([sample.label for sample in samples], device=setting.device),
            tuned=tuned,
        )

    def operations(self) -> int:
        return counted(self.run.on_meta().differentiate)


def ours(setting: Setting) -> SideProcess:
    return SideProcess("our step", OurSide, setting, device=setting.device)


def theirs(setting: Setting, baseline: str) -> SideProcess:
    return SideProcess(f"the {baseline} step", TheirSide, setting, baseline == "tuned", device=setting.device)


def compare(
    setting: Setting, baseline: str = "published", *, rounds: int = 5, baseline_rounds: int = 5, apart: bool = False
) -> Comparison:
    """Measure a step against a baseline.

    Args:
        setting: What both do.
        baseline: "published" or "tuned".
        rounds: That count, after one that does not.
        baseline_rounds: Fewer, where a step of the baseline takes minutes: it then runs in these alone.
        apart: First ours in all its rounds, then the other: where the memory does not hold both.
    """
    load = os.getloadavg()[0]
    precision = torch.float32 if baseline == "published" else torch.bfloat16
    shapes = product_shapes(load_model(setting.source).visual, setting.batch)
    products = {}
    for dtype in {torch.bfloat16, precision}:
        products |= product_runs(shapes, dtype, setting.device)
    fewer: dict[Any, int] = {name: min(rounds, PEAK_ROUNDS) for name in products}
    if baseline_rounds < rounds:
        fewer["theirs"] = baseline_rounds
    medians: dict[Any, float] = {}
    if apart:
        with ours(setting) as own:
            medians |= in_turns({"ours": own.turn} | products, rounds, fewer)
            own_cost = own.cost()
        with theirs(setting, baseline) as other:
            medians |= in_turns({"theirs": other.turn}, baseline_rounds, fewer)
            other_cost = other.cost()
    else:
        with ours(setting) as own, theirs(setting, baseline) as other:
            medians |= in_turns({"ours": own.turn, "theirs": other.turn} | products, rounds, fewer)
            own_cost, other_cost = own.cost(), other.cost()
    rates = {name: medians[name] for name in products}
    own_peak, other_peak = best_product(rates, torch.bfloat16), best_product(rates, precision)
    return Comparison(
        **asdict(setting),
        baseline=baseline,
        rounds=rounds,
        baseline_rounds=min(rounds, baseline_rounds),
        ours=medians["ours"],
        theirs=medians["theirs"],
        ours_memory=own_cost.memory,
        theirs_memory=other_cost.memory,
        ours_operations=own_cost.operations,
        theirs_operations=other_cost.operations,
        ours_peak=own_peak.rate,
        ours_peak_shape=own_peak.shape,
        theirs_peak=other_peak.rate,
        theirs_peak_shape=other_peak.shape,
        load=load,
    )


def largest_class_count(method: str, *, model: str = "ViT-B-32", batch: int = 32, device: str = "cpu") -> int:
    """Estimate how many classes the published step fits into memory with, in tens.

    Memory grows by as much with each class; two small runs say how much.
    """
    taken = []
    for classes in PROBES:
        with theirs(Setting(method, model, classes, batch, device), "published") as other:
            other.turn()
            taken.append(other.memory())
    slope, base = np.polyfit(PROBES, taken, 1)
    return max(PROBES[0], int((SPARE * free_memory(device) - base) / slope) // 10 * 10)


def free_memory(device: str) -> int:
    """Return bytes that a new process may take."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    machine = describe_machine(Path())
    return machine.memory if machine.memory_free is None else machine.memory_free


def extrapolated(comparisons: list[Comparison], classes: int = FAR) -> dict[str, float]:
    """Draw a line through the published times of several class counts; ours does not grow with them."""
    slope, base = np.polyfit([one.classes for one in comparisons], [one.theirs for one in comparisons], 1)
    seconds = float(base + slope * classes)
    return {"classes": classes, "theirs": seconds, "ratio": float(f"{seconds / comparisons[-1].ours:.4g}")}


def line_of(comparisons: list[Comparison]) -> dict[str, Any]:
    """Return what the command prints of some comparisons, which differ in their classes only."""
    machine = describe_machine(Path())
    on_cpu = comparisons[0].device == "cpu" or not machine.accelerators
    about = {
        "processor": machine.processor if on_cpu else machine.accelerators[0],
        "threads": machine.threads,
        "torch": machine.torch,
    }
    line = {"benchmark": "training_step", **about, "steps": [one.record() for one in comparisons]}
    return line | ({"extrapolated": extrapolated(comparisons)} if len(comparisons) > 2 else {})


def compared(options: argparse.Namespace) -> list[Comparison]:
    """Do what the command line asks for."""
    sizes = {"model": options.model, "batch": options.batch, "device": options.device}
    largest = options.classes == ["largest"]
    counts = [largest_class_count(options.method, **sizes)] if largest else [int(count) for count in options.classes]
    return [
        compare(
            Setting(options.method, classes=count, **sizes),
            options.baseline,
            rounds=options.rounds,
            baseline_rounds=options.baseline_rounds or options.rounds,
            apart=largest,
        )
        for count in counts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--method", choices=sorted(STEPS), default="tecoa")
    parser.add_argument("--classes", nargs="+", default=["200"], metavar="N", help='counts, or "largest"')
    parser.add_argument("--baseline", choices=["published", "tuned"], default="published")
    parser.add_argument("--model", default="ViT-B-32", help="an architecture of open_clip")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--baseline-rounds", type=int, help="fewer, where a step takes minutes")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    try:
        found = compared(options)
    except SideError as broken:
        raise SystemExit(str(broken)) from None
    print(json.dumps(line_of(found)))


if __name__ == "__main__":
    main()
