"""The label-only head, padding and packing against the model's own loss, example by example."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.job.method import Method
from finetune_runner.training import attention, label_only
from finetune_runner.training.label_only import head_post, label_losses
from finetune_runner.training.loading import load_base, new_adapter
from finetune_runner.training.objectives.sft import SupervisedFineTuning, flatten, pad
from finetune_runner.training.optimizer import trainable

Encoded = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    """With an adapter that is not zero."""
    peft = new_adapter(load_base(tiny_model, "lora", torch.device("cpu"), None), Method(rank=4, alpha=8), 0)
    for name, parameter in trainable(peft).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return peft


def rows(count: int = 6) -> list[Encoded]:
    chance = random.Random(3)
    found = []
    for _ in range(count):
        ids = [chance.randrange(5, 390) for _ in range(chance.randint(4, 30))]
        found.append((ids, [-100] * (len(ids) // 3) + ids[len(ids) // 3 :]))
    return found


def _gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}


def _cosine(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    flat = [torch.cat([side[name].flatten() for name in sorted(left)]).double() for side in (left, right)]
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))


@pytest.mark.parametrize("chunk_bytes", [512 * 2**20, 1], ids=["one chunk", "a token per chunk"])
def test_loss_and_gradient_are_those_of_the_models_own_head(
    model: Any, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_only, "CHUNK_BYTES", chunk_bytes)
    batch = pad(rows(), 0)
    own = model(**batch, attention_mask=(batch["input_ids"] != 0).long()).loss
    expected = _gradients(model, own)
    losses = label_losses(model, **batch)
    found = _gradients(model, losses.mean())
    assert len(losses) == int((batch["labels"][:, 1:] != -100).sum())
    assert float(losses.mean()) == pytest.approx(float(own), rel=1e-6)
    assert max(float((found[n] - expected[n]).abs().max()) for n in expected) < 1e-6
    assert _cosine(found, expected) > 0.999999


def test_packed_examples_do_not_see_each_other(model: Any) -> None:
    examples = rows()
    alone = torch.cat([label_losses(model, **pad([example], 0)) for example in examples]).detach()
    packed = label_losses(model, **flatten(examples)).detach()
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    # The check can fail: as one document, later examples have other losses.
    merged = flatten(examples) | {
        "position_ids": torch.arange(packed.new_empty(sum(len(i) for i, _ in examples)).numel())[None]
    }
    assert (label_losses(model, **merged).detach() - alone).abs().max() > 0.1


def test_padding_changes_no_loss(model: Any) -> None:
    examples = rows()
    alone = torch.cat([label_losses(model, **pad([example], 0)) for example in examples]).detach()
    torch.testing.assert_close(label_losses(model, **pad(examples, 0)).detach(), alone, rtol=1e-5, atol=1e-5)


def test_counts_are_the_losses_there_are(model: Any) -> None:
    examples = rows()
    objective = SupervisedFineTuning(examples, [], 0)
    for packed in (False, True):
        batch = objective.collate(range(len(examples)), packed=packed)
        assert len(label_losses(model, **batch)) == sum(objective.counts)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 8.0),
        ({"logit_scale": 0.5}, 4.0),
        ({"logits_scaling": 4.0}, 2.0),
        ({"final_logit_softcapping": 4.0}, 4.0 * float(torch.tanh(torch.tensor(2.0)))),
    ],
    ids=["Llama", "Cohere", "Granite", "Gemma 2"],
)
def test_what_models_do_to_their_logits(config: dict[str, float], expected: float) -> None:
    settings = type("Config", (), config)()
    assert float(head_post(settings)(torch.tensor(8.0))) == pytest.approx(expected)


def test_flash_keeps_packed_examples_apart_and_has_sdpas_losses(
    model: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself runs on GPUs only; here plain attention per segment stands in for it."""
    calls: list[tuple[list[int], int, int]] = []

    def segment_by_segment(
        query: Any, key: Any, value: Any, bounds: Any, longest: int, scaling: float, behind: int
    ) -> Any:
        calls.append((bounds.tolist(), longest, behind))
        parts = []
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            q, k, v = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, enable_gqa=True
            )
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(attention, "varlen_kernel", segment_by_segment)
    examples = rows(3)
    expected = label_losses(model, **flatten(examples)).detach()
    config = model.get_base_model().config
    monkeypatch.setattr(config, "_attn_implementation_internal", attention.implementation("flash"))
    found = label_losses(model, **flatten(examples)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    lengths = [len(ids) for ids, _ in examples]
    assert calls == [([0, lengths[0], lengths[0] + lengths[1], sum(lengths)], max(lengths), -1)] * 2
    padded = label_losses(model, **pad(examples, 0)).detach()
    torch.testing.assert_close(padded, expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 2
