"""Chat templates of real models, and tokenizers that spell bytes and know a template's special tokens.

The templates are those that TRL carries (Apache-2.0, trl/chat_templates), read from the installed package.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_MARKER = re.compile(
    r"<\|[^|<>\s]+\|?>|<[a-z]+\|>|<\uff5c[^<>]+?\uff5c>|</?s>|<start_of_turn>|<end_of_turn>|<[a-z]?[be]os>|</?think>"
)
_TEXT_MARKERS = frozenset(["<think>", "</think>"])
"""Added to the vocabulary, but not special: they stay when special tokens are left out of a text."""
EOS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>",
    "deepseekv3": "<\uff5cend▁of▁sentence\uff5c>",
    "deepseek_r1_distill": "<\uff5cend▁of▁sentence\uff5c>",
    "gemma": "<eos>",
    "gemma3": "<eos>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "llama3_2": "<|eot_id|>",
    "nemotron_3_nano": "<|im_end|>",
    "phi3": "<|endoftext|>",
    "phi3_5": "<|endoftext|>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_5_nothink": "<|im_end|>",
    "qwen3_5_think": "<|im_end|>",
    "qwen3_6": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
}
"""End-of-sequence token of each model's tokenizer."""
BOS = {
    "cohere": "<BOS_TOKEN>",
    "gemma": "<bos>",
    "llama3": "<|begin_of_text|>",
    "deepseek": "<\uff5cbegin▁of▁sentence\uff5c>",
}


def model_template(name: str) -> str:
    """The template of a model."""
    found = find_spec("trl")
    assert found is not None
    (folder,) = found.submodule_search_locations or []
    return (Path(folder) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def byte_tokenizer(template: str, eos: str, bos: str | None = None) -> Any:
    """A tokenizer of bytes whose special tokens are those that the template writes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    markers = sorted({*_MARKER.findall(template), eos, *([bos] if bos else [])})
    inner.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in markers if m not in _TEXT_MARKERS])
    inner.add_tokens([AddedToken(m, normalized=False) for m in markers if m in _TEXT_MARKERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=eos, bos_token=bos, pad_token=eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def model_tokenizer(name: str) -> Any:
    """A tokenizer with a model's template."""
    bos = next((token for family, token in BOS.items() if name.startswith(family)), None)
    return byte_tokenizer(model_template(name), EOS[name], bos)
