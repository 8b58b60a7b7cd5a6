"""What a run costs and where versions stand, as Prometheus sees it."""

from __future__ import annotations

from finetune_operator.decide.types import Key
from finetune_operator.metrics import Metrics
from tests.decide.world import World, job_dict, pool

KEY = Key("team-a", "support")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_gpu_time_and_cost_of_a_run_are_counted_once() -> None:
    metrics = Metrics()
    job = job_dict(compute={"pool": "a100", "nodes": 2, "gpusPerNode": 4})
    world = World(job, (pool(price={"gpuPerHour": 3, "currency": "EUR"}),))
    world.run_to("evaluate")
    after = world.status
    metrics.decided(KEY, None, after, nodes=2)
    by_stage = {
        stage.name: (stage.finished_at - stage.started_at).total_seconds()
        for stage in after.stages
        if stage.finished_at and stage.started_at
    }
    assert by_stage["train"] > 0
    assert value(metrics, "finetune_gpu_seconds_total", pool="a100", stage="train") == by_stage["train"] * 8
    assert value(metrics, "finetune_gpu_seconds_total", pool="a100", stage="baseline") == by_stage["baseline"] * 4
    assert value(metrics, "finetune_gpu_seconds_total", pool="a100", stage="prepare") is None
    assert after.cost
    assert value(metrics, "finetune_cost_total", currency="EUR") == after.cost
    metrics.decided(KEY, after, after, nodes=2)
    assert value(metrics, "finetune_cost_total", currency="EUR") == after.cost


def test_versions_are_counted_by_phase_as_they_move_and_go() -> None:
    metrics = Metrics()
    metrics.versions(KEY, ("Approved", "PendingApproval", "PendingApproval"))
    metrics.versions(Key("team-b", "support"), ("PendingApproval",))
    assert value(metrics, "finetune_versions", phase="PendingApproval") == 3
    metrics.versions(KEY, ("Approved", "Approved", "Rejected"))
    assert value(metrics, "finetune_versions", phase="PendingApproval") == 1
    assert value(metrics, "finetune_versions", phase="Approved") == 2
    metrics.versions(KEY, ())
    assert value(metrics, "finetune_versions", phase="Approved") == 0
    assert value(metrics, "finetune_versions", phase="GateFailed") == 0, "there from the start"


def test_what_is_there_before_anything_happens() -> None:
    metrics = Metrics("1.2.3")
    assert value(metrics, "finetune_build_info", version="1.2.3") == 1
    assert value(metrics, "finetune_jobs", phase="Queued") == 0
    metrics.ready(True)
    assert value(metrics, "finetune_ready") == 1
    metrics.ready(False)
    assert value(metrics, "finetune_ready") == 0
