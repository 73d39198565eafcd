"""The items of `tiny` can fail: each is shown something that is wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
from acceptance.claims import CannotRunError, Context
from PIL import Image

from acceptance import (
    browser,
    tiny,
    tiny_card,
    tiny_fragility,
    tiny_quickstart,
    tiny_resume,
    tiny_stock,
    tiny_zero_shot,
)
from ironclip.evaluation.intervals import paired_difference, wilson
from ironclip.models.sources import load_model, save_model
from ironclip.report.results import Budget, Cell, Comparison, DatasetTable, Model, Results


def figures(item, tmp_path, *, short=True):
    return {figure.claim: figure for figure in item.measure(Context(tmp_path, short=short))}


def test_items_and_claims_have_names_of_their_own():
    assert len({item.name for item in tiny.ITEMS}) == len(tiny.ITEMS)
    for item in tiny.ITEMS:
        assert item.claims
        assert len({claim.name for claim in item.claims}) == len(item.claims)


@pytest.mark.parametrize("item", tiny.ITEMS, ids=lambda item: item.name)
def test_modules_of_an_item_exist(item):
    assert [module for module in item.modules if find_spec(module) is None] == []


@pytest.fixture
def shipped(tiny_clip, tmp_path, monkeypatch):
    """A folder with a small untrained model in the place of the shipped one."""
    folder = tmp_path / "tiny"
    save_model(tiny_clip(), folder)
    for module in (tiny_card, tiny_stock):
        monkeypatch.setattr(module, "FOLDER", folder)
    for module in (tiny_stock, tiny_zero_shot, tiny_fragility):
        monkeypatch.setattr(module, "MODEL", f"local-dir:{folder}", raising=False)
    return folder


# The model


@pytest.mark.usefixtures("shipped")
def test_a_model_that_knows_nothing_is_seen_as_such(tmp_path):
    found = figures(tiny_zero_shot.bundled, tmp_path)
    thresholds = {claim.name: claim.bound for claim in tiny_zero_shot.bundled.claims}
    assert not thresholds["digits"].holds(found["digits"].value)
    assert not thresholds["shapes-heldout"].holds(found["shapes-heldout"].value)
    assert thresholds["shapes"].holds(found["shapes"].value)  # reported only
    assert not thresholds["shapes"].holds(float("nan"))
    assert "of 500 images" in found["digits"].shown
    assert "chance 10.0" in found["digits"].shown


def test_zero_shot_counts_right_answers(monkeypatch, shipped):
    """With class weights that are the images' own embeddings every answer is right."""
    model = load_model(f"local-dir:{shipped}")

    class Oracle:
        def __init__(self, model, names, templates):
            self.count = len(names)

        def logits(self, pixels):
            import torch

            dark = pixels.mean(dim=(1, 2, 3)) < 0.2
            return torch.nn.functional.one_hot(dark.long(), self.count).float()

    monkeypatch.setattr(tiny_zero_shot, "ZeroShotClassifier", Oracle)
    found = tiny_zero_shot.zero_shot(model, "bundled", "digits", at_most=100)
    from ironclip.data.order import limit
    from ironclip.suites import load_suite

    data = limit(load_suite("bundled", "data").entry("digits").open().dataset, 100)
    right = sum(int(data[i].pixels.mean() < 0.2) == data[i].label for i in range(100))
    assert found.count == 100
    assert 0 < right < 100
    assert found.images == wilson(right, 100)


def test_stock_sees_other_weights(shipped, tmp_path, tiny_clip, monkeypatch):
    same = figures(tiny_stock.stock, tmp_path)["open_clip"]
    assert same.value <= 1e-4, same.shown
    save_model(tiny_clip(seed=1), tmp_path / "other")
    monkeypatch.setattr(tiny_stock, "MODEL", f"local-dir:{tmp_path / 'other'}")
    assert figures(tiny_stock.stock, tmp_path)["open_clip"].value > 1e-2


CARD = """# tiny
## Data
CIFAR-10, Tiny-ImageNet, Caltech-101, Flickr8k, digits, shapes; words of WordNet.
## Recipe
seed 0
## Compute
2.5 hours
## Accuracy
seen and unseen
## Limits
## Licences
non-commercial
"""


def test_a_card_that_says_all_lacks_nothing():
    assert tiny_card.lacking(CARD) == []


@pytest.mark.parametrize(
    ("before", "after", "missing"),
    [
        ("## Limits", "Limits", 'heading "limits"'),
        ("## Licences", "## Thanks", 'heading "licen[cs]e"'),
        ("Flickr8k", "Flickr30k", '"Flickr8k"'),
        ("seen and unseen", "unseen", '"seen"'),
        ("seed 0", "", '"seed"'),
    ],
)
def test_what_a_card_leaves_out_is_named(before, after, missing):
    assert tiny_card.lacking(CARD.replace(before, after)) == [missing]


def test_the_card_states_the_hash_of_the_weights(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_card, "pictures", lambda: ["photo.jpg"])
    (shipped / "README.md").write_text(CARD)
    found = figures(tiny_card.model_card, tmp_path)
    assert found["sha256"].value == 0
    assert found["pictures"].value == 1
    (shipped / "README.md").write_text(f"{CARD}\n{found['sha256'].shown}\n")
    assert figures(tiny_card.model_card, tmp_path)["sha256"].value == 1


def test_the_stage_of_a_killed_pretraining_is_a_recipe(tmp_path):
    pytest.importorskip("transformers")
    from ironclip.pretraining.encoder import SentenceEncoder
    from ironclip.pretraining.phrases import read_wordnet
    from ironclip.pretraining.recipe import load_pretrain_recipe

    tiny_resume._set_the_stage(tmp_path, 20)
    assert load_pretrain_recipe(tmp_path / "recipe.yaml").images.steps == 20
    assert read_wordnet(tmp_path / "wordnet") == tiny_resume.VOCABULARY.split()
    rows = SentenceEncoder(tmp_path / "encoder").encode(["a boat", "a bell", "a boat"])
    assert rows[0].equal(rows[2])
    assert not rows[0].allclose(rows[1], atol=1e-3)


# The quickstart


def cell(right, n, first=None):
    versus = None
    if first is not None:
        paired = paired_difference(
            min(right, first), max(0, right - first), max(0, first - right), n - max(right, first)
        )
        versus = Comparison(paired, paired.p_value)
    return Cell(wilson(right, n), None, n, 0, versus)


def results(**by_set):
    """Results of three models, one budget, a hundred images: right answers of each."""
    models = tuple(Model(name, "", "", (0,), (), ()) for name in ("original", "tecoa", "fare"))
    budget = Budget("linf", "4/255", 0, "", "", "white-box", ())
    tables = []
    for name, rights in by_set.items():
        cells = tuple(cell(right, 100, rights[0] if index else None) for index, right in enumerate(rights))
        tables.append(DatasetTable(name, None, None, (budget,), cells, (cells,), {}))
    return Results(models, tuple(tables), (), None, ())


def test_the_best_gain_and_what_the_original_keeps_there():
    gain, original, shown = tiny_quickstart.best_gain(results(digits=(30, 45, 20), shapes=(10, 40, 25)))
    assert gain == pytest.approx(30)
    assert original.estimate == 0.1
    assert "digits fare -10.0" in shown
    assert shown.startswith("4/255: ")


def test_a_model_without_figures_is_no_gain():
    whole = results(digits=(30, 45, 20))
    table = whole.datasets[0]
    without = replace(whole, datasets=(replace(table, robust=((*table.robust[0][:2], None),)),))
    with pytest.raises(ValueError, match="not every model was attacked on digits"):
        tiny_quickstart.best_gain(without)


def test_the_readme_shows_a_picture_or_not(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("![report](docs/images/quickstart.png)")
    assert not tiny_quickstart.shows_screenshot(tmp_path)
    picture = tmp_path / "docs" / "images" / "quickstart.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(picture)
    assert tiny_quickstart.shows_screenshot(tmp_path)
    readme.write_text("no picture")
    assert not tiny_quickstart.shows_screenshot(tmp_path)


def test_without_network_there_is_none():
    within = tiny_quickstart.without_network()
    if not within:
        pytest.skip("this system cannot take the network away")
    import subprocess
    import sys

    code = "import socket; print([name for _, name in socket.if_nameindex()])"
    done = subprocess.run([*within, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['lo']"


# The browser


def test_a_page_without_a_browser_cannot_be_opened(monkeypatch, tmp_path):
    monkeypatch.setattr(browser, "BROWSERS", ("no-such-browser",))
    with pytest.raises(CannotRunError, match="none of no-such-browser is installed"):
        browser.requests_of(tmp_path / "page.html")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "hosts"),
    [
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', set()),
        ("<style>body { background: url(https://elsewhere.invalid/a.png) }</style>", {"elsewhere.invalid:443"}),
        ('<link rel="stylesheet" href="http://styles.invalid/a.css">', {"styles.invalid"}),
    ],
    ids=["nothing", "style", "sheet"],
)
def test_requests_of_a_page(tmp_path, body, hosts):
    if not any(map(shutil.which, browser.BROWSERS)):
        pytest.skip("no browser here")
    page = tmp_path / "page.html"
    page.write_text(f"<html><head></head><body>{body}</body></html>")
    assert {browser._host(line) for line in browser.requests_of(page)} == hosts
