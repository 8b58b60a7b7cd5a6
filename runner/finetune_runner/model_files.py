"""Whether a folder holds a model that can be loaded, and what its configuration and weights say."""

from __future__ import annotations

import difflib
import json
import re
import struct
from collections.abc import Iterable
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.model_config import facts_of_config
from finetune_api.stages import ModelFacts
from finetune_runner.errors import StageError
from finetune_runner.model_cache.files import used_names
from finetune_runner.model_cache.meter import size_text

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""What the head is called; a model without any uses its embedding."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


_HEAD_BYTES = 100_000_000
"""Longest head that the safetensors library reads (its MAX_HEADER_SIZE)."""
FREQUENT_TYPES = frozenset(
    {
        "cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "glm4", "gpt2", "gpt_neox",
        "gpt_oss", "granite", "llama", "mistral", "mixtral", "olmo2", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3",
        "qwen3_moe", "smollm3", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Known without asking transformers, which imports torch: prepare starts in seconds without it."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks|block)\.(?P<number>\d+)\.")


def check_names(names: Iterable[str], source: str) -> None:
    """Refuse a folder by the names in it: no model, only pickles, no index. Raises StageError (MODEL_UNUSABLE)."""
    names = sorted(names)
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLES)]
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source} has no *.safetensors" + (f" (only {', '.join(pickles[:3])})" if pickles else ""),
            "convert it: load it with transformers where you trust it, then save_pretrained (it writes safetensors)"
            if pickles
            else "name the folder with config.json and *.safetensors",
        )
    if not {SINGLE, INDEX} & set(names):
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source} has neither {SINGLE} nor {INDEX}, by which transformers finds weights (there is "
            f"{', '.join([name for name in names if name.endswith('.safetensors')][:3])})",
            f"copy the model again, with all its files; a single file of weights is named {SINGLE}",
        )
    if "config.json" not in names:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source} has no config.json",
            "name the folder that holds config.json",
        )


def check_files(path: Path, source: str) -> None:
    """Refuse a folder whose weights are not whole: a shard is missing, or shorter than its own head says.

    Raises:
        StageError: MODEL_UNUSABLE naming the file.
    """
    check_names([item.name for item in path.iterdir()], source)
    index = path / INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            missing = [name for name in shards if not (path / name).is_file()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(source, f"{INDEX} is not an index of weights", error) from error
        if missing:
            raise StageError(
                ExitCode.MODEL_UNUSABLE,
                f"model.source {source} lacks {missing[0]}: {len(missing)} of the {len(shards)} weight files that "
                f"{INDEX} names are not there",
                "copy the model again, with all its files",
            )
    for item in _weights(path):
        try:
            tensors, start = _head(item)
            ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
            raise _damaged(source, f"{item.name} is damaged: it has no head of a safetensors file", error) from error
        size, expected = item.stat().st_size, start + max(ends, default=0)
        if size != expected:
            what = "truncated" if size < expected else "damaged"
            raise StageError(
                ExitCode.MODEL_UNUSABLE,
                f"model.source {source}: {item.name} is {what}: it has {size_text(size)}, its head says "
                f"{size_text(expected)} ({size} and {expected} bytes)",
                "copy this file again",
            )


def check_architecture(path: Path, source: str) -> None:
    """Refuse a model that the installed transformers has no code for, or whose weights are already quantised.

    Code shipped with a model is never run.

    Raises:
        StageError: MODEL_UNUSABLE naming the architecture, and those with the nearest names; or how its weights are
            quantised, where nothing is trained on such.
    """
    try:
        config = json.loads((path / "config.json").read_bytes())
        model_type = config.get("model_type")
        quantised = config.get("quantization_config")
        how = str(quantised.get("quant_method", "an unnamed method"))[:100] if quantised else ""
    except (ValueError, AttributeError) as error:
        raise _damaged(source, "config.json is damaged", error) from error
    if how:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source}: its weights are already quantised (quantization_config: {how}); adapters are "
            "trained on, and merged into, weights of 16 or 32 bit, which qlora quantises itself",
            "use the unquantised model"
            + (
                ", for gpt-oss one of those published in bf16, or load it with transformers and "
                "Mxfp4Config(dequantize=True), then save_pretrained"
                if how == "mxfp4"
                else " that this one was made of"
            ),
        )
    if model_type in FREQUENT_TYPES:
        return

    from transformers import __version__ as version
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    near = difflib.get_close_matches(str(model_type).lower(), known, 5, 0.5)
    remote = " (it ships its own code, which is never run)" if config.get("auto_map") else ""
    raise StageError(
        ExitCode.MODEL_UNUSABLE,
        f"model.source {source}: config.json has model_type {json.dumps(model_type)[:100]}, which transformers "
        f"{version} knows no causal language model for{remote}",
        f"use a model of a known architecture; nearest names: {', '.join(near)}"
        if near
        else f"use a model of a known architecture; {len(known)} are, for example llama, qwen3, gemma3_text, mistral",
    )


def model_facts(path: Path, source: str) -> ModelFacts:
    """What config.json and the heads of the weight files say. Raises StageError (MODEL_UNUSABLE)."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_bytes())
        files = _weights(path)
        shapes = {name: tensor["shape"] for item in files for name, tensor in _head(item)[0].items()}
        facts = facts_of_config(
            config,
            parameters=sum(map(prod, shapes.values())),
            file_bytes=sum(item.stat().st_size for item in files),
            tied_embeddings=not any(name.endswith(_HEADS) for name in shapes),
        )
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _damaged(source, "config.json or a safetensors file is damaged", error) from error
    layers = _layers_in(shapes)
    if 0 < layers < facts.layers:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source}: config.json says {facts.layers} layers, the weights have {layers}: the others "
            "would be random",
            "copy the model again: config.json and weights are not of one model",
        )
    return facts


def _layers_in(names: Iterable[str]) -> int:
    """Layers of the deepest stack that tensors are named after; 0 = they are named otherwise."""
    return max((int(found["number"]) + 1 for name in names if (found := _LAYER.match(name))), default=0)


def _weights(path: Path) -> list[Path]:
    return [path / name for name in used_names(item.name for item in path.iterdir()) if name.endswith(".safetensors")]


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """Tensors of a safetensors file and where their data start: 8 bytes length, then JSON (format specification)."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _HEAD_BYTES:
            raise ValueError(f"{path.name} is not a safetensors file")
        head = json.loads(stream.read(length))
    return {name: tensor for name, tensor in head.items() if name != "__metadata__"}, 8 + length


def _damaged(source: str, what: str, error: Exception) -> StageError:
    return StageError(
        ExitCode.MODEL_UNUSABLE,
        f"model.source {source}: {what}",
        "copy the model again",
        f"{type(error).__name__}: {error}"[:500],
    )
