"""The natural table under AutoAttack's standard list: verdicts on its rows, its page, harder attacks on headlines."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from acceptance import peers
from acceptance.claims import (
    ROOT,
    SHARED,
    Bound,
    CannotRunError,
    Claim,
    Context,
    Figure,
    at_least,
    at_most,
    exactly,
    item,
)
from acceptance.command_line import ironclip, must
from acceptance.evaluation_tuned import Attacked
from acceptance.methods_natural import TINY, tuned, weights_of
from acceptance.store import key_of, stored_path
from ironclip.attacks.apgd import APGD, TargetedAPGD
from ironclip.attacks.autoattack import attack_list
from ironclip.attacks.diverse import DiverseInputs
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.sequence import Member
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.transfer import transfer
from ironclip.data.order import limit
from ironclip.evaluation.aggregate import AggregateRow
from ironclip.evaluation.shift import harmonic_mean
from ironclip.evaluation.store import RunStore
from ironclip.files import write_atomically
from ironclip.models.sources import load_classifier
from ironclip.models.zero_shot import Classifier
from ironclip.report.page import build_report
from ironclip.report.prose import verdict_explained
from ironclip.report.tables import load_results
from ironclip.report.wording import bounds
from ironclip.suites.suite import load_suite

DATA = str(SHARED / "data")
KEPT = ROOT / "runs" / "acceptance" / "evaluation"
METHODS = ("tecoa", "fare", "ucat")
ORIGINAL = "original"
EPS = "4/255"
IMAGES, AUDITED = 500, 200
HEADLINES = ("cifar10", "tiny-imagenet", "caltech101")
FULL = ("tecoa", "cifar10")
"""Model and data set of the row that gets the full verdict; 256 samples cost half an hour."""
MODULES = (
    *("ironclip.evaluation.diagnosed_run", "ironclip.evaluation.evaluate", "ironclip.attacks.autoattack"),
    *("ironclip.attacks.apgd", "ironclip.attacks.fab", "ironclip.attacks.square", "ironclip.cli.evaluate"),
)
FILES = (
    *(f"../shared/data/{name}/test-*.tar.gz" for name in ("cifar10", "tiny_imagenet", "caltech101")),
    *(TINY, "src/ironclip/suites/natural.yaml", "src/ironclip/suites/classes/*.yaml"),
)


def sources(context: Context) -> dict[str, str]:
    """Return the models of the table; in the short form two that need no training."""
    if context.short:
        return {ORIGINAL: "tiny", "trial": f"local-dir:{SHARED / 'models' / 'tiny-trial'}"}
    return {ORIGINAL: "tiny"} | {name: str(tuned(name, 0)) for name in METHODS}


def tuned_models() -> str:
    """Return the hashes of what the methods made."""
    return " ".join(map(weights_of, METHODS))


@item(
    "natural_standard",
    claims=[
        Claim("complete", f"`eval --suite natural --attack standard --limit {IMAGES}`: units incomplete", exactly(0)),
        Claim("invalid", "… adversarial images outside ball or box", exactly(0)),
        Claim("verdicts", "… rows without a verdict", exactly(0)),
        Claim("doubted", "… rows of which a light check fails (reported)", Bound()),
        Claim("full", "… rows with the full verdict", at_least(1)),
        Claim("page", "… paired intervals, and the sentence on verdicts, that the page lacks", exactly(0)),
        Claim("outside", "… references of the page to outside", exactly(0)),
    ],
    modules=(*MODULES, "ironclip.report.page", "acceptance.command_line"),
    files=FILES,
    state=tuned_models,
)
def natural_standard(context: Context) -> Iterator[Figure]:
    """As users type it, in bfloat16; hours, of which a stopped run loses a chunk of 256 images at most."""
    models = sources(context)
    runs = {name: context.work / name for name in models}
    for name, source in models.items():
        words: list[object] = [source, "--name", name, "--suite", "natural", "--data-root", DATA, "--eps", EPS]
        words += ["--attack", context.pick("standard", "quick"), "--limit", context.pick(IMAGES, 16)]
        words += context.pick([], ["--dataset", HEADLINES[0]])
        must(ironclip("eval", *words, "--search-dtype", "bfloat16", "--out", runs[name]))
    rows = [row for run in runs.values() for row in _rows(run)]
    partial = sum(row.coverage != "complete" for row in rows)
    yield Figure("complete", partial, f"{len(rows)} units, {partial} incomplete")
    yield Figure("invalid", sum(row.totals.n_invalid for row in rows))
    bare = sum(not row.verdict for row in rows)
    yield Figure("verdicts", bare, f"{bare} of {len(rows)}")
    doubted = [f"{row.unit}: {', '.join(row.verdict)}" for row in rows if row.verdict[:1] not in _TRUSTED]
    yield Figure("doubted", len(doubted), "; ".join(doubted) or f"0 of {len(rows)}")
    if context.short:
        yield Figure("full", None, "half an hour on two cores")
    else:
        yield _full(runs, models)
    yield from _page(context.work / "report", list(runs.values()))


_TRUSTED = (("trusted",), ("trusted(light)",))


def _rows(run: Path) -> list[AggregateRow]:
    store = RunStore.open(run)
    return [store.aggregate(unit) for unit in store.units()]


def _full(runs: Mapping[str, Path], models: Mapping[str, str]) -> Figure:
    """Give one row the full verdict, unless it has it."""
    name, dataset = FULL
    store = RunStore.open(runs[name])
    (unit,) = (unit for unit in store.units() if store.record(unit).dataset == dataset)
    found = store.diagnosis(unit)
    if found is None or found.profile != "full":
        others = [word for other, source in models.items() if other != name for word in ("--surrogate", source)]
        must(ironclip("diagnose", runs[name], "--dataset", dataset, "--data-root", DATA, *others))
        found = RunStore.open(runs[name]).diagnosis(unit)
    full = found is not None and found.profile == "full"
    return Figure("full", float(full), f"{name}, {dataset}: {', '.join(found.verdict) if found else 'none'}")


def _page(folder: Path, runs: list[Path]) -> Iterator[Figure]:
    """Make the page and look for what has to be on it."""
    page = build_report(runs, folder, title="Natural images under AutoAttack").read_text()
    results = load_results(runs)
    cells = [cell for table in results.datasets for row in (table.clean, *table.robust) for cell in row]
    paired = [cell.versus_first.paired for cell in cells if cell and cell.versus_first]
    text = html.unescape(page)
    lacking = sum(bounds(one.low, one.high) not in text for one in paired) + (verdict_explained(results) not in text)
    yield Figure("page", lacking if paired else float("nan"), f"{lacking} of {len(paired)} and a sentence")
    loads = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|\#)|url\(\s*["']?(?!data:|\#)|@import""", page)
    yield Figure("outside", len(loads), f"{len(loads)}, {len(page) / 2**20:.1f} MiB")


PAIRS = {
    "tiny-imagenet": ("tiny-imagenet", "tiny-imagenet-unseen-20way", "tuned on the old ones"),
    "caltech101": ("caltech101", "caltech101-unseen-20way", "tuned on another set"),
}


def table_key() -> str:
    """Return the key of the rows that the items below read."""
    return key_of(natural_standard)


def table_runs(context: Context) -> Path:
    """Return the folder of the rows.

    Raises:
        CannotRunError: They are not all there.
    """
    if context.short:
        raise CannotRunError("needs the rows of natural_standard")
    runs = stored_path(KEPT, natural_standard, table_key()).with_suffix("")
    if not (runs / METHODS[-1] / "run.json").is_file():
        raise CannotRunError("natural_standard has not left its rows")
    return runs


@item(
    "base_to_new",
    claims=[
        Claim(
            f"{model}_{pair}", f"{model}, {pair}, old and new classes, {words}: harmonic mean, robust", Bound(unit="%")
        )
        for model in (ORIGINAL, *METHODS)
        for pair, (_, _, words) in PAIRS.items()
    ],
    modules=("ironclip.evaluation.shift",),
    files=FILES,
    state=table_key,
)
def base_to_new(context: Context) -> Iterator[Figure]:
    """From the same rows; reported."""
    runs = table_runs(context)
    for model in (ORIGINAL, *METHODS):
        store = RunStore.open(runs / model)
        rows = {store.record(unit).dataset: store.aggregate(unit) for unit in store.units()}
        for pair, (base, new, _) in PAIRS.items():
            shares = [
                (getattr(rows[base], view).estimate, getattr(rows[new], view).estimate)
                for view in ("clean_accuracy", "robust_accuracy")
            ]
            clean, robust = (100 * harmonic_mean(*each) for each in shares)
            parts = ", ".join(f"{100 * old:.1f} and {100 * fresh:.1f}" for old, fresh in shares)
            yield Figure(
                f"{model}_{pair}", robust, f"{robust:.1f} %, clean {clean:.1f} % (clean, then robust: {parts})"
            )


HARDER = {
    "pair, five seeds": (attack_list("pair").members, 5),
    "APGD-1000 on the margin, 20 targets": ((Member("T", TargetedAPGD(steps=1000, targets=20, loss="margin")),), 1),
    "APGD-1000 on the margin": ((Member("APGD", APGD(steps=1000, loss="margin")),), 1),
}


@item(
    "escalation",
    claims=[
        Claim("rows", "headline rows of the natural table that harder attacks are tried on", exactly(12)),
        Claim("ids", f"… fixed images of a row, {AUDITED} of {IMAGES}; survivors only", at_least(AUDITED)),
        Claim("lost", "… most that a row loses (more than 1 takes `trusted`)", at_most(1, "points")),
    ],
    modules=(*MODULES, "ironclip.attacks.diverse", "ironclip.attacks.transfer", "acceptance.peers"),
    files=(*FILES, "acceptance/requirements-peers.txt"),
    state=table_key,
)
def escalation(context: Context) -> Iterator[Figure]:
    """Evaluation plan 8, point 12; of more than 21 classes the 20 nearest are aimed at, and not all."""
    runs = table_runs(context)
    models = sources(context)
    context.work.mkdir(parents=True, exist_ok=True)
    audits = {}
    with peers.peers():
        for name in models:
            for dataset in HEADLINES:
                kept = context.work / f"{name}-{dataset}.json"
                if not kept.is_file():
                    counts = audited(models, name, runs / name, dataset)
                    write_atomically(kept, json.dumps(counts).encode())
                audits[f"{name} {dataset}"] = json.loads(kept.read_text())
    yield Figure("rows", len(audits))
    yield Figure("ids", min(counts["images"] for counts in audits.values()))
    lost = {row: 100 * (counts["before"] - counts["after"]) / counts["images"] for row, counts in audits.items()}
    shown = ", ".join(f"{row} {points:.1f} of {audits[row]['before']}" for row, points in lost.items())
    yield Figure("lost", max(lost.values()), f"points, of so many survivors: {shown}")


def audited(models: Mapping[str, str], name: str, run: Path, dataset: str) -> dict[str, int]:
    """Try harder attacks on the survivors of a row: images looked at, standing before, and after each attack."""
    info = load_suite("natural", DATA).entry(dataset).open()
    images = limit(info.dataset, AUDITED)
    store = RunStore.open(run)
    (unit,) = (unit for unit in store.units() if store.record(unit).dataset == dataset)
    rows = store.read_unit(unit)
    broken = dict(zip(rows["sample_id"].to_pylist(), rows["broken"].to_pylist(), strict=True))
    samples = [images[index] for index, key in enumerate(images.keys) if not broken[key]]
    found = {"images": len(images), "before": len(samples), "after": 0}
    if not samples:
        return found
    game = Attacked(
        classifier=load_classifier(models[name], info.class_names, info.templates),
        pixels=torch.stack([sample.pixels for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        keys=tuple(sample.key for sample in samples),
        threat=ThreatModel(norm="linf", eps=EPS),
    )
    for other, source in models.items():
        if other != name:
            surrogate = load_classifier(source, info.class_names, info.templates)
            game = game.take(torch.where(_withstands(game, surrogate))[0])
            found[f"transfer from {other}"] = len(game.keys)
    for label, (members, seeds) in HARDER.items():
        for seed in range(seeds):
            if len(game.keys):
                stands = game.standing(members, seed=seed + 1, search=torch.bfloat16)
                game = game.take(torch.where(stands)[0])
        found[label] = len(game.keys)
    if len(game.keys):
        stands = peers.pyautoattack(game.classifier, game.pixels, game.labels, game.threat.radius, seed=0)
        game = game.take(torch.where(stands)[0])
    return found | {"pyautoattack standard": len(game.keys), "after": len(game.keys)}


def _withstands(game: Attacked, surrogate: Classifier) -> torch.Tensor:
    """Return which images stand under images made for another model, `[N]` bool."""
    attack = DiverseInputs()
    climbed = Misclassify(surrogate, game.labels, loss=attack.loss)
    outcome = transfer(attack, climbed, game.objective(attack), game.pixels, game.keys, game.threat, seed=0)
    return ~outcome.broken
