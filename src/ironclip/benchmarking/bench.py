"""What `ironclip bench` measures: the machine's peaks, both towers, and a training step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from ironclip.benchmarking.measuring import best_product, in_turns, product_runs
from ironclip.benchmarking.step import TEMPLATE, class_names, measure_step
from ironclip.benchmarking.towers import check_served, measure, measure_texts, product_shapes
from ironclip.data.classes import fill_templates
from ironclip.errors import RegistryError, did_you_mean
from ironclip.models.clip import CLIPModel
from ironclip.models.kernels import choose_kernels
from ironclip.models.sources import load_model

NAMES = ("peaks", "image", "text", "step")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing that was timed.

    Attributes:
        what: Was done.
        side: "IronCLIP", a baseline, or the product that was best.
        seconds: For all of a batch; None for a peak.
        rate: A second; images or texts, of a peak operations.
        unit: Of the rate.
        ratio: How many times as fast IronCLIP is; None on its own lines.
        share: Of the machine's peak that the counted operations reach; None where they are not counted.
    """

    what: str
    side: str
    rate: float
    unit: str
    seconds: float | None = None
    ratio: float | None = None
    share: float | None = None

    def row(self) -> tuple[str, str, str, str, str, str]:
        """Return the cells of a table."""
        return (
            self.what,
            self.side,
            "" if self.seconds is None else f"{self.seconds:.3f}",
            f"{self.rate:,.0f} {self.unit}",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            "" if self.share is None else f"{100 * self.share:.0f} %",
        )


class Bench:
    """Measurements of one model on one device.

    Args:
        source: Of the model.
        method: Whose training step is timed.
        batch: Images at a time.
        classes: Class prompts of the text tower and of the step.
        rounds: How often each is measured, after one round that does not count.
        device: Where.

    Raises:
        ConfigError, RegistryError, WeightsError: At the first measurement, see `load_model` and `check_served`.
    """

    def __init__(self, source: str, *, method: str, batch: int, classes: int, rounds: int, device: str) -> None:
        self.source, self.method, self.device = source, method, device
        self.batch, self.classes, self.rounds = batch, classes, rounds

    def measure(self, name: str) -> list[Line]:
        """Measure one of `NAMES`.

        Raises:
            RegistryError: There is no such measurement.
        """
        known: dict[str, Callable[[], list[Line]]] = dict(
            zip(NAMES, (self._peaks, self._image, self._text, self._step), strict=True)
        )
        if name not in known:
            raise RegistryError(f'nothing is measured as "{name}".{did_you_mean(name, known)}', f"Give one of {NAMES}.")
        return known[name]()

    @cached_property
    def model(self) -> CLIPModel:
        """The model, frozen, with its fast path, on an accelerator as it is fastest there."""
        model = load_model(self.source, device=self.device).requires_grad_(False)
        check_served(model)
        choose_kernels(model, self.batch, torch.bfloat16)
        return model

    def _peaks(self) -> list[Line]:
        shapes = product_shapes(self.model.visual, self.batch)
        dtypes = (torch.float32, torch.bfloat16)
        runs = product_runs(shapes, dtypes[0], self.device) | product_runs(shapes, dtypes[1], self.device)
        medians = in_turns(runs, self.rounds)
        lines = []
        for dtype in dtypes:
            peak = best_product(medians, dtype)
            side = " x ".join(map(str, peak.shape))
            what = f"best product, {str(dtype).removeprefix('torch.')}"
            lines.append(Line(what=what, side=side, rate=peak.rate / 1e9, unit="GFLOP"))
        return lines

    def _image(self) -> list[Line]:
        stock = copy.deepcopy(self.model.visual)
        speed = measure(self.model, stock, batch=self.batch, rounds=self.rounds)
        line = partial(self._line, "images, forward and input gradient", self.batch, "images")
        return [
            line("stock float32", speed.stock_float32, ratio=speed.over_float32),
            line("stock bfloat16 autocast", speed.stock_autocast, ratio=speed.over_autocast),
            line("IronCLIP", speed.fast, share=speed.share),
        ]

    def _text(self) -> list[Line]:
        prompts = [fill_templates(name, [TEMPLATE])[0] for name in class_names(self.classes)]
        speed = measure_texts(self.model, prompts, rounds=self.rounds)
        line = partial(self._line, "class prompts, forward", self.classes, "texts")
        return [
            line("stock float32", speed.stock_float32, ratio=speed.stock_float32 / speed.ours),
            line("IronCLIP", speed.ours),
        ]

    def _step(self) -> list[Line]:
        speed = measure_step(
            self.source,
            self.method,
            device=self.device,
            batch=self.batch,
            classes=self.classes,
            rounds=self.rounds,
        )
        line = partial(self._line, f"training step of {self.method}", self.batch, "images")
        return [
            line("stock towers, bfloat16 autocast", speed.stock, ratio=speed.stock / speed.ours),
            line("IronCLIP", speed.ours),
        ]

    def _line(
        self,
        what: str,
        count: int,
        unit: str,
        side: str,
        seconds: float,
        *,
        ratio: float | None = None,
        share: float | None = None,
    ) -> Line:
        return Line(what=what, side=side, seconds=seconds, rate=count / seconds, unit=unit, ratio=ratio, share=share)
