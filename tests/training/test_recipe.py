"""Recipes: what is refused and in which words, `--set`, and that what was written down can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ironclip.errors import ConfigError
from ironclip.training.recipe import check_recipe, load_recipe
from ironclip.training.sweep import trials

FOLDER = Path(__file__).parents[2] / "recipes"
# Those of `ironclip pretrain` are tested in tests/pretraining.
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name not in ("pretrain", "vlm"))


@pytest.fixture
def load(content, tmp_path):
    """Write a recipe and load it, with changes at dotted places and with overrides."""

    def make(changes=None, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content(changes), sort_keys=False))
        return load_recipe(path, overrides)

    return make


def refused(load, changes, *words):
    with pytest.raises(ConfigError) as caught:
        load(changes)
    for word in words:
        assert word in str(caught.value)
    assert "Mend the recipe" in caught.value.remedy
    return caught.value


# Files


def test_a_missing_file():
    with pytest.raises(ConfigError, match=r"there is no recipe nowhere\.yaml"):
        load_recipe("nowhere.yaml")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match="there is no recipe"):
        load_recipe(tmp_path)


def test_not_yaml(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("method: {name: tecoa}\ndata: [1\nmodel: x")
    with pytest.raises(ConfigError, match=r"bad\.yaml is not YAML near line \d"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "", "tecoa"])
def test_no_mapping(text, tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no mapping"):
        load_recipe(path)


# Keys


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("optimization", 'unknown key "optimization". Did you mean "optimisation"'),
        ("optimisation.batchsize", 'unknown key "optimisation.batchsize". Did you mean "batch_size"'),
        ("data.tempaltes", 'unknown key "data.tempaltes". Did you mean "templates"'),
        ("validation.evry", 'unknown key "validation.evry". Did you mean "every"'),
        ("checkpoint.zzz", 'unknown key "checkpoint.zzz".'),
        ("method.clean_wieght", "clean_wieght"),
        ("threat.epsilon", 'unknown key "epsilon". Did you mean "eps"'),
        ("attack.stepz", 'unknown key "stepz". Did you mean "steps"'),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_known_one(place, words, load):
    refused(load, {place: 1}, words)


def test_unknown_keys_of_the_sweep_are_named_with_the_nearest_known_one(load):
    refused(load, {"sweep": {"lr": [0.1, 0.2], "step": 3}}, 'unknown key "sweep.step". Did you mean "steps"')


def test_an_unknown_setting_of_a_method(load):
    refused(
        load,
        {"method": {"name": "fare", "clean_wieght": 0.1}},
        'method: unknown key "clean_wieght". Did you mean "clean_weight"',
    )


@pytest.mark.parametrize("section", ["method", "model", "data", "optimisation"])
def test_missing_sections(section, content):
    recipe = content()
    del recipe[section]
    with pytest.raises(ConfigError, match=f"recipe.{section}: Field required"):
        check_recipe(recipe)


@pytest.mark.parametrize("section", ["method", "attack", "validation.attack"])
def test_a_section_without_name(section, load):
    error = refused(load, {section: {"steps": 3}}, f'{section}: the key "name" is missing')
    assert "tecoa" in str(error) if section == "method" else "pgd" in str(error)


# Names


def test_an_unknown_method(load):
    refused(load, {"method": {"name": "tecao"}}, 'unknown method "tecao". Did you mean "tecoa"')


@pytest.mark.parametrize("section", ["attack", "validation.attack"])
def test_an_unknown_attack(section, load):
    refused(load, {section: {"name": "pgdd"}}, 'unknown attack "pgdd". Did you mean "pgd"')


@pytest.mark.parametrize("model", ["python:os:getcwd", "python:mine:make"])
def test_code_is_never_run_from_a_recipe(model, load):
    refused(load, {"model": model}, f"model: {model} would run code, which a recipe may not.")


# Values


def test_eps_of_4(load):
    error = refused(load, {"threat.eps": 4}, "threat.eps is 4, expected a number in [0, 1]")
    assert '"4/255"' in str(error)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("optimisation.lr", -0.1, "recipe.optimisation.lr: Input should be greater than 0 (got -0.1)"),
        ("optimisation.lr", 0, "greater than 0"),
        ("optimisation.lr", "fast", "valid number (got 'fast')"),
        ("optimisation.momentum", 1.0, "less than 1"),
        ("optimisation.batch_size", 2.5, "recipe.optimisation.batch_size: Input should be a valid integer"),
        ("optimisation.batch_size", "8", "valid integer (got '8')"),
        ("optimisation.batch_size", True, "valid integer (got True)"),
        ("optimisation.steps", 0, "greater than or equal to 1"),
        ("optimisation.optimiser", "lion", "'sgd', 'adam' or 'adamw'"),
        ("optimisation.precision", "fp16", "'bf16' or 'float32'"),
        ("optimisation.schedule", "step", "'cosine' or 'constant'"),
        ("optimisation.clip_norm", 0, "greater than 0"),
        ("optimisation.betas", [0.9], "recipe.optimisation.betas"),
        ("optimisation.weight_decay", -1e-4, "greater than or equal to 0"),
        ("data.hold_out", -1, "greater than or equal to 0"),
        ("data.limit", 0, "greater than or equal to 1"),
        ("data.classes", "some", "'all' or 'present'"),
        ("data.templates", "a photo of a {}", "recipe.data.templates: Input should be a valid list"),
        ("select", "first", "'last' or 'best'"),
        ("seed", "0", "recipe.seed: Input should be a valid integer"),
        ("sweep", {"lr": [0.1], "steps": 2}, "at least 2 items"),
        ("sweep", {"lr": [0.1, -0.2], "steps": 2}, "recipe.sweep.lr.1: Input should be greater than 0"),
        ("attack.steps", 0, "0 steps"),
        ("attack.step_size", "-1/255", "attack.step_size is -1/255"),
        ("threat.norm", "l7", "threat.norm"),
    ],
)
def test_wrong_values_say_where_and_what_was_given(place, value, words, load):
    changes = {"attack.name": "pgd_m"} if place.startswith("attack") else {}
    refused(load, {**changes, place: value}, words)


def test_betas_are_bounded(load):
    refused(load, {"optimisation.betas": [0.9, 2.0]}, "betas")


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("validation.attack", {"name": "pgd", "loss": "cw"}, "cw"),
        ("attack.step_size", "4", "step_size"),
        ("data.templates", ["a photo"], "a photo"),
        ("threat.integer", True, "integer"),
        ("threat.goal", "targeted", "goal"),
        ("optimisation.warmup_steps", 4, "warmup_steps"),
    ],
)
def test_what_no_run_can_do_is_refused_before_it_begins(place, value, word, load):
    refused(load, {place: value}, word)


@pytest.mark.parametrize(("text", "number"), [("1e-4", 1e-4), ("2.5E-5", 2.5e-5), ("1.e+2", 100.0)])
def test_powers_of_ten_are_numbers_also_without_a_point(text, number, content, tmp_path):
    # YAML 1.1 takes 1e-4 for text, which nobody means.
    file = tmp_path / "recipe.yaml"
    words = yaml.safe_dump(content({"optimisation.lr": 0.625, "title": "3e4 times"}))
    file.write_text(words.replace("lr: 0.625", f"lr: {text}"))
    assert load_recipe(file).optimisation.lr == number
    assert load_recipe(file).title == "3e4 times"


def test_text_is_no_number_by_accident(load):
    refused(load, {"optimisation.lr": "1e-4 or so"}, "recipe.optimisation.lr: Input should be a valid number")


@pytest.mark.parametrize("length", [{"epochs": 2, "steps": 4}, {"epochs": None, "steps": None}])
def test_epochs_or_steps(length, load):
    refused(load, {f"optimisation.{key}": value for key, value in length.items()}, "give epochs or steps, one of them")


def test_a_batch_divides_into_equal_parts(load):
    refused(load, {"optimisation.accumulate": 3}, "batch_size 8 does not divide into accumulate 3 equal parts")


@pytest.mark.parametrize("change", [{"warmup": "constant"}, {"warmup_lr": 1e-5}])
def test_warmup_lr_belongs_to_constant_warmup(change, load):
    refused(load, {f"optimisation.{k}": v for k, v in change.items()}, "warmup_lr belongs to warmup: constant")


# Several problems at once


def test_all_unknown_keys_at_once(load):
    changes = {"seeds": 3, "methods": {"name": "fare"}, "optimisation.lrr": 1.0}
    refused(
        load,
        changes,
        'unknown key "seeds". Did you mean "seed"',
        'unknown key "methods". Did you mean "method"',
        'unknown key "optimisation.lrr". Did you mean "lr"',
    )


def test_all_wrong_values_at_once(load):
    refused(
        load,
        {"optimisation.lr": -1.0, "data.hold_out": "many", "select": "first"},
        "recipe.optimisation.lr",
        "recipe.data.hold_out",
        "recipe.select",
    )


def test_all_wrong_names_at_once(load):
    refused(
        load,
        {
            "method.name": "tecao",
            "attack.name": "pdg",
            "validation.attack": {"name": "pgd", "stepz": 2},
            "threat.eps": "4",
            "model": "python:a:b",
        },
        'unknown method "tecao"',
        'unknown attack "pdg"',
        'unknown key "stepz"',
        "threat.eps is 4",
        "model: python:a:b would run code",
    )


def test_unknown_keys_and_wrong_values_at_once(load):
    refused(load, {"seeds": 3, "optimisation.lr": -1.0}, 'unknown key "seeds"', "recipe.optimisation.lr")


# --set


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("optimisation.lr=1e-4", ("optimisation", "lr"), 1e-4),
        ("optimisation.lr=1E-4", ("optimisation", "lr"), 1e-4),
        ("optimisation.lr=2.5e-5", ("optimisation", "lr"), 2.5e-5),
        ("optimisation.lr=0.5", ("optimisation", "lr"), 0.5),
        ("optimisation.batch_size=16", ("optimisation", "batch_size"), 16),
        ("optimisation.precision=bf16", ("optimisation", "precision"), "bf16"),
        ("optimisation.betas=[0.8, 0.9]", ("optimisation", "betas"), (0.8, 0.9)),
        ("data.train=wds:{data}/toy?split=test", ("data", "train"), "wds:{data}/toy?split=test"),
        ('data.templates=["a {}", "the {}"]', ("data", "templates"), ["a {}", "the {}"]),
        ("data.limit=null", ("data", "limit"), None),
        ("seed=7", ("seed",), 7),
        ("title=a=b", ("title",), "a=b"),
    ],
)
def test_set_reads_values_as_people_mean_them(override, place, value, load):
    found = load(None, override)
    for name in place:
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_set_reaches_into_sections_that_are_not_there(load):
    assert load(None, "sweep.lr=[0.1,0.2]", "sweep.steps=3").sweep.steps == 3
    assert load(None, "method.name=fare", "method.clean_weight=0.5").build_method().clean_weight == 0.5
    assert load(None, "threat.eps=4/255").build_threat().eps == "4/255"


def test_the_last_set_wins(load):
    assert load({"seed": 1}, "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize("override", ["seed", "=3", ""])
def test_set_without_key_or_value(override, load):
    with pytest.raises(ConfigError, match=f'--set "{override}" is not key=value'):
        load(None, override)


def test_set_below_a_value(load):
    with pytest.raises(ConfigError, match=r'--set "model\.name=x": model is no section'):
        load(None, "model.name=x")


def test_set_of_an_unknown_key(load):
    with pytest.raises(ConfigError, match=r'unknown key "optimisation\.lrr"\. Did you mean "lr"'):
        load(None, "optimisation.lrr=1e-4")


def test_set_of_what_is_no_yaml(load):
    with pytest.raises(ConfigError, match="--set"):
        load(None, "data.templates=[a")


def test_set_reads_numbers_in_lists(load):
    assert load(None, "sweep.lr=[1e-4,3e-4]", "sweep.steps=3").sweep.lr == [1e-4, 3e-4]


# What a recipe is


def test_a_recipe_is_frozen(recipe):
    with pytest.raises(ValueError, match="frozen"):
        recipe().seed = 1


def test_the_content_is_not_changed(content, tmp_path):
    given = content()
    check_recipe(given)
    assert given == content()


def test_validation_is_pgd_20_unless_given(content):
    given = content()
    del given["validation"]
    attack = check_recipe(given).build_validation_attack()
    assert (attack.name, attack.steps, attack.keep) == ("pgd", 20, "best")


@pytest.mark.parametrize("lr", [0.002, 3e-5])
def test_run_json_repeats_the_run(lr, recipe, tmp_path):
    first = recipe({"optimisation.lr": lr, "optimisation.betas": [0.8, 0.95], "seed": 5})
    record = {"command": "ironclip train x.yaml", "steps": 4, "recipe": first.model_dump(mode="json")}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record, indent=1))
    assert load_recipe(path) == first
    assert load_recipe(path, ["seed=6"]).seed == 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_published_recipe_loads_and_builds(path):
    recipe = load_recipe(path)
    assert recipe.title
    method, attack, threat = recipe.build_method(), recipe.build_attack(), recipe.build_threat()
    # D15: a script named for one method that runs another.
    assert method.name in path.stem
    assert attack.step_length(threat) > 0
    assert recipe.build_validation_attack().steps >= 20
    if recipe.sweep is not None:
        assert recipe.optimisation.lr in recipe.sweep.lr
        assert len(trials(recipe)) == len(recipe.sweep.lr)
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("Source", "Hardware", "Expected"):
        assert word in head


def test_there_are_recipes():
    assert len(RECIPES) >= 3
