"""The run: it learns, it resumes to the bit, and it may be made longer only while nothing depends on its length."""

from __future__ import annotations

import json

import pytest
import torch

from ironclip.errors import ResumeError
from ironclip.pretraining.images import train_images


class Stop(Exception):
    pass


def run(tiny_clip, corpus, settings, out, *, stop_at=None, key="key", seed=0):
    model = tiny_clip()

    def progress(state):
        if state.step == stop_at:
            raise Stop

    accuracy = train_images(model, corpus, settings, out, seed=seed, key=key, progress=progress)
    return model, accuracy


def weights(model):
    return {name: value.clone() for name, value in model.clip.state_dict().items()}


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def losses(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["toy"] + line["said"] for line in lines if "toy" in line]


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_run_that_broke_off_ends_as_if_it_had_not(tiny_clip, section, read, tmp_path, optimiser, precision):
    settings = section(optimiser=optimiser, precision=precision)
    corpus = read(settings)
    whole, accuracy = run(tiny_clip, corpus, settings, tmp_path / "whole")
    for stop in (3, 7):  # before and after the first checkpoint
        with pytest.raises(Stop):
            run(tiny_clip, corpus, settings, tmp_path / "broken", stop_at=stop)
    resumed, same = run(tiny_clip, corpus, settings, tmp_path / "broken")
    assert equal(weights(whole), weights(resumed))
    assert same == accuracy
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def test_it_learns_and_touches_no_text(tiny_clip, section, read, tmp_path):
    settings = section(steps=60, lr=3e-3, patches=1.0, toy={"mix": 0.0, "zoom": 1.0, "colour": 0.0})
    before = weights(tiny_clip())
    model, accuracy = run(tiny_clip, read(settings), settings, tmp_path)
    seen = losses(tmp_path)
    assert sum(seen[-6:]) < 0.7 * sum(seen[:6])
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("visual.")} | {"logit_scale"}
    assert set(accuracy) == {"toy", "toy per class"}
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_a_run_may_be_made_longer_before_its_rate_falls(tiny_clip, section, read, tmp_path):
    short, long = section(steps=12), section(steps=20)  # the rate falls from step 9, from step 15
    corpus = read(short)
    whole, _ = run(tiny_clip, corpus, long, tmp_path / "whole")
    with pytest.raises(Stop):
        run(tiny_clip, corpus, short, tmp_path / "longer", stop_at=6)
    longer, _ = run(tiny_clip, corpus, long, tmp_path / "longer")
    assert equal(weights(whole), weights(longer))
    run(tiny_clip, corpus, short, tmp_path / "done")
    with pytest.raises(ResumeError, match=r"step 12 of 12, where the learning rate had begun to fall(.|\n)*steps=12"):
        run(tiny_clip, corpus, long, tmp_path / "done")


def test_another_run_is_refused(tiny_clip, section, read, tmp_path):
    settings = section(steps=4, warmup_steps=1)
    corpus = read(settings)
    run(tiny_clip, corpus, settings, tmp_path)
    with pytest.raises(ResumeError, match="another recipe"):
        run(tiny_clip, corpus, settings, tmp_path, key="other")


def test_the_result_is_the_running_mean(tiny_clip, section, read, tmp_path):
    """Against the mean of the weights after each step, taken by hand in float64."""
    settings = section(steps=5, warmup_steps=1, ema=0.5)
    corpus, model, seen = read(settings), tiny_clip(), []
    watched = ("visual.conv1.weight", "logit_scale")

    def keep(_):
        seen.append({name: model.clip.state_dict()[name].double() for name in watched})

    start = {name: model.clip.state_dict()[name].double() for name in watched}
    train_images(model, corpus, settings, tmp_path, seed=0, key="key", progress=keep)
    for name in watched:
        mean = start[name]
        for step, now in enumerate(seen):
            decay = min(0.5, (1 + step) / (10 + step))
            mean = decay * mean + (1 - decay) * now[name]
        torch.testing.assert_close(model.clip.state_dict()[name].double(), mean, rtol=1e-5, atol=1e-6)


def test_captions_of_the_same_batch_are_no_wrong_answers(section, read, tiny_clip):
    from ironclip.pretraining.texts import embed_captions

    said = read(section()).parts[1]
    rows = {caption: row for row, caption in enumerate(caption for own in said.captions for caption in own)}
    bank = embed_captions(said, lambda texts: torch.tensor([[float(rows[text])] for text in texts]))
    images = torch.tensor([4, 7])
    for step in range(30):
        drawn = bank.draw("said", images, 3, 0, step).flatten().long()
        shown = [row // 2 for row in drawn.tolist()]
        assert shown[:2] == [4, 7]
        assert len(set(shown)) == len(shown) == 5
