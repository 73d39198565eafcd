"""The quickstart in small: an untrained model, two steps of tuning, sixteen images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from ironclip.data import open_dataset
from ironclip.data.fingerprints import file_sha256
from ironclip.errors import ResumeError
from ironclip.evaluation.store import RunStore
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import save_model
from ironclip.quickstart import ORIGINAL, PLAN, SUITE, Part, Plan, QuickstartProgress, quickstart
from ironclip.suites import load_suite
from ironclip.training.bundled_recipes import recipe_path
from ironclip.training.engine import train
from ironclip.training.recipe import load_recipe

SHORT = {
    "data": {"train": "bundled:digits?split=train", "limit": 40, "hold_out": 0},
    "threat": {"norm": "linf", "eps": "4/255"},
    "attack": {"name": "pgd_m", "steps": 1},
    "optimisation": {"lr": 1e-3, "steps": 3, "batch_size": 16, "precision": "float32"},
    "checkpoint": {"every": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Callable[..., CLIPModel]) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny_clip(), folder)
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("recipes")
    for method in ("tecoa", "fare"):
        recipe = SHORT | {"method": {"name": method}, "model": "tiny", "title": f"{method} in small"}
        (folder / f"{method}.yaml").write_text(yaml.safe_dump(recipe))
    files = tuple(str(folder / f"{method}.yaml") for method in ("tecoa", "fare"))
    return Plan(recipes=files, datasets=("digits", "shapes-heldout"), steps=2, images=16)


@pytest.fixture(scope="module")
def told() -> tuple[list[Part], list[QuickstartProgress]]:
    """What `done` said as it ran."""
    return [], []


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
    model: str,
    plan: Plan,
    told: tuple[list[Part], list[QuickstartProgress]],
) -> Path:
    out = tmp_path_factory.mktemp("work") / "quickstart"
    parts, seen = told
    quickstart(out, model=model, plan=plan, seed=3, command=("ironclip",), begin=parts.append, progress=seen.append)
    return out


def weights(run: Path) -> str:
    return file_sha256(run / "model" / "open_clip_model.safetensors")


def test_it_is_the_ordinary_training_and_evaluation(done: Path, model: str, plan: Plan, tmp_path: Path) -> None:
    def content() -> dict[str, int]:
        kept = [path for path in done.rglob("*") if path.suffix in (".parquet", ".safetensors", ".jsonl")]
        return {str(path): path.stat().st_mtime_ns for path in kept}

    before, seen = content(), []
    found = quickstart(done, model=model, plan=plan, seed=3, progress=seen.append)
    assert seen == []  # a second call computes nothing
    assert content() == before
    assert [one.name for one in found.results.models] == [ORIGINAL, "tecoa", "fare"]
    assert found.tuned_on == ("bundled:digits?split=train",)
    for name, recipe in zip(("tecoa", "fare"), plan.recipes, strict=True):
        alone = train(load_recipe(recipe, [f"model={model}", "seed=3"]), tmp_path / name)
        assert weights(found.tuned[name]) == weights(alone)
        store = RunStore.open(done / "eval" / name)
        assert store.run.model.sha256 == weights(alone)
        assert store.run.seed == 3
        games = {(store.record(unit).dataset, store.record(unit).threat.eps) for unit in store.units()}
        assert games == {(dataset, eps) for dataset in plan.datasets for eps in plan.eps}
        for unit in store.units():
            row = store.aggregate(unit)
            assert (row.totals.n, row.coverage) == (16, "complete")
            assert store.record(unit).attack.settings["steps"] == 2
    assert len({weights(found.tuned[name]) for name in found.tuned} | {found.results.models[0].sha256}) == 3


@pytest.mark.usefixtures("done")
def test_what_is_said_as_it_runs(told: tuple[list[Part], list[QuickstartProgress]]) -> None:
    parts, seen = told
    assert [(part.number, part.count) for part in parts] == [(number, 6) for number in range(1, 7)]
    assert "16 images each of Digits and Shapes, held-out combinations" in parts[0].task
    assert "tecoa in small" in parts[1].task
    assert {part.seconds for part in parts} == {None}  # nobody has measured this plan
    ends = {one.task: (one.done, one.total) for one in seen}
    assert ends == {
        "attacking original": (96, 96), "tuning by tecoa": (3, 3), "tuning by fare": (3, 3),
        "attacking tecoa": (96, 96), "attacking fare": (96, 96),
    }  # fmt: skip


def test_the_times_of_the_parts_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts: list[Part] = []

    class StopError(Exception):
        pass

    def stop(part: Part) -> None:
        parts.append(part)
        raise StopError

    with pytest.raises(StopError):
        quickstart(tmp_path / "out", begin=stop)
    (first,) = parts
    assert first.seconds is not None
    assert first.seconds_left is not None
    assert first.seconds < first.seconds_left <= 300
    assert not (tmp_path / "out").exists()


def test_it_goes_on_where_it_was_stopped(done: Path, model: str, plan: Plan, tmp_path: Path) -> None:
    shorter = replace(plan, datasets=("digits",))
    tasks: list[set[str]] = []
    for last in ("tuning by fare", "attacking fare"):

        def stop(progress: QuickstartProgress, last: str = last) -> None:
            tasks[-1].add(progress.task)
            if progress.task == last and progress.done:
                raise KeyboardInterrupt

        tasks.append(set())
        with pytest.raises(KeyboardInterrupt):
            quickstart(tmp_path / "out", model=model, plan=shorter, seed=3, progress=stop)
        assert not (tmp_path / "out" / "report.html").exists()
    found = quickstart(tmp_path / "out", model=model, plan=shorter, seed=3)
    assert tasks == [
        {"attacking original", "tuning by tecoa", "tuning by fare"},
        {"tuning by fare", "attacking tecoa", "attacking fare"},
    ]
    for name in found.tuned:
        assert weights(found.tuned[name]) == weights(done / "train" / name)
    for name in (ORIGINAL, *found.tuned):
        stopped, straight = (RunStore.open(out / "eval" / name) for out in (tmp_path / "out", done))
        for unit in stopped.units():
            assert stopped.aggregate(unit).robust_accuracy == straight.aggregate(unit).robust_accuracy


def test_the_work_of_another_seed_is_not_gone_on_with(done: Path, model: str, plan: Plan) -> None:
    with pytest.raises(ResumeError, match="seed = 3, asked for is 4"):
        quickstart(done, model=model, plan=plan, seed=4)


# The page


class References(HTMLParser):
    """Everything in a page that a browser might load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]


def test_the_page_shows_what_it_must_and_loads_nothing(done: Path, model: str) -> None:
    page = (done / "report.html").read_text()
    parsed = References(page)
    outside = [value for value in parsed.found if not value.startswith(("#", "data:image/png;base64,"))]
    assert outside == []
    assert "url(http" not in page
    assert "@import" not in page
    assert "<script" not in page
    # Two data sets, three images each: the image, and for each of three models the change and the attacked image.
    assert sum(value.startswith("data:") for value in parsed.found) == 2 * 3 * (1 + 3 * 2)
    for words in ("changes magnified 64\N{MULTIPLICATION SIGN}", "clean: <b>", "attacked: <b>", "How fast robustness"):
        assert words in page.replace("\n", "")
    assert parsed.tags.count("svg") >= 2
    assert f"{model}, before and after tecoa and fare" in page


# What is shipped


def test_what_is_attacked_was_never_tuned_on() -> None:
    suite = load_suite(SUITE, "data")
    for name in PLAN.recipes:
        recipe = load_recipe(recipe_path(name))
        tuned_on = open_dataset(recipe.data.train)
        for dataset in PLAN.datasets:
            info = suite.entry(dataset).open(strict=True)
            assert not set(info.dataset.keys) & set(tuned_on.keys)
            assert len(info.dataset) >= PLAN.images
            if dataset.startswith("shapes") and "shapes" in recipe.data.train:
                assert not set(info.dataset.labels or ()) & set(tuned_on.labels or ())


def test_the_recipes_play_the_game_of_the_table() -> None:
    for name in PLAN.recipes:
        recipe = load_recipe(recipe_path(name))
        assert recipe.build_threat().eps == PLAN.eps[1]
        assert recipe.build_threat().norm == "linf"
        assert recipe.model == "tiny"
        assert PLAN.eps[1] in recipe.title
