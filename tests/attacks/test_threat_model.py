from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from ironclip.attacks.threat_model import ThreatModel, parse_eps
from ironclip.errors import ConfigError, ValueRangeError
from ironclip.randomness import SampleRandom
from ironclip.registry import build
from made_up_images import natural_like
from oracles.affine import worst_delta_l2

LINF, L2 = ThreatModel(eps="4/255"), ThreatModel(norm="l2", eps="0.5")


def streams(count: int, seed: int = 0) -> SampleRandom:
    return SampleRandom(seed, [f"key {index}" for index in range(count)])


# Radius


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        ("2/255", Fraction(2, 255)),
        ("4/510", Fraction(2, 255)),
        (" 2/255 ", Fraction(2, 255)),
        ("0.5", Fraction(1, 2)),
        (0.5, Fraction(1, 2)),
        (4 / 255, Fraction(4, 255)),
        (0.0157, Fraction(157, 10000)),
        (1e-9, Fraction(1, 10**9)),
        (0, Fraction(0)),
        (1, Fraction(1)),
        (np.float32(0.25), Fraction(1, 4)),
    ],
)
def test_radius_is_read_exactly(written, exact):
    assert parse_eps(written) == exact
    assert ThreatModel(eps=written).radius == float(np.float32(float(exact)))


def test_the_same_radius_is_the_same_game_however_it_is_written():
    games = {ThreatModel(eps=eps).hash for eps in ("2/255", "4/510", " 2/255", 2 / 255)}
    assert len(games) == 1
    assert len({ThreatModel(eps=eps).hash for eps in ("4/255", "0.0157", "0.031", 0.0157)}) == 3
    assert ThreatModel(eps=0.5).hash == ThreatModel(eps="0.5").hash == ThreatModel(eps="1/2").hash


@pytest.mark.parametrize(
    ("eps", "problem", "remedy"),
    [
        (4, r"threat\.eps is 4, expected a number in \[0, 1\], since pixels", '4 of 255 levels write "4/255"'),
        (4.0, r"threat\.eps is 4, expected a number in \[0, 1\]", '4 of 255 levels write "4/255"'),
        ("4", r"threat\.eps is 4, expected", '4 of 255 levels write "4/255"'),
        ("0.5e1", r"threat\.eps is 0\.5e1", 'write "5/255"'),
        ("1.5", r"threat\.eps is 1\.5, expected", 'write "1/170"'),
        ("-1/255", r"threat\.eps is -1/255, expected a number of at least 0", "4/255"),
        ("x", r'threat\.eps is "x", expected a number or a fraction', "4/255"),
        ("4/0", r'threat\.eps is "4/0"', "4/255"),
        ("", r'threat\.eps is ""', "4/255"),
        (float("nan"), r'threat\.eps is "nan"', "4/255"),
        (float("inf"), r'threat\.eps is "inf"', "4/255"),
        (None, r'threat\.eps is "None"', "4/255"),
    ],
)
def test_refused_radii_say_what_to_write(eps, problem, remedy):
    with pytest.raises(ValueRangeError, match=problem) as caught:
        ThreatModel(eps=eps)
    assert remedy in caught.value.remedy


def test_every_advised_radius_is_accepted():
    for eps in ("2", "255", "1.5", "7/4"):
        with pytest.raises(ValueRangeError) as caught:
            ThreatModel(eps=eps)
        advised = caught.value.remedy.split('"')[1]
        assert parse_eps(advised) == Fraction(eps) / 255


def test_l2_has_no_upper_bound_but_is_not_negative():
    assert ThreatModel(norm="l2", eps="128/255").radius == float(np.float32(128 / 255))
    assert ThreatModel(norm="l2", eps=3).radius == 3
    with pytest.raises(ValueRangeError, match="at least 0"):
        ThreatModel(norm="l2", eps=-1)


def test_unknown_norm_is_refused():
    with pytest.raises(ConfigError, match=r'threat\.norm is "l1", expected "linf" or "l2"'):
        ThreatModel(norm="l1")


@pytest.mark.parametrize("eps", ["2/255", 0.5, 1])
def test_recipes_build_it_from_a_text_or_a_number(eps):
    assert build(ThreatModel, {"norm": "linf", "eps": eps}, where="threat") == ThreatModel(eps=eps)


def test_recipes_are_told_what_is_wrong():
    with pytest.raises(ValueRangeError, match="For 4 of 255 levels"):
        build(ThreatModel, {"eps": 4}, where="threat")
    with pytest.raises(ConfigError, match=r'unknown key "epsilon".*"eps"'):
        build(ThreatModel, {"epsilon": "4/255"}, where="threat")
    with pytest.raises(ConfigError, match='unknown key "radius"'):
        build(ThreatModel, {"radius": 0.5}, where="threat")


# Record


def test_every_rule_changes_the_hash():
    others = {
        "norm": "l2",
        "eps": "5/255",
        "acting": "model_input",
        "goal": "targeted",
        "knowledge": "score",
        "label_source": "model prediction",
        "integer": True,
        "adaptive_level": "L1",
    }
    assert set(others) == {name for name, field in ThreatModel.__dataclass_fields__.items() if field.init}
    hashes = {ThreatModel().hash} | {ThreatModel(**{name: value}).hash for name, value in others.items()}
    assert len(hashes) == len(others) + 1
    assert ThreatModel().hash == ThreatModel().hash


def test_record_holds_the_radius_as_written_and_as_used():
    record = ThreatModel(eps="8/510").record()
    assert record["eps"] == "8/510"
    assert record["eps_exact"] == "4/255"
    assert record["eps_float"] == float(np.float32(4 / 255))
    assert record["norm"] == "linf"


def test_caption_is_one_line():
    assert ThreatModel(eps="2/255").caption((32, 32)) == "Linf 2/255, native 32x32, white-box"
    assert ThreatModel(eps=0.5).caption() == "Linf 1/2, native, white-box"
    threat = ThreatModel(norm="l2", eps="0.5", acting="model_input", goal="targeted", integer=True, knowledge="score")
    assert threat.caption((224, 224)) == "L2 0.5, model input 224x224, score, targeted, 8-bit"


# Geometry


def test_projection_in_linf_is_the_nearest_point_of_ball_and_box():
    origin = natural_like(5, 8)
    far = origin + 0.1 * torch.randn(origin.shape, generator=torch.Generator().manual_seed(0))
    near = LINF.project(far, origin)
    x, radius = origin.numpy(), np.float32(4 / 255)
    assert np.array_equal(near.numpy(), np.clip(np.clip(far.numpy(), x - radius, x + radius), 0, 1))
    assert LINF.contains(near, origin).all()
    assert torch.equal(LINF.project(near, origin), near)


def test_projection_in_l2_is_feasible_and_leaves_inner_points_alone():
    origin = natural_like(5, 8)
    random = torch.Generator().manual_seed(0)
    far = origin + torch.randn(origin.shape, generator=random)
    assert L2.contains(L2.project(far, origin), origin).all()
    inner = (origin + 0.01 * torch.randn(origin.shape, generator=random)).clamp(0, 1)
    torch.testing.assert_close(L2.project(inner, origin), inner, rtol=0, atol=1e-7)
    assert torch.equal(L2.project(origin, origin), origin)


def test_projection_in_l2_keeps_the_direction_where_the_box_is_far():
    origin = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    delta = torch.randn(origin.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = L2.project(origin + delta, origin)
    torch.testing.assert_close(near - origin, 0.5 * delta / delta.norm(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_projection_and_start_of_a_row_ignore_the_others(threat):
    origin = natural_like(16, 8)
    far = origin + torch.randn(origin.shape, generator=torch.Generator().manual_seed(0))
    spoiled = far.clone()
    spoiled[3] = torch.nan
    keep = torch.arange(16) != 3
    assert torch.equal(threat.project(spoiled, origin)[keep], threat.project(far, origin)[keep])
    whole = threat.random_start(origin, streams(16))
    rows = torch.tensor([11, 2])
    assert torch.equal(threat.random_start(origin[rows], streams(16).take(rows)), whole[rows])


@pytest.mark.parametrize("threat", [LINF, L2, ThreatModel(eps="0"), ThreatModel(norm="l2", eps="3")])
def test_random_start_lies_in_ball_and_box(threat):
    origin = natural_like(32, 8)
    start = threat.random_start(origin, streams(32))
    assert threat.contains(start, origin).all()
    assert torch.equal(start, threat.random_start(origin, streams(32)))
    if threat.radius:
        assert (start != origin).flatten(1).any(dim=1).all()
        assert not torch.equal(start, threat.random_start(origin, streams(32, seed=1)))


def test_unclipped_start_leaves_the_box_and_not_the_ball():
    """D30, which `pgd_v` reproduces on purpose."""
    origin = torch.zeros(8, 3, 8, 8)
    start = LINF.random_start(origin, streams(8), clip=False)
    assert start.min() < 0
    assert not LINF.contains(start, origin).any()
    assert (LINF.distance(start, origin) <= LINF.radius).all()
    assert torch.equal(start.clamp(0, 1), LINF.random_start(origin, streams(8)))


def test_random_start_in_linf_is_uniform_and_centred():
    """D35: a start drawn from [0, eps] brightens every image."""
    origin = torch.full((400, 3, 8, 8), 0.5)
    delta = (LINF.random_start(origin, streams(400)) - origin).double() / LINF.radius
    assert abs(delta.mean()) < 0.02
    assert delta.square().mean().item() == pytest.approx(1 / 3, rel=0.02)
    shares = torch.histc(delta.float(), bins=4, min=-1, max=1) / delta.numel()
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0.03, atol=0)


def test_random_start_in_l2_lies_on_the_sphere_and_has_no_preferred_direction():
    origin = torch.full((400, 3, 8, 8), 0.5)
    delta = (L2.random_start(origin, streams(400)) - origin).double()
    torch.testing.assert_close(
        delta.flatten(1).norm(dim=1), torch.full((400,), 0.5, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert delta.mean(dim=0).norm() < 3 * 0.5 / 400**0.5
    assert abs(delta.sum() / delta.norm(p=1)) < 0.02


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_steepest_ascent_beats_every_other_direction_of_unit_norm(threat):
    random = torch.Generator().manual_seed(0)
    gradient = torch.randn(20, 3, 4, 4, generator=random, dtype=torch.float64)
    best = threat.steepest_ascent(gradient)
    zero = torch.zeros_like(gradient)
    torch.testing.assert_close(threat.distance(best, zero), torch.ones(20, dtype=torch.float64))
    others = torch.randn(20, 3, 4, 4, generator=random, dtype=torch.float64)
    others = others / threat.distance(others, zero).view(-1, 1, 1, 1)
    assert ((gradient * best).sum((1, 2, 3)) > (gradient * others).sum((1, 2, 3))).all()


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-20, 1e-12, 1.0, 1e30])
def test_steepest_ascent_in_l2_has_unit_length_at_any_confidence(size):
    """The gradient of cross-entropy is 1e-20 at a margin of 45; a guard of 1e-12 would stop the attack there."""
    gradient = size * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    lengths = L2.steepest_ascent(gradient).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_no_gradient_is_no_direction(threat):
    assert torch.equal(threat.steepest_ascent(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))


def test_contains_measures_in_float64_with_the_stated_tolerance():
    origin = torch.full((4, 3, 2, 2), 0.5, dtype=torch.float64)
    radius = LINF.radius
    tolerance = radius * 1e-5 + 1e-7
    moved = origin.clone()
    moved[0, 0, 0, 0] += radius
    moved[1, 2, 1, 1] -= radius + 0.99 * tolerance
    moved[2, 1, 0, 1] += radius + 1.01 * tolerance
    moved[3] += 2 * radius
    assert LINF.contains(moved, origin).tolist() == [True, True, False, False]
    length = torch.tensor([0.5, 0.5 * (1 + 0.9e-5), 0.5 * (1 + 1.1e-5), 0.6], dtype=torch.float64)
    assert L2.contains(origin + (length / 12**0.5).view(-1, 1, 1, 1), origin).tolist() == [True, True, False, False]


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_contains_refuses_the_outside_of_the_box_and_what_is_no_number(threat):
    origin = torch.zeros(6, 3, 4, 4)
    origin[1] = 1
    moved = origin.clone()
    moved[0, 0, 0, 0], moved[1, 0, 0, 0] = -1e-8, 1 + 2e-7
    moved[2, 1, 1, 1], moved[3, 1, 1, 1], moved[4, 1, 1, 1] = torch.nan, torch.inf, -torch.inf
    assert threat.contains(moved, origin).tolist() == [False] * 5 + [True]


def test_an_8_bit_adversary_must_stay_on_the_grid():
    threat = ThreatModel(eps="2/255", integer=True)
    origin = torch.tensor([0, 100, 255]).float().view(1, 3, 1, 1).repeat(3, 1, 2, 2) / 255
    moved = origin.clone()
    moved[1] += torch.tensor([2.0, -1.0, -2.0]).view(3, 1, 1) / 255
    moved[2, 0] += 0.5 / 255
    assert threat.contains(moved, origin).tolist() == [True, True, False]
    assert ThreatModel(eps="2/255").contains(moved, origin).all()


def test_distance_of_nothing_is_nothing():
    empty = torch.empty(0, 3, 4, 4)
    for threat in (LINF, L2):
        assert threat.distance(empty, empty).shape == (0,)
        assert threat.contains(empty, empty).shape == (0,)
        assert threat.random_start(empty, streams(0)).shape == empty.shape


def test_projection_in_l2_is_not_the_nearest_point_where_the_box_is_active():
    """Documented: scaled, then clipped. The oracle's point does better, hence 0.99 and not 1 in the tests of PGD."""
    slope = np.array([3.0, 1.0, 0.5])
    x = np.array([0.1, 0.9, 0.9])
    best = worst_delta_l2(slope, x, 0.5)
    origin = torch.tensor(x).view(1, 3, 1, 1)
    step = L2.project(origin - 0.5 * torch.tensor(slope / np.linalg.norm(slope)).view(1, 3, 1, 1), origin)
    assert np.linalg.norm(best) == pytest.approx(0.5)
    assert slope @ best < slope @ (step - origin).flatten().numpy() - 0.01
