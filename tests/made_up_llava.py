"""A LLaVA folder in the hub's layout with random small weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "dog", "cat", "runs", "what", "is", "this", "USER", "ASSISTANT", "red", "on", "grass", "?", ":"]
TEMPLATE = "USER : <image> {} ASSISTANT :"
# As `tiny_clip` of tests/conftest.py: what its tower can take the place of.
VISION = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    vocabulary = {word: place for place, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )


def write_llava(place: Path) -> Path:
    """Write a folder; the tower is that of `tiny_clip` in its sizes."""
    import transformers

    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **VISION, image_size=32, patch_size=8, hidden_act="gelu", projection_dim=16
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=len(WORDS) + 5,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        ),
        image_token_id=4,
        vision_feature_layer=-2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = transformers.LlavaForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(place)
    tokenizer().save_pretrained(place)
    processor = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    (place / "preprocessor_config.json").write_text(json.dumps(processor))
    return place
