from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from ironclip.errors import ConfigError, DataError
from ironclip.evaluation.diagnostics import Diagnosis
from ironclip.evaluation.intervals import mean_per_class_interval, paired_difference, wilson
from ironclip.evaluation.records import AttackInfo, SuiteInfo, gallery_ids
from ironclip.evaluation.store import RunStore
from ironclip.report import prose, wording
from ironclip.report.figures import robustness_curve
from ironclip.report.gallery import gallery
from ironclip.report.markdown import render_markdown
from ironclip.report.page import build_report
from ironclip.report.tables import load_results
from ironclip.report.wording import MINUS, TIMES

ORIGINAL = {"0": 0.7, "1/255": 0.4, "2/255": 0.2}
TECOA = {"0": 0.65, "1/255": 0.55, "2/255": 0.45}
FGSM = AttackInfo(name="fgsm")


def answers(run: Path, eps: str, *, clean: bool = False) -> dict[str, bool]:
    """Verdicts by sample, straight from the rows."""
    store = RunStore.open(run)
    unit = next(name for name in store.units() if store.record(name).threat.eps == eps)
    rows = store.read_unit(unit).to_pylist()
    return {row["sample_id"]: row["pred_clean"] == row["y"] and (clean or not row["broken"]) for row in rows}


@pytest.fixture
def two_runs(make_run) -> list[Path]:
    return [make_run("original", ORIGINAL), make_run("tecoa", TECOA)]


# Verdicts


def test_the_page_says_whether_anybody_looked_for_hidden_gradients(two_runs):
    def explained():
        return prose.verdict_explained(load_results(two_runs))

    def diagnose(run, eps, *verdict):
        store = RunStore.open(run)
        unit = next(name for name in store.units() if store.record(name).threat.eps == eps)
        store.write_diagnosis(unit, Diagnosis(profile="light", samples=64, checks=(), verdict=verdict))

    assert explained().endswith("was not checked.")
    diagnose(two_runs[0], "1/255", "trusted(light)")
    assert "looked for in 1 of 4 rows by light checks, and none was found" in explained()
    for run, eps in ((two_runs[0], "2/255"), (two_runs[1], "1/255"), (two_runs[1], "2/255")):
        diagnose(run, eps, "trusted")
    assert "looked for in every row by light checks, and none was found" in explained()
    diagnose(two_runs[0], "1/255", "trusted")
    assert "looked for in every row, and none was found" in explained()
    diagnose(two_runs[1], "2/255", "fd_cosine", "randomised")
    assert explained().endswith(
        "in every row, and these are not to be believed: tecoa on cifar10, PGD-20, linf 2/255 (fd_cosine, randomised)."
    )


# Tables


def test_figures_equal_a_count_over_the_rows(two_runs):
    results = load_results(two_runs)
    (table,) = results.datasets
    assert [budget.eps for budget in table.budgets] == ["1/255", "2/255"]
    assert table.chance == 0.2
    for model, run in enumerate(two_runs):
        clean = answers(run, "1/255", clean=True)
        assert table.clean[model].share == wilson(sum(clean.values()), 40)
        for row, eps in zip(table.robust, ["1/255", "2/255"], strict=True):
            assert row[model].share == wilson(sum(answers(run, eps).values()), 40)
            assert row[model].per_class is None
    assert 0.1 < table.robust[1][0].share.estimate < table.robust[1][1].share.estimate


def test_differences_are_paired_and_adjusted_for_their_number(two_runs):
    table = load_results(two_runs).datasets[0]
    first, second = (answers(run, "2/255") for run in two_runs)
    counts = [sum((second[key], first[key]) == pair for key in first) for pair in [(1, 1), (1, 0), (0, 1), (0, 0)]]
    expected = paired_difference(*counts)
    found = table.robust[1][1].versus_first
    assert found.paired == expected
    assert table.robust[1][0].versus_first is None
    cells = [table.clean[1], table.robust[0][1], table.robust[1][1]]
    smallest = min(cells, key=lambda cell: cell.versus_first.paired.p_value)
    assert smallest.versus_first.p_holm == pytest.approx(min(1, 3 * smallest.versus_first.paired.p_value))


def test_mean_per_class_where_the_data_set_asks_for_it(make_run):
    run = make_run("original", ORIGINAL, metric="mean_per_class")
    cell = load_results([run]).datasets[0].robust[1][0]
    store = RunStore.open(run)
    rows = store.read_unit(store.units()[1]).to_pylist()
    verdicts = [row["pred_clean"] == row["y"] and not row["broken"] for row in rows]
    assert cell.per_class == mean_per_class_interval(verdicts, [row["y"] for row in rows])


def test_several_attacks_are_joined_pointwise(make_run):
    run = make_run("original", ORIGINAL)
    alone = answers(run, "2/255")
    make_run("original", {"0": 0.7, "2/255": 0.25}, attack=FGSM)  # goes on in the same folder
    results = load_results([run])
    store = RunStore.open(run)
    fgsm = next(name for name in store.units() if "fgsm" in name)
    stands = {row["sample_id"] for row in store.read_unit(fgsm).to_pylist() if not row["broken"]}
    cell = results.datasets[0].robust[1][0]
    assert cell.share == wilson(sum(verdict and key in stands for key, verdict in alone.items()), 40)
    assert results.attacks == ["PGD-20", "FGSM"]
    assert "only two attacks (PGD-20, FGSM) were run" in prose.verdict(results)


def test_runs_of_one_model_make_one_row_and_budgets_are_sorted(make_run):
    runs = [
        make_run("original", {"0": 0.7, "4/255": 0.1}, folder="a"),
        make_run("original", {"0": 0.7, "1/255": 0.4}, folder="b"),
    ]
    results = load_results(runs)
    assert [model.name for model in results.models] == ["original"]
    assert [budget.eps for budget in results.datasets[0].budgets] == ["1/255", "4/255"]
    assert results.costs[0].n == 80


def test_two_models_of_one_name_are_told_apart(make_run):
    runs = [make_run("mine", ORIGINAL, folder="a"), make_run("mine", TECOA, folder="b", weights="f" * 64)]
    names = [model.name for model in load_results(runs).models]
    assert names[1] == "mine (ffffffff)"
    assert names[0] != names[1]


def test_what_was_not_run_is_said(make_run):
    results = load_results([make_run("original", ORIGINAL), make_run("tecoa", {"0": 0.6, "2/255": 0.4})])
    assert results.datasets[0].robust[0][1] is None
    assert "| not run |" in render_markdown(results, "t")


def test_partial_results_have_wide_intervals_and_no_headline(make_run, tmp_path):
    runs = [make_run("original", ORIGINAL), make_run("tecoa", TECOA, n_done=30, metric="mean_per_class")]
    results = load_results(runs)
    cell = results.datasets[0].robust[1][1]
    assert (cell.n, cell.missing, cell.versus_first, cell.per_class) == (30, 10, None, None)
    assert cell.share.low < wilson(round(30 * cell.share.estimate), 30).low
    text = render_markdown(results, "t")
    assert "(partial)" in text
    assert "tecoa has answered 30 of 40 images (clean, ε = 1/255 and ε = 2/255)" in text
    assert '"tecoa" keeps' not in text
    assert "partial, see below" in build_report(runs, tmp_path / "out").read_text()


def test_unreadable_images_are_named_until_they_are_read(make_run):
    run = make_run("original", ORIGINAL, n_done=39)
    store = RunStore.open(run)
    store.note_unreadable(
        store.units()[0], {"cifar10/test/00039": "truncated file", "cifar10/test/00001": "was mended"}
    )
    text = render_markdown(load_results([run]), "t")
    assert "Images that could not be read, 1 in all: cifar10/test/00039 (truncated file)." in text


def test_clean_answers_that_differ_between_runs_are_pointed_out(make_run):
    run = make_run("original", {"0": 0.7, "1/255": 0.4})
    make_run("original", {"0": 0.5, "2/255": 0.2})
    (note,) = load_results([run]).notes
    assert re.search(r"cifar10: the clean answers of \"original\" to \d+ image\(s\) differ", note)


# What may not share a table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": SuiteInfo(name="natural", version="2", sha256="0")}, "on natural 1, .* on natural 2: scores change"),
        ({"suite": None}, "on natural 1, .* on no suite"),
        (
            {"rules": {"acting_resolution": "model_input"}},
            '"original" and "tecoa" were attacked in different games .*acting_resolution is \'native\' and',
        ),
        ({"first_id": 5}, 'the images of "original" .* and of "tecoa" .* are not the same'),
        ({"n": 30}, r"the images .* \(sample_ids.count is 40 and 30\)"),
        ({"attack": AttackInfo(name="pgd", settings={"steps": 50})}, '"original" stood PGD-20 .*, "tecoa" PGD-50'),
        ({"attack": FGSM}, '"tecoa" FGSM'),
        ({"record": {"parity": "TeCoA"}}, "parity of .* are not the same"),
        ({"record": {"class_list_sha256": "0"}}, "class_list_sha256 of .* are not the same"),
        ({"record": {"dataset_fingerprint": "0"}}, "dataset_fingerprint of .* are not the same"),
    ],
)
def test_refuses_to_mix(make_run, changes, words):
    runs = [make_run("original", ORIGINAL), make_run("tecoa", TECOA, **changes)]
    with pytest.raises(ConfigError, match=words):
        load_results(runs)


def test_refuses_the_same_results_twice(make_run):
    runs = [make_run("original", ORIGINAL, folder="a"), make_run("original", ORIGINAL, folder="b")]
    with pytest.raises(ConfigError, match=r'both hold cifar10--pgd--.* of the model "original".*\n.*ironclip merge'):
        load_results(runs)


def test_refuses_nothing_at_all(make_run, tmp_path):
    with pytest.raises(ConfigError, match="no runs to report on"):
        load_results([])
    with pytest.raises(DataError, match="no results yet"):
        load_results([make_run("original", {"0": 0.5})])
    with pytest.raises(DataError, match="no run folder"):
        load_results([tmp_path])


# Words


def test_golden_markdown(make_run, golden):
    runs = [
        make_run("original", ORIGINAL, datasets=("cifar10", "caltech101"), metric="mean_per_class"),
        make_run("my_model|v2", TECOA, datasets=("cifar10", "caltech101"), metric="mean_per_class"),
    ]
    golden.check("report.md", render_markdown(load_results(runs), "Two models"))


def test_caption_joins_radii_and_keeps_games_apart(make_run):
    runs = [make_run("original", ORIGINAL, datasets=("a", "b"))]
    assert prose.caption(load_results(runs)) == "Linf 1/255, 2/255, native 32x32, white-box · PGD-20"
    make_run("original", {"0": 0.7, "1/2": 0.3}, rules={"norm": "l2"})
    results = load_results(runs)
    assert prose.caption(results).startswith("Linf 1/255, 2/255, native 32x32, white-box; L2 1/2, native")
    assert "or all pixels together by a length of at most 1/2" in prose.what_was_done(results)[1]


def test_another_knowledge_is_not_called_knowing_everything(make_run):
    results = load_results([make_run("original", ORIGINAL, rules={"knowledge": "score"})])
    assert "an adversary (score) changed" in prose.what_was_done(results)[1]


def test_default_title_names_few_models_and_counts_many(make_run):
    one = load_results([make_run("m0", ORIGINAL)])
    assert prose.default_title(one) == "How robust is m0?"
    many = load_results([make_run(f"m{index}", ORIGINAL) for index in range(5)])
    assert prose.default_title(many) == "How robust are these 5 models?"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (wording.percent(0.3579), "35.8"),
        (wording.bounds(-0.0173, 0.0331), f"[{MINUS}1.7, 3.3]"),
        (wording.bounds(-0.0001, 0.0004), "[0.0, 0.0]"),
        (wording.points(-0.0541), f"{MINUS}5.4"),
        (wording.points(0.0004), "±0.0"),
        (wording.points(0.23), "+23.0"),
        (wording.p_value(0.0106), "p = 0.011"),
        (wording.p_value(1e-9), "p < 0.001"),
        (wording.coverage(1000, 10000), "1,000 of 10,000 images"),
        (wording.coverage(400, 400), "all 400 images"),
        (wording.duration(42), "42 s"),
        (wording.duration(420), "7 min"),
        (wording.duration(12600), "3.5 h"),
        (wording.magnification(63.75), f"64{TIMES}"),
        (wording.magnification(2.5), f"2.5{TIMES}"),
        (wording.listing(["a"]), "a"),
        (wording.listing(["a", "b", "c"], "or"), "a, b or c"),
        (wording.plural(1, "attack"), "one attack"),
        (wording.plural(12, "attack"), "12 attacks"),
    ],
)
def test_wording(found, expected):
    assert found == expected


# Pictures


def test_the_curve_puts_its_points_where_the_figures_are(two_runs):
    table = load_results(two_runs).datasets[0]
    svg = str(robustness_curve(table, "linf", prefix="c"))
    marks = re.findall(r'<use href="#[^"]*" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--model-1\); stroke', svg)
    shares = [table.clean[1].share.estimate, *(row[1].share.estimate for row in table.robust)]
    x, y = np.array(marks, dtype=float).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], rel=1e-6)  # 0, 1/255, 2/255
    np.testing.assert_allclose(np.diff(y) / np.diff(shares), np.diff(y)[0] / np.diff(shares)[0], rtol=1e-5)
    assert y[0] < y[1] < y[2]  # downwards on the page
    assert "<text" in svg
    assert "2/255</text>" in svg


def test_drawing_leaves_matplotlib_as_it_was_and_is_repeatable(two_runs):
    table = load_results(two_runs).datasets[0]
    before = dict(matplotlib.rcParams)
    assert robustness_curve(table, "linf", prefix="c") == robustness_curve(table, "linf", prefix="c")
    assert dict(matplotlib.rcParams) == before


def pixels_of(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_gallery_shows_the_first_images_by_hash_with_what_was_said(two_runs):
    results = load_results(two_runs)
    found = gallery(results.datasets[0], results.models)
    store = RunStore.open(two_runs[1])
    unit = store.units()[1]
    ids = gallery_ids(store.done_ids(unit), 3)
    assert [specimen.sample_id for specimen in found.specimens] == ids
    assert (found.eps, found.attack, found.magnified) == ("2/255", "PGD-20", f"64{TIMES}")
    images = store.read_images(unit, ids)
    rows = {row["sample_id"]: row for row in store.read_unit(unit).to_pylist()}
    classes = store.run.datasets["cifar10"].class_names
    for specimen in found.specimens:
        clean, attacked = images[specimen.sample_id]
        row, attempt = rows[specimen.sample_id], specimen.attempts[1]
        assert specimen.truth == classes[row["y"]]
        assert attempt.attacked.name == classes[row["pred_adv"]]
        assert attempt.attacked.probability == pytest.approx(softmax(row["logits_adv"])[row["pred_adv"]])
        shown = pixels_of(specimen.image)
        assert shown.shape == (128, 128, 3)
        np.testing.assert_array_equal(shown[::4, ::4], np.rint(255 * clean).astype(np.uint8).transpose(1, 2, 0))
        np.testing.assert_array_equal(shown[3::4, 3::4], shown[::4, ::4])
        change = pixels_of(attempt.change)[::4, ::4].transpose(2, 0, 1).astype(int)
        full = np.abs(np.abs(attacked - clean) - 2 / 255) < 1e-6  # not clipped at black or white
        np.testing.assert_array_equal(change[full], np.where(attacked > clean, 255, 0)[full])


def test_gallery_verdicts(make_run):
    results = load_results([make_run("m", {"0": 0.6, "2/255": 0.3}, n=60)])
    store = results.models[0].stores[0]
    rows = {row["sample_id"]: row for row in store.read_unit(store.units()[0]).to_pylist()}
    for specimen in gallery(results.datasets[0], results.models).specimens:
        row, verdict = rows[specimen.sample_id], specimen.attempts[0].verdict
        right = row["pred_clean"] == row["y"]
        assert verdict == ("wrong" if not right else "falls" if row["broken"] else "holds")


def test_no_images_no_gallery(make_run, tmp_path):
    runs = [make_run("original", ORIGINAL, with_images=False)]
    results = load_results(runs)
    assert gallery(results.datasets[0], results.models) is None
    assert "What the models saw" not in build_report(runs, tmp_path / "out").read_text()


# The page


class Page(HTMLParser):
    """Collects what a browser might act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in {"meta", "br", "img", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture
def page(make_run, tmp_path) -> str:
    runs = [
        make_run("original", ORIGINAL, datasets=("cifar10", "caltech101"), metric="mean_per_class"),
        make_run("<script>alert(1)</script> $x$", TECOA, folder="b", datasets=("cifar10", "caltech101")),
    ]
    path = build_report(runs, tmp_path / "report", title="Two & more")
    assert path == tmp_path / "report" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "report.md"]
    return path.read_text()


def test_page_loads_nothing_and_runs_nothing(page):
    parsed = Page(page)
    assert parsed.open == []
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on"), name
        if name in {"src", "href", "xlink:href", "srcset", "data", "poster", "action", "background"}:
            assert value.startswith(("#", "data:image/png;base64,")), (name, value[:60])
    assert not re.search(r"@import|url\((?!#)", page)
    assert "http" not in page


def test_page_ids_are_unique_and_references_resolve(page):
    ids = [value for name, value in Page(page).attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_page_says_what_it_must(page, tmp_path):
    text = re.sub(r"\s+", " ", page.replace("&nbsp;", " "))  # a no-break space is white space too
    for words in [
        "<h1>Two &amp; more</h1>",
        "Linf 1/255, 2/255, native 32x32, white-box · PGD-20",
        "This table is an upper bound on robustness: one attack (PGD-20) was run.",
        "40 of 400 images, 5 classes, guessing gives 20.0 %",
        "ironclip eval natural --model local-dir:models/original --limit 40",
        "&lt;script&gt;alert(1)&lt;/script&gt; $x$",
        f"changes magnified 64{TIMES} around grey",
        "ironclip 0.1.0, torch 2.0",
        "Attacks: PGD-20 (steps = 20, rel_step_size = 0.25).",
        "prefers-color-scheme: dark",
    ]:
        assert words in text, words
    share = load_results([tmp_path / "original"]).datasets[0].robust[1][0].share
    assert f'<span class="share">{wording.percent(share.estimate)}</span>' in text
    assert f'<span class="bounds">{wording.bounds(share.low, share.high)}</span>' in text
    assert text.count("by class ") == 2 * 3 * 2  # two data sets, clean and two budgets, two models
    assert len(page) < 1_500_000


def test_page_is_a_function_of_the_rows(two_runs, tmp_path):
    one, two = (build_report(two_runs, tmp_path / name).read_text() for name in ("one", "two"))
    assert one == two


def test_report_reads_rows_not_aggregates(two_runs, tmp_path):
    before = build_report(two_runs, tmp_path / "one").read_text()
    for run in two_runs:
        RunStore.open(run).write_aggregates()
        for file in (run / "rows").iterdir():
            file.write_text("{}")
    assert build_report(two_runs, tmp_path / "two").read_text() == before


def test_verdict_names_the_model_when_there_is_one(make_run):
    results = load_results([make_run("original", ORIGINAL)])
    assert prose.what_was_done(results)[0].startswith("The model looked at images of cifar10")
    assert prose.findings(results)[0].count(";") == 0
    assert replace(results, datasets=()).attacks == []
