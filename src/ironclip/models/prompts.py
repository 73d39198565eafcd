"""Prompts: learned words before a text, learned tokens beside the patches, a learned frame around the pixels.

Tunable parts that leave every weight of the towers as it is. The towers read three things of them:

    text[0]    [M, W_text]    put between the start token and the text, so that the text moves back by M places
    text[k]    [M, W_text]    in their place before block k
    image[0]   [N, W_image]   appended to class token and patches, before the first norm
    image[k]   [N, W_image]   in their place before block k

Source: CoOp (Zhou et al., IJCV 2022, arXiv:2109.01134) for words, VPT and MaPLe (Jia et al., ECCV 2022; Khattak et al.,
CVPR 2023, arXiv:2210.03117) for deep prompts, TeCoA's code for the frame.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ironclip.errors import ConfigError
from ironclip.models.visual_prompt import PixelFrame
from ironclip.randomness import SampleRandom

if TYPE_CHECKING:
    from ironclip.models.clip import CLIPModel

logger = logging.getLogger(__name__)

STD = 0.02
"""Deviation of the drawn words and tokens of CoOp, MaPLe and FAP."""


class Prompts(nn.Module, ABC):
    """What a model's towers read beside their input.

    Attributes:
        words: What stands before and after a class name where the learned words take the place of a template; None
            where the templates stay.
        frame: Added to normalised images, or None.
    """

    def __init__(self, words: tuple[str, str] | None = None, frame: PixelFrame | None = None) -> None:
        super().__init__()
        self.words = words
        self.frame = frame

    @abstractmethod
    def text_layers(self) -> Sequence[Tensor]:
        """Return the learned words `[M, W_text]` a layer; none where the text tower is left alone."""

    @abstractmethod
    def image_layers(self) -> Sequence[Tensor]:
        """Return the learned tokens `[N, W_image]` a layer; none where there are none."""

    def plain(self) -> FreePrompts:
        """Return the same prompts as free tensors, which is all that the towers read: what is saved."""
        text = [layer.detach().clone() for layer in self.text_layers()]
        image = [layer.detach().clone() for layer in self.image_layers()]
        return FreePrompts(text, image, self.words, self.frame)


class FreePrompts(Prompts):
    """Prompts whose every layer is a parameter.

    Args:
        text: Words `[M, W_text]` a layer.
        image: Tokens `[N, W_image]` a layer.
        words: See `Prompts`.
        frame: See `Prompts`.
    """

    def __init__(
        self,
        text: Sequence[Tensor] = (),
        image: Sequence[Tensor] = (),
        words: tuple[str, str] | None = None,
        frame: PixelFrame | None = None,
    ) -> None:
        super().__init__(words, frame)
        self.text = nn.ParameterList([nn.Parameter(layer) for layer in text])
        self.image = nn.ParameterList([nn.Parameter(layer) for layer in image])

    def text_layers(self) -> Sequence[Tensor]:
        """Return the words a layer."""
        return list(self.text)

    def image_layers(self) -> Sequence[Tensor]:
        """Return the tokens a layer."""
        return list(self.image)


class CoupledPrompts(Prompts):
    """FAP's prompts: the towers' prompts are linear images of each other.

    The words of the input are free and the first tokens their image; from the next layer on the tokens are free, and
    the words of that layer theirs. Source: the published code of FAP, Zhou et al., NeurIPS 2024, arXiv:2403.14774.

    Args:
        context: Words of the input, `[M, W_text]`.
        tokens: Tokens of the layers after the first, `[M, W_image]` each.
        seed: Of the maps' draws, uniform in 1 / sqrt(width) as a linear layer's.
        words: See `Prompts`.
    """

    def __init__(
        self, context: Tensor, tokens: Sequence[Tensor], width: int, seed: int, words: tuple[str, str]
    ) -> None:
        super().__init__(words)
        self.context = nn.Parameter(context)
        self.tokens = nn.ParameterList([nn.Parameter(layer) for layer in tokens])
        self.to_image = _linear(context.shape[1], width, seed, "to image")
        self.to_text = nn.ModuleList(
            _linear(width, context.shape[1], seed, f"to text {layer}") for layer in range(1, len(tokens) + 1)
        )

    def text_layers(self) -> Sequence[Tensor]:
        """Return the free words, then the tokens' images."""
        return [self.context, *(to_text(layer) for to_text, layer in zip(self.to_text, self.tokens, strict=True))]

    def image_layers(self) -> Sequence[Tensor]:
        """Return the image of the words, then the free tokens."""
        return [self.to_image(self.context), *self.tokens]


def drawn_layers(count: int, length: int, width: int, seed: int, purpose: str, *, std: float = STD) -> list[Tensor]:
    """Draw `count` layers `[length, width]` from N(0, std^2), a function of seed and purpose."""
    random = SampleRandom(seed, ["prompts"])
    return [std * random.normal((length, width), f"{purpose} {layer}")[0] for layer in range(count)]


def words_of_template(model: CLIPModel, template: str, length: int) -> tuple[Tensor, tuple[str, str]]:
    """Take the first words of a template out of it, to be learned.

    Args:
        model: Whose embeddings of the words are taken.
        template: With one `{}`.
        length: How many words, M.

    Returns:
        Their embeddings `[M, W_text]`, and what is left before and after the class name.

    Raises:
        ConfigError: The template has fewer words before its `{}`, or one of them is several tokens.
    """
    head, _, after = template.partition("{}")
    words = head.split()
    if len(words) < length:
        raise ConfigError(
            f'the template "{template}" has {len(words)} words before its {{}}, of which {length} are to be learned.',
            "Give a longer template, or set method.length lower.",
        )
    ids = model.tokenize([" ".join(words[:length])])[0]
    if int(ids.argmax()) != length + 1:
        raise ConfigError(
            f'the first {length} words of the template "{template}" are {int(ids.argmax()) - 1} tokens.',
            "Give a template that begins with plain words, such as a photo of a {}.",
        )
    embedding = text_tower(model.clip).token_embedding.weight[ids[1 : length + 1]].detach().clone()
    rest = " ".join(words[length:])
    return embedding, (f"{rest} " if rest else "", after)


def check_length(model: CLIPModel, length: int) -> None:
    """Refuse learned words that leave no room for a start token, a word and an end token.

    Raises:
        ConfigError: There are that many, or none.
    """
    room = len(text_tower(model.clip).positional_embedding) - 3
    if not 1 <= length <= room:
        raise ConfigError(f"{length} learned words in a text of {room + 3} tokens.", f"Give from 1 to {room}.")


def prompt_depth(model: CLIPModel, wanted: int) -> int:
    """Return how many layers of both towers are prompted: as many as wanted, or as there are in the shorter one."""
    layers = min(len(tower.transformer.resblocks) for tower in (model.clip.visual, text_tower(model.clip)))
    depth = min(wanted, layers)
    logger.info("prompt depth %d: %d asked for, %d layers in the shorter tower.", depth, wanted, layers)
    return depth


def text_tower(clip: Any) -> Any:
    """Return the module that holds open_clip's text tower: the model itself, or its `text`."""
    return getattr(clip, "text", clip)


def text_width(model: CLIPModel) -> int:
    """Return the width of the text tower."""
    return int(text_tower(model.clip).token_embedding.weight.shape[1])


def image_width(model: CLIPModel) -> int:
    """Return the width of the image tower."""
    return int(model.clip.visual.class_embedding.shape[0])


def _linear(inputs: int, outputs: int, seed: int, purpose: str) -> nn.Linear:
    """Return a linear layer drawn as torch draws one, but from the seed."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    random, bound = SampleRandom(seed, ["prompts"]), inputs**-0.5
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(random.uniform(parameter.shape, -bound, bound, f"{purpose} {name}")[0])
    return layer
