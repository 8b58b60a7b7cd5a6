"""Tiny random mixtures of experts, with the tokenizer of the tiny Llama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": None,
}
TWO_OF = {"num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "topk_method": "greedy",
}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 128, "num_local_experts": 4, **TWO_OF},
    "qwen3_moe": {"head_dim": 16, "intermediate_size": 128, "moe_intermediate_size": 64, "num_experts": 8, **TWO_OF},
    "qwen2_moe": {
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 128,
        "num_experts": 8,
        **TWO_OF,
    },
    "olmoe": {"num_key_value_heads": 4, "intermediate_size": 64, "num_experts": 8, **TWO_OF},
    "gpt_oss": {"head_dim": 16, "intermediate_size": 64, "num_local_experts": 4, **TWO_OF},
    "deepseek_v2": {
        **LATENT,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        **TWO_OF,
    },
}
"""By model_type: what differs from COMMON. All layers of experts are in the model's own place and naming."""


def make_mixture(folder: Path, kind: str, tokenizer: Path, **changes: Any) -> Path:
    """Write a random mixture; `tokenizer` is a folder whose tokenizer it gets."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = AutoTokenizer.from_pretrained(str(tokenizer))
    words.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    config = AutoConfig.for_model(kind, **{**COMMON, **ids, **KINDS[kind], **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def dealt_out(folder: Path, target: Path, shards: int) -> Path:
    """The same model with its weights dealt out over several files: experts of one block are in different ones."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    tensors = load_file(str(target / "model.safetensors"))
    (target / "model.safetensors").unlink()
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(sorted(tensors.items())[number::shards])
        save_file(part, str(target / name), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target
