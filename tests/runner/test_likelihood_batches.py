"""Batches of likelihoods: logits come in chunks, or in smaller batches where a model has a head of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_api.job.method import Method
from finetune_runner.evaluation.likelihood import (
    BYTES_PER_LOGIT,
    LOGITS_BYTES_PER_BATCH,
    TOKENS_PER_BATCH,
    _batches,
    score,
    tokens_per_batch,
)
from finetune_runner.training import label_only
from finetune_runner.training.loading import load_base, new_adapter


@pytest.mark.parametrize(
    ("vocabulary", "tokens"), [(1000, TOKENS_PER_BATCH), (32000, 13421), (128256, 3348), (256000, 1677)]
)
def test_logits_of_a_batch_stay_within_their_bytes(vocabulary: int, tokens: int) -> None:
    assert tokens_per_batch(vocabulary) == tokens
    assert tokens * vocabulary * BYTES_PER_LOGIT <= LOGITS_BYTES_PER_BATCH


def test_every_row_is_in_one_batch_and_a_row_beyond_the_limit_is_alone() -> None:
    lengths = [100, 5000, 300, 200, 3000]
    batches = list(_batches(lengths, 3348))
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4]
    assert batches[0] == [1]
    assert all(len(batch) * lengths[batch[0]] <= 3348 for batch in batches[1:])


EXAMPLES = [
    ([5 + n % 7, *range(20, 30 + n)], [-100] * (n % 6) + [5 + n % 7, *range(20, 30 + n)][n % 6 :]) for n in range(18)
]
NOTHING = ([5, 6, 7], [-100, -100, -100])


@pytest.fixture(scope="module", params=["lora", "qlora"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    return load_base(tiny_model, request.param, torch.device("cpu"), None)


@pytest.mark.parametrize("chunk_bytes", [512 * 2**20, 50_000, 1], ids=["one chunk", "few tokens", "a token"])
def test_likelihoods_by_chunks_are_those_of_the_models_own_logits(
    model: Any, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_only, "CHUNK_BYTES", chunk_bytes)
    seen: list[int] = []
    linear = label_only.functional.linear

    def spy(hidden: torch.Tensor, *of: Any) -> torch.Tensor:
        seen.append(len(hidden) if of and of[0].shape[0] > 300 and hidden.dim() == 2 else 0)
        return linear(hidden, *of)

    own = score(model, [*EXAMPLES, NOTHING], 0, own_logits=True)
    monkeypatch.setattr(label_only.functional, "linear", spy)
    found = score(model, [*EXAMPLES, NOTHING], 0)
    np.testing.assert_allclose(found, own, rtol=1e-6)
    assert found[-1].tolist() == [0, 0]
    assert max(seen) <= max(1, chunk_bytes // (14 * model.config.vocab_size)), "positions whose logits exist at once"


def test_a_head_that_is_not_known_is_asked_for_its_own_logits(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, model = (load_base(tiny_model, "lora", torch.device("cpu"), None) for _ in range(2))
    forward = type(model).forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 2
        return output

    expected = score(known, EXAMPLES, 0)
    monkeypatch.setattr(type(model), "forward", doubled)
    found = score(model, EXAMPLES, 0)
    assert not np.allclose(found, expected, rtol=0.01)
    np.testing.assert_allclose(found, score(model, EXAMPLES, 0, own_logits=True), rtol=1e-9)


def passes(model: Any, examples: Any, **options: Any) -> int:
    """Forward passes of the model's blocks that scoring takes."""
    done: list[None] = []
    handle = model.get_decoder().register_forward_hook(lambda *_: done.append(None))
    score(model, examples, 0, **options)
    handle.remove()
    return len(done)


def test_which_logits_a_model_needs_is_asked_once(tiny_model: Path) -> None:
    model, other = (load_base(tiny_model, "lora", torch.device("cpu"), None) for _ in range(2))
    assert passes(model, [NOTHING]) == 0, "nothing to score tells nothing"
    batches = len(list(_batches([len(ids) for ids, _ in EXAMPLES], TOKENS_PER_BATCH)))
    assert passes(model, EXAMPLES) == batches + 2
    assert passes(model, EXAMPLES) == batches
    with_adapter = new_adapter(model, Method(rank=2), 0)
    assert passes(with_adapter, EXAMPLES) == batches
    assert passes(other, EXAMPLES) == batches + 2
