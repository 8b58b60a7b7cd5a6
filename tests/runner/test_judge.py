"""Validation during training: the fixed rows, the metrics of their answers, what they decide, what is told of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.training import Training
from finetune_api.stages import Progress, StageResults, TrainResult
from finetune_runner.data.prepared import load_split
from finetune_runner.evaluation.compare import System, values_of
from finetune_runner.evaluation.metrics import Settings
from finetune_runner.evaluation.metrics.f1 import classes_of
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.report.curve import loss_curve
from finetune_runner.stages import train
from finetune_runner.training.best import Selection
from finetune_runner.training.distributed import World as Processes
from finetune_runner.training.judge import Judge, chosen
from finetune_runner.training.remaining import evaluations_left, remaining_s
from tests.runner.tiny import World, make_world, tickets

TRAINING = {"learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 128, "earlyStopping": {"patience": 0}}


def history(world: World) -> list[dict[str, Any]]:
    path = world.folder / "store/team/triage/runs/uid-1/1/train/history.json"
    points: list[dict[str, Any]] = json.loads(path.read_text())
    return points


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[World, TrainResult, list[Progress]]:
    """A training of 30 steps whose answers become right, and everything it said."""
    world = make_world(tmp_path_factory.mktemp("judged"), tiny_model, total_steps=30, eval_steps=10)
    said: list[Progress] = []
    results, _ = train.run(world.open(world.task("train"), said))
    assert results.train is not None
    return world, results.train, said


def test_every_evaluation_has_the_metrics_of_its_answers(told: tuple[World, TrainResult, list[Progress]]) -> None:
    world, result, _ = told
    points = history(world)
    assert [point["step"] for point in points] == [0, 10, 20, 30]
    names = {"f1", "exactMatch", "schemaValid", "rougeL", "truncationRate", "repetitionRate"}
    assert all(names - {"f1"} <= set(point["measures"]) <= names for point in points)
    assert points[0]["measures"]["exactMatch"] == 0
    assert points[-1]["measures"]["exactMatch"] > 0.2
    assert points[-1]["measures"]["truncationRate"] == 0
    best = next(point for point in points if point["step"] == result.best_step)
    assert result.validation_metrics == {name: pytest.approx(v, abs=1e-6) for name, v in best["measures"].items()}


def test_live_progress_has_them_and_counts_the_evaluations_to_come(
    told: tuple[World, TrainResult, list[Progress]],
) -> None:
    _, result, said = told
    measured = [progress for progress in said if progress.validation_metrics]
    assert measured[-1].validation_metrics["exactMatch"] == pytest.approx(result.validation_metrics["exactMatch"])
    assert any(progress.eta_seconds for progress in said)


def test_they_are_what_evaluate_would_say_of_the_kept_checkpoint(
    told: tuple[World, TrainResult, list[Progress]],
) -> None:
    from finetune_runner.evaluation.engines import Request, open_engine
    from finetune_runner.evaluation.serving import fetch_adapter
    from finetune_runner.evaluation.systems import Examinee, own_prompts
    from finetune_runner.text import load_tokenizer

    world, result, _ = told
    context = world.context("evaluate", results=StageResults(prepare=world.prepare, train=result))
    rows = load_split(context, "validation")
    tokenizer = load_tokenizer(world.model)
    spec = context.task.spec
    adapter = fetch_adapter(context, world.folder / "adapter")
    request = Request(world.model, "lora", adapter, tokenizer, context.task.plan, 16, spec.evaluation.generation)
    answers = Examinee(context, open_engine("transformers", request), tokenizer, 128).ask(
        rows, own_prompts(tokenizer, rows), "check"
    )
    settings = Settings.of(spec.evaluation, classes_of([row.answer for row in rows], "$.category"))
    expected = values_of(System("x", answers), list(result.validation_metrics), settings)
    assert result.validation_metrics == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}


def test_a_resumed_training_measures_the_same(
    told: tuple[World, TrainResult, list[Progress]], tmp_path: Path, tiny_model: Path
) -> None:
    from tests.runner.test_train import run, stop_after

    world = make_world(tmp_path, tiny_model, total_steps=30, eval_steps=10)
    with pytest.raises(Exception, match="saved a checkpoint"):
        run(stop_after(world, 12))
    assert run(world.context("train")).validation_metrics == told[1].validation_metrics
    assert [p["measures"] for p in history(world)] == [p["measures"] for p in history(told[0])]


def test_no_answers_where_none_are_wanted(tmp_path: Path, tiny_model: Path) -> None:
    spec = {"training": {**TRAINING, "validationSamples": 0}}
    world = make_world(tmp_path, tiny_model, spec=spec, total_steps=2, eval_steps=1)
    results, _ = train.run(world.context("train"))
    assert results.train is not None
    assert results.train.validation_metrics == {}
    assert all(point["measures"] == {} for point in history(world))


def test_two_processes_sum_to_what_one_measures(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune_runner.text import load_tokenizer

    world = make_world(tmp_path, tiny_model, validation=40)
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model))
    tokenizer, cpu = load_tokenizer(tiny_model), torch.device("cpu")
    context = world.context("train")
    rows = load_split(context, "validation")

    def measured(processes: Processes) -> dict[str, float]:
        judge = Judge(context, tokenizer, rows, processes)
        return judge.metrics(judge.answer(model.eval(), lambda: None), cpu)

    alone = measured(Processes())

    sums: list[list[float]] = []

    class First(Processes):
        def sum(self, values: Any, device: Any) -> list[float]:
            sums.append(list(values))
            return list(values)

    class Second(Processes):
        def sum(self, values: Any, device: Any) -> list[float]:
            return [a + b for a, b in zip(sums.pop(0), values, strict=True)]

    measured(First(0, 2))
    assert measured(Second(1, 2)) == alone
    assert set(alone) >= {"exactMatch", "truncationRate", "repetitionRate"}


@pytest.mark.parametrize(
    ("asked", "max_new_tokens", "rows"),
    [(None, 256, 16), (None, 16, 64), (None, 8192, 8), (None, 64, 64), (None, 65, 63), (0, 16, 0), (500, 8192, 500)],
)
def test_how_many_rows_are_answered(asked: int | None, max_new_tokens: int, rows: int) -> None:
    assert Training(validation_samples=asked).answered_rows(max_new_tokens) == rows


@given(order=st.permutations(range(20)), count=st.integers(0, 25), seed=st.integers(0, 3))
def test_the_chosen_rows_do_not_depend_on_their_order(order: list[int], count: int, seed: int) -> None:
    rows = tickets(20, 5)
    picked = chosen(rows, count, seed)
    assert chosen([rows[i] for i in order], count, seed) == picked
    assert len(picked) == min(count, 20)


def test_more_rows_keep_the_ones_that_were_chosen_before() -> None:
    rows = tickets(20, 5)
    assert chosen(rows, 8, 42)[:5] == chosen(rows, 5, 42)
    assert chosen(rows, 5, 42) != chosen(rows, 5, 43)


@pytest.mark.parametrize(
    ("step", "total", "every", "left"),
    [(0, 30, 10, 4), (9, 30, 10, 4), (10, 30, 10, 3), (29, 30, 10, 2), (30, 30, 10, 1), (0, 31, 10, 5), (0, 5, 50, 2)],
)
def test_evaluations_still_to_come(step: int, total: int, every: int, left: int) -> None:
    assert evaluations_left(step, total, every) == left


def test_time_left_counts_steps_and_evaluations() -> None:
    assert remaining_s(10, 30, 10, 2.0, 5.0) == 20 * 2 + 3 * 5
    assert remaining_s(10, 30, 10, 2.0, None) == 40
    assert remaining_s(10, 30, 10, None, 5.0) is None


def select(best_by: str, metrics: list[dict[str, str]], tmp_path: Path, model: Path) -> Selection:
    base = make_world(tmp_path, model)
    evaluation = {**base.spec["evaluation"], "metrics": metrics, "gates": []}
    spec = {**base.spec, "evaluation": evaluation, "training": {**TRAINING, "bestBy": best_by}}
    return Selection.of(World(tmp_path, model, spec, base.plan, base.prepare).task("train").spec)


def test_the_primary_metric_chooses_where_asked(tmp_path: Path, tiny_model: Path) -> None:
    by_metric = select("metric", [{"name": "f1"}], tmp_path, tiny_model)
    assert by_metric.better(1.5, {"f1": 0.9}, 1.0, {"f1": 0.8})
    assert not by_metric.better(0.5, {"f1": 0.7}, 1.0, {"f1": 0.8})
    assert by_metric.better(0.9, {"f1": 0.8}, 1.0, {"f1": 0.8}), "the loss decides between equals"
    by_loss = select("validationLoss", [{"name": "f1"}], tmp_path, tiny_model)
    assert not by_loss.better(1.5, {"f1": 0.9}, 1.0, {"f1": 0.8})
    lower = select("metric", [{"name": "truncationRate"}], tmp_path, tiny_model)
    assert lower.better(1.5, {"truncationRate": 0.1}, 1.0, {"truncationRate": 0.2})
    assert not lower.better(1.5, {}, 1.0, {"truncationRate": 0.2}), "what is not known is the worst"
    assert select("metric", [{"name": "loss"}], tmp_path, tiny_model) == Selection()


def test_the_kept_checkpoint_is_the_one_with_the_best_metric(tmp_path: Path, tiny_model: Path) -> None:
    spec = {"training": {**TRAINING, "bestBy": "metric", "earlyStopping": {"patience": 2}}}
    world = make_world(tmp_path, tiny_model, spec=spec, total_steps=30, eval_steps=6)
    results, _ = train.run(world.context("train"))
    assert results.train is not None
    trained = [point for point in history(world) if point["step"] > 0]
    best = min(trained, key=lambda p: (-p["measures"].get("f1", 0.0), p["validation_loss"]))
    assert results.train.best_step == best["step"]
    assert math.isclose(results.train.best_validation_loss, best["validation_loss"])


def test_an_outcome_without_text_is_no_crash() -> None:
    settings = Settings(classes=("a",))
    assert values_of(System("x", [Outcome("1", "a", "")]), ["f1", "truncationRate"], settings)["truncationRate"] == 0


def test_the_reports_curve_shows_the_primary_metric_where_there_is_one() -> None:
    points: list[dict[str, Any]] = [
        {"step": 0, "validation_loss": 2.0, "train_loss": None, "measures": {"f1": 0.25}},
        {"step": 10, "validation_loss": 1.0, "train_loss": 1.2, "measures": {"f1": 1.0}},
    ]
    drawn = loss_curve(points, "f1")
    assert "f1 from 0 to 1: dotted" in drawn
    assert drawn.count("<polyline") == loss_curve(points, "loss").count("<polyline") + 1
    bare = [{name: value for name, value in point.items() if name != "measures"} for point in points]
    assert "dotted" not in loss_curve(bare, "f1")
