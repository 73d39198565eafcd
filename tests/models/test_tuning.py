from __future__ import annotations

import pytest

from ironclip.errors import ConfigError
from ironclip.models.tuning import Tunable, tuned_parameters


def test_the_towers_are_all_parameters_but_the_scale(tiny_clip):
    model = tiny_clip()
    vision, text = tuned_parameters(model, Tunable.VISION), tuned_parameters(model, Tunable.TEXT)
    assert not set(vision) & set(text)
    assert set(vision) | set(text) | {"logit_scale"} == {name for name, _ in model.clip.named_parameters()}
    assert set(vision) == {f"visual.{name}" for name, _ in model.visual.named_parameters()}
    assert set(tuned_parameters(model, Tunable.BOTH)) == set(vision) | set(text)


def test_names_are_those_of_the_state_dict_in_one_order(tiny_clip):
    model = tiny_clip()
    state = model.clip.state_dict()
    both = tuned_parameters(model, Tunable.BOTH)
    assert list(both) == [name for name in state if name in both]
    assert all(parameter.data_ptr() == state[name].data_ptr() for name, parameter in both.items())


@pytest.mark.parametrize("part", [Tunable.PROMPTS, Tunable.ADAPTERS])
def test_parts_that_the_model_lacks_are_refused(part, tiny_clip):
    with pytest.raises(ConfigError, match=f"this model has no {part.value} to tune") as caught:
        tuned_parameters(tiny_clip(), part)
    assert "tower" in caught.value.remedy
