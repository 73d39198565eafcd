from __future__ import annotations

import random as python_random

import numpy as np
import pytest
import torch

from ironclip.randomness import SampleRandom, digest, rank_of

GOLDEN_DIGEST = "86dd345da2231a7ed371e500c2865b32"
GOLDEN_RANK = 17423110003010004371
GOLDEN_UNIFORM = [0.7935268878936768, 0.3067718744277954, 0.07871401309967041, 0.6551305651664734]
GOLDEN_NORMAL = [0.6929640769958496, 0.14953409135341644, 0.1524321585893631, -0.40414804220199585]

KEYS = [f"set/test/{index:05d}.png" for index in range(12)]


def test_digest_is_the_same_on_every_machine():
    """Stored runs and shards hang on these bytes: a change is a change of every published number."""
    assert digest(7, "key", "pgd|0", "start").hex() == GOLDEN_DIGEST
    assert rank_of("shard", "key") == GOLDEN_RANK
    assert rank_of("shard", "key") == int.from_bytes(digest("shard", "key")[:8], "big")


def test_digest_keeps_its_parts_apart():
    assert len({digest("a", "bc"), digest("ab", "c"), digest("abc"), digest("a", "b", "c")}) == 4
    assert digest(1, "x") == digest("1", "x")


def test_draws_are_the_same_on_every_machine():
    drawn = SampleRandom(7, ["key"], "pgd|0")
    np.testing.assert_array_equal(drawn.uniform((4,), 0, 1, "start")[0].numpy(), np.float32(GOLDEN_UNIFORM))
    np.testing.assert_allclose(drawn.normal((4,), "start")[0].numpy(), GOLDEN_NORMAL, rtol=1e-6)


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_a_sample_draws_the_same_in_any_company(draw):
    def drawn(streams: SampleRandom) -> torch.Tensor:
        return (
            streams.uniform((3, 4, 5), -0.1, 0.1, "start") if draw == "uniform" else streams.normal((3, 4, 5), "start")
        )

    whole = drawn(SampleRandom(0, KEYS, "s"))
    assert whole.shape == (12, 3, 4, 5)
    assert whole.dtype == torch.float32
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(drawn(SampleRandom(0, KEYS, "s").take(rows)), whole[rows])
    assert torch.equal(drawn(SampleRandom(0, [KEYS[3]], "s")), whole[[3]])
    assert torch.equal(drawn(SampleRandom(0, KEYS[::-1], "s")), whole.flip(0))
    assert torch.equal(drawn(SampleRandom(0, KEYS, "s")), whole)
    assert len({row.numpy().tobytes() for row in whole}) == 12


def test_every_part_of_the_name_changes_the_draw():
    streams = [
        (SampleRandom(0, ["k"], "s"), "p"),
        (SampleRandom(1, ["k"], "s"), "p"),
        (SampleRandom(0, ["l"], "s"), "p"),
        (SampleRandom(0, ["k"], "t"), "p"),
        (SampleRandom(0, ["k"], "s"), "q"),
        (SampleRandom(0, ["k"]), "p"),
    ]
    assert len({one.uniform((8,), 0, 1, purpose).numpy().tobytes() for one, purpose in streams}) == len(streams)


def test_a_generator_starts_afresh_each_time():
    streams = SampleRandom(3, KEYS)
    assert (
        streams.generator(2, "words").integers(1000, size=5).tolist()
        == streams.generator(2, "words").integers(1000, size=5).tolist()
    )


def test_uniform_and_normal_have_the_moments_that_they_should():
    streams = SampleRandom(0, [str(index) for index in range(200)])
    uniform = streams.uniform((100,), -2, 4, "u").double()
    assert uniform.min() >= -2
    assert uniform.max() < 4
    assert uniform.mean().item() == pytest.approx(1, abs=0.05)
    assert uniform.var().item() == pytest.approx(3, rel=0.03)
    normal = streams.normal((100,), "n").double()
    assert normal.mean().item() == pytest.approx(0, abs=0.03)
    assert normal.var().item() == pytest.approx(1, rel=0.03)
    # Samples are independent of each other, and so are purposes.
    assert torch.corrcoef(normal[:4]).fill_diagonal_(0).abs().max() < 0.4
    assert abs(torch.corrcoef(torch.stack([normal.flatten(), uniform.flatten()]))[0, 1]) < 0.03


def test_ranks_are_uniform():
    ranks = np.array([rank_of("order", 0, key) for key in range(2000)], dtype=np.float64) / 2**64
    assert ranks.min() >= 0
    assert ranks.max() < 1
    counts = np.histogram(ranks, bins=10, range=(0, 1))[0]
    assert counts.min() > 150
    assert counts.max() < 250


def test_no_sample_no_draw():
    nobody = SampleRandom(0, [])
    assert nobody.uniform((3, 2), 0, 1, "p").shape == (0, 3, 2)
    assert nobody.normal((3, 2), "p").shape == (0, 3, 2)
    assert nobody.take([]).keys == []


def test_global_random_states_are_neither_read_nor_written():
    def states() -> tuple[object, ...]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        return python_random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state().tolist()

    streams, before = SampleRandom(0, KEYS), states()
    first = streams.uniform((4,), 0, 1, "p"), streams.normal((4,), "p")
    assert states() == before
    torch.rand(1)
    python_random.random()
    np.random.rand()  # noqa: NPY002
    second = streams.uniform((4,), 0, 1, "p"), streams.normal((4,), "p")
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
