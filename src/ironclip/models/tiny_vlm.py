"""tiny-vlm: a small decoder that reads the frozen patch tokens of a CLIP tower, and says what it sees.

The ground on which attacks on what stands on a tower are shown: LLaVA's form (a projector, then causal attention over
image tokens, prompt and answer) at a size that two CPU cores train. Its words are its own, from the texts that it was
trained on. Source: Liu et al., NeurIPS 2023, arXiv:2304.08485; the sizes are ours.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.errors import ConfigError, ShapeError
from ironclip.files import write_atomically
from ironclip.models._files import Folder, read_json
from ironclip.models._weights import fit_exactly, read_weights, write_tensors
from ironclip.models.clip import CLIPModel
from ironclip.models.preprocessing import Preprocessing
from ironclip.models.vlm import IGNORED, Lesson, VisionLanguageModel, check_texts, write_lesson
from ironclip.registry import build

CONFIG = "tiny_vlm.json"
WEIGHTS = "tiny_vlm.safetensors"

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]")
_NEVER = -1e4  # a logit that no softmax sees
_BEFORE_A_MARK = re.compile(r" ([.,;:?!])")


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids; four stand before all: padding, the end of an answer, an unknown word, "now answer".

    Attributes:
        words: Lower-case, in the order of their ids.
    """

    words: tuple[str, ...]

    PADDING = 0
    END = 1
    UNKNOWN = 2
    ANSWER = 3
    SPECIAL = 4

    @classmethod
    def of(cls, texts: Sequence[str], *, at_least: int = 1) -> Vocabulary:
        """Gather the words that occur in texts so many times, sorted, so that the order of the texts says nothing."""
        counts: dict[str, int] = defaultdict(int)
        for text in texts:
            for word in _WORD.findall(text.lower()):
                counts[word] += 1
        return cls(tuple(sorted(word for word, count in counts.items() if count >= at_least)))

    def __len__(self) -> int:
        return self.SPECIAL + len(self.words)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text's words."""
        return [self._places.get(word, self.UNKNOWN) for word in _WORD.findall(text.lower())]

    def text(self, ids: Sequence[int]) -> str:
        """Return what ids say up to the end, marks set close to the word before."""
        said: list[str] = []
        for one in ids:
            if one == self.END:
                break
            if one >= self.SPECIAL:
                said.append(self.words[one - self.SPECIAL])
        return _BEFORE_A_MARK.sub(r"\1", " ".join(said))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: self.SPECIAL + place for place, word in enumerate(self.words)}


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """How large the decoder is.

    Attributes:
        width: Of its tokens.
        layers: Blocks.
        heads: A block; they share the width.
        length: Longest prompt and answer together, in words.
        layer: After which block of the tower the patch tokens are taken; -2 is the last but one, as in LLaVA.
    """

    width: int = 192
    layers: int = 4
    heads: int = 3
    length: int = 64
    layer: int = -2

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.length) < 1 or self.width % self.heads:
            raise ConfigError(
                f"decoder: width {self.width}, {self.layers} layers, {self.heads} heads, length {self.length}.",
                "Give positive numbers, and a width that the heads can share.",
            )


class _Block(nn.Module):
    """Causal attention and a layer of two products, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return x


class Decoder(nn.Module):
    """Image tokens `[B, P, W]` and ids `[B, L]` to logits `[B, L, V]`; place i is said by all before it.

    Args:
        sizes: Its sizes.
        patches: P.
        tower_width: W.
        vocabulary: V.
    """

    def __init__(self, sizes: DecoderSizes, *, patches: int, tower_width: int, vocabulary: int) -> None:
        super().__init__()
        width = sizes.width
        self.patches = patches
        unsaid = torch.tensor([Vocabulary.PADDING, Vocabulary.UNKNOWN, Vocabulary.ANSWER])
        self.register_buffer("unsaid", unsaid, persistent=False)
        self.unsaid: Tensor
        self.look = nn.Sequential(
            nn.LayerNorm(tower_width), nn.Linear(tower_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(patches + sizes.length, width))
        self.blocks = nn.Sequential(*(_Block(width, sizes.heads) for _ in range(sizes.layers)))
        self.norm = nn.LayerNorm(width)

    def draw(self, seed: int) -> None:
        """Draw all weights anew, a function of the seed; no global random state is touched."""
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=random))
                else:
                    parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            self.look[0].weight.fill_(1.0)  # type: ignore[operator]  # nn.Sequential hides that it is a norm

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """Run it; shapes as above."""
        x = torch.cat([self.look(image), self.words(ids)], dim=1)
        x = self.norm(self.blocks(x + self.places[: x.shape[1]]))
        # The last image token says the first word; what the last word would be followed by, nobody asks.
        logits: Tensor = x[:, self.patches - 1 : -1] @ self.words.weight.T
        return logits.index_fill(2, self.unsaid, _NEVER)


class TinyVLM(VisionLanguageModel):
    """A decoder on a CLIP tower.

    Args:
        clip: The tower's model; frozen here.
        vocabulary: The words.
        sizes: The decoder's sizes.
        seed: Of its first weights.
    """

    def __init__(self, clip: CLIPModel, vocabulary: Vocabulary, sizes: DecoderSizes, *, seed: int = 0) -> None:
        super().__init__()
        self.vocabulary, self.sizes = vocabulary, sizes
        patches, width = _tower_sizes(clip)
        self.decoder = Decoder(sizes, patches=patches, tower_width=width, vocabulary=len(vocabulary))
        self.decoder.draw(seed)
        self._stock: CLIPModel | None = None
        self.clip = clip.requires_grad_(False)
        self.to(clip.device)
        self.train(False)

    @property
    def name(self) -> str:  # type: ignore[override]  # read-only here: it follows from the tower
        """What a table has to say of it: tower, resolution, layer."""
        tower = f"{self.clip.spec.origin} ({self.clip.spec.sha256[:8]})"
        return f"tiny-vlm on {tower}, {self.input_resolution} px, layer {self.sizes.layer}"

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.clip.device

    @property
    def preprocessing(self) -> Preprocessing:  # type: ignore[override]  # read-only here: it is the tower's
        """Between pixels and tower."""
        return self.clip.spec.preprocessing

    @property
    def input_resolution(self) -> int:
        """Side of the square that the tower reads, in pixels."""
        return self.clip.input_resolution

    def replace_tower(self, clip: CLIPModel) -> None:
        """Stand on the tower of another CLIP; the decoder stays as it is.

        Raises:
            ConfigError: Another width or another number of patches.
        """
        if (given := _tower_sizes(clip)) != (own := _tower_sizes(self.clip)):
            raise ConfigError(
                f"{clip.spec.origin} has {given[0]} patches of width {given[1]}, the tower of tiny-vlm {own[0]} of "
                f"width {own[1]}.",
                "Tune a CLIP of the tower's own architecture and resolution.",
            )
        self._stock = self._stock or self.clip
        self.clip = clip.requires_grad_(False).to(self.device)

    def restore_tower(self) -> None:
        """Put the model's own tower back, if another is in its place."""
        if self._stock is not None:
            self.clip, self._stock = self._stock, None

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """Return the patch tokens of the layer that the decoder reads, `[B, P, W]`."""
        return self.clip.patch_tokens(pixels, layer=self.sizes.layer, projected=False)

    def write(self, prompts: Sequence[str], targets: Sequence[str]) -> Lesson:
        """Write prompts and answers; see the protocol. A word that the decoder does not have is nothing to be said.

        Raises:
            ShapeError: Not one answer a prompt, or a row is longer than the decoder's places.
            ValueRangeError: An answer is empty.
        """
        answers = [[*ids, Vocabulary.END] if (ids := self.vocabulary.ids(text)) else [] for text in targets]
        asked = [self._prompt(prompt) for prompt in prompts]
        lesson = write_lesson(asked, answers, padding=Vocabulary.PADDING, device=self.device)
        self._check_length(lesson.ids.shape[1])
        return Lesson(lesson.ids, lesson.targets.masked_fill(lesson.targets == Vocabulary.UNKNOWN, IGNORED))

    def predict(self, pixels: Tensor, lesson: Lesson) -> Tensor:
        """Return logits by teacher forcing; see the protocol."""
        return self._decode(self.visual_tokens(pixels), lesson.ids)

    @torch.no_grad()
    def generate(self, pixels: Tensor, prompts: Sequence[str], *, max_new_tokens: int = 20) -> list[str]:
        """Answer greedily; see the protocol. Rows whose prompts are equally long go together.

        Raises:
            ShapeError: Not one prompt an image, or no room for the answer.
        """
        check_texts(len(pixels), prompts=prompts)
        asked = [self._prompt(prompt) for prompt in prompts]
        alike: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(asked):
            alike[len(prompt)].append(row)
        said = [""] * len(asked)
        for length, rows in alike.items():
            self._check_length(length + max_new_tokens)
            image = self.visual_tokens(pixels[rows])
            ids = torch.tensor([asked[row] for row in rows], device=self.device)
            for _ in range(max_new_tokens):
                # One more place than is written, since a place is said by those before it.
                longer = torch.cat([ids, ids.new_zeros(len(ids), 1)], dim=1)
                following = self._decode(image, longer)[:, -1].argmax(dim=1)
                ids = torch.cat([ids, following[:, None]], dim=1)
                if (ids[:, length:] == Vocabulary.END).any(dim=1).all():
                    break
            for row, own in zip(rows, ids[:, length:].tolist(), strict=True):
                said[row] = self.vocabulary.text(own)
        return said

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """The precisions that `computing` takes."""
        return frozenset({torch.bfloat16, torch.float32})

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Run tower and decoder inside the block in another precision."""
        with super().computing(dtype), self.clip.computing(dtype):
            yield

    def _decode(self, image: Tensor, ids: Tensor) -> Tensor:
        dtype = self.clip.compute_dtype
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits: Tensor = self.decoder(image, ids)
        return logits.float()

    def _prompt(self, prompt: str) -> list[int]:
        return [*self.vocabulary.ids(prompt), Vocabulary.ANSWER]

    def _check_length(self, length: int) -> None:
        if length > self.sizes.length:
            raise ShapeError(
                f"prompt and answer need {length} places, tiny-vlm has {self.sizes.length}.", "Shorten one of them."
            )


def _tower_sizes(clip: CLIPModel) -> tuple[int, int]:
    """Return how many patch tokens a tower has, and how wide they are."""
    vision: dict[str, Any] = clip.spec.architecture["vision_cfg"]
    return (clip.input_resolution // vision["patch_size"]) ** 2, vision["width"]


def save_tiny_vlm(model: TinyVLM, folder: Path) -> Path:
    """Save decoder and words, not the tower, whose hash is kept; each file is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(model.decoder.state_dict(), folder / WEIGHTS)
    stock = model._stock or model.clip
    config = {
        "tower": stock.spec.origin,
        "tower_sha256": stock.spec.sha256,
        "sizes": asdict(model.sizes),
        "words": model.vocabulary.words,
    }
    write_atomically(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    return folder


def load_tiny_vlm(folder: str | Path, clip: CLIPModel) -> TinyVLM:
    """Load what `save_tiny_vlm` left, on the tower that it was trained on.

    Args:
        folder: The saved decoder.
        clip: The model whose tower it was; others come by `replace_tower`.

    Raises:
        ConfigError: The tower is another one, or the configuration is not understood.
        WeightsError: Files are missing or do not fit.
    """
    files = Folder(Path(folder))
    config_path, weights = files.find(CONFIG), files.find(WEIGHTS)
    if config_path is None or weights is None:
        raise files.missing(CONFIG if config_path is None else WEIGHTS)
    config = read_json(config_path)
    if config.get("tower_sha256") != clip.spec.sha256:
        raise ConfigError(
            f"{files} was trained on another tower than {clip.spec.origin}.",
            "Load it on its own tower, then call replace_tower.",
        )
    sizes = build(DecoderSizes, config.get("sizes", {}), where=f"{files} sizes")
    model = TinyVLM(clip, Vocabulary(tuple(config.get("words", ()))), sizes)
    fit_exactly(model.decoder, read_weights(weights), weights)
    return model
