"""fp32 adapters under autocast, with and without PEFT's casts: the same gradients from less that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.job.method import Method
from finetune_runner.training.adapter_precision import uncast


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_are_the_same_and_less_is_kept(tiny_model: Path, dora: bool, recomputed: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune_runner.training.loading import new_adapter

    base = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.bfloat16)
    base.requires_grad_(False)
    model = new_adapter(base, Method.from_wire({"rank": 4, "useDora": dora}), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.randint(5, 200, (2, 32), generator=torch.Generator().manual_seed(0))

    def gradients(active: bool) -> tuple[dict[str, Any], int]:
        kept: dict[int, int] = {}

        def keep(tensor: Any) -> Any:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.zero_grad(set_to_none=True)
        with uncast(model, active=active):
            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with torch.autocast("cpu", torch.bfloat16), hooks:
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, sum(kept.values())

    cast, cast_bytes = gradients(False)
    left, left_bytes = gradients(True)
    assert cast.keys() == left.keys()
    assert all(torch.equal(cast[name], left[name]) for name in cast)
    assert recomputed or dora or left_bytes < cast_bytes
    assert {str(g.dtype) for g in left.values()} == {"torch.float32"}
