"""Multi-head latent attention: DeepSeek-V2 and V3. Blocks are measured in tests/runner/test_mixture_memory.py."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.model_config import facts_of_config
from finetune_operator.planner.flops import training_flops_per_token
from finetune_operator.planner.memory.attention import cache_bytes
from finetune_operator.planner.shape import ModelShape, UnknownShapeError, shape_of

HEADS = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
LITE: dict[str, Any] = {
    **HEADS,
    "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 102400,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
}
V2 = {
    **LITE,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 160,
    "q_lora_rank": 1536,
}
V3 = {
    **V2,
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "vocab_size": 129280,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
}


def shape(config: dict[str, Any], parameters: int = 0) -> ModelShape:
    return shape_of(facts_of_config(config, parameters=parameters))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(LITE, 15_706_484_224), (V2, 235_741_434_880), (V3, 671_026_404_352)],
    ids=["V2-Lite", "V2", "V3"],
)
def test_parameters_are_those_of_the_weight_files(config: dict[str, Any], parameters: int) -> None:
    assert shape(config, parameters).parameters == pytest.approx(parameters, rel=1e-5)


def test_what_a_token_passes_is_what_the_papers_say() -> None:
    """2.4 and 37 billion, embedding and head counted."""
    for config, active in ((LITE, 2.4e9), (V3, 37e9)):
        of = shape(config)
        assert of.active_parameters + of.embedding_parameters == pytest.approx(active, rel=0.13)
    heads = 16 * (192 + 128)
    few, many = (training_flops_per_token(shape(LITE), length, checkpointing=False) for length in (0, 1024))
    assert many - few == 4 * 27 * heads * 1024 / 2


def test_what_keys_and_values_are_made_of_is_cached_and_one_block_has_them_at_its_turn() -> None:
    """70 kB per token of V3 in all blocks, 4 MB if keys and values were kept."""
    of = shape(V3)
    assert of.cached_width == 576
    assert cache_bytes(of, 1) == 2 * 576 * (61 + 1) + 2 * 128 * (192 + 128 + 128)


@pytest.mark.parametrize(
    "changes", [{"architectures": ["LongcatFlashForCausalLM"]}, {"architectures": ["DeepseekV32ForCausalLM"]}]
)
def test_latent_attention_of_another_kind_is_not_guessed(changes: dict[str, Any]) -> None:
    with pytest.raises(UnknownShapeError, match="latent attention as no model that is known"):
        shape(V3 | changes)
