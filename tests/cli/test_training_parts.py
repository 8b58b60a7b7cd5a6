"""What `status` says of a training's numbers, and of forecasts beside measurements."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.job.forecast import Forecast
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import TimeShares
from finetune_cli.render.training import forecast_table, time_parts, training_facts
from tests.cli.test_cluster_parts import shown
from tests.decide.forecast.test_forecast import planned, prepared
from tests.decide.world import TRAINED, World, job_dict

MEASURED = TRAINED | {
    "tokensPerSecond": 5123.4,
    "labelledTokensPerSecond": 812.0,
    "modelFlopsUtilization": 0.413,
    "seconds": {"data": 6.0, "compute": 480.0, "optimizer": 24.0, "validation": 60.0, "checkpoint": 30.0},
    "strategy": "ddp",
    "microBatchSize": 4,
    "gradientAccumulation": 2,
    "peakMemoryBytes": 30 * 2**30,
    "durationSeconds": 600.0,
}


def facts(world: World) -> dict[str, str]:
    return dict(training_facts(world.job.spec, world.status))


def trained(result: dict[str, Any] = MEASURED, **spec: Any) -> World:
    world = planned(prepared("Llama-3.1-8B"), job_dict(**spec))
    world.succeed({"rows": 200, "baselines": {"prompted": {"f1": 0.7}}, "base": {"loss": 2.0}, "best": "prompted"})
    world.succeed(result)
    return world


def test_nothing_is_said_before_a_plan() -> None:
    assert facts(World(job_dict())) == {}


def test_the_rate_in_force_is_said_as_soon_as_it_is_planned() -> None:
    dpo = planned(prepared("Llama-3.1-8B"), job_dict(method={"objective": "dpo"}))
    assert facts(dpo) == {"learning rate": "5e-06 at most, cosine, 10% warm-up, 1 epoch, adamw_torch_fused"}
    constant = job_dict(training={"scheduler": "constant", "learningRate": 1e-4, "optimizer": "lion"})
    told = facts(planned(prepared("Llama-3.1-8B"), constant))["learning rate"]
    assert told == "0.0001 at most, constant, 3 epochs, lion"


def test_speed_and_time_by_part() -> None:
    assert facts(trained()) == {
        "learning rate": "0.0002 at most, cosine, 10% warm-up, 3 epochs, adamw_torch_fused",
        "way": "ddp, micro-batch 4 x 2, activations kept",
        "speed": "5,123 tokens/s (812 with a loss), MFU 41.3%",
        "time": "forward and backward 80% (8 min 00 s), evaluation 10% (1 min 00 s), checkpoints 5% (30 s), "
        "optimizer 4% (24 s), data 1% (6 s)",
    }


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"modelFlopsUtilization": None}, "speed", "5,123 tokens/s (812 with a loss)"),  # a GPU that is not known
        ({"tokensPerSecond": 0.0}, "speed", ""),
        ({"seconds": {}}, "time", ""),
        ({"probe": "micro-batch 4 -> 2"}, "way", "; the probe said: micro-batch 4 -> 2"),
    ],
)
def test_what_is_not_known_is_left_out(changes: dict[str, Any], name: str, words: str) -> None:
    result = {key: value for key, value in (MEASURED | changes).items() if value is not None}
    told = facts(trained(result))[name]
    assert told == words or (words.startswith(";") and told.endswith(words))


def test_parts_of_no_time_are_no_shares() -> None:
    assert time_parts(TimeShares()) == ""
    assert time_parts(TimeShares(compute=1.0)).startswith("forward and backward 100% (1 s)")


def test_every_stage_has_its_forecast_beside_its_measurement() -> None:
    known = trained().status.forecast
    assert known is not None
    (table,) = forecast_table(known)
    lines = [" ".join(line.split()) for line in shown(table).splitlines()]
    assert [line.split()[0] for line in lines] == ["STAGE", "baseline", "train", "evaluate"]
    train = next(stage for stage in known.stages if stage.stage == "train")
    off = train.reserved_gpu_memory_gib / 30 - 1
    assert f"{train.reserved_gpu_memory_gib:.1f} GiB 30.0 GiB {off:+.0%}" in lines[2]
    assert "10 min 00 s" in lines[2]
    assert lines[3].count("-") >= 2, "evaluate has not run"


def test_without_stages_there_is_no_table() -> None:
    assert list(forecast_table(Forecast(fit="Unknown"))) == []


def test_facts_of_a_plan_of_an_earlier_version() -> None:
    world = trained()
    plan = world.status.plan
    assert plan is not None
    older = plan.model_copy(update={"learning_rate": None, "epochs": None})
    spec = FineTuneJobSpec.from_wire(job_dict(training={"learningRate": 2e-4})["spec"])
    status = world.status.model_copy(update={"plan": older})
    assert (
        dict(training_facts(spec, status))["learning rate"] == "0.0002 at most, cosine, 10% warm-up, adamw_torch_fused"
    )
