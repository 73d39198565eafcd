from __future__ import annotations

import importlib
import platform
import sys
import textwrap

import pytest
import torch

import ironclip
from ironclip.provenance import PACKAGES, _closure, source_sha256, versions

MAIN = '''
"""A module."""

from ironclip.made_up_helper import helped


def answer(question):
    """Answer it."""
    return helped(question) + 1
'''
HELPER = '''
"""What helps."""

import math


class Helper:
    """A class."""

    factor = 2


def helped(value):
    return Helper.factor * math.floor(value)
'''


@pytest.fixture
def sha256(tmp_path, monkeypatch):
    """Put two modules beside ours and hash what importing the first runs through."""
    monkeypatch.setattr(ironclip, "__path__", [*ironclip.__path__, str(tmp_path)])

    def compute(main=MAIN, helper=HELPER, **more):
        for name, text in {"made_up_main": main, "made_up_helper": helper, **more}.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        forget()
        return source_sha256("ironclip.made_up_main")

    yield compute
    forget()


def forget():
    """Drop what an earlier hash has imported on its way."""
    importlib.invalidate_caches()
    source_sha256.cache_clear()
    for name in [name for name in sys.modules if name.startswith("ironclip.made_up")]:
        del sys.modules[name]


def test_is_a_sha256(sha256):
    assert len(bytes.fromhex(sha256())) == 32
    assert sha256() == sha256()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Answer it."""', '"""Answer the question, in words."""'),
        ('    """Answer it."""\n', ""),
        ('"""A module."""', '"""Another description."""'),
        ("    return helped", "    # because\n    return helped"),
        ("helped(question) + 1", "(helped(question)   +  1)"),
        ("def answer", "\n\n\ndef answer"),
    ],
)
def test_words_do_not_count(before, after, sha256):
    assert before in MAIN
    assert sha256(MAIN.replace(before, after)) == sha256()


@pytest.mark.parametrize(
    ("before", "after"),
    [("+ 1", "+ 2"), ("+ 1", "- 1"), ("helped(question)", "helped(-question)"), ("def answer", "def reply")],
)
def test_code_counts(before, after, sha256):
    assert before in MAIN
    assert sha256(MAIN.replace(before, after)) != sha256()


def test_code_of_what_is_imported_counts_and_its_words_do_not(sha256):
    assert sha256(helper=HELPER.replace("factor = 2", "factor = 3")) != sha256()
    assert sha256(helper=HELPER.replace("A class.", "The class.")) == sha256()


def test_an_import_inside_a_function_counts(sha256):
    inside = MAIN.replace("from ironclip.made_up_helper import helped\n", "").replace(
        "    return helped", "    from ironclip.made_up_helper import helped\n\n    return helped"
    )
    assert sha256(inside, HELPER.replace("= 2", "= 3")) != sha256(inside, HELPER)


def test_other_modules_do_not_count(sha256):
    assert sha256(made_up_stranger="x = 1") == sha256(made_up_stranger="x = 2")


def test_circles_end(sha256):
    circular = HELPER + "\n\ndef ask():\n    from ironclip.made_up_main import answer\n\n    return answer\n"
    assert sha256(helper=circular) != sha256()


def test_a_docstring_alone_is_a_body(sha256):
    assert sha256(MAIN.replace("    return helped(question) + 1\n", "")) != sha256()


def test_the_docstring_of_a_constant_does_not_count(sha256):
    constant = HELPER + '\n\nLIMIT = 3\n"""So many."""\n'
    assert sha256(helper=constant) == sha256(helper=constant.replace("So many.", "No more than these."))


def test_the_package_of_a_module_counts(sha256, tmp_path):
    package = tmp_path / "made_up_package"
    package.mkdir()
    (package / "inner.py").write_text("x = 1")
    main = MAIN.replace("import helped\n", "import helped\nfrom ironclip.made_up_package.inner import x\n")
    (package / "__init__.py").write_text("y = 1")
    first = sha256(main)
    (package / "__init__.py").write_text("y = 2")
    assert sha256(main) != first


def test_the_engine_covers_what_a_step_runs_through():
    code = _closure(["ironclip.training.engine", "ironclip.methods.tecoa", "ironclip.attacks.pgd"])
    wanted = {
        "training.engine",
        "training.recipe",
        "training.validation",
        "training.optimisation",
        "methods.base",
        "methods.tecoa",
        "attacks.pgd",
        "attacks.driver",
        "attacks.objectives",
        "attacks.threat_model",
        "models.clip",
        "models.fast",
        "losses.classification",
        "data.order",
        "randomness",
    }
    assert {f"ironclip.{name}" for name in wanted} <= set(code)
    assert not [name for name in code if name.startswith(("ironclip.cli", "ironclip.report"))]


def test_versions_name_what_can_move_a_number():
    found = versions()
    assert found["python"] == platform.python_version()
    assert set(found) == {"python", *PACKAGES}
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
