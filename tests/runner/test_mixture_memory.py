"""What blocks of experts keep for the backward pass, and hold while they are recomputed, as the planner counts it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.job.method import Method
from finetune_api.model_config import facts_of_config
from finetune_operator.planner.memory.activations import (
    recomputation_factor,
    recomputed_bytes_per_token,
    saved_bytes_per_token,
)
from finetune_operator.planner.memory.weights import block_bytes
from finetune_operator.planner.shape import ModelShape, shape_of
from finetune_runner.evaluation.generation import cache_bytes_per_token
from finetune_runner.training import experts
from finetune_runner.training.loading import new_adapter
from tests.runner.mixtures import COMMON, KINDS

TOKENS, RANK = 256, 8
IDS = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1}
LATENT = {"v_head_dim": 24, "first_k_dense_replace": 0}
"""Value heads as wide as those of keys, for which the CPU's kernel keeps no scores either."""
CASES: list[tuple[str, dict[str, Any], int]] = [
    # Bytes per token that are not counted: norms of queries and keys, DeepSeek-V3's groups (12k + E + 8g + 4).
    ("mixtral", {}, 0),
    ("mixtral", {"num_local_experts": 16, "num_experts_per_tok": 4}, 0),
    ("qwen3_moe", {}, 408),
    ("qwen3_moe", {"moe_intermediate_size": 128}, 408),
    ("qwen2_moe", {}, 0),
    ("olmoe", {}, 520),
    # Query heads that are wider together than the residual stream.
    ("qwen3_moe", {"head_dim": 32}, 792),
    ("deepseek_v2", LATENT, 0),
    ("deepseek_v2", {**LATENT, "q_lora_rank": 24}, 0),
    ("deepseek_v3", LATENT, 44),
    ("deepseek_v3", {**LATENT, "q_lora_rank": 24, "qk_nope_head_dim": 40, "v_head_dim": 48}, 44),
]


def config_of(kind: str, layers: int, changes: dict[str, Any]) -> dict[str, Any]:
    of = KINDS[kind] if kind in KINDS else {**KINDS["deepseek_v2"], "n_group": 1, "topk_group": 1}
    return {**COMMON, **of, **IDS, **changes, "num_hidden_layers": layers}


def trained(kind: str, layers: int, changes: dict[str, Any]) -> Any:
    config = AutoConfig.for_model(kind, **config_of(kind, layers, changes))
    base = AutoModelForCausalLM.from_config(config, experts_implementation=experts.NAME).to(torch.bfloat16)
    model = new_adapter(base.requires_grad_(False), Method(rank=RANK), 0).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
            parameter.grad = torch.zeros_like(parameter)
    return model


def shape(kind: str, changes: dict[str, Any]) -> ModelShape:
    config = AutoConfig.for_model(kind, **config_of(kind, 2, changes)).to_dict()
    name = f"{kind.title().replace('_', '')}ForCausalLM"
    return shape_of(facts_of_config({**config, "architectures": [name]}, parameters=0))


def rows(model: Any) -> torch.Tensor:
    return model.get_base_model().get_input_embeddings()(torch.arange(TOKENS)[None] % 64).requires_grad_()


def saved_bytes(model: Any) -> int:
    """Of the distinct tensors that a forward pass of the decoder keeps, weights not counted."""
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().model(inputs_embeds=rows(model), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("kind", "changes", "norms"), CASES)
def test_bytes_that_a_block_keeps_per_token(kind: str, changes: dict[str, Any], norms: int) -> None:
    one, three = (saved_bytes(trained(kind, layers, changes)) for layers in (1, 3))
    measured = (three - one) / 2 / TOKENS - norms
    of = shape(kind, changes)
    forecast = saved_bytes_per_token(of, RANK, of.targets("all-linear"), dropout=False, adapter_bytes=2)
    assert forecast == pytest.approx(measured, rel=0.01)


class Live(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of all tensors that were made inside and still exist, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(("kind", "changes", "norms"), CASES)
def test_a_recomputed_block_holds_no_more_than_is_planned(kind: str, changes: dict[str, Any], norms: int) -> None:
    model = trained(kind, 1, changes)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with Live() as live:
        hidden = model.get_base_model().model(inputs_embeds=rows(model), use_cache=False).last_hidden_state
        gradient = torch.ones_like(hidden)
        live.most = before = live.now
        hidden.backward(gradient)
    of = shape(kind, changes)
    saved = norms + saved_bytes_per_token(of, RANK, of.targets("all-linear"), dropout=False, adapter_bytes=2)
    factor = recomputation_factor(dropout=False, adapter_bytes=2)
    planned = factor * saved + recomputed_bytes_per_token(of)
    measured = (live.most - before) / TOKENS
    print(f"{kind} {changes}: planned {planned:.0f}, measured {measured:.0f} bytes per token")
    assert measured <= planned <= 1.6 * measured


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "deepseek_v2", "deepseek_v3"])
def test_parameters_of_a_block_are_those_of_the_model(kind: str) -> None:
    every = {"first_k_dense_replace": 0} if kind.startswith("deepseek") else {}
    one, three = (
        sum(p.numel() for name, p in trained(kind, layers, every).named_parameters() if "lora_" not in name)
        for layers in (1, 3)
    )
    assert block_bytes(shape(kind, {}), "none") / 2 == pytest.approx((three - one) / 2, rel=0.01)


@pytest.mark.parametrize("queries", [None, 24])
def test_what_latent_attention_caches_per_token(queries: int | None) -> None:
    """transformers keeps what keys and values are made of."""
    changes = {**LATENT, "q_lora_rank": queries}
    model = trained("deepseek_v3", 2, changes).eval()
    with torch.no_grad():
        cache = model(torch.arange(TOKENS)[None] % 64, use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    of = shape("deepseek_v3", changes)
    assert kept == 2 * of.cached_width * 2 * TOKENS
    assert cache_bytes_per_token(model) == 2 * of.cached_width * 2
