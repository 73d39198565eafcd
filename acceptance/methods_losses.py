"""The losses of the methods: stored values to 20 digits, central differences, and what float32 does to them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence

from acceptance.claims import SHARED, Claim, Context, Figure, at_least, at_most, exactly, item
from ironclip.losses import uncertainty
from ironclip.losses.contrastive import pair_losses, shared_pair_losses
from ironclip.losses.dirichlet import concentration, dirichlet_kl
from ironclip.methods.base import METHODS, Batch, ImageView, Method, Pass, TextView, Views

VECTORS = "../shared/vectors/losses.json"
IMAGES = {
    "adv": Pass.STUDENT_ADV,
    "clean": Pass.STUDENT_CLEAN,
    "teacher_clean": Pass.TEACHER_CLEAN,
    "teacher_adv": Pass.TEACHER_ADV,
}
PAIRS = {"image": Pass.STUDENT_CLEAN, "image_adv": Pass.STUDENT_ADV}
TEXTS = {"text": Pass.STUDENT_TEXT, "text_adv": Pass.STUDENT_TEXT_ADV}
CAPTIONS = {"adv": Pass.STUDENT_TEXT_ADV, "teacher_clean": Pass.TEACHER_TEXT}
PATCHES = {
    "tokens_adv": (Pass.STUDENT_ADV_PATCHES, Pass.STUDENT_ADV),
    "tokens_clean": (Pass.STUDENT_CLEAN_PATCHES, Pass.STUDENT_CLEAN),
    "tokens_teacher_clean": (Pass.TEACHER_CLEAN_PATCHES, Pass.TEACHER_CLEAN),
}
MAP_WEIGHTS = {"adv_map_weight": 6 / 224, "clean_map_weight": 6 / 224}
"""Of maps of 6 pixels a side: terms of weight 1."""


@dataclass(frozen=True)
class Form:
    """A method with settings, whose loss is a stored value.

    Attributes:
        case: Of losses.json.
        method: In the registry; where it is not registered, its claims are NOT RUN.
        options: Of the method.
        images: What the embeddings of the case are: those of images, of pairs with texts, of captions, or of patches.
        terms: Those that the stored value adds up; all of them unless given.
        number: Which of several cases of that name.
    """

    case: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Form, Method, Mapping[str, Tensor]], Views] = field(default=lambda *a: _classes(*a))
    terms: Sequence[str] = ()
    number: int = 0

    @property
    def claim(self) -> str:
        return self.case if not self.number else f"{self.case} {self.number + 1}"


def _classes(form: Form, method: Method, given: Mapping[str, Tensor]) -> Views:
    """Images against classes."""
    weights = F.normalize(given["text"], dim=-1)
    passes = {one: ImageView(given[name], weights) for name, one in IMAGES.items()}
    return _views(method, passes, given, given.get("labels"), weights)


def _captions(form: Form, method: Method, given: Mapping[str, Tensor]) -> Views:
    """The same numbers as embeddings of texts."""
    return _views(method, {one: TextView(given[name]) for name, one in CAPTIONS.items()}, given, None, None)


def _pairs(form: Form, method: Method, given: Mapping[str, Tensor]) -> Views:
    """Images with texts; images of one class have the same positives."""
    passes: dict[Pass, object] = {one: ImageView(given[name], None) for name, one in PAIRS.items() if name in given}
    passes |= {one: TextView(given[name]) for name, one in TEXTS.items() if name in given}
    return _views(method, passes, given, given["positives"].argmax(dim=1), None)


def _patches(form: Form, method: Method, given: Mapping[str, Tensor]) -> Views:
    """Tokens of images, whose labels are their numbers; where the class token is among them it comes first."""
    code = form.options.get("variant") == "code"
    passes: dict[Pass, object] = {}
    texts = F.normalize(given["text_of_label"], dim=-1)
    for name, (patches, whole) in PATCHES.items():
        tokens = given[name]
        passes[patches] = tokens[:, 1:] if code else tokens
        passes[whole] = ImageView(tokens[:, 0], texts)
    labels, negative = torch.arange(len(texts)), given.get("negative_text_of_label")
    extra = {} if negative is None else {"negative": F.normalize(negative, dim=-1)}
    return _views(method, passes, given, labels, texts, extra, resolution=int(given["size"]))


def _views(
    method: Method,
    passes: Mapping[Pass, object],
    given: Mapping[str, Tensor],
    labels: Tensor | None,
    weights: Tensor | None,
    extra: Mapping[str, Tensor] | None = None,
    resolution: int = 224,
) -> Views:
    first = next(value for value in given.values() if value.ndim > 1)
    keys = [str(row) for row in range(len(first))]
    batch = Batch(keys, torch.zeros(len(first), 3, 2, 2), labels, (), weights, extra or {})
    scale = given.get("logit_scale", torch.tensor(100.0)).to(first.dtype)
    return Views(method.name, batch, {one: passes[one] for one in method.needs if one in passes}, scale, resolution)


FORMS = (
    Form("tecoa", "tecoa"),
    Form("tecoa_small_scale", "tecoa"),
    Form("fare", "fare"),
    Form("pmg_aft", "pmg_aft"),
    Form("pmg_aft_code", "pmg_aft", {"variant": "code"}),
    Form("agft_gamma_0.4", "agft", {"relative_scale": 1.0, "calibration": 0.4}),
    Form("agft_gamma_1", "agft", {"relative_scale": 1.0, "calibration": 1.0}),
    Form("sim_clip_frozen", "sim_clip", {"target": "frozen"}),
    Form("sim_clip_self", "sim_clip", {"target": "self"}),
    Form("ucat", "ucat"),
    Form("tga_zsr_maps", "tga_zsr", MAP_WEIGHTS, _patches, ("adv_map", "clean_map")),
    Form("tga_zsr_maps_code", "tga_zsr", MAP_WEIGHTS | {"variant": "code"}, _patches, ("adv_map", "clean_map")),
    Form("comp_tga_maps", "comp_tga", MAP_WEIGHTS, _patches, ("adv_map", "clean_map")),
    Form("ft_adv", "ft_adv"),
    Form("leaf", "leaf", {}, _captions),
    Form("mmcoa_arange", "mmcoa", {}, _pairs),
    Form("mmcoa_multi_positive", "mmcoa", {"multi_positive": True}, _pairs),
    Form("fap", "fap", {"consistency_weight": 1.5}),
    Form("capt", "capt", {"consistency_weight": 1.0, "original_share": 0.3}),
    *(
        Form("mpm_nce", "r_adapter", {"temperature": 0.1, "smoothing": smoothing, "margin": margin}, _pairs, (), number)
        for number, (smoothing, margin) in enumerate(2 * ((0.0, 0.0), (0.02, 0.05), (0.0, 0.1)))
    ),
)


MODULES = (
    "ironclip.methods.base",
    *sorted({METHODS.get(form.method).__module__ for form in FORMS if form.method in METHODS.names()}),
)


def _cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((SHARED / "vectors" / "losses.json").read_text())["cases"]
    return found


def _inputs(case: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    whole = {"labels", "size", "positives"}
    return {name: torch.tensor(value, dtype=None if name in whole else dtype) for name, value in case["inputs"].items()}


def _total(value: object) -> float:
    return sum(float(part) for part in value) if isinstance(value, list) else float(str(value))


def loss_of(form: Form, given: Mapping[str, Tensor]) -> Tensor:
    """Return the terms that a stored value adds up."""
    method = METHODS.create(form.method, form.options)
    terms = method.loss(form.read(form, method, given))
    return torch.stack([terms[name] for name in form.terms or terms]).sum()


def _advpt_inner(given: Mapping[str, Tensor]) -> Tensor:
    """What AdvPT's adversary maximises, of a model that has seen the case's embeddings."""
    if "advpt" not in METHODS.names():
        raise LookupError("there is no method advpt")
    objective = importlib.import_module("ironclip.methods.advpt").EmbeddingDivergence

    class Seen(nn.Module):
        def embed_image(self, pixels: Tensor) -> Tensor:
            return given["teacher_adv"]

    value: Tensor = objective(Seen(), given["teacher_clean"]).evaluate(torch.zeros(4, 3, 2, 2)).value
    return value.mean()


def _similarity(given: Mapping[str, Tensor]) -> Tensor:
    return given["logit_scale"] * F.normalize(given["image"], dim=-1) @ F.normalize(given["text"], dim=-1).T


def _ucat_kl(given: Mapping[str, Tensor]) -> Tensor:
    text = F.normalize(given["text"], dim=-1)
    a, b = (
        concentration(F.normalize(given[name], dim=-1) @ text.T, given["tau"].item())
        for name in ("adv", "teacher_clean")
    )
    return dirichlet_kl(a, b).sum()


PARTS: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "info_nce_arange": lambda given: torch.stack(pair_losses(_similarity(given))).sum(),
    "info_nce_multi_positive": lambda given: torch.stack(
        shared_pair_losses(_similarity(given), given["positives"])
    ).sum(),
    "advpt_inner": _advpt_inner,
    "ucat_kl": _ucat_kl,
}
"""Stored values that are not the loss of a method, but part of one."""


@item(
    "losses",
    claims=[
        *(Claim(form.claim, f"loss of {form.method}: {form.case} (relative)", at_most(1e-9)) for form in FORMS),
        *(Claim(name, f"{name} (relative)", at_most(1e-9)) for name in PARTS),
        Claim("whole", "stored values that no claim here or below is about", exactly(0)),
    ],
    modules=MODULES,
    files=[VECTORS],
)
def losses(context: Context) -> Iterator[Figure]:
    cases = _cases()
    for form in FORMS:
        if form.method not in METHODS.names():
            yield Figure(form.claim, None, f"there is no method {form.method}")
            continue
        case = [one for one in cases if one["name"] == form.case][form.number]
        expected, found = _total(case["value"]), loss_of(form, _inputs(case, torch.float64)).item()
        yield Figure(form.claim, abs(found - expected) / abs(expected))
    for name, part in PARTS.items():
        (case,) = (one for one in cases if one["name"] == name)
        try:
            found, expected = part(_inputs(case, torch.float64)).item(), _total(case["value"])
        except LookupError as reason:
            yield Figure(name, None, str(reason))
            continue
        yield Figure(name, abs(found - expected) / abs(expected))
    left = {case["name"] for case in cases} - {form.case for form in FORMS} - {*PARTS, *DIRICHLET}
    yield Figure("whole", len(left), ", ".join(sorted(left)) or f"none of {len(cases)}")


@item(
    "gradients",
    claims=[
        Claim(form.claim, f"gradient of {form.case} against central differences, stopped copies held", at_most(1e-6))
        for form in FORMS
    ],
    modules=MODULES,
    files=[VECTORS],
)
def gradients(context: Context) -> Iterator[Figure]:
    """Compare by all that the student says, together; relative to the length of the gradient."""
    cases = _cases()
    for form in FORMS:
        if form.method not in METHODS.names():
            yield Figure(form.claim, None, f"there is no method {form.method}")
            continue
        given = _inputs([one for one in cases if one["name"] == form.case][form.number], torch.float64)
        yield Figure(form.claim, off_differences(lambda moved, form=form: loss_of(form, moved), given))


def off_differences(loss: Callable[[Mapping[str, Tensor]], Tensor], given: Mapping[str, Tensor]) -> float:
    """Return how far a gradient is from central differences, as a share of its length."""
    student = ("adv", "clean", "tokens_adv", "tokens_clean", "image", "image_adv", "text_adv")
    tuned = (*student, "text") if "positives" in given else student
    leaves = {name: given[name].clone().requires_grad_(True) for name in tuned if name in given}
    stopped: list[Tensor] = []
    with _stops(stopped, record=True):
        value = loss(given | leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    ours = torch.cat([torch.zeros(leaf.numel(), dtype=leaf.dtype) if part is None else part.flatten()
                      for leaf, part in zip(leaves.values(), found, strict=True)])  # fmt: skip

    def at(name: str, place: int, step: float) -> float:
        moved = given[name].clone()
        moved.view(-1)[place] += step
        with torch.no_grad(), _stops(stopped, record=False):
            return loss(given | {name: moved}).item()

    theirs = torch.tensor(
        [
            _difference(lambda step, n=name, p=place: at(n, p, step))
            for name in leaves
            for place in range(given[name].numel())
        ],
        dtype=ours.dtype,
    )
    length = torch.linalg.vector_norm(theirs)
    if not length > 0:
        raise ArithmeticError("the loss does not move with the student")
    return float(torch.linalg.vector_norm(ours - theirs) / length)


def _difference(at: Callable[[float], float], step: float = 2e-5) -> float:
    """Return the derivative to fourth order."""
    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


@contextmanager
def _stops(stopped: list[Tensor], *, record: bool) -> Iterator[None]:
    """Note what `detach` returns, in order; or return what was noted, whatever it is called on."""
    plain = Tensor.detach
    replay = iter(list(stopped))

    def detach(tensor: Tensor) -> Tensor:
        if record:
            stopped.append(plain(tensor).clone())
            return stopped[-1]
        return next(replay)

    with patch.object(Tensor, "detach", detach):
        yield


DIRICHLET = ("dirichlet_kl", "dirichlet_kl_grad_alpha", "dirichlet_uncertainty")
UNCERTAINTIES = ("expected_entropy", "mutual_information", "ucat_eu", "vacuity", "total_entropy")


@item(
    "dirichlet",
    claims=[
        Claim("kl", "dirichlet_kl on all reference pairs, concentrations 1e-3 to 1e13 (relative)", at_most(1e-6)),
        Claim("gradient", "… and its gradient", at_most(1e-6)),
        Claim("torch", "… where torch's own form in float64 is wrong by (relative)", at_least(0.1)),
        Claim("uncertainty", "uncertainties of Dirichlet distributions (relative)", at_most(1e-9)),
        Claim("float32", "UCAT in float32 at its temperature: gradients that are not finite", exactly(0)),
    ],
    modules=["ironclip.losses.dirichlet", "ironclip.losses.uncertainty", "ironclip.methods.ucat"],
    files=[VECTORS],
)
def dirichlet(context: Context) -> Iterator[Figure]:
    cases = _cases()
    pairs = [case for case in cases if case["name"] == "dirichlet_kl"]
    worst, torchs = 0.0, 0.0
    for case in pairs:
        a, b, expected = _row(case["inputs"]["alpha"]), _row(case["inputs"]["beta"]), float(case["value"])
        worst = max(worst, _relative(dirichlet_kl(a, b), _row([expected])))
        if expected:
            torchs = max(torchs, _relative(kl_divergence(Dirichlet(a), Dirichlet(b)), _row([expected])))
    yield Figure("kl", worst, f"{worst:.1e} at most, {len(pairs)} pairs")
    worst = 0.0
    for case in (one for one in cases if one["name"] == "dirichlet_kl_grad_alpha"):
        leaf = _row(case["inputs"]["alpha"]).requires_grad_(True)
        (found,) = torch.autograd.grad(dirichlet_kl(leaf, _row(case["inputs"]["beta"])).sum(), leaf)
        worst = max(worst, _relative(found, _row(case["value"])))
    yield Figure("gradient", worst)
    yield Figure("torch", torchs)
    worst = 0.0
    for case in (one for one in cases if one["name"] == "dirichlet_uncertainty"):
        concentrations = _row(case["inputs"]["alpha"])
        for name, value in zip(UNCERTAINTIES, case["value"], strict=True):
            worst = max(worst, _relative(getattr(uncertainty, name)(concentrations), _row([value])))
    yield Figure("uncertainty", worst)
    wrong, count = _not_finite(context.pick(1000, 50))
    yield Figure("float32", wrong, f"{wrong} of {count:,} numbers")


def _not_finite(draws: int) -> tuple[int, int]:
    """Count gradients of UCAT's loss in float32 that are not finite, at any angle between image and texts."""
    random, wrong, count = torch.Generator().manual_seed(0), 0, 0
    form = Form("ucat", "ucat")
    for draw in range(draws):
        parts = {name: torch.randn(8, 16, generator=random) for name in IMAGES}
        text = torch.randn(10, 16, generator=random)
        if draw % 2:  # cosines of 1 and -1: the largest and the smallest concentrations
            parts["adv"][:4], parts["teacher_clean"][4:] = text[:4], -text[4:8]
        leaf = parts["adv"].requires_grad_(True)
        loss = loss_of(form, parts | {"text": text, "labels": torch.arange(8)})
        (gradient,) = torch.autograd.grad(loss, leaf)
        wrong, count = wrong + int((~torch.isfinite(gradient)).sum()), count + gradient.numel()
    return wrong, count


def _row(values: Sequence[str | float]) -> Tensor:
    return torch.tensor([[float(value) for value in values]], dtype=torch.float64)


def _relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest relative error; of a value of 0 the error itself."""
    error = (found.detach().double() - expected.double()).abs()
    return float((error / torch.where(expected == 0, 1, expected.double().abs())).max())
