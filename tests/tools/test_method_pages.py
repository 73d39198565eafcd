"""Every method has its page, and what is generated on a page is what the registry and the store say now."""

from __future__ import annotations

import json

import pytest

from ironclip.methods.base import METHODS
from tools import defects, method_pages

NAMES = METHODS.names()
HEADINGS = ["Loss", "Settings", "Paper against code", "Measured here"]
ENTRY = {"title": "CIFAR-10", "threat": "Linf 2/255", "attack": "PGD-20", "n": 100, "n_total": 100}


def test_every_method_has_a_page_and_every_page_a_method():
    pages = {path.stem for path in method_pages.PAGES.glob("*.md")} - {"README"}
    assert pages == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_what_the_plan_asks_for(name):
    lines = method_pages.page(name).read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[0].endswith(f" (`{name}`)")
    assert [line[3:] for line in lines if line.startswith("## ")] == HEADINGS
    idea = " ".join(lines[1 : lines.index("## Loss")])
    assert 2 <= idea.count(". ") + 1 <= 4, "the idea in three sentences"


def test_generated_parts_are_those_of_now():
    for path, content in method_pages.filled().items():
        assert path.read_text() == content, f"{path.name}: run python -m tools.method_pages"


def test_a_typed_line_is_noticed():
    page = "# A\n<!-- generated:settings -->\nold\n<!-- /generated -->\nb"
    filled = method_pages.fill(page, "settings", "new")
    assert filled == "# A\n<!-- generated:settings -->\nnew\n<!-- /generated -->\nb"
    assert method_pages.fill(filled.replace("new", "typed"), "settings", "new") == filled
    with pytest.raises(SystemExit, match="generated:measured"):
        method_pages.fill(page, "measured", "new")


def test_settings_are_those_of_the_class():
    text = method_pages.settings("ucat")
    assert "- trains: vision" in text
    assert "- adversary: image" in text
    assert "| `temperature` | `0.07` | Divisor of cosines in the concentrations (tau' in the paper). |" in text
    assert "| `weight` | `null` |" in text
    assert "recipes/ucat/ucat-b32-tin-eps1.yaml" in text
    assert "- settings: none" in method_pages.settings("tecoa")
    assert "- adversary: none" in method_pages.settings("clean")
    inherited = method_pages.settings("comp_tga")
    assert "| `adv_map_weight` | `0.1` |" in inherited
    assert "| `variant` | `paper` | The map is that of" in inherited


def test_the_overview_has_a_line_for_each_method():
    rows = [line for line in method_pages.overview().splitlines() if line.startswith("| [`")]
    assert [row.split("`")[1] for row in rows] == NAMES
    (fare,) = (row for row in rows if "`fare`" in row)
    assert "| vision | image | no | yes |" in fare


def test_what_was_measured_is_a_mean_over_seeds():
    entries = [
        ENTRY | {"method": "tecoa", "seed": seed, "clean": 0.6, "robust": robust}
        for seed, robust in enumerate((0.30, 0.32, 0.34))
    ]
    entries.append(ENTRY | {"method": "original", "seed": 0, "clean": 0.7, "robust": 0.1})
    text = method_pages.measured("tecoa", entries)
    assert "| CIFAR-10 | Linf 2/255 | PGD-20 | tecoa | 3 | 100 | 60.0 ± 0.0 | 32.0 ± 2.0 |" in text
    assert "| CIFAR-10 | Linf 2/255 | PGD-20 | original | 1 | 100 | 70.0 | 10.0 |" in text
    assert method_pages.measured("fare", entries) == "Not measured yet."


def test_figures_are_collected_by_method_and_seed(tmp_path, monkeypatch):
    for place in ("tecoa/seed-0", "tecoa/seed-2", "tecoa/seed-0-pair", "original/seed-0"):
        (tmp_path / place).mkdir(parents=True)
    share = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    row = ENTRY | {"coverage": "complete", "model_sha256": "ab", "clean": share, "robust": share, "eps": "2/255"}
    monkeypatch.setattr(method_pages, "collect", lambda runs: [dict(row)])
    found = method_pages.collect_natural([tmp_path])
    assert [(entry["method"], entry["seed"]) for entry in found] == [
        ("original", 0), ("tecoa", 0), ("tecoa", 0), ("tecoa", 2)
    ]  # fmt: skip
    assert found[0]["robust"] == 0.5
    assert json.loads(json.dumps(found)) == found


def test_the_table_of_defects_is_whole():
    found = defects.defects()
    assert [one.name for one in found] == [f"D{number}" for number in range(1, 39)]
    assert all(one.what and one.where and one.then for one in found)
    assert [one.name for one in found if one.cannot and one.tests] == []
    caught = {one.name for one in found if one.tests}
    assert {"D1", "D3", "D4", "D13", "D17", "D18", "D26", "D27", "D37"} <= caught


def test_tests_are_found_by_their_number(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_d03_one(): ...\ndef test_d030(): ...\ndef d03_two(): ...\n")
    (tmp_path / "table.yaml").write_text(
        "D3: {what: a, where: b, then: c}\nD28: {what: a, where: b, then: c, cannot: 'no'}\n"
        "D7: {what: a, where: b, then: c}"
    )
    monkeypatch.setattr(defects, "ROOT", tmp_path)
    monkeypatch.setattr(defects, "FILE", tmp_path / "table.yaml")
    third, other, none = defects.defects()
    assert third.tests == ("tests/test_a.py::test_d03_one",)
    assert (other.tests, other.cannot) == ((), "no")
    rows = defects.table().splitlines()[2:]
    assert "`tests/test_a.py`: `test_d03_one`" in rows[0]
    assert "not expressible: no" in rows[1]
    assert rows[2].endswith("| no test yet |")
    assert none.name == "D7"


def test_the_tool_stores_and_fills(tmp_path, monkeypatch):
    page = tmp_path / "tecoa.md"
    page.write_text("<!-- generated:measured -->\n<!-- /generated -->")
    monkeypatch.setattr(method_pages, "RESULTS", tmp_path / "methods.json")
    monkeypatch.setattr(method_pages, "collect_natural", lambda folders: [{"folder": folders[0].name}])
    monkeypatch.setattr(
        method_pages,
        "filled",
        lambda: {page: method_pages.fill(page.read_text(), "measured", method_pages.stored()[0]["folder"])},
    )
    method_pages.main(["--natural", "runs"])
    assert page.read_text() == "<!-- generated:measured -->\nruns\n<!-- /generated -->"
