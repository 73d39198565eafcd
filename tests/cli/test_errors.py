"""What a user gets wrong: exit code 1 or 2, a line that says what, a line that says what to do, never a traceback."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from ironclip.cli.output import Display
from ironclip.errors import IronClipError, MissingDependencyError, RunFailedError
from ironclip.models.sources import load_classifier

NAMES = ["red", "green", "blue"]


def refused(result, what, remedy, code=2):
    """Check the form of a refusal and that its two parts say the useful words."""
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    lines = result.err.strip().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Error: "))
    problem, advice = "\n".join(lines[start:-1]), lines[-1]
    assert what in problem, result.err
    assert remedy in advice, result.err


def test_unknown_method_in_a_recipe(ironclip, recipe_file):
    result = ironclip("train", recipe_file(method={"name": "tecao"}))
    refused(result, 'unknown method "tecao". Did you mean "tecoa"', "ironclip validate")


def test_unknown_attack_in_a_recipe(ironclip, recipe_file):
    refused(ironclip("validate", recipe_file(attack={"name": "pdg"})), 'unknown attack "pdg"', "ironclip validate")


def test_unknown_key_in_a_recipe(ironclip, recipe_file):
    refused(
        ironclip("validate", recipe_file(optimization={"lr": 1.0})),
        'unknown key "optimization". Did you mean "optimisation"',
        "Mend the recipe",
    )


def test_all_problems_of_a_recipe_at_once(ironclip, recipe_file):
    path = recipe_file(seeds=3, methods={"name": "fare"})
    result = ironclip("validate", path)
    assert 'unknown key "seeds". Did you mean "seed"' in result.err
    assert 'unknown key "methods". Did you mean "method"' in result.err
    assert result.code == 2


def test_eps_of_4_in_a_recipe(ironclip, recipe_file):
    result = ironclip("validate", recipe_file(threat={"norm": "linf", "eps": "4"}))
    refused(result, "threat.eps is 4, expected a number in [0, 1]", "Mend the recipe")
    assert 'write "4/255"' in result.err


def test_eps_of_4(ironclip):
    refused(
        ironclip("eval", "some-model", "--eps", 4),
        "threat.eps is 4, expected a number in [0, 1], since pixels lie in [0, 1].",
        'For 4 of 255 levels write "4/255".',
    )


def test_eps_that_is_no_number(ironclip):
    refused(ironclip("eval", "some-model", "--eps", "big"), 'threat.eps is "big"', '"4/255"')


def test_l2_without_a_radius(ironclip):
    refused(ironclip("eval", "some-model", "--norm", "l2"), "--norm l2 without --eps", "--eps 0.5")


def test_unknown_attack(ironclip):
    refused(
        ironclip("eval", "some-model", "--attack", "pdg"),
        'unknown attack "pdg". Did you mean "pgd"',
        '"ironclip list attacks" shows all',
    )


@pytest.mark.parametrize(
    ("attack", "what", "remedy"),
    [
        ("pgd:stepz=3", 'unknown key "stepz". Did you mean "steps"', "Known keys of --attack pgd: steps"),
        ("pgd:steps=many", "--attack pgd.steps", "Known keys"),
        ("pgd:steps=0", "0 steps", "at least 1"),
        ("pgd:steps", '"steps" is not key=value', "--attack pgd:steps=50"),
    ],
)
def test_wrong_settings_of_an_attack(ironclip, attack, what, remedy):
    refused(ironclip("eval", "some-model", "--attack", attack), what, remedy)


@pytest.mark.parametrize("shard", ["3", "4/4", "-1/2", "a/b", "0/0"])
def test_bad_shard(ironclip, shard):
    refused(ironclip("eval", "some-model", "--shard", shard), f'--shard is "{shard}"', "Write 0/4")


def test_unknown_suite(ironclip):
    refused(ironclip("eval", "some-model", "--suite", "natrual"), 'unknown suite "natrual". Did you mean', "natural")


def test_unknown_data_set_of_a_suite(ironclip):
    result = ironclip("eval", "some-model", "--dataset", "cifar")
    refused(result, 'no data set "cifar". Did you mean "cifar10"', "cifar10")


def test_missing_recipe(ironclip):
    refused(ironclip("train", "nowhere.yaml"), "there is no recipe nowhere.yaml", "recipes/")


def test_missing_data_folder(ironclip, recipe_file, model_folder):
    result = ironclip("eval", f"local-dir:{model_folder}", "--data-root", "nowhere")
    refused(result, "nowhere/cifar10", "nowhere")
    result = ironclip("train", recipe_file(), "--data-root", "nowhere")
    refused(result, "nowhere/colours", "")


@pytest.mark.parametrize(
    ("source", "what", "remedy"),
    [
        ("local-dir:nowhere", "the folder nowhere does not exist", "Give the folder that holds the model"),
        ("nowhere", '"nowhere" is neither a folder nor', "local-dir:PATH"),
        ("open_clip:ViT-B-23/openai", 'no architecture "ViT-B-23". Did you mean', "open_clip:NAME/TAG"),
        ("python:no_such_module:make", 'no module "no_such_module"', ""),
    ],
)
def test_missing_model(ironclip, suite_file, data_root, source, what, remedy):
    result = ironclip("eval", source, "--suite", suite_file(NAMES), "--data-root", data_root)
    refused(result, what, remedy)


def test_bad_device(ironclip, suite_file, data_root, recipe_file, model_folder):
    words = ("--data-root", data_root, "--device", "gpu")
    refused(ironclip("eval", f"local-dir:{model_folder}", "--suite", suite_file(NAMES), *words), '"gpu"', '"cpu"')
    refused(ironclip("train", recipe_file(), *words), '"gpu"', '"cpu"')
    words = ("--data-root", data_root, "--device", "mps")
    refused(ironclip("train", recipe_file(), *words), '"mps" is not served', '"cpu"')


def test_a_device_that_is_not_there(ironclip, recipe_file, data_root):
    result = ironclip("train", recipe_file(), "--data-root", data_root, "--device", "cuda:99")
    refused(result, '"cuda:99"', '"cpu"')


def test_class_names_that_do_not_fit_the_labels(ironclip, suite_file, data_root, model_folder):
    suite = suite_file(["red", "green"])
    result = ironclip("eval", f"local-dir:{model_folder}", "--suite", suite, "--data-root", data_root)
    refused(result, 'suite "colours", data set "colours": 2 class names for 3 labels', "Add the missing names")


def test_an_html_page_as_weights(ironclip, suite_file, data_root, model_folder, tmp_path):
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    (broken / "open_clip_model.safetensors").write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")
    result = ironclip("eval", f"local-dir:{broken}", "--suite", suite_file(NAMES), "--data-root", data_root)
    refused(result, "HTML", "")


def test_normalised_pixels(model_folder):
    classifier = load_classifier(f"local-dir:{model_folder}", NAMES, ["a photo of a {}."])
    with pytest.raises(IronClipError) as caught:
        classifier.logits(torch.full((1, 3, 16, 16), -1.8))
    assert "pixels range from -1.8 to -1.8, expected numbers in [0, 1]" in caught.value.problem
    assert "before mean and std" in caught.value.remedy


def test_no_run_folder(ironclip, tmp_path):
    refused(ironclip("report", tmp_path), "is no run folder", "")
    refused(ironclip("merge", tmp_path, "--out", tmp_path / "merged"), "is no run folder", "")


def test_out_of_another_use(ironclip, suite_file, data_root, model_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    words = ("--suite", suite_file(NAMES), "--data-root", data_root, "--out", "full")
    refused(ironclip("eval", f"local-dir:{model_folder}", *words), "full exists and is no run folder", "another folder")


def test_a_set_without_value(ironclip, recipe_file):
    refused(
        ironclip("validate", recipe_file(), "--set", "seed"), '--set "seed" is not key=value', "--set optimisation.lr"
    )


@pytest.mark.parametrize(
    "words",
    [["trian"], ["eval"], ["eval", "model", "--limit", "0"], ["eval", "model", "--save", "some"], ["list", "things"]],
)
def test_usage_errors(ironclip, words):
    result = ironclip(*words)
    assert result.code == 2
    assert "Error: " in result.err
    assert "--help" in result.err
    assert "Traceback" not in result.err


# What commands do with errors that the library raises


def raising(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("ironclip.training.recipe.load_recipe", fail)


def test_work_that_failed_exits_with_1(ironclip, monkeypatch):
    raising(monkeypatch, RunFailedError("the loss was not finite.", "Lower the rate."))
    refused(ironclip("validate", "x.yaml"), "the loss was not finite.", "Lower the rate.", code=1)


def test_missing_package_exits_with_1_and_its_install_line(ironclip, monkeypatch):
    raising(monkeypatch, MissingDependencyError("datasets", "hf"))
    refused(ironclip("validate", "x.yaml"), "datasets", 'pip install "ironclip[hf]"', code=1)


def test_a_bug_is_called_a_bug(ironclip, monkeypatch):
    raising(monkeypatch, KeyError("lost"))
    refused(ironclip("validate", "x.yaml"), "a bug of IronCLIP: KeyError: 'lost'", "--debug", code=1)


def test_a_machine_error_is_none(ironclip, monkeypatch):
    raising(monkeypatch, OSError(28, "No space left on device", "x"))
    refused(ironclip("validate", "x.yaml"), "No space left on device", "--debug", code=1)


@pytest.mark.parametrize("error", [KeyError("lost"), RunFailedError("no", "yes")])
@pytest.mark.parametrize("words", [["--debug", "validate", "x.yaml"], ["validate", "x.yaml", "--debug"]])
def test_debug_shows_the_traceback(error, words, monkeypatch):
    from ironclip.cli import main

    raising(monkeypatch, error)
    with pytest.raises(type(error)):  # Python prints the traceback of what leaves main()
        main(words)


def test_interruption_exits_with_130(ironclip, monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())
    assert ironclip("validate", "x.yaml").code == 130


def test_interrupted_work_says_how_to_go_on(capsys):
    with pytest.raises(KeyboardInterrupt), Display():
        raise KeyboardInterrupt
    assert "The same command goes on where it stopped." in capsys.readouterr().err


def test_recipe_that_is_no_yaml(ironclip, tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2")
    refused(ironclip("validate", "bad.yaml"), "bad.yaml is not YAML near line", "Mend the file")
    (tmp_path / "list.yaml").write_text(yaml.safe_dump([1, 2]))
    refused(ironclip("validate", "list.yaml"), "holds no mapping", "key: value")
