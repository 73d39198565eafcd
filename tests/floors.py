"""The lowest loss that a method could reach on a batch, were the student free to say anything of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.methods.base import ImageView, Method, Pass, TextView, Views
from ironclip.models.tuning import Tunable


def floor(method: Method, views: Views) -> float:
    """Minimise the loss over the student's passes as if each row were a parameter; the teacher's stay as they are.

    Where texts are tuned too, so are the class weights. In float64, by L-BFGS from where the student stands and from
    where the teacher does.
    """
    return min(_descend(method, views, start) for start in (_own, _teachers))


def total(method: Method, views: Views) -> Tensor:
    """Add up the terms."""
    return torch.stack([term.double() for term in method.loss(views).values()]).sum()


Start = Callable[[Views, Pass], object]


def _own(views: Views, name: Pass) -> object:
    return views.student._passes[name]


def _teachers(views: Views, name: Pass) -> object:
    """Give the teacher's word on the same view, or else on another; the student's own where there is none."""
    view = name.value.partition(".")[2]
    passes = views.student._passes
    suffix = "_patches" if view.endswith("_patches") else ""
    for wanted in (f"teacher.{view}", f"teacher.clean{suffix}", f"teacher.adv{suffix}"):
        if Pass(wanted) in passes and isinstance(passes[Pass(wanted)], type(passes[name])):
            return passes[Pass(wanted)]
    return passes[name]


def _descend(method: Method, views: Views, start: Start) -> float:
    free: dict[Pass, Tensor] = {}
    for name in views.student._passes:
        if name.value.startswith("student"):
            begin = start(views, name)
            values = begin if isinstance(begin, Tensor) else begin.embedding
            free[name] = values.detach().double().clone().requires_grad_()
    batch = views._batch
    weights = None if batch.class_weights is None else batch.class_weights.detach().double().clone()
    leaves = list(free.values())
    if weights is not None and method.trains is not Tunable.VISION:
        leaves.append(weights.requires_grad_())

    def changed() -> Views:
        classes = None if weights is None else F.normalize(weights, dim=-1)
        passes = {name: _with(value, free.get(name), classes) for name, value in views.student._passes.items()}
        extra = {title: one.detach().double() for title, one in batch.extra_class_weights.items()}
        parts = vars(batch) | {"class_weights": classes, "extra_class_weights": extra}
        return Views(method.name, type(batch)(**parts), passes, views.logit_scale.double(), views.input_resolution)

    optimiser = torch.optim.LBFGS(leaves, max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    best = [float("inf")]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = total(method, changed())
        loss.backward()
        best[0] = min(best[0], loss.item())
        return loss

    optimiser.step(closure)
    return best[0]


def _with(value: Any, free: Tensor | None, classes: Tensor | None) -> object:
    """Return a pass in float64, the student's with what is free in it."""
    if isinstance(value, Tensor):
        return value.detach().double() if free is None else free
    embedding = value.embedding.detach().double() if free is None else free
    if isinstance(value, TextView):
        return TextView(embedding)
    own = classes if free is not None or value.class_weights is None else value.class_weights.detach().double()
    return ImageView(embedding, None if value.class_weights is None else own)


def falls(losses: Iterable[float]) -> bool:
    """Say whether the last of some losses above their floors is below 0.9 of the first."""
    first, *_, last = losses
    return first > 0 and last < 0.9 * first
