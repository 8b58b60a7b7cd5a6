"""What eager attention keeps for the backward pass, as the planner counts it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from finetune_operator.planner.memory.attention import SCORE_SAVED_BYTES

HEADS, TOKENS, BLOCKS = 4, 256, 2
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=4)), SCORE_SAVED_BYTES),
        (lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)), SCORE_SAVED_BYTES - 2),
    ],
    ids=["capped scores", "plain"],
)
def test_bytes_kept_per_head_and_pair_of_tokens(model: Any, expected: int) -> None:
    made = model().to(torch.bfloat16).train().requires_grad_(False)
    made.set_attn_implementation("eager")
    pairs, kept = HEADS * TOKENS**2, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() >= pairs:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    rows = made.get_input_embeddings()(torch.full((1, TOKENS), 7)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made.model(inputs_embeds=rows, use_cache=False)
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / pairs / BLOCKS == expected
