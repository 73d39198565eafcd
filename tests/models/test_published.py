"""Published checkpoints: each layout as its project saves it, and what does not fit, refused in words."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ironclip.errors import ConfigError, WeightsError
from ironclip.models.published import LAYOUTS, import_published


def robustvlm(tower):
    return OrderedDict(tower)


def agft(tower):
    return {"modules": {"clip.visual": OrderedDict(tower)}, "params": {}}


def tga_zsr(tower):
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in tower.values()]
    optimiser = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
    sum(parameter.sum() for parameter in parameters).backward()
    optimiser.step()
    return {
        "epoch": 10,
        "state_dict": OrderedDict(),
        "add_prompter": OrderedDict(prompt=torch.empty(1, 0, 768)),
        "best_acc1": np.mean([41.5, 42.25]),
        "optimizer": optimiser.state_dict(),
        "vision_encoder_state_dict": OrderedDict(tower),
    }


MAKERS = {"robustvlm": robustvlm, "agft": agft, "tga_zsr": tga_zsr}


@pytest.fixture
def base(tiny_clip):
    return tiny_clip(quick_gelu=True)


@pytest.fixture
def robust(tiny_clip):
    return tiny_clip(quick_gelu=True, seed=1)


@pytest.fixture
def file(tmp_path):
    def save(content, name="checkpoint.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def test_every_layout_is_tested():
    assert MAKERS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tower_of_the_file_and_the_rest_of_the_base(layout, base, robust, file, pixels, caplog):
    path = file(MAKERS[layout](robust.visual.state_dict()))
    with caplog.at_level(logging.WARNING, "ironclip"):
        model = import_published(path, layout, base)
    assert "is a pickle: it is read with weights_only=True, which loads tensors and runs no code" in caplog.text
    assert torch.equal(model.embed_image(pixels), robust.embed_image(pixels))
    assert torch.equal(model.embed_text(["a dog"]), base.embed_text(["a dog"]))
    assert torch.equal(model.log_logit_scale, base.log_logit_scale)
    assert model.spec.origin == f"{layout}:checkpoint.pt"
    assert len({model.spec.sha256, base.spec.sha256, robust.spec.sha256}) == 3
    assert not torch.equal(base.embed_image(pixels), robust.embed_image(pixels))  # the base stays as it was


def test_half_precision_is_widened(base, robust, file, pixels):
    halves = {name: tensor.half() for name, tensor in robust.visual.state_dict().items()}
    model = import_published(file(agft(halves)), "agft", base)
    assert {parameter.dtype for parameter in model.visual.parameters()} == {torch.float32}
    assert torch.equal(model.visual.proj, robust.visual.proj.half().float())


def test_a_number_of_an_older_numpy_is_read_too(base, robust, file, pixels, tmp_path):
    """Published files name numpy's inside as it was before numpy 2; a pickle's names end with a line, at any length."""
    old = tmp_path / "old.pt"
    with zipfile.ZipFile(file(tga_zsr(robust.visual.state_dict()))) as new, zipfile.ZipFile(old, "w") as archive:
        for entry in new.namelist():
            content = new.read(entry)
            if entry.endswith("/data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            archive.writestr(entry, content)
    model = import_published(old, "tga_zsr", base)
    assert torch.equal(model.embed_image(pixels), robust.embed_image(pixels))


@pytest.mark.parametrize("given", LAYOUTS)
@pytest.mark.parametrize("true", LAYOUTS)
def test_another_layout_is_recognised(given, true, base, robust, file):
    if given == true:
        return
    path = file(MAKERS[true](robust.visual.state_dict()))
    with pytest.raises(WeightsError, match=f"expected .*\nIt looks like --format {true}"):
        import_published(path, given, base)


def test_a_file_of_no_known_layout_says_what_it_holds(base, file):
    with pytest.raises(WeightsError, match=r"holds weights, step; expected vision_encoder_state_dict\.\nCheck which"):
        import_published(file({"weights": {}, "step": 3}), "tga_zsr", base)
    with pytest.raises(WeightsError, match="holds list; expected the state dict of open_clip's image tower"):
        import_published(file([torch.zeros(2)]), "robustvlm", base)
    with pytest.raises(WeightsError, match="expected vision_encoder_state_dict"):
        import_published(file({"vision_encoder_state_dict": {"proj": 3}}), "tga_zsr", base)


def test_tensors_that_do_not_fit_are_counted_and_named(base, robust, file):
    tower = dict(robust.visual.state_dict())
    del tower["ln_pre.weight"], tower["ln_pre.bias"]
    tower["prompt"] = torch.zeros(3)
    tower["proj"] = torch.zeros(64, 8)
    message = (
        r"of \d+ tensors: 2 missing \(ln_pre.weight, ln_pre.bias\); 1 unexpected \(prompt\); "
        r"1 of another shape \(proj \(64, 8\), expected \(64, 16\)\)"
    )
    with pytest.raises(WeightsError, match=message):
        import_published(file(robustvlm(tower)), "robustvlm", base)


def test_a_larger_tower_is_refused(tiny_clip, base, file):
    tower = tiny_clip(quick_gelu=True, vision={"layers": 3}).visual.state_dict()
    with pytest.raises(WeightsError, match=r"12 unexpected \(transformer\.resblocks\.2\."):
        import_published(file(agft(tower)), "agft", base)


def test_nan_is_refused(base, robust, file):
    tower = robust.visual.state_dict()
    tower["proj"] = torch.full_like(tower["proj"], float("nan"))
    with pytest.raises(WeightsError, match="NaN or infinite weights: proj"):
        import_published(file(robustvlm(tower)), "robustvlm", base)


@pytest.mark.parametrize(
    ("layout", "content", "named"),
    [
        ("agft", lambda tower: agft(tower) | {"params": {"token_prompt": torch.zeros(1, 5, 64)}}, "token_prompt"),
        ("tga_zsr", lambda tower: tga_zsr(tower) | {"state_dict": {"pad_up": torch.zeros(3)}}, "state_dict.pad_up"),
        (
            "tga_zsr",
            lambda tower: tga_zsr(tower) | {"add_prompter": {"prompt": torch.zeros(1, 2, 64)}},
            "add_prompter.prompt",
        ),
    ],
)
def test_visual_prompts_are_refused(layout, content, named, base, robust, file):
    with pytest.raises(WeightsError, match=rf"holds visual prompts \({named}\)"):
        import_published(file(content(robust.visual.state_dict())), layout, base)


def test_a_base_with_gelu_is_refused(tiny_clip, robust, file):
    with pytest.raises(ConfigError, match=r"the base tiny_clip has GELU, but .* QuickGELU"):
        import_published(file(robustvlm(robust.visual.state_dict())), "robustvlm", tiny_clip())


class Payload:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_pickle_is_executed(layout, base, robust, file, tmp_path):
    content = MAKERS[layout](robust.visual.state_dict()) | {"extra": Payload(tmp_path / "run")}
    path = file(content)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(content["extra"], protocol=2))
    for damaged in (path, plain):
        with pytest.raises(WeightsError, match=r"could run code when loaded|no PyTorch file"):
            import_published(damaged, layout, base)
    assert not (tmp_path / "run").exists()


def test_a_missing_or_truncated_file(base, robust, file, tmp_path):
    with pytest.raises(WeightsError, match=r"there is no file .*nothing\.pt"):
        import_published(tmp_path / "nothing.pt", "robustvlm", base)
    path = file(robustvlm(robust.visual.state_dict()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated"):
        import_published(path, "robustvlm", base)


def test_an_unknown_layout_names_the_near_one(base, tmp_path):
    with pytest.raises(ConfigError, match=r'no layout "tga" to import from.* Did you mean "tga_zsr"'):
        import_published(tmp_path, "tga", base)
