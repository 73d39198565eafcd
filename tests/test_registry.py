from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pydantic
import pytest

from ironclip.errors import ConfigError, RegistryError, ValueRangeError
from ironclip.registry import Registry, build

BASE = """
from ironclip.registry import Registry

THINGS = Registry("thing", "{package}")
register_thing = THINGS.register
"""

MODULE = """
from dataclasses import dataclass
from {package}.base import register_thing


@register_thing("{name}", tags={tags})
@dataclass(frozen=True, kw_only=True)
class {title}:
    size: int = 3
    colour: str = "red"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Make a package of things; `add` writes a module into it, `things` imports its registry."""
    name = f"things_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text(BASE.format(package=name))
    monkeypatch.syspath_prepend(str(tmp_path))

    class Package:
        @staticmethod
        def add(module: str, text: str | None = None, tags: str = "set()") -> None:
            text = MODULE if text is None else text
            (folder / f"{module}.py").write_text(
                text.format(package=name, name=module, title=module.title(), tags=tags)
            )

        @staticmethod
        def things() -> Registry:
            return __import__(f"{name}.base", fromlist=["THINGS"]).THINGS

    yield Package
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_a_new_file_is_found_by_being_there(package):
    package.add("apple", tags='{{"fruit", "sweet"}}'.replace("{{", "{").replace("}}", "}"))
    package.add("lemon", tags='{"fruit"}')
    package.add("anvil")
    things = package.things()
    assert things.names() == list(things) == ["anvil", "apple", "lemon"]
    assert things.names("fruit") == ["apple", "lemon"]
    assert things.names("sweet", "fruit") == ["apple"]
    assert things.names("blue") == []
    assert things.get("apple").name == "apple"
    assert things.create("apple").size == 3
    assert things.create("apple", {"size": 5}) == things.get("apple")(size=5)


def test_nothing_is_imported_before_it_is_asked_for(package):
    package.add("apple", "raise SystemError('imported')")
    things = package.things()
    with pytest.raises(SystemError, match="imported"):
        things.names()


def test_a_module_that_fails_to_import_fails_every_time(package):
    """The second call must not go on with half a registry and call a known name unknown."""
    package.add("apple", "raise ImportError('no seeds')")
    package.add("lemon")
    things = package.things()
    for _ in range(2):
        with pytest.raises(ImportError, match="no seeds"):
            things.get("lemon")
    package.add("apple")
    __import__("importlib").invalidate_caches()
    assert things.names() == ["apple", "lemon"]


def test_an_unknown_name_shows_the_near_ones_and_all(package):
    package.add("apple")
    package.add("lemon")
    with pytest.raises(RegistryError, match=r'unknown thing "aple"\. Did you mean "apple"\?') as caught:
        package.things().get("aple")
    assert caught.value.remedy == '"ironclip list things" shows all: apple, lemon.'
    with pytest.raises(RegistryError, match='unknown thing "xyz"') as caught:
        package.things().create("xyz")
    assert "Did you mean" not in caught.value.problem


def test_two_of_one_name_are_refused_and_one_twice_is_not():
    things: Registry[object] = Registry("thing", "nowhere")

    class Apple:
        pass

    assert things.register("apple")(Apple) is Apple
    assert things.register("apple")(Apple) is Apple
    with pytest.raises(RegistryError, match=r'two things are called "apple"\.\nRename one'):
        things.register("apple")(type("Other", (), {}))


# Options


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int
    share: float = 0.5
    mode: Literal["soft", "hard"] = "soft"
    kind: ClassVar[str] = "settings"
    derived: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueRangeError(f"count is {self.count}.", "Give at least 1.")


class Section(pydantic.BaseModel):
    inner: Settings
    names: list[str] = []


def test_options_become_settings():
    assert build(Settings, {"count": 2, "mode": "hard"}, where="method") == Settings(count=2, mode="hard")
    assert build(Section, {"inner": {"count": 2}}, where="recipe").inner == Settings(count=2)


def test_all_unknown_options_are_named_with_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        build(Settings, {"cuont": 2, "shares": 1, "zzz": 0}, where="method")
    assert caught.value.problem.split("\n") == [
        'method: unknown key "cuont". Did you mean "count"?',
        'method: unknown key "shares". Did you mean "share"?',
        'method: unknown key "zzz".',
    ]
    assert caught.value.remedy == "Known keys of method: count, share, mode."


@pytest.mark.parametrize("key", ["kind", "derived"])
def test_what_is_not_a_setting_cannot_be_set(key):
    with pytest.raises(ConfigError, match=f'method: unknown key "{key}"'):
        build(Settings, {"count": 1, key: 1}, where="method")


def test_all_wrong_types_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        build(Settings, {"count": "many", "mode": "medium"}, where="method")
    lines = caught.value.problem.split("\n")
    assert len(lines) == 2
    assert lines[0].startswith("method.count: ")
    assert lines[0].endswith("(got 'many')")
    assert lines[1] == "method.mode: Input should be 'soft' or 'hard' (got 'medium')"


@pytest.mark.parametrize("key", ["count", "share"])
def test_true_is_no_number(key):
    with pytest.raises(ConfigError, match=rf"^method\.{key}: expected a number \(got true\)"):
        build(Settings, {"count": 1, key: True}, where="method")


def test_a_missing_option_is_named():
    with pytest.raises(ConfigError, match=r"^method\.count: .*[Rr]equired|^method\.count: Missing"):
        build(Settings, {}, where="method")


def test_a_nested_option_is_named_by_its_path():
    with pytest.raises(ConfigError, match=r"recipe\.inner\.share: .*number.*\(got 'x'\)"):
        build(Section, {"inner": {"count": 1, "share": "x"}}, where="recipe")


@pytest.mark.parametrize(("cls", "options"), [(Settings, {"count": 0}), (Section, {"inner": {"count": 0}})])
def test_what_a_class_says_of_itself_is_passed_on(cls, options):
    with pytest.raises(ValueRangeError) as caught:
        build(cls, options, where="method")
    assert (caught.value.problem, caught.value.remedy) == ("count is 0.", "Give at least 1.")


def test_options_are_not_written_to():
    options = {"count": 2}
    build(Settings, options, where="method")
    assert options == {"count": 2}


def test_a_class_without_settings_says_so():
    @dataclass(frozen=True)
    class Plain:
        pass

    with pytest.raises(ConfigError, match=r'unknown key "a"\.\nKnown keys of method: none'):
        build(Plain, {"a": 1}, where="method")
