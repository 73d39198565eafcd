"""`ironclip push`, from a run and its evaluation to a folder that the hub, open_clip and transformers understand."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
import yaml
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ironclip import publishing
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.classes import words_sha256
from ironclip.data.fingerprints import file_sha256
from ironclip.errors import ConfigError, RunFailedError
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.evaluation.store import RunStore
from ironclip.models.sources import load_model
from ironclip.training.engine import train
from ironclip.training.recipe import check_recipe

REPOSITORY = "org/colours-tecoa"
NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def work(tmp_path_factory, model_folder, data_root) -> Path:
    """A run of two steps in `run`, and evaluations of it and of its original; read it, never write there."""
    root = tmp_path_factory.mktemp("work")
    recipe = {
        "title": "two steps",
        "method": {"name": "tecoa"},
        "model": f"local-dir:{model_folder}",
        "data": {"train": "folder:{data}/colours?split=test", "templates": ["a ```{}`."], "hold_out": 12},
        "threat": {"norm": "linf", "eps": "2/255"},
        "attack": {"name": "pgd_m", "steps": 1},
        "optimisation": {"lr": 0.001, "steps": 2, "batch_size": 8, "precision": "float32"},
        "validation": {"every": 2, "attack": {"name": "pgd", "steps": 1}},
    }
    train(check_recipe(recipe), root / "run", data_root=str(data_root))
    listing = {"source": "made up", "count": 3, "sha256": words_sha256(NAMES), "names": NAMES}
    (root / "names.yaml").write_text(yaml.safe_dump(listing))
    entry = {
        "name": "colours",
        "title": "Colours",
        "source": "folder:{data}/colours?split=test",
        "classes": "names.yaml",
        "templates": ["a photo of a {}."],
        "metrics": ["top1"],
    }
    (root / "suite.yaml").write_text(yaml.safe_dump({"name": "colours", "version": 1, "title": "C", "data": [entry]}))
    for name, source in (("original", f"local-dir:{model_folder}"), ("tuned", f"run:{root / 'run'}")):
        request = EvaluationRequest(
            model=source,
            name=name,
            suite=str(root / "suite.yaml"),
            data_root=str(data_root),
            attacks=(FGSM(),),
            threats=(ThreatModel(norm="linf", eps="2/255"),),
            out=root / f"eval-{name}",
            limit=16,
        )
        evaluate_suite(request)
    return root


def push(ironclip, work, *words):
    return ironclip("push", work / "run", REPOSITORY, "--dry-run", "--out", "out", *words)


def metadata(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_stock_libraries_load_the_folder_to_the_same_logits(ironclip, work, tmp_path, pixels):
    transformers = pytest.importorskip("transformers", reason='not installed: pip install "ironclip[hf]"')
    assert push(ironclip, work).code == 0
    model = load_model(f"run:{work / 'run'}")
    small = torch.nn.functional.interpolate(pixels, (16, 16))
    ours = model.embed_image(small)
    normal = model.spec.preprocessing.normalise(small)
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    torch.testing.assert_close(theirs.eval().encode_image(normal), ours, rtol=0, atol=1e-5)
    clip, loading = transformers.CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]  # noqa: PT018  # one claim
    assert transformers.CLIPProcessor.from_pretrained(tmp_path / "out").tokenizer.model_max_length == 77
    with torch.no_grad():
        projected = clip.eval().visual_projection(clip.vision_model(pixel_values=normal).pooler_output)
    torch.testing.assert_close(projected, ours.detach(), rtol=0, atol=1e-5)


def test_the_card_says_where_the_model_comes_from(ironclip, work, tmp_path, model_folder):
    assert push(ironclip, work, "--license", "mit").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    record = json.loads((work / "run" / "run.json").read_text())
    for fact in (record["data"]["fingerprint"], record["model"]["sha256"], record["threat_caption"], "48 images"):
        assert fact in card
    assert "Nobody has measured this model yet" in card
    assert "Licence, as its author names it: mit" in card
    assert metadata(tmp_path / "out")["license"] == "mit"
    # The fence is longer than the back-ticks of a template, so a recipe cannot leave its block.
    assert "\n````yaml\n" in card
    for name in ("open_clip_model.safetensors", "model.safetensors", "recipe.yaml", "config.json"):
        assert file_sha256(tmp_path / "out" / name) in card
    again = check_recipe(yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text()))
    assert again.resolved() == record["resolved"]


def test_measured_rows_are_those_of_the_store(ironclip, work, tmp_path):
    words = [word for name in ("original", "tuned") for word in ("--results", work / f"eval-{name}")]
    assert push(ironclip, work, *words).code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    store = RunStore.open(work / "eval-tuned")
    (unit,) = store.units()
    rows = store.read_unit(unit).to_pylist()
    clean = sum(row["pred_clean"] == row["y"] for row in rows) / 16
    robust = sum(row["pred_clean"] == row["y"] and not row["broken"] for row in rows) / 16
    (verdict,) = store.diagnosis(unit).verdict
    assert f"| FGSM-1 | {100 * robust:.1f} %" in card
    assert f"| {verdict} |" in card
    assert "| against original |" in card
    read = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md").data
    assert [(one.dataset_name, one.metric_value) for one in read.eval_results] == [
        ("Colours", round(100 * clean, 2)),
        ("Colours", round(100 * robust, 2)),
    ]
    assert read.eval_results[1].metric_name.startswith("robust accuracy, Linf 2/255, native 16x16, white-box, FGSM-1")
    assert read.library_name == "open_clip"


def test_evaluations_of_other_models_are_refused(ironclip, work, tmp_path):
    result = push(ironclip, work, "--results", work / "eval-original")
    assert result.code == 2
    assert "none of the evaluations is of this model" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_repository_is_read_from_the_hubs_cache_without_a_network(ironclip, work, tmp_path, monkeypatch, pixels):
    assert push(ironclip, work).code == 0
    commit = "1" * 40
    cached = tmp_path / "cache" / "models--org--colours-tecoa"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(tmp_path / "out", cached / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again, model = load_model(f"hf-hub:{REPOSITORY}"), load_model(f"run:{work / 'run'}")
    assert again.spec.sha256 == model.spec.sha256  # so stored evaluations of the run are of the published model
    assert torch.equal(again.embed_image(pixels), model.embed_image(pixels))


def test_a_second_push_changes_nothing_and_a_changed_one_replaces(ironclip, work, tmp_path):
    def state():
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}

    assert push(ironclip, work).code == 0
    first = state()
    assert push(ironclip, work).code == 0
    assert state() == first
    assert push(ironclip, work, "--license", "mit").code == 0
    assert state()["README.md"] != first["README.md"]
    assert [place.name for place in tmp_path.iterdir()] == ["out"]


def test_a_push_goes_on_after_a_kill(ironclip, work, tmp_path, monkeypatch):
    """Whatever a killed process left beside the folder, the next call ends with the folder and nothing else."""
    assert push(ironclip, work).code == 0
    whole = {file.name: file_sha256(file) for file in (tmp_path / "out").iterdir()}
    (tmp_path / ".out.unfinished" / "open_clip").mkdir(parents=True)
    (tmp_path / ".out.unfinished" / "open_clip" / "open_clip_model.safetensors").write_bytes(b"half")
    (tmp_path / ".out.unfinished" / "config.json").write_text("{}")
    (tmp_path / "out").rename(tmp_path / ".out.earlier")  # killed between the two renames
    assert push(ironclip, work).code == 0
    assert {file.name: file_sha256(file) for file in (tmp_path / "out").iterdir()} == whole
    assert [place.name for place in tmp_path.iterdir()] == ["out"]

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "render_card", fails)
    result = push(ironclip, work, "--license", "mit")
    assert (result.code, "No space left on device" in result.err) == (1, True)
    assert {file.name: file_sha256(file) for file in (tmp_path / "out").iterdir()} == whole
    assert [place.name for place in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "colours"), '"colours" is no repository of the hub.\nWrite ORG/NAME'),
        (("run", "org/co lours"), '"org/co lours" is no repository of the hub.'),
        (("nowhere", REPOSITORY), "nowhere is no training run: it has no run.json."),
        (("half", REPOSITORY), "half is a run that is not finished: it has no result.json."),
        (("run", REPOSITORY, "--out", "taken"), "taken holds other files.\nName a new folder with --out."),
    ],
)
def test_what_is_wrong_is_said(ironclip, work, tmp_path, words, said):
    (tmp_path / "run").symlink_to(work / "run")
    for place, name in (("half", "run.json"), ("taken", "mine.txt")):
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_text("{}")
    result = ironclip("push", *words, "--dry-run")
    assert result.code == 2
    assert said in result.err
    assert (tmp_path / "taken" / "mine.txt").read_text() == "{}"


@pytest.mark.parametrize(
    "name",
    [
        *("a/b", "org/tecoa-vit-b-32", "Org_1/x.y", "a/" + "b" * 96, "a/" + "b" * 97, "a/b/c", "a//b", "/b", "a/"),
        *("-a/b", "a/b-", "a/.b", "a/b--c", "a/b..c", "a/b.git", "a/b c", "a/é"),
    ],
)
def test_names_are_those_that_the_hub_takes(name):
    def takes(check, errors) -> bool:
        try:
            check(name)
        except errors:
            return False
        return True

    assert takes(publishing.check_repository, ConfigError) == takes(validate_repo_id, HFValidationError)


# The upload, to a client that only notes what it is asked


class FakeHub:
    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self.error = [], error

    def create_repo(self, *words, **settings):
        self.asked.append(("create_repo", words, settings))

    def upload_folder(self, *words, **settings):
        self.asked.append(("upload_folder", words, settings))
        if self.error is not None:
            raise self.error


def test_the_upload_is_one_commit_of_the_folder_by_calls_that_the_client_has(tmp_path):
    hub = FakeHub()
    assert publishing.upload(tmp_path, REPOSITORY, private=True, hub=hub) == f"hf-hub:{REPOSITORY}"
    assert [name for name, _, _ in hub.asked] == ["create_repo", "upload_folder"]
    for name, words, settings in hub.asked:
        # Fails with a TypeError where the real client takes no such arguments.
        inspect.signature(getattr(huggingface_hub.HfApi, name)).bind(None, *words, **settings)
    assert hub.asked[0][2]["private"] is True
    assert hub.asked[0][2]["exist_ok"] is True
    assert hub.asked[1][2]["folder_path"] == tmp_path


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline mode"), ConnectionError("no route")])
def test_an_upload_that_fails_says_that_the_folder_is_complete(tmp_path, error):
    with pytest.raises(
        RunFailedError, match=r"could not be uploaded: (offline mode|no route)\.\n.*is complete. Log in"
    ):
        publishing.upload(tmp_path, REPOSITORY, hub=FakeHub(error))


def test_push_uploads_what_it_wrote(ironclip, work, tmp_path, monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr(publishing, "HfApi", lambda: hub)
    result = ironclip("push", work / "run", REPOSITORY, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["source"] == f"hf-hub:{REPOSITORY}"
    assert hub.asked[1][2]["folder_path"] == Path("runs/push/colours-tecoa") == Path(told["folder"])
