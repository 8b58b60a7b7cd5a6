"""An evaluation that runs out of GPU memory computes its batches in halves, down to one row, before it gives up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import EVALUATION_EXHAUSTED
from finetune_runner.errors import StageError
from finetune_runner.evaluation.fitting import Fitting
from finetune_runner.evaluation.generation import generate, settings_for
from finetune_runner.evaluation.likelihood import score
from finetune_runner.evaluation.share import Share
from finetune_runner.training import label_only
from finetune_runner.training.distributed import World as Ranks
from finetune_runner.training.loading import load_base, load_tokenizer
from finetune_runner.training.objectives.preference import Scorer
from finetune_runner.training.strategies import single
from tests.runner.tiny import make_world

CPU = torch.device("cpu")


def _limited(most: int, tried: list[int]) -> Any:
    def compute(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return [10 * row for row in batch]

    return compute


@pytest.mark.parametrize(
    ("most", "tried"),
    [
        (16, [16, 8]),
        (8, [16, 8, 8, 8]),
        (5, [16, 8, 4, 4, 4, 4, 4, 4]),
        (1, [16, 8, 4, 2, *[1] * 24]),
    ],
)
def test_what_does_not_fit_is_halved_and_not_tried_again(most: int, tried: list[int]) -> None:
    fitting, seen = Fitting("scoring", CPU, splits=True), []
    found = [
        (row, value)
        for batch in (list(range(16)), list(range(16, 24)))
        for part, values in fitting.parts(batch, _limited(most, seen))
        for row, value in zip(part, values, strict=True)
    ]
    assert found == [(row, 10 * row) for row in range(24)], "every row once, in order"
    assert seen == tried


@pytest.mark.parametrize(("splits", "rows", "tried"), [(True, "1 row at a time", [3, 1]), (False, "3 rows", [3])])
def test_what_fits_in_no_way_is_named(splits: bool, rows: str, tried: list[int]) -> None:
    seen: list[int] = []
    with pytest.raises(StageError, match=rows) as refused:
        list(Fitting("answering", CPU, splits=splits).parts([4, 5, 6], _limited(0, seen)))
    assert seen == tried
    assert refused.value.exit_code == ExitCode.GPU_OUT_OF_MEMORY
    assert refused.value.evidence.startswith(EVALUATION_EXHAUSTED)
    assert "training.maxLength" in refused.value.hint


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_base(tiny_model, "lora", torch.device("cpu"), None)


def _out_of_memory_above(model: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make forward passes of more rows run out of memory; returns the rows of each pass."""
    passes: list[int] = []
    forward = model.model.forward

    def limited(input_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        assert input_ids is not None
        passes.append(len(input_ids))
        if len(input_ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model.model, "forward", limited)
    return passes


EXAMPLES = [([7 + n % 5, *range(10, 14 + n)], [-100, *range(10, 14 + n)]) for n in range(20)]


def test_likelihoods_are_the_same_in_smaller_batches(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(model, EXAMPLES, 0)
    passes = _out_of_memory_above(model, 3, monkeypatch)
    np.testing.assert_allclose(score(model, EXAMPLES, 0), whole, rtol=1e-6)
    assert max(passes[4:]) == 4 or 16 in passes, "the whole batch was tried"
    assert passes.count(16) == 1


def test_log_probabilities_are_the_same_in_smaller_batches(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    scorer = Scorer(0, torch.device("cpu"), lockstep=False)
    whole = scorer.score(peft, EXAMPLES, Ranks())
    passes = _out_of_memory_above(model, 1, monkeypatch)
    torch.testing.assert_close(scorer.score(peft, EXAMPLES, Ranks()), whole, rtol=1e-6, atol=1e-6)
    assert passes[:4] == [8, 4, 2, 1]
    with pytest.raises(StageError, match="8 rows at a time"):
        Scorer(0, torch.device("cpu"), lockstep=True).score(peft, EXAMPLES, Ranks())
    peft.unload()


def test_answers_are_the_same_in_smaller_batches(model: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(tiny_model)
    settings = settings_for(model, tokenizer, 4)
    prompts = [ids for ids, _ in EXAMPLES]
    whole = generate(model, prompts, tokenizer, settings)
    passes = _out_of_memory_above(model, 5, monkeypatch)
    assert generate(model, prompts, tokenizer, settings) == whole
    assert passes[:3] == [16, 8, 4]
    with pytest.raises(StageError, match="answering does not fit on a GPU: 16 rows"):
        generate(model, prompts, tokenizer, settings, share=Share(0, 1, lockstep=True))


def test_a_training_goes_on_when_validation_runs_out_of_memory(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation has 16 rows at a time, training 4."""
    ordinary = single.train(make_world(tmp_path / "a", tiny_model, total_steps=2, eval_steps=1).context("train"))
    losses_of = label_only.label_losses

    def limited(model: Any, input_ids: torch.Tensor, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses_of(model, input_ids, labels, **inputs)

    monkeypatch.setattr(label_only, "label_losses", limited)
    found = single.train(make_world(tmp_path / "b", tiny_model, total_steps=2, eval_steps=1).context("train"))
    assert found.best_validation_loss == pytest.approx(ordinary.best_validation_loss, rel=1e-5)
