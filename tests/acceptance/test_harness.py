"""The harness of acceptance: verdicts, keys, what is kept, what is written."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from acceptance.claims import (
    Bound,
    CannotRunError,
    Claim,
    Context,
    Figure,
    Item,
    at_least,
    at_most,
    below,
    exactly,
)
from rich.console import Console

from acceptance import run, spine, store

CODE = '''"""Says one."""
def one():
    return 1  # and nothing else
'''


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, a recipe, data and weights."""
    (tmp_path / "made_up_code.py").write_text(CODE)
    (tmp_path / "recipe.yaml").write_text("lr: 1.0  # as published\nsteps: 3\n")
    (tmp_path / "data.tar").write_bytes(b"images")
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def made_up(stage: Path) -> Callable[..., Item]:
    """Make an item that measures `value`, and counts how often it was measured in `measured`."""

    def make(name: str = "one", value: float | None = 1.0, **changes: object) -> Item:
        def measure(context: Context) -> Iterator[Figure]:
            with (stage / "measured").open("a") as file:
                file.write(f"{name} {context.work} {context.short}\n")
            yield Figure("value", value, "why not" if value is None else "")

        claims = (Claim("value", f"{name} is at least 1", at_least(1, "points")),)
        files = tuple(str(stage / file) for file in ("recipe.yaml", "data.tar", "*.safetensors"))
        return replace(Item(name, claims, ("made_up_code",), files, None, measure), **changes)

    return make


@pytest.fixture
def accept(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Run items and return the results by line, from the results file."""

    def go(*items: Item, anew: bool = False) -> dict[str, str]:
        out = tmp_path / "out" / "made-up.json"
        console = Console(file=StringIO())
        run.Run("made-up", items, out=out, kept=tmp_path / "kept", console=console).whole(anew=anew)
        return {entry["line"]: entry["result"] for entry in json.loads(out.read_text())["items"]}

    return go


def times_measured(stage: Path) -> int:
    return len((stage / "measured").read_text().splitlines()) if (stage / "measured").exists() else 0


# Verdicts


@pytest.mark.parametrize(
    ("bound", "good", "bad", "text"),
    [
        (at_least(2.2, "x"), [2.2, 9.0], [2.1999], "≥ 2.2 x"),
        (at_most(1e-9), [0.0, 1e-9], [1.1e-9], "≤ 1e-09"),
        (below(0.5), [0.49], [0.5, 0.6], "< 0.5"),
        (exactly(0), [0], [1, -1, 1e-12], "0"),
        (Bound(at_least=75, at_most=100, unit="%"), [75, 83.2, 100], [74.9, 100.1], "≥ 75 % and ≤ 100 %"),
    ],
)
def test_bounds(bound, good, bad, text):
    assert all(bound.holds(value) for value in good)
    assert not any(bound.holds(value) for value in [*bad, float("nan")])
    assert str(bound) == text


def test_a_figure_that_keeps_to_its_bound_passes(accept, made_up):
    assert accept(made_up(value=1.0)) == {"one is at least 1": "PASS"}


def test_a_figure_that_does_not_fails(accept, made_up):
    assert accept(made_up(value=0.99)) == {"one is at least 1": "FAIL"}


def test_what_was_not_measured_is_not_run(accept, made_up):
    assert accept(made_up(value=None)) == {"one is at least 1": "NOT RUN"}


def breaking(error: Exception) -> Callable[[Context], Iterator[Figure]]:
    def measure(context: Context) -> Iterator[Figure]:
        raise error
        yield

    return measure


def test_an_exception_fails_and_the_others_go_on(accept, made_up, tmp_path, capsys):
    results = accept(made_up("broken", measure=breaking(KeyError("lost"))), made_up("whole"))
    assert results == {"broken is at least 1": "FAIL", "whole is at least 1": "PASS"}
    figures = [entry["figure"] for entry in json.loads((tmp_path / "out" / "made-up.json").read_text())["items"]]
    assert figures == ["KeyError: 'lost'", "1 points"]
    assert "Traceback" in capsys.readouterr().err


def test_what_cannot_run_here_is_not_run_with_the_reason(accept, made_up, tmp_path):
    item = made_up(measure=breaking(CannotRunError("no such machine")))
    assert accept(item) == {"one is at least 1": "NOT RUN"}
    assert "no such machine" in (tmp_path / "out" / "made-up.json").read_text()


def test_missing_data_are_not_run_and_nothing_is_measured(accept, made_up, stage, tmp_path):
    assert accept(made_up(files=("../shared-of-nobody/*.json",))) == {"one is at least 1": "NOT RUN"}
    assert times_measured(stage) == 0
    assert "../shared-of-nobody/*.json is not here" in (tmp_path / "out" / "made-up.json").read_text()


def test_a_claim_without_a_figure_fails(accept, made_up, tmp_path):
    assert accept(made_up(measure=lambda context: iter(()))) == {"one is at least 1": "FAIL"}
    assert '"no figure"' in (tmp_path / "out" / "made-up.json").read_text()


def test_a_figure_of_no_claim_fails(accept, made_up, tmp_path):
    item = made_up(measure=lambda context: iter([Figure("other", 1.0)]))
    assert accept(item) == {"one is at least 1": "FAIL"}
    assert 'no claim \\"other\\"' in (tmp_path / "out" / "made-up.json").read_text()


# Keys


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("made_up_code.py", "return 1", "return 2"),
        ("recipe.yaml", "lr: 1.0", "lr: 2.0"),
        ("data.tar", "images", "IMAGES"),
        ("weights.safetensors", "weights", "weightz"),
    ],
)
def test_key_changes_with_source_recipe_data_and_weights(made_up, stage, file, old, new):
    before = store.key_of(made_up())
    changed = (stage / file).read_text().replace(old, new)
    (stage / file).unlink()  # a new file, whatever the clock says
    (stage / file).write_text(changed)
    assert store.key_of(made_up()) != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("made_up_code.py", "  # and nothing else", ""),
        ("made_up_code.py", "Says one.", "Always says one."),
        ("recipe.yaml", "  # as published", "  # as we think"),
    ],
)
def test_key_does_not_change_with_a_comment(made_up, stage, file, old, new):
    before = store.key_of(made_up())
    (stage / file).write_text((stage / file).read_text().replace(old, new))
    assert store.key_of(made_up()) == before


def test_key_changes_with_new_files_of_a_pattern_and_with_the_state(made_up, stage):
    before = store.key_of(made_up())
    assert store.key_of(made_up(state=lambda: "tuned")) != before
    (stage / "more.safetensors").write_bytes(b"more")
    assert store.key_of(made_up()) != before


def test_key_changes_with_what_a_module_of_ours_imports(made_up, stage):
    before = store.key_of(made_up())
    (stage / "made_up_code.py").write_text(f"{CODE}    import ironclip.randomness\n")
    followed = store.key_of(made_up())
    assert store.key_of(made_up(modules=("made_up_code", "ironclip.randomness"))) == followed != before


# What is kept


def test_a_stored_item_is_reused(accept, made_up, stage):
    assert accept(made_up()) == accept(made_up()) == {"one is at least 1": "PASS"}
    assert times_measured(stage) == 1


def test_a_stored_item_is_not_reused_when_its_source_has_changed(accept, made_up, stage):
    accept(made_up())
    (stage / "made_up_code.py").write_text(CODE.replace("1", "2"))
    accept(made_up())
    assert times_measured(stage) == 2


def test_a_stored_item_is_not_reused_where_it_is_to_be_measured_anew(accept, made_up, stage):
    accept(made_up())
    accept(made_up(), anew=True)
    assert times_measured(stage) == 2


@pytest.mark.parametrize("value", [0.5, None])
def test_only_what_passed_is_stored(accept, made_up, stage, value):
    accept(made_up(value=value))
    accept(made_up(value=value))
    assert times_measured(stage) == 2


def test_figures_keep_the_commit_of_their_measurement(accept, made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "commit", lambda: "early")
    accept(made_up())
    monkeypatch.setattr(store, "commit", lambda: "late")
    accept(made_up())
    (kept,) = (tmp_path / "kept").glob("one-*.json")
    assert json.loads(kept.read_text())["commit"] == "early"


def test_the_work_folder_belongs_to_the_key(accept, made_up, stage):
    for code in (CODE, CODE.replace("1", "2")):
        (stage / "made_up_code.py").write_text(code)
        accept(made_up())
    folders = [line.split()[1] for line in (stage / "measured").read_text().splitlines()]
    assert len(set(folders)) == 2
    assert all("/kept/one-" in folder for folder in folders)


def test_source_that_changes_while_it_is_measured_is_not_run(accept, made_up, stage, tmp_path):
    def measure(context: Context) -> Iterator[Figure]:
        (stage / "made_up_code.py").write_text(CODE.replace("1", "2"))
        yield Figure("value", 1.0)

    assert accept(made_up(measure=measure)) == {"one is at least 1": "NOT RUN"}
    assert not list((tmp_path / "kept").glob("*.json"))


def test_source_that_changes_later_takes_the_figure_back(accept, made_up, stage):
    def measure(context: Context) -> Iterator[Figure]:
        (stage / "data.tar").unlink()
        yield Figure("value", 1.0)

    early, late = made_up("early"), made_up("late", files=(), measure=measure)
    assert accept(early, late) == {"early is at least 1": "NOT RUN", "late is at least 1": "PASS"}


# What is written


def test_schema_of_the_results(accept, made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "commit", lambda: "0123456789ab")
    accept(made_up("one"), made_up("two", value=None))
    content = json.loads((tmp_path / "out" / "made-up.json").read_text())
    assert list(content) == ["name", "commit", "versions", "items"]
    assert (content["name"], content["commit"]) == ("made-up", "0123456789ab")
    assert {"python", "torch", "open_clip_torch", "processor"} <= content["versions"].keys()
    first, second = content["items"]
    assert isinstance(first.pop("seconds"), float)
    assert first == {
        "line": "one is at least 1",
        "figure": "1 points",
        "threshold": "≥ 1 points",
        "result": "PASS",
        "command": "python -m acceptance.run made-up --only one",
    }
    assert (second["figure"], second["result"]) == ("why not", "NOT RUN")


def test_results_are_written_after_each_item(accept, made_up, tmp_path):
    seen: dict[str, str] = {}

    def measure(context: Context) -> Iterator[Figure]:
        content = json.loads((tmp_path / "out" / "made-up.json").read_text())
        seen.update({entry["line"]: f"{entry['result']} {entry['figure']}" for entry in content["items"]})
        yield Figure("value", 1.0)

    accept(made_up("one"), made_up("two", measure=measure))
    assert seen == {"one is at least 1": "PASS 1 points", "two is at least 1": "NOT RUN not reached"}


def test_commit_is_dirty_where_measured_folders_are(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert store.commit() == "unknown"
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "code.py").write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (tmp_path / "notes.md").write_text("more\n")
    clean = store.commit()
    assert len(clean) == 40
    (tmp_path / "src" / "code.py").write_text("2\n")
    assert store.commit() == f"{clean}+dirty"


# The command


@pytest.fixture
def spine_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *items: monkeypatch.setattr(spine, "ITEMS", items)


@pytest.mark.parametrize(("values", "code"), [((1.0,), 0), ((1.0, 0.5), 1), ((1.0, None), 0)])
def test_exit_code_is_1_if_a_claim_fails(spine_of, made_up, values, code):
    spine_of(*(made_up(f"item-{number}", value=value) for number, value in enumerate(values)))
    assert run.main(["spine", "--short"]) == code


def test_the_short_form_is_short_stores_nothing_and_writes_elsewhere(spine_of, made_up, stage, capsys):
    spine_of(made_up())
    assert run.main(["spine", "--short"]) == 0
    said = capsys.readouterr().out
    written = Path(said.replace("\n", "").partition("written to ")[2])
    assert written.is_file()
    assert not written.is_relative_to(run.ROOT)
    _, work, short = (stage / "measured").read_text().split()
    assert short == "True"
    assert not Path(work).exists()


def test_only_selects_by_word(spine_of, made_up, stage):
    spine_of(made_up("losses"), made_up("speed"))
    assert run.main(["spine", "--short", "--only", "loss"]) == 0
    assert (stage / "measured").read_text().startswith("losses ")
    assert times_measured(stage) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["spien"], "there is no acceptance/spien.py"),
        (["spine", "--only", "nothing-like-this"], "there are: losses, closed_forms"),
    ],
)
def test_wrong_requests(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
