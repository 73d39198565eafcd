"""The driver on honest attacks and models: what it returns, and that nothing but the sample decides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ironclip.attacks.base import ATTACKS, Attack
from ironclip.attacks.driver import FINER, GRANULE, DriverSettings, Outcome, fitted, row_invariance, run_attack
from ironclip.attacks.objectives import EmbeddingDistance, Evaluation, Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.randomness import SampleRandom, rank_of
from made_up_classifiers import AffineTask, Free
from made_up_images import natural_like
from quick_attacks import quick

LINF, L2 = ThreatModel(eps="1/510"), ThreatModel(norm="l2", eps="1/20")

# Scores lead nowhere in so few queries but in a larger ball.
CASES = {
    name: (quick(name), ThreatModel(eps="1/32") if name in ATTACKS.names("score") else LINF)
    for name in ATTACKS.names("image")
} | {
    "pgd in l2": (PGD(steps=10), L2),
    "pgd with momentum and restarts": (PGD(steps=5, momentum=0.9, restarts=3), LINF),
    "pgd, last, with restarts": (PGD(steps=5, keep="last", restarts=2), LINF),
}


def columns(outcome: Outcome) -> dict[str, Tensor]:
    """Everything that the driver says of a sample, save the time it took."""
    flat = {}
    for name, value in vars(outcome).items():
        if isinstance(value, Evaluation):
            flat |= {f"{name}.{part}": column for part, column in vars(value).items() if column is not None}
        elif name != "seconds":
            flat[name] = value
    return flat


def assert_same(found: Outcome, expected: Outcome, rows: Tensor | None = None) -> None:
    """Bit for bit; `rows` says which of the expected ones were found, in which order."""
    others = columns(expected)
    for name, column in columns(found).items():
        other = others[name] if rows is None else others[name][rows]
        assert torch.equal(column.nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0)), name


def run(task, attack: Attack, threat: ThreatModel, rows: Tensor | None = None, **settings) -> Outcome:
    rows = torch.arange(len(task.keys)) if rows is None else rows
    objective = Misclassify(task.classifier, task.labels, loss=attack.loss).take(rows)
    keys = [task.keys[row] for row in rows.tolist()]
    return run_attack(attack, objective, task.pixels[rows], keys, threat, seed=3, settings=DriverSettings(**settings))


@pytest.fixture(scope="module")
def task(clip_task):
    return clip_task()


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def case(request, task) -> tuple[Attack, ThreatModel, Outcome]:
    attack, threat = CASES[request.param]
    outcome = run(task, attack, threat, tile=64)
    # A test of invariance on samples that all fare alike would show nothing.
    assert 0 < outcome.clean.broken.sum() < 16
    assert 16 < outcome.broken.sum() < 56
    return attack, threat, outcome


# Invariance


@pytest.mark.parametrize("tile", [16, 32, 1, 7, 40])
def test_tile_changes_no_bit(case, task, tile):
    attack, threat, outcome = case
    assert_same(run(task, attack, threat, tile=tile), outcome)


def test_compaction_changes_no_bit(case, task):
    attack, threat, outcome = case
    assert_same(run(task, attack, threat, compact=False), outcome)


def test_order_changes_no_bit(case, task):
    attack, threat, outcome = case
    rows = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert_same(run(task, attack, threat, rows, tile=32), outcome, rows)


def test_two_shards_are_the_whole(case, task):
    attack, threat, outcome = case
    part = torch.tensor([rank_of("shard", key) % 2 for key in task.keys])
    shards = [torch.where(part == index)[0] for index in range(2)]
    assert sorted(torch.cat(shards).tolist()) == list(range(64))
    assert min(map(len, shards)) > 20
    for rows in shards:
        assert_same(run(task, attack, threat, rows), outcome, rows)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_do_not_depend_on_their_tile_on_this_machine(task, threads):
    torch.set_num_threads(threads)
    try:
        for tile in (16, 48, 64) if threads == 1 else (48,):
            assert row_invariance(task.objective(), task.pixels[:16], DriverSettings(tile=tile)) == 0
        coarse = DriverSettings(search_dtype=torch.bfloat16)
        assert row_invariance(task.objective(), task.pixels[:16], coarse) == 0
    finally:
        torch.set_num_threads(1)


def test_the_seed_and_the_key_decide_the_start_and_nothing_else_does(task):
    attack, rows = PGD(steps=1), torch.arange(16)
    objective = task.objective().take(rows)

    def survivors(seed: int, prefix: str) -> Tensor:
        keys = [prefix + task.keys[row] for row in range(16)]
        return run_attack(attack, objective, task.pixels[:16], keys, LINF, seed=seed).adversarial

    assert torch.equal(survivors(0, ""), survivors(0, ""))
    assert not torch.equal(survivors(0, ""), survivors(1, ""))
    assert not torch.equal(survivors(0, ""), survivors(0, "other "))


# What comes out


def test_outcome_is_sound(case, task):
    attack, threat, outcome = case
    clean_wrong, broken = outcome.clean.broken, outcome.broken
    assert threat.contains(outcome.adversarial, task.pixels).all()
    torch.testing.assert_close(outcome.norm, threat.distance(outcome.adversarial, task.pixels))
    # Looked at again, in another precision: whoever is broken is wrong, whoever is not is right.
    with task.classifier.computing(torch.float64), torch.no_grad():
        logits = task.classifier.logits(outcome.adversarial.double())
    predicted = logits.argmax(dim=1)
    assert torch.equal(predicted != task.labels, broken)
    torch.testing.assert_close(outcome.final.logits.double(), logits, atol=1e-3, rtol=1e-4)
    assert torch.equal(outcome.final.broken, broken)
    assert torch.equal(outcome.final.margin > 0, broken)
    # Wrong on the clean image: nothing was done to it, and it cost one look.
    assert torch.equal(outcome.adversarial[clean_wrong], task.pixels[clean_wrong])
    for column, value in (("norm", 0), ("forwards", 1), ("backwards", 0), ("iterations", -1), ("restart", -1)):
        assert (getattr(outcome, column)[clean_wrong] == value).all(), column
    assert torch.equal(outcome.final.logits[clean_wrong], outcome.clean.logits[clean_wrong])
    # Iterations name the break and only the break.
    assert torch.equal(outcome.iterations > 0, broken & ~clean_wrong)
    assert (outcome.restart[~clean_wrong] >= 0).all()
    assert (outcome.restart < attack.restarts).all()
    assert (outcome.best_loss >= outcome.final.value).all()
    assert (outcome.best_loss >= outcome.clean.value).all()
    assert not outcome.invalid.any()
    assert (outcome.false_claims == 0).all()
    assert (outcome.seconds[~clean_wrong] > 0).all()
    assert (outcome.seconds[clean_wrong] == 0).all()


def naive_pgd(task, row: int, attack: PGD, threat: ThreatModel, seed: int) -> dict[str, object]:
    """PGD on one sample, 16 copies of it a forward, without state, tiles or compaction; linf, no momentum."""
    labels, origin = task.labels[[row] * 16], task.pixels[[row] * 16]
    radius = torch.tensor(threat.radius)

    def look(x: Tensor) -> tuple[float, bool, Tensor]:
        leaf = x.clone().requires_grad_(True)
        logits = task.classifier.logits(leaf)
        others = logits.scatter(1, labels[:, None], -torch.inf)
        value = torch.nn.functional.softplus(others.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0])
        slope = torch.autograd.grad(value.sum(), leaf)[0]
        return value[0].item(), logits[0].argmax().item() != labels[0], slope

    value, wrong, _ = look(origin)
    said = {"forwards": 1, "backwards": 0, "iterations": -1, "restart": -1, "best_loss": value, "broken": wrong}
    if wrong:
        return said | {"adversarial": task.pixels[row]}
    best = -float("inf")
    for restart in range(attack.restarts):
        random = SampleRandom(seed, [task.keys[row]], f"{attack.name}|{restart}")
        start = random.uniform(origin.shape[1:], -threat.radius, threat.radius, "start")
        x = (origin + start).clamp(0, 1)
        for examined in range(1, attack.steps + 2):
            value, wrong, slope = look(x)
            said["forwards"] += 1
            said["backwards"] += examined <= attack.steps
            said["best_loss"] = max(said["best_loss"], value)
            if wrong:
                found = {"iterations": examined, "restart": restart, "broken": True, "adversarial": x[0]}
                return said | found | {"forwards": said["forwards"] + 1}  # verified
            if value > best:
                best, said["adversarial"], said["restart"] = value, x[0], restart
            x = x + torch.tensor(threat.radius / 4) * slope.sign()
            x = torch.minimum(torch.maximum(x, origin - radius), origin + radius).clamp(0, 1)
    return said | {"forwards": said["forwards"] + 1}


@pytest.mark.parametrize("compact", [True, False])
def test_every_number_is_that_of_a_naive_loop_over_samples(task, compact):
    attack, rows = PGD(steps=4, restarts=2), torch.arange(24)
    outcome = run(task, attack, LINF, rows, compact=compact)
    assert set(outcome.restart.tolist()) == {-1, 0, 1}
    assert len(set(outcome.iterations.tolist())) > 3
    for row in rows.tolist():
        for name, value in naive_pgd(task, row, attack, LINF, seed=3).items():
            found = getattr(outcome, name)[row]
            if name == "adversarial":
                assert torch.equal(found, value), row
            elif name == "best_loss":
                assert found.item() == pytest.approx(value, rel=1e-6), row
            else:
                assert found.item() == value, (row, name)


def test_passes_are_those_that_the_model_ran(task):
    """With tiles of 16 and a survivor in every tile, counted at the model itself."""
    attack, calls = PGD(steps=3, start_at="zero"), []

    def call(pixels):
        calls.append(len(pixels))
        return pixels.flatten(1)[:, :2] * torch.tensor([1.0, 0.0]) + torch.tensor([1.0, 0.0])

    pixels = natural_like(32, 4)
    objective = Misclassify(Free(call), torch.zeros(32, dtype=torch.int64))
    outcome = run_attack(
        attack, objective, pixels, [str(i) for i in range(32)], LINF, seed=0, settings=DriverSettings(tile=16)
    )
    assert (outcome.forwards == 1 + 4 + 1).all()  # the image, four points, the verdict
    assert (outcome.backwards == 3).all()
    assert sum(calls) == outcome.forwards.sum()


@pytest.mark.parametrize("classes", [2, 1000])
def test_few_and_many_classes(clip_task, classes):
    task = clip_task(classes, samples=32)
    for loss in ("ce", "margin", "dlr"):
        attack = PGD(steps=3, loss=loss)
        outcome = run(task, attack, ThreatModel(eps="1/255"))
        assert outcome.final.logits.shape == (32, classes)
        assert torch.equal(outcome.final.logits.argmax(1) != task.labels, outcome.broken)
        assert outcome.broken.sum() > outcome.clean.broken.sum()


@pytest.mark.parametrize("loss", ["ce_t", "margin_t", "dlr_t"])
def test_a_targeted_attack_wins_where_the_target_is_predicted(loss):
    task = AffineTask(4, seed=0)
    targets = (task.labels + 1) % 4
    objective = Misclassify(task.classifier, task.labels, loss=loss, targets=targets)
    threat = ThreatModel(eps="32/255", goal="targeted")
    outcome = run_attack(PGD(), objective, task.pixels, task.keys, threat, seed=0)
    assert torch.equal(outcome.final.logits.argmax(1) == targets, outcome.broken)
    assert outcome.broken.sum() > outcome.clean.broken.sum()


def test_embeddings_are_pushed_away_and_never_broken(task):
    with torch.no_grad():
        target = task.classifier.model.embed_image(task.pixels[:20])
    objective = EmbeddingDistance(task.classifier.model, target)
    outcome = run_attack(PGD(steps=4), objective, task.pixels[:20], task.keys[:20], LINF, seed=0)
    assert not outcome.broken.any()
    assert outcome.final.logits is None
    assert outcome.final.margin is None
    assert (outcome.final.value > 10 * outcome.clean.value.clamp(min=1e-9)).all()
    assert (outcome.restart == 0).all()
    assert (outcome.forwards == 1 + 5 + 1).all()


def test_nothing_to_attack_is_nothing_attacked(task):
    outcome = run(task, PGD(), LINF, torch.arange(0))
    assert outcome.adversarial.shape == (0, 3, 32, 32)
    assert all(len(column) == 0 for column in columns(outcome).values())


def test_progress_is_told_after_each_step(task):
    told: list[tuple[int, int]] = []
    attack = PGD(steps=6)
    outcome = run_attack(
        attack, task.objective(), task.pixels, task.keys, LINF, seed=3, progress=lambda *said: told.append(said)
    )
    assert len(told) == 7
    assert all(broken + standing == 64 for broken, standing in told)
    assert [broken for broken, _ in told] == sorted(broken for broken, _ in told)
    assert told[-1][0] == outcome.broken.sum()


def test_a_model_with_a_flat_gradient_survives_without_a_nan():
    """Quantised logits: nothing pulls anywhere. The verdict is left to the diagnostics, the numbers stay numbers."""
    task = AffineTask(3, seed=0, samples=20)
    flat = Free(lambda pixels: (task.classifier.logits(pixels) / 8).round() * 8 + torch.tensor([0.1, 0.0, -0.1]))
    labels = flat.logits(task.pixels).argmax(1)
    for attack in (PGD(steps=3, momentum=0.9, start_at="zero"), ATTACKS.create("fgsm")):
        for threat in (ThreatModel(eps="4/255"), ThreatModel(norm="l2", eps="1")):
            outcome = run_attack(attack, Misclassify(flat, labels), task.pixels, task.keys, threat, seed=0)
            assert not outcome.broken.any()
            assert torch.equal(outcome.adversarial, task.pixels)
            assert outcome.best_loss.isfinite().all()
            assert (outcome.backwards == attack.steps).all()


# Refusals


def refused(pixels: Tensor, keys: Sequence[str] = ("a", "b")) -> None:
    model = Free(lambda x: x.flatten(1)[:, :3])
    run_attack(PGD(), Misclassify(model, torch.zeros(2, dtype=torch.int64)), pixels, list(keys), LINF, seed=0)


def test_pixels_out_of_range_are_refused_with_what_was_seen():
    pixels = torch.zeros(2, 3, 4, 4)
    pixels[0, 0, 0, 0], pixels[1, 2, 3, 3] = -2.118, 2.64
    with pytest.raises(ValueRangeError, match=r"pixels range from -2\.118 to 2\.64, .*\n.*before mean and std"):
        refused(pixels)
    with pytest.raises(ValueRangeError, match=r"range from 0 to 255"):
        refused(torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4))
    pixels = torch.zeros(2, 3, 4, 4)
    pixels[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueRangeError, match="range from nan to nan"):
        refused(pixels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float16])
def test_pixels_of_another_type_are_refused(dtype):
    with pytest.raises(ValueRangeError, match=rf"pixels are {dtype}, expected float32"):
        refused(torch.zeros(2, 3, 4, 4, dtype=dtype))


def test_a_key_an_image_is_needed():
    with pytest.raises(ShapeError, match="3 sample keys for 2 images"):
        refused(torch.zeros(2, 3, 4, 4), ["a", "b", "c"])


def test_tiles_are_rounded_up_and_positive():
    assert [DriverSettings(tile=tile).tile for tile in (1, 7, 16, 17, 64)] == [16, 16, 16, 32, 64]
    with pytest.raises(ConfigError, match="a batch size of 0"):
        DriverSettings(tile=0)


def test_a_precision_that_the_model_lacks_is_refused():
    task = AffineTask(3, seed=0, samples=4)
    model = Free(task.classifier.logits)
    with pytest.raises(ConfigError, match=r"Free computes in float32 only, not torch\.bfloat16"):
        run_attack(
            PGD(),
            Misclassify(model, task.labels),
            task.pixels,
            task.keys,
            LINF,
            seed=0,
            settings=DriverSettings(search_dtype=torch.bfloat16),
        )


# The probe


def test_probe_sees_rows_that_know_of_each_other():
    task = AffineTask(3, seed=0, samples=16)
    leaky = Free(lambda pixels: task.classifier.logits(pixels - pixels.mean(dim=0) * 1e-3))
    assert row_invariance(Misclassify(leaky, task.labels), task.pixels, DriverSettings()) > 1e-6
    honest = Misclassify(task.classifier, task.labels, loss="margin")
    assert row_invariance(honest, task.pixels, DriverSettings()) == 0


def test_probe_sees_rows_that_depend_on_the_size_of_the_tile_only_at_48():
    task = AffineTask(3, seed=0, samples=16)
    odd = Free(lambda pixels: task.classifier.logits(pixels) + (len(pixels) == 48) * 1e-6)
    assert row_invariance(Misclassify(odd, task.labels), task.pixels, DriverSettings(tile=64)) > 0


def test_probe_takes_a_nan_against_a_number_for_a_difference():
    task = AffineTask(3, seed=0, samples=16)

    def call(pixels):
        logits = task.classifier.logits(pixels)
        return logits * (torch.nan if len(pixels) == 32 else 1)

    assert row_invariance(Misclassify(Free(call), task.labels), task.pixels, DriverSettings()) == float("inf")
    steady = Free(lambda pixels: task.classifier.logits(pixels) * torch.tensor([1.0, torch.nan, 1.0]))
    assert row_invariance(Misclassify(steady, task.labels), task.pixels, DriverSettings()) == 0


def test_probe_looks_at_float32_too_where_the_search_is_coarser(task):
    """A model whose rows are independent in bfloat16 only; verdicts are float32."""
    model = task.classifier.model

    class Leaky(type(task.classifier)):
        def logits(self, pixels):
            logits = super().logits(pixels)
            return logits if self.model.compute_dtype == torch.bfloat16 else logits + logits.mean(dim=0)

    leaky = Misclassify(Leaky(model, task.classifier.class_weights), task.labels[:16])
    settings = DriverSettings(search_dtype=torch.bfloat16)
    assert row_invariance(leaky, task.pixels[:16], settings) > 0


def test_probe_needs_sixteen_images():
    task = AffineTask(3, seed=0, samples=15)
    with pytest.raises(ShapeError, match="15 images to probe with"):
        row_invariance(Misclassify(task.classifier, task.labels), task.pixels, DriverSettings())


def test_where_rows_depend_on_the_tile_every_tile_is_whole():
    """`granule = tile` is what an evaluation sets where the probe is not 0: no partial shapes are run."""
    sizes: set[int] = set()
    task = AffineTask(3, seed=0, samples=40)

    def call(pixels):
        sizes.add(len(pixels))
        return task.classifier.logits(pixels)

    settings = DriverSettings(tile=32, granule=32)
    objective = Misclassify(Free(call), task.labels)
    found = run_attack(
        PGD(steps=3), objective, task.pixels, task.keys, ThreatModel(eps="4/255"), seed=0, settings=settings
    )
    assert sizes == {32}
    plain = dataclasses.replace(settings, granule=16)
    assert_same(
        run_attack(PGD(steps=3), objective, task.pixels, task.keys, ThreatModel(eps="4/255"), seed=0, settings=plain),
        found,
    )
    assert sizes == {16, 32}


@pytest.mark.parametrize(
    ("odd_sizes", "expected"),
    [((), 4), ((4,), 8), ((12,), 8), ((8,), 4), ((8, 4), 16), ((20,), 8), ((16, 32, 48), 64)],
)
def test_the_last_tile_is_as_small_as_the_kernels_allow(odd_sizes, expected):
    """Of a model whose rows are otherwise in tiles of some sizes."""
    task = AffineTask(3, seed=0, samples=16)
    odd = Free(lambda pixels: task.classifier.logits(pixels) + (len(pixels) in odd_sizes) * 1e-6)
    settings, invariance = fitted(Misclassify(odd, task.labels), task.pixels, DriverSettings(tile=64))
    assert settings.granule == expected
    assert (invariance > 0) == (expected == 64)


@pytest.mark.parametrize("granule", [*FINER, GRANULE])
def test_padding_less_changes_no_bit(case, task, granule):
    attack, threat, outcome = case
    rows = torch.arange(37)
    assert_same(run(task, attack, threat, rows, granule=granule), outcome, rows)
