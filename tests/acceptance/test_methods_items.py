"""The items of the methods can fail: each is shown something that is wrong."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from acceptance.claims import CannotRunError, Context

from acceptance import (
    claims,
    methods,
    methods_losses,
    methods_matrix,
    methods_natural,
    methods_pieces,
    methods_ranking,
    named_tests,
    store,
)
from ironclip.evaluation.comparison import contest, contests
from ironclip.methods.base import METHODS
from ironclip.training.recipe import load_recipe
from reference_values import needs_reference_values


def figures(item, tmp_path, *, short=True):
    return {figure.claim: figure for figure in item.measure(Context(tmp_path, short=short))}


def test_items_and_claims_have_names_of_their_own():
    assert len({item.name for item in methods.ITEMS}) == len(methods.ITEMS)
    for item in methods.ITEMS:
        assert item.claims
        assert len({claim.name for claim in item.claims}) == len(item.claims)


@pytest.mark.parametrize("item", methods.ITEMS, ids=lambda item: item.name)
def test_modules_of_an_item_exist(item):
    assert [module for module in item.modules if find_spec(module) is None] == []


@needs_reference_values
def test_a_loss_that_is_slightly_off_is_noticed(tmp_path, monkeypatch):
    tecoa = METHODS.get("tecoa")
    loss = tecoa.loss
    monkeypatch.setattr(tecoa, "loss", lambda self, views: {"ce": loss(self, views)["ce"] * (1 + 1e-8)})
    forms = [form for form in methods_losses.FORMS if form.method in ("tecoa", "fare")]
    monkeypatch.setattr(methods_losses, "FORMS", [*forms, methods_losses.Form("ucat", "no_such_method")])
    found = figures(methods_losses.losses, tmp_path)
    assert found["fare"].value <= 1e-9
    assert found["tecoa_small_scale"].value > 1e-9
    assert found["ucat"].value is None
    assert found["whole"].value > 10  # the forms that were left out


@needs_reference_values
def test_a_method_that_is_not_there_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(methods_losses, "FORMS", [methods_losses.Form("leaf", "no_such_method")])
    (figure,) = methods_losses.gradients.measure(Context(tmp_path))
    assert figure.value is None
    assert figure.shown == "there is no method no_such_method"


def test_differences_hold_stopped_copies_and_notice_a_wrong_gradient():
    given = {"adv": torch.randn(3, 4, dtype=torch.float64), "clean": torch.randn(3, 4, dtype=torch.float64)}

    def stopped(parts):
        return (parts["adv"] * parts["clean"].detach()).sum() + (parts["clean"] ** 2 * parts["adv"].detach()).sum()

    assert methods_losses.off_differences(stopped, given) < 1e-8

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x * 2

        @staticmethod
        def backward(context, gradient):
            return gradient * 2.001

    assert methods_losses.off_differences(lambda parts: Wrong.apply(parts["adv"]).pow(2).sum(), given) > 1e-4
    with pytest.raises(ArithmeticError, match="does not move"):
        methods_losses.off_differences(lambda parts: parts["adv"].sum() * 0, given)


def test_dirichlets_own_form_in_torch_would_not_pass(monkeypatch, tmp_path):
    pytest.importorskip("scipy")
    a = torch.tensor([[1e13, 2.5e13, 4e12]], dtype=torch.float64)
    ours = methods_losses.dirichlet_kl(a, a * 1.0000001)
    theirs = methods_losses.kl_divergence(methods_losses.Dirichlet(a), methods_losses.Dirichlet(a * 1.0000001))
    assert methods_losses._relative(theirs, ours) > 1e-6


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ("tecoa", ["tecoa"]),
        ("tecoa_vp", ["tecoa_vp"]),
        ("bf16-tecoa_vp", ["tecoa_vp"]),
        ("tga_zsr-2", ["tga_zsr"]),
        ("comp_tga {'variant': 'code'}", ["comp_tga"]),
        ("float32-adv_adapter", ["adv_adapter"]),
    ],
)
def test_a_case_concerns_the_method_that_it_names(parameters, names):
    case = named_tests.Case("a.py", "test_a", parameters, "passed")
    known = ["tecoa", "tecoa_vp", "tga_zsr", "comp_tga", "adv_adapter", "r_adapter"]
    assert [name for name in known if case.concerns(name)] == names


def test_tests_are_run_and_counted(tmp_path):
    path = tmp_path / "test_made_up.py"
    path.write_text(
        "import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_a(x): assert x == 1\n"
        "def test_b(): pytest.skip('no')\n"
    )
    found = {(case.function, case.parameters): case.verdict for case in named_tests.run([str(path)])}
    assert found == {("test_a", "1"): "passed", ("test_a", "2"): "failed", ("test_b", ""): "skipped"}
    with pytest.raises(RuntimeError, match="pytest ended with"):
        named_tests.run([str(tmp_path / "test_none.py")])


def test_a_method_without_a_case_fails_the_matrix(tmp_path, monkeypatch):
    functions = [function for _, function in methods_matrix.MATRIX.values()]
    cases = [named_tests.Case("", f, name, "passed") for f in functions for name in METHODS if name != "fare"]
    cases.append(named_tests.Case("", functions[0], "tecoa {'a': 1}", "failed"))
    cases.append(named_tests.Case("", functions[1], "ucat-float32", "skipped"))
    monkeypatch.setattr(named_tests, "run", lambda nodes: cases)
    found = figures(methods_matrix.matrix, tmp_path, short=False)
    assert [found[claim].value for claim in methods_matrix.MATRIX] == [2, 2, 1, 1, 1, 1]
    assert "fare" in found["floor"].shown
    with pytest.raises(CannotRunError, match="tests of CI"):
        figures(methods_matrix.matrix, tmp_path)


def test_a_defect_without_a_passed_test_is_no_pass(tmp_path, monkeypatch):
    table = methods_matrix.defects()
    third = next(one for one in table if one.name == "D3")
    path, _, function = third.tests[0].partition("::")
    monkeypatch.setattr(named_tests, "run", lambda nodes: [named_tests.Case(path, function, "", "failed")])
    found = figures(methods_matrix.planted, tmp_path, short=False)
    assert found["D3"].value == 1
    assert found["D28"].value is None
    assert "not expressible" in found["D28"].shown
    assert found["D1"].value is None  # its test did not run


@pytest.fixture
def repository(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "a.yaml").write_text("a: 1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    for module in (claims, methods_natural, store):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def test_recipes_that_are_not_committed_are_not_run(repository):
    recipe = repository / "a.yaml"
    assert len(methods_natural.committed(recipe)) == 40
    recipe.write_text("a: 2")
    with pytest.raises(CannotRunError, match=r"not fixed beforehand: .*a\.yaml"):
        methods_natural.committed(recipe)
    (repository / "b.yaml").write_text("b: 1")
    with pytest.raises(CannotRunError, match=r"b\.yaml"):
        methods_natural.committed(repository / "b.yaml")


def test_what_was_sealed_cannot_be_exchanged(tmp_path, monkeypatch):
    (tmp_path / "run" / "sweep").mkdir(parents=True)
    (tmp_path / "run" / "sweep" / "result.json").write_text('{"chosen": 0.001}')
    weights = ["one two three"]
    monkeypatch.setattr(methods_natural, "committed", lambda *paths: "c" * 40)
    monkeypatch.setattr(methods_natural, "tuned", lambda name, seed: tmp_path / "run")
    monkeypatch.setattr(methods_natural, "weights_of", lambda name: weights[0])
    assert methods_natural.sealed("tecoa", tmp_path / "work") == "c" * 40
    kept = json.loads((tmp_path / "work" / "seal.json").read_text())
    assert kept["rate"] == 0.001
    assert kept["weights"] == ["one", "two", "three"]
    assert set(kept["recipes"]) == {path.name for path in methods_natural.RECIPES.values()}
    assert methods_natural.sealed("tecoa", tmp_path / "work") == "c" * 40
    weights[0] = "one two four"
    with pytest.raises(CannotRunError, match="other recipes, rates or weights"):
        methods_natural.sealed("tecoa", tmp_path / "work")


def test_recipes_of_the_comparison_give_each_method_the_same():
    """Model, data, order, steps, attack and the rule when to stop; prompts of few images the same as each other."""
    kept = {}
    for name, path in methods_natural.RECIPES.items():
        recipe = load_recipe(path)
        assert recipe.build_method().name == name
        assert len(recipe.sweep.lr) == 3
        assert recipe.select == "last"
        optimisation = recipe.optimisation.model_dump(exclude={"lr"})
        data = recipe.data.model_dump(exclude={"shots"})
        kept[name] = (recipe.model, data, optimisation, recipe.attack, recipe.threat, recipe.sweep.steps, recipe.seed)
    assert {"clean", "tecoa", "fare", "pmg_aft", "agft", "ucat", "sim_clip", "tga_zsr", "comp_tga"} <= set(kept)
    assert all(setting == kept["tecoa"] for setting in kept.values())


def test_forwards_of_a_step():
    """Three of the attack, then the views: attacked; with the teacher's clean; both and the teacher's attacked."""
    counted = {name: methods_natural.forwards(load_recipe(path)) for name, path in methods_natural.RECIPES.items()}
    assert [counted[name] for name in ("clean", "tecoa", "fare", "pmg_aft")] == [1, 4, 5, 6]
    assert counted["tga_zsr"] == 6


def runs(accuracies, images=1000):
    hardness = np.random.default_rng(0).random(images)
    return np.stack([hardness < accuracy for accuracy in accuracies])


def test_the_ranking_says_who_beats_whom(tmp_path, monkeypatch):
    shares = {name: 0.3 for name in methods_ranking.RANKED} | {"tecoa": 0.5, "original": 0.3}

    def answers(name, dataset, *, clean):
        found = runs([shares[name] + step for step in (-0.01, 0, 0.01)])
        return found[1] if name == "original" else found

    monkeypatch.setattr(methods_ranking, "answers", answers)
    monkeypatch.setattr(methods_ranking, "_clean_ece", lambda name, seed: {"ucat": 0.1, "tecoa": 0.3}[name])
    found = figures(methods_ranking.ranking, tmp_path, short=False)
    assert found["above tecoa"].value > 10
    assert found["above fare"].value < 0
    assert found["robust cifar10"].value == len(methods_ranking.RANKED) - 1
    assert "tecoa > fare" in found["robust cifar10"].shown
    assert found["keeps ucat"].value == pytest.approx(-20, abs=2)
    assert found["calibration"].value == pytest.approx(-0.2)


def test_words_of_a_comparison():
    found = contest("a", runs((0.6, 0.61)), "b", runs((0.3, 0.31)))
    assert methods_ranking.points(found).startswith("+30.")
    assert "seeds 0." in methods_ranking.points(found)
    table = contests({"a": runs((0.6, 0.61)), "b": runs((0.3, 0.31)), "c": runs((0.3, 0.31))})
    assert methods_ranking.winners(table) == "2 of 3: a > b; a > c"


def test_a_part_that_is_not_there_is_said_so():
    with pytest.raises(CannotRunError, match=r"ironclip\.models\.no_such_part is not there"):
        methods_pieces.part("ironclip.models.no_such_part")
    assert methods_pieces.part("ironclip.models.clip").CLIPModel


def test_models_differ_in_a_bit(tiny_clip):
    one, other = tiny_clip(), tiny_clip()
    assert methods_pieces._differing(one, other)[0] == 0
    with torch.no_grad():
        parameter = next(other.clip.parameters())
        parameter.view(-1)[0] = torch.nextafter(parameter.view(-1)[0], torch.tensor(9.0))
    assert methods_pieces._differing(one, other)[0] == 1


def test_normalising_is_that_of_the_model():
    pixels = torch.full((1, 3, 2, 2), 0.5)
    found = methods_pieces._normalised(pixels, (0.5, 0.25, 0.0), (1.0, 0.25, 0.5))
    assert found[0, :, 0, 0].tolist() == [0.0, 1.0, 1.0]
    assert F.relu(found).sum() > 0
