"""The loop: one step taken apart, the guards, and what a run leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
import sys

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError, RunFailedError, UnreadableSampleError, ValueRangeError
from ironclip.methods.base import METHODS, Inner, Pass
from ironclip.models.sources import load_model
from ironclip.training import engine
from ironclip.training.engine import Trainer, train
from ironclip.training.validation import Validation
from made_up_shards import encoded, labelled, levels, write_shard

CLEAN, TECOA, FARE = (METHODS.get(name) for name in ("clean", "tecoa", "fare"))


@pytest.fixture
def run(recipe, data_root, tmp_path):
    """Train that recipe of four steps and return the run folder."""

    def make(changes=None, *, out="run", **options):
        return train(recipe(changes), tmp_path / out, data_root=str(options.pop("root", data_root)), **options)

    return make


def first_batch(trainer):
    return next(trainer.batches(strict=False))


def result_of(out):
    return json.loads((out / "result.json").read_text())


def spoil_loss(monkeypatch, method, steps, value=math.nan):
    """Multiply the loss of the steps with these numbers by NaN, or add an infinity to it."""
    loss, calls = method.loss, []

    def spoiled(self, views):
        calls.append(1)
        terms = dict(loss(self, views))
        if len(calls) - 1 in steps:
            terms = {name: term * value if math.isnan(value) else term + value for name, term in terms.items()}
        return terms

    monkeypatch.setattr(method, "loss", spoiled)


# One step


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_attack_runs_once_a_step_in_every_precision(precision, trainer, monkeypatch):
    """D4: no precision trains on clean images."""
    one = trainer({"optimisation.precision": precision})
    perturb, seen, passed = type(one.attack).perturb, [], []

    def spied(self, objective, pixels, threat, random):
        found = perturb(self, objective, pixels, threat, random)
        seen.append((one.model.compute_dtype, list(random.keys), found))
        assert (found - pixels).abs().amax(dim=(1, 2, 3)).min() > 1 / 255
        return found

    embed = type(one.model).embed_image
    monkeypatch.setattr(type(one.attack), "perturb", spied)
    monkeypatch.setattr(
        type(one.model), "embed_image", lambda self, pixels: passed.append(pixels) or embed(self, pixels)
    )
    epoch, samples = first_batch(one)
    one.step(samples, epoch)
    ((dtype, keys, found),) = seen
    assert dtype == one.precision == {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert keys == [sample.key for sample in samples]
    assert torch.equal(passed[-1], found)  # what the loss is computed on


@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_accumulation_gives_the_same_gradients(method, trainer, gradients_of):
    whole = gradients_of(trainer({"method": {"name": method}}))
    parts = gradients_of(trainer({"method": {"name": method}, "optimisation.accumulate": 4}))
    for name, gradient in whole.items():
        assert torch.linalg.vector_norm(parts[name] - gradient) <= 1e-4 * torch.linalg.vector_norm(gradient), name


def test_parts_of_unequal_size_weigh_by_their_samples(trainer, gradients_of):
    changes = {"method": {"name": "clean"}}
    one = trainer(changes)
    samples = first_batch(one)[1][:7]
    whole = gradients_of(one, samples)
    parts = gradients_of(trainer(changes | {"optimisation.accumulate": 4}), samples)  # 2 + 2 + 2 + 1
    for name, gradient in whole.items():
        assert torch.linalg.vector_norm(parts[name] - gradient) <= 1e-4 * torch.linalg.vector_norm(gradient), name


def test_accumulation_logs_the_means_of_the_whole_batch(trainer):
    logs = []
    for parts in (1, 4):
        one = trainer({"optimisation.accumulate": parts})
        epoch, samples = first_batch(one)
        logs.append(one.step(samples, epoch))
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_clip_norm_shortens_the_gradient_and_keeps_its_direction(trainer, gradients_of):
    free = gradients_of(trainer())
    length = math.sqrt(sum(float(g.square().sum()) for g in free.values()))
    clipped = gradients_of(trainer({"optimisation.clip_norm": length / 3}))
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 3, rtol=1e-4, atol=1e-7)
    longer = gradients_of(trainer({"optimisation.clip_norm": 3 * length}))
    for name, gradient in free.items():
        assert torch.equal(longer[name], gradient)


def test_the_log_shows_the_norm_before_clipping(trainer):
    norms = []
    for clip in (None, 1e-3):
        one = trainer({"optimisation.clip_norm": clip})
        epoch, samples = first_batch(one)
        norms.append(one.step(samples, epoch)["gradient_norm"])
    assert norms[0] == norms[1] > 1e-2


def test_masters_stay_float32_and_passes_run_in_bfloat16(trainer, monkeypatch):
    one = trainer({"optimisation.precision": "bf16"})
    dtypes, embed = set(), type(one.model._fast).embed

    def spied(self, normalised, dtype):
        dtypes.add(dtype)
        return embed(self, normalised, dtype)

    monkeypatch.setattr(type(one.model._fast), "embed", spied)
    epoch, samples = first_batch(one)
    one.step(samples, epoch)
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}
    state = one.optimiser.state_dict()["state"]
    assert {value.dtype for entry in state.values() for value in entry.values()} == {torch.float32}


def test_bf16_masters_move_by_less_than_bfloat16_can_say(trainer):
    """A step of 1e-6 of a weight is far below bfloat16's 2^-9; it must not be lost."""
    one = trainer({"optimisation.precision": "bf16", "optimisation.lr": 1e-7, "method": {"name": "clean"}})
    before = one.model.visual.proj.detach().clone()
    epoch, samples = first_batch(one)
    one.step(samples, epoch)
    moved = (one.model.visual.proj.detach() - before).abs()
    assert (moved > 0).float().mean() > 0.9
    assert moved.max() < 1e-6


@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_bf16_follows_float32(method, trainer):
    logs = []
    for precision in ("float32", "bf16"):
        one = trainer({"optimisation.precision": precision, "method": {"name": method}, "threat.eps": "16/255"})
        epoch, samples = first_batch(one)
        logs.append(one.step(samples, epoch)["loss"])
    assert logs[1] == pytest.approx(logs[0], rel=0.1)
    assert logs[1] != logs[0]


def test_model_is_left_in_eval_mode_also_after_a_failure(trainer, monkeypatch):
    one = trainer()
    modes = []

    def fail(self, views):
        modes.append(one.model.training)
        raise RuntimeError("no")

    passes = Trainer._passes
    monkeypatch.setattr(Trainer, "_passes", lambda self, *a: modes.append(self.model.training) or passes(self, *a))
    monkeypatch.setattr(TECOA, "loss", fail)
    epoch, samples = first_batch(one)
    with pytest.raises(RuntimeError, match="no"):
        one.step(samples, epoch)
    assert modes[0] is True  # the loss pass runs in train mode, as published
    assert not any(module.training for module in one.model.modules())
    assert one.model.compute_dtype == torch.float32


def test_global_random_state_is_neither_read_nor_written(trainer):
    losses = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            one = trainer()
            epoch, samples = first_batch(one)
            losses.append(one.step(samples, epoch)["loss"])
            assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1]


def test_attack_starts_are_others_in_another_epoch(trainer, monkeypatch):
    one = trainer({"optimisation.lr": 1e-12})
    found, perturb = [], type(one.attack).perturb
    monkeypatch.setattr(type(one.attack), "perturb", lambda *a: found.append(perturb(*a)) or found[-1])
    _, samples = first_batch(one)
    for epoch in (0, 1, 0):
        one.step(samples, epoch)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# Order


def test_every_epoch_is_another_permutation_of_the_same_samples(trainer):
    one = trainer({"optimisation.steps": None, "optimisation.epochs": 2})
    assert (one.steps_per_epoch, one.steps) == (4, 8)
    batches = list(one.batches(strict=False))
    assert [epoch for epoch, _ in batches] == [0] * 4 + [1] * 4
    assert [len(samples) for _, samples in batches] == [8, 8, 8, 8] * 2
    first, second = ([s.key for e, samples in batches if e == epoch for s in samples] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(one.data.keys)
    assert first != second


def test_order_depends_on_the_keys_not_on_where_they_stand(trainer, data_root, tmp_path):
    toy = open_dataset(f"wds:{data_root}/toy?split=train")
    members = {}
    for position in reversed(range(len(toy))):
        stem = toy.keys[position].rpartition("/")[2]
        members[f"{stem}.png"] = encoded(int(stem), 16)
        members[f"{stem}.cls"] = str(toy.labels[position]).encode()
    write_shard(tmp_path / "toy" / "train-0000.tar", members)
    for name in ("classes.txt", "templates.json"):
        (tmp_path / "toy" / name).write_text((data_root / "toy" / name).read_text())

    def keys(one):
        return [sample.key for _, samples in one.batches(strict=False) for sample in samples]

    straight, reversed_shard = trainer(), trainer({"data.train": f"wds:{tmp_path}/toy?split=train"})
    assert straight.data.keys != reversed_shard.data.keys
    assert keys(straight) == keys(reversed_shard)
    assert keys(straight) != keys(trainer({"seed": 1}))


def test_batches_go_on_where_the_run_stands(trainer):
    changes = {"optimisation.steps": None, "optimisation.epochs": 2, "optimisation.batch_size": 6}
    whole = [(epoch, [s.key for s in samples]) for epoch, samples in trainer(changes).batches(strict=False)]
    assert len(whole) == 12  # 32 samples: five batches of 6 and one of 2, twice
    for step in (0, 1, 5, 6, 7, 11, 12):
        one = trainer(changes)
        one.progress.step = step
        assert [(epoch, [s.key for s in samples]) for epoch, samples in one.batches(strict=False)] == whole[step:]


# Data


def test_held_out_samples_are_never_trained_on(run, monkeypatch):
    trained, held_out, step = set(), set(), Trainer.step

    def spied(self, samples, epoch):
        trained.update(sample.key for sample in samples)
        held_out.update(self.held_out.keys)
        return step(self, samples, epoch)

    monkeypatch.setattr(Trainer, "step", spied)
    run({"optimisation.steps": None, "optimisation.epochs": 1})
    assert (len(trained), len(held_out)) == (32, 6)
    assert not trained & held_out


_OPENED: list[str] | None = None


def _note_opened(event, arguments):
    if _OPENED is not None and event == "open":
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_note_opened)  # there is no way to take one back; it listens while _OPENED is a list


def test_test_data_are_never_read(run):
    global _OPENED
    _OPENED = []
    try:
        run({"select": "best"})
        opened = [path for path in _OPENED if "toy" in path]
    finally:
        _OPENED = None
    assert any("train-0000.tar" in path for path in opened)
    assert not [path for path in opened if "test" in path.rpartition("/")[2]]


def test_unreadable_samples_are_counted_and_named(run, log_of):
    out = run({"data.train": "wds:{data}/damaged?split=train", "data.hold_out": 0, "optimisation.batch_size": 4})
    found = result_of(out)
    assert sorted(found["unreadable"]) == ["damaged/train/000302", "damaged/train/000307"]
    assert all(found["unreadable"].values())
    # 10 positions in batches of 4, 4 and 2; the second epoch begins with the fourth step.
    assert [entry["epoch"] for entry in log_of(out)] == [0, 0, 0, 1]
    assert 8 + 2 <= found["images"] <= 8 + 4


def test_unreadable_samples_are_fatal_under_strict(run):
    with pytest.raises(UnreadableSampleError, match=r"sample damaged/train/00030[27] cannot be read"):
        run({"data.train": "wds:{data}/damaged?split=train", "data.hold_out": 0}, strict=True)


@pytest.mark.xfail(reason="_read_held_out drops what it could not read")
def test_unreadable_held_out_samples_are_counted_and_named(run):
    out = run({"data.train": "wds:{data}/damaged?split=train", "data.hold_out": 9, "optimisation.steps": 1})
    assert len(result_of(out)["unreadable"]) == 2


def test_a_batch_of_which_nothing_can_be_read_is_passed_over(run, log_of, tmp_path):
    members = labelled(0, 4, 2, 16)
    for name in members:
        if name.endswith(".png"):
            members[name] = b"no image"
    write_shard(tmp_path / "toy" / "train-0000.tar", members | labelled(4, 4, 2, 16))
    changes = {"data.class_names": ["a", "b"], "data.templates": ["a {}"], "data.hold_out": 0}
    out = run(changes | {"optimisation.batch_size": 1, "optimisation.steps": 8}, root=tmp_path)
    assert (result_of(out)["images"], result_of(out)["skipped_steps"], result_of(out)["steps"]) == (4, 4, 8)
    assert sum(math.isnan(entry["loss"]) for entry in log_of(out)) == 4


def test_limit_takes_samples_before_the_held_out_part(trainer):
    one = trainer(limit=20)
    assert (len(one.data), len(one.held_out.keys)) == (14, 6)
    both = trainer({"data.limit": 12}, limit=20)
    assert len(both.data) == 6
    assert {*both.data.keys, *both.held_out.keys} < {*one.data.keys, *one.held_out.keys}


def test_more_held_out_than_there_is(trainer):
    with pytest.raises(ValueRangeError, match="40 of 38 samples are to be held out"):
        trainer({"data.hold_out": 40})


def test_labels_are_missing(trainer):
    plain = {"data.train": "wds:{data}/plain?split=train", "data.templates": ["a {}"], "data.class_names": ["a", "b"]}
    for method in ("tecoa", "clean"):
        with pytest.raises(DataError, match=f'method "{method}" compares images with class prompts') as caught:
            trainer(plain | {"method": {"name": method}})
        assert "has no labels" in caught.value.problem
        assert "fare" in caught.value.remedy


def test_templates_are_missing(trainer, tmp_path):
    write_shard(tmp_path / "toy" / "train-0000.tar", labelled(0, 12, 2, 16))
    source = {"data.train": f"wds:{tmp_path}/toy"}
    with pytest.raises(DataError, match="has no class names"):
        trainer(source)
    with pytest.raises(DataError, match="has no templates"):
        trainer(source | {"data.class_names": ["a", "b"]})


def test_class_names_that_do_not_fit(trainer):
    with pytest.raises(DataError, match="2 class names for 3 labels: no name for label 2"):
        trainer({"data.class_names": ["cat", "dog"]})


def test_a_template_without_place(run):
    with pytest.raises(ConfigError, match=r'the template "a photo" has no \{\}'):
        run({"data.templates": ["a photo"]})


def test_missing_data(run):
    with pytest.raises(DataError, match=r"toys does not exist\. Did you mean .toy"):
        run({"data.train": "wds:{data}/toys"})


def test_only_classes_that_are_present(trainer, tmp_path):
    members = {name: content for name, content in labelled(0, 30, 3, 16).items()}
    members = {name: b"2" if content == b"1" else content for name, content in members.items()}
    write_shard(tmp_path / "toy" / "train-0000.tar", members)
    (tmp_path / "toy" / "classes.txt").write_text("cat\ndog\nbird")
    changes = {"data.train": f"wds:{tmp_path}/toy", "data.templates": ["a {}"]}
    assert list(trainer(changes).prompts[0]) == ["cat", "dog", "bird"]
    one = trainer(changes | {"data.classes": "present"})
    assert list(one.prompts[0]) == ["cat", "bird"]
    assert set(one.data.labels) == {0, 1}


@pytest.mark.xfail(reason="class_names of the recipe name the labels as they were before relabelling")
def test_names_of_the_recipe_follow_the_classes_that_are_present(trainer, tmp_path):
    members = {name: content for name, content in labelled(0, 30, 3, 16).items()}
    members = {name: b"2" if content == b"1" else content for name, content in members.items()}
    write_shard(tmp_path / "toy" / "train-0000.tar", members)
    changes = {"data.train": f"wds:{tmp_path}/toy", "data.templates": ["a {}"], "data.classes": "present"}
    one = trainer(changes | {"data.class_names": ["cat", "dog", "bird"]})
    assert list(one.prompts[0]) == ["cat", "bird"]


@pytest.mark.xfail(raises=RuntimeError, reason="torch.stack refuses images of several sizes, in its own words")
def test_images_of_several_sizes_are_refused_in_words(trainer, tmp_path):
    for number in range(12):
        folder = tmp_path / "mixed" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels(number, 16 + number)).save(folder / f"{number}.png")
    with pytest.raises(DataError, match="size"):
        trainer({"data.train": f"folder:{tmp_path}/mixed", "data.templates": ["a {}"]})


# The contract with methods


def test_a_method_that_reads_other_samples_is_not_split(trainer, monkeypatch):
    monkeypatch.setattr(CLEAN, "across_batch", True)
    changes = {"method": {"name": "clean"}}
    trainer(changes)
    with pytest.raises(ConfigError, match='method "clean" compares the samples of a batch') as caught:
        trainer(changes | {"optimisation.accumulate": 2})
    assert "accumulate to 1" in caught.value.remedy


def test_a_text_adversary_is_refused(trainer, monkeypatch):
    one = trainer()
    adversaries = TECOA.adversaries
    monkeypatch.setattr(TECOA, "adversaries", lambda self, *a: {"text": adversaries(self, *a)["image"]})
    epoch, samples = first_batch(one)
    with pytest.raises(ConfigError, match='method "tecoa" attacks texts, and no text attack is registered'):
        one.step(samples, epoch)


def test_a_pass_without_its_adversary_is_refused(trainer, monkeypatch):
    one = trainer()
    monkeypatch.setattr(TECOA, "adversaries", lambda *_: {})
    epoch, samples = first_batch(one)
    with pytest.raises(ConfigError, match=r"needs Pass\.STUDENT_ADV, but declares no image adversary"):
        one.step(samples, epoch)


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_declared_passes_are_those_of_the_right_model_and_images(model, trainer, monkeypatch):
    """Every pass that the engine offers, asked for at once, against a pass of its own."""
    needs = frozenset(
        {p for p in Pass if p.name.startswith(model.upper()) and "TEXT_ADV" not in p.name}
        | {Pass.STUDENT_ADV, Pass.TEACHER_ADV}
    )
    one = trainer({"method": {"name": "fare"}})
    with torch.no_grad():
        for parameter in one.parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    attacked, perturb = [], type(one.attack).perturb
    monkeypatch.setattr(type(one.attack), "perturb", lambda *a: attacked.append(perturb(*a)) or attacked[-1])
    monkeypatch.setattr(FARE, "needs", property(lambda self: needs))
    epoch, samples = first_batch(one)
    batch = one._batch(samples)
    network = one.model if model == "student" else one.teacher.model
    found = {}

    def loss(self, views):
        seen = getattr(views, model)
        found["clean"], found["adv"] = seen.clean.embedding, seen.adv.embedding
        found["text"], found["features"] = seen.text.embedding, seen.text.features
        found["clean_patches"] = seen.clean_patches
        if model == "student":
            found["adv_patches"] = seen.adv_patches
        return {"embedding": views.student.adv.embedding.square().sum()}

    monkeypatch.setattr(FARE, "loss", loss)
    with torch.no_grad():
        expected = {"clean": network.embed_image(batch.pixels), "clean_patches": network.patch_tokens(batch.pixels)}
        names = ("cat", "dog", "bird")
        expected["text"] = network.embed_text([f"a photo of a {names[s.label]}." for s in samples])
        expected["features"] = F.normalize(expected["text"], dim=-1)
        weights = {name: parameter.clone() for name, parameter in one.parameters.items()}
    one.step(samples, epoch)
    with torch.no_grad():
        for name, parameter in one.parameters.items():
            parameter.copy_(weights[name])
        expected["adv"] = network.embed_image(attacked[0])
        if model == "student":
            expected["adv_patches"] = network.patch_tokens(attacked[0])
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-4)
        assert found[name].requires_grad == (model == "student" and name not in ("text", "features")), name


def test_captions_come_before_class_prompts(trainer, tmp_path, monkeypatch):
    members = labelled(0, 12, 2, 16)
    members |= {f"{number:06}.txt": f"picture {number}\nanother".encode() for number in range(12)}
    write_shard(tmp_path / "toy" / "train-0000.tar", members)
    changes = {"data.train": f"wds:{tmp_path}/toy", "data.class_names": ["a", "b"], "data.templates": ["a {}"]}
    one = trainer(changes | {"method": {"name": "clean"}, "data.hold_out": 2})
    texts, embed_text = [], type(one.model).embed_text
    epoch, samples = first_batch(one)
    one.step(samples, epoch)
    monkeypatch.setattr(type(one.model), "embed_text", lambda self, t: texts.append(list(t)) or embed_text(self, t))
    monkeypatch.setattr(CLEAN, "needs", property(lambda self: frozenset({Pass.STUDENT_CLEAN, Pass.STUDENT_TEXT})))
    one.step(samples, epoch)
    assert texts == [[f"picture {int(sample.key[-6:])}" for sample in samples]]


def test_texts_that_are_not_there(trainer, monkeypatch):
    monkeypatch.setattr(FARE, "needs", property(lambda self: frozenset({Pass.STUDENT_ADV, Pass.STUDENT_TEXT})))
    one = trainer({"data.train": "wds:{data}/plain?split=train", "method": {"name": "fare"}})
    epoch, samples = first_batch(one)
    with pytest.raises(DataError, match='method "fare" reads texts, but the data have none'):
        one.step(samples, epoch)


def test_an_inner_problem_is_solved_in_the_ball_of_the_recipe(trainer, monkeypatch):
    one = trainer({"threat": {"norm": "l2", "eps": 0.5}, "attack": {"name": "pgd", "steps": 2}})
    seen, perturb = [], type(one.attack).perturb

    def spied(self, objective, pixels, threat, random):
        found = perturb(self, objective, pixels, threat, random)
        seen.append(torch.linalg.vector_norm((found - pixels).flatten(1).double(), dim=1))
        return found

    monkeypatch.setattr(type(one.attack), "perturb", spied)
    epoch, samples = first_batch(one)
    one.step(samples, epoch)
    assert (seen[0] <= 0.5 * (1 + 1e-5)).all()
    assert (seen[0] > 0.1).all()


def test_inner_is_an_objective(trainer):
    one = trainer()
    _, samples = first_batch(one)
    inner = one.method.adversaries(one._batch(samples), one.model, one.teacher)["image"]
    assert isinstance(inner, Inner)
    assert inner.objective(one._batch(samples).pixels).shape == (8,)


# NaN


def test_a_step_without_finite_loss_changes_nothing_and_is_counted(trainer, weights, monkeypatch):
    spoil_loss(monkeypatch, CLEAN, {1})
    one = trainer({"method": {"name": "clean"}, "optimisation.weight_decay": 0.1})
    epoch, samples = first_batch(one)
    one.step(samples, epoch)
    before, state = weights(one), one.optimiser.state_dict()
    moments = [value.clone() for entry in state["state"].values() for value in entry.values()]
    logged = one.step(samples, epoch)
    assert math.isnan(logged["loss"])
    assert all(torch.equal(before[name], parameter) for name, parameter in one.parameters.items())
    after = [value for entry in one.optimiser.state_dict()["state"].values() for value in entry.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert (one.progress.skipped, one.progress.skipped_in_a_row, one.progress.step) == (1, 1, 2)
    assert math.isfinite(one.step(samples, epoch)["loss"])
    assert (one.progress.skipped, one.progress.skipped_in_a_row) == (1, 0)
    assert not torch.equal(before["visual.proj"], one.parameters["visual.proj"])


def test_a_step_without_finite_gradient_is_skipped(trainer, weights, monkeypatch):
    """The loss is finite, its derivative is not: sqrt at 0."""
    loss = CLEAN.loss

    def steep(self, views):
        terms = dict(loss(self, views))
        return {"ce": terms["ce"] + (0 * terms["ce"]).sqrt()}

    monkeypatch.setattr(CLEAN, "loss", steep)
    one = trainer({"method": {"name": "clean"}})
    epoch, samples = first_batch(one)
    before = weights(one)
    logged = one.step(samples, epoch)
    assert math.isfinite(logged["loss"])
    assert not math.isfinite(logged["gradient_norm"])
    assert one.progress.skipped == 1
    assert all(torch.equal(before[name], parameter) for name, parameter in one.parameters.items())


@pytest.mark.xfail(reason="the guard tests loss == loss, which an infinite loss passes")
def test_an_infinite_loss_is_not_finite(trainer, monkeypatch):
    spoil_loss(monkeypatch, CLEAN, {0}, math.inf)
    one = trainer({"method": {"name": "clean"}})
    epoch, samples = first_batch(one)
    assert one.step(samples, epoch)["loss"] == math.inf
    assert one.progress.skipped == 1


def test_skipped_steps_are_in_the_result(run, log_of, monkeypatch):
    spoil_loss(monkeypatch, CLEAN, {1, 3})
    out = run({"method": {"name": "clean"}})
    assert result_of(out)["skipped_steps"] == 2
    assert [math.isnan(entry["loss"]) for entry in log_of(out) if "loss" in entry] == [False, True, False, True]


def test_three_in_a_row_end_the_run_with_the_weights_before_them(run, trainer, weights, monkeypatch, tmp_path):
    changes = {"method": {"name": "clean"}, "optimisation.steps": 8, "checkpoint.every": 100}
    one = trainer(changes)
    for (epoch, samples), _ in zip(one.batches(strict=False), range(2), strict=False):
        one.step(samples, epoch)
    spoil_loss(monkeypatch, CLEAN, {2, 3, 4})
    with pytest.raises(RunFailedError, match=r"not finite in 3 steps in a row \(step 5\)") as caught:
        run(changes)
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert str(path) in caught.value.remedy
    kept = load_file(path)
    assert all(torch.equal(kept[f"model.{name}"], value) for name, value in weights(one).items())
    assert not (tmp_path / "run" / "result.json").exists()
    assert caught.value.exit_code == 1


def test_two_in_a_row_do_not_end_the_run(run, monkeypatch):
    spoil_loss(monkeypatch, CLEAN, {0, 1, 3, 4})
    out = run({"method": {"name": "clean"}, "optimisation.steps": 6})
    assert result_of(out)["skipped_steps"] == 4


# What a run leaves behind


def test_run_folder(run, model_folder, log_of):
    seen = []
    out = run(progress=seen.append, command=["ironclip", "train", "a b.yaml"])
    weights = out / "model" / "open_clip_model.safetensors"
    record, result = json.loads((out / "run.json").read_text()), result_of(out)
    assert result == {
        "steps": 4,
        "images": 32,
        "skipped_steps": 0,
        "unreadable": {},
        "best_step": None,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert record["command"] == "ironclip train 'a b.yaml'"
    assert record["threat_caption"] == "Linf 8/255, native, white-box"
    assert record["model"]["sha256"] == load_model(f"local-dir:{model_folder}").spec.sha256
    assert record["data"]["samples"] == 32
    assert record["data"]["held_out"] == 6
    assert record["data"]["classes"] == 3
    assert record["recipe"]["method"] == {"name": "tecoa"}
    assert len(record["source_sha256"]) == 64
    assert record["versions"]["torch"]

    log = log_of(out)
    assert [(entry["step"], "validation" in entry) for entry in log] == [
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (4, False),
        (4, True),
    ]
    for entry in log:
        if "validation" not in entry:
            assert set(entry) == {"step", "epoch", "lr", "loss", "ce", "attack_accuracy", "gradient_norm"}
    validations = [entry["validation"] for entry in log if "validation" in entry]
    assert [found["samples"] for found in validations] == [4, 6]  # all of them at the end
    for found in validations:
        assert found["overfitting_gap"] == found["train_attack_accuracy"] - found["robust_accuracy"]
        assert found["robust_accuracy"] <= found["clean_accuracy"]

    assert [(progress.step, progress.steps) for progress in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [progress.robust_accuracy is None for progress in seen] == [True, False, False, False]
    assert seen[-1].robust_accuracy == validations[-1]["robust_accuracy"]
    assert seen[-1].loss == log[-2]["loss"]
    assert all(progress.images_per_second > 0 for progress in seen)


def test_the_model_is_the_last_checkpoint_in_stock_open_clip(run, model_folder):
    out = run()
    kept = load_file(out / "checkpoint.safetensors")
    stock = open_clip.create_model(f"local-dir:{out / 'model'}").state_dict()
    start = load_model(f"local-dir:{model_folder}").clip.state_dict()
    assert {name for name in stock if not torch.equal(stock[name], start[name])} == {
        name.removeprefix("model.") for name in kept if name.startswith("model.")
    }
    for name in stock:
        if f"model.{name}" in kept:
            assert torch.equal(stock[name], kept[f"model.{name}"])
    # The run folder is a model source.
    assert torch.equal(load_model(str(out)).visual.proj, kept["model.visual.proj"])


def test_a_run_is_a_function_of_its_recipe(run):
    first, second, other = run(out="a"), run(out="b"), run({"seed": 1}, out="c")
    assert result_of(first)["weights_sha256"] == result_of(second)["weights_sha256"]
    assert result_of(first)["weights_sha256"] != result_of(other)["weights_sha256"]


def test_a_run_without_labels(run, log_of):
    seen = []
    changes = {"data.train": "wds:{data}/plain?split=train", "method": {"name": "fare"}}
    out = run(changes, progress=seen.append)
    assert all(progress.attack_accuracy is None for progress in seen)
    last = log_of(out)[-1]["validation"]
    assert math.isnan(last["robust_accuracy"])
    assert math.isnan(last["overfitting_gap"])
    assert 0 < last["embedding_cosine"] < 1
    assert json.loads((out / "run.json").read_text())["data"]["classes"] is None


def test_a_run_without_held_out_samples(run, log_of):
    seen = []
    out = run({"data.hold_out": 0}, progress=seen.append)
    assert not [entry for entry in log_of(out) if "validation" in entry]
    assert seen[-1].robust_accuracy is None


def fake_validations(monkeypatch, values, *, labelled=True):
    """Give these values instead of validating, and keep the weights as they are then."""
    kept, nan = [], math.nan

    def validate(self, samples=None):
        value = values[len(kept)]
        kept.append({name: parameter.detach().clone() for name, parameter in self.parameters.items()})
        if labelled:
            return Validation(4, 0.9, value, 0.9, 0.9 - value, 0.5)
        return Validation(4, nan, nan, nan, nan, value)

    monkeypatch.setattr(Trainer, "validate", validate)
    return kept


@pytest.mark.parametrize("labelled", [True, False])
def test_select_best_takes_the_best_validation(labelled, run, monkeypatch):
    kept = fake_validations(monkeypatch, [0.2, 0.5, 0.5, 0.1], labelled=labelled)
    out = run({"select": "best", "validation.every": 1})
    assert result_of(out)["best_step"] == 2  # the first of equals
    saved = load_file(out / "model" / "open_clip_model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in kept[1].items())
    assert not torch.equal(saved["visual.proj"], kept[3]["visual.proj"])


def test_select_last_takes_the_last(run, monkeypatch):
    kept = fake_validations(monkeypatch, [0.2, 0.5, 0.3, 0.1])
    out = run({"validation.every": 1})
    assert result_of(out)["best_step"] is None
    saved = load_file(out / "model" / "open_clip_model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in kept[3].items())


@pytest.mark.xfail(reason="without held-out samples `select: best` is silently `last`")
def test_select_best_needs_held_out_samples(run):
    with pytest.raises(ConfigError, match="select"):
        run({"select": "best", "data.hold_out": 0})


@pytest.mark.xfail(reason="--limit is in the command only")
def test_the_record_holds_the_limit(run):
    out = run(limit=20)
    assert json.loads((out / "run.json").read_text())["recipe"]["data"]["limit"] == 20


def test_the_loop_says_how_many_bad_steps_it_bears():
    assert engine.BAD_STEPS == 3
