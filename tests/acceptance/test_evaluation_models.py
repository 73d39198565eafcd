"""What the items train, bound and count is right, and notices what is wrong."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from acceptance.evaluation_convnet import Images, fitted
from acceptance.evaluation_sandwich import Small, certified_margin
from acceptance.evaluation_tuned import Attacked

from acceptance import convnet, evaluation_natural, evaluation_sandwich, evaluation_tuned, evaluation_uncertainty
from ironclip.attacks.threat_model import ThreatModel
from ironclip.models.zero_shot import PythonClassifier


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def coloured(count: int, side: int, seed: int = 0) -> Images:
    """Images whose class is the channel that is brightest, and noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=random)
    pixels = 0.6 * torch.rand(count, 3, side, side, generator=random)
    pixels[torch.arange(count), labels] += 0.3
    return Images(pixels, labels, tuple(map(str, range(count))))


def right(net: torch.nn.Module, images: Images) -> float:
    with torch.no_grad():
        return (net(images.pixels).argmax(dim=1) == images.labels).double().mean().item()


def test_training_learns_and_says_the_same_twice_whatever_the_global_state():
    images, found = coloured(256, 32), []
    for _ in range(2):
        net = convnet.ConvNet()
        torch.rand(3)
        fitted(net, images, epochs=4, eps=8 / 255, seed=0)
        found.append(net)
    assert right(found[0], coloured(100, 32, seed=1)) > 0.9
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_user_s_file_finds_its_weights_beside_it(tmp_path, monkeypatch):
    net = convnet.ConvNet()
    torch.save(net.state_dict(), tmp_path / "robust.pt")
    monkeypatch.setattr(convnet, "HERE", tmp_path)
    again = convnet.robust()
    assert not again.training
    assert torch.equal(again.classes.weight, net.classes.weight)


def margins(net: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = net(pixels).double().detach()
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def small() -> Small:
    net = Small()
    fitted(net, coloured(64, evaluation_sandwich.SIDE), epochs=2, eps=0.0, seed=1)
    return net


def test_the_bound_is_the_margin_itself_where_nothing_moves():
    net, images = small(), coloured(20, evaluation_sandwich.SIDE)
    exact = margins(net, images.pixels, images.labels)
    torch.testing.assert_close(certified_margin(net, images.pixels, images.labels, 0.0), exact, atol=1e-5, rtol=0)


def test_no_corner_of_the_ball_lies_below_the_bound_and_the_bound_is_not_empty():
    net, images, eps = small(), coloured(20, evaluation_sandwich.SIDE), 1 / 255
    bound = certified_margin(net, images.pixels, images.labels, eps)
    random = torch.Generator().manual_seed(0)
    worst = margins(net, images.pixels, images.labels)
    clean = worst.clone()
    leaf = images.pixels.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(leaf).gather(1, images.labels[:, None]).sum(), leaf)
    signs = [-gradient.sign(), *(torch.randn(leaf.shape, generator=random).sign() for _ in range(50))]
    for sign in signs:
        worst = torch.minimum(worst, margins(net, (images.pixels + eps * sign).clamp(0, 1), images.labels))
    assert (bound <= worst + 1e-5).all()
    assert (bound < clean).all()
    # Of what the best of these corners takes, the bound gives away no more than three times as much.
    assert ((clean - bound) < 4 * (clean - worst)).all()


def test_a_linear_net_is_bounded_exactly():
    net = small()
    with torch.no_grad():
        net.hidden.bias += 1000  # every unit is on, and a constant is what they share
    images, eps = coloured(10, evaluation_sandwich.SIDE), 4 / 255
    weight = 4 * (net.classes.weight @ net.hidden.weight).double().detach()
    flat, found = images.pixels.flatten(1).double(), torch.full((10,), torch.inf, dtype=torch.float64)
    low, high = (flat - eps).clamp(min=0), (flat + eps).clamp(max=1)
    for rival in range(evaluation_sandwich.CLASSES):
        slope = weight[images.labels] - weight[rival]
        moved = torch.where(slope > 0, low, high)
        logits = net.double()(moved.view_as(images.pixels)).detach()
        gap = logits.gather(1, images.labels[:, None])[:, 0] - logits[:, rival]
        found = torch.where(images.labels == rival, found, torch.minimum(found, gap))
    torch.testing.assert_close(certified_margin(net, images.pixels, images.labels, eps), found, atol=1e-6, rtol=0)


def test_uncertainty_is_measured_in_shares_of_the_largest():
    even = evaluation_uncertainty.measured(np.full((3, 4), 20.0), 100.0)
    assert even["entropy"] == pytest.approx(1)
    # Concentrations of e^(1.2 / 0.07) each: (K - 1) / (2 a0) nats of mutual information.
    assert even["information"] == pytest.approx(3 / (8 * math.exp(1.2 / 0.07)) / math.log(4), rel=1e-3)
    assert evaluation_uncertainty.measured(np.array([[40.0, 0, 0, 0]]), 100.0)["entropy"] < 1e-6


def test_errors_are_those_of_each_corruption():
    """Two kinds of three images each: the first kind all right at severity 1, and one right at severity 2."""
    answers = ([0, 1, 2, 1, 1, 1], [0, 0, 0, 1, 1, 2])
    logits = [np.eye(3)[row] for row in answers]
    found = evaluation_uncertainty.corruption_errors(logits, np.array([0, 1, 2]), ["fog", "snow"])
    assert found == {"fog": [0, pytest.approx(2 / 3)], "snow": [pytest.approx(2 / 3), pytest.approx(1 / 3)]}


def test_the_direction_is_that_of_the_ranks():
    for means, rank in (([0.1, 0.2, 0.9], 1), ([0.9, 0.2, 0.1], -1), ([0.1, 0.3, 0.2], 0.5)):
        assert evaluation_uncertainty._figure("claim", means, ["0", "1", "2"]).value == pytest.approx(rank)


def game() -> Attacked:
    images = coloured(40, 8)
    weight = torch.eye(3).repeat_interleave(64, dim=1) / 64
    classifier = PythonClassifier(lambda pixels: 50 * pixels.flatten(1) @ weight.T)
    return Attacked(classifier, images.pixels, images.labels, images.keys, ThreatModel(eps="1/255"))


def test_the_radius_is_the_first_that_leaves_so_few(monkeypatch):
    monkeypatch.setattr(evaluation_tuned, "SEARCH", torch.float32)
    monkeypatch.setattr(evaluation_tuned, "RADII", ("1/255", "36/255", "40/255", "90/255"))
    chosen = evaluation_tuned._at_a_share(game())
    assert chosen.threat.eps in ("36/255", "40/255")
    monkeypatch.setattr(evaluation_tuned, "RADII", ("1/255",))
    with pytest.raises(evaluation_tuned.CannotRunError, match="more than 27% at all of 1/255"):
        evaluation_tuned._at_a_share(game())


def test_an_audit_counts_what_falls(monkeypatch, tmp_path):
    """One harder attack that takes the first survivor, and a peer that takes another."""
    images = coloured(40, 8)
    samples = [
        SimpleNamespace(pixels=pixels, label=label, key=key)
        for pixels, label, key in zip(images.pixels, images.labels.tolist(), images.keys, strict=True)
    ]
    info = SimpleNamespace(dataset=samples, class_names=("r", "g", "b"), templates=("{}",))
    monkeypatch.setattr(evaluation_natural, "load_suite", lambda *_: SimpleNamespace(entry=lambda _: Opened(info)))
    monkeypatch.setattr(evaluation_natural, "limit", lambda dataset, count: Listed(dataset[:count]))
    monkeypatch.setattr(evaluation_natural.RunStore, "open", lambda run: Stored(images.keys))
    monkeypatch.setattr(evaluation_natural, "load_classifier", lambda *_: game().classifier)
    monkeypatch.setattr(evaluation_natural, "AUDITED", 10)
    monkeypatch.setattr(evaluation_natural, "HARDER", {"first": ((), 1)})
    monkeypatch.setattr(Attacked, "standing", lambda self, members, **settings: torch.arange(len(self.keys)) > 0)
    monkeypatch.setattr(evaluation_natural.peers, "pyautoattack", lambda *_, **__: torch.tensor([True, False, True]))
    counts = evaluation_natural.audited({"a": "one", "b": "other"}, "a", tmp_path, "cifar10")
    # Of ten images six were broken before.
    assert counts == {
        "images": 10,
        "before": 4,
        "transfer from b": 4,
        "first": 3,
        "pyautoattack standard": 2,
        "after": 2,
    }


class Opened:
    def __init__(self, info):
        self.info = info

    def open(self):
        return self.info


class Listed(list):
    @property
    def keys(self):
        return [sample.key for sample in self]


class Stored:
    """A run of one unit in which the first six images are broken."""

    def __init__(self, keys):
        self.keys = keys

    def units(self):
        return ["unit"]

    def record(self, unit):
        return SimpleNamespace(dataset="cifar10")

    def read_unit(self, unit):
        import pyarrow as pa

        return pa.table({"sample_id": list(self.keys), "broken": [index < 6 for index in range(len(self.keys))]})
