"""What a speed is compared with: operations against another counter, the grid of products against the tower."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import vision_speed
from ironclip import machine
from ironclip.benchmarking import towers
from ironclip.errors import ConfigError
from ironclip.training.cost_towers import Gradients, image_sizes


@pytest.fixture
def quick(monkeypatch):
    """Make the grid of products a matter of milliseconds."""
    monkeypatch.setattr(towers, "SQUARE", (64, 64, 64))
    monkeypatch.setattr(machine, "OPERATIONS_A_ROUND", 1.0)


@pytest.mark.parametrize("vision", [{}, {"patch_size": 16, "layers": 3, "head_width": 16}])
def test_counted_operations_equal_those_of_an_independent_counter(tiny_clip, pixels, vision):
    model = tiny_clip(vision=vision).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        towers.differentiate(model.embed_image, pixels)
    assert image_sizes(model.visual).operations(Gradients.PIXELS, rows=len(pixels)) == counter.get_total_flops()


def test_the_grid_holds_the_square_and_the_products_of_the_tower(tiny_clip):
    # 17 tokens of width 64, patches of 8 x 8; forward and backward.
    shapes = towers.product_shapes(tiny_clip().visual, 2)
    assert shapes[0] == (4096, 4096, 4096)
    forward = {(34, 192, 64), (34, 64, 64), (34, 256, 64), (34, 64, 256), (32, 64, 192)}
    assert set(shapes[1:]) == forward | {(rows, columns, inner) for rows, inner, columns in forward}


@pytest.mark.usefixtures("quick")
def test_ratios_follow_from_times(tiny_clip):
    model = tiny_clip()
    speed = towers.measure(model, tiny_clip(seed=0).visual, batch=2, rounds=2)
    assert speed.over_float32 == speed.stock_float32 / speed.fast
    assert speed.over_autocast == speed.stock_autocast / speed.fast
    assert speed.share == pytest.approx(speed.operations / speed.fast / speed.peak)
    assert speed.peak_shape in towers.product_shapes(model.visual, 2)


def test_a_tower_without_fast_path_is_refused(tiny_clip):
    model = tiny_clip(fast=False)
    with pytest.raises(ConfigError, match="switched off"):
        towers.measure(model, model.visual, batch=2, rounds=1)


@pytest.mark.usefixtures("quick")
def test_it_prints_one_json_line(tiny_clip, monkeypatch, capsys):
    model = tiny_clip()
    monkeypatch.setattr(vision_speed, "load_model", lambda source: model)
    monkeypatch.setattr(vision_speed.open_clip, "create_model", lambda name: model.clip)
    monkeypatch.setattr(sys, "argv", ["vision_speed", "--batch", "2", "--rounds", "1"])
    vision_speed.main()
    line = json.loads(capsys.readouterr().out)
    assert line["benchmark"] == "vision_speed"
    assert line["threads"] == torch.get_num_threads()
    assert {"over_float32", "over_autocast", "share", "peak", "processor"} <= line.keys()
