from __future__ import annotations

from pathlib import Path

import pytest

from ironclip.data import open_dataset
from ironclip.errors import ConfigError
from made_up_shards import labelled, write_shard


@pytest.fixture
def birds(tmp_path: Path) -> str:
    return str(write_shard(tmp_path / "birds" / "test-0.tar", labelled(0, 3, side=12)).parent)


def test_the_source_is_kept_as_given(birds: str) -> None:
    assert open_dataset(f"wds:{birds}?split=test&resize=4").source == f"wds:{birds}?split=test&resize=4"


@pytest.mark.parametrize(("options", "side"), [("", 12), ("?resize=4", 4), ("?size=5", 5), ("?split=test&resize=8", 8)])
def test_options_common_to_all_kinds(birds: str, options: str, side: int) -> None:
    assert open_dataset(f"wds:{birds}{options}")[0].pixels.shape == (3, side, side)


def test_a_home_folder_is_found(birds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(birds).parent))
    assert len(open_dataset("wds:~/birds")) == 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("wdss:{}", r'unknown kind of source "wdss" in .* Did you mean "wds"(.|\n)*folder, hf, torchvision, wds'),
        ("{}", r"is no source, expected kind:where"),
        ("", r"is no source, expected kind:where"),
        ("wds:", r"is no source, expected kind:where"),
        ("wds:{}?splt=test", r'wds: unknown key "splt". Did you mean "split"(.|\n)*split, resize, size'),
        ("wds:{}?split", r"matches no tar shards"),
        ("wds:{}?split=", r'"split=" in .* is no option'),
        ("wds:{}?split=test&", r'"" in .* is no option'),
        ("wds:{}?split=test&resize", r'"resize" in .* is no option'),
        ("wds:{}?split=test&split=train", r'"split" stands twice'),
        ("wds:{}?resize=big", r"wds.resize: .*integer.*'big'"),
        ("wds:{}?resize=0", r"wds.resize: .*greater than 0"),
        ("wds:{}?resize=4&size=4", r"resize=4 and size=4 exclude each other(.|\n)*centre square"),
        ("folder:{}?root=x", r'unknown key "root"'),
    ],
)
def test_what_is_wrong_with_a_source(birds: str, source: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        open_dataset(source.format(birds))
    assert "\n" in str(caught.value)  # one line what is wrong, one what to do


def test_errors_of_options_are_config_errors(birds: str) -> None:
    with pytest.raises(ConfigError):
        open_dataset(f"wds:{birds}?resize=4&size=4")
